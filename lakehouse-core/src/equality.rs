//! Equality deletes: "every row with these values goes, in files older than this one". Ours are none; other engines write
//! them, and whoever reads then compares every row of the table's older files with them.
//!
//! Here they become positions. Values are compared by their hashes, as keys are everywhere; a bounded number of them is in
//! memory at a time, and each data file is read once for each such piece, in the columns that are compared and no others.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use iceberg::spec::DataFileFormat;
use roaring::RoaringBitmap;

use crate::catalog::LoadedTable;
use crate::error::Problem;
use crate::key_hash::hash_keys;
use crate::key_index::KeyHash;
use crate::live::{EQUALITY_DELETES, LiveDelete, LiveFiles};
use crate::read::{FileRows, Projection, Rows};
use crate::storage::Storage;

/// Values in memory at the same time, each of about 32 bytes.
const PIECE_ROWS: u64 = 2_000_000;

/// One delete file: rows with any of its values go from files of lower sequence numbers.
#[derive(Clone, Debug)]
pub(crate) struct EqualityDelete {
    path: String,
    rows: u64,
    sequence_number: i64,
    columns: Projection,
}

impl EqualityDelete {
    /// # Errors
    /// `EQUALITY_DELETES` where its columns or its format cannot be read here.
    pub(crate) fn of(table: &LoadedTable, path: &str, delete: &LiveDelete) -> Result<Self, Problem> {
        let unusable = |why: &str| {
            let remedy = "compact the table with the engine that wrote it, or roll it back to the snapshot before";
            Problem::halt(EQUALITY_DELETES, table.name.to_string(), format!("{path}: {why}"), remedy)
        };
        if delete.file.file_format() != DataFileFormat::Parquet {
            return Err(unusable("an equality delete file that is not Parquet"));
        }
        let mut ids = delete.file.equality_ids().unwrap_or_default();
        ids.sort_unstable();
        // A column may have been dropped since: values are compared as the newest schema that has it says.
        let current = std::iter::once(table.metadata.current_schema());
        let mut schemas = current.chain(table.metadata.schemas_iter());
        let columns = schemas.find_map(|schema| Projection::of(schema, &ids).ok()).filter(|_| !ids.is_empty());
        let columns = columns.ok_or_else(|| unusable("an equality delete file on columns that the table has not"))?;
        let (path, rows) = (path.to_owned(), delete.file.record_count());
        Ok(Self { path, rows, sequence_number: delete.sequence_number, columns })
    }
}

/// Those that concern the data files of one partition.
#[derive(Debug)]
pub struct EqualityDeletes {
    /// Those that come last in the table stand first.
    all: Vec<EqualityDelete>,
}

impl EqualityDeletes {
    pub(crate) fn new(mut all: Vec<EqualityDelete>) -> Self {
        all.sort_by_key(|delete| std::cmp::Reverse(delete.sequence_number));
        Self { all }
    }

    /// Those that concern a data file of this sequence number: none that came with it or before it.
    fn above(&self, sequence_number: i64) -> &[EqualityDelete] {
        &self.all[..self.all.partition_point(|delete| delete.sequence_number > sequence_number)]
    }

    pub(crate) fn concern(&self, sequence_number: i64) -> bool {
        !self.above(sequence_number).is_empty()
    }

    /// Their paths, as far as they concern a data file of this sequence number.
    pub(crate) fn paths(&self, sequence_number: i64) -> impl Iterator<Item = &str> {
        self.above(sequence_number).iter().map(|delete| delete.path.as_str())
    }

    /// The rows that go from data files, given by path and sequence number.
    pub(crate) fn rows_of<'a>(
        &self,
        storage: &Storage,
        files: &[(&'a str, i64)],
    ) -> Result<BTreeMap<&'a str, RoaringBitmap>, Problem> {
        let mut gone: BTreeMap<&str, RoaringBitmap> = BTreeMap::new();
        let Some(oldest) = files.iter().map(|(_, number)| *number).min() else { return Ok(gone) };
        for piece in pieces(self.above(oldest)) {
            let values = Values::read(storage, piece)?;
            let newest = piece[0].sequence_number;
            for &(path, number) in files.iter().filter(|(_, number)| *number < newest) {
                values.find_in(storage, path, number, gone.entry(path).or_default())?;
            }
        }
        gone.retain(|_, rows| !rows.is_empty());
        Ok(gone)
    }
}

/// In order, each of few enough rows to be kept in memory, or of one file.
fn pieces(deletes: &[EqualityDelete]) -> impl Iterator<Item = &[EqualityDelete]> {
    let mut rest = deletes;
    std::iter::from_fn(move || {
        let mut rows = 0;
        let fit = rest.iter().take_while(|delete| {
            rows += delete.rows;
            rows <= PIECE_ROWS
        });
        let (piece, behind) = rest.split_at(fit.count().max(1).min(rest.len()));
        rest = behind;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The values of some delete files: for each set of columns, by hash, the highest sequence number that deletes them.
struct Values(Vec<(Projection, HashMap<KeyHash, i64>)>);

impl Values {
    fn read(storage: &Storage, deletes: &[EqualityDelete]) -> Result<Self, Problem> {
        let mut all = Self(Vec::new());
        for delete in deletes {
            let mut rows = FileRows::open(storage, &delete.path, &delete.columns, Rows::Except(RoaringBitmap::new()))?;
            if !rows.has_all_columns() {
                let remedy = "run fsck on the table";
                return Err(Problem::halt(
                    "DELETE_FILE_DAMAGED",
                    &delete.path,
                    "columns that it compares lack",
                    remedy,
                ));
            }
            let values = all.of(&delete.columns);
            while let Some(batch) = rows.next_batch() {
                for hash in hash_keys(batch?.0.columns())? {
                    let number = values.entry(hash).or_insert(delete.sequence_number);
                    *number = delete.sequence_number.max(*number);
                }
            }
        }
        Ok(all)
    }

    fn of(&mut self, columns: &Projection) -> &mut HashMap<KeyHash, i64> {
        let place = self.0.iter().position(|(known, _)| known == columns).unwrap_or_else(|| {
            self.0.push((columns.clone(), HashMap::new()));
            self.0.len() - 1
        });
        &mut self.0[place].1
    }

    fn find_in(
        &self,
        storage: &Storage,
        path: &str,
        sequence_number: i64,
        found: &mut RoaringBitmap,
    ) -> Result<(), Problem> {
        for (columns, values) in &self.0 {
            let mut rows = FileRows::open(storage, path, columns, Rows::Except(RoaringBitmap::new()))?;
            while let Some(batch) = rows.next_batch() {
                let (batch, positions) = batch?;
                let goes = |hash: &KeyHash| values.get(hash).is_some_and(|number| *number > sequence_number);
                let hashes = hash_keys(batch.columns())?;
                found.extend(hashes.iter().zip(positions).filter(|(hash, _)| goes(hash)).map(|(_, row)| row));
            }
        }
        Ok(())
    }
}

/// Deletes, and the data files that they concern, by path and sequence number.
type Concerned<'a> = (&'a EqualityDeletes, Vec<(&'a str, i64)>);

/// The rows that equality deletes take from the live files, by path; those that are deleted by position too among them.
pub(crate) fn rows_taken(storage: &Storage, live: &LiveFiles) -> Result<BTreeMap<String, RoaringBitmap>, Problem> {
    // Files of one partition share their deletes.
    let mut groups: HashMap<*const EqualityDeletes, Concerned<'_>> = HashMap::new();
    for (path, file) in &live.data {
        let Some(deletes) = &file.equality else { continue };
        let (_, files) = groups.entry(Arc::as_ptr(deletes)).or_insert((deletes, Vec::new()));
        files.push((path, file.sequence_number));
    }
    let mut taken = BTreeMap::new();
    for (deletes, files) in groups.values() {
        let gone = deletes.rows_of(storage, files)?;
        taken.extend(gone.into_iter().map(|(path, rows)| (path.to_owned(), rows)));
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::Projection;

    fn delete(rows: u64, sequence_number: i64) -> EqualityDelete {
        let columns = Projection::all(&iceberg::spec::Schema::builder().build().unwrap()).unwrap();
        EqualityDelete { path: format!("{sequence_number}"), rows, sequence_number, columns }
    }

    #[test]
    fn a_delete_concerns_older_files_only() {
        let deletes = EqualityDeletes::new(vec![delete(1, 3), delete(1, 7), delete(1, 5)]);
        let concerned = |number| deletes.paths(number).collect::<Vec<_>>();
        assert_eq!(concerned(2), ["7", "5", "3"]);
        assert_eq!(concerned(3), ["7", "5"]);
        assert!(deletes.concern(6) && !deletes.concern(7));
    }

    #[test]
    fn pieces_are_bounded_and_a_file_that_is_larger_is_one_of_its_own() {
        let rows = |deletes: &[EqualityDelete]| deletes.iter().map(|delete| delete.rows).collect::<Vec<_>>();
        let all = [delete(PIECE_ROWS - 1, 9), delete(1, 8), delete(1, 7), delete(PIECE_ROWS * 2, 6), delete(5, 5)];
        let pieces: Vec<_> = pieces(&all).map(rows).collect();
        assert_eq!(pieces, [vec![PIECE_ROWS - 1, 1], vec![1], vec![PIECE_ROWS * 2], vec![5]]);
    }
}
