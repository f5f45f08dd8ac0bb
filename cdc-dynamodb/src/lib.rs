//! DynamoDB as a source: the copy by a scan, then the changes of its streams, shard by shard.
//!
//! The only crate that knows a shard. What a table's item becomes in the lake: `items.rs`.

mod client;
pub mod config;
mod lineage;
pub mod number;
mod reader;
pub mod table;
