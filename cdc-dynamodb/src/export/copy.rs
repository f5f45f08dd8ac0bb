//! The copy by a full export, for tables that a scan would read too long or too dearly.
//!
//! An export is of a moment. The stream is followed from lanes that were noted before it (D4), so the moment is chosen
//! behind them, further than two clocks may differ.

use std::collections::VecDeque;
use std::sync::Arc;

use lakehouse_core::copy::{ChunkTarget, CopyObserver, TableCopy, WrittenChunk};
use lakehouse_core::error::Problem;
use lakehouse_core::storage::Storage;
use tracing::info;

use super::data::read_items;
use super::manifest::{Export, ExportFile, Kind};
use super::request::Requester;
use super::{broken, place, storage};
use crate::copy_rows::{Copied, CopyRows};

/// Items of a chunk, about: a chunk is one commit.
const CHUNK_ITEMS: u64 = 1_000_000;
/// Files of a chunk, at most: most of a table that has shrunk are empty.
const CHUNK_FILES: usize = 256;

/// Copies one table as it stood behind `lanes_noted`, in milliseconds since 1970.
pub(crate) async fn copy_exported(
    copied: Copied<'_>,
    copy: &mut TableCopy,
    lanes_noted: i64,
    observer: &Arc<dyn CopyObserver>,
) -> Result<(), Problem> {
    let Copied { source, clients, table, .. } = copied;
    let requester = Requester { clients, table, place: place(source, &table.name)? };
    let summary = requester.full(lanes_noted).await?;
    let storage = storage(source).await;
    let export = tokio::task::block_in_place(|| Export::open(&storage, &summary, Kind::Full))?;
    if export.table_arn != table.arn {
        let message = format!("the export is of {}, not of {}", export.table_arn, table.arn);
        return Err(broken("EXPORT_MANIFEST", &summary, message));
    }
    info!(table = table.name, items = export.items, files = export.files.len(), "copy of an export begins");
    observer.begin(&table.name, table.bytes_estimated);
    let target = copy.target();
    let chunk = |files: Vec<ExportFile>| {
        let rows = CopyRows::new(copied, target.clone(), Arc::clone(observer));
        let (storage, target, table) = (storage.clone(), target.clone(), table.name.clone());
        async move {
            let written = tokio::task::spawn_blocking(move || write(&storage, &target, rows, &files)).await;
            written.unwrap_or_else(|_| Err(Problem::retry("INTERRUPTED", table, "writing panicked")))
        }
    };
    copy.commit_chunks(source.copy_workers, chunks(export.files).into_iter().map(chunk)).await?;
    observer.done(&table.name);
    info!(table = table.name, rows = copy.rows(), "copy is done");
    Ok(())
}

/// A chunk is written whole or not at all: no file of it is committed before all of them are checked.
fn write(
    storage: &Storage,
    target: &ChunkTarget,
    mut rows: CopyRows,
    files: &[ExportFile],
) -> Result<WrittenChunk, Problem> {
    let mut writer = target.writer()?;
    for file in files {
        read_items(storage, file, |item| rows.append(&mut writer, &item))?;
    }
    rows.hand_on(&mut writer)?;
    writer.finish()
}

fn chunks(files: Vec<ExportFile>) -> VecDeque<Vec<ExportFile>> {
    let mut chunks: VecDeque<Vec<ExportFile>> = VecDeque::new();
    let mut room = 0;
    for file in files {
        match chunks.back_mut() {
            Some(chunk) if room >= file.items && chunk.len() < CHUNK_FILES => {
                room -= file.items;
                chunk.push(file);
            }
            _ => {
                room = CHUNK_ITEMS.saturating_sub(file.items);
                chunks.push_back(vec![file]);
            }
        }
    }
    chunks
}
