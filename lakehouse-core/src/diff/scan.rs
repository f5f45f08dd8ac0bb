//! The rows that can differ between two snapshots, by the files and deletes of both: all others cancel out unread.

use roaring::RoaringBitmap;

use arrow_array::RecordBatch;

use super::PAST;
use crate::compare::Side;
use crate::error::Problem;
use crate::read::{FileRows, Projection, Rows, TableReader};
use crate::storage::Storage;

/// What is to be read of each side.
pub(super) struct Scan<'a> {
    storage: &'a Storage,
    past: Vec<(&'a str, Rows)>,
    present: Vec<(&'a str, Rows)>,
}

impl<'a> Scan<'a> {
    /// Of a file in both snapshots, the rows that one of them has deleted and the other has not; of a file in one of them,
    /// its live rows.
    pub(super) fn between(past: &'a TableReader, present: &'a TableReader) -> Result<Self, Problem> {
        let mut scan = Self { storage: &past.storage, past: Vec::new(), present: Vec::new() };
        for path in past.files() {
            match (&past.live.data[path], present.live.data.get(path)) {
                (_, None) => scan.past.push((path, Rows::Except(past.deleted(path)?))),
                (then, Some(now)) if then.has_deletes_of(now) => {}
                _ => {
                    let (then, now) = (past.deleted(path)?, present.deleted(path)?);
                    scan.past.extend(only(path, &now - &then));
                    scan.present.extend(only(path, &then - &now));
                }
            }
        }
        for path in present.files().into_iter().filter(|path| !past.live.data.contains_key(*path)) {
            scan.present.push((path, Rows::Except(present.deleted(path)?)));
        }
        Ok(scan)
    }

    /// Reads one side, batch after batch, in the columns wanted.
    pub(super) fn read<E: From<Problem>>(
        &self,
        side: Side,
        columns: &Projection,
        mut each: impl FnMut(RecordBatch) -> Result<(), E>,
    ) -> Result<(), E> {
        let files = if side == PAST { &self.past } else { &self.present };
        for (path, rows) in files {
            for batch in FileRows::open(self.storage, path, columns, rows.clone())? {
                each(batch?)?;
            }
        }
        Ok(())
    }
}

fn only(path: &str, rows: RoaringBitmap) -> Option<(&str, Rows)> {
    (!rows.is_empty()).then_some((path, Rows::Only(rows)))
}
