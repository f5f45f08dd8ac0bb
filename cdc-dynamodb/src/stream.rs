//! The streams of a pipeline's tables as one [`ChangeSource`]: pages of records in, chunks and boundaries out.
//!
//! A stream has no transactions; every place between two records is a boundary. So records of all shards are collected for
//! a moment and go out together, followed by a boundary that says how far each shard has been read (D30). Boundaries are
//! numbered from behind the highest that the lake holds.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodbstreams::types::{AttributeValue, OperationType, Record};
use lakehouse_core::change::{Operation, Origin};
use lakehouse_core::commit::DurablePosition;
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::lanes::{Lanes, TableLanes};
use lakehouse_core::position::{Boundary, Position};
use lakehouse_core::source::{ChangeSource, SourceEvent};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::chunk::{Change, ChunkBuilder};
use crate::client::{Clients, gap};
use crate::config::Pace;
use crate::lineage::{Lineage, ListedShard};
use crate::reader::{Page, ShardReader, Shared, Told, discover, sequence_of};
use crate::value::Item;

/// Bytes of records after which they go out.
const CHUNK_BYTES: usize = 4 << 20;
/// Pages between the readers and here.
const PAGES_AHEAD: usize = 16;
/// A record's time is rounded down to the second.
const CLOCK_GRAIN: i64 = 1_000;

/// A table whose stream is followed.
pub(crate) struct Followed {
    /// ARN of the stream.
    pub(crate) stream: String,
    pub(crate) lineage: Lineage,
    pub(crate) builder: ChunkBuilder,
}

struct FollowedTable {
    stream: String,
    lineage: Lineage,
    builder: ChunkBuilder,
    /// The lanes as they were when they last went out, and whether they have changed since.
    told: Arc<TableLanes>,
    moved: bool,
    /// Milliseconds since 1970 at which a shard was last known to be read to its tip.
    tips: HashMap<Arc<str>, i64>,
    nudge: Arc<Notify>,
    readers: JoinSet<()>,
}

pub(crate) struct DynamodbStream {
    shared: Shared,
    told: mpsc::Receiver<Told>,
    tables: BTreeMap<Arc<str>, FollowedTable>,
    events: VecDeque<SourceEvent>,
    /// Number of the boundary that comes next.
    next: u64,
    pending_since: Option<Instant>,
    linger: Duration,
    /// The clock of `lineage.rs`.
    started: Instant,
}

impl DynamodbStream {
    /// Begins to read. `reached` is the highest position that the lake holds.
    pub(crate) fn start(clients: Clients, pace: Pace, tables: BTreeMap<String, Followed>, reached: Position) -> Self {
        let (sender, told) = mpsc::channel(PAGES_AHEAD);
        let shared = Shared::new(clients, pace, sender);
        let tables = tables.into_iter().map(|(name, followed)| {
            let name: Arc<str> = name.into();
            let Followed { stream, lineage, builder } = followed;
            let (nudge, mut readers) = (Arc::new(Notify::new()), JoinSet::new());
            readers.spawn(discover(shared.clone(), Arc::clone(&name), stream.clone(), Arc::clone(&nudge)));
            let told = Arc::new(lineage.lanes().clone());
            (name, FollowedTable { stream, lineage, builder, told, moved: false, tips: HashMap::new(), nudge, readers })
        });
        let tables = tables.collect();
        let (next, started) = (reached.offset() + 1, Instant::now());
        let (events, linger) = (VecDeque::new(), pace.linger);
        let mut stream = Self { shared, told, tables, events, next, pending_since: None, linger, started };
        let names: Vec<Arc<str>> = stream.tables.keys().cloned().collect();
        names.iter().for_each(|name| stream.read_more(name));
        stream
    }

    fn take(&mut self, told: Told) -> Result<(), Problem> {
        match told {
            Told::Page(page) => self.page(page),
            Told::Listing { table, shards } => self.listing(&table, &shards),
            Told::Failed { table, problem } => match problem.reaction {
                Reaction::HaltTable => self.halt(&table, problem),
                Reaction::Retry | Reaction::Halt => return Err(problem),
            },
        }
        Ok(())
    }

    fn listing(&mut self, table: &Arc<str>, shards: &[ListedShard]) {
        let now = self.started.elapsed();
        let Some(followed) = self.tables.get_mut(table) else { return };
        match followed.lineage.observe(shards, now) {
            Ok(moved) => {
                followed.moved |= moved;
                self.pending_since = self.pending_since.or_else(|| moved.then(Instant::now));
                self.read_more(table);
            }
            Err(lost) => self.halt(table, gap(table, lost.to_string())),
        }
    }

    /// Readers for the shards that may be read now.
    fn read_more(&mut self, table: &Arc<str>) {
        let Some(followed) = self.tables.get_mut(table) else { return };
        for (shard, start) in followed.lineage.take_readable() {
            let reader = ShardReader {
                shared: self.shared.clone(),
                table: Arc::clone(table),
                stream: followed.stream.clone(),
                shard: shard.into(),
                start,
                read_until: followed.lineage.lanes().read_until,
            };
            followed.readers.spawn(reader.run());
        }
        // Readers that have ended are let go of.
        while followed.readers.try_join_next().is_some() {}
    }

    fn page(&mut self, page: Page) {
        let Page { table, shard, records, ended, at_tip } = page;
        let Some(followed) = self.tables.get_mut(&table) else { return };
        let mut tip = at_tip;
        for record in records {
            let created = record.dynamodb().and_then(|change| change.approximate_creation_date_time());
            let created = created.and_then(|time| time.to_millis().ok());
            tip = tip.max(created.map(|created| created - CLOCK_GRAIN));
            if let Err(problem) = followed.append(&shard, record, self.next) {
                return self.halt(&table, problem);
            }
            self.pending_since.get_or_insert_with(Instant::now);
        }
        if let Some(tip) = tip {
            let known = followed.tips.entry(Arc::clone(&shard)).or_insert(tip);
            *known = tip.max(*known);
        }
        if ended {
            info!(table = &*table, shard = &*shard, "shard is read to its end");
            followed.tips.remove(&shard);
            followed.lineage.end(&shard);
            followed.moved = true;
            followed.nudge.notify_one();
            self.pending_since.get_or_insert_with(Instant::now);
        }
        if followed.note_tips() {
            self.pending_since.get_or_insert_with(Instant::now);
        }
        if ended {
            self.read_more(&table);
        }
    }

    /// Everything collected goes out, and how far each shard has been read with it.
    fn flush(&mut self) {
        self.pending_since = None;
        let mut moved = false;
        for followed in self.tables.values_mut() {
            if let Some(chunk) = followed.builder.finish() {
                self.events.push_back(SourceEvent::Changes(chunk));
                followed.moved = true;
            }
            if std::mem::take(&mut followed.moved) {
                followed.told = Arc::new(followed.lineage.lanes().clone());
                moved = true;
            }
        }
        if moved {
            let lanes: Lanes =
                self.tables.iter().map(|(table, followed)| (table.to_string(), Arc::clone(&followed.told))).collect();
            let boundary = Boundary { position: Position::new(self.next), lanes };
            self.events.push_back(SourceEvent::Boundary(boundary));
            self.next += 1;
        }
    }

    /// The table leaves the cut where it stands; the others go on (protocol C8).
    fn halt(&mut self, table: &Arc<str>, problem: Problem) {
        warn!(table = &**table, code = problem.code, reason = problem.message, "table cannot be followed");
        // What came before the trouble is whole: it goes out first.
        self.flush();
        self.tables.remove(table);
        self.events.push_back(SourceEvent::TableHalted {
            table: table.to_string(),
            position: Position::new(self.next - 1),
            code: problem.code,
            reason: problem.message,
        });
    }

    fn is_full(&self) -> bool {
        self.tables.values().map(|followed| followed.builder.bytes()).sum::<usize>() >= CHUNK_BYTES
    }
}

impl FollowedTable {
    fn append(&mut self, shard: &Arc<str>, record: Record, boundary: u64) -> Result<(), Problem> {
        let change = self.change(shard, record, boundary).map_err(|why| {
            let message = format!("shard {shard}: {why}");
            Problem::halt_table("ROW_UNREADABLE", self.builder.table(), message, "report this, and resync the table")
        })?;
        let offset = change.offset;
        self.builder.append(change)?;
        self.lineage.advance(shard, offset);
        Ok(())
    }

    fn change(&self, shard: &Arc<str>, record: Record, boundary: u64) -> Result<Change, String> {
        let offset = sequence_of(&record)?;
        let operation = match record.event_name() {
            Some(OperationType::Insert) => Operation::Insert,
            Some(OperationType::Modify) => Operation::Update,
            Some(OperationType::Remove) => Operation::Delete,
            other => return Err(format!("a record is of the kind {other:?}")),
        };
        let actor = record.user_identity().and_then(|identity| identity.principal_id()).map(Arc::from);
        let told = record.dynamodb.ok_or("a record says nothing")?;
        let image = |image: Option<HashMap<String, AttributeValue>>| {
            image.map(Item::try_from).transpose().map_err(|why| why.to_string())
        };
        let (new, old) = (image(told.new_image)?, image(told.old_image)?);
        let (row, old) = match operation {
            Operation::Delete => (old.map_or_else(|| image(told.keys), |old| Ok(Some(old)))?, None),
            _ => (new, old),
        };
        let created = told.approximate_creation_date_time.and_then(|time| time.to_millis().ok()).unwrap_or(0);
        let ordinal = i32::try_from(self.builder.len()).map_err(|_| "too many records at once")?;
        Ok(Change {
            operation,
            origin: Origin {
                commit: Position::new(boundary),
                committed_at: created.saturating_mul(1_000),
                transaction: 0,
                ordinal,
            },
            shard: Arc::clone(shard),
            offset,
            actor,
            row: row.ok_or("a record has no image")?,
            old,
        })
    }

    /// The moment since which every open shard has been seen at its tip (protocol C9). True if it has moved.
    fn note_tips(&mut self) -> bool {
        let mut until: Option<i64> = None;
        for shard in self.lineage.open() {
            let Some(&tip) = self.tips.get(shard) else { return false };
            until = Some(until.map_or(tip, |until| until.min(tip)));
        }
        let Some(until) = until.filter(|until| self.lineage.lanes().read_until.is_none_or(|known| *until > known))
        else {
            return false;
        };
        self.lineage.seen_at_tip(until);
        self.moved = true;
        true
    }
}

impl ChangeSource for DynamodbStream {
    async fn next(&mut self) -> Result<SourceEvent, Problem> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let due = self.pending_since.map(|since| since + self.linger);
            if self.is_full() || due.is_some_and(|due| due <= Instant::now()) {
                self.flush();
                continue;
            }
            let linger = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            // Both arms may be dropped: what has been told stays in the channel until it is taken.
            tokio::select! {
                biased;
                () = linger => self.flush(),
                told = self.told.recv() => {
                    let told = told.expect("the stream holds a sender itself");
                    self.take(told)?;
                }
            }
        }
    }

    /// A stream keeps its records for a day, whoever has read them: there is nothing to tell it.
    fn acknowledge(&self, _: &DurablePosition) {}
}
