//! What a configuration asks for beside the tables themselves: columns that nobody declared, found before the copy, kept
//! from then on, and never in the way of an item; rows that outlive their items; a copy that takes its time.

use crate::support;
use std::time::{Duration, Instant};

use crate::support::{Lake, Running};
use arrow_array::Array as _;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use cdc_dynamodb::config::TtlDeletes;
use lakehouse_core::catalog::Catalog as _;
use lakehouse_core::schema::TableName;
use lakehouse_core::verify::VerifyOptions;
use serde_json::json;
use testkit::dynamodb::{DynamoDb, Habits, KeyType, View};

const TABLE: &str = "profiles";

async fn columns(lake: &Lake) -> Vec<String> {
    let batches = lake.batches(TABLE).await;
    let Some(batch) = batches.first() else { return Vec::new() };
    batch.schema().fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect()
}

/// `level` and `_rest` of an item.
async fn row(lake: &Lake, id: &str) -> Option<(Option<i64>, Option<String>)> {
    for batch in lake.batches(TABLE).await {
        let column = |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("no {name}")).clone();
        let (ids, level, rest) = (column("id"), column("level"), column("_rest"));
        if let Some(row) = (0..batch.num_rows()).find(|row| ids.as_string::<i32>().value(*row) == id) {
            let level = level.is_valid(row).then(|| level.as_primitive::<Int64Type>().value(row));
            let rest = rest.is_valid(row).then(|| rest.as_string::<i32>().value(row).to_owned());
            return Some((level, rest));
        }
    }
    None
}

async fn until_row(lake: &Lake, running: &mut Running, id: &str, wanted: (Option<i64>, Option<&str>)) {
    let standing = async || {
        let found = row(lake, id).await;
        let same = found.as_ref().is_some_and(|(level, rest)| (*level, rest.as_deref()) == wanted);
        (same, format!("{id}: {found:?}"))
    };
    lake.until("the row", running, standing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_found_before_the_copy_and_kept() {
    let service = DynamoDb::start_now(Habits::default(), 3);
    service.create_table(TABLE, &[("id", KeyType::S)]);
    service.enable_stream(TABLE, View::NewAndOldImages, 1);
    for number in 0..40 {
        let id = format!("u{number}");
        service
            .put(TABLE, &json!({"id": {"S": id}, "level": {"N": "7"}, "Price": {"N": "1.25"}, "tags": {"SS": ["a"]}}));
    }
    let mut lake = Lake::new(&service, &[TABLE]);
    lake.options(TABLE).infer_items = Some(1_000);
    let mut running = lake.start();
    until_row(&lake, &mut running, "u1", (Some(7), Some(r#"{"tags":{"$SS":["a"]}}"#))).await;
    let found = columns(&lake).await;
    let wanted = ["id Utf8", "level Int64", "price Decimal128(38, 2)", "_rest Utf8"];
    assert!(wanted.iter().all(|column| found.contains(&(*column).to_owned())), "{found:?}");
    // Another type for what has a column, and attributes that come later: nothing is lost, nothing changes.
    service.put(TABLE, &json!({"id": {"S": "u2"}, "level": {"S": "high"}, "later": {"N": "1"}}));
    until_row(&lake, &mut running, "u2", (None, Some(r#"{"later":1,"level":"high"}"#))).await;
    running.stop().await;
    for number in 100..160 {
        service.put(TABLE, &json!({"id": {"S": format!("u{number}")}, "level": {"N": "1.5"}, "later": {"N": "1"}}));
    }
    let mut running = lake.start();
    until_row(&lake, &mut running, "u159", (None, Some(r#"{"later":1,"level":1.5}"#))).await;
    assert_eq!(columns(&lake).await, found);
    let options = VerifyOptions { tables: Vec::new(), cut: None, show_keys: true };
    let report = cdc_dynamodb::verify(&lake.source, lake.environment(), options).await.expect("a verdict");
    assert!(report.verdict == "equal", "{}", serde_json::to_string(&report).expect("a report"));
    running.stop().await;
    assert!(lake.cut().await.expect("a cut").left.is_empty());
}

async fn ids(lake: &Lake) -> Vec<String> {
    let mut ids = Vec::new();
    for batch in lake.batches(TABLE).await {
        let column = batch.column_by_name("id").expect("the key").as_string::<i32>().clone();
        ids.extend((0..batch.num_rows()).map(|row| column.value(row).to_owned()));
    }
    ids.sort();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_service_deletes_stays_where_that_is_wanted_and_what_a_client_deletes_goes() {
    for (policy, wanted, word) in [
        (TtlDeletes::Keep, &["back", "expired", "stays"][..], "expire"),
        (TtlDeletes::Delete, &["back", "stays"], "delete"),
    ] {
        let service = DynamoDb::start_now(Habits::default(), 3);
        service.create_table(TABLE, &[("id", KeyType::S)]);
        service.enable_stream(TABLE, View::NewAndOldImages, 1);
        for id in ["stays", "expired", "deleted", "back", "both"] {
            service.put(TABLE, &json!({"id": {"S": id}, "n": {"N": "1"}}));
        }
        let mut lake = Lake::new(&service, &[TABLE]);
        lake.options(TABLE).ttl_deletes = policy;
        let mut running = lake.start();
        lake.until("the copy", &mut running, async || (ids(&lake).await.len() == 5, String::new())).await;
        let key = |id: &str| json!({"id": {"S": id}});
        for id in ["expired", "back", "both"] {
            service.ttl_delete(TABLE, &key(id));
        }
        service.put(TABLE, &json!({"id": {"S": "back"}, "n": {"N": "2"}}));
        service.put(TABLE, &json!({"id": {"S": "both"}, "n": {"N": "2"}}));
        service.delete(TABLE, &key("both"));
        service.delete(TABLE, &key("deleted"));
        lake.until("the changes", &mut running, async || {
            (ids(&lake).await == wanted, format!("{:?}", ids(&lake).await))
        })
        .await;
        running.stop().await;
        let history = lake.history(TABLE, "id").await;
        let of = |id: &str| {
            let changes = history.iter().filter(|change| change.key == id && change.operation != "insert");
            changes.map(|change| (change.operation.clone(), change.actor.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(of("expired"), [(word.to_owned(), true)]);
        assert_eq!(of("deleted"), [("delete".to_owned(), false)]);
        assert_eq!(of("both"), [(word.to_owned(), true), ("delete".to_owned(), false)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_takes_no_more_than_its_read_units() {
    let service = DynamoDb::start_now(Habits::default(), 3);
    service.create_table(TABLE, &[("id", KeyType::S)]);
    service.enable_stream(TABLE, View::NewAndOldImages, 1);
    let text = "x".repeat(3_900);
    for number in 0..400 {
        service.put(TABLE, &json!({"id": {"S": format!("u{number}")}, "text": {"S": text}}));
    }
    let mut lake = Lake::new(&service, &[TABLE]);
    lake.source.settings.copy_read_units = Some(100);
    let begun = Instant::now();
    let mut running = lake.start();
    lake.until("the copy", &mut running, async || (ids(&lake).await.len() == 400, String::new())).await;
    // Not how long it took, but that it did not take less: the first second's units are there at once.
    let units = service.read_units(TABLE);
    let least = Duration::from_secs_f64((units - 2.0 * 100.0) / 110.0);
    assert!(units >= 380.0 && begun.elapsed() >= least, "{units} units in {:?}", begun.elapsed());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_others_at_the_source_stand_in_the_tables_properties() {
    let service = DynamoDb::start_now(Habits::default(), 3);
    service.create_table(TABLE, &[("userId", KeyType::S)]);
    service.enable_stream(TABLE, View::NewAndOldImages, 1);
    let mut lake = Lake::new(&service, &[TABLE]);
    lake.options(TABLE).columns =
        [("a.b".to_owned(), "string".to_owned()), ("plain".to_owned(), "long".to_owned())].into();
    let mut running = lake.start();
    lake.until("a cut", &mut running, async || {
        (lake.cut().await.is_some_and(|cut| !cut.tables.is_empty()), String::new())
    })
    .await;
    running.stop().await;
    let name = TableName::new(support::PIPELINE, TABLE);
    let mirror = lake.catalog().load(&name, None).await.expect("a catalog").expect("a mirror");
    assert_eq!(mirror.property("cdc.columns"), Some(r#"{"a_b":"a.b","userid":"userId"}"#));
}
