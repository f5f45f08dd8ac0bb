//! The rows of a group in the order of some columns, or along a Z-curve over them, in bounded memory: sorted stretches on
//! disk, merged. Each row carries where it came from, so that a row map comes of it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use arrow_array::{ArrayRef, RecordBatch, UInt32Array};
use arrow_ipc::reader::FileReader;
use arrow_ipc::writer::FileWriter;
use arrow_row::{OwnedRow, RowConverter, SortField};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use arrow_select::interleave::interleave;
use arrow_select::take::take;
use lakehouse_core::error::Problem;

use crate::plan::Order;

/// Memory of one stretch, in bytes of its columns; sorting takes as much again.
const STRETCH_BYTES: usize = 64 << 20;
/// Rows of a batch on disk, and of one that comes out.
const BATCH_ROWS: usize = 4_096;
/// Bytes of a column's value that count on a Z-curve.
const PREFIX: usize = 12;
/// Columns behind the table's own: which file of the group, and which row of it.
const ORIGIN: [&str; 2] = ["__file", "__row"];

/// Takes rows in any order and gives them back in order.
pub(super) struct Sorter {
    order: Order,
    /// With the columns of [`ORIGIN`].
    schema: SchemaRef,
    /// Places of the columns that are sorted by.
    columns: Vec<usize>,
    open: Vec<RecordBatch>,
    bytes: usize,
    stretches: Vec<File>,
}

/// Rows in order, with the file of the group and the row that each has been.
pub(super) struct SortedBatch {
    pub(super) rows: RecordBatch,
    pub(super) files: UInt32Array,
    pub(super) positions: UInt32Array,
}

impl Sorter {
    /// # Errors
    /// `COLUMN_UNKNOWN` for a column that the table has not, or that has no order.
    pub(super) fn new(order: Order, schema: &SchemaRef, table: &str) -> Result<Self, Problem> {
        let names = match &order {
            Order::AsWritten => &Vec::new(),
            Order::Sorted(names) | Order::ZOrder(names) => names,
        };
        let place = |name: &String| {
            let known = schema.index_of(name).ok().filter(|&place| !schema.field(place).data_type().is_nested());
            known.ok_or_else(|| {
                let message = format!("rows cannot be sorted by {name:?}: the table has no such plain column");
                Problem::halt("COLUMN_UNKNOWN", table, message, "name other columns in [maintenance]")
            })
        };
        let columns = names.iter().map(place).collect::<Result<_, _>>()?;
        let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
        fields.extend(ORIGIN.map(|name| Arc::new(Field::new(name, DataType::UInt32, false))));
        let schema = Arc::new(Schema::new(fields));
        Ok(Self { order, schema, columns, open: Vec::new(), bytes: 0, stretches: Vec::new() })
    }

    /// Rows of one file of the group, with their positions there.
    pub(super) fn add(&mut self, batch: &RecordBatch, file: u32, positions: Vec<u32>) -> Result<(), Problem> {
        let mut columns = batch.columns().to_vec();
        columns.push(Arc::new(UInt32Array::from(vec![file; batch.num_rows()])));
        columns.push(Arc::new(UInt32Array::from(positions)));
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(|error| failed(&error))?;
        self.bytes += batch.get_array_memory_size();
        self.open.push(batch);
        if self.bytes >= STRETCH_BYTES {
            self.close()?;
        }
        Ok(())
    }

    /// Sorts what is in memory and writes it to a file without a name.
    fn close(&mut self) -> Result<(), Problem> {
        let open = std::mem::take(&mut self.open);
        self.bytes = 0;
        if open.is_empty() {
            return Ok(());
        }
        let rows = arrow_select::concat::concat_batches(&self.schema, &open).map_err(|error| failed(&error))?;
        drop(open);
        let keys = Keys::new(&self.order, &self.columns, &self.schema)?.of(&rows)?;
        let mut places: Vec<u32> = (0..u32::try_from(rows.num_rows()).expect("a stretch is small")).collect();
        places.sort_by(|&a, &b| keys[a as usize].cmp(&keys[b as usize]));
        drop(keys);
        let file = tempfile::tempfile().map_err(|error| no_room(&error))?;
        let out = BufWriter::new(file.try_clone().map_err(|error| no_room(&error))?);
        let mut writer = FileWriter::try_new(out, &self.schema).map_err(|error| failed(&error))?;
        for places in places.chunks(BATCH_ROWS) {
            let places = UInt32Array::from(places.to_vec());
            let taken = rows.columns().iter().map(|column| take(column, &places, None));
            let batch = taken
                .collect::<Result<Vec<_>, _>>()
                .and_then(|columns| RecordBatch::try_new(Arc::clone(&self.schema), columns));
            writer.write(&batch.map_err(|error| failed(&error))?).map_err(|error| failed(&error))?;
        }
        writer.finish().map_err(|error| failed(&error))?;
        self.stretches.push(file);
        Ok(())
    }

    /// All rows in order; of equal ones those that came first.
    pub(super) fn finish(mut self) -> Result<Merge, Problem> {
        self.close()?;
        let keys = Keys::new(&self.order, &self.columns, &self.schema)?;
        let mut merge = Merge { schema: self.schema, keys, stretches: Vec::new(), heads: BinaryHeap::new() };
        for (number, mut file) in self.stretches.into_iter().enumerate() {
            use std::io::Seek as _;
            file.rewind().map_err(|error| no_room(&error))?;
            let reader = FileReader::try_new(BufReader::new(file), None).map_err(|error| failed(&error))?;
            merge.stretches.push(Stretch { reader, batch: None, keys: Vec::new(), row: 0 });
            merge.advance(number)?;
        }
        Ok(merge)
    }
}

/// Stretches on their way into one.
pub(super) struct Merge {
    schema: SchemaRef,
    keys: Keys,
    stretches: Vec<Stretch>,
    /// The next key of each stretch that has one.
    heads: BinaryHeap<Reverse<(Key, usize)>>,
}

struct Stretch {
    reader: FileReader<BufReader<File>>,
    batch: Option<RecordBatch>,
    keys: Vec<Key>,
    row: usize,
}

impl Merge {
    /// Puts the stretch's next key among the heads; reads its next batch where the last one is used up.
    fn advance(&mut self, number: usize) -> Result<(), Problem> {
        let stretch = &mut self.stretches[number];
        if stretch.row >= stretch.keys.len() {
            stretch.batch = stretch.reader.next().transpose().map_err(|error| failed(&error))?;
            stretch.row = 0;
            stretch.keys = match &stretch.batch {
                Some(batch) => self.keys.of(batch)?,
                None => Vec::new(),
            };
        }
        if let Some(key) = stretch.keys.get_mut(stretch.row) {
            self.heads.push(Reverse((std::mem::take(key), number)));
        }
        Ok(())
    }

    /// The next rows. `None` at the end.
    pub(super) fn next_batch(&mut self) -> Result<Option<SortedBatch>, Problem> {
        // Batches that rows of this one stand in: one that is used up on the way is kept until the rows are taken.
        let mut sources: Vec<RecordBatch> = Vec::new();
        let mut source_of: Vec<Option<usize>> = vec![None; self.stretches.len()];
        let mut picked: Vec<(usize, usize)> = Vec::with_capacity(BATCH_ROWS);
        while picked.len() < BATCH_ROWS
            && let Some(Reverse((_, number))) = self.heads.pop()
        {
            let stretch = &mut self.stretches[number];
            let source = *source_of[number].get_or_insert_with(|| {
                sources.push(stretch.batch.clone().expect("a head has a batch"));
                sources.len() - 1
            });
            picked.push((source, stretch.row));
            stretch.row += 1;
            if stretch.row >= stretch.keys.len() {
                source_of[number] = None;
            }
            self.advance(number)?;
        }
        if picked.is_empty() {
            return Ok(None);
        }
        let column = |place: usize| -> Result<ArrayRef, Problem> {
            let parts: Vec<&dyn arrow_array::Array> = sources.iter().map(|batch| &**batch.column(place)).collect();
            interleave(&parts, &picked).map_err(|error| failed(&error))
        };
        let mut columns = (0..self.schema.fields().len()).map(column).collect::<Result<Vec<_>, _>>()?;
        let positions = columns.pop().expect("the last column of the schema").as_primitive::<UInt32Type>().clone();
        let files = columns.pop().expect("the one before").as_primitive::<UInt32Type>().clone();
        let own = Schema::new(self.schema.fields()[..columns.len()].to_vec());
        let rows = RecordBatch::try_new(Arc::new(own), columns).map_err(|error| failed(&error))?;
        Ok(Some(SortedBatch { rows, files, positions }))
    }
}

/// A key as bytes that sort as the rows are to.
type Key = Vec<u8>;

struct Keys {
    z_order: bool,
    columns: Vec<usize>,
    /// One for all columns, or one each.
    converters: Vec<RowConverter>,
}

impl Keys {
    fn new(order: &Order, columns: &[usize], schema: &SchemaRef) -> Result<Self, Problem> {
        let field = |&place: &usize| SortField::new(schema.field(place).data_type().clone());
        let z_order = matches!(order, Order::ZOrder(_));
        let converters = match z_order {
            true => columns.iter().map(|place| RowConverter::new(vec![field(place)])).collect::<Result<Vec<_>, _>>(),
            false => RowConverter::new(columns.iter().map(field).collect()).map(|one| vec![one]),
        };
        Ok(Self { z_order, columns: columns.to_vec(), converters: converters.map_err(|error| failed(&error))? })
    }

    fn of(&self, rows: &RecordBatch) -> Result<Vec<Key>, Problem> {
        let column = |place: &usize| Arc::clone(rows.column(*place));
        if !self.z_order {
            let columns: Vec<ArrayRef> = self.columns.iter().map(column).collect();
            let keys = self.converters[0].convert_columns(&columns).map_err(|error| failed(&error))?;
            return Ok(keys.iter().map(|key| key.as_ref().to_vec()).collect());
        }
        let each = self.columns.iter().zip(&self.converters);
        let each = each.map(|(place, converter)| converter.convert_columns(&[column(place)]));
        let each = each.collect::<Result<Vec<_>, _>>().map_err(|error| failed(&error))?;
        Ok((0..rows.num_rows()).map(|row| interleaved(each.iter().map(|keys| keys.row(row).owned()))).collect())
    }
}

/// The bits of several keys, one of each in turn, from the most significant on.
fn interleaved(keys: impl Iterator<Item = OwnedRow>) -> Key {
    let prefixes: Vec<[u8; PREFIX]> = keys
        .map(|key| {
            let mut prefix = [0; PREFIX];
            let bytes = key.as_ref();
            let length = bytes.len().min(PREFIX);
            prefix[..length].copy_from_slice(&bytes[..length]);
            prefix
        })
        .collect();
    let mut out = vec![0u8; PREFIX * prefixes.len()];
    let mut at = 0;
    for bit in 0..PREFIX * 8 {
        for prefix in &prefixes {
            out[at / 8] |= (prefix[bit / 8] >> (7 - bit % 8) & 1) << (7 - at % 8);
            at += 1;
        }
    }
    out
}

fn failed(error: &ArrowError) -> Problem {
    Problem::halt("SORT", "compaction", format!("rows cannot be sorted: {error}"), "report this")
}

fn no_room(error: &std::io::Error) -> Problem {
    let remedy = "make room in the folder for temporary files (TMPDIR)";
    Problem::halt("SORT", "compaction", format!("rows cannot be sorted on disk: {error}"), remedy)
}

#[cfg(test)]
mod tests {
    use arrow_array::types::Int64Type;
    use arrow_array::{Int64Array, StringArray};

    use super::*;

    fn rows(numbers: &[i64]) -> RecordBatch {
        let fields = vec![Field::new("n", DataType::Int64, true), Field::new("s", DataType::Utf8, true)];
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(numbers.to_vec())),
            Arc::new(StringArray::from_iter_values(numbers.iter().map(|n| format!("{n}")))),
        ];
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("rows")
    }

    #[test]
    fn stretches_are_merged_and_each_row_knows_where_it_was() {
        let mut rng = fastrand::Rng::with_seed(7);
        let files: Vec<Vec<i64>> =
            (0..3).map(|_| (0..rng.usize(1..9_000)).map(|_| rng.i64(-50..50)).collect()).collect();
        let order = Order::Sorted(vec!["n".to_owned()]);
        let mut sorter = Sorter::new(order, &rows(&[]).schema(), "t").expect("a sorter");
        for (number, file) in (0..).zip(&files) {
            let positions = (0..).take(file.len()).collect();
            sorter.add(&rows(file), number, positions).expect("added");
            sorter.close().expect("a stretch");
        }
        let mut merge = sorter.finish().expect("a merge");
        let (mut last, mut seen) = (i64::MIN, std::collections::HashSet::new());
        while let Some(batch) = merge.next_batch().expect("rows") {
            let numbers = batch.rows.column(0).as_primitive::<Int64Type>();
            for row in 0..batch.rows.num_rows() {
                let number = numbers.value(row);
                assert!(number >= last);
                last = number;
                let (file, position) = (batch.files.value(row), batch.positions.value(row));
                assert_eq!(files[file as usize][position as usize], number);
                assert!(seen.insert((file, position)), "a row comes twice");
            }
        }
        assert_eq!(seen.len(), files.iter().map(Vec::len).sum::<usize>());
    }

    #[test]
    fn a_z_curve_keeps_neighbours_in_both_columns_together() {
        let key = |a: i64, b: i64| {
            let fields = vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Int64, true)];
            let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![a])), Arc::new(Int64Array::from(vec![b]))];
            let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("a row");
            let order = Order::ZOrder(vec!["a".to_owned(), "b".to_owned()]);
            Keys::new(&order, &[0, 1], &batch.schema()).expect("keys").of(&batch).expect("a key").remove(0)
        };
        // Quadrants come one after the other, whatever is inside them.
        assert!(key(0, 0) < key(1, 1) && key(1, 1) < key(0, 2) && key(0, 2) < key(2, 0) && key(2, 0) < key(3, 3));
        assert!(key(-5, -5) < key(0, 0));
    }

    #[test]
    fn a_column_without_an_order_is_refused() {
        let order = Order::Sorted(vec!["unknown".to_owned()]);
        let refused = Sorter::new(order, &rows(&[]).schema(), "t").map(drop);
        assert_eq!(refused.unwrap_err().code, "COLUMN_UNKNOWN");
    }
}
