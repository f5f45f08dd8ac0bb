//! The one thing that the pipeline asks of a source.
//!
//! Implemented by `cdc-postgres` and, in tests, by a scripted source.

use std::future::Future;

use crate::change::ChangeChunk;
use crate::commit::DurablePosition;
use crate::error::Problem;
use crate::position::{Boundary, Position};

/// What a source delivers, in source order.
#[derive(Debug)]
pub enum SourceEvent {
    /// Changes of one table. They may end in the middle of a source transaction.
    Changes(ChangeChunk),
    /// Everything delivered so far is whole: no transaction that ends at or before this position is missing, and none
    /// is open (protocol A1).
    Boundary(Boundary),
    /// One table cannot go on; the others do (protocol C8). Its changes after `position` are not delivered.
    TableHalted { table: String, position: Position, code: &'static str, reason: String },
    /// The source has ended (scripted sources and bounded runs only).
    End,
}

/// A stream of changes that can be resumed from a cut.
pub trait ChangeSource: Send {
    /// Waits for the next event. Cancel-safe: a dropped call loses nothing.
    fn next(&mut self) -> impl Future<Output = Result<SourceEvent, Problem>> + Send;

    /// Everything up to `durable` is in the lake; the source may forget it (protocol C2). Never blocks, never fails a
    /// batch: a lost acknowledgement costs a replay.
    fn acknowledge(&self, durable: &DurablePosition);
}
