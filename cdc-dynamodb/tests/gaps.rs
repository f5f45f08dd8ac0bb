//! Records that are gone before they were read: the table halts with what is known of the gap, and a resync, by policy or
//! by an operator, makes the mirror the table again, without what the source no longer has (D26, D28, D29).
//!
//! `LAKEHOUSE_SEEDS` sets how many histories, `LAKEHOUSE_SEED` the first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::support::{Lake, PIPELINE, mirror, until_equal};
use cdc_dynamodb::config::OnGap;
use fastrand::Rng;
use lakehouse_core::commit::Control;
use lakehouse_core::schema::TableName;
use lakehouse_core::storage::Storage;
use serde_json::json;
use testkit::dynamodb::{DynamoDb, Habits, KeyType, View};
use testkit::tier;

const TABLE: &str = "profiles";
const SHARDS: usize = 3;

fn service(habits: Habits, seed: u64) -> DynamoDb {
    let service = DynamoDb::start_now(habits, seed);
    service.create_table(TABLE, &[("id", KeyType::S)]);
    service.enable_stream(TABLE, View::NewAndOldImages, SHARDS);
    service
}

fn put(service: &DynamoDb, id: u32, n: u32) {
    let item = json!({"id": {"S": format!("u{id}")}, "n": {"N": n.to_string()}, "v": {"S": "x"}});
    service.put(TABLE, &item);
}

fn lake(service: &DynamoDb, on_gap: OnGap) -> Lake {
    let mut lake = Lake::new(service, &[TABLE]);
    lake.options(TABLE).columns.insert("n".to_owned(), "long".to_owned());
    lake.source.settings.on_gap = on_gap;
    lake.source.pace.listing_lag = Duration::from_millis(300);
    lake
}

/// Code and reason of the table's mark in the cut.
async fn mark(lake: &Lake) -> Option<(String, String)> {
    let left = lake.cut().await?.left.remove(TABLE)?;
    Some((left.code, left.reason))
}

/// Every shard has been read some way, and then changes come that nobody reads before they are trimmed: new items, changed
/// ones, and some that are deleted.
async fn a_gap(lake: &Lake, service: &DynamoDb) {
    let mut running = lake.start();
    (0..60).for_each(|id| put(service, id, 1));
    until_equal(lake, service, &mut running, TABLE).await;
    (0..60).for_each(|id| put(service, id, 2));
    until_equal(lake, service, &mut running, TABLE).await;
    running.stop().await;
    (0..10).for_each(|id| service.delete(TABLE, &json!({"id": {"S": format!("u{id}")}})));
    (20..80).for_each(|id| put(service, id, 3));
    service.trim(TABLE);
    (30..90).for_each(|id| put(service, id, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn trimmed_records_halt_the_table_with_shard_and_last_sequence_number() {
    let service = service(Habits::default(), 1);
    let lake = lake(&service, OnGap::Fail);
    a_gap(&lake, &service).await;
    let before = mirror(&lake, TABLE).await;
    let mut running = lake.start();
    let standing = async || (mark(&lake).await.is_some(), String::new());
    lake.until("the table has left the cut", &mut running, standing).await;
    let (code, reason) = mark(&lake).await.expect("a mark");
    assert_eq!(code, "GAP");
    let shards: BTreeMap<String, String> =
        service.records(TABLE).into_iter().map(|record| (record.shard, record.sequence)).collect();
    assert!(shards.keys().any(|shard| reason.contains(shard.as_str())), "{reason}");
    assert!(service.records(TABLE).iter().any(|record| reason.contains(&record.sequence)), "{reason}");
    assert!(reason.contains("last read to its tip: 0 h 0 min ago"), "{reason}");
    // Nothing more is applied.
    put(&service, 99, 9);
    tokio::time::sleep(Duration::from_millis(300)).await;
    running.stop().await;
    assert_eq!(mirror(&lake, TABLE).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_after_a_gap_deletes_what_the_source_no_longer_has_and_goes_on() {
    let service = service(Habits::default(), 2);
    let lake = lake(&service, OnGap::Resync);
    a_gap(&lake, &service).await;
    let mut running = lake.start();
    until_equal(&lake, &service, &mut running, TABLE).await;
    let known: BTreeSet<(String, String)> =
        service.records(TABLE).into_iter().map(|record| (record.shard, record.sequence)).collect();
    (0..100).step_by(3).for_each(|id| put(&service, id, 5));
    until_equal(&lake, &service, &mut running, TABLE).await;
    assert_eq!(mark(&lake).await, None);
    running.stop().await;
    // What has come since is in the history, once.
    let history = lake.history(TABLE, "id").await;
    let places: Vec<_> = history.into_iter().map(|change| (change.lane, change.offset)).collect();
    let distinct: BTreeSet<_> = places.iter().cloned().collect();
    assert_eq!(places.len(), distinct.len(), "a record stands twice in the history");
    let later = service.records(TABLE).into_iter().map(|record| (record.shard, record.sequence));
    let missing: Vec<_> = later.filter(|place| !known.contains(place) && !distinct.contains(place)).collect();
    assert!(missing.is_empty(), "not in the history: {missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_vanishes_at_work_is_a_gap_that_a_resync_repairs() {
    let service = service(Habits::default(), 3);
    let lake = lake(&service, OnGap::Resync);
    let mut running = lake.start();
    (0..60).for_each(|id| put(&service, id, 1));
    until_equal(&lake, &service, &mut running, TABLE).await;
    let shard = service.open_shards(TABLE)[1].clone();
    (0..60).for_each(|id| put(&service, id, 2));
    service.roll(TABLE, &shard);
    service.vanish(TABLE, &shard);
    (30..60).for_each(|id| put(&service, id, 3));
    until_equal(&lake, &service, &mut running, TABLE).await;
    let cut = lake.cut().await.expect("a cut");
    assert!(cut.epoch > 1, "no other incarnation has copied the table");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_stream_under_the_table_is_another_source_until_a_resync() {
    let service = service(Habits::default(), 4);
    let mut lake = lake(&service, OnGap::Fail);
    let mut running = lake.start();
    (0..30).for_each(|id| put(&service, id, 1));
    until_equal(&lake, &service, &mut running, TABLE).await;
    // What is copied may be read before the copy is done: only a change shows that the stream is followed.
    put(&service, 0, 2);
    until_equal(&lake, &service, &mut running, TABLE).await;
    running.stop().await;
    service.disable_stream(TABLE);
    (10..40).for_each(|id| put(&service, id, 2));
    service.delete(TABLE, &json!({"id": {"S": "u3"}}));
    service.enable_stream(TABLE, View::NewAndOldImages, SHARDS);
    (20..50).for_each(|id| put(&service, id, 3));

    let mut running = lake.start();
    let standing = async || (mark(&lake).await.is_some_and(|(code, _)| code == "IDENTITY"), String::new());
    lake.until("the table has left the cut", &mut running, standing).await;
    running.stop().await;
    lake.source.settings.on_gap = OnGap::Resync;
    let mut running = lake.start();
    until_equal(&lake, &service, &mut running, TABLE).await;
    put(&service, 1, 4);
    until_equal(&lake, &service, &mut running, TABLE).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_with_gaps_and_operators_and_crashes_end_with_the_table() {
    let seeds = tier::size("LAKEHOUSE_SEEDS", 6, 200);
    let first = tier::seed();
    for seed in first..first + seeds {
        eprintln!("a history with gaps: LAKEHOUSE_SEED={seed} LAKEHOUSE_SEEDS=1");
        one_history(seed).await;
    }
}

async fn one_history(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let mut some = |most: u32| if rng.bool() { 0 } else { rng.u32(1..=most) };
    let habits =
        Habits { throttled: some(100), expired_iterators: some(100), empty_pages: some(200), ..Habits::default() };
    let service = service(habits, seed);
    let lake = lake(&service, OnGap::Resync);
    let mut version = 10;
    let mut write = |rng: &mut Rng| {
        for _ in 0..rng.u32(1..60) {
            let id = rng.u32(..50);
            version += 1;
            match rng.u8(..5) {
                0 => service.delete(TABLE, &json!({"id": {"S": format!("u{id}")}})),
                _ => put(&service, id, version),
            }
        }
    };
    for _ in 0..rng.usize(1..4) {
        let mut running = lake.start();
        (0..50).for_each(|id| put(&service, id, 1));
        write(&mut rng);
        until_equal(&lake, &service, &mut running, TABLE).await;
        match rng.u8(..3) {
            0 => running.kill().await,
            1 => running.stop().await,
            // Nobody reads what comes now, and then it is gone. Of every shard something has been read: what is trimmed of
            // the others is older than what the copy has seen, by the service's clock.
            _ => {
                (0..50).for_each(|id| put(&service, id, 2));
                until_equal(&lake, &service, &mut running, TABLE).await;
                running.stop().await;
                write(&mut rng);
                service.trim(TABLE);
                write(&mut rng);
                let again = lake.start();
                tokio::time::sleep(Duration::from_millis(rng.u64(..400))).await;
                again.kill().await;
            }
        }
        if rng.u8(..3) == 0 {
            let running = lake.start();
            write(&mut rng);
            request(&lake).await;
            write(&mut rng);
            tokio::time::sleep(Duration::from_millis(rng.u64(..200))).await;
            running.kill().await;
        }
    }
    let mut running = lake.start();
    write(&mut rng);
    until_equal(&lake, &service, &mut running, TABLE).await;
    running.stop().await;
}

/// What `lakehouse resync` does.
async fn request(lake: &Lake) {
    let environment = lake.environment();
    let mirror = TableName::new(PIPELINE, TABLE);
    let tables = BTreeMap::from([(TABLE.to_owned(), vec![mirror.history(), mirror])]);
    loop {
        let control = Control::open(environment.catalog.clone(), Storage::local(), PIPELINE).await;
        let mut control = control.expect("a control table");
        // A worker's commit may come between: an operator would ask again.
        if control.request_resync(&tables, "test").await.is_ok() {
            return;
        }
    }
}
