//! The copy: a scan in parallel segments, every page with consistent reads (D5).
//!
//! It is no view of one moment. What it may have missed or seen too early comes again from the stream, which is followed
//! from a place noted before the first page (D4); applying that once more changes nothing. So does a copy that goes on where
//! an earlier incarnation left it (D6): each chunk's commit says where every segment goes on behind it (`progress.rs`).

mod progress;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_dynamodb::types::{AttributeValue, ReturnConsumedCapacity};
use lakehouse_core::aws::pause;
use lakehouse_core::copy::{ChunkTarget, CopyObserver, TableCopy, WrittenChunk};
use lakehouse_core::error::Problem;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use crate::budget::Budget;
use crate::client::{Clients, Trouble, problem, trouble};
use crate::copy_rows::{Copied, CopyRows};
use crate::value::Item;

pub(crate) use progress::Progress;

/// Bytes of a segment, about, and of a chunk of the copy, at most.
const SEGMENT_BYTES: usize = 256 << 20;
/// The service's bound.
const MOST_SEGMENTS: u64 = 1_000_000;
/// Pages between the network and the writer of a segment.
const PAGES_AHEAD: usize = 2;
/// Attempts of one page are not bounded in number; after this many pauses this incarnation gives up.
const ATTEMPTS: u32 = 60;

/// Copies one table, from its beginning or from where an earlier incarnation has come.
pub(crate) async fn copy_table(
    copied: Copied<'_>,
    copy: &mut TableCopy,
    resumed: Option<Progress>,
    observer: &Arc<dyn CopyObserver>,
) -> Result<(), Problem> {
    let Copied { source, clients, table, items, .. } = copied;
    info!(table = table.name, items = table.items_estimated, resumed = resumed.is_some(), "copy begins");
    observer.begin(&table.name, table.bytes_estimated);
    let workers = source.copy_workers.max(1);
    let mut progress = resumed.unwrap_or_else(|| {
        let wanted = (table.bytes_estimated / SEGMENT_BYTES as u64).clamp(workers as u64, MOST_SEGMENTS);
        Progress::begin(items, i32::try_from(wanted).unwrap_or(i32::MAX))
    });
    let target = copy.target();
    // Tables are copied one after the other: a budget each is a budget for all.
    let budget = Arc::new(Budget::new(source.settings.copy_read_units));
    let stretch = |part: Part| Stretch {
        clients: clients.clone(),
        table: table.name.clone(),
        rows: CopyRows::new(copied, target.clone(), Arc::clone(observer)),
        target: target.clone(),
        part,
        until: Instant::now() + source.pace.copy_chunk,
        budget: Arc::clone(&budget),
    };
    let mut waiting: VecDeque<Part> = progress.open().collect();
    let mut running = JoinSet::new();
    loop {
        while running.len() < workers
            && let Some(part) = waiting.pop_front().or_else(|| progress.begin_segment())
        {
            running.spawn(stretch(part).copy());
        }
        let Some(scanned) = running.join_next().await else { break };
        let interrupted = |_| Err(Problem::retry("INTERRUPTED", &table.name, "the copy was interrupted"));
        let (number, chunk, after) = scanned.unwrap_or_else(interrupted)?;
        progress.reached(number, after.clone());
        // The segment is read on while its chunk is committed.
        if let Some(part) = after.map(|after| progress.part(number, Some(after))) {
            running.spawn(stretch(part).copy());
        }
        copy.commit_resumable(chunk, progress.text()).await?;
    }
    observer.done(&table.name);
    info!(table = table.name, rows = copy.rows(), "copy is done");
    Ok(())
}

pub(crate) type RawItem = HashMap<String, AttributeValue>;

/// One segment of a scan, from some place on.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) number: i32,
    pub(crate) total: i32,
    /// The last key that was read.
    pub(crate) after: Option<RawItem>,
}

impl Part {
    /// A scan in one piece.
    pub(crate) fn whole() -> Self {
        Self { number: 0, total: 1, after: None }
    }
}

/// Pages of a segment that make a chunk.
struct Stretch {
    clients: Clients,
    table: String,
    rows: CopyRows,
    target: ChunkTarget,
    part: Part,
    /// When what has been read by then is a chunk, however small: what a crash costs stays bounded in time.
    until: Instant,
    budget: Arc<Budget>,
}

impl Stretch {
    /// The segment's number, the chunk, and the last key in it where the segment goes on.
    async fn copy(self) -> Result<(i32, WrittenChunk, Option<RawItem>), Problem> {
        let (sender, receiver) = mpsc::channel(PAGES_AHEAD);
        let (clients, table, part) = (self.clients.clone(), self.table.clone(), self.part.clone());
        let (budget, until, number) = (Arc::clone(&self.budget), self.until, self.part.number);
        let taken = Arc::new(AtomicUsize::new(0));
        let enough = || Instant::now() >= until || taken.load(Ordering::Relaxed) >= SEGMENT_BYTES;
        // Mapping and compressing are work for a thread of their own.
        let counted = Arc::clone(&taken);
        let writing = tokio::task::spawn_blocking(move || self.write(receiver, &counted));
        let scanned = scan(&clients, &table, part, &budget, sender, enough).await;
        let written = writing.await.unwrap_or_else(|_| Err(Problem::retry("INTERRUPTED", &table, "writing panicked")));
        // Where nobody takes pages any more, the writer says why.
        written.and_then(|chunk| scanned.map(|after| (number, chunk, after)))
    }

    fn write(self, mut pages: mpsc::Receiver<Vec<RawItem>>, taken: &AtomicUsize) -> Result<WrittenChunk, Problem> {
        let Self { target, mut rows, table, .. } = self;
        let mut writer = target.writer()?;
        while let Some(page) = pages.blocking_recv() {
            for item in page {
                let item = Item::try_from(item).map_err(|why| {
                    let remedy = "correct the table's columns in the configuration, or leave it out; report this";
                    Problem::halt_table("ROW_UNREADABLE", &table, format!("a scanned item: {why}"), remedy)
                })?;
                taken.fetch_add(item.bytes(), Ordering::Relaxed);
                rows.append(&mut writer, &item)?;
            }
        }
        rows.hand_on(&mut writer)?;
        writer.finish()
    }
}

/// Reads a segment page by page, to its end or until there is `enough`; the last key where it goes on.
pub(crate) async fn scan(
    clients: &Clients,
    table: &str,
    part: Part,
    budget: &Budget,
    pages: mpsc::Sender<Vec<RawItem>>,
    enough: impl Fn() -> bool,
) -> Result<Option<RawItem>, Problem> {
    let Part { number, total, mut after } = part;
    let mut attempt = 0;
    loop {
        let call = clients.tables.scan().table_name(table).consistent_read(true);
        let call = call.segment(number).total_segments(total).set_exclusive_start_key(after.clone());
        let turn = budget.turn().await;
        let call = call.set_limit(turn.limit).return_consumed_capacity(ReturnConsumedCapacity::Total);
        match call.send().await {
            Ok(page) => {
                attempt = 0;
                after = page.last_evaluated_key.filter(|key| !key.is_empty());
                let items = page.items.unwrap_or_default();
                let units = page.consumed_capacity.and_then(|consumed| consumed.capacity_units);
                budget.spent(turn, units, items.len());
                if pages.send(items).await.is_err() || after.is_none() || enough() {
                    return Ok(after);
                }
            }
            Err(error) => match trouble(&error) {
                Trouble::Passing(why) if attempt < ATTEMPTS => {
                    budget.throttled(turn);
                    debug!(table, why, attempt, "no page, asking again");
                    sleep(pause(attempt).max(Duration::from_millis(50))).await;
                    attempt += 1;
                }
                other => return Err(problem("dynamodb:Scan", table, other)),
            },
        }
    }
}
