//! The copy: a scan in parallel segments, every page with consistent reads (D5).
//!
//! It is no view of one moment. What it may have missed or seen too early comes again from the stream, which is followed
//! from a place noted before the first page (D4); applying that once more changes nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use lakehouse_core::aws::pause;
use lakehouse_core::copy::{ChunkTarget, CopyObserver, TableCopy, WrittenChunk};
use lakehouse_core::error::Problem;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, info};

use crate::client::{Clients, Trouble, problem, trouble};
use crate::config::DynamodbSource;
use crate::items::{ItemBuilder, ItemSchema};
use crate::table::SourceTable;
use crate::value::Item;

/// Bytes of a segment, about: a chunk of the copy.
const SEGMENT_BYTES: u64 = 256 << 20;
/// The service's bound.
const MOST_SEGMENTS: u64 = 1_000_000;
/// Items collected before they are written, and their bytes.
const ROWS_AT_ONCE: usize = 65_536;
const BYTES_AT_ONCE: usize = 16 << 20;
/// Pages between the network and the writer of a segment.
const PAGES_AHEAD: usize = 2;
/// Attempts of one page are not bounded in number; after this many pauses the copy gives up and begins anew.
const ATTEMPTS: u32 = 60;

/// Copies one table.
pub(crate) async fn copy_table(
    source: &DynamodbSource,
    clients: &Clients,
    table: &SourceTable,
    items: &ItemSchema,
    copy: &mut TableCopy,
    observer: &Arc<dyn CopyObserver>,
) -> Result<(), Problem> {
    info!(table = table.name, items = table.items_estimated, "copy begins");
    observer.begin(&table.name, table.bytes_estimated);
    let workers = source.copy_workers.max(1);
    let wanted = (table.bytes_estimated / SEGMENT_BYTES).clamp(workers as u64, MOST_SEGMENTS);
    let total = i32::try_from(wanted).unwrap_or(i32::MAX);
    let target = copy.target();
    let mut segments = 0..total;
    let mut running: JoinSet<Result<WrittenChunk, Problem>> = JoinSet::new();
    loop {
        while running.len() < workers
            && let Some(number) = segments.next()
        {
            let segment = Segment {
                clients: clients.clone(),
                table: table.name.clone(),
                items: items.clone(),
                target: target.clone(),
                observer: Arc::clone(observer),
                number,
                total,
                batch_bytes: (source.memory / 8 / workers).clamp(1 << 20, BYTES_AT_ONCE),
            };
            running.spawn(segment.copy());
        }
        match running.join_next().await {
            None => break,
            Some(written) => {
                let interrupted = |_| Err(Problem::retry("INTERRUPTED", &table.name, "the copy was interrupted"));
                copy.commit_chunk(written.unwrap_or_else(interrupted)?).await?;
            }
        }
    }
    observer.done(&table.name);
    info!(table = table.name, rows = copy.rows(), "copy is done");
    Ok(())
}

pub(crate) type RawItem = HashMap<String, AttributeValue>;

/// One part of a scan.
struct Segment {
    clients: Clients,
    table: String,
    items: ItemSchema,
    target: ChunkTarget,
    observer: Arc<dyn CopyObserver>,
    number: i32,
    total: i32,
    batch_bytes: usize,
}

impl Segment {
    async fn copy(self) -> Result<WrittenChunk, Problem> {
        let (sender, receiver) = mpsc::channel(PAGES_AHEAD);
        let (clients, table, number, total) = (self.clients.clone(), self.table.clone(), self.number, self.total);
        // Mapping and compressing are work for a thread of their own.
        let writing = tokio::task::spawn_blocking(move || self.write(receiver));
        let scanned = scan(&clients, &table, (number, total), sender).await;
        let written = writing.await.unwrap_or_else(|_| Err(Problem::retry("INTERRUPTED", &table, "writing panicked")));
        // Where nobody takes pages any more, the writer says why.
        written.and_then(|chunk| scanned.map(|()| chunk))
    }

    fn write(self, mut pages: mpsc::Receiver<Vec<RawItem>>) -> Result<WrittenChunk, Problem> {
        let mut writer = self.target.writer()?;
        let mut rows = self.items.builder();
        let mut hand_on = |rows: &mut ItemBuilder| -> Result<(), Problem> {
            let (count, bytes) = (rows.len() as u64, rows.bytes() as u64);
            if count > 0 {
                writer.write(self.target.schema(), &rows.finish().columns)?;
                self.observer.advance(&self.table, count, bytes);
            }
            Ok(())
        };
        while let Some(page) = pages.blocking_recv() {
            for item in page {
                let unreadable = |why: &dyn std::fmt::Display| {
                    let remedy = "correct the table's columns in the configuration, or leave it out; report this";
                    Problem::halt_table("ROW_UNREADABLE", &self.table, format!("a scanned item: {why}"), remedy)
                };
                let item = Item::try_from(item).map_err(|why| unreadable(&why))?;
                rows.append(&item, None).map_err(|why| why.problem(&self.table))?;
            }
            if rows.len() >= ROWS_AT_ONCE || rows.bytes() >= self.batch_bytes {
                hand_on(&mut rows)?;
            }
        }
        hand_on(&mut rows)?;
        writer.finish()
    }
}

/// Reads one segment page by page.
pub(crate) async fn scan(
    clients: &Clients,
    table: &str,
    (number, total): (i32, i32),
    pages: mpsc::Sender<Vec<RawItem>>,
) -> Result<(), Problem> {
    let mut after: Option<RawItem> = None;
    let mut attempt = 0;
    loop {
        let call = clients.tables.scan().table_name(table).consistent_read(true);
        let call = call.segment(number).total_segments(total).set_exclusive_start_key(after.clone());
        match call.send().await {
            Ok(page) => {
                attempt = 0;
                after = page.last_evaluated_key.filter(|key| !key.is_empty());
                let items = page.items.unwrap_or_default();
                if pages.send(items).await.is_err() || after.is_none() {
                    return Ok(());
                }
            }
            Err(error) => match trouble(&error) {
                Trouble::Passing(why) if attempt < ATTEMPTS => {
                    debug!(table, why, attempt, "no page, asking again");
                    sleep(pause(attempt).max(Duration::from_millis(50))).await;
                    attempt += 1;
                }
                other => return Err(problem("dynamodb:Scan", table, other)),
            },
        }
    }
}
