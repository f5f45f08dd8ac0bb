//! What a cut says of time, `read_until`, is so: everything that was written before it has been read (protocol C9), however
//! late shards are listed and whatever pages leave out. And `verify` under load, which goes by it, comes to the right end.
//!
//! `LAKEHOUSE_SEEDS` sets how many histories, `LAKEHOUSE_SEED` the first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{Lake, Running, until_equal};
use fastrand::Rng;
use futures::future::join_all;
use lakehouse_core::commit::Cut;
use lakehouse_core::verify::{VerifyOptions, VerifyReport};
use serde_json::json;
use testkit::dynamodb::{DynamoDb, Habits, KeyType, View};
use testkit::tier;

const TABLE: &str = "profiles";
/// Histories that run at the same time: each mostly waits.
const AT_ONCE: usize = 4;

fn service(habits: Habits, seed: u64, shards: usize) -> DynamoDb {
    let service = DynamoDb::start_now(habits, seed);
    service.create_table(TABLE, &[("id", KeyType::S)]);
    service.enable_stream(TABLE, View::NewAndOldImages, shards);
    service
}

fn lake(service: &DynamoDb) -> Lake {
    let mut lake = Lake::new(service, &[TABLE]);
    lake.options(TABLE).columns.insert("n".to_owned(), "long".to_owned());
    lake
}

/// Milliseconds since 1970, by the clock that workers go by.
fn now() -> i64 {
    let passed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(passed.expect("a clock behind 1970").as_millis()).expect("a sensible time")
}

/// Writes, and when each of them was done. All come behind the copy: it has what was written before.
struct Written<'a> {
    service: &'a DynamoDb,
    version: u64,
    /// Of the first so many records of the stream, the moment at which they were there.
    done: Vec<(usize, i64)>,
}

impl<'a> Written<'a> {
    fn to(service: &'a DynamoDb) -> Self {
        Self { service, version: 0, done: Vec::new() }
    }

    fn put(&mut self, id: &str) {
        self.version += 1;
        let item = json!({"id": {"S": id}, "n": {"N": self.version.to_string()}, "v": {"S": "x"}});
        self.service.put(TABLE, &item);
        self.version_is_there();
    }

    fn delete(&mut self, id: &str) {
        self.service.delete(TABLE, &json!({"id": {"S": id}}));
        self.version_is_there();
    }

    fn version_is_there(&mut self) {
        self.done.push((self.service.records(TABLE).len(), now()));
    }

    /// Whether the cut claims the last of them; panics where it claims what it has not read.
    fn are_claimed_rightly(&self, cut: Option<&Cut>) -> bool {
        let cut = cut.filter(|cut| !cut.tables.is_empty());
        let claim = cut.and_then(|cut| Some((cut.read_until?, cut.lanes.of(TABLE)?)));
        let Some((until, lanes)) = claim else { return false };
        let before = |(_, done): &&(usize, i64)| *done < until;
        let claimed = self.done.iter().filter(before).map(|(records, _)| *records).max().unwrap_or(0);
        for record in &self.service.records(TABLE)[..claimed] {
            let offset = record.sequence.parse().expect("a sequence number");
            let read = lanes.includes(&record.shard, offset);
            assert!(read, "{until} is claimed and {record:?} is not read: {lanes:?}");
        }
        self.done.last().is_none_or(|(_, done)| *done < until)
    }

    async fn until_claimed(&self, lake: &Lake, running: &mut Running) {
        let standing = async || {
            let cut = lake.cut().await;
            (self.are_claimed_rightly(cut.as_ref()), format!("{:?}", self.done.last()))
        };
        lake.until("the cut claims what was written", running, standing).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_pages_in_front_of_records_are_not_the_tip() {
    let service = service(Habits::default(), 1, 1);
    let mut lake = lake(&service);
    // Room for a cut between two pages.
    lake.source.pace.longest_idle = Duration::from_millis(200);
    let mut running = lake.start();
    let mut written = Written::to(&service);
    for round in 0..5 {
        written.until_claimed(&lake, &mut running).await;
        // The shard has been idle for some pages, none of which says anything of what comes now.
        tokio::time::sleep(Duration::from_millis(500)).await;
        service.empty_next(2);
        written.put(&format!("u{round}"));
    }
    written.until_claimed(&lake, &mut running).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_shards_that_are_listed_late_is_not_claimed() {
    // The only child, for as long as it takes; then one of two, as long as the same three listings in a row are waited for.
    for (splits, listings) in [(false, 12), (true, 2)] {
        let service = service(Habits::default(), 2, 2);
        let mut lake = lake(&service);
        // Room for a cut between two listings.
        lake.source.pace.eager_listing = Duration::from_millis(200);
        let mut running = lake.start();
        let mut written = Written::to(&service);
        for round in 0..3 {
            written.until_claimed(&lake, &mut running).await;
            let shard = service.open_shards(TABLE)[0].clone();
            let late = if splits { service.split(TABLE, &shard).remove(1) } else { service.roll(TABLE, &shard) };
            service.list_late(TABLE, &late, listings);
            for id in 0..20 {
                written.put(&format!("u{round}-{id}"));
            }
        }
        written.until_claimed(&lake, &mut running).await;
        running.stop().await;
    }
}

/// A parent's end and its children are one incarnation's; the next one knows only the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_behind_a_shards_end_waits_for_its_children_too() {
    let service = service(Habits::default(), 3, 2);
    let mut lake = lake(&service);
    lake.source.pace.eager_listing = Duration::from_millis(200);
    let mut running = lake.start();
    let mut written = Written::to(&service);
    written.until_claimed(&lake, &mut running).await;
    let shard = service.open_shards(TABLE)[0].clone();
    let late = service.roll(TABLE, &shard);
    service.list_late(TABLE, &late, 12);
    for id in 0..20 {
        written.put(&format!("u{id}"));
    }
    let ended = async || {
        let cut = lake.cut().await;
        written.are_claimed_rightly(cut.as_ref());
        let lanes = cut.as_ref().and_then(|cut| cut.lanes.of(TABLE));
        let lane = lanes.and_then(|lanes| lanes.lanes.get(&shard).cloned());
        (lane.as_ref().is_some_and(|lane| lane.at == lakehouse_core::lanes::Reached::End), format!("{lane:?}"))
    };
    lake.until("the parent's end is in the cut", &mut running, ended).await;
    running.kill().await;
    let mut running = lake.start();
    written.until_claimed(&lake, &mut running).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_shards_do_no_cut_claims_what_it_has_not_read() {
    let seeds = tier::size("LAKEHOUSE_SEEDS", 6, 200);
    let first = tier::seed();
    eprintln!("claims: LAKEHOUSE_SEED={first} LAKEHOUSE_SEEDS={seeds}");
    let all: Vec<u64> = (first..first + seeds).collect();
    for some in all.chunks(AT_ONCE) {
        join_all(some.iter().map(|&seed| one_history(seed))).await;
    }
}

async fn one_history(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let habits = Habits {
        splits: rng.u32(..40),
        rolls: rng.u32(..40),
        most_open_shards: 6,
        // The second child is missing in up to two.
        listed_late: 1,
        closed_late: rng.u32(..3),
        unordered: rng.bool(),
        throttled: rng.u32(..50),
        internal_errors: rng.u32(..50),
        expired_iterators: rng.u32(..50),
        short_pages: rng.u32(..300),
        ends_with_records: rng.u32(..1_000),
        ..Habits::default()
    };
    let service = service(habits, seed, rng.usize(1..4));
    let mut lake = lake(&service);
    lake.source.pace.eager_listing = Duration::from_millis(30);
    let mut running = lake.start();
    let mut written = Written::to(&service);
    written.until_claimed(&lake, &mut running).await;
    for _ in 0..4 {
        for _ in 0..rng.usize(5..30) {
            let id = format!("u{}", rng.u32(..30));
            if rng.u32(..10) < 3 {
                written.delete(&id)
            } else {
                written.put(&id)
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(..20))).await;
            written.are_claimed_rightly(lake.cut().await.as_ref());
        }
        if rng.bool() {
            running.kill().await;
            running = lake.start();
        }
    }
    written.until_claimed(&lake, &mut running).await;
    running.stop().await;
}

async fn verify(lake: &Lake, service: &DynamoDb) -> VerifyReport {
    let mut source = lake.source.clone();
    source.aws.endpoint = Some(service.endpoint());
    let options = VerifyOptions { show_keys: true, ..VerifyOptions::default() };
    let verified = cdc_dynamodb::verify(&source, lake.environment(), options).await;
    verified.unwrap_or_else(|problem| panic!("{}: {problem}", problem.code))
}

fn shown(report: &VerifyReport) -> String {
    serde_json::to_string(report).expect("a report")
}

/// Shards that are listed later than anybody waits for them, and pages that are empty more often than anybody expects.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_merely_busy_is_never_called_different() {
    const ROUNDS: usize = 6;
    let seed = tier::seed();
    eprintln!("verify under load: LAKEHOUSE_SEED={seed}");
    for history in [true, false] {
        let habits = Habits {
            splits: 20,
            rolls: 20,
            most_open_shards: 8,
            listed_late: 6,
            empty_pages: 300,
            short_pages: 100,
            ..Habits::default()
        };
        let service = Arc::new(service(habits, seed, 4));
        let mut rng = Rng::with_seed(seed);
        let mut load = {
            let service = Arc::clone(&service);
            move || {
                let id = format!("u{}", rng.u32(..3_000));
                match rng.u32(..10) {
                    0..4 => service.delete(TABLE, &json!({"id": {"S": id}})),
                    _ => {
                        let n = rng.u32(..).to_string();
                        service.put(TABLE, &json!({"id": {"S": id}, "n": {"N": n}, "v": {"S": "x"}}));
                    }
                }
            }
        };
        (0..2_000).for_each(|_| load());
        let mut lake = lake(&service);
        lake.source.history = history;
        lake.source.pace.listing_lag = Duration::from_secs(2);
        let mut running = lake.start();
        until_equal(&lake, &service, &mut running, TABLE).await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let loading = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                load();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        for round in 0..ROUNDS {
            let report = verify(&lake, &service).await;
            assert!(report.verdict == "equal", "history {history}, round {round}: {}", shown(&report));
        }
        stop.store(true, Ordering::Relaxed);
        loading.await.expect("no panic");
        until_equal(&lake, &service, &mut running, TABLE).await;
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_and_goes_on_differing_is_called_different() {
    for history in [true, false] {
        let [streamed, other] = [1, 2].map(|seed| service(Habits::default(), seed, 2));
        let put = |service: &DynamoDb, id: &str, n: &str| {
            service.put(TABLE, &json!({"id": {"S": id}, "n": {"N": n}, "v": {"S": "x"}}));
        };
        for id in 0..50 {
            [&streamed, &other].iter().for_each(|service| put(service, &format!("u{id}"), "1"));
        }
        put(&streamed, "gone", "1");
        put(&other, "new", "1");
        put(&other, "u7", "2");
        let mut lake = lake(&streamed);
        lake.source.history = history;
        lake.source.pace.listing_lag = Duration::from_millis(500);
        let mut running = lake.start();
        until_equal(&lake, &streamed, &mut running, TABLE).await;
        let (report, shown) = {
            let report = verify(&lake, &other).await;
            let shown = shown(&report);
            (report, shown)
        };
        let table = &report.tables[0];
        assert_eq!((report.verdict, table.source_rows, table.mirror_rows), ("different", 51, 51), "{shown}");
        assert_eq!((table.only_in_source, table.only_in_mirror, table.differing), (1, 1, 1), "{shown}");
        for id in ["gone", "new", "u7"] {
            assert!(shown.contains(&format!("\"id={id}\"")), "{shown}");
        }
        running.stop().await;
    }
}
