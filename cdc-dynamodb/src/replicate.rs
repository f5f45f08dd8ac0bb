//! One incarnation of a pipeline on DynamoDB: checks, GO, what is left to copy, then the streams (protocol D).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lakehouse_core::commit::Control;
use lakehouse_core::copy::CopyObserver;
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::lakehouse::{Environment, Lakehouse};
use lakehouse_core::lanes::{Lanes, TableLanes};
use lakehouse_core::pipeline::{self, Limits};
use lakehouse_core::position::{Boundary, Position};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::chunk::ChunkBuilder;
use crate::client::{Clients, gap, problem};
use crate::config::{DynamodbSource, Pace};
use crate::copy::copy_table;
use crate::items::ItemSchema;
use crate::lineage::Lineage;
use crate::reader::lister;
use crate::stream::{DynamodbStream, Followed};
use crate::table::SourceTable;

/// What a stream keeps.
const RETENTION: Duration = Duration::from_secs(24 * 3600);

/// Runs until `stop`, or until something ends this incarnation; the problem's reaction says whether to come back.
pub async fn replicate(
    source: &DynamodbSource,
    environment: Environment,
    limits: Limits,
    observer: Arc<dyn CopyObserver>,
    stop: CancellationToken,
) -> Result<(), Problem> {
    let begun = async {
        let start = Start::prepare(source, environment).await?;
        start.go(&observer).await
    };
    let (mut stream, lakehouse) = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        begun = begun => begun?,
    };
    pipeline::run(&mut stream, lakehouse, limits, stop).await
}

/// Which tables these are: `cdc.source` as text. The stream of each table stands in its lanes (D2).
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    /// Partition, service, region and account of the tables' ARNs.
    dynamodb: String,
}

/// A table, what becomes of its items, and its stream.
struct Captured {
    table: SourceTable,
    items: ItemSchema,
    stream: String,
}

/// What is known before anything is written.
struct Start<'a> {
    source: &'a DynamodbSource,
    environment: Environment,
    clients: Clients,
    control: Control,
    identity: String,
    tables: Vec<Captured>,
}

impl<'a> Start<'a> {
    /// Reads both sides and refuses what cannot work. Writes nothing but a control table where there is none.
    async fn prepare(source: &'a DynamodbSource, environment: Environment) -> Result<Self, Problem> {
        let clients = Clients::connect(source).await;
        let mut tables = Vec::new();
        for name in &source.tables {
            let table = SourceTable::describe(&clients, name).await?;
            let items = table.items(source)?;
            let stream = table.followable(items.table().history)?.to_owned();
            tables.push(Captured { table, items, stream });
        }
        let identity = identity(source, &tables)?;
        let catalog = Arc::clone(&environment.catalog);
        let control = Control::open(catalog, environment.storage.clone(), &source.pipeline).await?;
        if let Some(cut) = &control.state().cut
            && cut.source != identity
        {
            let message = format!("the lake follows another source: {}, not {identity}", cut.source);
            let remedy = "point the pipeline at its own tables again, or give it another name; nothing was written";
            return Err(Problem::halt("IDENTITY", &source.pipeline, message, remedy));
        }
        Ok(Self { source, environment, clients, control, identity, tables })
    }

    async fn go(self, observer: &Arc<dyn CopyObserver>) -> Result<(DynamodbStream, Lakehouse), Problem> {
        let Self { source, environment, clients, control, identity, tables } = self;
        // Before anything is scanned (D4): the streams are followed from here.
        let begun = match &control.state().cut {
            Some(_) => Lanes::default(),
            None => begin(&clients, source.pace, tables.iter()).await?,
        };
        let first = Boundary { position: Position::new(1), lanes: begun.clone() };
        let schemas = tables.iter().map(|captured| Arc::clone(captured.items.table())).collect();
        let mut lakehouse = Lakehouse::go(environment, control, identity, first, schemas).await?;
        copy_rest(source, &clients, &mut lakehouse, &tables, &begun, observer).await?;
        let mut followed = BTreeMap::new();
        for captured in tables {
            let name = captured.table.name.clone();
            let Some(lanes) = lakehouse.resume_lanes(&name) else { continue };
            match check(&captured, &lanes) {
                Ok(()) => {
                    let lineage = Lineage::resume(TableLanes::clone(&lanes), source.pace.listing_lag);
                    let builder = ChunkBuilder::new(&captured.items);
                    followed.insert(name, Followed { stream: captured.stream, lineage, builder });
                }
                Err(problem) => {
                    lakehouse.leave(&name, lakehouse.resume_position(), problem.code, problem.message);
                }
            }
        }
        let reached = lakehouse.highest_position();
        Ok((DynamodbStream::start(clients, source.pace, followed, reached), lakehouse))
    }
}

/// All tables are of one region and account.
fn identity(source: &DynamodbSource, tables: &[Captured]) -> Result<String, Problem> {
    let homes: Vec<String> = tables.iter().map(|captured| captured.table.home()).collect();
    match &homes[..] {
        [first, rest @ ..] if rest.iter().all(|home| home == first) => {
            Ok(serde_json::to_string(&Identity { dynamodb: first.clone() }).expect("an identity is plain data"))
        }
        _ => {
            let remedy = "name at least one table, and give tables of another account a pipeline of their own";
            Err(Problem::halt("CONFIG_VALUE", &source.pipeline, "the tables are not of one account", remedy))
        }
    }
}

/// The lanes of tables that are about to be copied.
async fn begin<'a>(
    clients: &Clients,
    pace: Pace,
    tables: impl Iterator<Item = &'a Captured>,
) -> Result<Lanes, Problem> {
    let shared = lister(clients, pace);
    let mut lanes = Lanes::default();
    for captured in tables {
        let name = &captured.table.name;
        let listing = shared.list_settled(&captured.stream).await;
        let listing = listing.map_err(|trouble| problem("dynamodb:DescribeStream", name, trouble))?;
        let now = chrono::Utc::now().timestamp_millis();
        lanes.set(name, Lineage::begin(&captured.stream, &listing, now, pace.listing_lag).lanes().clone());
    }
    Ok(lanes)
}

/// Copies the tables that have no copy yet, each from lanes that were noted before: `begun`, or its own.
async fn copy_rest(
    source: &DynamodbSource,
    clients: &Clients,
    lakehouse: &mut Lakehouse,
    tables: &[Captured],
    begun: &Lanes,
    observer: &Arc<dyn CopyObserver>,
) -> Result<(), Problem> {
    for schema in lakehouse.tables_to_copy() {
        let captured = tables.iter().find(|captured| captured.table.name == schema.source);
        let captured = captured.expect("the lake was opened with these tables");
        let lanes = match begun.of(&schema.source) {
            Some(_) => begun.clone(),
            None => begin(clients, source.pace, std::iter::once(captured)).await?,
        };
        let mut copy = lakehouse.begin_copy(&schema.source)?;
        let copied = copy_table(source, clients, &captured.table, &captured.items, &mut copy, observer).await;
        copied.map_err(|problem| match problem.reaction {
            // A table whose items cannot be taken stops the first copy as a whole: nothing streams yet.
            Reaction::HaltTable => Problem { reaction: Reaction::Halt, ..problem },
            _ => problem,
        })?;
        let reached = Boundary { position: lakehouse.resume_position(), lanes };
        lakehouse.finish_copy(copy, reached).await?;
    }
    Ok(())
}

/// Whether the stream still goes on from what the lake has read (D2, D26).
fn check(captured: &Captured, lanes: &TableLanes) -> Result<(), Problem> {
    let name = &captured.table.name;
    if lanes.log != captured.stream {
        let message = format!("the table has another stream now: {}, the lake follows {}", captured.stream, lanes.log);
        let remedy = "resync the table: what was written between the two streams is in neither";
        return Err(Problem::halt_table("IDENTITY", name, message, remedy));
    }
    let now = chrono::Utc::now().timestamp_millis();
    let age = lanes.read_until.map_or(0, |until| now.saturating_sub(until));
    if u128::try_from(age).is_ok_and(|age| age > RETENTION.as_millis()) {
        let hours = age / 3_600_000;
        let message = format!("the stream was last read to its tip {hours} hours ago, it keeps its records for 24");
        return Err(gap(name, message));
    }
    Ok(())
}
