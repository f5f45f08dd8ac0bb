//! The whole product on one screen: collect, write, commit, acknowledge.
//!
//! While a batch is written and committed the next one is collected; that overlap lives in [`run`] and nowhere else.
//! Stopping is crashing politely: the batch under way is finished, the one being collected is forgotten.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::batch::{Batch, HaltedTable};
use crate::commit::DurablePosition;
use crate::error::Problem;
use crate::lakehouse::{Lakehouse, Written};
use crate::planted::{Bug, Planted};
use crate::position::Position;
use crate::source::{ChangeSource, SourceEvent};

/// When a batch is closed.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest wait from the first change of a batch to its commit.
    pub interval: Duration,
    /// Changes held by a batch that is being collected, in bytes; another one may be being written.
    pub bytes: usize,
    /// Pace of cuts when only the source's position moves (protocol C9).
    pub idle_interval: Duration,
    pub planted: Planted,
}

type Settling = JoinHandle<Result<(Lakehouse, Option<DurablePosition>), Problem>>;

/// How often a worker without work looks for an operator's word: as often as it would commit, within these bounds.
const LONGEST_LOOK: Duration = Duration::from_secs(10);
const SHORTEST_LOOK: Duration = Duration::from_secs(1);

/// Runs until `stop`, the end of a scripted source, or an error; its reaction says whether to resume from the cut.
pub async fn run(
    source: &mut impl ChangeSource,
    lakehouse: Lakehouse,
    limits: Limits,
    stop: CancellationToken,
) -> Result<(), Problem> {
    let mut collected = Collected::new(limits, lakehouse.resume_position());
    let mut idle = Some(lakehouse);
    let mut settling: Option<Settling> = None;
    let mut lost = None;
    let look = limits.interval.clamp(SHORTEST_LOOK, LONGEST_LOOK);
    let mut look_at = Instant::now() + look;
    loop {
        if collected.is_due()
            && let Some(lakehouse) = idle.take()
        {
            settling = Some(tokio::spawn(settle(lakehouse, collected.take())));
        }
        if collected.has_ended() && settling.is_none() {
            return Ok(());
        }
        // Biased: first whether to go on at all, then what frees memory, then what needs it. Every arm may be dropped.
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            settled = finished(&mut settling) => {
                settling = None;
                let (lakehouse, durable) = settled?;
                durable.iter().for_each(|durable| source.acknowledge(durable));
                idle = Some(lakehouse);
            }
            event = source.next(), if collected.has_room() => {
                match event {
                    Ok(event) => collected.absorb(event),
                    Err(problem) => {
                        lost = Some(problem);
                        break;
                    }
                }
                if limits.planted.is(Bug::AcknowledgeBeforeCommit) && let Some(early) = collected.batch.boundary() {
                    source.acknowledge(&DurablePosition::planted(early.position));
                }
            }
            () = collected.due() => {}
            () = tokio::time::sleep_until(look_at), if idle.is_some() => {
                settling = idle.take().map(|lakehouse| tokio::spawn(look_around(lakehouse)));
            }
        }
        // A commit has looked.
        if settling.is_some() {
            look_at = Instant::now() + look;
        }
    }
    // Also when the source is lost: whoever resumes must not meet this incarnation still at work.
    if settling.is_some() {
        let (_, durable) = finished(&mut settling).await?;
        durable.iter().for_each(|durable| source.acknowledge(durable));
    }
    lost.map_or(Ok(()), Err)
}

/// The order that nothing else compiles in: a batch becomes written, then durable, and only that can be acknowledged.
async fn settle(mut lakehouse: Lakehouse, batch: Batch) -> Result<(Lakehouse, Option<DurablePosition>), Problem> {
    let (rows, begun) = (batch.rows(), Instant::now());
    let Written::Batch(written) = lakehouse.write(batch).await? else {
        return Ok((lakehouse, None));
    };
    let durable = lakehouse.commit(written).await?;
    if let Some(durable) = &durable
        && rows > 0
    {
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        info!(rows, position = %durable.get(), milliseconds, "batch is durable");
    }
    Ok((lakehouse, durable))
}

async fn look_around(lakehouse: Lakehouse) -> Result<(Lakehouse, Option<DurablePosition>), Problem> {
    lakehouse.look_at_control().await?;
    Ok((lakehouse, None))
}

async fn finished(settling: &mut Option<Settling>) -> Result<(Lakehouse, Option<DurablePosition>), Problem> {
    match settling {
        Some(task) => {
            task.await.unwrap_or_else(|_| Err(Problem::retry("INTERRUPTED", "", "committing was interrupted")))
        }
        None => std::future::pending().await,
    }
}

/// The batch being collected, and when it is due.
struct Collected {
    limits: Limits,
    batch: Batch,
    /// The last boundary that was handed on.
    reached: Position,
    /// When the batch must be closed.
    due: Option<Instant>,
    /// Parts of the batch are written already; its first boundary closes it.
    begun: bool,
    idle_since: Instant,
    ended: bool,
}

impl Collected {
    fn new(limits: Limits, reached: Position) -> Self {
        let idle_since = Instant::now();
        Self { limits, batch: Batch::default(), reached, due: None, begun: false, idle_since, ended: false }
    }

    fn absorb(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Changes(chunk) => {
                self.due.get_or_insert_with(|| Instant::now() + self.limits.interval);
                self.batch.absorb(chunk);
                if self.limits.planted.is(Bug::SplitTransaction) {
                    let middle = self.batch.boundary().map_or(self.reached, |boundary| boundary.position);
                    self.batch.close_at(Position::new(middle.offset() + 1));
                }
            }
            SourceEvent::Boundary(boundary) => self.batch.close_at(boundary),
            SourceEvent::TableHalted { table, position, code, reason } => {
                self.due.get_or_insert_with(|| Instant::now() + self.limits.interval);
                self.batch.halted.push(HaltedTable { table, position, code, reason });
            }
            SourceEvent::End => self.ended = true,
        }
    }

    /// Room for one more event: a full batch waits until it has been handed on.
    fn has_room(&self) -> bool {
        !self.ended && !self.is_full()
    }

    /// A batch is full at a boundary long before it is full without one, and in parts at its first: otherwise a source
    /// that is never silent would fill every batch in the middle of a transaction, and none would ever be committed.
    fn is_full(&self) -> bool {
        match self.batch.boundary() {
            Some(_) => self.begun || self.batch.bytes() > self.limits.bytes / 2,
            None => self.batch.bytes() >= self.limits.bytes,
        }
    }

    fn is_due(&self) -> bool {
        if self.is_full() {
            return true;
        }
        let Some(boundary) = self.batch.boundary() else {
            return false;
        };
        let late = |due: Instant| due <= Instant::now();
        let due = self.ended || self.due.is_some_and(late);
        match self.batch.has_changes() {
            true => due,
            // A source that only moves on.
            false => boundary.position > self.reached && (due || late(self.idle_since + self.limits.idle_interval)),
        }
    }

    /// Waits until the batch is due by time. For ever, if nothing is there that time alone makes due.
    async fn due(&self) {
        let moved = self.batch.boundary().is_some_and(|boundary| boundary.position > self.reached);
        let now = Instant::now();
        match (self.batch.has_changes(), self.due) {
            (true, Some(due)) if due > now => tokio::time::sleep_until(due).await,
            (false, _) if moved && self.idle_since + self.limits.idle_interval > now => {
                tokio::time::sleep_until(self.idle_since + self.limits.idle_interval).await;
            }
            _ => std::future::pending().await,
        }
    }

    fn take(&mut self) -> Batch {
        let whole = self.batch.boundary().is_some();
        self.reached = self.batch.boundary().map_or(self.reached, |boundary| boundary.position);
        self.idle_since = Instant::now();
        self.due = None;
        self.begun = !whole;
        self.batch.take_part()
    }

    fn has_ended(&self) -> bool {
        self.ended && !self.is_due()
    }
}
