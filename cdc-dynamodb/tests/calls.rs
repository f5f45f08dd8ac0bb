//! What the service is asked, and how often: idle shards cost little, listings keep the account's limit, and answers that
//! only look grave – an iterator of long ago, a trim of what is in the copy – stop nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{Lake, Running};
use arrow_array::cast::AsArray;
use cdc_dynamodb::config::Pace;
use serde_json::{Value, json};
use testkit::dynamodb::{DynamoDb, Fault, Habits, KeyType, Operation, View};

const TABLE: &str = "profiles";

fn item(id: &str) -> Value {
    json!({"id": {"S": id}})
}

/// A table with one item and a stream of so many shards.
fn service(shards: usize) -> DynamoDb {
    let service = DynamoDb::start_now(Habits::default(), 5);
    service.create_table(TABLE, &[("id", KeyType::S)]);
    service.put(TABLE, &item("copied"));
    service.enable_stream(TABLE, View::NewAndOldImages, shards);
    service
}

async fn has(lake: &Lake, running: &mut Running, table: &str, wanted: &[&str]) {
    let wanted: BTreeSet<String> = wanted.iter().map(|&id| id.to_owned()).collect();
    lake.until(&format!("{table} has {wanted:?}"), running, async || {
        let mut ids = BTreeSet::new();
        for batch in lake.batches(table).await {
            let column = batch.column_by_name("id").expect("a key").clone();
            ids.extend(column.as_string::<i32>().iter().flatten().map(str::to_owned));
        }
        (ids == wanted, format!("{ids:?}"))
    })
    .await;
}

/// D24: 44 shards that were asked every second cost somebody 22 dollars a month.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_shard_is_asked_less_and_less_until_it_has_something_to_say() {
    const LONGEST: Duration = Duration::from_millis(500);
    let service = service(1);
    let mut lake = Lake::new(&service, &[TABLE]);
    lake.source.pace.first_idle = Duration::from_millis(5);
    lake.source.pace.longest_idle = LONGEST;
    let mut running = lake.start();
    has(&lake, &mut running, TABLE, &["copied"]).await;
    // Seven calls lead from 5 ms to the longest pause.
    tokio::time::sleep(LONGEST * 2).await;
    let (before, begun) = (service.calls(Operation::GetRecords), std::time::Instant::now());
    tokio::time::sleep(LONGEST * 6).await;
    let calls = service.calls(Operation::GetRecords) - before;
    let pauses = begun.elapsed().as_millis() / LONGEST.as_millis();
    assert!(calls as u128 <= pauses + 1, "{calls} calls in {pauses} pauses");
    service.put(TABLE, &item("streamed"));
    has(&lake, &mut running, TABLE, &["copied", "streamed"]).await;
    let before = service.calls(Operation::GetRecords);
    lake.until("it is asked often again", &mut running, async || {
        let calls = service.calls(Operation::GetRecords) - before;
        (calls > 3, format!("{calls} calls"))
    })
    .await;
    running.stop().await;
}

/// D18: the account has ten calls a second, over all of its tables.
#[tokio::test(flavor = "multi_thread")]
async fn listings_of_many_tables_keep_the_limit_of_the_account() {
    let service = DynamoDb::start_now(Habits { describe_stream_limit: Some(10), ..Habits::default() }, 5);
    let tables: Vec<String> = (0..12).map(|number| format!("t{number:02}")).collect();
    for table in &tables {
        service.create_table(table, &[("id", KeyType::S)]);
        service.put(table, &item("copied"));
        service.enable_stream(table, View::NewAndOldImages, 1);
    }
    let mut lake = Lake::new(&service, &tables.iter().map(String::as_str).collect::<Vec<_>>());
    lake.source.pace.describing = Pace::default().describing;
    let mut running = lake.start();
    for table in &tables {
        has(&lake, &mut running, table, &["copied"]).await;
        service.put(table, &item("streamed"));
    }
    for table in &tables {
        has(&lake, &mut running, table, &["copied", "streamed"]).await;
    }
    let most = service.most_describe_stream_calls_per_second();
    assert!((5..=10).contains(&most), "{most} calls within a second");
    running.stop().await;
}

/// D21, D22: a reader that stood still for longer than an iterator lives goes on behind its last record.
#[tokio::test(flavor = "multi_thread")]
async fn iterators_of_twenty_minutes_ago_are_replaced() {
    let service = service(3);
    let lake = Lake::new(&service, &[TABLE]);
    let mut running = lake.start();
    has(&lake, &mut running, TABLE, &["copied"]).await;
    for round in 0..3 {
        let before = service.calls(Operation::GetShardIterator);
        service.put(TABLE, &item(&format!("before-{round}")));
        service.advance(Duration::from_secs(20 * 60));
        service.put(TABLE, &item(&format!("behind-{round}")));
        lake.until("new iterators are asked for", &mut running, async || {
            let calls = service.calls(Operation::GetShardIterator) - before;
            (calls >= 3, format!("{calls} calls"))
        })
        .await;
    }
    let wanted = ["before-0", "behind-0", "before-1", "behind-1", "before-2", "behind-2", "copied"];
    has(&lake, &mut running, TABLE, &wanted).await;
    running.stop().await;
    let history = lake.history(TABLE, "id").await;
    assert_eq!(history.len(), 6, "{history:?}");
    service.assert_one_reader_per_shard();
}

/// What is trimmed is older than a day, and everything of that day is in the copy or still to be read: nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_trim_before_a_shard_was_ever_read_is_no_gap_where_its_changes_are_in_the_copy() {
    let service = service(2);
    for number in 0..10 {
        service.put(TABLE, &item(&format!("old-{number}")));
    }
    for shard in service.open_shards(TABLE) {
        service.trim_shard(TABLE, &shard, 2);
    }
    service.fail_next(Operation::GetShardIterator, Fault::Trimmed, 2);
    let lake = Lake::new(&service, &[TABLE]);
    let mut running = lake.start();
    service.put(TABLE, &item("streamed"));
    let old: Vec<String> = (0..10).map(|number| format!("old-{number}")).collect();
    let wanted: Vec<&str> = old.iter().map(String::as_str).chain(["copied", "streamed"]).collect();
    has(&lake, &mut running, TABLE, &wanted).await;
    assert!(lake.cut().await.expect("a cut").left.is_empty());
    running.stop().await;
}
