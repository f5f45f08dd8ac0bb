//! The commit protocol, catalogs, structure checks and rollback under test, a file a subject.

#![cfg(test)]

mod catalogs;
mod change_log;
mod compaction;
mod coordinators;
mod crash;
mod diff;
mod fold;
mod foreign_compaction;
mod fsck;
mod metadata_bounds;
mod network;
mod ownership;
mod planted;
mod protocol;
mod requests;
mod rest;
mod rollback;
mod support;
#[path = "fsck/tiny.rs"]
mod tiny;
