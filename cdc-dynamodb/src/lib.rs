//! DynamoDB as a source: the copy by a scan, then the changes of its streams, shard by shard.
//!
//! The only crate that knows a shard. `replicate.rs` is one incarnation from its checks to the stream; what an item
//! becomes in the lake stands in `items.rs`.

mod bridge;
mod budget;
mod chunk;
mod client;
pub mod config;
mod copy;
mod copy_rows;
mod export;
mod infer;
pub mod items;
mod lease;
mod lineage;
mod mismatches;
mod names;
pub mod number;
mod reader;
mod replay;
mod replicate;
mod stream;
mod table;
mod tips;
mod validate;
pub mod value;
mod verify;

pub use mismatches::{Counts as MismatchCounts, mismatches};
pub use replicate::replicate;
pub use validate::validate;
pub use verify::verify;
