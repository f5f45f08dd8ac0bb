//! PostgreSQL as a source: consistent copy, then logical replication. The only crate that knows an LSN.
//!
//! `connection` and `walsender` talk to the server; `pgoutput`, `copy_binary` and `values` decode; `tables`, `publication`,
//! `slot`, `server` and `validate` know the catalog; `relation`, `chunk` and `stream` make changes; `copy` makes the first
//! rows; [`replicate`] puts them in order.

mod chunk;
pub mod config;
pub mod connection;
mod copy;
pub mod copy_binary;
pub mod lsn;
pub mod pgoutput;
mod problem;
mod publication;
mod relation;
mod replicate;
mod server;
mod slot;
mod stream;
mod tables;
mod validate;
pub mod values;
mod verify;
pub mod walsender;

pub use replicate::{end_of_wal, replicate};
pub use validate::validate;
pub use verify::verify;
