//! One incarnation of a pipeline on DynamoDB: checks, GO, what is left to copy, then the streams (protocol D).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use lakehouse_core::commit::Control;
use lakehouse_core::copy::CopyObserver;
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::lakehouse::{Environment, Lakehouse, UnfinishedCopy};
use lakehouse_core::lanes::{Lanes, TableLanes};
use lakehouse_core::pipeline::{self, Limits};
use lakehouse_core::position::{Boundary, Position};
use lakehouse_core::schema::TableSchema;
use lakehouse_core::spool::{KeptSpool, SpoolSettings, Spooled};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::bridge::{Bridge, is_unfinished};
use crate::chunk::ChunkBuilder;
use crate::client::{Clients, gap, problem};
use crate::config::{CopyRoad, DynamodbSource, OnGap, Pace};
use crate::copy::{Progress, copy_table};
use crate::copy_rows::Copied;
use crate::export::copy_exported;
use crate::infer;
use crate::items::ItemSchema;
use crate::lease;
use crate::lineage::Lineage;
use crate::mismatches::Mismatches;
use crate::reader::{SURELY_KEPT, lister};
use crate::replay;
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
    let incarnation = incarnation(source, environment, limits, observer, stop.clone());
    lease::while_held(source, &stop, incarnation).await
}

async fn incarnation(
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
            let items = infer::items(source, &clients, &table, environment.catalog.as_ref()).await?;
            let stream = table.followable(items.table().history)?.to_owned();
            if let Some(warning) = table.warning() {
                warn!("{warning}");
            }
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

    async fn go(self, observer: &Arc<dyn CopyObserver>) -> Result<(Spooled<DynamodbStream>, Lakehouse), Problem> {
        let Self { source, environment, clients, control, identity, tables } = self;
        // Before anything is scanned (D4): the streams are followed from here.
        let begun = match &control.state().cut {
            Some(_) => Lanes::default(),
            None => begin(&clients, source.pace, tables.iter()).await?,
        };
        let first = Boundary { position: Position::new(1), lanes: begun.clone() };
        let schemas: Vec<Arc<TableSchema>> = tables.iter().map(|captured| Arc::clone(captured.items.table())).collect();
        let mismatches = Mismatches::open(&environment.local_state);
        let (spool, planted) = (environment.local_state.join("stream-spool"), environment.planted);
        let mut lakehouse = Lakehouse::go(environment, control, identity, first, schemas.clone()).await?;
        // What an earlier incarnation has read of the streams, and no cut holds yet (D10).
        let kept = tokio::task::block_in_place(|| KeptSpool::open(&spool, &schemas))?;
        let mut gaps = BTreeMap::new();
        for captured in &tables {
            let (name, on_gap) = (&captured.table.name, source.on_gap(&captured.table.name));
            let lanes = lakehouse.resume_lanes(name).map(|lanes| follows(kept.as_ref(), name, &lanes));
            if let Some(Err(problem)) = lanes.map(|lanes| check(captured, &lanes)) {
                lakehouse.leave(name, lakehouse.resume_position(), problem.code, problem.message);
            }
            match on_gap {
                OnGap::Resync if lakehouse.left(name).is_some_and(|left| is_gap(&left.code)) => lakehouse.resync(name),
                // A table that was left for its gap comes back where that is closed now.
                OnGap::IncrementalExport => gaps.extend(lakehouse.rejoin(name, "GAP").map(|gap| (name.clone(), gap))),
                OnGap::Fail | OnGap::Resync => {}
            }
        }
        let copies = copies(source, &clients, &lakehouse, &tables, begun, kept.as_ref()).await?;
        // Tables that go on with what is kept, with what they have read themselves; and those that do not.
        let (mut own, mut begun) = (BTreeMap::new(), Lanes::default());
        // Each copy may take the number of a boundary for itself.
        let reached = Position::new(lakehouse.highest_position().offset() + copies.len() as u64);
        let reached = kept.as_ref().map_or(reached, |kept| reached.max(kept.position()));
        let (mut replays, mut replay_waits) = (BTreeMap::new(), None);
        for captured in &tables {
            let name = &captured.table.name;
            let Some(lanes) = lakehouse.resume_lanes(name).filter(|_| !gaps.contains_key(name)) else { continue };
            let own = BTreeMap::from([(name.clone(), Arc::clone(&lanes))]);
            // Not beside a copy: what is kept of the streams meanwhile holds what they say, and nothing else. And what is
            // kept may be newer than what the lake holds, so it comes first.
            if !copies.is_empty() || kept.as_ref().is_some_and(|kept| !kept.is_said(&own)) {
                replay_waits = replay_waits.or_else(|| replay::lane_wanted(&lakehouse, name, &lanes).map(|_| name));
                continue;
            }
            match replay::wanted(&lakehouse, &captured.items, &lanes).await {
                Err(problem) if problem.reaction == Reaction::HaltTable => {
                    lakehouse.leave(name, lakehouse.resume_position(), problem.code, problem.message);
                }
                wanted => replays.extend(wanted?.map(|replay| (name.clone(), replay))),
            }
        }
        // A start would begin what closes a gap anew.
        let replay_waits = replay_waits.filter(|_| gaps.is_empty());
        let mut follow = |captured: &Captured| {
            let name = &captured.table.name;
            let copied = copies.iter().find(|copy| copy.captured.table.name == *name);
            let lanes = match copied {
                Some(copy) => copy.lanes.of(name).cloned(),
                None => lakehouse.resume_lanes(name),
            };
            let (lanes, gap) = (lanes?, gaps.remove(name));
            // A copy that begins anew sees what is kept as it stands by now.
            let goes_on = gap.is_none() && copied.is_none_or(|copy| copy.resumed.is_some());
            let kept = kept.as_ref().filter(|_| goes_on).and_then(|kept| kept.follows(name, &lanes));
            match kept {
                Some(_) => drop(own.insert(name.clone(), Arc::clone(&lanes))),
                None => begun.set(name, TableLanes::clone(&lanes)),
            }
            let followed = kept.unwrap_or_else(|| TableLanes::clone(&lanes));
            let lineage = Lineage::resume(followed, source.pace.listing_lag).with(planted);
            let lineage = lineage.ahead_of(&lanes, reached.next().offset());
            let on_gap = source.on_gap(name);
            let bridge = (on_gap == OnGap::IncrementalExport)
                .then(|| Bridge { source: Arc::new(source.clone()), table: captured.table.clone() });
            let followed = Followed {
                stream: captured.stream.clone(),
                lineage,
                builder: ChunkBuilder::new(&captured.items, mismatches.clone()),
                keeps_expired: source.keeps_expired(name),
                bridge,
                gap,
                resync: on_gap == OnGap::Resync,
                replay: replays.remove(name),
            };
            Some((name.clone(), followed))
        };
        let followed = tables.iter().filter_map(&mut follow).collect();
        let stream = DynamodbStream::start(clients.clone(), source.pace, followed, reached);
        let mut stream = match kept {
            Some(kept) if own.is_empty() || (copies.is_empty() && kept.is_said(&own)) => {
                kept.discard();
                Spooled::new(stream)
            }
            Some(kept) => {
                info!(tables = own.len(), position = %kept.position(), "what an earlier worker has read of the streams is kept");
                Spooled::resume(stream, kept, own, &schemas)?
            }
            None => Spooled::new(stream),
        };
        if !copies.is_empty() {
            let settings = SpoolSettings { folder: &spool, boundary: source.pace.copy_chunk };
            let copied = copy_all(source, &clients, &mismatches, &mut lakehouse, copies, observer);
            stream.during(settings, begun, copied).await?;
        }
        if let Some(table) = replay_waits {
            stream.source().start_again_for_replay(table);
        }
        lakehouse.mark_left().await?;
        Ok((stream, lakehouse))
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
    let shared = &lister(clients, pace);
    // All at once: each takes some seconds to settle.
    let begun = tables.map(|captured| async move {
        let name = &captured.table.name;
        let listing = shared.list_settled(&captured.stream).await;
        let listing = listing.map_err(|trouble| problem("dynamodb:DescribeStream", name, trouble))?;
        let now = chrono::Utc::now().timestamp_millis();
        let lineage = Lineage::begin(&captured.stream, &listing, now, pace.listing_lag);
        Ok::<_, Problem>((name, lineage.lanes().clone()))
    });
    let mut lanes = Lanes::default();
    for (name, begun) in try_join_all(begun).await? {
        lanes.set(name, begun);
    }
    Ok(lanes)
}

/// A table that is about to be copied, and its lanes as they were noted before (D4).
struct Copy<'a> {
    captured: &'a Captured,
    lanes: Lanes,
    /// Where an earlier incarnation has come.
    resumed: Option<Progress>,
}

async fn copies<'a>(
    source: &DynamodbSource,
    clients: &Clients,
    lakehouse: &Lakehouse,
    tables: &'a [Captured],
    begun: Lanes,
    kept: Option<&KeptSpool>,
) -> Result<Vec<Copy<'a>>, Problem> {
    let mut copies = Vec::new();
    for schema in lakehouse.tables_to_copy() {
        let captured = tables.iter().find(|captured| captured.table.name == schema.source);
        let captured = captured.expect("the lake was opened with these tables");
        if let Some(copy) = resumed(source, lakehouse, captured, kept) {
            copies.push(copy);
            continue;
        }
        let lanes = match begun.of(&schema.source) {
            Some(_) => begun.clone(),
            None => begin(clients, source.pace, std::iter::once(captured)).await?,
        };
        copies.push(Copy { captured, lanes, resumed: None });
    }
    Ok(copies)
}

/// A scan that an earlier incarnation has begun, if it can be gone on with (D6): what its lanes were noted for is still in
/// the stream, or is kept, and items still become the same rows.
fn resumed<'a>(
    source: &DynamodbSource,
    lakehouse: &Lakehouse,
    captured: &'a Captured,
    kept: Option<&KeptSpool>,
) -> Option<Copy<'a>> {
    let name = &captured.table.name;
    let UnfinishedCopy { resume, lanes } = lakehouse.unfinished_copy(name)?;
    let anew = |why: &str| info!(table = name, why, "an interrupted copy begins anew");
    if source.copy_road(name) != CopyRoad::Scan {
        anew("it was a scan");
        return None;
    }
    if lanes.log != captured.stream {
        anew("the table has another stream now");
        return None;
    }
    let now = chrono::Utc::now().timestamp_millis();
    if follows(kept, name, &lanes).read_until.is_none_or(|noted| now.saturating_sub(noted) >= SURELY_KEPT) {
        anew("the stream may have forgotten what followed its begin");
        return None;
    }
    let Some(progress) = Progress::resume(&resume, &captured.items) else {
        anew("its items became other rows, or another release wrote how far it had come");
        return None;
    };
    let mut all = Lanes::default();
    all.set(name, TableLanes::clone(&lanes));
    Some(Copy { captured, lanes: all, resumed: Some(progress) })
}

async fn copy_all(
    source: &DynamodbSource,
    clients: &Clients,
    mismatches: &Mismatches,
    lakehouse: &mut Lakehouse,
    copies: Vec<Copy<'_>>,
    observer: &Arc<dyn CopyObserver>,
) -> Result<(), Problem> {
    for copy in copies {
        let name = copy.captured.table.name.clone();
        let Captured { table, items, .. } = copy.captured;
        let what = Copied { source, clients, table, items, mismatches };
        let copied = copy_one(what, lakehouse, copy, observer).await;
        copied.or_else(|problem| lakehouse.give_up_copy(&name, problem))?;
    }
    Ok(())
}

async fn copy_one(
    what: Copied<'_>,
    lakehouse: &mut Lakehouse,
    Copy { lanes, resumed, .. }: Copy<'_>,
    observer: &Arc<dyn CopyObserver>,
) -> Result<(), Problem> {
    let name = &what.table.name;
    let mut copy = match resumed {
        Some(_) => lakehouse.resume_copy(name)?,
        None => lakehouse.begin_copy(name).await?,
    };
    match what.source.copy_road(name) {
        CopyRoad::Scan => {
            if let Some(noted) = lanes.of(name) {
                copy.note_lanes(Arc::clone(noted));
            }
            copy_table(what, &mut copy, resumed, observer).await?;
        }
        CopyRoad::Export => {
            let noted = lanes.of(name).and_then(|lanes| lanes.read_until).unwrap_or(i64::MAX);
            copy_exported(what, &mut copy, noted, observer).await?;
        }
    }
    let reached = match copy.is_resync() {
        false => Boundary { position: lakehouse.resume_position(), lanes },
        // The table has a position already: the next boundary is the one at which all others stand where they stood.
        true => {
            let mut all = lakehouse.resume_boundary().lanes;
            lanes.tables().for_each(|(table, lanes)| all.set(table, TableLanes::clone(lanes)));
            Boundary { position: lakehouse.highest_position().next(), lanes: all }
        }
    };
    lakehouse.finish_copy(copy, reached).await
}

/// From where a table's log is followed that has read `own` itself: behind what is kept, if it goes on with that.
fn follows(kept: Option<&KeptSpool>, table: &str, own: &TableLanes) -> TableLanes {
    kept.and_then(|kept| kept.follows(table, own)).unwrap_or_else(|| own.clone())
}

/// True for the codes of a table whose stream does not go on from what the lake has read.
fn is_gap(code: &str) -> bool {
    matches!(code, "GAP" | "IDENTITY" | "STREAM_ENDED")
}

/// Whether the stream still goes on from what the lake has read (D2, D26).
fn check(captured: &Captured, lanes: &TableLanes) -> Result<(), Problem> {
    let name = &captured.table.name;
    if lanes.log != captured.stream {
        let message = format!("the table has another stream now: {}, the lake follows {}", captured.stream, lanes.log);
        let remedy = "resync the table: what was written between the two streams is in neither";
        return Err(Problem::halt_table("IDENTITY", name, message, remedy));
    }
    if is_unfinished(lanes) {
        return Err(gap(name, "an export that was to close a gap was not read to its end", lanes.read_until));
    }
    let now = chrono::Utc::now().timestamp_millis();
    let age = lanes.read_until.map_or(0, |until| now.saturating_sub(until));
    if u128::try_from(age).is_ok_and(|age| age > RETENTION.as_millis()) {
        return Err(gap(name, "the stream keeps its records for 24 hours, and some are gone", lanes.read_until));
    }
    Ok(())
}
