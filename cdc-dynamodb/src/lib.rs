//! DynamoDB as a source: the copy by a scan, then the changes of its streams, shard by shard.
//!
//! The only crate that knows a shard. `replicate.rs` is one incarnation from its checks to the stream; what an item
//! becomes in the lake stands in `items.rs`.

mod chunk;
mod client;
pub mod config;
mod copy;
pub mod items;
mod lineage;
mod names;
pub mod number;
mod reader;
mod replicate;
mod stream;
mod table;
mod validate;
pub mod value;
mod verify;

pub use replicate::replicate;
pub use validate::validate;
pub use verify::verify;
