//! `verify`: the source's rows against the mirror's, both at one position.
//!
//! The source is read in a snapshot that a temporary slot exports, so its position is known exactly and nothing is
//! locked. The mirror is brought to that position through its history: a state at or before it, and the changes from there.
//! Without a history, keys that differ are looked at again with a later snapshot, until they agree or have differed each
//! time; a key that was not compared is never called equal.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::SchemaRef as ArrowSchemaRef;
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::compare::{Comparison, Limits, RowStream, Side, TableComparison, compare};
use lakehouse_core::error::Problem;
use lakehouse_core::fold::{Range, history_begins};
use lakehouse_core::lakehouse::Environment;
use lakehouse_core::position::Position;
use lakehouse_core::read::{Projection, TableReader};
use lakehouse_core::schema::{Key, OVERFLOW, TableSchema};
use lakehouse_core::verify::{
    State, TableVerdict, VerifyOptions, VerifyReport, against_history, base_snapshot, exact_snapshot, load, project,
    stream_of, wait_for_cut,
};
use tokio::sync::mpsc;
use tokio_postgres::Client;

use crate::config::PostgresSource;
use crate::copy::{CopyTable, RowSink, join_snapshot, read_table};
use crate::problem::{connect_problem, wal_problem};
use crate::publication::Publications;
use crate::tables::captured_tables;
use crate::validate::connect;
use crate::walsender::Walsender;

/// Looks at a key of a table without history before it counts as differing.
const LOOKS: usize = 4;

/// Compares; reads both sides and writes nothing.
pub async fn verify(
    source: &PostgresSource,
    environment: Environment,
    options: VerifyOptions,
) -> Result<VerifyReport, Problem> {
    match options.cut {
        Some(position) => against_history(&environment, &source.pipeline, &options, position).await,
        None => against_source(source, &environment, &options).await,
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
    reach(environment, source, snapshot.position).await?;
    let mut verdicts = Vec::new();
    for mut table in captured_tables(&client, source).await? {
        let Some(published) = publications.of(&table).cloned() else {
            continue;
        };
        if let Some(columns) = &published.columns {
            table.columns.retain(|column| columns.contains(&column.name));
        }
        let schema = table.table_schema(source)?;
        if !schema.has_mirror() || !options.wants(&schema.mirror) {
            continue;
        }
        let copy = Arc::new(CopyTable { table, published });
        let verified = Verified { environment, schema: &schema, copy, source, options };
        verdicts.push(TableVerdict::new(schema.mirror.to_string(), verified.compare(&snapshot).await?));
    }
    Ok(VerifyReport::new(snapshot.position, "source", verdicts))
}

async fn reach(environment: &Environment, source: &PostgresSource, position: Position) -> Result<(), Problem> {
    let what = format!("{position}, the source's position");
    wait_for_cut(environment, &source.pipeline, &what, |cut| cut.position >= position).await.map(drop)
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
            return self.compare_with(snapshot, &mirror, State::At(base)).await;
        }
        let history = self.environment.catalog.load(&self.schema.mirror.history(), None).await?;
        if let Some(history) = history
            && let Some((base, after)) = base_snapshot(&mirror, snapshot.position)
            && history_begins(&history)?.is_some_and(|begin| begin <= after)
        {
            let range = Range { after, up_to: snapshot.position };
            let folded = State::Folded { base, history: Box::new(history), range };
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
        let head = State::At(mirror.snapshot_id());
        let mut found = self.compare_with(snapshot, mirror, head).await?;
        for _ in 1..LOOKS {
            if found.is_equal() {
                break;
            }
            let again = SourceSnapshot::take(self.source).await?;
            reach(self.environment, self.source, again.position).await?;
            let mirror = load(self.environment, &self.schema.mirror).await?;
            found = self.compare_with(&again, &mirror, State::At(mirror.snapshot_id())).await?;
        }
        Ok(found)
    }

    async fn compare_with(
        &self,
        snapshot: &SourceSnapshot,
        mirror: &LoadedTable,
        state: State,
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
