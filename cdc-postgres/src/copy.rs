//! The copy: all tables from one exported snapshot, in parallel, by COPY in binary.
//!
//! Every worker joins the same snapshot, so all rows of all tables are of one moment: the snapshot's consistent point
//! (R43, R46). A table is cut into ranges of its heap; each range is a chunk with a commit of its own (protocol A5).

use std::sync::Arc;

use arrow_array::ArrayRef;
use bytes::Bytes;
use futures::StreamExt;
use lakehouse_core::copy::{ChunkTarget, ChunkWriter, CopyObserver, TableCopy, WrittenChunk};
use lakehouse_core::error::Problem;
use lakehouse_core::lakehouse::Lakehouse;
use lakehouse_core::position::Position;
use lakehouse_core::schema::{Key, TableSchema};
use tokio::sync::{Mutex, mpsc};
use tokio_postgres::Client;
use tracing::info;

use crate::chunk::Overflow;
use crate::config::PostgresSource;
use crate::copy_binary::{CopyError, CopyReader, CopyStep};
use crate::problem::sql_problem;
use crate::publication::PublishedTable;
use crate::tables::{SourceColumn, SourceTable, literal, qualified, quote};
use crate::validate::connect;
use crate::values::{Appended, ColumnBuilder, ColumnType, ValueError};

/// Heap pages of a chunk: 128 MiB.
const CHUNK_PAGES: i64 = 16_384;
/// Rows decoded before they are written.
const ROWS_AT_ONCE: usize = 65_536;
/// Bytes decoded before they are written.
const BYTES_AT_ONCE: usize = 16 << 20;
/// Pieces of the copy's stream between the network and the decoder.
const PIECES_AHEAD: usize = 64;

/// A table to be copied and what its publication lets through (R49).
pub(crate) struct CopyTable {
    pub(crate) table: SourceTable,
    pub(crate) published: PublishedTable,
}

/// Copies `tables` as of the exported snapshot, the largest first.
pub(crate) async fn copy_tables(
    source: &PostgresSource,
    lakehouse: &mut Lakehouse,
    mut tables: Vec<CopyTable>,
    snapshot: &str,
    consistent_point: Position,
    observer: &Arc<dyn CopyObserver>,
) -> Result<(), Problem> {
    tables.sort_by_key(|copy| std::cmp::Reverse(copy.table.bytes));
    let mut clients = Vec::new();
    for _ in 0..source.copy_workers.max(1) {
        clients.push(join_snapshot(source, snapshot).await?);
    }
    let idle = Arc::new(Mutex::new(clients));
    for table in tables {
        let name = table.table.full_name();
        info!(table = name, position = %consistent_point, "copy begins");
        observer.begin(&name, table.table.bytes);
        match copy_one(source, lakehouse, table, &idle, consistent_point, observer).await {
            Ok(rows) => info!(table = name, rows, "copy is done"),
            Err(problem) => lakehouse.give_up_copy(&name, problem)?,
        }
        observer.done(&name);
    }
    Ok(())
}

async fn copy_one(
    source: &PostgresSource,
    lakehouse: &mut Lakehouse,
    table: CopyTable,
    idle: &Arc<Mutex<Vec<Client>>>,
    consistent_point: Position,
    observer: &Arc<dyn CopyObserver>,
) -> Result<u64, Problem> {
    let mut copy = lakehouse.begin_copy(&table.table.full_name()).await?;
    copy_table(source, Arc::new(table), &mut copy, idle, observer).await?;
    let rows = copy.rows();
    lakehouse.finish_copy(copy, consistent_point).await?;
    Ok(rows)
}

pub(crate) async fn join_snapshot(source: &PostgresSource, snapshot: &str) -> Result<Client, Problem> {
    let client = connect(source).await?;
    let sql = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; SET LOCAL row_security = off",
        literal(snapshot)
    );
    client.batch_execute(&sql).await.map_err(|error| sql_problem(&source.connection.database, &error))?;
    Ok(client)
}

/// One piece of a table: rows of one heap between two pages.
struct Range {
    relation: String,
    first_page: i64,
    /// `None`: to the end, also behind what was there when the ranges were made.
    end_page: Option<i64>,
}

async fn copy_table(
    source: &PostgresSource,
    table: Arc<CopyTable>,
    copy: &mut TableCopy,
    idle: &Arc<Mutex<Vec<Client>>>,
    observer: &Arc<dyn CopyObserver>,
) -> Result<(), Problem> {
    let target = copy.target();
    let workers = source.copy_workers.max(1);
    let job = |range| Job {
        table: Arc::clone(&table),
        target: target.clone(),
        range,
        observer: Arc::clone(observer),
        batch_bytes: (source.memory / 8 / workers).clamp(1 << 20, BYTES_AT_ONCE),
    };
    let ranges = ranges(&table.table, idle).await?;
    copy.commit_chunks(workers, ranges.into_iter().map(|range| job(range).run(Arc::clone(idle)))).await
}

async fn ranges(table: &SourceTable, idle: &Mutex<Vec<Client>>) -> Result<Vec<Range>, Problem> {
    let clients = idle.lock().await;
    let mut ranges = Vec::new();
    for (relation, pages) in leaves(&clients[0], table).await? {
        let mut first_page = 0;
        while pages - first_page > CHUNK_PAGES * 3 / 2 {
            let end_page = first_page + CHUNK_PAGES;
            ranges.push(Range { relation: relation.clone(), first_page, end_page: Some(end_page) });
            first_page = end_page;
        }
        ranges.push(Range { relation, first_page, end_page: None });
    }
    Ok(ranges)
}

/// The heaps that hold a table's rows, quoted for SQL, and their pages.
async fn leaves(client: &Client, table: &SourceTable) -> Result<Vec<(String, i64)>, Problem> {
    let rows = client.query(LEAVES, &[&table.oid]).await;
    let rows = rows.map_err(|error| sql_problem(&table.full_name(), &error))?;
    let leaf = |row: tokio_postgres::Row| {
        let (schema, name): (String, String) = (row.get(0), row.get(1));
        (qualified(&schema, &name), row.get(2))
    };
    Ok(rows.into_iter().map(leaf).collect())
}

/// One chunk being copied.
struct Job {
    table: Arc<CopyTable>,
    target: ChunkTarget,
    range: Range,
    observer: Arc<dyn CopyObserver>,
    batch_bytes: usize,
}

impl Job {
    /// Takes an idle connection, reads the range over it, and gives it back.
    async fn run(self, idle: Arc<Mutex<Vec<Client>>>) -> Result<WrittenChunk, Problem> {
        let client = idle.lock().await.pop().expect("there are as many connections as jobs");
        let result = self.copy(&client).await;
        idle.lock().await.push(client);
        result
    }

    async fn copy(self, client: &Client) -> Result<WrittenChunk, Problem> {
        let Self { table, target, range, observer, batch_bytes } = self;
        let decoder = RowDecoder::new(&table.table, Arc::clone(target.schema()), batch_bytes);
        let sink = ChunkSink { writer: target.writer()?, observer, table: table.table.full_name() };
        let sink = read_range(client, &table, &range, decoder, sink).await?;
        tokio::task::block_in_place(|| sink.writer.finish())
    }
}

/// Takes decoded rows; on a thread for blocking work.
pub(crate) trait RowSink: Send + 'static {
    /// `bytes` are those of the rows on the wire.
    fn take(&mut self, schema: &TableSchema, columns: Vec<ArrayRef>, rows: u64, bytes: u64) -> Result<(), Problem>;
}

struct ChunkSink {
    writer: ChunkWriter,
    observer: Arc<dyn CopyObserver>,
    table: String,
}

impl RowSink for ChunkSink {
    fn take(&mut self, schema: &TableSchema, columns: Vec<ArrayRef>, rows: u64, bytes: u64) -> Result<(), Problem> {
        self.writer.write(schema, &columns)?;
        self.observer.advance(&self.table, rows, bytes);
        Ok(())
    }
}

/// Reads one whole table over a connection that has joined a snapshot.
pub(crate) async fn read_table(
    client: Arc<Client>,
    copy: Arc<CopyTable>,
    schema: Arc<TableSchema>,
    mut sink: impl RowSink,
) -> Result<(), Problem> {
    for leaf in leaves(&client, &copy.table).await? {
        let range = Range { relation: leaf.0, first_page: 0, end_page: None };
        let decoder = RowDecoder::new(&copy.table, Arc::clone(&schema), BYTES_AT_ONCE / 4);
        sink = read_range(&client, &copy, &range, decoder, sink).await?;
    }
    Ok(())
}

async fn read_range<S: RowSink>(
    client: &Client,
    copy: &CopyTable,
    range: &Range,
    decoder: RowDecoder,
    sink: S,
) -> Result<S, Problem> {
    let name = copy.table.full_name();
    let failed = |error: tokio_postgres::Error| sql_problem(&name, &error);
    let stream = client.copy_out(&range_sql(copy, range)).await.map_err(failed)?;
    let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
    // Decoding and compressing are work for a thread of their own: the reactor has keepalives to answer.
    let decoding = tokio::task::spawn_blocking(move || decoder.run(receiver, sink));
    let mut pieces = Box::pin(stream.ready_chunks(1024));
    let mut failure = None;
    while let Some(pieces) = pieces.next().await {
        match pieces.into_iter().collect::<Result<Vec<Bytes>, _>>() {
            Ok(pieces) => {
                // Where nobody listens any more the decoder has stopped: it says why.
                if sender.send(pieces).await.is_err() {
                    break;
                }
            }
            Err(error) => {
                failure = Some(failed(error));
                break;
            }
        }
    }
    drop(sender);
    let sink = decoding.await.unwrap_or_else(|_| Err(interrupted(&copy.table)));
    if let Some(failure) = failure {
        return Err(failure);
    }
    check_heap(client, &name, &range.relation).await?;
    sink
}

/// TRUNCATE and rewriting ALTER TABLE are not MVCC-safe: a snapshot from before them finds the table empty behind them.
/// The reading transaction sees pg_class as of its snapshot, but the file that it reads is the present one; its lock
/// keeps it from changing from the read to here, so when both agree the rows are those of the snapshot.
async fn check_heap(client: &Client, table: &str, relation: &str) -> Result<(), Problem> {
    let row = client.query_opt(SAME_HEAP, &[&relation]).await.map_err(|error| sql_problem(table, &error))?;
    if row.is_some_and(|row| row.get(0)) {
        return Ok(());
    }
    let message = "the table was truncated or rewritten before it could be read as of the snapshot";
    Err(Problem::retry("TABLE_REWRITTEN", table, message))
}

fn range_sql(copy: &CopyTable, range: &Range) -> String {
    let column = |column: &SourceColumn| {
        format!("{}{}", quote(&column.name), column.column_type.copy_cast().unwrap_or_default())
    };
    let columns: Vec<String> = copy.table.columns.iter().map(column).collect();
    let Range { relation, first_page, end_page } = range;
    let mut conditions = Vec::new();
    if *first_page > 0 {
        conditions.push(format!("ctid >= '({first_page},0)'::tid"));
    }
    conditions.extend(end_page.map(|end| format!("ctid < '({end},0)'::tid")));
    conditions.extend(copy.published.row_filter.as_ref().map(|filter| format!("({filter})")));
    let condition = match conditions.is_empty() {
        true => String::new(),
        false => format!(" WHERE {}", conditions.join(" AND ")),
    };
    format!("COPY (SELECT {} FROM ONLY {relation}{condition}) TO STDOUT (FORMAT binary)", columns.join(", "))
}

/// Rows being decoded, column by column.
struct RowDecoder {
    table: String,
    builders: Vec<ColumnBuilder>,
    names: Vec<String>,
    key: Vec<usize>,
    schema: Arc<TableSchema>,
    overflow: Overflow,
    count: usize,
    bytes: usize,
    /// Bytes after which rows are handed on.
    limit: usize,
}

#[derive(Debug, thiserror::Error)]
enum RowError {
    #[error("{0}")]
    Copy(#[from] CopyError),
    #[error("column {column:?}: {source}")]
    Value { column: String, source: ValueError },
    #[error("column {0:?} is part of the key and holds a value that its type in the lake cannot hold")]
    KeyOverflow(String),
}

impl RowDecoder {
    fn new(table: &SourceTable, schema: Arc<TableSchema>, limit: usize) -> Self {
        let types: Vec<&ColumnType> = table.columns.iter().map(|column| &column.column_type).collect();
        let key = match &schema.key {
            Key::Columns(key) => key.clone(),
            Key::WholeRow | Key::None => Vec::new(),
        };
        Self {
            table: table.full_name(),
            builders: types.iter().map(|column_type| ColumnBuilder::new(column_type, 1024)).collect(),
            names: table.columns.iter().map(|column| column.name.clone()).collect(),
            key,
            schema,
            overflow: Overflow::default(),
            count: 0,
            bytes: 0,
            limit,
        }
    }

    fn run<S: RowSink>(mut self, mut pieces: mpsc::Receiver<Vec<Bytes>>, mut sink: S) -> Result<S, Problem> {
        let mut reader = CopyReader::new(self.builders.len());
        let mut ended = false;
        while let Some(some) = pieces.blocking_recv() {
            for piece in some {
                self.bytes += piece.len();
                reader.push(piece);
                loop {
                    match self.next(&mut reader).map_err(|error| unreadable(&self.table, &error))? {
                        CopyStep::Row => {}
                        CopyStep::Incomplete => break,
                        CopyStep::End => {
                            ended = true;
                            break;
                        }
                    }
                }
                if self.count >= ROWS_AT_ONCE || self.bytes >= self.limit {
                    self.hand_on(&mut sink)?;
                }
            }
        }
        if !ended {
            return Err(Problem::retry("COPY", self.table, "the copy ended before its trailer"));
        }
        self.hand_on(&mut sink)?;
        Ok(sink)
    }

    fn next(&mut self, reader: &mut CopyReader) -> Result<CopyStep, RowError> {
        let (builders, names, key, overflow, row) =
            (&mut self.builders, &self.names, &self.key, &mut self.overflow, self.count);
        let schema = &self.schema;
        let step = reader.next_row(|column, value| {
            let builder = &mut builders[column];
            let appended = match value {
                None => {
                    builder.append_null();
                    return Ok(());
                }
                Some(value) => builder.append_binary(value),
            };
            match appended {
                Ok(Appended::Stored) => Ok(()),
                Ok(Appended::Overflow(_)) if key.contains(&column) => Err(RowError::KeyOverflow(names[column].clone())),
                Ok(Appended::Overflow(text)) => {
                    overflow.add(row, schema.columns[column].name.clone(), text);
                    Ok(())
                }
                Err(source) => Err(RowError::Value { column: names[column].clone(), source }),
            }
        })?;
        self.count += usize::from(step == CopyStep::Row);
        Ok(step)
    }

    fn hand_on(&mut self, sink: &mut impl RowSink) -> Result<(), Problem> {
        if self.count == 0 {
            return Ok(());
        }
        let mut columns: Vec<ArrayRef> = self.builders.iter_mut().map(ColumnBuilder::finish).collect();
        if let Some(overflow) = self.overflow.finish(self.count, self.schema.has_overflow()) {
            self.schema = self.schema.with_overflow();
            columns.push(overflow);
        }
        let (rows, bytes) = (std::mem::take(&mut self.count), std::mem::take(&mut self.bytes));
        sink.take(&self.schema, columns, rows as u64, bytes as u64)
    }
}

fn unreadable(table: &str, error: &RowError) -> Problem {
    let code = match error {
        RowError::KeyOverflow(_) => "KEY_UNMAPPABLE",
        RowError::Copy(_) | RowError::Value { .. } => "ROW_UNREADABLE",
    };
    Problem::halt_table(
        code,
        table,
        format!("a copied row cannot be taken: {error}"),
        "exclude the table and report this",
    )
}

fn interrupted(table: &SourceTable) -> Problem {
    Problem::retry("INTERRUPTED", table.full_name(), "the copy was interrupted")
}

const SAME_HEAP: &str = "
    SELECT relfilenode = pg_catalog.pg_relation_filenode(oid) FROM pg_catalog.pg_class
    WHERE oid = pg_catalog.to_regclass($1)";

const LEAVES: &str = "
    SELECT n.nspname, c.relname, pg_catalog.pg_relation_size(c.oid) / current_setting('block_size')::bigint
    FROM (SELECT relid FROM pg_catalog.pg_partition_tree($1::oid::regclass) WHERE isleaf UNION SELECT $1::oid) t
    JOIN pg_catalog.pg_class c ON c.oid = t.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' ORDER BY 1, 2";
