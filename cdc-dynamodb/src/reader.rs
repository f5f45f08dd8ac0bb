//! Reads shards: for each that may be read one task, which asks, waits where nothing came, and hands pages on in order.
//!
//! Not here: which shards may be read (`lineage.rs`), and what is in a record (`stream.rs`). Pages go through one bounded
//! channel, so a slow lake holds the readers up and memory stays bounded; an iterator that gets too old meanwhile is made
//! anew behind the last record that was handed on (D21, D22).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodbstreams::types::{Record, Shard, ShardIteratorType, StreamStatus};
use lakehouse_core::aws::pause;
use lakehouse_core::error::Problem;
use lakehouse_core::lanes::LaneOffset;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use crate::bridge::Bridged;
use crate::client::{Clients, Trouble, gap, problem, trouble};
use crate::config::Pace;
use crate::lineage::{ListedShard, Start};
use crate::tips::EmptyPages;

/// Records of one answer, at most.
const RECORDS: i32 = 1_000;
/// Listings after a shard's end that are eager.
const EAGER_LISTINGS: u32 = 8;
/// Milliseconds for which a stream surely keeps a record: an hour less than it says.
pub(crate) const SURELY_KEPT: i64 = 23 * 3_600_000;
/// Listings in a row that must agree, where what one of them lacks would be taken for nothing: at a table's first start, and
/// about the children of a shard that has ended.
pub(crate) const SETTLED: u32 = 3;
/// Shards asked at the same time.
const CALLS_AT_ONCE: usize = 64;
/// After so long without an answer a warning says so (D23).
const ALARM: Duration = Duration::from_secs(300);

/// What readers tell.
#[derive(Debug)]
pub(crate) enum Told {
    Page(Page),
    /// The shards of a table's stream: one whole listing.
    Listing {
        table: Arc<str>,
        shards: Vec<ListedShard>,
        begun: Instant,
        /// The stream is disabled: nothing follows the shards that are listed.
        disabled: bool,
    },
    /// From an export that closes a gap.
    Bridged {
        table: Arc<str>,
        told: Bridged,
    },
    /// A table cannot be followed any further, or nothing can: the problem's reaction says which.
    Failed {
        table: Arc<str>,
        problem: Problem,
    },
}

#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) table: Arc<str>,
    pub(crate) shard: Arc<str>,
    pub(crate) records: Vec<Record>,
    /// Nothing follows: the shard has ended.
    pub(crate) ended: bool,
    /// Milliseconds since 1970 at which the shard was at its tip, if it is known to have been.
    pub(crate) at_tip: Option<i64>,
}

/// What all readers of a pipeline share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) clients: Clients,
    pub(crate) told: mpsc::Sender<Told>,
    pace: Pace,
    calls: Arc<Semaphore>,
    describing: Arc<tokio::sync::Mutex<Instant>>,
}

impl Shared {
    pub(crate) fn new(clients: Clients, pace: Pace, told: mpsc::Sender<Told>) -> Self {
        let describing = Arc::new(tokio::sync::Mutex::new(Instant::now()));
        Self { clients, told, pace, calls: Arc::new(Semaphore::new(CALLS_AT_ONCE)), describing }
    }

    /// The shards of a stream, once several listings in a row name the same ones: where nothing is known yet, one that lacks
    /// a shard between two others would put their changes in the wrong order.
    pub(crate) async fn list_settled(&self, stream: &str) -> Result<Vec<ListedShard>, Trouble> {
        let ids = |shards: &[ListedShard]| shards.iter().map(|shard| shard.id.clone()).collect::<BTreeSet<_>>();
        let mut last = self.list_shards(stream).await?;
        let mut alike = 1;
        while alike < SETTLED {
            sleep(self.pace.eager_listing).await;
            let next = self.list_shards(stream).await?;
            alike = if ids(&next) == ids(&last) { alike + 1 } else { 1 };
            last = next;
        }
        Ok(last)
    }

    /// The shards of a stream, from all pages of one listing.
    pub(crate) async fn list_shards(&self, stream: &str) -> Result<Vec<ListedShard>, Trouble> {
        Ok(self.list_and_status(stream).await?.0)
    }

    /// The same, and whether the stream was disabled when the listing began.
    async fn list_and_status(&self, stream: &str) -> Result<(Vec<ListedShard>, bool), Trouble> {
        let mut disabled = None;
        let mut shards = Vec::new();
        let mut after: Option<String> = None;
        loop {
            {
                let mut next = self.describing.lock().await;
                tokio::time::sleep_until(*next).await;
                *next = Instant::now() + self.pace.describing;
            }
            let call = self.clients.streams.describe_stream().stream_arn(stream);
            let page = call.set_exclusive_start_shard_id(after.take()).send().await.map_err(|error| trouble(&error))?;
            let description = page.stream_description();
            let status = description.and_then(|description| description.stream_status());
            disabled = disabled.or(Some(status == Some(&StreamStatus::Disabled)));
            for shard in description.map(|description| description.shards()).unwrap_or_default() {
                shards.push(listed(shard)?);
            }
            after = description.and_then(|description| description.last_evaluated_shard_id()).map(str::to_owned);
            if after.is_none() {
                return Ok((shards, disabled.unwrap_or(false)));
            }
        }
    }
}

/// For listing alone: what is told goes nowhere.
pub(crate) fn lister(clients: &Clients, pace: Pace) -> Shared {
    Shared::new(clients.clone(), pace, mpsc::channel(1).0)
}

fn listed(shard: &Shard) -> Result<ListedShard, Trouble> {
    let unreadable = |what: &str| Trouble::Other(format!("a listed shard {what}"));
    let range = shard.sequence_number_range();
    let first = range.and_then(|range| range.starting_sequence_number());
    Ok(ListedShard {
        id: shard.shard_id().ok_or_else(|| unreadable("has no name"))?.to_owned(),
        parent: shard.parent_shard_id().filter(|parent| !parent.is_empty()).map(str::to_owned),
        first: first
            .ok_or_else(|| unreadable("has no first sequence number"))?
            .parse()
            .map_err(|error| unreadable(&format!("has a first sequence number that is none: {error}")))?,
        closed: range.is_some_and(|range| range.ending_sequence_number().is_some()),
    })
}

/// Lists the shards of one stream for ever: at a slow pace, and faster for a while when `nudge` says that one has ended.
pub(crate) async fn discover(shared: Shared, table: Arc<str>, stream: String, nudge: Arc<Notify>) {
    // Shards that had ended before the start are soon known to have all their children.
    let mut eager = SETTLED;
    let mut patience = Patience::default();
    loop {
        let begun = Instant::now();
        match shared.list_and_status(&stream).await {
            Ok((shards, disabled)) => {
                patience = Patience::default();
                let told = Told::Listing { table: Arc::clone(&table), shards, begun, disabled };
                if shared.told.send(told).await.is_err() {
                    return;
                }
            }
            Err(Trouble::Passing(why)) => {
                patience.wait("DescribeStream", &stream, &why).await;
                continue;
            }
            Err(trouble) => {
                let problem = problem("dynamodb:DescribeStream", &table, trouble);
                let _ = shared.told.send(Told::Failed { table, problem }).await;
                return;
            }
        }
        let pace = if eager > 0 { shared.pace.eager_listing } else { shared.pace.listing };
        eager = match timeout(pace, nudge.notified()).await {
            Ok(()) => EAGER_LISTINGS,
            Err(_) => eager.saturating_sub(1),
        };
    }
}

/// One shard being read.
pub(crate) struct ShardReader {
    pub(crate) shared: Shared,
    pub(crate) table: Arc<str>,
    pub(crate) stream: String,
    pub(crate) shard: Arc<str>,
    pub(crate) start: Start,
    /// Milliseconds since 1970 up to which everything in the stream has been read, or is in the copy.
    pub(crate) read_until: Option<i64>,
}

impl ShardReader {
    /// Reads to the shard's end, or until nobody listens.
    pub(crate) async fn run(mut self) {
        if let Err(problem) = self.read().await {
            let told = Told::Failed { table: Arc::clone(&self.table), problem };
            let _ = self.shared.told.send(told).await;
        }
    }

    async fn read(&mut self) -> Result<(), Problem> {
        let mut patience = Patience::default();
        let Pace { first_idle, longest_idle, .. } = self.shared.pace;
        let mut idle = first_idle;
        let mut empty = EmptyPages::default();
        let mut iterator: Option<String> = None;
        loop {
            let at = match iterator.take() {
                Some(at) => at,
                None => match self.iterator().await {
                    Ok(at) => at,
                    Err(trouble) => {
                        self.bear("dynamodb:GetShardIterator", trouble, &mut patience).await?;
                        continue;
                    }
                },
            };
            let asked = chrono::Utc::now().timestamp_millis();
            let permit = self.shared.calls.acquire().await;
            let answer = self.shared.clients.streams.get_records().shard_iterator(&at).limit(RECORDS).send().await;
            drop(permit);
            let page = match answer {
                Ok(page) => page,
                Err(error) => {
                    let trouble = trouble(&error);
                    if matches!(trouble, Trouble::Passing(_)) {
                        iterator = Some(at);
                    }
                    self.bear("dynamodb:GetRecords", trouble, &mut patience).await?;
                    continue;
                }
            };
            patience = Patience::default();
            let next = page.next_shard_iterator;
            let records = page.records.unwrap_or_default();
            let (nothing, ended) = (records.is_empty(), next.is_none());
            if let Some(last) = records.last() {
                self.start = Start::After(sequence_of(last).map_err(|why| self.unreadable(&why))?);
            }
            // Where a shard ends nobody knows since when.
            let at_tip = match nothing && !ended {
                true => empty.another(asked),
                false => {
                    empty.clear();
                    None
                }
            };
            if !nothing || ended || at_tip.is_some() {
                let (table, shard) = (Arc::clone(&self.table), Arc::clone(&self.shard));
                let page = Page { table, shard, records, ended, at_tip };
                if self.shared.told.send(Told::Page(page)).await.is_err() {
                    return Ok(());
                }
            }
            if ended {
                return Ok(());
            }
            iterator = next;
            match nothing {
                false => idle = first_idle,
                true => {
                    sleep(idle).await;
                    idle = (idle * 2).min(longest_idle);
                }
            }
        }
    }

    async fn iterator(&self) -> Result<String, Trouble> {
        let (kind, sequence) = match self.start {
            Start::At(sequence) => (ShardIteratorType::AtSequenceNumber, Some(sequence)),
            Start::After(sequence) | Start::AfterIfKept(sequence) => {
                (ShardIteratorType::AfterSequenceNumber, Some(sequence))
            }
            Start::Horizon => (ShardIteratorType::TrimHorizon, None),
        };
        let call = self.shared.clients.streams.get_shard_iterator().stream_arn(&self.stream);
        let call = call.shard_id(&*self.shard).shard_iterator_type(kind);
        let call = call.set_sequence_number(sequence.map(|sequence| sequence.to_string()));
        let answer = call.send().await.map_err(|error| trouble(&error))?;
        answer.shard_iterator.ok_or_else(|| Trouble::Other("no iterator in the answer".to_owned()))
    }

    /// Waits out what passes; what does not is a problem. A shard that is not found is never taken for its end (D16).
    async fn bear(&mut self, action: &'static str, trouble: Trouble, patience: &mut Patience) -> Result<(), Problem> {
        match trouble {
            Trouble::Passing(why) => {
                patience.wait(action, &self.shard, &why).await;
                Ok(())
            }
            Trouble::IteratorExpired => {
                debug!(shard = &*self.shard, "the iterator is too old, another one goes on");
                Ok(())
            }
            // What is trimmed is older than a day. Where all of that day is still to be read, none of it is missed (D26).
            Trouble::Trimmed if matches!(self.start, Start::At(_)) && self.has_read_today() => {
                self.start = Start::Horizon;
                Ok(())
            }
            Trouble::Trimmed if matches!(self.start, Start::AfterIfKept(_)) => {
                self.start = Start::Horizon;
                Ok(())
            }
            Trouble::Trimmed => Err(self.gap("the records that come next are trimmed")),
            Trouble::Missing(_) => Err(self.gap("the shard is gone")),
            other => Err(problem(action, &self.table, other)),
        }
    }

    fn has_read_today(&self) -> bool {
        let now = chrono::Utc::now().timestamp_millis();
        self.read_until.is_some_and(|until| now.saturating_sub(until) < SURELY_KEPT)
    }

    fn gap(&self, why: &str) -> Problem {
        let reached = match &self.start {
            Start::At(first) => format!("nothing of it is read, it begins at {first}"),
            Start::Horizon => "nothing of it is read".to_owned(),
            Start::After(last) | Start::AfterIfKept(last) => format!("it is read up to {last}"),
        };
        gap(&self.table, &format!("shard {}: {why}; {reached}", self.shard), self.read_until)
    }

    fn unreadable(&self, why: &str) -> Problem {
        let message = format!("shard {}: {why}", self.shard);
        Problem::halt_table("ROW_UNREADABLE", &*self.table, message, "report this")
    }
}

/// A record's sequence number.
pub(crate) fn sequence_of(record: &Record) -> Result<LaneOffset, String> {
    let number = record.dynamodb().and_then(|change| change.sequence_number());
    number.ok_or("a record has no sequence number")?.parse().map_err(|error| format!("{error}"))
}

/// Waits between attempts that have no limit, and says so when they take long.
#[derive(Default)]
struct Patience {
    attempts: u32,
    since: Option<Instant>,
    alarmed: bool,
}

impl Patience {
    async fn wait(&mut self, action: &str, subject: &str, why: &str) {
        let since = *self.since.get_or_insert_with(Instant::now);
        if !self.alarmed && since.elapsed() >= ALARM {
            warn!(action, subject, why, "no answer for five minutes, still trying");
            self.alarmed = true;
        }
        debug!(action, subject, why, attempt = self.attempts, "no answer, asking again");
        sleep(pause(self.attempts)).await;
        self.attempts = self.attempts.saturating_add(1);
    }
}
