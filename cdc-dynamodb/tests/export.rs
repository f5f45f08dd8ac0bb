//! Exports of point-in-time recovery, from the request to the files, against the simulator of the service: the copy by a
//! full one, and gaps of the stream that incremental ones close.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::support::{Lake, Running};
use arrow_array::cast::AsArray;
use cdc_dynamodb::config::{CopyRoad, ExportPlace, OnGap};
use serde_json::json;
use testkit::dynamodb::{DynamoDb, Fault, Habits, KeyType, Operation, View};
use tokio::task::JoinHandle;

const TABLE: &str = "profiles";

/// A service whose clock goes; it stops with the handle.
struct Going {
    service: Arc<DynamoDb>,
    clock: JoinHandle<()>,
}

impl Drop for Going {
    fn drop(&mut self) {
        self.clock.abort();
    }
}

fn going(habits: Habits) -> Going {
    // The table is older than the shortest window.
    let hours = Duration::from_secs(2 * 3_600);
    let service = Arc::new(DynamoDb::start(habits, 11));
    service.advance(SystemTime::now().duration_since(service.now()).expect("a later time") - hours);
    service.create_table(TABLE, &[("id", KeyType::S)]);
    service.enable_stream(TABLE, View::NewAndOldImages, 2);
    service.advance(hours);
    let ticking = Arc::clone(&service);
    let clock = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            ticking.advance(Duration::from_millis(20));
        }
    });
    Going { service, clock }
}

fn put(service: &DynamoDb, number: u64, version: u64) {
    service.put(TABLE, &json!({"id": {"S": format!("u{number}")}, "n": {"N": version.to_string()}}));
}

fn lake(service: &DynamoDb) -> Lake {
    let mut lake = Lake::new(service, &[TABLE]);
    lake.source.aws.s3_endpoint = Some(service.endpoint());
    let place = ExportPlace::new("exports", Some("a/b".to_owned()));
    lake.source.settings.exports =
        Some(ExportPlace { margin: Duration::ZERO, poll: Duration::from_millis(20), ..place });
    lake
}

/// The mirror as lines of key and `_rest`.
async fn mirror(lake: &Lake) -> Vec<String> {
    let mut rows = Vec::new();
    for batch in lake.batches(TABLE).await {
        let text = |name: &str| batch.column_by_name(name).expect("the column").as_string::<i32>().clone();
        let (ids, rest) = (text("id"), text("_rest"));
        rows.extend((0..batch.num_rows()).map(|row| format!("{} {}", ids.value(row), rest.value(row))));
    }
    rows.sort();
    rows
}

fn wanted(service: &DynamoDb) -> Vec<String> {
    let row = |item: testkit::dynamodb::Item| {
        format!("{} {{\"n\":{}}}", item["id"]["S"].as_str().expect("a key"), item["n"]["N"].as_str().expect("a number"))
    };
    let mut rows: Vec<String> = service.items(TABLE).into_iter().map(row).collect();
    rows.sort();
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_copied_by_an_export_and_followed_from_before_it() {
    let going = going(Habits { export_looks: 3, splits: 20, rolls: 20, ..Habits::default() });
    let service = &*going.service;
    (0..500).for_each(|number| put(service, number, 0));
    service.fail_next(Operation::ExportTableToPointInTime, Fault::LimitExceeded, 2);
    service.fail_next(Operation::DescribeExport, Fault::Internal, 5);
    let mut lake = lake(service);
    lake.source.settings.copy = CopyRoad::Export;
    let mut running = lake.start();
    // While the export is waited for, and after.
    for version in 1..40 {
        (0..20).for_each(|number| put(service, number * 7 + version, version));
        service.delete(TABLE, &json!({"id": {"S": format!("u{}", 400 + version)}}));
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    let wanted = wanted(service);
    lake.until("the mirror is the table", &mut running, async || {
        let mirror = mirror(&lake).await;
        (mirror == wanted, format!("{} rows of {}", mirror.len(), wanted.len()))
    })
    .await;
    running.stop().await;
    assert_eq!(service.calls(Operation::Scan), 0, "an export costs the table nothing");
    assert!(service.calls(Operation::DescribeExport) > 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_an_export_stops_the_copy_with_its_name() {
    for (code, spoil) in [
        ("PITR_DISABLED", (|service: &DynamoDb| service.point_in_time_recovery(TABLE, false)) as fn(&DynamoDb)),
        ("EXPORT_FAILED", |service| service.fail_exports(1)),
        ("PERMISSION", |service| service.deny(Operation::ExportTableToPointInTime)),
        ("PERMISSION", |service| service.deny(Operation::DescribeExport)),
    ] {
        let going = going(Habits::default());
        put(&going.service, 1, 1);
        spoil(&going.service);
        let mut lake = lake(&going.service);
        lake.options(TABLE).copy = Some(CopyRoad::Export);
        let problem = lake.start().task.await.expect("no panic").expect_err("a copy that cannot be");
        assert_eq!(problem.code, code, "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_gone_before_it_is_read_is_no_empty_file() {
    let going = going(Habits { export_looks: 200, ..Habits::default() });
    let service = &*going.service;
    (0..50).for_each(|number| put(service, number, 0));
    let mut lake = lake(service);
    lake.options(TABLE).copy = Some(CopyRoad::Export);
    let mut running = lake.start();
    lake.until("the export is written", &mut running, async || (!service.objects().is_empty(), String::new())).await;
    let data = service.objects().into_keys().filter(|key| key.ends_with(".json.gz"));
    data.take(1).for_each(|key| service.set_object(&key, None));
    let problem = running.task.await.expect("no panic").expect_err("a copy that cannot be");
    assert_eq!(problem.code, "EXPORT_MISSING", "{problem}");
    assert!(mirror(&lake).await.is_empty());
}

async fn until_equal(lake: &Lake, running: &mut Running, service: &DynamoDb) {
    let wanted = wanted(service);
    lake.until("the mirror is the table", running, async || {
        let mirror = mirror(lake).await;
        let cut = lake.cut().await.is_some_and(|cut| cut.tables.len() == 2 && cut.left.is_empty());
        (mirror == wanted && cut, format!("{} rows of {}", mirror.len(), wanted.len()))
    })
    .await;
}

/// The keys that the source no longer has behind a loss.
const DELETED: std::ops::Range<u64> = 30..40;

fn change(service: &DynamoDb) {
    (0..30).for_each(|number| put(service, number, 1));
    DELETED.for_each(|number| service.delete(TABLE, &json!({"id": {"S": format!("u{number}")}})));
}

/// Changes that the stream has lost by the time anybody reads it.
fn lose(service: &DynamoDb) {
    change(service);
    service.trim(TABLE);
    (0..10).for_each(|number| put(service, number * 3, 2));
}

/// The same, as every shard that was being read has ended and gone.
fn lose_shards(service: &DynamoDb) {
    change(service);
    for shard in service.open_shards(TABLE) {
        service.roll(TABLE, &shard);
        service.vanish(TABLE, &shard);
    }
    (0..10).for_each(|number| put(service, number * 3, 2));
}

type Loss = fn(&DynamoDb);

const LOSSES: [(&str, Loss); 2] = [("trimmed", lose), ("vanished", lose_shards)];

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_a_start_finds_is_closed_by_an_incremental_export() {
    for (_, loses) in LOSSES {
        let going = going(Habits { export_looks: 2, ..Habits::default() });
        let service = &*going.service;
        (0..60).for_each(|number| put(service, number, 0));
        let mut lake = lake(service);
        lake.source.settings.on_gap = OnGap::IncrementalExport;
        lake.source.pace.listing_lag = Duration::from_millis(300);
        let mut running = lake.start();
        until_equal(&lake, &mut running, service).await;
        put(service, 1, 9);
        until_equal(&lake, &mut running, service).await;
        running.stop().await;
        loses(service);
        let mut running = lake.start();
        until_equal(&lake, &mut running, service).await;
        // It goes on by the stream, also through another start.
        (0..10).for_each(|number| put(service, number, 3));
        until_equal(&lake, &mut running, service).await;
        running.stop().await;
        let exports = service.calls(Operation::ExportTableToPointInTime);
        let mut running = lake.start();
        (0..10).for_each(|number| put(service, number, 4));
        until_equal(&lake, &mut running, service).await;
        running.stop().await;
        assert_eq!(service.calls(Operation::ExportTableToPointInTime), exports, "one gap, one export");
        let history = lake.history(TABLE, "id").await;
        assert!(
            history.iter().any(|change| change.lane.starts_with("export/")),
            "the history has the export's changes"
        );
    }
}

/// What each policy makes of either loss. The source is the judge, also of what it no longer has.
#[tokio::test(flavor = "multi_thread")]
async fn either_loss_halts_the_table_or_is_repaired_as_the_policy_says() {
    for (loss, loses) in LOSSES {
        for on_gap in [OnGap::Fail, OnGap::IncrementalExport, OnGap::Resync] {
            eprintln!("{loss}, {on_gap:?}");
            let going = going(Habits::default());
            let service = &*going.service;
            let mut lake = lake(service);
            lake.source.settings.on_gap = on_gap;
            lake.source.pace.listing_lag = Duration::from_millis(300);
            let mut running = lake.start();
            // Twice each: so every shard is read to its last record.
            for version in [0, 9] {
                (0..60).for_each(|number| put(service, number, version));
                until_equal(&lake, &mut running, service).await;
            }
            running.stop().await;
            let before = mirror(&lake).await;
            let reached: BTreeMap<String, String> =
                service.records(TABLE).into_iter().map(|record| (record.shard, record.sequence)).collect();
            loses(service);
            let mut running = lake.start();
            match on_gap {
                OnGap::Fail => {
                    let left = async || lake.cut().await.and_then(|cut| cut.left.get(TABLE).cloned());
                    lake.until("the gap is told", &mut running, async || (left().await.is_some(), String::new())).await;
                    let left = left().await.expect("it was waited for");
                    assert_eq!(left.code, "GAP", "{loss}: {left:?}");
                    let told = |(shard, sequence): (&String, &String)| {
                        left.reason.contains(shard.as_str())
                            && left.reason.contains(&format!("read up to {};", sequence.trim_start_matches('0')))
                    };
                    assert!(reached.iter().any(told), "{loss}: shard and last number: {left:?} {reached:?}");
                    assert!(left.reason.contains("last read to its tip: 0 h "), "{loss}: its age: {left:?}");
                    assert_eq!(mirror(&lake).await, before, "{loss}: something was written across the gap");
                }
                OnGap::IncrementalExport => {
                    until_equal(&lake, &mut running, service).await;
                    let history = lake.history(TABLE, "id").await;
                    let deleted: BTreeSet<String> = history
                        .into_iter()
                        .filter(|change| change.lane.starts_with("export/") && change.operation == "delete")
                        .map(|change| change.key)
                        .collect();
                    assert_eq!(deleted, DELETED.map(|number| format!("u{number}")).collect(), "{loss}");
                }
                OnGap::Resync => until_equal(&lake, &mut running, service).await,
            }
            let exports = service.calls(Operation::ExportTableToPointInTime);
            assert_eq!(exports > 0, on_gap == OnGap::IncrementalExport, "{loss}, {on_gap:?}: {exports} exports");
            running.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_in_the_middle_is_closed_while_other_tables_go_on() {
    const OTHER: &str = "orders";
    let going = going(Habits { export_looks: 20, ..Habits::default() });
    let service = &*going.service;
    service.create_table(OTHER, &[("id", KeyType::S)]);
    service.enable_stream(OTHER, View::NewAndOldImages, 1);
    (0..20).for_each(|number| put(service, number, 0));
    let mut lake = Lake::new(service, &[TABLE, OTHER]);
    let place = ExportPlace::new("exports", None);
    lake.source.aws.s3_endpoint = Some(service.endpoint());
    lake.source.settings.exports =
        Some(ExportPlace { margin: Duration::ZERO, poll: Duration::from_millis(20), ..place });
    lake.options(TABLE).on_gap = Some(OnGap::IncrementalExport);
    lake.source.pace.listing_lag = Duration::from_millis(300);
    let mut running = lake.start();
    lake.until("the copy", &mut running, async || (mirror(&lake).await == wanted(service), String::new())).await;
    let shard = service.open_shards(TABLE)[0].clone();
    service.fail_next(Operation::GetRecords, Fault::Throttled, 30);
    (0..20).for_each(|number| put(service, number, 1));
    service.roll(TABLE, &shard);
    service.vanish(TABLE, &shard);
    service.put(OTHER, &json!({"id": {"S": "o1"}}));
    let wanted = wanted(service);
    lake.until("both mirrors", &mut running, async || {
        let other: usize = lake.batches(OTHER).await.iter().map(arrow_array::RecordBatch::num_rows).sum();
        (mirror(&lake).await == wanted && other == 1, format!("{other} orders"))
    })
    .await;
    running.stop().await;
    assert!(service.calls(Operation::ExportTableToPointInTime) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_left_for_its_gap_comes_back_when_the_policy_changes() {
    let going = going(Habits::default());
    let service = &*going.service;
    (0..60).for_each(|number| put(service, number, 0));
    let mut lake = lake(service);
    let mut running = lake.start();
    until_equal(&lake, &mut running, service).await;
    put(service, 1, 9);
    until_equal(&lake, &mut running, service).await;
    running.stop().await;
    lose(service);
    let mut running = lake.start();
    let left = async || lake.cut().await.is_some_and(|cut| cut.left.get(TABLE).is_some_and(|left| left.code == "GAP"));
    lake.until("the gap is told", &mut running, async || (left().await, String::new())).await;
    running.stop().await;
    put(service, 2, 5);
    // Without recovery it stays as it is, and says why.
    service.point_in_time_recovery(TABLE, false);
    lake.source.settings.on_gap = OnGap::IncrementalExport;
    let mut running = lake.start();
    let told = async || {
        let cut = lake.cut().await;
        cut.and_then(|cut| cut.left.get(TABLE).map(|left| left.reason.clone())).unwrap_or_default()
    };
    lake.until("why", &mut running, async || (told().await.contains("PITR_DISABLED"), told().await)).await;
    running.stop().await;
    service.point_in_time_recovery(TABLE, true);
    let mut running = lake.start();
    until_equal(&lake, &mut running, service).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_stream_is_no_gap_that_an_export_closes() {
    let going = going(Habits::default());
    let service = &*going.service;
    (0..20).for_each(|number| put(service, number, 0));
    let mut lake = lake(service);
    lake.source.settings.on_gap = OnGap::IncrementalExport;
    let mut running = lake.start();
    until_equal(&lake, &mut running, service).await;
    running.stop().await;
    let before = mirror(&lake).await;
    service.disable_stream(TABLE);
    (0..10).for_each(|number| put(service, number, 1));
    service.enable_stream(TABLE, View::NewAndOldImages, 2);
    let mut running = lake.start();
    let code = async || lake.cut().await.and_then(|cut| cut.left.get(TABLE).map(|left| left.code.clone()));
    lake.until("the table has left", &mut running, async || (code().await.is_some(), String::new())).await;
    assert_eq!(code().await.as_deref(), Some("IDENTITY"));
    running.stop().await;
    assert_eq!((mirror(&lake).await, service.calls(Operation::ExportTableToPointInTime)), (before, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn validation_finds_that_recovery_is_off_where_exports_are_wanted() {
    let going = going(Habits::default());
    going.service.point_in_time_recovery(TABLE, false);
    let mut lake = lake(&going.service);
    let codes = async |lake: &Lake| {
        let findings = cdc_dynamodb::validate(&lake.source, None).await.expect("findings");
        findings.into_iter().map(|finding| finding.code).collect::<Vec<_>>()
    };
    assert_eq!(codes(&lake).await, Vec::<&str>::new());
    lake.options(TABLE).on_gap = Some(OnGap::IncrementalExport);
    assert_eq!(codes(&lake).await, ["PITR_DISABLED"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_is_killed_begins_anew_and_ends_well() {
    let seed = fastrand::u64(..);
    eprintln!("kills of a bridge: seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let going = going(Habits { export_looks: 2, splits: 10, rolls: 10, most_open_shards: 4, ..Habits::default() });
    let service = &*going.service;
    (0..60).for_each(|number| put(service, number, 0));
    let mut lake = lake(service);
    lake.source.settings.on_gap = OnGap::IncrementalExport;
    lake.source.pace.listing_lag = Duration::from_millis(300);
    let mut running = lake.start();
    until_equal(&lake, &mut running, service).await;
    running.stop().await;
    lose(service);
    for round in 3..11 {
        let running = lake.start();
        tokio::time::sleep(Duration::from_millis(rng.u64(..700))).await;
        running.kill().await;
        (0..20).for_each(|_| put(service, rng.u64(..80), round));
    }
    let mut running = lake.start();
    until_equal(&lake, &mut running, service).await;
    (0..20).for_each(|number| put(service, number, 20));
    until_equal(&lake, &mut running, service).await;
    running.stop().await;
    let history = lake.history(TABLE, "id").await;
    let places: BTreeSet<_> = history.iter().map(|change| (change.lane.clone(), change.offset.clone())).collect();
    assert_eq!(places.len(), history.len(), "a change stands twice in the history");
}
