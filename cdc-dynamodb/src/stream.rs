//! The streams of a pipeline's tables as one [`ChangeSource`]: pages of records in, chunks and boundaries out.
//!
//! A stream has no transactions; every place between two records is a boundary. So records of all shards are collected for
//! a moment and go out together, followed by a boundary that says how far each shard has been read (D30). Boundaries are
//! numbered from behind the highest that the lake holds.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_dynamodbstreams::types::{AttributeValue, OperationType, Record};
use lakehouse_core::change::{Operation, Origin};
use lakehouse_core::commit::DurablePosition;
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::lanes::{LaneOffset, Lanes, TableLanes};
use lakehouse_core::position::{Boundary, Position};
use lakehouse_core::source::{ChangeSource, SourceEvent};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::bridge::{Bridge, Bridged, not_closed};
use crate::chunk::{Change, ChunkBuilder};
use crate::client::{Clients, gap};
use crate::config::Pace;
use crate::export::ExportedChange;
use crate::lineage::{Lineage, ListedShard};
use crate::reader::{Page, ShardReader, Shared, Told, discover, sequence_of};
use crate::replay::{Replay, ReplayedItem};
use crate::tips::Tips;
use crate::value::Item;

/// Bytes of records after which they go out.
const CHUNK_BYTES: usize = 4 << 20;
/// Pages between the readers and here.
const PAGES_AHEAD: usize = 4;
/// A record's time is rounded down to the second.
const CLOCK_GRAIN: i64 = 1_000;

/// A table whose stream is followed.
pub(crate) struct Followed {
    /// ARN of the stream.
    pub(crate) stream: String,
    pub(crate) lineage: Lineage,
    pub(crate) builder: ChunkBuilder,
    /// Deletions by time to live do not reach the mirror.
    pub(crate) keeps_expired: bool,
    /// What closes gaps, where that is wanted.
    pub(crate) bridge: Option<Bridge>,
    /// Why it cannot be followed before that is done.
    pub(crate) gap: Option<String>,
    /// A gap calls for a resync.
    pub(crate) resync: bool,
    /// What goes out before anything that the stream says.
    pub(crate) replay: Option<Replay>,
}

struct FollowedTable {
    stream: String,
    lineage: Lineage,
    builder: ChunkBuilder,
    /// The lanes as they were when they last went out, and whether they have changed since.
    told: Arc<TableLanes>,
    moved: bool,
    /// Number of the boundary behind the changes that went out last.
    sent: u64,
    tips: Tips,
    nudge: Arc<Notify>,
    readers: JoinSet<()>,
    keeps_expired: bool,
    bridge: Option<Bridge>,
    /// The gap that is being closed; what shards have told before does not count any more.
    gap: Option<String>,
    resync: bool,
}

pub(crate) struct DynamodbStream {
    shared: Shared,
    told: mpsc::Receiver<Told>,
    tables: BTreeMap<Arc<str>, FollowedTable>,
    events: VecDeque<SourceEvent>,
    /// Number of the boundary that comes next.
    next: u64,
    /// Number of the boundary that a cut holds.
    durable: AtomicU64,
    pending_since: Option<Instant>,
    linger: Duration,
    eager_listing: Duration,
    /// The clock of `lineage.rs` and `tips.rs`.
    started: Instant,
    restart: Restart,
}

/// What only a start can do. Once a cut holds a boundary this incarnation ends, and the next one does it.
struct Restart {
    /// The boundary, and what this incarnation ends with.
    at: Option<(u64, Problem)>,
    /// A cut has been written.
    moved: Notify,
}

impl DynamodbStream {
    /// Begins to read. `reached` is the highest position that the lake holds.
    pub(crate) fn start(clients: Clients, pace: Pace, tables: BTreeMap<String, Followed>, reached: Position) -> Self {
        let (sender, told) = mpsc::channel(PAGES_AHEAD);
        let shared = Shared::new(clients, pace, sender);
        let mut replays = Vec::new();
        let tables = tables.into_iter().map(|(name, followed)| {
            let name: Arc<str> = name.into();
            let Followed { stream, lineage, builder, keeps_expired, bridge, gap, resync, replay } = followed;
            replays.extend(replay.map(|replay| (Arc::clone(&name), replay)));
            let (nudge, readers) = (Arc::new(Notify::new()), JoinSet::new());
            let tips = Tips::resume(lineage.lanes(), pace.eager_listing);
            let told = Arc::new(lineage.lanes().clone());
            let (moved, sent) = (false, 0);
            let table = FollowedTable {
                stream,
                lineage,
                builder,
                told,
                moved,
                sent,
                tips,
                nudge,
                readers,
                keeps_expired,
                bridge,
                gap,
                resync,
            };
            (name, table)
        });
        let tables = tables.collect();
        let (next, started) = (reached.offset() + 1, Instant::now());
        let (events, linger, eager_listing) = (VecDeque::new(), pace.linger, pace.eager_listing);
        let durable = AtomicU64::new(reached.offset());
        let restart = Restart { at: None, moved: Notify::new() };
        let pending_since = None;
        let mut stream = Self {
            shared,
            told,
            tables,
            events,
            next,
            durable,
            pending_since,
            linger,
            eager_listing,
            started,
            restart,
        };
        let names: Vec<Arc<str>> = stream.tables.keys().cloned().collect();
        names.iter().for_each(|name| stream.follow(name));
        replays.into_iter().for_each(|(table, replay)| stream.replay(&table, replay));
        stream
    }

    /// In a boundary of its own. Nothing that the readers tell has been taken yet.
    fn replay(&mut self, table: &Arc<str>, Replay { lane, items }: Replay) {
        let Some(followed) = self.tables.get_mut(table) else { return };
        followed.lineage.begin_lane(&lane);
        for (number, item) in (1_u64..).zip(items) {
            if let Err(problem) = followed.append_replayed(&lane, number, item, self.next) {
                return self.halt(table, problem);
            }
        }
        followed.lineage.end(&lane, self.next);
        followed.moved = true;
        self.flush();
    }

    /// Lists and reads a table's shards, or first closes its gap.
    fn follow(&mut self, table: &Arc<str>) {
        let Some(followed) = self.tables.get_mut(table) else { return };
        match (&followed.gap, &followed.bridge) {
            (Some(_), Some(bridge)) => {
                let readers = std::mem::take(&mut followed.readers);
                let lanes = followed.lineage.lanes().clone();
                followed.readers.spawn(bridge.clone().run(self.shared.clone(), readers, lanes));
            }
            _ => {
                let nudge = Arc::clone(&followed.nudge);
                let listing = discover(self.shared.clone(), Arc::clone(table), followed.stream.clone(), nudge);
                followed.readers.spawn(listing);
                self.read_more(table);
            }
        }
    }

    /// What a bridge has told.
    fn bridged(&mut self, table: &Arc<str>, told: Bridged) -> Result<(), Problem> {
        let Some(followed) = self.tables.get_mut(table) else { return Ok(()) };
        match told {
            Bridged::Changes { lane, changes, ended } => {
                followed.lineage.begin_lane(&lane);
                for (offset, change) in changes {
                    if let Err(problem) = followed.append_exported(&lane, offset, change, self.next) {
                        followed.bridge = None;
                        self.halt(table, problem);
                        return Ok(());
                    }
                }
                if ended {
                    followed.lineage.end(&lane, self.next);
                }
                followed.moved = true;
            }
            Bridged::Closed { lanes, listing } => {
                info!(table = &**table, "the gap is closed");
                followed.lineage.bridge(lanes, &listing, self.next);
                (followed.gap, followed.moved) = (None, true);
                followed.tips = Tips::resume(followed.lineage.lanes(), self.eager_listing);
                self.follow(table);
            }
            Bridged::Failed(problem) => {
                let gap = followed.gap.take().unwrap_or_default();
                let problem = not_closed(&gap, problem);
                if problem.reaction == Reaction::Retry {
                    return Err(problem);
                }
                followed.bridge = None;
                self.halt(table, problem);
                return Ok(());
            }
        }
        self.pending_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn is_bridging(&self, table: &Arc<str>) -> bool {
        self.tables.get(table).is_some_and(|followed| followed.gap.is_some())
    }

    fn take(&mut self, told: Told) -> Result<(), Problem> {
        match told {
            Told::Bridged { table, told } => self.bridged(&table, told)?,
            Told::Page(Page { table, .. }) | Told::Listing { table, .. } | Told::Failed { table, .. }
                if self.is_bridging(&table) => {}
            Told::Page(page) => self.page(page),
            Told::Listing { table, shards, begun, disabled } => self.listing(&table, &shards, begun, disabled),
            Told::Failed { table, problem } => match problem.reaction {
                Reaction::HaltTable => self.halt(&table, problem),
                Reaction::Retry | Reaction::Halt => return Err(problem),
            },
        }
        Ok(())
    }

    fn listing(&mut self, table: &Arc<str>, shards: &[ListedShard], begun: Instant, disabled: bool) {
        let begun = begun.saturating_duration_since(self.started);
        let Some(followed) = self.tables.get_mut(table) else { return };
        match followed.lineage.observe(shards, begun, self.durable.load(Ordering::Relaxed)) {
            // A table that halts takes nothing along that is on its way: its last changes are in the lake first.
            Ok(_) if disabled && followed.lineage.is_done(shards) && followed.is_durable(&self.durable) => {
                let message = "the stream was disabled, or its table deleted; all of it has been read";
                let remedy =
                    "enable the stream again and resync the table: what was written in between is in neither stream";
                self.halt(table, Problem::halt_table("STREAM_ENDED", &**table, message, remedy));
            }
            Ok(moved) => {
                followed.moved |= moved;
                followed.tips.listed(shards, begun);
                let moved = followed.note_tips() || moved;
                self.pending_since = self.pending_since.or_else(|| moved.then(Instant::now));
                self.read_more(table);
            }
            Err(lost) => {
                let problem = gap(table, &lost.to_string(), followed.lineage.lanes().read_until);
                self.halt(table, problem);
            }
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
            followed.tips.seen(&shard, tip);
        }
        if ended {
            info!(table = &*table, shard = &*shard, "shard is read to its end");
            followed.tips.end(&shard, self.started.elapsed());
            followed.lineage.end(&shard, self.next);
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
                followed.sent = self.next;
            }
            if std::mem::take(&mut followed.moved) {
                followed.told = Arc::new(followed.lineage.lanes().clone());
                moved = true;
            }
        }
        if moved {
            self.tell_boundary();
        }
    }

    /// Where all tables stand; also where none moves any more, so that the cut says which has been left.
    fn tell_boundary(&mut self) {
        let lanes: Lanes =
            self.tables.iter().map(|(table, followed)| (table.to_string(), Arc::clone(&followed.told))).collect();
        let boundary = Boundary { position: Position::new(self.next), lanes };
        self.events.push_back(SourceEvent::Boundary(boundary));
        self.next += 1;
    }

    /// The table leaves the cut where it stands; the others go on (protocol C8).
    fn halt(&mut self, table: &Arc<str>, problem: Problem) {
        warn!(table = &**table, code = problem.code, reason = problem.message, "table cannot be followed");
        // What came before the trouble is whole: it goes out first.
        self.flush();
        if problem.code == "GAP"
            && let Some(followed) = self.tables.get_mut(table).filter(|followed| followed.bridge.is_some())
        {
            followed.gap = Some(problem.message);
            return self.follow(table);
        }
        let resync = self.tables.remove(table).is_some_and(|followed| followed.resync);
        self.events.push_back(SourceEvent::TableHalted {
            table: table.to_string(),
            position: Position::new(self.next - 1),
            code: problem.code,
            reason: problem.message,
        });
        self.tell_boundary();
        if resync && problem.code == "GAP" {
            // Once a cut says that it has left.
            let left = || Problem::retry("GAP", &**table, "the table has left the cut and is copied anew");
            self.restart.at.get_or_insert_with(|| (self.next - 1, left()));
        }
    }

    /// A replay of a quarantine waits for what was said until now: the next start finds all of that in the lake.
    pub(crate) fn start_again_for_replay(&mut self, table: &str) {
        let due = || Problem::retry("REPLAY_DUE", table, "a replay of the quarantine is due, which a start does");
        self.restart.at.get_or_insert_with(|| (self.next, due()));
    }

    fn is_full(&self) -> bool {
        self.tables.values().map(|followed| followed.builder.bytes()).sum::<usize>() >= CHUNK_BYTES
    }
}

impl Restart {
    fn check(&mut self, durable: &AtomicU64) -> Result<(), Problem> {
        let durable = durable.load(Ordering::Relaxed);
        self.at.take_if(|(boundary, _)| *boundary <= durable).map_or(Ok(()), |(_, problem)| Err(problem))
    }
}

impl FollowedTable {
    fn is_durable(&self, durable: &AtomicU64) -> bool {
        self.builder.len() == 0 && self.sent <= durable.load(Ordering::Relaxed)
    }

    /// Into the chunk that is being collected; its lane has been read up to it.
    fn push(&mut self, lane: &str, change: Change) -> Result<(), Problem> {
        let offset = change.offset;
        self.builder.append(change)?;
        self.lineage.advance(lane, offset);
        Ok(())
    }

    fn append(&mut self, shard: &Arc<str>, record: Record, boundary: u64) -> Result<(), Problem> {
        let change = self.change(shard, record, boundary).map_err(|why| {
            let message = format!("shard {shard}: {why}");
            Problem::halt_table("ROW_UNREADABLE", self.builder.table(), message, "report this, and resync the table")
        })?;
        self.push(shard, change)
    }

    fn append_exported(
        &mut self,
        lane: &Arc<str>,
        offset: LaneOffset,
        change: ExportedChange,
        boundary: u64,
    ) -> Result<(), Problem> {
        let unreadable = |why: &str| {
            let message = format!("change {offset} of {lane}: {why}");
            Problem::halt_table("ROW_UNREADABLE", self.builder.table(), message, "report this, and resync the table")
        };
        let written_at = change.written_at().ok_or_else(|| unreadable("it does not say when it was made"))?;
        let ordinal = i32::try_from(self.builder.len()).map_err(|_| unreadable("too many changes at once"))?;
        let ExportedChange { keys, new_image, old_image, .. } = change;
        let (operation, row, old) = match (new_image, old_image) {
            (Some(new), None) => (Operation::Insert, new, None),
            (Some(new), old) => (Operation::Update, new, old),
            (None, old) => (Operation::Delete, old.unwrap_or(keys), None),
        };
        let commit = Position::new(boundary);
        let origin = Origin { commit, committed_at: written_at, transaction: 0, ordinal };
        let shard = Arc::clone(lane);
        self.push(lane, Change { operation, origin, shard, offset, actor: None, row, old })
    }

    fn append_replayed(
        &mut self,
        lane: &Arc<str>,
        number: u64,
        replayed: ReplayedItem,
        boundary: u64,
    ) -> Result<(), Problem> {
        let ReplayedItem { operation, committed_at, item: row } = replayed;
        let ordinal = i32::try_from(self.builder.len()).expect("a replay is bounded");
        let origin = Origin { commit: Position::new(boundary), committed_at, transaction: 0, ordinal };
        let offset: LaneOffset = number.to_string().parse().expect("a number is an offset");
        let shard = Arc::clone(lane);
        self.push(lane, Change { operation, origin, shard, offset, actor: None, row, old: None })
    }

    fn change(&self, shard: &Arc<str>, record: Record, boundary: u64) -> Result<Change, String> {
        let offset = sequence_of(&record)?;
        let operation = match record.event_name() {
            Some(OperationType::Insert) => Operation::Insert,
            Some(OperationType::Modify) => Operation::Update,
            Some(OperationType::Remove) if self.keeps_expired && is_expiry(&record) => Operation::Expire,
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
            Operation::Delete | Operation::Expire => (old.map_or_else(|| image(told.keys), |old| Ok(Some(old)))?, None),
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

    /// Up to when everything has been read (protocol C9). True if that has moved.
    fn note_tips(&mut self) -> bool {
        // Of a shard that cannot be registered yet nobody knows what it holds.
        let until = self.tips.read_until(self.lineage.open()).filter(|_| !self.lineage.has_orphans());
        let Some(until) = until.filter(|until| self.lineage.lanes().read_until.is_none_or(|known| *until > known))
        else {
            return false;
        };
        self.lineage.seen_at_tip(until);
        self.moved = true;
        true
    }
}

/// The service itself has deleted an item whose time had come. No client can sign as it.
fn is_expiry(record: &Record) -> bool {
    record.user_identity().is_some_and(|identity| {
        identity.r#type() == Some("Service") && identity.principal_id() == Some("dynamodb.amazonaws.com")
    })
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
            // Every arm may be dropped: what has been told stays in the channel until it is taken.
            tokio::select! {
                biased;
                () = linger => self.flush(),
                () = self.restart.moved.notified(), if self.restart.at.is_some() => self.restart.check(&self.durable)?,
                told = self.told.recv() => {
                    let told = told.expect("the stream holds a sender itself");
                    self.take(told)?;
                }
            }
        }
    }

    /// A stream keeps its records for a day, whoever has read them: there is nothing to tell it.
    fn acknowledge(&self, durable: &DurablePosition) {
        self.durable.store(durable.get().offset(), Ordering::Relaxed);
        self.restart.moved.notify_one();
    }
}
