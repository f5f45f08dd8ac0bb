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
//! | *quarantine* | the table with the rows that could not be mapped, whole |
//! | *standing row* | a row of a quarantine that nothing has replaced: what a replay of the quarantine applies, where it fits by now |
//! | *copy* | the first read of a source table |
//! | *resync* | a copy of a table that has one, which it replaces |
//! | *spool* | changes that wait on disk until a copy is done |
//! | *cut* | the consistent view over all tables of a pipeline, and where it resumes |
//! | *control table* | where epoch, owner and cut stand |
//! | *epoch*, *owner* | number and random name of one incarnation of a pipeline's worker |
//! | *key index* | where the row of each key stands |
//! | *diff* | what differs between two snapshots of one table: rows inserted, updated, deleted |
//! | *change log* | the changes that have led from one snapshot of a table to another, in order, from its history |
//! | *rewrite* | data files replaced by others with the same rows: a compaction |
//! | *row map* | where the rows of replaced data files stand after a rewrite |
//! | *forward* | carry deletes that came meanwhile over to the files of a rewrite |
//! | *rollback* | the rows of an older snapshot made current by a new one; the table is then *held* |
//! | *hold* | a mirror takes no changes, its history goes on |
//! | *release* | a held mirror catches up from its history: by *undo*, *replay* or *accept* |
//! | *close* | a rollback that holds no table loses its tags, and with them its ways back |
//! | *tag* | a name that a snapshot is read by, and does not expire as long as it has it; a *protected* one stays whatever its age |
//! | *acknowledge* | tell the source that it may forget |
//! | *audit trail* | the chain of *entries* that say who has asked for what: an *intent* or a *read*, its *outcome*; who was *refused* |
//! | *halt* | stop with a code until a person decides |
//!
//! # The way of a change
//! `source` → [`change`] → [`batch`] → [`lakehouse`] (`mirror`, `history`, `quarantine`, `write`) → [`commit`] → acknowledge; the loop is
//! [`pipeline::run`]. The first rows of a table come by [`copy`]. Everything that reads rows reads by [`read`].

pub mod aws;
pub mod batch;
pub mod catalog;
pub mod change;
pub mod change_log;
pub mod commit;
pub mod compare;
pub mod copy;
pub mod diff;
mod equality;
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
pub mod quarantine;
pub mod read;
mod replay;
pub mod rollback;
pub mod row_map;
pub mod schema;
pub mod secret;
pub mod source;
pub mod spool;
pub mod storage;
pub mod tags;
pub mod verify;
pub mod write;
