//! Values that the source left out because an update did not change them (R56): taken from the row as it was before,
//! in this batch or in the table. Never NULL, never a placeholder.

use std::collections::{BTreeMap, HashMap};

use arrow_array::{Array, ArrayRef, new_null_array};
use arrow_select::interleave::interleave;
use roaring::RoaringBitmap;

use super::{Mirror, index_problem};
use crate::batch::{new_keys, numbered, old_keys};
use crate::change::{ChangeChunk, Operation};
use crate::error::Problem;
use crate::key_index::{KeyHash, RowAddress};
use crate::overflow::{self, Text};
use crate::planted::Bug;
use crate::read::{FileRows, Projection, Rows, fit};
use crate::schema::OVERFLOW;

/// Where a left-out value is found.
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// In the after-image of an earlier change of the batch: chunk, row.
    Change(usize, usize),
    /// In the table's row with this key.
    Table(KeyHash),
}

/// A cell to fill: chunk, column, row.
type Cell = (usize, usize, usize);

impl Mirror {
    pub(super) fn resolve_unchanged(&self, chunks: &mut [ChangeChunk]) -> Result<(), Problem> {
        if chunks.iter().all(|chunk| chunk.unchanged.is_empty()) || self.planted.is(Bug::UnchangedAsNull) {
            return Ok(());
        }
        let cells = trace(chunks)?;
        let fetched = self.fetch(chunks, &cells)?;
        let mut filled: Vec<(usize, usize, ArrayRef)> = Vec::new();
        for (chunk, column) in distinct_columns(&cells) {
            filled.push((chunk, column, fill(chunks, chunk, column, &cells, &fetched)?));
        }
        let texts = left_out_texts(chunks, &cells, &fetched);
        for (chunk, column, values) in filled {
            chunks[chunk].rows[column] = values;
        }
        for (chunk, texts) in texts {
            overflow::add_texts(&mut chunks[chunk], texts);
        }
        chunks.iter_mut().for_each(|chunk| chunk.unchanged.clear());
        Ok(())
    }

    /// The table's rows that cells refer to, one array per column name, and the place of each key in it.
    fn fetch(&self, chunks: &[ChangeChunk], cells: &BTreeMap<Cell, Origin>) -> Result<Fetched, Problem> {
        let mut keys: Vec<KeyHash> = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        for (&(chunk, column, _), origin) in cells {
            if let Origin::Table(key) = origin {
                keys.push(*key);
                names.push(&chunks[chunk].schema.columns[column].name);
            }
        }
        if !names.is_empty() && self.files.iceberg.field_by_name(OVERFLOW).is_some() {
            names.push(OVERFLOW);
        }
        keys.sort_unstable();
        keys.dedup();
        names.sort_unstable();
        names.dedup();
        let mut found = Vec::new();
        self.index.lookup(&keys, &mut found).map_err(|error| index_problem(&self.table, &error))?;
        let mut files: BTreeMap<u32, (RoaringBitmap, HashMap<u32, KeyHash>)> = BTreeMap::new();
        for (key, address) in keys.into_iter().zip(found) {
            let valid = address.filter(|address| address.file >= self.open.valid_from.unwrap_or(0));
            let Some(RowAddress { file, row }) = valid else {
                return Err(unresolved(&chunks[0]));
            };
            let (rows, owners) = files.entry(file).or_default();
            rows.insert(row);
            owners.insert(row, key);
        }
        let ids: Option<Vec<i32>> = names.iter().map(|name| self.files.iceberg.field_id_by_name(name)).collect();
        let projection = Projection::of(&self.files.iceberg, &ids.ok_or_else(|| unresolved(&chunks[0]))?)?;
        let mut fetched =
            Fetched { columns: names.iter().map(|name| ((*name).to_owned(), vec![])).collect(), ..Fetched::default() };
        for (number, (rows, owners)) in files {
            let path = self.index.path_of(number).ok_or_else(|| unresolved(&chunks[0]))?;
            let mut reader = FileRows::open(&self.storage, path, &projection, Rows::Only(rows))?;
            while let Some(batch) = reader.next_batch() {
                let (batch, positions) = batch?;
                let block = fetched.blocks;
                fetched.blocks += 1;
                for (column, name) in batch.columns().iter().zip(&names) {
                    fetched.columns.get_mut(*name).expect("one entry per name").push(column.clone());
                }
                let places = positions.iter().enumerate().map(|(row, position)| (owners[position], (block, row)));
                fetched.places.extend(places);
            }
        }
        Ok(fetched)
    }
}

#[derive(Default)]
struct Fetched {
    blocks: usize,
    /// Per column name, one array per block.
    columns: HashMap<String, Vec<ArrayRef>>,
    /// Block and row of each key.
    places: HashMap<KeyHash, (usize, usize)>,
}

/// Follows every left-out value back to where it was last sent.
fn trace(chunks: &[ChangeChunk]) -> Result<BTreeMap<Cell, Origin>, Problem> {
    let mut standing: HashMap<KeyHash, (usize, usize)> = HashMap::new();
    let mut cells: BTreeMap<Cell, Origin> = BTreeMap::new();
    for (number, (chunk, _)) in numbered(chunks).enumerate() {
        let key = chunk.schema.key_columns();
        let keys = new_keys(chunk, &key)?;
        let old = old_keys(chunk, &key)?;
        for row in 0..chunk.len() {
            match chunk.operations[row] {
                Operation::Truncate => {
                    standing.clear();
                    continue;
                }
                Operation::Delete | Operation::Quarantine => {
                    standing.remove(&keys[row]);
                    continue;
                }
                Operation::Insert | Operation::Update | Operation::Expire => {}
            }
            let before = old.as_ref().filter(|(known, _)| known[row]).map_or(keys[row], |(_, old)| old[row]);
            for left_out in chunk.unchanged.iter().filter(|left_out| left_out.rows.value(row)) {
                let name = &chunk.schema.columns[left_out.column].name;
                let origin = match standing.get(&before) {
                    None => Origin::Table(before),
                    Some(&(earlier, place)) => {
                        let column = chunks[earlier].schema.columns.iter().position(|column| column.name == *name);
                        // A row from before the column was added has NULL there.
                        let left_out = column.and_then(|column| cells.get(&(earlier, column, place)));
                        left_out.copied().unwrap_or(Origin::Change(earlier, place))
                    }
                };
                cells.insert((number, left_out.column, row), origin);
            }
            standing.remove(&before);
            standing.insert(keys[row], (number, row));
        }
    }
    Ok(cells)
}

fn distinct_columns(cells: &BTreeMap<Cell, Origin>) -> Vec<(usize, usize)> {
    let mut columns: Vec<(usize, usize)> = cells.keys().map(|&(chunk, column, _)| (chunk, column)).collect();
    columns.dedup();
    columns
}

/// One column of one chunk with its left-out values in place.
fn fill(
    chunks: &[ChangeChunk],
    number: usize,
    column: usize,
    cells: &BTreeMap<Cell, Origin>,
    fetched: &Fetched,
) -> Result<ArrayRef, Problem> {
    let chunk = &chunks[number];
    let name = &chunk.schema.columns[column].name;
    let own = &chunk.rows[column];
    let field = arrow_schema::Field::new(name, own.data_type().clone(), true);
    let mut arrays: Vec<ArrayRef> = Vec::new();
    for other in chunks {
        let place = other.schema.columns.iter().position(|column| column.name == *name);
        arrays.push(match place {
            Some(place) => fit(&other.rows[place], &field)?,
            None => new_null_array(own.data_type(), other.len()),
        });
    }
    let first_block = arrays.len();
    for block in fetched.columns.get(name).into_iter().flatten() {
        arrays.push(fit(block, &field)?);
    }
    let indices: Result<Vec<(usize, usize)>, Problem> = (0..chunk.len())
        .map(|row| match cells.get(&(number, column, row)) {
            None => Ok((number, row)),
            Some(&Origin::Change(earlier, place)) => Ok((earlier, place)),
            Some(Origin::Table(key)) => {
                let (block, row) = fetched.places.get(key).ok_or_else(|| unresolved(chunk))?;
                Ok((first_block + block, *row))
            }
        })
        .collect();
    let arrays: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
    interleave(&arrays, &indices?).map_err(|error| {
        Problem::halt_table("UNCHANGED_UNRESOLVED", &chunk.schema.source, error.to_string(), "resync the table")
    })
}

/// Left-out values that do not fit their column, by chunk: their texts go along to the new row.
fn left_out_texts(
    chunks: &[ChangeChunk],
    cells: &BTreeMap<Cell, Origin>,
    fetched: &Fetched,
) -> BTreeMap<usize, Vec<Text>> {
    let mut texts: BTreeMap<usize, Vec<Text>> = BTreeMap::new();
    for (&(number, column, row), origin) in cells {
        let name = &chunks[number].schema.columns[column].name;
        let text = match origin {
            Origin::Change(earlier, place) => overflow::text_of(overflow::column_of(&chunks[*earlier]), *place, name),
            Origin::Table(key) => fetched.places.get(key).and_then(|&(block, place)| {
                let blocks = fetched.columns.get(OVERFLOW)?;
                overflow::text_of(blocks.get(block), place, name)
            }),
        };
        if let Some(text) = text {
            texts.entry(number).or_default().push(Text { row, column: name.clone(), text });
        }
    }
    texts
}

fn unresolved(chunk: &ChangeChunk) -> Problem {
    Problem::halt_table(
        "UNCHANGED_UNRESOLVED",
        &chunk.schema.source,
        "an update left out an unchanged value, and the row it belongs to is not in the mirror",
        "resync the table, or set REPLICA IDENTITY FULL at the source",
    )
}
