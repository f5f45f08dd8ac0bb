//! Change data from any source into Apache Iceberg tables: exactly once, readable at full speed, every commit a point to
//! go back to.
//!
//! # Words
//! One word per idea, here and in the command line, the configuration, logs, metrics and documents.
//!
//! | word | means |
//! |---|---|
//! | *source* | the database whose changes are followed |
//! | *change* | one row inserted, updated or deleted at the source, or a truncate of a table |
//! | *chunk* | changes of one table, column by column |
//! | *position* | how far the source has been read: the end of the last transaction included |
//! | *lane* | a part of a source's log with an order of its own; a write-ahead log is one lane, a log in shards has many |
//! | *boundary* | a position at which no source transaction is open |
//! | *batch* | all changes between two boundaries; the unit that is committed |
//! | *snapshot* | always an Iceberg snapshot |
//! | *mirror* | the table with the current state, one row a key |
//! | *history* | the table with every change after the copy |
//! | *copy* | the first read of a source table |
//! | *cut* | the consistent view over all tables of a pipeline, and where it resumes |
//! | *control table* | where epoch, owner and cut stand |
//! | *epoch*, *owner* | number and random name of one incarnation of a pipeline's worker |
//! | *key index* | where the row of each key stands |
//! | *acknowledge* | tell the source that it may forget |
//! | *halt* | stop with a code until a person decides |
//!
//! # The way of a change
//! `source` → [`change`] → [`batch`] → [`lakehouse`] (`mirror`, `history`, `write`) → [`commit`] → acknowledge; the loop is
//! [`pipeline::run`]. The first rows of a table come by [`copy`]. Everything that reads rows reads by [`read`].

pub mod aws;
pub mod batch;
pub mod catalog;
pub mod change;
pub mod commit;
pub mod compare;
pub mod copy;
pub mod error;
pub mod finding;
pub mod fold;
pub mod foreign;
pub mod fsck;
mod history;
pub mod key_hash;
pub mod key_index;
pub mod lakehouse;
pub mod lanes;
pub mod live;
mod mirror;
pub mod overflow;
pub mod owner_watch;
pub mod pipeline;
pub mod planted;
pub mod position;
pub mod read;
pub mod schema;
pub mod secret;
pub mod source;
pub mod storage;
pub mod verify;
pub mod write;
