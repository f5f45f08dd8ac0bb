//! Several workers on one pipeline: one reads, the others stand by and take over; whatever becomes of the lease, each
//! change is in the lake once.

use std::time::Duration;

use crate::support::{Lake, PIPELINE, Running};
use arrow_array::cast::AsArray;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType as Role, ScalarAttributeType,
    StreamSpecification, StreamViewType,
};
use cdc_dynamodb::config::LeaseSettings;
use lakehouse_core::catalog::Catalog as _;
use lakehouse_core::commit::CONTROL_NAMESPACE;
use lakehouse_core::schema::TableName;
use serde_json::{Value, json};
use testkit::dynamodb::{DynamoDb, Habits, KeyType, Operation, View, client};
use testkit::emulators::Ministack;

const TABLE: &str = "profiles";
const LEASES: &str = "leases";

fn service() -> DynamoDb {
    let service = DynamoDb::start_now(Habits::default(), 5);
    service.create_table(TABLE, &[("id", KeyType::S)]);
    service.enable_stream(TABLE, View::NewAndOldImages, 2);
    service.create_table(LEASES, &[("lease", KeyType::S)]);
    service
}

fn lake(service: &DynamoDb, duration: Duration) -> Lake {
    let mut lake = Lake::new(service, &[TABLE]);
    lake.source.settings.lease = Some(LeaseSettings { table: LEASES.to_owned(), duration });
    lake
}

fn put(service: &DynamoDb, number: u64) {
    service.put(TABLE, &json!({"id": {"S": format!("u{number}")}}));
}

fn lease(service: &DynamoDb) -> Option<Value> {
    service.items(LEASES).into_iter().next().map(Value::Object)
}

async fn ids(lake: &Lake) -> usize {
    let mut ids = std::collections::BTreeSet::new();
    for batch in lake.batches(TABLE).await {
        let column = batch.column_by_name("id").expect("the key").as_string::<i32>().clone();
        for row in 0..batch.num_rows() {
            assert!(ids.insert(column.value(row).to_owned()), "a key stands twice");
        }
    }
    ids.len()
}

async fn until_rows(lake: &Lake, running: &mut Running, rows: usize) {
    let standing = async || {
        let found = ids(lake).await;
        (found == rows, format!("{found} rows"))
    };
    lake.until("all rows", running, standing).await;
}

async fn each_change_once(lake: &Lake) {
    let history = lake.history(TABLE, "id").await;
    let places: std::collections::BTreeSet<_> =
        history.iter().map(|change| (change.lane.clone(), change.offset.clone())).collect();
    assert_eq!(places.len(), history.len(), "a record stands twice in the history");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_who_stands_by_takes_over_within_twice_the_duration() {
    let service = service();
    let lake = lake(&service, Duration::from_secs(4));
    put(&service, 0);
    let mut first = lake.start_beside("a");
    until_rows(&lake, &mut first, 1).await;
    let epoch = lake.cut().await.expect("a cut").epoch;
    let mut second = lake.start_beside("b");
    let looks = service.calls(Operation::GetItem);
    lake.until("the second stands by", &mut second, async || {
        (service.calls(Operation::GetItem) > looks + 2, String::new())
    })
    .await;
    put(&service, 1);
    until_rows(&lake, &mut first, 2).await;
    assert_eq!(lake.cut().await.expect("a cut").epoch, epoch, "who stands by touches nothing");
    let owner = lease(&service).expect("a lease")["owner"].clone();
    first.kill().await;
    // In looks of the one that stands by, four in a duration: that is its clock.
    let looks = service.calls(Operation::GetItem);
    put(&service, 2);
    lake.until("the takeover", &mut second, async || {
        (lease(&service).is_some_and(|row| row["owner"] != owner), format!("{:?}", lease(&service)))
    })
    .await;
    let looked = service.calls(Operation::GetItem) - looks;
    assert!(looked <= 8, "{looked} looks are more than twice the duration");
    until_rows(&lake, &mut second, 3).await;
    assert!(lake.cut().await.expect("a cut").epoch > epoch);
    second.stop().await;
    assert!(lease(&service).expect("the row stays").get("owner").is_none(), "it is let go of");
    each_change_once(&lake).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_let_go_of_is_taken_at_the_next_look() {
    let service = service();
    // Nobody waits out this duration.
    let lake = lake(&service, Duration::from_secs(40));
    put(&service, 0);
    let mut first = lake.start_beside("a");
    until_rows(&lake, &mut first, 1).await;
    let looks = service.calls(Operation::GetItem);
    let mut second = lake.start_beside("b");
    lake.until("the second stands by", &mut second, async || {
        (service.calls(Operation::GetItem) > looks, String::new())
    })
    .await;
    first.stop().await;
    put(&service, 1);
    until_rows(&lake, &mut second, 2).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_workers_that_start_at_once_one_reads() {
    let service = service();
    let lake = lake(&service, Duration::from_secs(5));
    (0..50).for_each(|number| put(&service, number));
    let mut workers: Vec<Running> = ["a", "b", "c", "d"].map(|name| lake.start_beside(name)).into();
    until_rows(&lake, &mut workers[0], 50).await;
    put(&service, 50);
    until_rows(&lake, &mut workers[0], 51).await;
    assert_eq!(lease(&service).expect("a lease")["epoch"]["N"], "1", "one has claimed it");
    assert_eq!(lake.cut().await.expect("a cut").epoch, 1, "one has begun");
    for worker in workers {
        worker.stop().await;
    }
    service.assert_one_reader_per_shard();
    each_change_once(&lake).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_deleted_is_written_again_and_nobody_stops() {
    let service = service();
    let lake = lake(&service, Duration::from_secs(3));
    put(&service, 0);
    let mut running = lake.start_beside("a");
    until_rows(&lake, &mut running, 1).await;
    let owner = lease(&service).expect("a lease")["owner"].clone();
    let epoch = lake.cut().await.expect("a cut").epoch;
    for round in 0..3 {
        service.delete(LEASES, &json!({"lease": {"S": PIPELINE}}));
        lake.until("the row is back", &mut running, async || {
            (lease(&service).is_some_and(|row| row["owner"] == owner), String::new())
        })
        .await;
        put(&service, round + 1);
        until_rows(&lake, &mut running, usize::try_from(round).expect("small") + 2).await;
    }
    assert_eq!(lake.cut().await.expect("a cut").epoch, epoch, "the same incarnation");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_that_believes_in_its_lease_writes_nothing_behind_its_successor() {
    let service = service();
    // It would not look at its lease again during this test.
    let lake = lake(&service, Duration::from_secs(300));
    put(&service, 0);
    let mut zombie = lake.start_beside("a");
    until_rows(&lake, &mut zombie, 1).await;
    let epoch = lake.cut().await.expect("a cut").epoch;
    // As if another had waited longer than this one's clock says.
    let mut row = lease(&service).expect("a lease");
    row.as_object_mut().expect("a row").remove("owner");
    service.put(LEASES, &row);
    let mut successor = lake.start_beside("b");
    lake.until("the successor has begun", &mut successor, async || {
        (lake.cut().await.is_some_and(|cut| cut.epoch > epoch), String::new())
    })
    .await;
    (1..30).for_each(|number| put(&service, number));
    until_rows(&lake, &mut successor, 30).await;
    // The zombie is fenced by its next commit, comes back, and finds the lease taken.
    (30..60).for_each(|number| put(&service, number));
    until_rows(&lake, &mut successor, 60).await;
    // Until the successor's first commit to a table the zombie may still land there, and never behind it.
    for table in [TableName::new(PIPELINE, TABLE), TableName::new(CONTROL_NAMESPACE, PIPELINE)] {
        let loaded = lake.catalog().load(&table, None).await.expect("readable").expect("there");
        let mut snapshots: Vec<_> = loaded.metadata.snapshots().collect();
        snapshots.sort_by_key(|snapshot| snapshot.sequence_number());
        let epochs = snapshots.iter().filter_map(|snapshot| snapshot.summary().additional_properties.get("cdc.epoch"));
        let epochs: Vec<u64> = epochs.map(|epoch| epoch.parse().expect("a number")).collect();
        assert!(epochs.is_sorted() && epochs.last() > Some(&1), "{table}: {epochs:?}");
    }
    assert!(!zombie.task.is_finished(), "it stands by");
    zombie.stop().await;
    successor.stop().await;
    each_change_once(&lake).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_leases_that_is_not_there_is_named() {
    let service = service();
    let mut lake = lake(&service, Duration::from_secs(5));
    lake.source.settings.lease.as_mut().expect("leases").table = "nowhere".to_owned();
    let problem = lake.start_beside("a").task.await.expect("no panic").expect_err("no leases");
    assert_eq!(problem.code, "LEASE_TABLE");
    assert!(problem.remedy.contains("create-table --table-name nowhere"), "{}", problem.remedy);
    let findings = cdc_dynamodb::validate(&lake.source, None).await.expect("findings");
    assert_eq!(findings.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["LEASE_TABLE"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_against_an_emulator() {
    let ministack = Ministack::start().await;
    let client = client(&ministack.endpoint());
    for (table, key, stream) in [(TABLE, "id", true), (LEASES, "lease", false)] {
        let attribute = AttributeDefinition::builder().attribute_name(key).attribute_type(ScalarAttributeType::S);
        let element = KeySchemaElement::builder().attribute_name(key).key_type(Role::Hash);
        let specification = StreamSpecification::builder().stream_enabled(true);
        let specification = specification.stream_view_type(StreamViewType::NewAndOldImages).build().expect("a stream");
        let call = client.create_table().table_name(table).billing_mode(BillingMode::PayPerRequest);
        let call = call.attribute_definitions(attribute.build().expect("an attribute"));
        let call = call.key_schema(element.build().expect("a key"));
        let call = call.set_stream_specification(stream.then_some(specification));
        call.send().await.expect("a table");
    }
    let put = async |number: usize| {
        let id = AttributeValue::S(format!("u{number}"));
        client.put_item().table_name(TABLE).item("id", id).send().await.expect("an item");
    };
    // What it needs of the simulator is only an address.
    let elsewhere = DynamoDb::start_now(Habits::default(), 1);
    let mut lake = lake(&elsewhere, Duration::from_secs(2));
    lake.source.aws.endpoint = Some(ministack.endpoint());
    put(0).await;
    let mut first = lake.start_beside("a");
    let mut second = lake.start_beside("b");
    until_rows(&lake, &mut first, 1).await;
    put(1).await;
    until_rows(&lake, &mut first, 2).await;
    assert_eq!(lake.cut().await.expect("a cut").epoch, 1, "one of the two has begun");
    first.kill().await;
    put(2).await;
    until_rows(&lake, &mut second, 3).await;
    // The row is deleted under whoever has it now.
    let key = || AttributeValue::S(PIPELINE.to_owned());
    client.delete_item().table_name(LEASES).key("lease", key()).send().await.expect("a deletion");
    lake.until("the row is back", &mut second, async || {
        let row = client.get_item().table_name(LEASES).key("lease", key()).consistent_read(true).send().await;
        (row.expect("an answer").item.is_some(), String::new())
    })
    .await;
    put(3).await;
    until_rows(&lake, &mut second, 4).await;
    second.stop().await;
    each_change_once(&lake).await;
}
