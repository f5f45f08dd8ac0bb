//! The DynamoDB source under test, a file a subject.

#![cfg(test)]

mod calls;
mod claims;
mod copies;
mod export;
mod failures;
mod gaps;
mod inference;
mod item_types;
mod leases;
mod planted_shards;
mod quarantine;
mod resumed_copies;
mod streams;
mod support;
