//! DynamoDB: records of streams and items of scans, by the real binary, from a server in this process that computes them
//! (`testkit::dynamodb::bulk`); beside it, as the ceiling, a process that fetches the same with Amazon's own library and
//! forgets it.
//!
//! Items have 350 bytes, four tables have two shards each, and histories are kept. The stream is written while the product
//! stands still, its tables copied and empty: the clock of the stream runs from the start of the process until a cut holds
//! the last record of every shard. The server's own work is in no figure, but it shares the machine's processors.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use testkit::dynamodb::bulk::{self, Bulk, Extent, Stock};

use crate::Result;
use crate::lake::{Lake, Verdict};
use crate::process::{self, Process};
use crate::report::Sample;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Stream,
    Scan,
}

pub(crate) const PARTS: [Part; 2] = [Part::Stream, Part::Scan];
/// The first argument of the process that only fetches.
pub(crate) const FETCH: &str = "--fetch-dynamodb";
const TABLES: u64 = 4;
const SHARDS: u64 = 2;
/// Segments that are scanned at once, as by default.
const SEGMENTS: i32 = 4;

/// A figure as scripts read it: these keys are fixed.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Followed {
    pub(crate) bench: &'static str,
    /// Records applied, or items copied.
    pub(crate) rows: u64,
    pub(crate) rows_per_cpu_second: f64,
    pub(crate) rows_per_second: f64,
    /// Of the process that only fetches.
    pub(crate) fetched_per_cpu_second: f64,
    pub(crate) fetched_per_second: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_rss_bytes: u64,
}

impl Part {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stream => "dynamodb-stream",
            Self::Scan => "dynamodb-scan",
        }
    }

    fn extent(self, rows: Option<u64>, quick: bool) -> Extent {
        let rows = rows.unwrap_or(if quick { 240_000 } else { 1_000_000 });
        // Three records, or two items, for each key.
        let per_key = if self == Self::Stream { 3 } else { 2 };
        let keys = rows.div_ceil(TABLES * SHARDS * per_key).next_multiple_of(4);
        Extent { tables: TABLES, shards: SHARDS, keys }
    }
}

pub(crate) async fn measure(part: Part, rows: Option<u64>, quick: bool) -> Result<Followed> {
    let extent = part.extent(rows, quick);
    let (rounds, names) = (if quick { 1 } else { 2 }, extent.names());
    let (stock, rows) = match part {
        Part::Stream => (Stock::Records, extent.records()),
        Part::Scan => (Stock::Items, extent.items()),
    };
    let limit = Duration::from_secs(120 + rows / 2_000);
    let bulk = Bulk::start(extent);
    let lake = Lake::with(&configuration(&bulk.endpoint(), &names))?;
    let tables: Vec<String> = names.clone();
    if part == Part::Stream {
        let process = lake.start()?;
        lake.wait_until(&process, limit, || lake.is_copied(&tables)).await?;
        lake.stop(process).await?;
        lake.keep()?;
    }
    bulk.stock(stock);
    let ends: Vec<(String, Vec<(String, String)>)> = names.iter().map(|name| (name.clone(), bulk.ends(name))).collect();

    let (mut ours, mut reference, mut peak_rss_bytes) = (Sample::WORST, Sample::WORST, 0);
    for round in 1..=rounds {
        let fetched = fetch(part, &bulk, &lake, rows, limit).await?;
        eprintln!("bench: {}: round {round}: fetched only: {fetched}", part.name());
        reference = reference.best(fetched);

        if part == Part::Stream {
            lake.restore()?
        } else {
            lake.clear()?
        }
        let begun = Instant::now();
        let process = lake.start()?;
        let run = match part {
            Part::Stream => lake.measure(process, begun, limit, || lake.holds_lanes(&ends)).await?,
            Part::Scan => lake.measure(process, begun, limit, || lake.is_copied(&tables)).await?,
        };
        let sample = Sample { seconds: run.seconds, cpu_seconds: run.cpu_seconds };
        eprintln!("bench: {}: round {round}: lakehouse {sample}", part.name());
        ours = ours.best(sample);
        peak_rss_bytes = peak_rss_bytes.max(run.peak_rss_bytes);
    }
    match lake.verify_running().await? {
        Verdict::Equal => eprintln!("bench: {}: source and mirror are equal", part.name()),
        Verdict::Different(answer) => return Err(format!("source and mirror differ: {answer}").into()),
        Verdict::Unknown(answer) => eprintln!("bench: {}: NOT VERIFIED: {answer}", part.name()),
    }
    let rate = |seconds: f64| (rows as f64 / seconds.max(0.01)).round();
    Ok(Followed {
        bench: part.name(),
        rows,
        rows_per_cpu_second: rate(ours.cpu_seconds),
        rows_per_second: rate(ours.seconds),
        fetched_per_cpu_second: rate(reference.cpu_seconds),
        fetched_per_second: rate(reference.seconds),
        cpu_seconds: ours.cpu_seconds,
        peak_rss_bytes,
    })
}

/// This program again, as a client that does nothing with what it reads.
async fn fetch(part: Part, bulk: &Bulk, lake: &Lake, rows: u64, limit: Duration) -> Result<Sample> {
    let program: PathBuf = std::env::current_exe()?;
    let mut command = process::command(&program);
    command.args([FETCH, part.name(), &bulk.endpoint(), &rows.to_string(), &TABLES.to_string()]);
    let begun = Instant::now();
    let process = Process::start("the fetching client", &mut command, lake.folder().join("fetch.log"))?;
    let cpu_seconds = process.finish(limit).await?;
    Ok(Sample { seconds: begun.elapsed().as_secs_f64(), cpu_seconds })
}

/// The client's whole life: what behind [`FETCH`] stands.
pub(crate) async fn fetch_only(arguments: &[String]) -> Result<()> {
    let [part, endpoint, rows, tables] = arguments else { return Err("four arguments".into()) };
    let extent = Extent { tables: tables.parse()?, shards: 0, keys: 0 };
    let fetched = match part == Part::Stream.name() {
        true => bulk::fetch_records(endpoint, &extent.names()).await,
        false => bulk::fetch_items(endpoint, &extent.names(), SEGMENTS).await,
    };
    if fetched.to_string() == *rows { Ok(()) } else { Err(format!("{fetched} of {rows} rows were fetched").into()) }
}

/// Defaults but for what the bench is about: histories are kept, three columns are declared, and a commit every second.
fn configuration(endpoint: &str, names: &[String]) -> String {
    let columns = |name: &String| {
        format!(
            "\n[pipelines.bench.tables.\"{name}\"]\ncolumns = {{ level = \"long\", plan = \"string\", updated_at = \"timestamptz\" }}\n"
        )
    };
    let columns: String = names.iter().map(columns).collect();
    format!(
        r#"[catalog]
kind = "sqlite"
path = "lake/catalog.db"
warehouse = "lake/warehouse"

[pipelines.bench]
namespace = "bench"
commit_interval_seconds = 1
history = true
local_state = "lake/state"

[pipelines.bench.dynamodb]
region = "us-east-1"
endpoint = "{endpoint}"
tables = {names:?}
copy_workers = {SEGMENTS}
idle_cut_seconds = 1
{columns}"#
    )
}
