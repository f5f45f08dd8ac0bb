//! Collects changes up to a boundary and merges them by key. Pure: no I/O, no clock.
//!
//! A batch holds whole source transactions, covers everything up to its boundary, and never changes once closed
//! (protocol A1). One transaction larger than memory comes in several parts; only the last one closes it.

use std::collections::BTreeMap;
use std::ops::Range;

use arrow_array::{Array, ArrayRef};

use crate::change::{ChangeChunk, Operation};
use crate::error::Problem;
use crate::key_hash::{hash_keys, hash_rows};
use crate::key_index::KeyHash;
use crate::planted::{Bug, Planted};
use crate::position::{Boundary, Position};
use crate::schema::Key;

/// What writing a change takes beside the change itself: its key's hash, its steps, where its row stands, its entry in the
/// key index. For narrow rows that is more than the rows.
const WORK_BYTES: usize = 128;

/// A table that leaves the cut with this batch (protocol C8).
#[derive(Clone, Debug)]
pub struct HaltedTable {
    pub table: String,
    pub position: Position,
    pub code: &'static str,
    pub reason: String,
}

/// Changes of many tables, in source order per table.
#[derive(Debug, Default)]
pub struct Batch {
    /// By the table's name at the source.
    pub tables: BTreeMap<String, Vec<ChangeChunk>>,
    pub halted: Vec<HaltedTable>,
    rows: usize,
    bytes: usize,
    /// The last boundary; everything up to it is here.
    to: Option<Boundary>,
    /// Changes behind the last boundary are here too.
    open: bool,
}

impl Batch {
    pub fn absorb(&mut self, chunk: ChangeChunk) {
        self.rows += chunk.len();
        self.bytes += chunk.bytes() + chunk.len() * WORK_BYTES;
        self.open = true;
        self.tables.entry(chunk.schema.source.clone()).or_default().push(chunk);
    }

    pub fn close_at(&mut self, boundary: impl Into<Boundary>) {
        let boundary = boundary.into();
        if self.to.as_ref().is_none_or(|to| to.position <= boundary.position) {
            self.to = Some(boundary);
        }
        self.open = false;
    }

    /// The boundary at which the batch may be committed now; `None` in the middle of a transaction.
    pub fn boundary(&self) -> Option<&Boundary> {
        self.to.as_ref().filter(|_| !self.open)
    }

    pub fn has_changes(&self) -> bool {
        self.rows > 0 || !self.halted.is_empty()
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Memory held, and needed to write what is held, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the changes out and leaves the boundary: the next part of the same batch begins.
    pub fn take_part(&mut self) -> Batch {
        let rest = Batch { to: self.to.clone(), open: self.open, ..Batch::default() };
        std::mem::replace(self, rest)
    }
}

/// What a run of changes comes to, per key.
#[derive(Debug, Default)]
pub struct Merged {
    /// All rows that stood before are gone.
    pub truncated: bool,
    /// Distinct keys, ascending.
    pub keys: Vec<KeyHash>,
    /// For each key, the number of the change that holds its last row; `None`: the key is gone.
    pub last: Vec<Option<u32>>,
}

/// Key hashes of a run of changes, numbered through over all chunks.
#[derive(Debug)]
pub struct KeyedChanges {
    /// One step per row image: sorted by key, then by order of the changes.
    pub steps: Vec<Step>,
    pub truncated: bool,
}

/// One row image that comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    pub key: KeyHash,
    /// Twice the number of the change, plus one where a row comes: a row goes before another comes in its place.
    order: u32,
}

impl Step {
    fn new(key: KeyHash, change: u32, comes: bool) -> Self {
        Self { key, order: change << 1 | u32::from(comes) }
    }

    pub fn change(self) -> u32 {
        self.order >> 1
    }

    pub fn comes(self) -> bool {
        self.order & 1 == 1
    }
}

/// The most changes that are merged at once: their numbers take 31 bits.
pub const MOST_CHANGES: usize = 1 << 30;

impl KeyedChanges {
    /// Hashes the keys of all changes behind the last truncate.
    pub fn of(chunks: &[ChangeChunk], planted: Planted) -> Result<Self, Problem> {
        assert!(chunks.iter().map(ChangeChunk::len).sum::<usize>() < MOST_CHANGES, "a part is bounded by its memory");
        let first = last_truncate(chunks).map_or(0, |number| number + 1);
        let mut steps = Vec::with_capacity(chunks.iter().map(ChangeChunk::len).sum());
        for (chunk, numbers) in numbered(chunks) {
            if numbers.end > first {
                add_steps(chunk, numbers.start, first, planted, &mut steps)?;
            }
        }
        steps.sort_unstable();
        Ok(Self { steps, truncated: first > 0 })
    }

    /// The last image of each key.
    pub fn merge(&self) -> Merged {
        let mut merged = Merged { truncated: self.truncated, ..Merged::default() };
        for group in self.steps.chunk_by(|a, b| a.key == b.key) {
            let last = group[group.len() - 1];
            merged.keys.push(last.key);
            merged.last.push(last.comes().then(|| last.change()));
        }
        merged
    }
}

/// The chunks with the numbers of their changes.
pub fn numbered(chunks: &[ChangeChunk]) -> impl Iterator<Item = (&ChangeChunk, Range<u32>)> {
    let mut next = 0;
    chunks.iter().map(move |chunk| {
        let start = next;
        next += u32::try_from(chunk.len()).expect("a part is bounded by its memory");
        (chunk, start..next)
    })
}

fn last_truncate(chunks: &[ChangeChunk]) -> Option<u32> {
    let place = |chunk: &ChangeChunk| chunk.operations.iter().rposition(|&op| op == Operation::Truncate);
    let found =
        numbered(chunks).filter_map(|(chunk, numbers)| Some(numbers.start + u32::try_from(place(chunk)?).ok()?));
    found.max()
}

fn add_steps(
    chunk: &ChangeChunk,
    start: u32,
    first: u32,
    planted: Planted,
    steps: &mut Vec<Step>,
) -> Result<(), Problem> {
    let key = chunk.schema.key_columns();
    let keys = new_keys(chunk, &key)?;
    let old_keys = old_keys(chunk, &key)?;
    for (row, (&operation, &new)) in chunk.operations.iter().zip(&keys).enumerate() {
        let number = start + u32::try_from(row).expect("a part is bounded by its memory");
        if number < first || matches!(operation, Operation::Truncate | Operation::Expire) {
            continue;
        }
        if matches!(operation, Operation::Delete | Operation::Quarantine) {
            steps.push(Step::new(new, number, false));
            continue;
        }
        let old = old_keys.as_ref().filter(|(known, _)| known[row]).map(|(_, keys)| keys[row]);
        if let Some(old) = old.filter(|&old| old != new)
            && !planted.is(Bug::KeepOldRow)
        {
            steps.push(Step::new(old, number, false));
        }
        if old == Some(new) && chunk.schema.key == Key::WholeRow {
            continue; // a row that did not change at all
        }
        steps.push(Step::new(new, number, true));
    }
    Ok(())
}

/// The hashes of the rows themselves.
pub fn new_keys(chunk: &ChangeChunk, key: &[usize]) -> Result<Vec<KeyHash>, Problem> {
    let columns: Vec<ArrayRef> = key.iter().map(|&column| chunk.rows[column].clone()).collect();
    hashes(chunk, key, &columns)
}

fn hashes(chunk: &ChangeChunk, key: &[usize], columns: &[ArrayRef]) -> Result<Vec<KeyHash>, Problem> {
    match chunk.schema.key {
        Key::WholeRow => {
            let names: Vec<&str> = key.iter().map(|&column| chunk.schema.columns[column].name.as_str()).collect();
            hash_rows(&names, columns)
        }
        Key::Columns(_) | Key::None => hash_keys(columns),
    }
}

type OldKeys = (Vec<bool>, Vec<KeyHash>);

/// The keys that updated rows had before, where the source sent them.
pub fn old_keys(chunk: &ChangeChunk, key: &[usize]) -> Result<Option<OldKeys>, Problem> {
    let Some(before) = &chunk.before else { return Ok(None) };
    let place = |column: &usize| chunk.schema.before_columns.iter().position(|sent| sent == column);
    let places: Option<Vec<usize>> = key.iter().map(place).collect();
    let Some(places) = places else { return Ok(None) };
    let columns: Vec<_> = places.iter().map(|&place| before.columns[place].clone()).collect();
    let known = (0..before.known.len()).map(|row| before.known.is_valid(row) && before.known.value(row)).collect();
    Ok(Some((known, hashes(chunk, key, &columns)?)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{BooleanArray, Int64Array};
    use arrow_schema::DataType;

    use super::*;
    use crate::change::{BeforeImages, Origin};
    use crate::commit::properties::TableState;
    use crate::schema::{Column, TableName, TableSchema};

    /// `+1` insert, `=1` update, `=1>2` update that changes the key, `-1` delete, `!` truncate.
    fn chunk(script: &str) -> ChangeChunk {
        let column = Column {
            name: "id".into(),
            source_name: "id".into(),
            source_type: "bigint".into(),
            data_type: DataType::Int64,
            required: true,
        };
        let schema = TableSchema {
            many_lanes: false,
            quarantine: None,
            source: "public.t".into(),
            mirror: TableName::new("ns", "t"),
            columns: vec![column],
            key: Key::Columns(vec![0]),
            before_columns: vec![0],
            partition: vec![],
            history: false,
        };
        let (mut operations, mut rows, mut old) = (vec![], vec![], vec![]);
        for word in script.split_whitespace() {
            let (kind, rest) = word.split_at(1);
            let (from, to) = rest.split_once('>').map_or((None, rest), |(from, to)| (from.parse::<i64>().ok(), to));
            operations.push(match kind {
                "+" => Operation::Insert,
                "=" => Operation::Update,
                "-" => Operation::Delete,
                "!" => Operation::Truncate,
                other => panic!("{other}"),
            });
            rows.push(to.parse::<i64>().ok());
            old.push(from);
        }
        let origin = |n: usize| Origin { commit: Position::new(n as u64), committed_at: 0, transaction: 0, ordinal: 0 };
        ChangeChunk {
            lanes: None,
            quarantined: Vec::new(),
            schema: Arc::new(schema),
            origins: (0..operations.len()).map(origin).collect(),
            operations,
            rows: vec![Arc::new(Int64Array::from(rows)) as ArrayRef],
            before: Some(BeforeImages {
                known: old.iter().map(|old| Some(old.is_some())).collect::<BooleanArray>(),
                columns: vec![Arc::new(Int64Array::from(old))],
            }),
            unchanged: vec![],
        }
    }

    /// Key → number of the change with its last row.
    fn check(scripts: &[&str], truncated: bool, expected: &[(i64, Option<u32>)]) {
        let chunks: Vec<_> = scripts.iter().map(|script| chunk(script)).collect();
        let merged = KeyedChanges::of(&chunks, Planted::none()).unwrap().merge();
        let ids: Vec<ArrayRef> = vec![Arc::new(Int64Array::from_iter_values(expected.iter().map(|(id, _)| *id)))];
        let hashes = hash_keys(&ids).unwrap();
        let mut expected: Vec<_> = hashes.into_iter().zip(expected.iter().map(|(_, last)| *last)).collect();
        expected.sort_unstable_by_key(|(key, _)| *key);
        assert_eq!(merged.keys.into_iter().zip(merged.last).collect::<Vec<_>>(), expected, "{scripts:?}");
        assert_eq!(merged.truncated, truncated, "{scripts:?}");
    }

    #[test]
    fn the_last_change_of_a_key_decides() {
        check(&["+1 =1 =1"], false, &[(1, Some(2))]);
        check(&["+1 -1"], false, &[(1, None)]);
        check(&["-1 +1"], false, &[(1, Some(1))]);
        check(&["+1 +2", "=1 -2"], false, &[(1, Some(2)), (2, None)]);
    }

    #[test]
    fn a_changed_key_leaves_its_old_place() {
        check(&["=1>2"], false, &[(1, None), (2, Some(0))]);
        check(&["=1>2 =2>1"], false, &[(1, Some(1)), (2, None)]);
        check(&["=1>2 +1"], false, &[(1, Some(1)), (2, Some(0))]);
        check(&["=1>2 =2>3 =3>1"], false, &[(1, Some(2)), (2, None), (3, None)]);
    }

    #[test]
    fn a_truncate_takes_everything_before_it() {
        check(&["+1 +2", "! +3"], true, &[(3, Some(3))]);
        check(&["+1 !"], true, &[]);
        check(&["! +1 !", "+1"], true, &[(1, Some(3))]);
    }

    #[test]
    fn a_batch_can_only_be_committed_at_a_boundary() {
        let mut batch = Batch::default();
        assert_eq!(batch.boundary(), None);
        batch.close_at(Position::new(5));
        assert_eq!(batch.boundary(), Some(&Position::new(5).into()));
        batch.absorb(chunk("+1"));
        assert_eq!(batch.boundary(), None);
        assert_eq!(batch.take_part().rows(), 1);
        assert!(!batch.has_changes() && batch.boundary().is_none());
        batch.close_at(Position::new(9));
        assert_eq!(batch.boundary(), Some(&Position::new(9).into()));
    }

    #[test]
    fn what_a_table_has_is_skipped_per_transaction() {
        let chunk = chunk("+1 +2 +3 +4");
        let at = |position| TableState { position: Some(Position::new(position)), ..TableState::default() };
        assert_eq!(chunk.clone().after(&at(1)).unwrap().len(), 2);
        assert!(chunk.clone().after(&at(3)).is_none());
        assert_eq!(chunk.after(&TableState::default()).unwrap().len(), 3);
    }
}
