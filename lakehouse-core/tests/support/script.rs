//! A database as a script of transactions, and the oracle: what must stand in the lake at a position.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_schema::DataType;
use lakehouse_core::position::Position;
use lakehouse_core::schema::{Column, Key, TableName, TableSchema};

/// Positions begin just below a 32-bit limit, so that their text changes its form on the way.
const BEGIN: u64 = 0xFFFF_FE00;
const STEP: u64 = 0x100;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    Int(i64),
    Text(String),
}

/// Cells in the order of the table's columns. NULLs at the end may be missing.
pub type Row = Vec<Option<Cell>>;

pub fn int(value: i64) -> Option<Cell> {
    Some(Cell::Int(value))
}

pub fn text(value: &str) -> Option<Cell> {
    Some(Cell::Text(value.to_owned()))
}

/// `id`, `note`, `amount`: the columns of most tables here.
pub fn plain(id: i64, note: &str, amount: i64) -> Row {
    vec![int(id), text(note), int(amount)]
}

/// A row without the NULLs at its end: a column added later does not change it.
pub fn trimmed(mut row: Row) -> Row {
    while row.last() == Some(&None) {
        row.pop();
    }
    row
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The first column; old images hold the key only.
    Key,
    /// The first column; old images are whole.
    KeyFull,
    /// No key; old images are whole.
    WholeRow,
    /// Neither key nor old images: inserts and truncates only.
    Nothing,
}

#[derive(Clone, Debug)]
pub struct Table {
    /// Name at the source.
    pub name: &'static str,
    /// All columns that the table ever has; it begins with `initial` of them.
    pub columns: Vec<(&'static str, DataType)>,
    pub initial: usize,
    pub identity: Identity,
    pub history: bool,
    pub partition: Vec<&'static str>,
}

impl Table {
    pub fn new(name: &'static str, identity: Identity) -> Self {
        let columns = vec![
            ("id", DataType::Int64),
            ("note", DataType::Utf8),
            ("amount", DataType::Int64),
            ("extra", DataType::Int64),
        ];
        Self { name, columns, initial: 3, identity, history: false, partition: vec![] }
    }

    pub fn with_history(mut self) -> Self {
        self.history = true;
        self
    }

    pub fn mirror(&self) -> TableName {
        TableName::new("lake", self.name.rsplit('.').next().expect("split yields something"))
    }

    pub fn has_mirror(&self) -> bool {
        self.identity != Identity::Nothing
    }

    pub fn has_history(&self) -> bool {
        self.history || !self.has_mirror()
    }

    /// The table as its source describes it while it has `width` columns.
    pub fn schema(&self, width: usize) -> Arc<TableSchema> {
        let keyed = matches!(self.identity, Identity::Key | Identity::KeyFull);
        let columns = self.columns[..width].iter().enumerate().map(|(place, (name, data_type))| Column {
            name: (*name).to_owned(),
            source_name: (*name).to_owned(),
            source_type: "scripted".to_owned(),
            data_type: data_type.clone(),
            required: keyed && place == 0,
        });
        Arc::new(TableSchema {
            many_lanes: false,
            quarantine: None,
            source: self.name.to_owned(),
            mirror: self.mirror(),
            columns: columns.collect(),
            key: match self.identity {
                Identity::Key | Identity::KeyFull => Key::Columns(vec![0]),
                Identity::WholeRow => Key::WholeRow,
                Identity::Nothing => Key::None,
            },
            before_columns: self.before_columns(width),
            partition: self.partition.iter().map(|by| by.parse().expect("a partition field")).collect(),
            history: self.history,
        })
    }

    pub fn before_columns(&self, width: usize) -> Vec<usize> {
        match self.identity {
            Identity::Key => vec![0],
            Identity::KeyFull | Identity::WholeRow => (0..width).collect(),
            Identity::Nothing => vec![],
        }
    }
}

#[derive(Clone, Debug)]
pub enum Act {
    Insert(Row),
    /// `left_out`: columns whose value did not change and is not sent.
    Update {
        old: Row,
        new: Row,
        left_out: Vec<usize>,
    },
    Delete(Row),
    Truncate,
}

#[derive(Clone, Debug)]
pub struct Change {
    /// Index into [`Script::tables`].
    pub table: usize,
    /// Columns that the table has.
    pub width: usize,
    pub act: Act,
}

#[derive(Clone, Debug)]
pub struct Transaction {
    pub end: Position,
    pub committed_at: i64,
    pub number: i64,
    pub changes: Vec<Change>,
    /// A boundary without changes comes behind it.
    pub keepalive: Option<Position>,
}

/// The whole life of a database.
#[derive(Clone, Debug)]
pub struct Script {
    pub tables: Vec<Table>,
    pub transactions: Vec<Transaction>,
    /// Where the copy reads the tables.
    pub consistent_point: Position,
}

/// A change as the history must tell it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told {
    pub position: u64,
    pub ordinal: i64,
    pub operation: String,
    pub committed_at: i64,
    pub transaction: i64,
    pub row: Row,
    pub before: Option<Row>,
}

impl Script {
    /// The last boundary.
    pub fn end(&self) -> Position {
        let last = self.transactions.last();
        last.map_or(self.consistent_point, |last| last.keepalive.unwrap_or(last.end))
    }

    /// Every position at which no transaction is open.
    pub fn boundaries(&self) -> BTreeSet<Position> {
        let ends = self.transactions.iter().flat_map(|transaction| [Some(transaction.end), transaction.keepalive]);
        ends.flatten().chain([self.consistent_point]).collect()
    }

    pub fn table(&self, name: &str) -> usize {
        self.tables.iter().position(|table| table.name == name).expect("a table of the script")
    }

    /// Columns that a table has behind every transaction up to `position`.
    pub fn width(&self, table: usize, position: Position) -> usize {
        let past = self.transactions.iter().take_while(|transaction| transaction.end <= position);
        let changes = past.flat_map(|transaction| &transaction.changes).filter(|change| change.table == table);
        changes.map(|change| change.width).max().unwrap_or(self.tables[table].initial)
    }

    /// The rows of a table after every transaction up to `position`: sorted, each as often as it stands there.
    pub fn rows_at(&self, table: usize, position: Position) -> Vec<Row> {
        let mut rows: BTreeMap<Row, usize> = BTreeMap::new();
        let remove = |rows: &mut BTreeMap<Row, usize>, row: &Row| {
            let row = trimmed(row.clone());
            let count =
                rows.get_mut(&row).unwrap_or_else(|| panic!("the script removes a row that is not there: {row:?}"));
            *count -= 1;
            if *count == 0 {
                rows.remove(&row);
            }
        };
        for transaction in self.transactions.iter().take_while(|transaction| transaction.end <= position) {
            for change in transaction.changes.iter().filter(|change| change.table == table) {
                match &change.act {
                    Act::Insert(row) => *rows.entry(trimmed(row.clone())).or_default() += 1,
                    Act::Update { old, new, .. } => {
                        remove(&mut rows, old);
                        *rows.entry(trimmed(new.clone())).or_default() += 1;
                    }
                    Act::Delete(row) => remove(&mut rows, row),
                    Act::Truncate => rows.clear(),
                }
            }
        }
        rows.into_iter().flat_map(|(row, count)| std::iter::repeat_n(row, count)).collect()
    }

    /// The changes of a table in `(from, to]`, in source order.
    pub fn told(&self, table: usize, from: Position, to: Position) -> Vec<Told> {
        let mut told = Vec::new();
        let wanted = |transaction: &&Transaction| transaction.end > from && transaction.end <= to;
        for transaction in self.transactions.iter().filter(wanted) {
            for (ordinal, change) in transaction.changes.iter().enumerate().filter(|(_, c)| c.table == table) {
                let (operation, row, before) = self.images(change);
                told.push(Told {
                    position: transaction.end.offset(),
                    ordinal: ordinal as i64,
                    operation: operation.to_owned(),
                    committed_at: transaction.committed_at,
                    transaction: transaction.number,
                    row: trimmed(row),
                    before: before.map(trimmed),
                });
            }
        }
        told
    }

    /// Operation, the row as the history tells it, and the old image where the source sends one.
    fn images(&self, change: &Change) -> (&'static str, Row, Option<Row>) {
        let identity = self.tables[change.table].identity;
        let key_of = |row: &Row| row[..1].to_vec();
        match &change.act {
            Act::Insert(row) => ("insert", row.clone(), None),
            Act::Truncate => ("truncate", vec![], None),
            Act::Delete(row) if identity == Identity::Key => ("delete", key_of(row), None),
            Act::Delete(row) => ("delete", row.clone(), None),
            Act::Update { old, new, .. } => {
                let before = match identity {
                    Identity::Key => (old[0] != new[0]).then(|| key_of(old)),
                    _ => Some(old.clone()),
                };
                ("update", new.clone(), before)
            }
        }
    }
}

/// Writes a script, keeping the database that it comes to.
pub struct Database {
    script: Script,
    rows: Vec<Vec<Row>>,
    widths: Vec<usize>,
    /// Whole days since 1970 at which transactions commit.
    pub day: i64,
}

impl Database {
    pub fn new(tables: Vec<Table>) -> Self {
        let (rows, widths) = (vec![vec![]; tables.len()], tables.iter().map(|table| table.initial).collect());
        let script = Script { tables, transactions: vec![], consistent_point: Position::new(BEGIN) };
        Self { script, rows, widths, day: 20_000 }
    }

    pub fn done(self) -> Script {
        self.script
    }

    /// The copy reads the tables as they are now.
    pub fn copy_here(&mut self) {
        self.script.consistent_point = self.script.end();
    }

    pub fn transaction(&mut self, work: impl FnOnce(&mut Writer<'_>)) -> Position {
        let number = self.script.transactions.len() as i64 + 1;
        let end = Position::new(BEGIN + number.unsigned_abs() * STEP);
        let mut writer = Writer { database: self, changes: vec![] };
        work(&mut writer);
        let changes = writer.changes;
        let committed_at = self.day * 86_400_000_000 + number * 1_000;
        let transaction = Transaction { end, committed_at, number: 700 + number, changes, keepalive: None };
        self.script.transactions.push(transaction);
        end
    }

    pub fn keepalive(&mut self) {
        if let Some(last) = self.script.transactions.last_mut() {
            last.keepalive = Some(Position::new(last.end.offset() + STEP / 4));
        }
    }

    /// One more column from the next change on.
    pub fn add_column(&mut self, table: usize) {
        if self.widths[table] < self.script.tables[table].columns.len() {
            self.widths[table] += 1;
            let width = self.widths[table];
            self.rows[table].iter_mut().for_each(|row| row.resize(width, None));
        }
    }
}

/// The changes of one transaction.
pub struct Writer<'a> {
    database: &'a mut Database,
    changes: Vec<Change>,
}

impl Writer<'_> {
    fn push(&mut self, table: usize, act: Act) {
        self.changes.push(Change { table, width: self.database.widths[table], act });
    }

    fn widened(&self, table: usize, mut row: Row) -> Row {
        row.resize(self.database.widths[table], None);
        row
    }

    fn place(&self, table: usize, row: impl Fn(&Row) -> bool) -> usize {
        self.database.rows[table].iter().position(row).expect("the script changes a row that is there")
    }

    pub fn rows(&self, table: usize) -> &[Row] {
        &self.database.rows[table]
    }

    pub fn insert(&mut self, table: usize, row: Row) {
        let row = self.widened(table, row);
        self.database.rows[table].push(row.clone());
        self.push(table, Act::Insert(row));
    }

    /// Changes the row with this id; the columns of `left_out` must not change.
    pub fn update(&mut self, table: usize, id: i64, change: impl FnOnce(&mut Row), left_out: &[usize]) {
        let place = self.place(table, |row| row[0] == int(id));
        let old = self.database.rows[table][place].clone();
        let mut new = old.clone();
        change(&mut new);
        assert!(left_out.iter().all(|&column| old[column] == new[column]), "a left-out value does not change");
        self.database.rows[table][place] = new.clone();
        self.push(table, Act::Update { old, new, left_out: left_out.to_vec() });
    }

    /// Adds to the amount; everything else stays.
    pub fn add(&mut self, table: usize, id: i64, amount: i64, left_out: &[usize]) {
        let add = |row: &mut Row| {
            let Some(Cell::Int(old)) = row[2] else { panic!("an amount is a number") };
            row[2] = int(old + amount);
        };
        self.update(table, id, add, left_out);
    }

    pub fn delete(&mut self, table: usize, id: i64) {
        let place = self.place(table, |row| row[0] == int(id));
        let old = self.database.rows[table].remove(place);
        self.push(table, Act::Delete(old));
    }

    /// Deletes one of the rows with this content.
    pub fn delete_row(&mut self, table: usize, row: &Row) {
        let row = self.widened(table, row.clone());
        let place = self.place(table, |other| *other == row);
        self.database.rows[table].remove(place);
        self.push(table, Act::Delete(row));
    }

    /// Changes one of the rows with this content.
    pub fn update_row(&mut self, table: usize, old: &Row, new: Row) {
        let (old, new) = (self.widened(table, old.clone()), self.widened(table, new));
        let place = self.place(table, |other| *other == old);
        self.database.rows[table][place] = new.clone();
        self.push(table, Act::Update { old, new, left_out: vec![] });
    }

    pub fn truncate(&mut self, table: usize) {
        self.database.rows[table].clear();
        self.push(table, Act::Truncate);
    }
}
