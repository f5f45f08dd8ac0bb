//! Items to rows: the declared attributes in columns of their own, everything else in one column of canonical JSON.
//!
//! Nothing is dropped. A value that its column cannot hold, an attribute that nobody declared, and a NULL (which is not
//! the same as a missing attribute) stand in `_rest`, under the attribute's name. Where a struct has members that are not
//! declared, those stand there alone: what `_rest` has for an attribute whose column is not NULL is the remainder of it.
//! `_rest` itself is NULL when nothing is left.
//!
//! What each declared type takes stands in `types.rs`; names become columns in `names.rs`.

mod array;
mod cell;
mod row;
#[cfg(test)]
mod tests;
mod time;
mod types;

use std::sync::Arc;

use arrow_schema::DataType;
use lakehouse_core::change::{Operation, Quarantined};
use lakehouse_core::error::Problem;
use lakehouse_core::quarantine::QuarantineLimit;
use lakehouse_core::schema::{Column, Key, PartitionBy, TableName, TableSchema};

use crate::names::column_names;
use crate::value::Item;

pub use row::{ItemBuilder, ItemError, Rows};
pub use types::{ColumnType, Unit};

/// Name of the column that holds what no other column does.
pub const REST: &str = "_rest";

/// Type of a key attribute at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    S,
    N,
    B,
}

/// A key attribute at the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyAttribute {
    pub name: String,
    pub key_type: KeyType,
}

/// What to do with a value that is not of its column's type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mismatch {
    /// The column is NULL, the value stands in `_rest`.
    #[default]
    Rest,
    /// The table halts.
    Fail,
    /// The item goes to the quarantine, whole, and its key leaves the mirror.
    Quarantine,
}

/// A column that the configuration declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredColumn {
    pub attribute: String,
    /// Instead of what becomes of the attribute's name.
    pub name: Option<String>,
    pub column_type: ColumnType,
    pub mismatch: Mismatch,
}

/// What is known of a table at the source, and what the configuration says of it.
#[derive(Clone, Debug)]
pub struct ItemTable {
    /// Name at the source.
    pub source: String,
    pub mirror: TableName,
    /// The hash key, and the range key if there is one.
    pub key: Vec<KeyAttribute>,
    /// `key` of the configuration, if it says.
    pub expected_key: Option<Vec<String>>,
    /// In their order in the lake; the key comes first in any case.
    pub declared: Vec<DeclaredColumn>,
    pub partition: Vec<PartitionBy>,
    pub history: bool,
    /// Whether old images come with updates.
    pub old_images: bool,
    /// What its quarantine takes, where a column's policy says so.
    pub quarantine_limit: QuarantineLimit,
}

/// How items of a table become rows.
#[derive(Clone, Debug)]
pub struct ItemSchema {
    table: Arc<TableSchema>,
    columns: Arc<[ItemColumn]>,
    key: usize,
}

#[derive(Clone, Debug)]
struct ItemColumn {
    attribute: String,
    column_type: ColumnType,
    mismatch: Mismatch,
}

impl ItemTable {
    /// The table as the core knows it, and how items get there.
    ///
    /// # Errors
    /// A name or a key that cannot be had.
    pub fn schema(&self) -> Result<ItemSchema, Problem> {
        self.check_key()?;
        let mut columns = Vec::with_capacity(self.declared.len() + self.key.len());
        let mut names = Vec::with_capacity(columns.capacity());
        for attribute in &self.key {
            let declared = self.declared.iter().find(|column| column.attribute == attribute.name);
            let column_type = match declared {
                Some(declared) => key_column_type(attribute.key_type, &declared.column_type)
                    .ok_or_else(|| self.wrong_key_type(attribute, &declared.column_type))?,
                None => default_key_type(attribute.key_type),
            };
            names.push((attribute.name.as_str(), declared.and_then(|declared| declared.name.as_deref())));
            columns.push(ItemColumn { attribute: attribute.name.clone(), column_type, mismatch: Mismatch::Fail });
        }
        for declared in &self.declared {
            if self.key.iter().any(|key| key.name == declared.attribute) {
                continue;
            }
            names.push((&declared.attribute, declared.name.as_deref()));
            let DeclaredColumn { attribute, column_type, mismatch, .. } = declared.clone();
            columns.push(ItemColumn { attribute, column_type, mismatch });
        }
        let names = column_names(&self.source, &names)?;
        Ok(ItemSchema {
            table: Arc::new(self.table_schema(&columns, names)),
            columns: columns.into(),
            key: self.key.len(),
        })
    }

    fn table_schema(&self, columns: &[ItemColumn], names: Vec<String>) -> TableSchema {
        let column = |(place, (column, name)): (usize, (&ItemColumn, String))| Column {
            name,
            source_name: column.attribute.clone(),
            source_type: column.column_type.to_string(),
            data_type: column.column_type.data_type(),
            required: place < self.key.len(),
        };
        let mut all: Vec<Column> = columns.iter().zip(names).enumerate().map(column).collect();
        all.push(Column {
            name: REST.to_owned(),
            source_name: REST.to_owned(),
            source_type: "everything else, as canonical JSON".to_owned(),
            data_type: DataType::Utf8,
            required: false,
        });
        let before = if self.old_images { all.len() } else { self.key.len() };
        TableSchema {
            source: self.source.clone(),
            mirror: self.mirror.clone(),
            columns: all,
            key: Key::Columns((0..self.key.len()).collect()),
            before_columns: (0..before).collect(),
            partition: self.partition.clone(),
            history: self.history,
            many_lanes: true,
            quarantine: columns
                .iter()
                .any(|column| column.mismatch == Mismatch::Quarantine)
                .then_some(self.quarantine_limit),
        }
    }

    /// The mirror's key is the source's: any other would fold different items into one row.
    fn check_key(&self) -> Result<(), Problem> {
        let known = |name: &String| self.key.iter().any(|key| key.name == *name);
        let same = |expected: &Vec<String>| expected.len() == self.key.len() && expected.iter().all(known);
        if self.expected_key.as_ref().is_none_or(same) {
            return Ok(());
        }
        let key: Vec<&str> = self.key.iter().map(|key| key.name.as_str()).collect();
        let message = format!("the table's key at the source is {key:?}");
        Err(Problem::halt("CONFIG_KEY", &self.source, message, format!("write key = {key:?}, or leave it out")))
    }

    fn wrong_key_type(&self, key: &KeyAttribute, declared: &ColumnType) -> Problem {
        let may = match key.key_type {
            KeyType::S => "string",
            KeyType::N => "number, long, int or decimal(p,s)",
            KeyType::B => "binary",
        };
        let message = format!("key attribute {:?} is of type {:?} and cannot be a {declared}", key.name, key.key_type);
        Problem::halt("CONFIG_KEY", &self.source, message, format!("declare it as {may}, or leave it out"))
    }
}

/// A key's type keeps different keys apart: no floats (D50), no texts that are parsed.
fn key_column_type(key: KeyType, declared: &ColumnType) -> Option<ColumnType> {
    let may = match (key, declared) {
        // A number's text, by another name.
        (KeyType::N, ColumnType::String) => return Some(ColumnType::Number),
        (KeyType::S, declared) => *declared == ColumnType::String,
        (KeyType::B, declared) => *declared == ColumnType::Binary,
        (KeyType::N, declared) => {
            matches!(declared, ColumnType::Number | ColumnType::Long | ColumnType::Int | ColumnType::Decimal { .. })
        }
    };
    may.then(|| declared.clone())
}

/// Whole numbers of any length; keys with fractions need a declaration, and the table halts until it has one.
fn default_key_type(key: KeyType) -> ColumnType {
    match key {
        KeyType::S => ColumnType::String,
        KeyType::N => ColumnType::Decimal { precision: 38, scale: 0 },
        KeyType::B => ColumnType::Binary,
    }
}

impl ItemSchema {
    pub fn table(&self) -> &Arc<TableSchema> {
        &self.table
    }

    /// An empty builder.
    pub fn builder(&self) -> ItemBuilder {
        ItemBuilder::new(self)
    }

    /// How many of the columns, the first ones, are the key.
    fn key_columns(&self) -> usize {
        self.key
    }

    /// Attributes whose values send their item to the quarantine where they are of another type.
    pub(crate) fn quarantining(&self) -> impl Iterator<Item = &str> {
        let columns = self.columns.iter().filter(|column| column.mismatch == Mismatch::Quarantine);
        columns.map(|column| column.attribute.as_str())
    }

    /// An item's key alone.
    pub(crate) fn key_of(&self, item: &Item) -> Item {
        let names: Vec<&str> = self.columns[..self.key].iter().map(|column| column.attribute.as_str()).collect();
        item.only(&names)
    }

    /// An item that did not become a row, as the quarantine keeps it; `operation` is `None` for one that a copy has read.
    /// `None` where `why` is no reason for the quarantine.
    pub(crate) fn quarantined(
        &self,
        why: &ItemError,
        operation: Option<Operation>,
        item: &Item,
        old: Option<&Item>,
    ) -> Option<Quarantined> {
        let ItemError::Quarantine { attribute, .. } = why else { return None };
        Some(Quarantined {
            operation,
            key: self.key_of(item).canonical(),
            image: item.canonical(),
            old_image: old.map(Item::canonical),
            column: attribute.clone(),
            code: "VALUE_MISMATCH".to_owned(),
            reason: why.to_string(),
        })
    }

    /// Columns of old images: all, or those of the key.
    fn before_columns(&self) -> usize {
        self.table.before_columns.len()
    }
}
