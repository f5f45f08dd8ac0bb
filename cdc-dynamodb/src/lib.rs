//! DynamoDB as a source. What stands so far is what everything else here will rest on: numbers as DynamoDB means them.
//!
//! Copy, shards and streams are not part of this release; the binary says so when a pipeline asks for them.

pub mod items;
mod names;
pub mod number;
pub mod value;
