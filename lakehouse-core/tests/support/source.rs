//! The script as a source: whole transactions in chunks, boundaries, and a memory of what was acknowledged.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::{ArrayRef, BooleanArray, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow_schema::{DataType, TimeUnit};
use fastrand::Rng;
use lakehouse_core::change::{BeforeImages, ChangeChunk, Operation, Origin, UnchangedColumn};
use lakehouse_core::commit::DurablePosition;
use lakehouse_core::error::Problem;
use lakehouse_core::position::Position;
use lakehouse_core::source::{ChangeSource, SourceEvent};

use super::Violation;
use super::catalog::Ground;
use super::script::{Act, Cell, Change, Identity, Row, Script, Table, Transaction};

/// What the source's server remembers: the slot.
pub struct Slot {
    ground: Arc<Ground>,
    acknowledged: Mutex<Position>,
    violation: Mutex<Option<Violation>>,
}

impl Slot {
    pub fn new(ground: Arc<Ground>, consistent_point: Position) -> Arc<Self> {
        Arc::new(Self { ground, acknowledged: Mutex::new(consistent_point), violation: Mutex::new(None) })
    }

    pub fn acknowledged(&self) -> Position {
        *self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing was acknowledged that the cut of that time did not hold.
    pub fn check(&self) -> Result<(), Violation> {
        self.violation.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    fn acknowledge(&self, position: Position) {
        let cut = self.ground.cut();
        if position > cut {
            let detail = format!("{position} is acknowledged while the cut stands at {cut}");
            let mut violation = self.violation.lock().unwrap_or_else(PoisonError::into_inner);
            violation.get_or_insert(Violation::new("acknowledged beyond the cut", detail));
        }
        let mut acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        *acknowledged = position.max(*acknowledged);
    }
}

/// How changes are put into chunks.
#[derive(Clone, Debug)]
pub struct Chunking {
    /// Transactions between two boundaries, at most.
    pub group: usize,
    /// Changes of a chunk, at most.
    pub rows: usize,
}

impl Chunking {
    pub fn random(rng: &mut Rng) -> Self {
        Self { group: rng.usize(1..4), rows: [1, 2, 3, 100][rng.usize(..4)] }
    }
}

pub struct ScriptedSource {
    slot: Arc<Slot>,
    events: VecDeque<SourceEvent>,
    /// Fails instead of delivering the event with this number.
    fails_at: Option<usize>,
    delivered: usize,
}

impl ScriptedSource {
    /// Delivers every transaction that ends behind `from`.
    pub fn open(script: &Script, slot: &Arc<Slot>, from: Position, chunking: &Chunking, rng: &mut Rng) -> Self {
        let mut events = VecDeque::new();
        let mut rest: &[Transaction] = &script.transactions;
        rest = &rest[rest.partition_point(|transaction| transaction.end <= from)..];
        while !rest.is_empty() {
            let (group, behind) = rest.split_at(rng.usize(1..=chunking.group).min(rest.len()));
            rest = behind;
            events.extend(chunks(script, group, chunking.rows).into_iter().map(SourceEvent::Changes));
            let last = group.last().expect("a group is not empty");
            events.push_back(SourceEvent::Boundary(last.end.into()));
            events.extend(last.keepalive.map(|end| SourceEvent::Boundary(end.into())));
        }
        // The server's end of the log is told also when no transaction is left.
        events.push_back(SourceEvent::Boundary(script.end().into()));
        Self::of(slot, events)
    }

    pub fn of(slot: &Arc<Slot>, events: impl IntoIterator<Item = SourceEvent>) -> Self {
        let events = events.into_iter().chain([SourceEvent::End]).collect();
        Self { slot: Arc::clone(slot), events, fails_at: None, delivered: 0 }
    }

    /// Stays silent behind its last event instead of ending.
    pub fn without_end(mut self) -> Self {
        self.events.retain(|event| !matches!(event, SourceEvent::End));
        self
    }

    /// Loses its connection instead of delivering the event with this number.
    pub fn failing_at(mut self, event: usize) -> Self {
        self.fails_at = Some(event);
        self
    }
}

impl ChangeSource for ScriptedSource {
    async fn next(&mut self) -> Result<SourceEvent, Problem> {
        // As with a real stream, others get on between two events.
        tokio::task::yield_now().await;
        if self.fails_at == Some(self.delivered) {
            return Err(Problem::retry("SOURCE_LOST", "", "the scripted connection broke"));
        }
        self.delivered += 1;
        match self.events.pop_front() {
            Some(event) => Ok(event),
            None => std::future::pending().await,
        }
    }

    fn acknowledge(&self, durable: &DurablePosition) {
        self.slot.acknowledge(durable.get());
    }
}

/// A table's changes stay in order; a chunk holds one table with one schema.
pub fn chunks(script: &Script, transactions: &[Transaction], rows: usize) -> Vec<ChangeChunk> {
    let mut open: Vec<Vec<(Change, Origin)>> = vec![vec![]; script.tables.len()];
    let mut done = Vec::new();
    for transaction in transactions {
        for (ordinal, change) in transaction.changes.iter().enumerate() {
            let changes = &mut open[change.table];
            let wider = changes.first().is_some_and(|(first, _)| first.width != change.width);
            if wider || changes.len() >= rows {
                done.push(chunk(&script.tables[change.table], &std::mem::take(changes)));
            }
            let origin = Origin {
                commit: transaction.end,
                committed_at: transaction.committed_at,
                transaction: transaction.number,
                ordinal: i32::try_from(ordinal).expect("a transaction is small"),
            };
            changes.push((change.clone(), origin));
        }
    }
    for (table, changes) in open.into_iter().enumerate().filter(|(_, changes)| !changes.is_empty()) {
        done.push(chunk(&script.tables[table], &changes));
    }
    done
}

fn chunk(table: &Table, changes: &[(Change, Origin)]) -> ChangeChunk {
    let width = changes[0].0.width;
    let schema = table.schema(width);
    let nothing: Row = vec![None; width];
    let images = changes.iter().map(|(change, _)| match &change.act {
        Act::Insert(row) => (Operation::Insert, row.clone(), None, vec![]),
        Act::Delete(row) if table.identity == Identity::Key => {
            let mut row = row.clone();
            row[1..].fill(None);
            (Operation::Delete, row, None, vec![])
        }
        Act::Delete(row) => (Operation::Delete, row.clone(), None, vec![]),
        Act::Truncate => (Operation::Truncate, nothing.clone(), None, vec![]),
        Act::Update { old, new, left_out } => {
            let mut sent = new.clone();
            left_out.iter().for_each(|&column| sent[column] = None);
            let before = (table.identity != Identity::Key || old[0] != new[0]).then(|| old.clone());
            (Operation::Update, sent, before, left_out.clone())
        }
    });
    let images: Vec<(Operation, Row, Option<Row>, Vec<usize>)> = images.collect();
    let rows: Vec<Row> = images.iter().map(|image| image.1.clone()).collect();
    let old: Vec<Row> = images.iter().map(|image| image.2.clone().unwrap_or_else(|| nothing.clone())).collect();
    let before = BeforeImages {
        known: images.iter().map(|image| Some(image.2.is_some())).collect(),
        columns: schema.before_columns.iter().map(|&column| array(table, &old, column)).collect(),
    };
    let left_out = |column: usize| -> BooleanArray { images.iter().map(|i| Some(i.3.contains(&column))).collect() };
    let unchanged = (0..width).map(|column| UnchangedColumn { column, rows: left_out(column) });
    ChangeChunk {
        lanes: None,
        quarantined: Vec::new(),
        operations: images.iter().map(|image| image.0).collect(),
        origins: changes.iter().map(|(_, origin)| *origin).collect(),
        rows: columns(table, &rows, width),
        before: (!schema.before_columns.is_empty()).then_some(before),
        unchanged: unchanged.filter(|cells| cells.rows.true_count() > 0).collect(),
        schema,
    }
}

/// Rows as one array per column.
pub fn columns(table: &Table, rows: &[Row], width: usize) -> Vec<ArrayRef> {
    (0..width).map(|column| array(table, rows, column)).collect()
}

fn array(table: &Table, rows: &[Row], column: usize) -> ArrayRef {
    let cells = rows.iter().map(|row| row.get(column).cloned().flatten());
    let number = |cell: Option<Cell>| match cell {
        Some(Cell::Int(value)) => Some(value),
        Some(Cell::Text(value)) => panic!("a number was expected, not {value}"),
        None => None,
    };
    match &table.columns[column].1 {
        DataType::Int64 => Arc::new(cells.map(number).collect::<Int64Array>()),
        DataType::Timestamp(TimeUnit::Microsecond, None) => {
            Arc::new(cells.map(number).collect::<TimestampMicrosecondArray>())
        }
        DataType::Utf8 => {
            let word = |cell: Option<Cell>| match cell {
                Some(Cell::Text(value)) => Some(value),
                Some(Cell::Int(value)) => panic!("a text was expected, not {value}"),
                None => None,
            };
            Arc::new(cells.map(word).collect::<StringArray>())
        }
        other => panic!("no scripted column has type {other}"),
    }
}
