//! What `verify` compares and how it is told; and the comparison of a mirror with its own history, which needs no source.
//!
//! A state of a mirror is a snapshot, or an earlier snapshot with the history folded onto it. How a source's rows are
//! read, and which state they are compared with, is the source's own `verify.rs`.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::SchemaRef as ArrowSchemaRef;
use futures::StreamExt;
use iceberg::spec::SnapshotRef;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::catalog::LoadedTable;
use crate::commit::properties::{self, TableState};
use crate::commit::{CONTROL_NAMESPACE, ControlState, Cut, recorded_cuts};
use crate::compare::{Comparison, Limits, RowStream, Sample, Side, TableComparison, compare, table_rows};
use crate::error::Problem;
use crate::fold::{Fold, Range, history_begins};
use crate::lakehouse::Environment;
use crate::position::Position;
use crate::read::{Projection, TableReader, fit};
use crate::schema::TableName;
use crate::storage::Storage;

/// How long a cut may take to reach what the source has.
const CUT_DEADLINE: Duration = Duration::from_secs(300);

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

impl VerifyOptions {
    pub fn wants(&self, mirror: &TableName) -> bool {
        self.tables.is_empty() || self.tables.contains(&mirror.to_string())
    }
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
    /// Rows of the source that cannot be mapped and stand in the quarantine instead; `None` where no policy says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<u64>,
    pub samples: Vec<Sample>,
}

impl VerifyReport {
    pub fn new(position: Position, against: &'static str, tables: Vec<TableVerdict>) -> Self {
        let equal = tables.iter().all(|table| table.verdict == EQUAL);
        Self { verdict: if equal { EQUAL } else { DIFFERENT }, position, against, tables }
    }
}

const EQUAL: &str = "equal";
const DIFFERENT: &str = "different";

impl TableVerdict {
    pub fn new(table: String, found: TableComparison) -> Self {
        Self {
            table,
            verdict: if found.is_equal() { EQUAL } else { DIFFERENT },
            source_rows: found.source_rows,
            mirror_rows: found.mirror_rows,
            only_in_source: found.only_in_source,
            only_in_mirror: found.only_in_mirror,
            differing: found.differing,
            quarantined: None,
            samples: found.samples,
        }
    }
}

/// Waits for a cut that `holds` what is wanted; `what` says it in the error.
pub async fn wait_for_cut(
    environment: &Environment,
    pipeline: &str,
    what: &str,
    holds: impl Fn(&Cut) -> bool,
) -> Result<Cut, Problem> {
    let begun = tokio::time::Instant::now();
    loop {
        let state = ControlState::read(&*environment.catalog, pipeline).await?;
        let cut = state.and_then(|(state, _)| state.cut);
        match cut {
            Some(cut) if holds(&cut) => return Ok(cut),
            _ if begun.elapsed() > CUT_DEADLINE => {
                let message = format!("no cut has reached {what}");
                let remedy = "start the pipeline, or see `lakehouse status` for why it stands still";
                return Err(Problem::halt("VERIFY_BEHIND", pipeline, message, remedy));
            }
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// How a mirror comes to stand at a position.
pub enum State {
    At(Option<i64>),
    Folded { base: i64, history: Box<LoadedTable>, range: Range },
}

/// A state that can be read.
pub struct OpenState {
    pub reader: Arc<TableReader>,
    history: Option<(Arc<TableReader>, Range)>,
}

impl State {
    pub async fn open(self, storage: &Storage, mirror: &LoadedTable) -> Result<OpenState, Problem> {
        let (snapshot, history) = match self {
            State::At(snapshot) => (snapshot, None),
            State::Folded { base, history, range } => {
                let reader = TableReader::at(storage, &history, history.snapshot_id()).await?;
                (Some(base), Some((Arc::new(reader), range)))
            }
        };
        Ok(OpenState { reader: Arc::new(TableReader::at(storage, mirror, snapshot).await?), history })
    }
}

impl OpenState {
    pub fn rows(&self, columns: Projection) -> RowStream {
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

/// The columns of `schema` by name, NULL where a batch lacks one.
pub fn project(batch: &RecordBatch, schema: &ArrowSchemaRef) -> Result<RecordBatch, Problem> {
    let column = |field: &Arc<arrow_schema::Field>| match batch.column_by_name(field.name()) {
        Some(column) => fit(column, field),
        None => Ok(arrow_array::new_null_array(field.data_type(), batch.num_rows())),
    };
    let columns: Vec<ArrayRef> = schema.fields().iter().map(column).collect::<Result<_, _>>()?;
    let built = RecordBatch::try_new(Arc::clone(schema), columns);
    built.map_err(|error| Problem::halt("VERIFY", "", format!("rows do not fit: {error}"), "report this"))
}

/// Batches that somebody else sends.
pub fn stream_of(receiver: mpsc::Receiver<Result<RecordBatch, Problem>>) -> RowStream {
    futures::stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) }).boxed()
}

/// A table that must be there.
pub async fn load(environment: &Environment, name: &TableName) -> Result<LoadedTable, Problem> {
    let loaded = environment.catalog.load(name, None).await?;
    loaded.ok_or_else(|| {
        Problem::halt("TABLE_MISSING", name.to_string(), "the mirror does not exist", "start the pipeline first")
    })
}

/// The head, if nothing behind `position` has come into it.
pub fn exact_snapshot(mirror: &LoadedTable, position: Position) -> Result<Option<Option<i64>>, Problem> {
    let reached = TableState::of(mirror)?.position;
    Ok(reached.is_some_and(|reached| reached <= position).then(|| mirror.snapshot_id()))
}

/// The newest snapshot of ours at or before `position`, and its position.
pub fn base_snapshot(mirror: &LoadedTable, position: Position) -> Option<(i64, Position)> {
    let to = |snapshot: &SnapshotRef| -> Option<(i64, Position)> {
        let to = snapshot.summary().additional_properties.get(properties::TO)?.parse().ok()?;
        Some((snapshot.snapshot_id(), to))
    };
    let known = mirror.metadata.snapshots().filter_map(to).filter(|(_, to)| *to <= position);
    known.max_by_key(|(_, to)| *to)
}

/// Every mirror of a past cut against its history folded to that cut.
pub async fn against_history(
    environment: &Environment,
    pipeline: &str,
    options: &VerifyOptions,
    position: Position,
) -> Result<VerifyReport, Problem> {
    let control = load(environment, &TableName::new(CONTROL_NAMESPACE, pipeline)).await?;
    let cuts = recorded_cuts(&control);
    let cut = cuts.iter().find(|cut| cut.position == position).ok_or_else(|| {
        let message = format!("no cut was recorded at {position}, or it has expired");
        Problem::halt("CUT_UNKNOWN", pipeline, message, "choose a position from `lakehouse snapshots`")
    })?;
    let mut verdicts = Vec::new();
    for (name, id) in &cut.tables {
        let mirror_name: TableName = name.parse()?;
        let history_name = mirror_name.history().to_string();
        if !cut.tables.contains_key(&history_name) || !options.wants(&mirror_name) {
            continue;
        }
        let mirror = load(environment, &mirror_name).await?;
        let history = load(environment, &mirror_name.history()).await?;
        let (begin, base) = copy_end(&mirror, &history)?;
        let at: i64 = id.parse().map_err(|_| unknown_snapshot(&mirror_name))?;
        let range = Range { after: begin, up_to: position };
        let folded = State::Folded { base, history: Box::new(history), range };
        let folded = folded.open(&environment.storage, &mirror).await?;
        let found = State::At(Some(at)).open(&environment.storage, &mirror).await?;
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
    expected: &OpenState,
    found: &OpenState,
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
