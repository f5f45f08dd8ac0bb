//! `kill -9`, hundreds of times, at any moment: nothing is lost, nothing comes twice, no transaction is split.
//!
//! Two writers keep a bank busy the whole time. Each round begins with an empty lake, so that starting, creating the slot
//! and copying are hit as often as streaming. `LAKEHOUSE_KILLS` sets the number of kills, `LAKEHOUSE_SEED` the seed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::live::books::{Books, assert_joined};
use crate::live::{PIPELINE, Site};
use fastrand::Rng;
use testkit::bank::{ACCOUNT_COLUMNS, Bank};
use testkit::lakehouse::Process;
use testkit::oracle;
use testkit::postgres::{Cluster, Options};
use testkit::tier;

const ACCOUNTS: u64 = 25;
/// Kills before the lake is checked and a new one begins.
const ROUND: u64 = 50;
/// Lives of a round that end within the first start and its copies.
const FIRST: u64 = 12;
/// Between two transactions of a writer.
const PAUSE: Duration = Duration::from_millis(8);
/// How closely log and files are watched.
const POLL: Duration = Duration::from_millis(1);
/// The longest life of a worker: longer than a commit's interval.
const LONGEST: Duration = Duration::from_millis(1_800);
/// How long a line that may not come at all is waited for.
const SHORTEST: Duration = Duration::from_millis(400);

/// Beside the bank, so that a copy has many commits: each partition is one.
const BALLAST: &str = "
    CREATE TABLE ballast (id int PRIMARY KEY, filler text) PARTITION BY RANGE (id);
    DO $$ BEGIN FOR n IN 0..7 LOOP
        EXECUTE format('CREATE TABLE ballast_%s PARTITION OF ballast FOR VALUES FROM (%s) TO (%s)',
            n, n * 25000, (n + 1) * 25000);
    END LOOP; END $$;
    INSERT INTO ballast SELECT n, md5(n::text) FROM generate_series(0, 199999) n";

/// Rows that are only changed all at once, by transactions that come to the worker in parts.
const WIDE: &str = "
    CREATE TABLE wide (id int PRIMARY KEY, generation int NOT NULL, filler text NOT NULL);
    INSERT INTO wide SELECT n, 0, repeat(md5(n::text), 8) FROM generate_series(1, 30000) n";

const TABLES: [&str; 8] = [
    "app.account",
    "app.account_history",
    "app.ledger",
    "app.ledger_history",
    "app.ballast",
    "app.ballast_history",
    "app.wide",
    "app.wide_history",
];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_or_split_however_often_the_worker_is_killed() {
    let kills = tier::size("LAKEHOUSE_KILLS", 40, 1_000);
    let seed = tier::seed();
    eprintln!("kills: LAKEHOUSE_SEED={seed} LAKEHOUSE_KILLS={kills}");
    let begun = Instant::now();
    let mut cluster = Cluster::start(Options::default()).await;
    let bank = Bank::open(&cluster, "postgres", ACCOUNTS).await;
    cluster.sql("postgres", BALLAST).await;
    cluster.sql("postgres", WIDE).await;
    let mut books = Books::open().await;
    let mut rng = Rng::with_seed(seed);
    let mut tally = Tally::default();
    for round in 0..kills.div_ceil(ROUND) {
        let site = fresh(&cluster).await;
        let load = bank.start(2, PAUSE);
        for life in 0..ROUND.min(kills - round * ROUND) {
            let phase = cycle(&site, &mut cluster, &mut rng, &mut tally, life < FIRST).await;
            *tally.phases.entry(phase).or_default() += 1;
        }
        let checking = Instant::now();
        let worker = site.start();
        // Under load first: `verify` compares again what changes meanwhile.
        site.caught_up().await;
        let verified = site.lakehouse.ask(&["verify"]).await;
        assert_eq!(verified["verdict"], "equal", "{verified}");
        load.stop().await;
        // A last change, so that what is waited for is a batch and not the pace of cuts of a silent source.
        bank.work(round, 1).await;
        site.caught_up().await;
        let snapshots = check(&site, &cluster, &bank, &mut books).await;
        assert_eq!(site.lakehouse.ask(&["fsck"]).await["verdict"], "sound");
        drop(worker);
        eprintln!(
            "kills: round {round}: {snapshots} snapshots and cuts sound, checked in {:?}, {:?} altogether",
            checking.elapsed(),
            begun.elapsed()
        );
    }
    eprintln!("kills: {tally:?}");
}

/// What was done, and what it hit.
#[derive(Debug, Default)]
struct Tally {
    /// By what the worker's log said last.
    phases: BTreeMap<&'static str, u64>,
    local_state_deleted: u64,
    local_state_damaged: u64,
    servers_crashed: u64,
    wide_transactions: u64,
}

/// An empty lake, and nothing left of the one before at the source.
async fn fresh(cluster: &Cluster) -> Site {
    cluster.sql("postgres", "DROP PUBLICATION IF EXISTS lakehouse_app").await;
    let drop_slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
    // The server may not have noticed yet that the last worker is gone.
    while cluster.try_sql("postgres", drop_slots).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut site = Site::new(cluster, "memory = \"16MiB\"");
    site.lakehouse.set_environment("RUST_LOG", "info,lakehouse_core::commit=debug");
    site
}

/// One life of a worker: started, killed, and sometimes robbed of its local state. Returns what it was at.
async fn cycle(site: &Site, cluster: &mut Cluster, rng: &mut Rng, tally: &mut Tally, first: bool) -> &'static str {
    if rng.u8(0..6) == 0 {
        cluster.sql("postgres", "UPDATE wide SET generation = generation + 1").await;
        tally.wide_transactions += 1;
    }
    let mut worker = site.start();
    match first {
        true => tokio::time::sleep(Duration::from_micros(rng.u64(20_000..600_000))).await,
        false => live_until_fate(site, &worker, rng).await,
    }
    let crash = rng.u8(0..100) < 3;
    if crash {
        cluster.stop_immediate().await;
        tokio::time::sleep(Duration::from_millis(rng.u64(0..300))).await;
    }
    assert!(worker.is_running(), "it has ended by itself: {}", worker.stderr());
    worker.kill().await;
    let phase = phase(&worker.stderr());
    if crash {
        tally.servers_crashed += 1;
        cluster.restart().await;
    }
    let state = site.path().join("state");
    match rng.u8(0..100) {
        0..=7 if state.exists() => {
            tally.local_state_deleted += 1;
            fs::remove_dir_all(&state).expect("delete the local state");
        }
        8..=22 => tally.local_state_damaged += u64::from(damage(&state, rng)),
        _ => {}
    }
    phase
}

/// Waits for a moment that is worth a kill.
async fn live_until_fate(site: &Site, worker: &Process, rng: &mut Rng) {
    const LINES: [&str; 6] =
        ["has taken over", "slot is created", "is created", "copy begins", "copy is done", "key index"];
    let deadline = Instant::now() + LONGEST;
    match rng.u8(0..100) {
        // Start-up, and what comes right behind it.
        0..=14 => tokio::time::sleep(Duration::from_micros(rng.u64(0..60_000))).await,
        15..=29 => tokio::time::sleep(Duration::from_millis(rng.u64(0..400))).await,
        // A later one of several equal lines, as there is one for each table.
        30..=39 => {
            let (line, times) = (LINES[rng.usize(0..LINES.len())], rng.usize(1..=3));
            watch(Instant::now() + SHORTEST, || worker.stderr().matches(line).count() >= times).await;
        }
        // Around a commit: at one of the next changes of the catalog, or of a table's files.
        40..=89 => {
            let place = place(site, rng);
            watch(deadline, || worker.stderr().contains("has taken over")).await;
            for _ in 0..rng.u8(1..=4) {
                let before = touched(&place);
                watch(deadline, || touched(&place) != before).await;
            }
        }
        _ => tokio::time::sleep(Duration::from_millis(rng.u64(400..1_500))).await,
    }
    if rng.u8(0..3) == 0 {
        tokio::time::sleep(Duration::from_micros(rng.u64(0..20_000))).await;
    }
}

fn place(site: &Site, rng: &mut Rng) -> PathBuf {
    let lake = site.path().join("lake");
    let table = ["account", "account_history", "ledger", "ledger_history", "wide"][rng.usize(0..5)];
    match rng.u8(0..4) {
        0 => lake.join("warehouse/app").join(table).join("data"),
        1 => lake.join("warehouse/app").join(table).join("metadata"),
        2 => lake.join("warehouse/lakehouse_control").join(PIPELINE).join("metadata"),
        _ => lake.join("catalog.db-wal"),
    }
}

fn touched(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

pub(crate) async fn watch(deadline: Instant, mut seen: impl FnMut() -> bool) {
    while Instant::now() < deadline && !seen() {
        tokio::time::sleep(POLL).await;
    }
}

/// Cuts off, overwrites or empties one file of the local state; false if there is none.
fn damage(state: &Path, rng: &mut Rng) -> bool {
    let mut files = files_below(state);
    files.sort();
    if files.is_empty() {
        return false;
    }
    let file = &files[rng.usize(0..files.len())];
    let mut bytes = fs::read(file).expect("read local state");
    match rng.u8(0..3) {
        0 => bytes.truncate(rng.usize(0..=bytes.len())),
        1 => bytes.iter_mut().for_each(|byte| *byte = rng.u8(..)),
        _ if bytes.is_empty() => bytes.push(0),
        _ => {
            let place = rng.usize(0..bytes.len());
            bytes[place] ^= 1 << rng.u8(0..8);
        }
    }
    fs::write(file, bytes).expect("damage local state");
    true
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// What a worker was at when it was killed, by its log.
fn phase(log: &str) -> &'static str {
    let last = |part: &str| log.rfind(part);
    if last("has taken over").is_none() {
        return if log.contains("slot is created") { "2 slot created, not taken over" } else { "1 start-up" };
    }
    if last("copy begins") > last("copy is done") {
        return "4 copy";
    }
    match (last("batch is durable"), last("\"committed\"")) {
        (durable, committed) if committed > durable => "6 between the commits of a cut",
        (None, _) if last("copy is done").is_none() => "3 taken over, before copy or first batch",
        _ => "5 streaming",
    }
}

/// Everything that must hold of a quiet lake that has caught up. Returns how many snapshots and cuts were read.
async fn check(site: &Site, cluster: &Cluster, bank: &Bank, books: &mut Books) -> usize {
    let client = cluster.connect("postgres").await;
    for table in ["account", "ledger", "wide"] {
        let (table, source) = (format!("app.{table}"), format!("public.{table}"));
        let found = books.rows(site, &table, &[]).await;
        let mut expected = oracle::rows(&client, &source).await;
        expected.sort();
        if let Some(difference) = oracle::difference(&expected, &found) {
            panic!("{table}: {difference}");
        }
    }
    let mut read = 0;
    for table in TABLES {
        let ranges = books.ranges(site, table).await;
        assert_joined(table, &ranges);
        // The last snapshot of the copy is the first that is whole.
        let copied = ranges.iter().position(|range| range.kind == "change").unwrap_or(ranges.len());
        for range in &ranges[copied.saturating_sub(1)..] {
            match table {
                "app.account" => {
                    let accounts = accounts(site, books, Some(range.snapshot)).await;
                    bank.check_snapshot(&accounts).unwrap_or_else(|wrong| panic!("{range:?}: {wrong}"));
                }
                "app.wide" => {
                    let query = "SELECT count(*), count(DISTINCT generation) FROM t";
                    let found = books.sql(site, table, Some(range.snapshot), query).await;
                    assert_eq!(found, [r#"["30000","1"]"#], "{range:?}: a part of a transaction");
                }
                _ => continue,
            }
            read += 1;
        }
    }
    let cuts = books.cuts(site).await;
    assert!(cuts.is_sorted_by_key(|cut| cut.position), "{cuts:?}");
    for cut in &cuts {
        // The first cuts of a pipeline come before its copies.
        let (Some(&account), Some(&ledger)) = (cut.tables.get("app.account"), cut.tables.get("app.ledger")) else {
            continue;
        };
        let accounts = accounts(site, books, Some(account)).await;
        // Sums of a pair of accounts are as good as their entries, and few.
        let sums = "SELECT source, target, sum(amount) FROM t GROUP BY ALL";
        let ledger = books.sql(site, "app.ledger", Some(ledger), sums).await;
        bank.check_cut(&accounts, &ledger).unwrap_or_else(|wrong| panic!("{cut:?}: {wrong}"));
        read += 1;
    }
    assert!(read > 0, "no snapshot was read");
    // An entry is inserted once and never changed, so its change is in the history once, or it came by the copy.
    let doubled = "SELECT count(*) - count(DISTINCT id) FROM t";
    assert_eq!(books.sql(site, "app.ledger_history", None, doubled).await, [r#"["0"]"#]);
    let doubled = "SELECT count(*) - count(DISTINCT (_cdc_position, _cdc_ordinal)) FROM t";
    assert_eq!(books.sql(site, "app.account_history", None, doubled).await, [r#"["0"]"#]);
    read
}

async fn accounts(site: &Site, books: &mut Books, snapshot: Option<i64>) -> Vec<String> {
    let all = format!("SELECT {} FROM t", ACCOUNT_COLUMNS.join(", "));
    books.sql(site, "app.account", snapshot, &all).await
}
