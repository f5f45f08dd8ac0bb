//! Histories of a table whose shards split, roll over, are listed late and throttle, under random writes during the copy
//! and after, with crashes: the mirror equals the table item for item, the history has each record once (D12, D13, D20).
//!
//! `LAKEHOUSE_SEEDS` sets how many, `LAKEHOUSE_SEED` the first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::support::{Lake, mirror, wanted};
use fastrand::Rng;
use futures::future::join_all;
use serde_json::json;
use testkit::dynamodb::{DynamoDb, Habits, KeyType, View};
use testkit::tier;

const TABLE: &str = "profiles";
/// Histories that run at the same time: each mostly waits.
const AT_ONCE: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_shards_do_the_mirror_is_the_table_and_the_history_has_each_record_once() {
    let seeds = tier::size("LAKEHOUSE_SEEDS", 40, 1_000);
    let first = tier::seed();
    eprintln!("histories of shards: LAKEHOUSE_SEED={first} LAKEHOUSE_SEEDS={seeds}");
    let all: Vec<u64> = (first..first + seeds).collect();
    for some in all.chunks(AT_ONCE) {
        join_all(some.iter().map(|&seed| one_history(seed))).await;
    }
}

/// Names the seed of a history that fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("under way: LAKEHOUSE_SEED={} LAKEHOUSE_SEEDS=1", self.0);
        }
    }
}

fn habits(rng: &mut Rng) -> Habits {
    let mut some = |most: u32| if rng.bool() { 0 } else { rng.u32(1..=most) };
    Habits {
        splits: some(40),
        rolls: some(40),
        most_open_shards: 6,
        listed_late: some(3),
        closed_late: some(3),
        unordered: some(1) == 1,
        throttled: some(100),
        internal_errors: some(50),
        expired_iterators: some(100),
        empty_pages: some(300),
        short_pages: some(300),
        ends_with_records: some(1_000),
        largest_scan: if some(1) == 1 { 3 } else { usize::MAX },
        ..Habits::default()
    }
}

/// Writes of one client: what is there afterwards is the simulator's to say.
struct Writer<'a> {
    service: &'a DynamoDb,
    rng: Rng,
    version: u64,
}

impl Writer<'_> {
    fn some(&mut self, most: u32) {
        for _ in 0..self.rng.u32(..most) {
            let id = format!("u{}", self.rng.u32(..30));
            self.version += 1;
            match self.rng.u32(..10) {
                0..2 => self.service.delete(TABLE, &json!({"id": {"S": id}})),
                2 => self.service.ttl_delete(TABLE, &json!({"id": {"S": id}})),
                _ => {
                    let item = json!({"id": {"S": id}, "n": {"N": self.version.to_string()}, "v": {"S": "x"}});
                    self.service.put(TABLE, &item);
                }
            }
        }
    }
}

async fn one_history(seed: u64) {
    let _seed = Seed(seed);
    let mut rng = Rng::with_seed(seed);
    let service = DynamoDb::start_now(habits(&mut rng), seed);
    service.create_table(TABLE, &[("id", KeyType::S)]);
    service.enable_stream(TABLE, View::NewAndOldImages, rng.usize(1..4));
    let mut writer = Writer { service: &service, rng: rng.fork(), version: 0 };
    writer.some(60);
    let mut lake = Lake::new(&service, &[TABLE]);
    lake.options(TABLE).columns.insert("n".to_owned(), "long".to_owned());
    // Each page of the copy a chunk, where a killed copy goes on; or one chunk a segment.
    if rng.bool() {
        lake.source.pace.copy_chunk = Duration::ZERO;
    }

    // Of the time before the copy the history has what stood in shards that had not ended, no more.
    let mut before = None;
    for _ in 0..rng.usize(1..5) {
        let running = lake.start();
        for _ in 0..rng.usize(1..8) {
            writer.some(40);
            tokio::time::sleep(Duration::from_millis(rng.u64(..30))).await;
        }
        match rng.u32(..4) {
            0 => running.stop().await,
            _ => running.kill().await,
        }
        if before.is_none() && lake.cut().await.is_some_and(|cut| !cut.tables.is_empty()) {
            before = Some(places(&service));
        }
    }
    let mut running = lake.start();
    writer.some(40);
    let (wanted, sent) = (wanted(&service, TABLE), places(&service));
    let before = before.unwrap_or_else(|| sent.clone());
    let due: BTreeSet<&(String, String)> = sent.difference(&before).collect();
    let standing = async || {
        let history = lake.history(TABLE, "id").await;
        let there: BTreeSet<(String, String)> =
            history.into_iter().map(|change| (change.lane, change.offset)).collect();
        let missing: Vec<_> = due.iter().filter(|place| !there.contains(**place)).take(3).cloned().cloned().collect();
        let mirror = mirror(&lake, TABLE).await;
        let differing: Vec<_> = mirror.iter().filter(|(id, row)| wanted.get(*id) != Some(row)).take(3).collect();
        let absent: Vec<_> = wanted.keys().filter(|id| !mirror.contains_key(*id)).take(3).collect();
        let equal = missing.is_empty() && mirror == wanted;
        (equal, format!("not in the history: {missing:?}; wrong in the mirror: {differing:?}; absent: {absent:?}"))
    };
    lake.until("the mirror is the table, and the history has all records", &mut running, standing).await;
    running.stop().await;

    let history = lake.history(TABLE, "id").await;
    let places: Vec<(String, String)> =
        history.iter().map(|change| (change.lane.clone(), change.offset.clone())).collect();
    let distinct: BTreeSet<&(String, String)> = places.iter().collect();
    assert_eq!(distinct.len(), places.len(), "a record stands twice in the history");
    let unknown: Vec<_> = distinct.iter().filter(|place| !sent.contains(**place)).take(3).collect();
    assert!(unknown.is_empty(), "in the history and not in the stream: {unknown:?}");
    // Each item's changes in the order in which they were made: never a child before its parent.
    let mut last: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for change in &history {
        let offset = change.offset.trim_start_matches('0');
        let place = (offset.len(), offset);
        let before = last.insert(&change.key, place);
        assert!(before.is_none_or(|before| before < place), "{change:?} stands behind {before:?}");
    }
    service.assert_one_reader_per_shard();
}

/// Shard and sequence number of every record of the stream.
fn places(service: &DynamoDb) -> BTreeSet<(String, String)> {
    let place = |record: testkit::dynamodb::Recorded| (record.shard, record.sequence);
    service.records(TABLE).into_iter().map(place).collect()
}
