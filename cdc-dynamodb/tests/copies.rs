//! Copies that take longer than the stream keeps its records, and streams of thousands of shards (D10, D20, D36).

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::{Lake, PIPELINE, until_equal};
use serde_json::{Value, json};
use testkit::dynamodb::{DynamoDb, Fault, Habits, KeyType, Operation, View};

const TABLE: &str = "profiles";

fn service(shards: usize, seed: u64) -> DynamoDb {
    let service = DynamoDb::start_now(Habits::default(), seed);
    service.create_table(TABLE, &[("id", KeyType::S)]);
    service.enable_stream(TABLE, View::NewAndOldImages, shards);
    service
}

fn lake(service: &DynamoDb) -> Lake {
    let mut lake = Lake::new(service, &[TABLE]);
    lake.options(TABLE).columns.insert("n".to_owned(), "long".to_owned());
    lake
}

fn put(service: &DynamoDb, ids: impl Iterator<Item = usize>, n: usize) {
    for id in ids {
        service.put(TABLE, &json!({"id": {"S": format!("u{id}")}, "n": {"N": n.to_string()}, "v": {"S": "x"}}));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_trimmed_while_a_copy_runs_has_been_read_before() {
    let service = service(3, 1);
    put(&service, 0..200, 1);
    let lake = lake(&service);
    // The scan waits longer and longer between its attempts, and the stream goes on.
    service.fail_next(Operation::Scan, Fault::Throttled, 12);
    let mut running = lake.start();
    let scanned = async || (service.calls(Operation::Scan) >= 4, String::new());
    lake.until("the scan has begun", &mut running, scanned).await;
    put(&service, (0..200).step_by(2), 2);
    service.delete(TABLE, &json!({"id": {"S": "u5"}}));
    let before = service.calls(Operation::GetRecords);
    let read = async || (service.calls(Operation::GetRecords) >= before + 30, String::new());
    lake.until("the shards have been read meanwhile", &mut running, read).await;
    assert_eq!(lake.batches(TABLE).await.len(), 0, "the copy was too fast for this test");
    service.trim(TABLE);
    put(&service, (0..200).step_by(3), 3);
    until_equal(&lake, &service, &mut running, TABLE).await;
    let sent: BTreeSet<(String, String)> =
        service.records(TABLE).into_iter().map(|record| (record.shard, record.sequence)).collect();
    let standing = async || {
        let history = lake.history(TABLE, "id").await;
        let there: BTreeSet<_> = history.into_iter().map(|change| (change.lane, change.offset)).collect();
        (there == sent, format!("{} of {} records in the history", there.len(), sent.len()))
    };
    lake.until("the history has every record, also those that are trimmed", &mut running, standing).await;
    running.stop().await;
    assert!(lake.cut().await.expect("a cut").left.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_too_long_for_a_property_stand_in_a_file_that_the_metadata_names() {
    let service = service(2_500, 2);
    put(&service, 0..300, 1);
    let mut lake = lake(&service);
    lake.source.pace.longest_idle = Duration::from_millis(500);
    lake.source.pace.listing = Duration::from_secs(2);
    let mut running = lake.start();
    put(&service, (0..300).step_by(2), 2);
    until_equal(&lake, &service, &mut running, TABLE).await;
    running.kill().await;
    // Another incarnation goes on from what the file says.
    put(&service, (0..300).step_by(3), 3);
    let mut running = lake.start();
    until_equal(&lake, &service, &mut running, TABLE).await;
    // What is copied may be read before the copy is done: only a change shows that the stream is followed.
    put(&service, (0..300).step_by(7), 4);
    until_equal(&lake, &service, &mut running, TABLE).await;
    running.stop().await;

    for table in [format!("{PIPELINE}.{TABLE}"), format!("lakehouse_control.{PIPELINE}")] {
        let metadata = metadata(&lake, &table).await;
        let property = metadata["properties"]["cdc.lanes"].as_str().expect("lanes");
        let reference: Value = serde_json::from_str(property).expect("JSON");
        let path = reference["spilled"].as_str().unwrap_or_else(|| panic!("{table}: {property:.200}"));
        let statistics = metadata["statistics"].as_array().expect("statistics");
        assert_eq!(statistics.len(), 1, "only the newest: {statistics:?}");
        assert_eq!(statistics[0]["statistics-path"], path);
        assert_eq!(statistics[0]["snapshot-id"], metadata["current-snapshot-id"]);
        let file = file(path);
        let bytes = i64::try_from(fs::metadata(&file).expect("the file").len()).expect("a length");
        assert_eq!(statistics[0]["file-size-in-bytes"], bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_lanes_and_damaged_ones_are_told_apart() {
    for (code, damage) in [("GAP", None), ("CHECKPOINT", Some("else"))] {
        let service = service(2_500, 3);
        put(&service, 0..50, 1);
        let mut lake = lake(&service);
        lake.source.pace.longest_idle = Duration::from_millis(500);
        let mut running = lake.start();
        until_equal(&lake, &service, &mut running, TABLE).await;
        running.stop().await;
        let metadata = metadata(&lake, &format!("lakehouse_control.{PIPELINE}")).await;
        let property = metadata["properties"]["cdc.lanes"].as_str().expect("lanes");
        let reference: Value = serde_json::from_str(property).expect("JSON");
        let path = file(reference["spilled"].as_str().expect("a path"));
        match damage {
            None => fs::remove_file(path).expect("removed"),
            Some(text) => fs::write(path, text).expect("overwritten"),
        }
        let ended = lake.start().task.await.expect("no panic");
        assert_eq!(ended.expect_err("nothing is guessed").code, code);
    }
}

/// The table's metadata file, as JSON.
async fn metadata(lake: &Lake, table: &str) -> Value {
    use lakehouse_core::catalog::Catalog as _;
    let loaded = lake.catalog().load(&table.parse().expect("a name"), None).await.expect("readable").expect("there");
    let text = fs::read(file(&loaded.metadata_location)).expect("a metadata file");
    serde_json::from_slice(&text).expect("JSON")
}

fn file(location: &str) -> PathBuf {
    PathBuf::from(location.strip_prefix("file://").unwrap_or(location))
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_shards_over_six_generations_end_with_the_table() {
    let service = service(500, 4);
    put(&service, 0..500, 1);
    let mut lake = lake(&service);
    lake.source.pace.longest_idle = Duration::from_secs(1);
    lake.source.pace.listing = Duration::from_millis(500);
    let mut running = lake.start();
    until_equal(&lake, &service, &mut running, TABLE).await;
    for generation in 2..8 {
        let open = service.open_shards(TABLE);
        // Half of them split while there are few, the others roll over.
        for (number, shard) in open.iter().enumerate() {
            match number % 2 == 0 && open.len() < 900 {
                true => drop(service.split(TABLE, shard)),
                false => drop(service.roll(TABLE, shard)),
            }
        }
        put(&service, (0..500).step_by(generation), generation);
    }
    assert!(service.shards(TABLE).len() >= 5_000, "{}", service.shards(TABLE).len());
    until_equal(&lake, &service, &mut running, TABLE).await;
    running.stop().await;
    assert!(lake.cut().await.expect("a cut").left.is_empty());
    service.assert_one_reader_per_shard();
}
