//! `verify`: the source's rows against the mirror's, both at one position.
//!
//! The source is read in a snapshot that a temporary slot exports, so its position is known exactly and nothing is
//! locked. The mirror is brought to that position through its history: a state at or before it, and the changes from there.
//! Without a history, keys that differ are looked at again with a later snapshot, until they agree or have differed each
//! time; a key that was not compared is never called equal.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::SchemaRef as ArrowSchemaRef;
use futures::StreamExt;
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::properties::{self, TableState};
use lakehouse_core::commit::{CONTROL_NAMESPACE, ControlState, Cut, recorded_cuts};
use lakehouse_core::compare::{Comparison, Limits, RowStream, Sample, Side, TableComparison, compare, table_rows};
use lakehouse_core::error::Problem;
use lakehouse_core::fold::{Fold, Range, history_begins};
use lakehouse_core::lakehouse::Environment;
use lakehouse_core::position::Position;
use lakehouse_core::read::{Projection, TableReader, fit};
use lakehouse_core::schema::{Key, OVERFLOW, TableName, TableSchema};
use lakehouse_core::storage::Storage;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_postgres::Client;

use crate::config::PostgresSource;
use crate::copy::{CopyTable, RowSink, join_snapshot, read_table};
use crate::problem::{connect_problem, wal_problem};
use crate::publication::Publications;
use crate::tables::captured_tables;
use crate::validate::connect;
use crate::walsender::Walsender;

/// How long a cut may take to reach the source's position.
const CUT_DEADLINE: Duration = Duration::from_secs(300);
/// Looks at a key of a table without history before it counts as differing.
const LOOKS: usize = 4;

/// What to compare.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// Mirrors, `namespace.table`; none: all of the pipeline.
    pub tables: Vec<String>,
    /// Compare the mirror at this past cut with the history folded to it, instead of the source.
    pub cut: Option<Position>,
    /// Samples carry the keys' values instead of their digests.
    pub show_keys: bool,
}

/// The answer (`design/interface.md` section 2).
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    pub verdict: &'static str,
    pub position: Position,
    /// `source` or `history`.
    pub against: &'static str,
    pub tables: Vec<TableVerdict>,
}

/// The verdict on one table.
#[derive(Clone, Debug, Serialize)]
pub struct TableVerdict {
    pub table: String,
    pub verdict: &'static str,
    pub source_rows: u64,
    pub mirror_rows: u64,
    pub only_in_source: u64,
    pub only_in_mirror: u64,
    pub differing: u64,
    pub samples: Vec<Sample>,
}

/// Compares; reads both sides and writes nothing.
pub async fn verify(
    source: &PostgresSource,
    environment: Environment,
    options: VerifyOptions,
) -> Result<VerifyReport, Problem> {
    match options.cut {
        Some(position) => against_history(source, &environment, &options, position).await,
        None => against_source(source, &environment, &options).await,
    }
}

impl VerifyReport {
    fn new(position: Position, against: &'static str, tables: Vec<TableVerdict>) -> Self {
        let equal = tables.iter().all(|table| table.verdict == EQUAL);
        Self { verdict: if equal { EQUAL } else { DIFFERENT }, position, against, tables }
    }
}

const EQUAL: &str = "equal";
const DIFFERENT: &str = "different";

impl TableVerdict {
    fn new(table: String, found: TableComparison) -> Self {
        Self {
            table,
            verdict: if found.is_equal() { EQUAL } else { DIFFERENT },
            source_rows: found.source_rows,
            mirror_rows: found.mirror_rows,
            only_in_source: found.only_in_source,
            only_in_mirror: found.only_in_mirror,
            differing: found.differing,
            samples: found.samples,
        }
    }
}

/// The source in one exported snapshot.
struct SourceSnapshot {
    client: Arc<Client>,
    position: Position,
    /// The snapshot lives while this connection does nothing else.
    _holder: Walsender,
}

impl SourceSnapshot {
    async fn take(source: &PostgresSource) -> Result<Self, Problem> {
        let connected = Walsender::connect(&source.connection).await;
        let mut holder = connected.map_err(|error| connect_problem(&source.connection.host, &error))?;
        let name = format!("lakehouse_verify_{:016x}", fastrand::u64(..));
        let created = holder.create_slot(&name, true).await.map_err(|error| wal_problem(&name, &error))?;
        let client = Arc::new(join_snapshot(source, &created.snapshot_name).await?);
        Ok(Self { client, position: Position::new(created.consistent_point), _holder: holder })
    }
}

async fn against_source(
    source: &PostgresSource,
    environment: &Environment,
    options: &VerifyOptions,
) -> Result<VerifyReport, Problem> {
    let client = connect(source).await?;
    let publications = Publications::find(&client, source).await?;
    let snapshot = SourceSnapshot::take(source).await?;
    wait_for_cut(source, environment, snapshot.position).await?;
    let mut verdicts = Vec::new();
    for mut table in captured_tables(&client, source).await? {
        let Some(published) = publications.of(&table).cloned() else {
            continue;
        };
        if let Some(columns) = &published.columns {
            table.columns.retain(|column| columns.contains(&column.name));
        }
        let schema = table.table_schema(source)?;
        if !schema.has_mirror() || !is_wanted(&schema.mirror, options) {
            continue;
        }
        let copy = Arc::new(CopyTable { table, published });
        let verified = Verified { environment, schema: &schema, copy, source, options };
        verdicts.push(TableVerdict::new(schema.mirror.to_string(), verified.compare(&snapshot).await?));
    }
    Ok(VerifyReport::new(snapshot.position, "source", verdicts))
}

fn is_wanted(mirror: &TableName, options: &VerifyOptions) -> bool {
    options.tables.is_empty() || options.tables.contains(&mirror.to_string())
}

async fn wait_for_cut(source: &PostgresSource, environment: &Environment, position: Position) -> Result<Cut, Problem> {
    let begun = tokio::time::Instant::now();
    loop {
        let state = ControlState::read(&*environment.catalog, &source.pipeline).await?;
        let cut = state.and_then(|(state, _)| state.cut);
        match cut {
            Some(cut) if cut.position >= position => return Ok(cut),
            _ if begun.elapsed() > CUT_DEADLINE => {
                let message = format!("no cut has reached {position}, the source's position");
                let remedy = "start the pipeline, or see `lakehouse status` for why it stands still";
                return Err(Problem::halt("VERIFY_BEHIND", &source.pipeline, message, remedy));
            }
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// One table being compared with the source.
struct Verified<'a> {
    environment: &'a Environment,
    schema: &'a TableSchema,
    copy: Arc<CopyTable>,
    source: &'a PostgresSource,
    options: &'a VerifyOptions,
}

impl Verified<'_> {
    async fn compare(&self, snapshot: &SourceSnapshot) -> Result<TableComparison, Problem> {
        let mirror = load(self.environment, &self.schema.mirror).await?;
        if let Some(base) = exact_snapshot(&mirror, snapshot.position)? {
            return self.compare_with(snapshot, &mirror, Mirror::At(base)).await;
        }
        let history = self.environment.catalog.load(&self.schema.mirror.history(), None).await?;
        if let Some(history) = history
            && let Some((base, after)) = base_snapshot(&mirror, snapshot.position)
            && history_begins(&history)?.is_some_and(|begin| begin <= after)
        {
            let range = Range { after, up_to: snapshot.position };
            let folded = Mirror::Folded { base, history: Box::new(history), range };
            return self.compare_with(snapshot, &mirror, folded).await;
        }
        self.compare_moving(snapshot, &mirror).await
    }

    /// Without a history: the mirror as it stands, then again what differs, with later snapshots on both sides.
    async fn compare_moving(
        &self,
        snapshot: &SourceSnapshot,
        mirror: &LoadedTable,
    ) -> Result<TableComparison, Problem> {
        let head = Mirror::At(mirror.snapshot_id());
        let mut found = self.compare_with(snapshot, mirror, head).await?;
        for _ in 1..LOOKS {
            if found.is_equal() {
                break;
            }
            let again = SourceSnapshot::take(self.source).await?;
            wait_for_cut(self.source, self.environment, again.position).await?;
            let mirror = load(self.environment, &self.schema.mirror).await?;
            found = self.compare_with(&again, &mirror, Mirror::At(mirror.snapshot_id())).await?;
        }
        Ok(found)
    }

    async fn compare_with(
        &self,
        snapshot: &SourceSnapshot,
        mirror: &LoadedTable,
        state: Mirror,
    ) -> Result<TableComparison, Problem> {
        let storage = &self.environment.storage;
        let state = Arc::new(state.open(storage, mirror).await?);
        let columns = self.columns(&state.reader)?;
        let key = self.key_names();
        let key: Vec<&str> = key.iter().map(String::as_str).collect();
        let comparison = Comparison::new(Arc::clone(&columns.arrow), &key)?;
        let open = |side: Side| -> futures::future::BoxFuture<'_, Result<RowStream, Problem>> {
            let (state, columns) = (Arc::clone(&state), columns.clone());
            match side {
                Side::Mirror => Box::pin(async move { Ok(state.rows(columns)) }),
                Side::Source => {
                    let (client, copy) = (Arc::clone(&snapshot.client), Arc::clone(&self.copy));
                    let schema = Arc::new(self.schema.clone());
                    Box::pin(async move { Ok(source_rows(client, copy, schema, Arc::clone(&columns.arrow))) })
                }
            }
        };
        compare(comparison, &open, Limits::default(), self.options.show_keys).await
    }

    /// The mirror's columns that the source has; the overflow column comes with them.
    fn columns(&self, mirror: &TableReader) -> Result<Projection, Problem> {
        let known = |name: &str| name == OVERFLOW || self.schema.columns.iter().any(|column| column.name == name);
        let fields = mirror.schema.as_struct().fields().iter().filter(|field| known(&field.name));
        Projection::of(&mirror.schema, &fields.map(|field| field.id).collect::<Vec<_>>())
    }

    fn key_names(&self) -> Vec<String> {
        match &self.schema.key {
            Key::Columns(key) => key.iter().map(|&column| self.schema.columns[column].name.clone()).collect(),
            Key::WholeRow | Key::None => Vec::new(),
        }
    }
}

/// How the mirror comes to stand at a position.
enum Mirror {
    At(Option<i64>),
    Folded { base: i64, history: Box<LoadedTable>, range: Range },
}

struct OpenMirror {
    reader: Arc<TableReader>,
    history: Option<(Arc<TableReader>, Range)>,
}

impl Mirror {
    async fn open(self, storage: &Storage, mirror: &LoadedTable) -> Result<OpenMirror, Problem> {
        let (snapshot, history) = match self {
            Mirror::At(snapshot) => (snapshot, None),
            Mirror::Folded { base, history, range } => {
                let reader = TableReader::at(storage, &history, history.snapshot_id()).await?;
                (Some(base), Some((Arc::new(reader), range)))
            }
        };
        Ok(OpenMirror { reader: Arc::new(TableReader::at(storage, mirror, snapshot).await?), history })
    }
}

impl OpenMirror {
    fn rows(&self, columns: Projection) -> RowStream {
        let Some((history, range)) = self.history.clone() else {
            return table_rows(Arc::clone(&self.reader), columns);
        };
        let base = Arc::clone(&self.reader);
        let (sender, receiver) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let folded = Fold::read(&history, &base.schema, range, None).and_then(|fold| {
                fold.state(&base, &history, None, |batch| {
                    let batch = project(&batch, &columns.arrow);
                    // Where nobody listens any more the comparison has ended with an error of its own.
                    let _ = sender.blocking_send(batch);
                    Ok(())
                })
            });
            if let Err(problem) = folded {
                let _ = sender.blocking_send(Err(problem));
            }
        });
        stream_of(receiver)
    }
}

fn project(batch: &RecordBatch, schema: &ArrowSchemaRef) -> Result<RecordBatch, Problem> {
    let column = |field: &Arc<arrow_schema::Field>| match batch.column_by_name(field.name()) {
        Some(column) => fit(column, field),
        None => Ok(arrow_array::new_null_array(field.data_type(), batch.num_rows())),
    };
    let columns: Vec<ArrayRef> = schema.fields().iter().map(column).collect::<Result<_, _>>()?;
    let built = RecordBatch::try_new(Arc::clone(schema), columns);
    built.map_err(|error| Problem::halt("VERIFY", "", format!("rows do not fit: {error}"), "report this"))
}

fn stream_of(receiver: mpsc::Receiver<Result<RecordBatch, Problem>>) -> RowStream {
    futures::stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) }).boxed()
}

fn source_rows(
    client: Arc<Client>,
    copy: Arc<CopyTable>,
    schema: Arc<TableSchema>,
    columns: ArrowSchemaRef,
) -> RowStream {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let sink = BatchSink { sender: sender.clone(), columns };
        if let Err(problem) = read_table(client, copy, schema, sink).await {
            let _ = sender.send(Err(problem)).await;
        }
    });
    stream_of(receiver)
}

/// Gives decoded rows on as batches of the comparison's columns.
struct BatchSink {
    sender: mpsc::Sender<Result<RecordBatch, Problem>>,
    columns: ArrowSchemaRef,
}

impl RowSink for BatchSink {
    fn take(&mut self, schema: &TableSchema, columns: Vec<ArrayRef>, _: u64, _: u64) -> Result<(), Problem> {
        let named = schema.columns.iter().zip(columns).map(|(column, values)| (column.name.clone(), values, true));
        let batch = RecordBatch::try_from_iter_with_nullable(named).map_err(|error| {
            Problem::halt("VERIFY", &schema.source, format!("rows do not fit: {error}"), "report this")
        })?;
        // Where nobody listens any more the comparison has ended with an error of its own.
        let _ = self.sender.blocking_send(project(&batch, &self.columns));
        Ok(())
    }
}

async fn load(environment: &Environment, name: &TableName) -> Result<LoadedTable, Problem> {
    let loaded = environment.catalog.load(name, None).await?;
    loaded.ok_or_else(|| {
        Problem::halt("TABLE_MISSING", name.to_string(), "the mirror does not exist", "start the pipeline first")
    })
}

/// The head, if nothing behind `position` has come into it.
fn exact_snapshot(mirror: &LoadedTable, position: Position) -> Result<Option<Option<i64>>, Problem> {
    let reached = TableState::of(mirror)?.position;
    Ok(reached.is_some_and(|reached| reached <= position).then(|| mirror.snapshot_id()))
}

/// The newest snapshot of ours at or before `position`, and its position.
fn base_snapshot(mirror: &LoadedTable, position: Position) -> Option<(i64, Position)> {
    let to = |snapshot: &iceberg::spec::SnapshotRef| -> Option<(i64, Position)> {
        let to = snapshot.summary().additional_properties.get(properties::TO)?.parse().ok()?;
        Some((snapshot.snapshot_id(), to))
    };
    let known = mirror.metadata.snapshots().filter_map(to).filter(|(_, to)| *to <= position);
    known.max_by_key(|(_, to)| *to)
}

async fn against_history(
    source: &PostgresSource,
    environment: &Environment,
    options: &VerifyOptions,
    position: Position,
) -> Result<VerifyReport, Problem> {
    let control = load(environment, &TableName::new(CONTROL_NAMESPACE, &source.pipeline)).await?;
    let cuts = recorded_cuts(&control);
    let cut = cuts.iter().find(|cut| cut.position == position).ok_or_else(|| {
        let message = format!("no cut was recorded at {position}, or it has expired");
        Problem::halt("CUT_UNKNOWN", &source.pipeline, message, "choose a position from `lakehouse snapshots`")
    })?;
    let mut verdicts = Vec::new();
    for (name, id) in &cut.tables {
        let mirror_name: TableName = name.parse()?;
        let history_name = mirror_name.history().to_string();
        if !cut.tables.contains_key(&history_name) || !is_wanted(&mirror_name, options) {
            continue;
        }
        let mirror = load(environment, &mirror_name).await?;
        let history = load(environment, &mirror_name.history()).await?;
        let (begin, base) = copy_end(&mirror, &history)?;
        let at: i64 = id.parse().map_err(|_| unknown_snapshot(&mirror_name))?;
        let range = Range { after: begin, up_to: position };
        let folded = Mirror::Folded { base, history: Box::new(history), range };
        let folded = folded.open(&environment.storage, &mirror).await?;
        let found = Mirror::At(Some(at)).open(&environment.storage, &mirror).await?;
        verdicts.push(TableVerdict::new(name.clone(), compare_states(&folded, &found, options).await?));
    }
    Ok(VerifyReport::new(position, "history", verdicts))
}

/// The position at which the history begins, and the mirror's snapshot there.
fn copy_end(mirror: &LoadedTable, history: &LoadedTable) -> Result<(Position, i64), Problem> {
    let begin = history_begins(history)?.ok_or_else(|| unknown_snapshot(&mirror.name))?;
    let base = base_snapshot(mirror, begin).filter(|(_, to)| *to == begin);
    Ok((begin, base.ok_or_else(|| unknown_snapshot(&mirror.name))?.0))
}

fn unknown_snapshot(table: &TableName) -> Problem {
    let message = "the snapshot that the history begins at is not in the table any more";
    Problem::halt("SNAPSHOT_UNKNOWN", table.to_string(), message, "compare with the source instead: leave out --cut")
}

async fn compare_states(
    expected: &OpenMirror,
    found: &OpenMirror,
    options: &VerifyOptions,
) -> Result<TableComparison, Problem> {
    let schema = &found.reader.schema;
    let columns = Projection::all(schema)?;
    let key: Vec<&str> = schema.identifier_field_ids().filter_map(|id| schema.name_by_field_id(id)).collect();
    let comparison = Comparison::new(Arc::clone(&columns.arrow), &key)?;
    let open = |side: Side| -> futures::future::BoxFuture<'_, Result<RowStream, Problem>> {
        let columns = columns.clone();
        Box::pin(async move {
            Ok(match side {
                Side::Source => expected.rows(columns),
                Side::Mirror => found.rows(columns),
            })
        })
    };
    compare(comparison, &open, Limits::default(), options.show_keys).await
}
