//! Copies that are killed go on where they stood, from the keys that their last chunk's commit holds (D6), and the stream is
//! followed from where it was noted before the first page (D4).

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use crate::support::{Lake, PIPELINE, Running, until_equal};
use lakehouse_core::catalog::Catalog as _;
use lakehouse_core::commit::properties::{CopyProgress, TableState};
use lakehouse_core::schema::TableName;
use serde_json::{Value, json};
use testkit::dynamodb::{DynamoDb, Fault, Habits, KeyType, Operation, View};

const TABLE: &str = "profiles";
const ITEMS: usize = 60;
/// Items of a page, and so of a chunk.
const PAGE: usize = 4;

fn service(seed: u64) -> DynamoDb {
    let service = DynamoDb::start_now(Habits { largest_scan: PAGE, ..Habits::default() }, seed);
    service.create_table(TABLE, &[("id", KeyType::S)]);
    service.enable_stream(TABLE, View::NewAndOldImages, 3);
    put(&service, 0..ITEMS, 1);
    service
}

/// Every page is a chunk of its own.
fn lake(service: &DynamoDb) -> Lake {
    let mut lake = Lake::new(service, &[TABLE]);
    lake.options(TABLE).columns.insert("n".to_owned(), "long".to_owned());
    lake.source.pace.copy_chunk = Duration::ZERO;
    lake
}

fn put(service: &DynamoDb, ids: impl Iterator<Item = usize>, n: usize) {
    for id in ids {
        service.put(TABLE, &json!({"id": {"S": format!("u{id}")}, "n": {"N": n.to_string()}, "v": {"S": "x"}}));
    }
}

async fn state(lake: &Lake) -> Option<TableState> {
    let table = lake.catalog().load(&TableName::new(PIPELINE, TABLE), None).await.expect("readable")?;
    Some(TableState::of(&table).expect("properties"))
}

async fn progress(lake: &Lake) -> Option<CopyProgress> {
    state(lake).await.and_then(|state| state.copy)
}

/// Starts a worker and kills it once so many pages more have been scanned, or once the copy is done.
async fn scan_and_kill(lake: &Lake, service: &DynamoDb, pages: usize) {
    let before = service.calls(Operation::Scan);
    let mut running = lake.start();
    let scanned = async || {
        let done = progress(lake).await.is_some_and(|progress| progress.done);
        (done || service.calls(Operation::Scan) >= before + pages, String::new())
    };
    lake.until("pages are scanned", &mut running, scanned).await;
    running.kill().await;
}

/// Starts a worker and kills it once so many chunks stand in the table.
async fn copy_and_kill(lake: &Lake, chunks: u64) -> CopyProgress {
    let mut running = lake.start();
    let landed = async || (progress(lake).await.is_some_and(|progress| progress.chunks >= chunks), String::new());
    lake.until("chunks have landed", &mut running, landed).await;
    running.kill().await;
    let progress = progress(lake).await.expect("a copy");
    assert!(!progress.done, "the copy was too fast for this test");
    progress
}

/// The mirror is the table, and the history has every record of it.
async fn ends_well(lake: &Lake, service: &DynamoDb, running: &mut Running) {
    until_equal(lake, service, running, TABLE).await;
    let sent: BTreeSet<(String, String)> =
        service.records(TABLE).into_iter().map(|record| (record.shard, record.sequence)).collect();
    let standing = async || {
        let history = lake.history(TABLE, "id").await;
        let distinct: BTreeSet<_> = history.iter().map(|change| (change.lane.clone(), change.offset.clone())).collect();
        assert_eq!(distinct.len(), history.len(), "a record stands twice in the history");
        (distinct == sent, format!("{} of {} records in the history", distinct.len(), sent.len()))
    };
    lake.until("the history has every record", running, standing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_page_ends_with_the_same_table() {
    // Fifteen pages of items, and some more, as each segment has a last one.
    for pages in 1..=ITEMS / PAGE + 3 {
        let service = service(pages as u64);
        let lake = lake(&service);
        scan_and_kill(&lake, &service, pages).await;
        let (begun, scanned) = (progress(&lake).await, service.calls(Operation::Scan));
        put(&service, (0..ITEMS).step_by(3), 2);
        // Noted anew, a shard that has ended would count as older than the copy.
        service.open_shards(TABLE).iter().for_each(|shard| drop(service.roll(TABLE, shard)));
        put(&service, (0..ITEMS).step_by(5), 3);
        let mut running = lake.start();
        // Nothing of it had landed: it begins anew, and its history with it.
        let Some(begun) = begun else {
            until_equal(&lake, &service, &mut running, TABLE).await;
            running.stop().await;
            continue;
        };
        ends_well(&lake, &service, &mut running).await;
        running.stop().await;
        let ended = progress(&lake).await.expect("a copy");
        assert_eq!(ended.attempt, begun.attempt, "the copy was begun anew after {pages} pages");
        // What was read and not committed is read again, and no more: one page of each worker.
        let again = service.calls(Operation::Scan) - scanned;
        let left = ITEMS.div_ceil(PAGE) + 2 - usize::try_from(begun.chunks).expect("few");
        assert!(begun.done || again <= left + 2, "{again} pages were read after {pages}, {begun:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_after_every_page_still_ends() {
    let service = service(100);
    let lake = lake(&service);
    let (mut before, mut kills) = (copy_and_kill(&lake, 1).await, 0);
    while !before.done {
        put(&service, (kills % 7..ITEMS).step_by(7), kills + 2);
        let mut running = lake.start();
        let on =
            async || (progress(&lake).await.is_some_and(|progress| progress.chunks > before.chunks), String::new());
        lake.until("a chunk has landed", &mut running, on).await;
        running.kill().await;
        let now = progress(&lake).await.expect("a copy");
        assert_eq!(now.attempt, before.attempt, "the copy was begun anew");
        (before, kills) = (now, kills + 1);
    }
    assert!(kills >= 5, "the copy was too fast for this test: {kills} kills");
    put(&service, (0..ITEMS).step_by(4), 100);
    let mut running = lake.start();
    ends_well(&lake, &service, &mut running).await;
    running.stop().await;
}

/// Makes the mirror's metadata say something else of where the stream is followed from.
async fn rewrite_lanes(lake: &Lake, change: impl FnOnce(&mut Value)) {
    let table = lake.catalog().load(&TableName::new(PIPELINE, TABLE), None).await.expect("readable").expect("there");
    let file = table.metadata_location.strip_prefix("file://").unwrap_or(&table.metadata_location);
    let mut metadata: Value = serde_json::from_slice(&fs::read(file).expect("a metadata file")).expect("JSON");
    let property = &mut metadata["properties"]["cdc.lanes"];
    let mut lanes: Value = serde_json::from_str(property.as_str().expect("lanes")).expect("JSON");
    change(&mut lanes);
    *property = lanes.to_string().into();
    fs::write(file, metadata.to_string()).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_begin_the_stream_may_have_forgotten_begins_anew() {
    let service = service(200);
    let lake = lake(&service);
    let before = copy_and_kill(&lake, 2).await;
    rewrite_lanes(&lake, |lanes| {
        let noted = lanes["read_until"].as_i64().expect("a time");
        lanes["read_until"] = (noted - 24 * 3_600_000).into();
    })
    .await;
    // Else the spool says how far the stream has been followed since.
    fs::remove_dir_all(lake.folder.path().join("state")).expect("local state may go at any time");
    put(&service, (0..ITEMS).step_by(3), 2);
    let mut running = lake.start();
    until_equal(&lake, &service, &mut running, TABLE).await;
    running.stop().await;
    assert_ne!(progress(&lake).await.expect("a copy").attempt, before.attempt);
    assert!(lake.cut().await.expect("a cut").left.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_another_stream_begins_anew() {
    let service = service(300);
    let lake = lake(&service);
    let before = copy_and_kill(&lake, 2).await;
    service.disable_stream(TABLE);
    put(&service, (0..ITEMS).step_by(3), 2);
    service.enable_stream(TABLE, View::NewAndOldImages, 2);
    put(&service, (0..ITEMS).step_by(5), 3);
    let mut running = lake.start();
    until_equal(&lake, &service, &mut running, TABLE).await;
    running.stop().await;
    assert_ne!(progress(&lake).await.expect("a copy").attempt, before.attempt);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_columns_have_changed_begins_anew() {
    let service = service(400);
    let mut lake = lake(&service);
    let before = copy_and_kill(&lake, 2).await;
    lake.options(TABLE).columns.insert("v".to_owned(), "string".to_owned());
    let mut running = lake.start();
    let done = async || (progress(&lake).await.is_some_and(|progress| progress.done), String::new());
    lake.until("the copy is done", &mut running, done).await;
    running.stop().await;
    assert_ne!(progress(&lake).await.expect("a copy").attempt, before.attempt);
    let nulls: usize = lake
        .batches(TABLE)
        .await
        .iter()
        .map(|batch| {
            use arrow_array::Array as _;
            batch.column_by_name("v").expect("the new column").null_count()
        })
        .sum();
    assert_eq!(nulls, 0, "rows of before the change stand beside the new ones");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_stand_in_the_tables_properties_alone() {
    let service = service(500);
    let lake = lake(&service);
    let resume = copy_and_kill(&lake, 2).await.resume.expect("keys");
    let resume: Value = serde_json::from_str(&resume).expect("JSON");
    let keys = resume["open"].as_object().expect("segments").values().filter(|key| !key.is_null());
    assert!(keys.clone().count() >= 1 && keys.clone().all(|key| key["id"]["S"].is_string()), "{resume}");
    let mut running = lake.start();
    until_equal(&lake, &service, &mut running, TABLE).await;
    // The rows are there before the page that says that a segment has no more of them.
    let done = async || (progress(&lake).await.is_some_and(|progress| progress.done), String::new());
    lake.until("the copy is done", &mut running, done).await;
    running.stop().await;
    assert_eq!(progress(&lake).await.expect("a copy").resume, None, "a copy that is done needs none");
}

/// Kills a worker in the middle of the copy, once it has read everything that the stream holds by then.
async fn read_and_kill(lake: &Lake, service: &DynamoDb) -> CopyProgress {
    // The scan waits longer and longer between its attempts, and the stream goes on.
    let mut running = lake.start();
    let landed = async || (progress(lake).await.is_some_and(|progress| progress.chunks >= 2), String::new());
    lake.until("chunks have landed", &mut running, landed).await;
    service.fail_next(Operation::Scan, Fault::Throttled, 12);
    put(service, (0..ITEMS).step_by(2), 2);
    service.delete(TABLE, &json!({"id": {"S": "u5"}}));
    service.open_shards(TABLE).iter().for_each(|shard| drop(service.roll(TABLE, shard)));
    put(service, (0..ITEMS).step_by(3), 3);
    let before = service.calls(Operation::GetRecords);
    let read = async || (service.calls(Operation::GetRecords) >= before + 60, String::new());
    lake.until("the shards have been read meanwhile", &mut running, read).await;
    running.kill().await;
    let progress = progress(lake).await.expect("a copy");
    assert!(!progress.done, "the copy was too fast for this test");
    progress
}

/// As if the copy had been begun so many hours before.
async fn age(lake: &Lake, hours: i64) {
    rewrite_lanes(lake, |lanes| {
        let noted = lanes["read_until"].as_i64().expect("a time");
        lanes["read_until"] = (noted - hours * 3_600_000).into();
    })
    .await;
}

/// A copy that was killed and has become older than anything that its stream still holds.
async fn outlived(seed: u64) -> (DynamoDb, Lake, CopyProgress) {
    let service = service(seed);
    let lake = lake(&service);
    let before = read_and_kill(&lake, &service).await;
    age(&lake, 30).await;
    service.trim(TABLE);
    put(&service, (0..ITEMS).step_by(4), 4);
    (service, lake, before)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_longer_than_the_stream_goes_on_with_what_was_read_of_it_before_a_kill() {
    let (service, lake, before) = outlived(600).await;
    let mut running = lake.start();
    ends_well(&lake, &service, &mut running).await;
    running.stop().await;
    assert_eq!(progress(&lake).await.expect("a copy").attempt, before.attempt, "the copy was begun anew");
    assert!(lake.cut().await.expect("a cut").left.is_empty());
    let spool = lake.folder.path().join("state/stream-spool");
    assert_eq!(fs::read_dir(spool).expect("a folder").count(), 0, "what the lake holds is kept no longer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_being_said_again_outlives_a_kill_too() {
    let (service, lake, _) = outlived(700).await;
    // Whenever the worker is killed, also between the end of the copy and the cut that holds all of the spool.
    for milliseconds in (0..400).step_by(20) {
        let running = lake.start();
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        running.kill().await;
    }
    let mut running = lake.start();
    ends_well(&lake, &service, &mut running).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_spool_a_copy_longer_than_the_stream_begins_anew() {
    let (service, lake, before) = outlived(800).await;
    fs::remove_dir_all(lake.folder.path().join("state")).expect("local state may go at any time");
    let mut running = lake.start();
    until_equal(&lake, &service, &mut running, TABLE).await;
    put(&service, (0..ITEMS).step_by(7), 5);
    until_equal(&lake, &service, &mut running, TABLE).await;
    running.stop().await;
    assert_ne!(progress(&lake).await.expect("a copy").attempt, before.attempt);
    assert!(lake.cut().await.expect("a cut").left.is_empty());
}
