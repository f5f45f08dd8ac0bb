//! The planted bug of the shards, and the test that catches it.

use std::time::Duration;

use crate::support::{Lake, mirror, wanted};
use lakehouse_core::planted::{Bug, Planted};
use serde_json::json;
use testkit::dynamodb::{DynamoDb, Fault, Habits, KeyType, Operation, View};

const TABLE: &str = "profiles";
/// Three pages of records in the parent; the item's old value comes last.
const BEFORE: u32 = 2_500;
const ATTEMPTS: usize = 20;

/// Whether an item ends with its newest value although the shard that holds it goes on from a longer one.
async fn ends_with_the_newest(planted: Planted) -> bool {
    let service = DynamoDb::start_now(Habits { short_pages: 900, ..Habits::default() }, 14);
    service.create_table(TABLE, &[("id", KeyType::S)]);
    service.enable_stream(TABLE, View::NewAndOldImages, 1);
    let put = |id: &str, n: u32| {
        service.put(TABLE, &json!({"id": {"S": id}, "n": {"N": n.to_string()}, "v": {"S": "x"}}));
    };
    put("first", 0);
    let mut lake = Lake::new(&service, &[TABLE]);
    lake.options(TABLE).columns.insert("n".to_owned(), "long".to_owned());
    lake.planted = planted;
    let mut running = lake.start();
    put("first", 1);
    let read = async || (mirror(&lake, TABLE).await.get("first").is_some_and(|row| row.0 == 1), String::new());
    lake.until("the copy is done and followed", &mut running, read).await;
    running.stop().await;
    (0..BEFORE).for_each(|n| put(&format!("u{n}"), 1));
    put("item", 1);
    service.roll(TABLE, &service.open_shards(TABLE)[0].clone());
    put("item", 2);
    // The parent is known before the child is listed: its first pages wait.
    service.fail_next(Operation::GetRecords, Fault::Throttled, 6);

    let mut running = lake.start();
    let all = wanted(&service, TABLE);
    let standing = async || {
        let rows = mirror(&lake, TABLE).await;
        (rows.len() == all.len(), format!("{} of {} rows", rows.len(), all.len()))
    };
    lake.until("every item is in the mirror", &mut running, standing).await;
    // What was read too early is followed by what should have come before it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    running.stop().await;
    mirror(&lake, TABLE).await["item"].0 == 2
}

#[tokio::test(flavor = "multi_thread")]
async fn b14_a_child_shard_read_before_its_parent_is_caught() {
    assert!(ends_with_the_newest(Planted::none()).await);
    // It takes two readers that race.
    for _ in 0..ATTEMPTS {
        if !ends_with_the_newest(Planted::only(Bug::ChildBeforeParent)).await {
            return;
        }
    }
    panic!("the planted bug goes unnoticed");
}
