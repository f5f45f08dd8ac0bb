//! One transaction that is far larger than the worker's memory becomes one atomic cut.
//!
//! The worker runs under a hard limit of 512 MiB, of a control group where one can be made, else (or if
//! `LAKEHOUSE_DATA_LIMIT` is set) of its data segment.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::live::books::{Books, assert_joined};
use crate::live::{Live, stop};
use testkit::lakehouse::Process;
use testkit::postgres::Options;

const ROWS: u64 = 3_000_000;
const LIMIT: u64 = 512 << 20;
/// The file of a control group that lists its processes.
const PROCESSES: &str = "cgroup.procs";
const LONGEST: Duration = Duration::from_secs(900);

#[tokio::test]
async fn a_transaction_larger_than_memory_is_one_cut() {
    // The pipeline's own bound of memory is left at its default.
    let live = Live::new(Options { unsafe_but_fast: true, ..Options::default() }).await;
    live.sql("CREATE TABLE big (id int8 PRIMARY KEY, v int8 NOT NULL); CREATE TABLE beside (id int PRIMARY KEY)").await;
    live.sql("INSERT INTO big VALUES (0, 0)").await;
    let mut worker = live.site.start();
    let limit = Limit::set(&worker);
    live.sql("INSERT INTO beside VALUES (0)").await;
    live.site.caught_up().await;

    let mut books = Books::open().await;
    let statement = format!("INSERT INTO big SELECT n, n FROM generate_series(1, {ROWS}) n");
    let all = format!("[\"{}\",\"{}\"]", ROWS + 1, ROWS * (ROWS + 1) / 2);
    let nothing = "[\"1\",\"0\"]".to_owned();
    in_one_cut(&live, &mut worker, &mut books, &statement, &[&nothing, &all]).await;
    eprintln!("big transaction: {ROWS} rows inserted, {}", limit.peak(&worker));

    if std::env::var_os("LAKEHOUSE_LONG").is_some() {
        let shifted = format!("[\"{}\",\"{}\"]", ROWS + 1, ROWS * (ROWS + 1) / 2 + ROWS + 1);
        in_one_cut(&live, &mut worker, &mut books, "UPDATE big SET v = v + 1", &[&nothing, &all, &shifted]).await;
        eprintln!("big transaction: {ROWS} rows updated, {}", limit.peak(&worker));
    }
    live.site.assert_equal().await;
    stop(worker).await;
}

/// Runs one statement beside small transactions; every snapshot and cut holds it whole or not at all.
async fn in_one_cut(live: &Live, worker: &mut Process, books: &mut Books, statement: &str, states: &[&String]) {
    let begun = Instant::now();
    let client = live.cluster.connect("postgres").await;
    client.batch_execute("BEGIN").await.expect("begin");
    client.batch_execute(statement).await.expect("the statement");
    client.batch_execute("COMMIT").await.expect("commit");
    eprintln!("big transaction: committed at the source after {:?}", begun.elapsed());
    live.sql("INSERT INTO beside SELECT max(id) + 1 FROM beside").await;
    let end = live.cluster.value("postgres", "SELECT pg_current_wal_flush_lsn()").await;
    loop {
        let (code, answer) = live.site.lakehouse.json(&["wait", "--position", &end, "--timeout", "10s"]).await;
        if code == Some(0) {
            break;
        }
        assert!(worker.is_running(), "the worker has ended: {}", worker.stderr());
        assert!(begun.elapsed() < LONGEST, "not in the lake after {LONGEST:?}: {answer}");
    }
    eprintln!("big transaction: in the lake after {:?}", begun.elapsed());

    let ranges = books.ranges(&live.site, "app.big").await;
    assert_joined("app.big", &ranges);
    let mut seen = Vec::new();
    for range in ranges.iter().skip_while(|range| range.to.is_none() && range.kind != "change") {
        seen.push(state(live, books, range.snapshot).await);
    }
    for cut in books.cuts(&live.site).await {
        if let Some(&snapshot) = cut.tables.get("app.big") {
            seen.push(state(live, books, snapshot).await);
        }
    }
    let part = seen.iter().find(|seen| !states.contains(seen));
    assert_eq!(part, None, "a snapshot holds a part of the transaction");
    let whole = states.last().expect("a state");
    assert_eq!(seen.last(), Some(*whole));
    let snapshots = ranges.iter().filter(|range| range.kind == "change").count();
    assert_eq!(snapshots + 1, states.len(), "one snapshot for one transaction: {ranges:?}");
    // Its history has each change once.
    let changes =
        books.sql(&live.site, "app.big_history", None, "SELECT count(*), count(DISTINCT _cdc_ordinal) FROM t");
    let expected = format!("[\"{}\",\"{ROWS}\"]", ROWS * (states.len() as u64 - 1));
    if states.len() == 2 {
        assert_eq!(changes.await, [expected]);
    }
}

async fn state(live: &Live, books: &mut Books, snapshot: i64) -> String {
    let sums = books.sql(&live.site, "app.big", Some(snapshot), "SELECT count(*), sum(v)::int8 FROM t").await;
    sums.concat()
}

/// Gives a control group's processes back to its parent and removes it.
fn leave(folder: &Path) {
    for id in fs::read_to_string(folder.join(PROCESSES)).unwrap_or_default().lines() {
        let _ = fs::write(folder.with_file_name(PROCESSES), id);
    }
    let _ = fs::remove_dir(folder);
}

/// What keeps the worker small.
enum Limit {
    Group(PathBuf),
    DataSegment,
}

impl Limit {
    fn set(worker: &Process) -> Self {
        let id = worker.id();
        let group = if std::env::var_os("LAKEHOUSE_DATA_LIMIT").is_some() { None } else { Self::group(id) };
        match group {
            Some(folder) => {
                eprintln!("big transaction: {LIMIT} bytes by the control group {}", folder.display());
                Self::Group(folder)
            }
            None => {
                let set = std::process::Command::new("prlimit")
                    .args([format!("--pid={id}"), format!("--data={LIMIT}")])
                    .status();
                assert!(set.is_ok_and(|status| status.success()), "prlimit refuses");
                eprintln!("big transaction: {LIMIT} bytes by RLIMIT_DATA");
                Self::DataSegment
            }
        }
    }

    /// A child group with the process in it; version 2 where it is mounted, else version 1.
    fn group(id: u32) -> Option<PathBuf> {
        let roots = [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")];
        let (root, limit) = roots.into_iter().find(|(root, limit)| {
            let probe = Path::new(root).join(format!("lakehouse-probe-{id}"));
            let made = fs::create_dir(&probe).is_ok();
            let found = made && probe.join(limit).exists();
            if made {
                let _ = fs::remove_dir(&probe);
            }
            found
        })?;
        let folder = Path::new(root).join(format!("lakehouse-test-{id}"));
        fs::create_dir(&folder).ok()?;
        let set = fs::write(folder.join(limit), LIMIT.to_string())
            .and_then(|()| fs::write(folder.join(PROCESSES), id.to_string()));
        if set.is_err() {
            leave(&folder);
            return None;
        }
        Some(folder)
    }

    /// The most that the process has held.
    fn peak(&self, worker: &Process) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", worker.id())).expect("the process's status");
        let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("VmHWM");
        let cause = match self {
            Self::Group(_) => "under a control group",
            Self::DataSegment => "under RLIMIT_DATA",
        };
        format!("{} {cause}", line.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Self::Group(folder) = self {
            leave(folder);
        }
    }
}
