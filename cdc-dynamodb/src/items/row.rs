//! Collects items as rows, old images beside them, and gives them out as arrays in the schema's order of columns.

use std::fmt;
use std::sync::Arc;

use arrow_array::ArrayRef;
use arrow_array::builder::BooleanBuilder;
use lakehouse_core::change::BeforeImages;
use lakehouse_core::error::Problem;

use super::array::Array;
use super::cell::{self, Cell, Left};
use super::{ItemColumn, ItemSchema, Mismatch};
use crate::value::{Item, Value, write_name, write_value};

/// Arrow counts a column's bytes in 31 bits; a canonical text is at most six times as long as what it tells of.
const MOST_BYTES: usize = 256 << 20;

/// Why an item did not become a row. The builder stands as before, and values are never part of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    #[error("attribute {attribute:?} is of type {found} and not the {declared} that its column is")]
    Mismatch { attribute: String, declared: String, found: &'static str },
    /// The column's policy sends the whole item elsewhere; the table goes on.
    #[error("attribute {attribute:?} is of type {found} and not the {declared} that its column is")]
    Quarantine { attribute: String, declared: String, found: &'static str },
    #[error("key attribute {attribute:?} has a value that its column, a {declared}, cannot hold")]
    Key { attribute: String, declared: String },
    #[error("key attribute {attribute:?} is missing")]
    KeyMissing { attribute: String },
    /// Finish the rows, then append the item again.
    #[error("the rows have no room left")]
    Full,
}

impl ItemError {
    /// The error as the operator sees it, where it stops the table.
    pub fn problem(&self, table: &str) -> Problem {
        let (code, remedy) = match self {
            ItemError::Mismatch { attribute, .. } => {
                let remedy =
                    format!("declare columns.{attribute:?} with a wider type, or the policy `rest`, and resync");
                ("VALUE_MISMATCH", remedy)
            }
            ItemError::Quarantine { .. } => ("VALUE_MISMATCH", "report this: the table has a quarantine".to_owned()),
            ItemError::Key { attribute, .. } => {
                let remedy =
                    format!("declare columns.{attribute:?} with a type that holds all keys (`number`), and resync");
                ("KEY_UNMAPPABLE", remedy)
            }
            ItemError::KeyMissing { .. } => ("ROW_UNREADABLE", "report this".to_owned()),
            ItemError::Full => ("ROW_UNREADABLE", "report this: the rows were not finished in time".to_owned()),
        };
        Problem::halt_table(code, table, self.to_string(), remedy)
    }
}

/// Rows, column by column.
#[derive(Clone, Debug)]
pub struct Rows {
    /// One array per column of the schema.
    pub columns: Vec<ArrayRef>,
    /// Old images, if any row has one.
    pub before: Option<BeforeImages>,
}

/// Collects the rows of one table.
pub struct ItemBuilder {
    columns: Arc<[ItemColumn]>,
    /// The columns by the names of their attributes.
    by_attribute: Vec<usize>,
    key: usize,
    rows: Columns,
    before: Before,
    count: usize,
    bytes: usize,
    /// Values that were not of their column's type, per column, since they were last taken.
    mismatches: Vec<u64>,
}

/// One array per declared column, and `_rest`.
struct Columns {
    declared: Vec<Array>,
    rest: Option<Array>,
}

/// Old images, built only when one comes.
struct Before {
    /// How many columns they have.
    width: usize,
    columns: Option<Columns>,
    known: BooleanBuilder,
}

/// What an item comes to, before anything is appended.
struct Row<'a> {
    cells: Vec<Cell<'a>>,
    rest: Option<String>,
    mismatches: Vec<usize>,
}

impl ItemBuilder {
    pub(super) fn new(schema: &ItemSchema) -> Self {
        let columns = Arc::clone(&schema.columns);
        let mut by_attribute: Vec<usize> = (0..columns.len()).collect();
        by_attribute.sort_by_key(|column| &columns[*column].attribute);
        Self {
            by_attribute,
            rows: Columns::new(&columns, columns.len() + 1),
            key: schema.key_columns(),
            before: Before { width: schema.before_columns(), columns: None, known: BooleanBuilder::new() },
            count: 0,
            bytes: 0,
            mismatches: vec![0; columns.len()],
            columns,
        }
    }

    /// Appends an item, with its old image if there is one and it is wanted.
    ///
    /// # Errors
    /// See [`ItemError`]; nothing was appended.
    pub fn append(&mut self, item: &Item, before: Option<&Item>) -> Result<(), ItemError> {
        self.has_room(item.bytes() + before.map_or(0, Item::bytes))?;
        let row = self.row(item, true)?;
        // An old image was an image once: what its column does not hold was told then.
        let old = before.map(|before| self.row(before, false)).transpose()?;
        row.mismatches.iter().for_each(|column| self.mismatches[*column] += 1);
        self.bytes += item.bytes() + before.map_or(0, Item::bytes);
        self.before.append(&self.columns, old, self.count);
        self.rows.append(row);
        self.count += 1;
        Ok(())
    }

    /// Appends what the history has of an item that is in the quarantine: `key`, the item's key alone, and its old image.
    ///
    /// # Errors
    /// See [`ItemError`]; nothing was appended.
    pub fn append_quarantined(&mut self, key: &Item, before: Option<&Item>) -> Result<(), ItemError> {
        self.has_room(key.bytes() + before.map_or(0, Item::bytes))?;
        let row = self.row(key, false)?;
        let old = before.map(|before| self.row(before, false)).transpose()?;
        self.bytes += key.bytes() + before.map_or(0, Item::bytes);
        self.before.append(&self.columns, old, self.count);
        self.rows.append(row);
        self.count += 1;
        Ok(())
    }

    /// Appends what is left of a deleted item: its old image, or its key alone.
    ///
    /// # Errors
    /// See [`ItemError`]; nothing was appended.
    pub fn append_deleted(&mut self, item: &Item) -> Result<(), ItemError> {
        self.has_room(item.bytes())?;
        let row = self.row(item, false)?;
        self.bytes += item.bytes();
        self.before.append(&self.columns, None, self.count);
        self.rows.append(row);
        self.count += 1;
        Ok(())
    }

    fn has_room(&self, bytes: usize) -> Result<(), ItemError> {
        if self.count > 0 && self.bytes + bytes > MOST_BYTES { Err(ItemError::Full) } else { Ok(()) }
    }

    /// What an item comes to; `judged`: by the columns' policies. Attributes and columns are walked together, by name.
    fn row<'a>(&self, item: &'a Item, judged: bool) -> Result<Row<'a>, ItemError> {
        let mut cells: Vec<Cell<'a>> = self.columns.iter().map(|_| Cell::Null).collect();
        let mut rest = String::new();
        let mut mismatches = Vec::new();
        let mut declared = self.by_attribute.iter().copied().peekable();
        for (name, value) in item.iter() {
            let attribute = |column: usize| self.columns[column].attribute.as_str();
            while declared.next_if(|column| attribute(*column) < name).is_some() {}
            let Some(place) = declared.next_if(|column| attribute(*column) == name) else {
                write_left(&mut rest, name, value);
                continue;
            };
            let (cell, left) = cell::take(&self.columns[place].column_type, value);
            if place < self.key && !matches!(left, Left::Nothing) {
                return Err(self.key_error(place));
            }
            if left.is_mismatch() && judged {
                self.judge(place, value)?;
                mismatches.push(place);
            }
            cells[place] = cell;
            match left {
                Left::Nothing => {}
                Left::Whole(value) => write_left(&mut rest, name, value),
                Left::Null | Left::Members { .. } => {
                    left.to_value().iter().for_each(|value| write_left(&mut rest, name, value));
                }
            }
        }
        if let Some(missing) = cells.iter().take(self.key).position(|cell| matches!(cell, Cell::Null)) {
            return Err(ItemError::KeyMissing { attribute: self.columns[missing].attribute.clone() });
        }
        if !rest.is_empty() {
            rest.push('}');
        }
        Ok(Row { cells, rest: Some(rest).filter(|rest| !rest.is_empty()), mismatches })
    }

    fn key_error(&self, place: usize) -> ItemError {
        let ItemColumn { attribute, column_type, .. } = &self.columns[place];
        ItemError::Key { attribute: attribute.clone(), declared: column_type.to_string() }
    }

    /// What the policy of a column says to a value that is not of its type.
    fn judge(&self, place: usize, value: &Value) -> Result<(), ItemError> {
        let ItemColumn { attribute, column_type, mismatch } = &self.columns[place];
        let (attribute, declared, found) = (attribute.clone(), column_type.to_string(), value.type_name());
        match mismatch {
            Mismatch::Rest => Ok(()),
            Mismatch::Fail => Err(ItemError::Mismatch { attribute, declared, found }),
            Mismatch::Quarantine => Err(ItemError::Quarantine { attribute, declared, found }),
        }
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// About how many bytes of items the rows hold.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Attributes with the number of values that their column could not hold, since this was last asked.
    pub fn take_mismatches(&mut self) -> impl Iterator<Item = (&str, u64)> {
        let taken = self.mismatches.iter_mut().map(std::mem::take);
        self.columns.iter().zip(taken).map(|(column, count)| (column.attribute.as_str(), count))
    }

    /// All rows; the builder is empty afterwards, but for the mismatches that it has counted.
    pub fn finish(&mut self) -> Rows {
        self.count = 0;
        self.bytes = 0;
        let known = self.before.known.finish();
        let before = self.before.columns.take();
        Rows {
            columns: self.rows.finish(),
            before: before.map(|mut columns| BeforeImages { known, columns: columns.finish() }),
        }
    }
}

/// Appends an attribute to an object that has no end yet.
fn write_left(rest: &mut String, name: &str, value: &Value) {
    if rest.is_empty() {
        rest.push('{');
    }
    write_name(rest, name);
    write_value(rest, value);
}

impl Columns {
    /// The first `width` columns; one more than are declared is `_rest`.
    fn new(columns: &[ItemColumn], width: usize) -> Self {
        let declared = columns.iter().take(width).map(|column| Array::new(&column.column_type)).collect();
        Self { declared, rest: (width > columns.len()).then(Array::text) }
    }

    fn append(&mut self, row: Row<'_>) {
        self.declared.iter_mut().zip(&row.cells).for_each(|(array, cell)| array.append(cell));
        if let Some(rest) = &mut self.rest {
            rest.append(&row.rest.map_or(Cell::Null, |text| Cell::Text(text.into())));
        }
    }

    fn append_null(&mut self) {
        self.declared.iter_mut().chain(&mut self.rest).for_each(Array::append_null);
    }

    fn finish(&mut self) -> Vec<ArrayRef> {
        self.declared.iter_mut().chain(&mut self.rest).map(Array::finish).collect()
    }
}

impl Before {
    fn append(&mut self, columns: &[ItemColumn], old: Option<Row<'_>>, rows: usize) {
        self.known.append_value(old.is_some());
        if old.is_some() && self.columns.is_none() {
            let mut images = Columns::new(columns, self.width);
            (0..rows).for_each(|_| images.append_null());
            self.columns = Some(images);
        }
        match (&mut self.columns, old) {
            (Some(images), Some(old)) => images.append(old),
            (Some(images), None) => images.append_null(),
            (None, _) => {}
        }
    }
}

/// Item values stay out of logs.
impl fmt::Debug for ItemBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ItemBuilder").field("rows", &self.count).finish_non_exhaustive()
    }
}
