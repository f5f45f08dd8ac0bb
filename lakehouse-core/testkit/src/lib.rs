//! What the tests of every crate stand on: a private PostgreSQL, the real binary as a child process, independent
//! Iceberg readers, a seeded load, and the oracle that says what must be in the lake.
//!
//! Development only. It depends on no project crate, so that a mistake of the product cannot be repeated here.
//! Missing parts fail loudly and say how to get them: `deploy/test` installs and starts everything.

pub mod bank;
pub mod canonical;
pub mod dynamodb;
pub mod emulators;
pub mod fault_proxy;
mod host;
pub mod http;
pub mod lakehouse;
pub mod object_store;
pub mod objects;
pub mod oracle;
pub mod postgres;
pub mod readers;
pub mod rest_engine;
pub mod s3_tables;
pub mod tier;
mod wire;
