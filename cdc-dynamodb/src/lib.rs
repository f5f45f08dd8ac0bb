//! DynamoDB as a source: the copy by a scan, then the changes of its streams, shard by shard.
//!
//! The only crate that knows a shard. `replicate.rs` is one incarnation from its checks to the stream; what an item
//! becomes in the lake stands in `items.rs`.

pub mod items;
mod names;
pub mod number;
pub mod value;
