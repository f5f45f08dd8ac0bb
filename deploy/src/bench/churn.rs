//! A table under constant change, and its upkeep beside it, by `lakehouse run`: every second a commit that touches random
//! files, for ten minutes; and a published study's ten commits to a small table, after which its writer's tables were read
//! 124 times slower. Then three engines read a copy of the same rows that nobody has touched since, and the table: as the
//! last commit has left it, as upkeep leaves it once no more commits come, and with the same files when the snapshots of
//! the churn have left the dense window, which no bench can wait for.
//!
//! Updates are of random keys, so each commit leaves deletes in all files. The upkeep's debt is asked for while it runs.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Result;
use crate::copy::fill;
use crate::lake::{self, Lake, PUBLICATION, SLOT};
use crate::process::Process;
use crate::reader::{self, Timing};
use crate::server::Server;
use crate::shape::Shape;

const SHAPE: Shape = Shape::Narrow;
/// Queries of each table by each engine, in turn.
const QUERIES: usize = 5;
const ENGINES: [&str; 3] = ["duckdb", "chdb", "sail"];
/// Looks at the table's debt.
const LOOKS: u32 = 20;
/// Of the rate at which a fresh table is read: 1 / 1.3.
const LEAST_RATIO: f64 = 0.77;
const MOST_DELETE_FILES: f64 = 2.0;
const READER: &str = "query_cost.py";
/// A pass a few times a minute, as the bench lasts ten.
const UPKEEP: &str = "\n[maintenance]\nevery = \"5s\"\nquiet_after = \"20s\"\n";
/// Within which upkeep has nothing left to do.
const QUIET: Duration = Duration::from_secs(120);

/// How a table is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Every second, for ten minutes.
    Constant,
    /// Ten commits, each of a tenth of the rows.
    Study,
}

pub(crate) const WORKS: [Work; 2] = [Work::Constant, Work::Study];

impl Work {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Constant => "churn",
            Self::Study => "churn-study",
        }
    }

    fn rows(self, quick: bool) -> u64 {
        match (self, quick) {
            (Self::Constant, false) => 10_000_000,
            (Self::Constant, true) => 1_000_000,
            (Self::Study, _) => 10_000,
        }
    }

    /// Rows that a commit updates.
    fn updates(self) -> u64 {
        match self {
            Self::Constant => 500,
            Self::Study => 1_000,
        }
    }

    fn pause(self) -> Duration {
        Duration::from_secs(if self == Self::Constant { 1 } else { 2 })
    }

    fn length(self, quick: bool) -> Duration {
        Duration::from_secs(match (self, quick) {
            (Self::Constant, false) => 600,
            (Self::Constant, true) => 60,
            (Self::Study, _) => 20,
        })
    }
}

/// A figure as scripts read it: these keys are fixed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Churned {
    pub(crate) bench: &'static str,
    /// The engine that reads.
    pub(crate) shape: &'static str,
    pub(crate) rows: u64,
    /// Its rate over the table, once that is quiet, ÷ its rate over the fresh one.
    pub(crate) ratio: f64,
    /// The same right behind the last commit.
    pub(crate) ratio_while_changed: f64,
    /// The same once it is quiet and its head is the only snapshot that is kept.
    pub(crate) ratio_without_history: f64,
    /// That are kept once it is quiet.
    pub(crate) snapshots: u64,
    pub(crate) against: &'static str,
    /// Of a query over the table, and over the fresh one.
    pub(crate) cpu_seconds: f64,
    pub(crate) reference_cpu_seconds: f64,
    pub(crate) rows_per_cpu_second: f64,
    /// Of the service.
    pub(crate) peak_rss_bytes: u64,
    pub(crate) data_files: u64,
    pub(crate) delete_files: u64,
    pub(crate) delete_files_per_data_file: f64,
    /// What compaction would have read if nothing had bounded it, at even intervals from the first commit to the last.
    pub(crate) debt_bytes: Vec<u64>,
}

/// What the reader answers.
#[derive(Deserialize)]
struct Answer {
    rows: u64,
    mirror: Timing,
    fresh: Timing,
}

/// The table as the service has left it.
struct Left {
    peak_rss_bytes: u64,
    data_files: u64,
    delete_files: u64,
    debt_bytes: Vec<u64>,
}

/// What an engine has found: right behind the last commit, once it is quiet, and that without history.
struct Found {
    changed: Answer,
    quiet: Answer,
    without_history: Answer,
    /// That are kept once it is quiet.
    snapshots: u64,
}

/// One figure for each engine.
pub(crate) async fn measure(work: Work, rows: Option<u64>, quick: bool) -> Result<Vec<Churned>> {
    let rows = rows.unwrap_or_else(|| work.rows(quick));
    let length = work.length(quick);
    let limit = Duration::from_secs(120 + rows / 5_000);
    let server = Server::start().await;
    let lake = Lake::new_with(&server, UPKEEP)?;
    let tables = [SHAPE.name().to_owned()];
    say(work, &format!("writing {rows} rows"));
    fill(&server, SHAPE, rows).await?;
    let process = lake.start_verb(&["run"])?;
    lake.wait_until(&process, limit, || lake.is_copied(&tables)).await?;
    server.streams(SLOT, &process).await?;

    say(work, &format!("{} updates each {:?} for {length:?}", work.updates(), work.pause()));
    let left = churn(work, &server, &lake, process, rows, length, limit).await?;
    say(work, "copying the same rows");
    server.drop_slot(SLOT).await?;
    server.sql(&format!("DROP PUBLICATION IF EXISTS {PUBLICATION}")).await?;
    let fresh = Lake::new(&server)?;
    fresh.copy_and_stop(&server, &tables, limit).await?;
    let (table, fresh) = (|| lake.metadata(SHAPE.name()), fresh.metadata(SHAPE.name())?);
    let changed = read_all(&table()?, &fresh, rows)?;
    say(work, "waiting until upkeep has nothing left to do");
    let upkeep = lake.start_verb(&["maintain"])?;
    let is_quiet = || {
        let health = health(&lake)?;
        Ok(number(&health, "delete_files")? + number(&health, "debt_bytes")? == 0)
    };
    lake.wait_until(&upkeep, QUIET, is_quiet).await?;
    lake.stop(upkeep).await?;
    let snapshots = number(&health(&lake)?, "snapshots")?;
    let quiet = read_all(&table()?, &fresh, rows)?;
    let without_history = read_all(&head_only(&table()?)?, &fresh, rows)?;
    let found = changed.into_iter().zip(quiet).zip(without_history);
    let found = found.map(|((changed, quiet), without_history)| Found { changed, quiet, without_history, snapshots });
    Ok(ENGINES.into_iter().zip(found).map(|(engine, found)| figure(work, engine, rows, &left, &found)).collect())
}

/// Updates until the time is over and everything is in the lake; then the service is stopped.
async fn churn(
    work: Work,
    server: &Server,
    lake: &Lake,
    process: Process,
    rows: u64,
    length: Duration,
    limit: Duration,
) -> Result<Left> {
    let (begun, mut debt_bytes) = (Instant::now(), Vec::new());
    let (mut commits, updates) = (0, work.updates());
    while begun.elapsed() < length {
        // Hashes of numbers are as good as random, and the same in every run.
        let key = format!("abs(hashint8({commits}::bigint * {updates} + n)::bigint) % {rows} + 1");
        let keys = format!("SELECT {key} FROM generate_series(1, {updates}) n");
        server.sql(&format!("UPDATE {0} SET {1} WHERE id IN ({keys})", SHAPE.name(), SHAPE.change())).await?;
        commits += 1;
        process.must_run()?;
        if begun.elapsed() >= length / LOOKS * u32::try_from(debt_bytes.len())? {
            debt_bytes.push(number(&health(lake)?, "debt_bytes")?);
        }
        tokio::time::sleep((begun + work.pause() * commits).saturating_duration_since(Instant::now())).await;
    }
    let end = server.position().await?;
    lake.wait_until(&process, limit, || lake.holds(end)).await?;
    let peak_rss_bytes = process.peak_rss_bytes()?;
    lake.stop(process).await?;
    let health = health(lake)?;
    debt_bytes.push(number(&health, "debt_bytes")?);
    say(work, &format!("{commits} commits; {health}"));
    let (data_files, delete_files) = (number(&health, "data_files")?, number(&health, "delete_files")?);
    Ok(Left { peak_rss_bytes, data_files, delete_files, debt_bytes })
}

fn health(lake: &Lake) -> Result<Value> {
    Ok(lake.ask(&["health", &format!("{}.{}", lake::NAME, SHAPE.name())])?["tables"][0].take())
}

fn number(health: &Value, key: &str) -> Result<u64> {
    Ok(health[key].as_u64().ok_or_else(|| format!("no {key} in {health}"))?)
}

/// By each engine, in their order.
fn read_all(table: &Path, fresh: &Path, rows: u64) -> Result<Vec<Answer>> {
    ENGINES.into_iter().map(|engine| read(engine, table, fresh, rows)).collect()
}

fn read(engine: &'static str, table: &Path, fresh: &Path, rows: u64) -> Result<Answer> {
    let arguments = [engine.into(), table.into(), fresh.into(), QUERIES.to_string().into()];
    let answer: Answer = reader::answer(READER, arguments)?;
    if answer.rows != rows {
        return Err(format!("{engine} finds {} rows, the source has {rows}", answer.rows).into());
    }
    Ok(answer)
}

/// A metadata file beside `metadata`, of the same table as expiry of all snapshots but the head would leave it.
fn head_only(metadata: &Path) -> Result<PathBuf> {
    let mut document: Value = serde_json::from_slice(&fs::read(metadata)?)?;
    let head = document["current-snapshot-id"].clone();
    for list in ["snapshots", "snapshot-log"] {
        let entries = document[list].as_array_mut().ok_or_else(|| format!("no {list} in {}", metadata.display()))?;
        entries.retain(|entry| entry["snapshot-id"] == head);
        if entries.len() != 1 {
            return Err(format!("{list} of {} has not the head once", metadata.display()).into());
        }
    }
    document["refs"] = json!({ "main": { "snapshot-id": head, "type": "branch" } });
    // A version far behind it.
    let name = metadata.file_name().unwrap_or_default().to_string_lossy();
    let path = metadata.with_file_name(format!("9{name}"));
    fs::write(&path, serde_json::to_vec(&document)?)?;
    Ok(path)
}

fn figure(work: Work, engine: &'static str, rows: u64, left: &Left, found: &Found) -> Churned {
    let hundredths = |value: f64| (value * 100.0).round() / 100.0;
    let ratio = |answer: &Answer| hundredths(answer.fresh.seconds / answer.mirror.seconds);
    let Answer { mirror, fresh, .. } = &found.quiet;
    Churned {
        bench: work.name(),
        shape: engine,
        rows,
        ratio: ratio(&found.quiet),
        ratio_while_changed: ratio(&found.changed),
        ratio_without_history: ratio(&found.without_history),
        snapshots: found.snapshots,
        against: "a fresh table",
        cpu_seconds: hundredths(mirror.cpu_seconds),
        reference_cpu_seconds: hundredths(fresh.cpu_seconds),
        rows_per_cpu_second: (rows as f64 / mirror.cpu_seconds.max(0.01)).round(),
        peak_rss_bytes: left.peak_rss_bytes,
        data_files: left.data_files,
        delete_files: left.delete_files,
        delete_files_per_data_file: hundredths(left.delete_files as f64 / left.data_files.max(1) as f64),
        debt_bytes: left.debt_bytes.clone(),
    }
}

fn say(work: Work, message: &str) {
    eprintln!("bench: {}: {message}", work.name());
}

impl fmt::Display for Churned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bench, shape, rows, ratio, ratio_while_changed, against, data_files, delete_files, .. } = self;
        let (cpu, its_cpu) = (self.cpu_seconds, self.reference_cpu_seconds);
        let (snapshots, without_history) = (self.snapshots, self.ratio_without_history);
        let debt: Vec<String> = self.debt_bytes.iter().map(|bytes| (bytes >> 20).to_string()).collect();
        write!(
            f,
            "{bench:<11} {shape:<8} {rows} rows: {ratio:.2} x {against} ({cpu:.2} CPU-s a query, {its_cpu:.2}) with \
             {snapshots} snapshots, {without_history:.2} x with the head alone; \
             {ratio_while_changed:.2} x right behind the last commit, with \
             {delete_files} delete files for {data_files} data files; peak {} MiB; debt in MiB {}",
            self.peak_rss_bytes >> 20,
            debt.join(" "),
        )
    }
}

/// How it stands with what is promised, by the engine that is slowed down most.
pub(crate) fn verdicts(churned: &[Churned]) -> Vec<String> {
    WORKS.into_iter().flat_map(|work| of_work(work, churned)).collect()
}

fn of_work(work: Work, churned: &[Churned]) -> Vec<String> {
    let name = work.name();
    let of: Vec<&Churned> = churned.iter().filter(|churned| churned.bench == name).collect();
    let of_ratio = |when: &str, ratio: fn(&Churned) -> f64| {
        let found = match of.iter().map(|churned| ratio(churned)).reduce(f64::min) {
            None => "not measured".to_owned(),
            Some(worst) if worst >= LEAST_RATIO => format!("{worst:.2}, reached"),
            Some(worst) => format!("{worst:.2}, short by {:.2}", LEAST_RATIO - worst),
        };
        format!("target {name}: at least {LEAST_RATIO} x a fresh table in every engine, {when}: {found}")
    };
    let mut lines = vec![
        of_ratio("once it is quiet", |churned| churned.ratio),
        of_ratio("once it is quiet and the head alone is kept", |churned| churned.ratio_without_history),
        of_ratio("right behind the last commit", |churned| churned.ratio_while_changed),
    ];
    // What the service has left is the same for all engines.
    if let Some(Churned { delete_files_per_data_file: deletes, debt_bytes, .. }) = of.first() {
        let reached = |is: bool| if is { "reached" } else { "missed" };
        let is = reached(*deletes <= MOST_DELETE_FILES);
        lines.push(format!("target {name}: at most {MOST_DELETE_FILES} delete files a data file: {deletes:.2}, {is}"));
        let falls = reached(debt_bytes.windows(2).any(|looks| looks[1] < looks[0]));
        lines.push(format!("target {name}: debt falls while it is changed: {falls}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_work_is_judged_by_its_worst_engine_and_by_what_it_has_left() {
        let churned = |shape, ratio| Churned {
            bench: Work::Constant.name(),
            shape,
            rows: 10,
            ratio,
            ratio_while_changed: 0.9,
            ratio_without_history: 0.8,
            snapshots: 3,
            against: "a fresh table",
            cpu_seconds: 1.0,
            reference_cpu_seconds: 1.0,
            rows_per_cpu_second: 10.0,
            peak_rss_bytes: 1,
            data_files: 2,
            delete_files: 5,
            delete_files_per_data_file: 2.5,
            debt_bytes: vec![1, 5, 4],
        };
        let lines = verdicts(&[churned("duckdb", 0.9), churned("sail", 0.7)]);
        let constant = ["0.70, short by 0.07", "0.80, reached", "0.90, reached", "2.50, missed", "reached"];
        let endings: Vec<&str> = constant.into_iter().chain(["not measured"; 3]).collect();
        assert_eq!(lines.len(), endings.len(), "{lines:?}");
        assert!(lines.iter().zip(endings).all(|(line, ending)| line.ends_with(ending)), "{lines:?}");
    }
}
