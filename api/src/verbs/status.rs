//! `status`: how pipelines and their tables stand. The lake is asked for what is durable, the source for its end, and
//! the worker's file on this machine for the code of a halt; without source or file the answer only says less.

use std::collections::BTreeMap;

use cdc_dynamodb::MismatchCounts;
use chrono::Utc;
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::{CHANGES_MISSED, ControlState, Cut, Divergence, RESYNC_REQUESTED, properties};
use lakehouse_core::position::Position;
use lakehouse_core::quarantine::QUARANTINE_LIMIT;
use lakehouse_core::schema::TableName;
use serde::{Serialize, Serializer};
use tracing::warn;
use utoipa::ToSchema;

use super::Context;
use crate::answer::{self, or_dash};
use crate::config::PipelineConfig;
use crate::failure::{Exit, Failure};
use crate::lake::{self, Kind, Lake};
use crate::shapes;
use crate::source::End;
use crate::worker_state::{Phase, WorkerState};

#[derive(Serialize)]
struct Answer {
    pipelines: Vec<Pipeline>,
}

/// How one stands.
#[derive(Serialize, ToSchema)]
#[schema(as = PipelineStatus)]
pub(crate) struct Pipeline {
    name: String,
    source: &'static str,
    state: State,
    code: Option<String>,
    epoch: u64,
    #[schema(value_type = Option<shapes::Position>)]
    position: Option<Position>,
    #[schema(value_type = Option<shapes::Position>)]
    source_position: Option<Position>,
    lag_seconds: Option<f64>,
    lag_bytes: Option<u64>,
    cut: Option<CutAnswer>,
    pub(crate) tables: Vec<Table>,
    /// Why a person lets it stand still.
    #[serde(skip)]
    pub(crate) paused: Option<String>,
}

/// The newest moment at which all its tables agree.
#[derive(Serialize, ToSchema)]
#[schema(as = Cut)]
struct CutAnswer {
    #[schema(value_type = shapes::Position)]
    position: Position,
    committed_at: String,
}

/// One of its tables.
#[derive(Serialize, ToSchema)]
#[schema(as = PipelineTable)]
pub(crate) struct Table {
    source: Option<String>,
    #[schema(value_type = String)]
    #[serde(serialize_with = "as_text")]
    pub(crate) table: TableName,
    state: State,
    code: Option<String>,
    rows: Option<u64>,
    snapshot_id: Option<String>,
    #[schema(value_type = Option<shapes::Position>)]
    position: Option<Position>,
    /// The position behind which its rows are not its source's, because a person has wanted it so; until a resync.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<shapes::Position>, nullable = false)]
    diverged_since: Option<Position>,
    /// Values that were not of their column's type and stand in `_rest`, by attribute, as far as the worker on this machine
    /// has counted them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    mismatches: BTreeMap<String, u64>,
    /// Rows in its quarantine, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    quarantined: Option<u64>,
}

/// Of a pipeline and of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum State {
    New,
    Copying,
    Streaming,
    /// A person has said so.
    Paused,
    /// A rollback holds its mirror.
    PausedDiverged,
    /// Too much of it could not be mapped.
    Quarantined,
    Halted,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Copying => "copying",
            Self::Streaming => "streaming",
            Self::Paused => "paused",
            Self::PausedDiverged => "paused_diverged",
            Self::Quarantined => "quarantined",
            Self::Halted => "halted",
        }
    }
}

pub(super) async fn run(context: &Context, wanted: &[String]) -> Result<Exit, Failure> {
    let chosen = context.config.choose(wanted)?;
    let lake = Lake::open_if_there(&context.config).await?;
    let mut pipelines = Vec::new();
    for (name, config) in chosen {
        // The source first: what is durable later only makes the lag look smaller than it is, never larger.
        let end = end_of_source(name, config).await;
        pipelines.push(pipeline(lake.as_ref(), name, config, end).await?);
    }
    match context.json {
        true => answer::json(&Answer { pipelines })?,
        false => print(&pipelines)?,
    }
    Ok(Exit::Done)
}

/// As the lake tells it, and how far it is behind the source's end, where that is known.
pub(crate) async fn pipeline(
    lake: Option<&Lake>,
    name: &str,
    config: &PipelineConfig,
    end: Option<End>,
) -> Result<Pipeline, Failure> {
    let control = match lake {
        Some(lake) => lake.control(name).await?.map(|(control, _)| control).unwrap_or_default(),
        None => ControlState::default(),
    };
    let tables = match (lake, &control.cut) {
        (Some(lake), Some(cut)) => {
            let counts = cdc_dynamodb::mismatches(&config.local_state.join(name));
            tables(lake, &config.namespace, cut, &counts).await?
        }
        _ => Vec::new(),
    };
    let position = control.cut.as_ref().map(|cut| cut.position);
    let (lag_bytes, lag_seconds) = match (end, &control.cut) {
        (Some(End::At(end)), Some(cut)) => {
            let bytes = end.offset().saturating_sub(cut.position.offset());
            (Some(bytes), Some(if bytes == 0 { 0.0 } else { seconds_since(cut.committed_at) }))
        }
        (Some(End::Since(_)), Some(cut)) => (None, cut.read_until.map(seconds_since)),
        _ => (None, None),
    };
    let source_position = match end {
        Some(End::At(position)) => Some(position),
        Some(End::Since(_)) | None => None,
    };
    let (state, code) = match &control.paused {
        Some(_) => (State::Paused, None),
        None => state(name, config, control.cut.as_ref(), &tables),
    };
    Ok(Pipeline {
        name: name.to_owned(),
        source: config.source.kind(),
        state,
        code,
        epoch: control.epoch,
        position,
        source_position,
        lag_seconds,
        lag_bytes,
        cut: control.cut.map(|cut| CutAnswer { position: cut.position, committed_at: answer::time(cut.committed_at) }),
        tables,
        paused: control.paused,
    })
}

/// `None` if the source cannot be asked: the lake's side of the answer stands all the same.
async fn end_of_source(name: &str, config: &PipelineConfig) -> Option<End> {
    let end = match config.source(name) {
        Ok(source) => source.end().await,
        Err(failure) => Err(failure.problem),
    };
    end.inspect_err(|problem| {
        warn!(pipeline = name, code = problem.code, reason = problem.message, "the source cannot be asked for its end");
    })
    .ok()
}

async fn tables(lake: &Lake, namespace: &str, cut: &Cut, counts: &MismatchCounts) -> Result<Vec<Table>, Failure> {
    let captured = lake.captured(namespace, &cut.source).await?;
    let mut tables = Vec::with_capacity(captured.len());
    for table in &captured {
        let quarantined = lake.quarantined(table).await?;
        tables.push(Table { quarantined, ..one_table(table, lake.rows(table).await, cut, counts)? });
    }
    Ok(tables)
}

fn one_table(table: &LoadedTable, rows: Option<u64>, cut: &Cut, counts: &MismatchCounts) -> Result<Table, Failure> {
    let state = lake::table_state(table)?;
    let source = table.property(properties::SOURCE_TABLE);
    let left = source.and_then(|source| cut.left.get(source));
    Ok(Table {
        source: source.map(str::to_owned),
        table: table.name.clone(),
        state: match (left, state.position, &state.copy) {
            (Some(left), _, _) if left.code == RESYNC_REQUESTED => State::Copying,
            (Some(left), _, _) if left.is_held() || left.code == CHANGES_MISSED => State::PausedDiverged,
            (Some(left), _, _) if left.code == QUARANTINE_LIMIT => State::Quarantined,
            (Some(_), _, _) => State::Halted,
            (None, Some(_), _) => State::Streaming,
            (None, None, Some(_)) => State::Copying,
            (None, None, None) => State::New,
        },
        code: left.map(|left| left.code.clone()),
        rows,
        snapshot_id: table.snapshot_id().map(|id| id.to_string()),
        position: left.map(|left| left.position).or(state.position),
        diverged_since: Divergence::of(table)?.map(|divergence| divergence.since),
        mismatches: match lake::kind(table) {
            Kind::Mirror => source.and_then(|source| counts.get(source)).cloned().unwrap_or_default(),
            Kind::History | Kind::Quarantine | Kind::Maintenance | Kind::Other => BTreeMap::new(),
        },
        quarantined: None,
    })
}

/// The worker's own word counts as long as no cut is newer.
fn state(name: &str, config: &PipelineConfig, cut: Option<&Cut>, tables: &[Table]) -> (State, Option<String>) {
    let worker = WorkerState::read(&config.local_state, name);
    let worker = worker.filter(|worker| cut.is_none_or(|cut| cut.committed_at <= worker.at));
    let being_copied = |table: &Table| matches!(table.state, State::New | State::Copying);
    let from_lake = match cut {
        None => State::New,
        Some(_) if tables.iter().any(being_copied) => State::Copying,
        Some(_) => State::Streaming,
    };
    match worker {
        Some(WorkerState { state: Phase::Halted, code, .. }) => (State::Halted, code),
        Some(WorkerState { state: Phase::Retrying, code, .. }) => (from_lake, code),
        _ => (from_lake, None),
    }
}

fn as_text<S: Serializer>(name: &TableName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of a lag are far below 2^52")]
fn seconds_since(milliseconds: i64) -> f64 {
    (Utc::now().timestamp_millis() - milliseconds).max(0) as f64 / 1_000.0
}

fn print(pipelines: &[Pipeline]) -> Result<(), Failure> {
    for (number, pipeline) in pipelines.iter().enumerate() {
        if number > 0 {
            answer::line("")?;
        }
        let code = pipeline.code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default();
        answer::line(&format!(
            "{}: {}{code}, {}, epoch {}",
            pipeline.name,
            pipeline.state.as_str(),
            pipeline.source,
            pipeline.epoch
        ))?;
        let behind = match (pipeline.lag_bytes, pipeline.lag_seconds) {
            (Some(0), _) => "up to date".to_owned(),
            (Some(bytes), Some(seconds)) => format!("{} behind, {seconds:.1} s", indicatif::HumanBytes(bytes)),
            _ => "lag unknown".to_owned(),
        };
        answer::line(&format!(
            "position {} of {}, {behind}, cut of {}",
            or_dash(pipeline.position),
            or_dash(pipeline.source_position),
            or_dash(pipeline.cut.as_ref().map(|cut| cut.committed_at.clone())),
        ))?;
        if !pipeline.tables.is_empty() {
            print_tables(&pipeline.tables)?;
        }
    }
    Ok(())
}

fn print_tables(tables: &[Table]) -> Result<(), Failure> {
    let row = |table: &Table| {
        [
            table.table.to_string(),
            or_dash(table.source.clone()),
            table.state.as_str().to_owned(),
            or_dash(table.code.clone()),
            or_dash(table.rows),
            or_dash(table.position),
            or_dash(table.snapshot_id.clone()),
        ]
    };
    let rows: Vec<_> = tables.iter().map(row).collect();
    answer::table(["TABLE", "SOURCE", "STATE", "CODE", "ROWS", "POSITION", "SNAPSHOT"], &rows)?;
    for table in tables.iter().filter(|table| !table.mismatches.is_empty()) {
        let counts: Vec<String> =
            table.mismatches.iter().map(|(attribute, count)| format!("{attribute} {count}")).collect();
        answer::line(&format!("{}: values of another type, in _rest: {}", table.table, counts.join(", ")))?;
    }
    for (table, since) in tables.iter().filter_map(|table| Some((table, table.diverged_since?))) {
        answer::line(&format!(
            "{}: not as its source since {since}, as a person wanted; a resync ends that",
            table.table
        ))?;
    }
    for (table, count) in tables.iter().filter_map(|table| Some((table, table.quarantined.filter(|count| *count > 0)?)))
    {
        answer::line(&format!("{}: rows in {}_quarantine: {count}", table.table, table.table))?;
    }
    Ok(())
}
