//! Items of a copy on their way into the files of a chunk, whatever they were read from.

use std::sync::Arc;

use lakehouse_core::change::Quarantined;
use lakehouse_core::copy::{ChunkTarget, ChunkWriter, CopyObserver};
use lakehouse_core::error::Problem;

use crate::client::Clients;
use crate::config::DynamodbSource;
use crate::items::{ItemBuilder, ItemSchema};
use crate::mismatches::Mismatches;
use crate::table::SourceTable;
use crate::value::Item;

/// Items collected before they are written, and their bytes.
const ROWS_AT_ONCE: usize = 65_536;
const BYTES_AT_ONCE: usize = 16 << 20;

/// What a table is copied with, by either road.
#[derive(Clone, Copy)]
pub(crate) struct Copied<'a> {
    pub(crate) source: &'a DynamodbSource,
    pub(crate) clients: &'a Clients,
    pub(crate) table: &'a SourceTable,
    pub(crate) items: &'a ItemSchema,
    pub(crate) mismatches: &'a Mismatches,
}

pub(crate) struct CopyRows {
    target: ChunkTarget,
    items: ItemSchema,
    rows: ItemBuilder,
    quarantined: Vec<Quarantined>,
    quarantined_bytes: usize,
    observer: Arc<dyn CopyObserver>,
    batch_bytes: usize,
    mismatches: Mismatches,
}

impl CopyRows {
    pub(crate) fn new(copied: Copied<'_>, target: ChunkTarget, observer: Arc<dyn CopyObserver>) -> Self {
        let Copied { source, items, mismatches, .. } = copied;
        let batch_bytes = (source.memory / 8 / source.copy_workers.max(1)).clamp(1 << 20, BYTES_AT_ONCE);
        Self {
            target,
            items: items.clone(),
            rows: items.builder(),
            quarantined: Vec::new(),
            quarantined_bytes: 0,
            observer,
            batch_bytes,
            mismatches: mismatches.clone(),
        }
    }

    /// Takes an item. Blocks where so many have come that they are written.
    pub(crate) fn append(&mut self, writer: &mut ChunkWriter, item: &Item) -> Result<(), Problem> {
        if let Err(why) = self.rows.append(item, None) {
            let quarantined = self.items.quarantined(&why, None, item, None);
            let quarantined = quarantined.ok_or_else(|| why.problem(&self.target.schema().source))?;
            self.quarantined_bytes += quarantined.bytes();
            self.quarantined.push(quarantined);
        }
        let rows = self.rows.len() + self.quarantined.len();
        match rows >= ROWS_AT_ONCE || self.rows.bytes() + self.quarantined_bytes >= self.batch_bytes {
            true => self.hand_on(writer),
            false => Ok(()),
        }
    }

    /// Writes what is left.
    pub(crate) fn hand_on(&mut self, writer: &mut ChunkWriter) -> Result<(), Problem> {
        if !self.quarantined.is_empty() {
            let (count, bytes) = (self.quarantined.len() as u64, std::mem::take(&mut self.quarantined_bytes) as u64);
            writer.quarantine(chrono::Utc::now().timestamp_micros(), &std::mem::take(&mut self.quarantined))?;
            self.observer.advance(&self.target.schema().source, count, bytes);
        }
        let (count, bytes) = (self.rows.len() as u64, self.rows.bytes() as u64);
        if count > 0 {
            writer.write(self.target.schema(), &self.rows.finish().columns)?;
            self.mismatches.add(&self.target.schema().source, self.rows.take_mismatches());
            self.observer.advance(&self.target.schema().source, count, bytes);
        }
        Ok(())
    }
}
