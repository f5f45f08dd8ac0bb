//! The state of a table at a position, from an older state of its mirror and the history since: what `verify --cut` and
//! `replay` compare with.
//!
//! The history is read twice: once for what the last change of each key is, and once for the rows of those changes. Only
//! keys that changed are held in memory; rows that stayed pass through. Blocking; not here: which snapshots to take.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{Array, BooleanArray, RecordBatch, RecordBatchOptions, StructArray, UInt32Array, new_null_array};
use arrow_schema::{FieldRef, Schema as ArrowSchema};
use arrow_select::filter::filter_record_batch;
use arrow_select::take::take_record_batch;
use iceberg::spec::{Schema, SchemaRef};
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::file::statistics::Statistics;
use roaring::RoaringBitmap;

use crate::catalog::LoadedTable;
use crate::commit::properties::TableState;
use crate::compare::RowHasher;
use crate::error::Problem;
use crate::key_index::KeyHash;
use crate::position::Position;
use crate::read::{FileRows, Projection, Rows, TableReader, fit};
use crate::schema::{BEFORE, OPERATION, ORDINAL, POSITION};
use crate::write::parquet_problem;

/// The changes of one table in a range of positions, come down to one per key.
#[derive(Debug)]
pub struct Fold {
    /// The state's columns.
    columns: Projection,
    hasher: RowHasher,
    changes: Changes,
    /// Paths of the history's files, as numbers in `changes` mean them.
    files: Vec<String>,
    /// Everything that stood at the range's beginning is gone.
    truncated: bool,
}

#[derive(Debug)]
enum Changes {
    /// A table with a key: the last change of each.
    Last(HashMap<KeyHash, Last>),
    /// A table without: how many rows of one content came, less how many went, and where one of those that came stands.
    Balance(HashMap<KeyHash, Balance>),
}

/// When a change happened: position and place in its transaction.
type Moment = (u64, i32);

#[derive(Clone, Copy, Debug)]
struct Last {
    moment: Moment,
    /// File and row of the after-image; `None`: the key is gone.
    image: Option<(u32, u32)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Balance {
    more: i64,
    image: Option<(u32, u32)>,
}

/// The changes in `(after, up_to]`.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub after: Position,
    pub up_to: Position,
}

impl Range {
    pub(crate) fn holds(self, position: u64) -> bool {
        position > self.after.offset() && position <= self.up_to.offset()
    }

    /// False for a file of a history that holds no change of the range, by its statistics.
    pub(crate) fn overlaps(self, history: &TableReader, path: &str) -> Result<bool, Problem> {
        overlaps(history, path, field_id(&history.schema, POSITION)?, self)
    }
}

/// Where a history begins: it holds every change behind this position, none before. Its end is not its own position,
/// which stays behind where nothing changes, but the newest cut.
pub fn history_begins(history: &LoadedTable) -> Result<Option<Position>, Problem> {
    Ok(TableState::of(history)?.copy.and_then(|copy| copy.attempt.parse().ok()))
}

impl Fold {
    /// Reads the changes of `range` from a history that covers it; `mirror` is the schema that the state shall have, and
    /// names the key. With `keys`, only these keys are folded.
    pub fn read(
        history: &TableReader,
        mirror: &SchemaRef,
        range: Range,
        keys: Option<&HashSet<KeyHash>>,
    ) -> Result<Self, Problem> {
        let key: Vec<&str> = mirror.identifier_field_ids().filter_map(|id| mirror.name_by_field_id(id)).collect();
        let columns = Projection::all(mirror)?;
        let hasher = RowHasher::new(Arc::clone(&columns.arrow), &key)?;
        let changes = match key.is_empty() {
            true => Changes::Balance(HashMap::new()),
            false => Changes::Last(HashMap::new()),
        };
        let mut fold = Self { columns, hasher, changes, files: Vec::new(), truncated: false };
        fold.collect(history, mirror, range, keys)?;
        Ok(fold)
    }

    /// Keys that changed, or whose rows did.
    pub fn changed_keys(&self) -> HashSet<KeyHash> {
        match &self.changes {
            Changes::Last(last) => last.keys().copied().collect(),
            Changes::Balance(balance) => balance.keys().copied().collect(),
        }
    }

    /// The state at the end of the range: rows of `base`, the mirror at the range's beginning, that no change concerns,
    /// then the last images. `keys` as in [`Fold::read`]. Rows come in no particular order.
    pub fn state(
        mut self,
        base: &TableReader,
        history: &TableReader,
        keys: Option<&HashSet<KeyHash>>,
        mut take: impl FnMut(RecordBatch) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        if !self.truncated {
            for path in base.files() {
                let mut rows = base.read(path, &self.columns)?;
                while let Some(batch) = rows.next().transpose()? {
                    let stays = self.staying(&batch, keys)?;
                    give(filter_record_batch(&batch, &stays).map_err(|error| broken(&error))?, &mut take)?;
                }
            }
        }
        let images = self.images();
        for (number, rows) in images {
            self.give_images(history, number, &rows, &mut take)?;
        }
        Ok(())
    }

    fn staying(&mut self, batch: &RecordBatch, keys: Option<&HashSet<KeyHash>>) -> Result<BooleanArray, Problem> {
        let hashes = self.hasher.keys(batch)?;
        let stays = hashes.into_iter().map(|key| {
            if keys.is_some_and(|keys| !keys.contains(&key)) {
                return Some(false);
            }
            Some(match &mut self.changes {
                Changes::Last(last) => !last.contains_key(&key),
                Changes::Balance(balance) => match balance.get_mut(&key) {
                    Some(balance) if balance.more < 0 => {
                        balance.more += 1;
                        false
                    }
                    _ => true,
                },
            })
        });
        Ok(stays.collect())
    }

    /// Rows of the history that stand in the state, by file, and how often.
    fn images(&self) -> BTreeMap<u32, BTreeMap<u32, u64>> {
        let mut files: BTreeMap<u32, BTreeMap<u32, u64>> = BTreeMap::new();
        let mut add = |(file, row): (u32, u32), times| files.entry(file).or_default().insert(row, times);
        match &self.changes {
            Changes::Last(last) => last.values().filter_map(|last| last.image).for_each(|image| {
                add(image, 1);
            }),
            Changes::Balance(balance) => {
                for balance in balance.values() {
                    if let (Some(image), Ok(times @ 1..)) = (balance.image, u64::try_from(balance.more)) {
                        add(image, times);
                    }
                }
            }
        }
        files
    }

    fn give_images(
        &self,
        history: &TableReader,
        file: u32,
        rows: &BTreeMap<u32, u64>,
        take: &mut impl FnMut(RecordBatch) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let path = &self.files[file as usize];
        let (columns, places) = self.columns_in(&history.schema)?;
        let only: RoaringBitmap = rows.keys().copied().collect();
        let mut reader = FileRows::open(&history.storage, path, &columns, Rows::Only(only))?;
        while let Some(batch) = reader.next_batch() {
            let (batch, positions) = batch?;
            let image = self.as_state(&batch, &places)?;
            if matches!(self.changes, Changes::Last(_)) {
                give(image, take)?;
                continue;
            }
            let times =
                |position: &u32| usize::try_from(rows.get(position).copied().unwrap_or(0)).unwrap_or(usize::MAX);
            for (row, position) in (0u32..).zip(&positions) {
                // One at a time: a row may stand any number of times.
                for _ in 0..times(position) {
                    let one =
                        take_record_batch(&image, &UInt32Array::from(vec![row])).map_err(|error| broken(&error))?;
                    give(one, take)?;
                }
            }
        }
        Ok(())
    }

    /// The history's columns that have the names of the state's, and for each of the state's its place among them.
    fn columns_in(&self, history: &Schema) -> Result<(Projection, Vec<Option<usize>>), Problem> {
        let mut ids = Vec::new();
        let place = |field: &FieldRef| {
            let field = history.as_struct().fields().iter().find(|known| known.name == *field.name())?;
            ids.push(field.id);
            Some(ids.len() - 1)
        };
        let places = self.columns.arrow.fields().iter().map(place).collect();
        Ok((Projection::of(history, &ids)?, places))
    }

    fn as_state(&self, batch: &RecordBatch, places: &[Option<usize>]) -> Result<RecordBatch, Problem> {
        let schema = &self.columns.arrow;
        let column = |(field, place): (&FieldRef, &Option<usize>)| match place {
            Some(place) => fit(batch.column(*place), field),
            None => Ok(new_null_array(field.data_type(), batch.num_rows())),
        };
        let columns = schema.fields().iter().zip(places).map(column).collect::<Result<Vec<_>, Problem>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options).map_err(|error| broken(&error))
    }
}

fn give(batch: RecordBatch, take: &mut impl FnMut(RecordBatch) -> Result<(), Problem>) -> Result<(), Problem> {
    if batch.num_rows() > 0 { take(batch) } else { Ok(()) }
}

fn broken(error: &dyn std::fmt::Display) -> Problem {
    Problem::halt("HISTORY_DAMAGED", "", format!("changes cannot be folded: {error}"), "run fsck on the history")
}

impl Fold {
    fn collect(
        &mut self,
        history: &TableReader,
        mirror: &SchemaRef,
        range: Range,
        keys: Option<&HashSet<KeyHash>>,
    ) -> Result<(), Problem> {
        let paths = history.files().into_iter().map(str::to_owned);
        let position = field_id(&history.schema, POSITION)?;
        for path in paths {
            if overlaps(history, &path, position, range)? {
                self.files.push(path);
            }
        }
        let since = self.last_truncate(history, range)?;
        self.truncated = since.is_some();
        let columns = ChangeColumns::of(&history.schema, mirror, &self.columns)?;
        for number in 0..self.files.len() {
            let mut reader = history.read(&self.files[number], &columns.projection)?;
            while let Some(batch) = reader.next_batch() {
                let (batch, positions) = batch?;
                let steps = self.steps(&columns, &batch)?;
                for Step { row, moment, key, comes } in steps {
                    let counts = range.holds(moment.0) && since.is_none_or(|since| moment > since);
                    if !counts || keys.is_some_and(|keys| !keys.contains(&key)) {
                        continue;
                    }
                    let number = u32::try_from(number).expect("files are counted in memory");
                    let image = Some((number, positions[row])).filter(|_| comes);
                    self.changes.add(key, moment, image);
                }
            }
        }
        if let Changes::Balance(balance) = &mut self.changes {
            balance.retain(|_, balance| balance.more != 0);
        }
        Ok(())
    }

    /// When the table was last emptied in the range.
    fn last_truncate(&self, history: &TableReader, range: Range) -> Result<Option<Moment>, Problem> {
        let ids = [OPERATION, POSITION, ORDINAL].map(|name| field_id(&history.schema, name));
        let projection = Projection::of(&history.schema, &ids.into_iter().collect::<Result<Vec<_>, _>>()?)?;
        let mut last = None;
        for path in &self.files {
            for batch in history.read(path, &projection)? {
                let batch = batch?;
                let operations = batch.column(0).as_string::<i32>();
                for (row, operation) in operations.iter().enumerate() {
                    let moment = moment_of(&batch, row);
                    if operation == Some("truncate") && range.holds(moment.0) {
                        last = last.max(Some(moment));
                    }
                }
            }
        }
        Ok(last)
    }

    /// What came and what went with each change of a batch, in order.
    fn steps(&self, columns: &ChangeColumns, batch: &RecordBatch) -> Result<Vec<Step>, Problem> {
        let after = self.hasher.keys(batch)?;
        let before = columns.before(batch)?;
        let old = before.as_ref().map(|before| self.hasher.keys(&before.rows)).transpose()?;
        let mut steps = Vec::with_capacity(batch.num_rows());
        for (row, operation) in batch.column(0).as_string::<i32>().iter().enumerate() {
            let moment = moment_of(batch, row);
            let known = before.as_ref().is_some_and(|before| before.known.value(row));
            let old = old.as_ref().filter(|_| known).map(|old| old[row]);
            let went = match operation {
                Some("insert") => None,
                // Of a table with a key, an update without an old image has kept the key.
                Some("update") => old.filter(|old| *old != after[row]),
                // A row in the quarantine stands nowhere else.
                Some("delete" | "quarantine") => Some(after[row]),
                Some("truncate" | "expire") => continue,
                _ => return Err(broken(&format!("an operation is {operation:?}"))),
            };
            steps.extend(went.map(|key| Step { row, moment, key, comes: false }));
            let unchanged = matches!(self.changes, Changes::Balance(_)) && old == Some(after[row]);
            let goes = matches!(operation, Some("delete" | "quarantine"));
            if !(goes || operation == Some("update") && unchanged) {
                steps.push(Step { row, moment, key: after[row], comes: true });
            }
        }
        Ok(steps)
    }
}

impl Changes {
    fn add(&mut self, key: KeyHash, moment: Moment, image: Option<(u32, u32)>) {
        match self {
            Changes::Last(all) => {
                let last = all.entry(key).or_insert(Last { moment, image });
                if moment >= last.moment {
                    *last = Last { moment, image };
                }
            }
            Changes::Balance(all) => {
                let balance = all.entry(key).or_default();
                balance.more += if image.is_some() { 1 } else { -1 };
                balance.image = balance.image.or(image);
            }
        }
    }
}

/// A row image that comes or goes.
struct Step {
    row: usize,
    moment: Moment,
    key: KeyHash,
    comes: bool,
}

/// Places of what a change is told by: operation, position, ordinal, then the columns of the key (without one: all), then
/// the old image.
struct ChangeColumns {
    projection: Projection,
    key: Vec<FieldRef>,
    has_before: bool,
}

struct Before {
    known: BooleanArray,
    rows: RecordBatch,
}

impl ChangeColumns {
    fn of(history: &Schema, mirror: &SchemaRef, state: &Projection) -> Result<Self, Problem> {
        let key_ids: HashSet<i32> = mirror.identifier_field_ids().collect();
        let in_key = |id: i32| key_ids.is_empty() || key_ids.contains(&id);
        let fields = mirror.as_struct().fields().iter().zip(state.arrow.fields());
        let key: Vec<FieldRef> =
            fields.filter(|(field, _)| in_key(field.id)).map(|(_, arrow)| Arc::clone(arrow)).collect();
        let mut ids = Vec::new();
        for name in [OPERATION, POSITION, ORDINAL].into_iter().chain(key.iter().map(|field| field.name().as_str())) {
            ids.push(field_id(history, name)?);
        }
        let before = field_id(history, BEFORE).ok();
        ids.extend(before);
        Ok(Self { projection: Projection::of(history, &ids)?, key, has_before: before.is_some() })
    }

    /// Old images, where they hold all columns that tell rows apart.
    fn before(&self, batch: &RecordBatch) -> Result<Option<Before>, Problem> {
        let image: Option<&StructArray> = self.has_before.then(|| batch.columns().last()?.as_struct_opt()).flatten();
        let Some(image) = image else { return Ok(None) };
        let mut columns = Vec::new();
        for field in &self.key {
            let Some(column) = image.column_by_name(field.name()) else {
                return Ok(None);
            };
            columns.push(fit(column, field)?);
        }
        let fields = self.key.iter().map(|field| Arc::new(field.as_ref().clone().with_nullable(true)));
        let schema = Arc::new(ArrowSchema::new(fields.collect::<Vec<_>>()));
        let rows = RecordBatch::try_new(schema, columns).map_err(|error| broken(&error))?;
        let known = match image.nulls() {
            Some(nulls) => BooleanArray::new(nulls.inner().clone(), None),
            None => BooleanArray::from(vec![true; image.len()]),
        };
        Ok(Some(Before { known, rows }))
    }
}

fn moment_of(batch: &RecordBatch, row: usize) -> Moment {
    let position = batch.column(1).as_primitive::<Int64Type>().value(row).cast_unsigned();
    (position, batch.column(2).as_primitive::<Int32Type>().value(row))
}

fn field_id(history: &Schema, name: &str) -> Result<i32, Problem> {
    let field = history.as_struct().fields().iter().find(|field| field.name == name);
    field.map(|field| field.id).ok_or_else(|| {
        let remedy = "resync the table, so that its history begins anew";
        Problem::halt("COLUMN_UNKNOWN", name, "the history has no such column", remedy)
    })
}

/// False if the file's own statistics say that it has no position in the range.
fn overlaps(history: &TableReader, path: &str, position: i32, range: Range) -> Result<bool, Problem> {
    let file = history.storage.open(path)?;
    let metadata =
        ArrowReaderMetadata::load(&file, Default::default()).map_err(|error| parquet_problem(path, &error))?;
    let columns = metadata.parquet_schema().columns();
    let place = columns.iter().position(|column| {
        let info = column.self_type().get_basic_info();
        info.has_id() && info.id() == position
    });
    let Some(place) = place else { return Ok(true) };
    Ok(metadata.metadata().row_groups().iter().any(|group| match group.column(place).statistics() {
        Some(Statistics::Int64(found)) => {
            let bound = |value: Option<&i64>, unknown: u64| value.map_or(unknown, |value| value.cast_unsigned());
            let (first, last) = (bound(found.min_opt(), 0), bound(found.max_opt(), u64::MAX));
            last > range.after.offset() && first <= range.up_to.offset()
        }
        _ => true,
    }))
}
