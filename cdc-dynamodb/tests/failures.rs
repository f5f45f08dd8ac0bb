//! What can go wrong at the source, in the lake and with the rights: each is provoked, answers with its own code, and
//! writes nothing that it must not. The table with all of them stands in `deploy/docs/dynamodb.md`.

use crate::support;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use crate::support::{Lake, PIPELINE, Running};
use arrow_array::Array as _;
use arrow_array::cast::AsArray;
use cdc_dynamodb::items::Mismatch;
use lakehouse_core::catalog::Catalog as _;
use lakehouse_core::commit::{CONTROL_NAMESPACE, LeftTable};
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::finding::{Finding, Severity};
use lakehouse_core::schema::TableName;
use serde_json::{Value, json};
use testkit::dynamodb::{DynamoDb, Fault, Habits, KeyType, Operation, TrimAnswer, View};

const TABLE: &str = "profiles";
const OTHER: &str = "reservations";
/// How long a listing may lag here: what is missing for longer is lost.
const LAG: Duration = Duration::from_millis(300);

fn service() -> DynamoDb {
    let service = DynamoDb::start_now(Habits::default(), 7);
    for table in [TABLE, OTHER] {
        service.create_table(table, &[("id", KeyType::S)]);
    }
    service
}

fn item(id: &str, n: &str) -> Value {
    json!({"id": {"S": id}, "n": {"N": n}})
}

/// Two tables that have been copied and streamed, by a pipeline that is stopped.
async fn stopped() -> (DynamoDb, Lake) {
    let service = service();
    for table in [TABLE, OTHER] {
        service.put(table, &item("copied", "1"));
        service.enable_stream(table, View::NewAndOldImages, 2);
    }
    let lake = lake(&service);
    let mut running = lake.start();
    lake.has(&mut running, TABLE, &["copied"]).await;
    for table in [TABLE, OTHER] {
        service.put(table, &item("streamed", "2"));
        lake.has(&mut running, table, &["copied", "streamed"]).await;
    }
    running.stop().await;
    (service, lake)
}

fn lake(service: &DynamoDb) -> Lake {
    let mut lake = Lake::new(service, &[TABLE, OTHER]);
    lake.source.pace.listing_lag = LAG;
    lake
}

impl Lake {
    /// Keys of a mirror.
    async fn ids(&self, table: &str) -> BTreeSet<String> {
        let mut ids = BTreeSet::new();
        for batch in self.batches(table).await {
            let column = batch.column_by_name("id").expect("a key").clone();
            ids.extend(column.as_string::<i32>().iter().flatten().map(str::to_owned));
        }
        ids
    }

    /// Waits until these are the mirror's keys.
    async fn has(&self, running: &mut Running, table: &str, ids: &[&str]) {
        let wanted: BTreeSet<String> = ids.iter().map(|&id| id.to_owned()).collect();
        self.until(&format!("{table} has {ids:?}"), running, async || {
            let found = self.ids(table).await;
            (found == wanted, format!("{found:?}"))
        })
        .await;
    }

    /// Waits until the table has left the cut, and says why.
    async fn left(&self, running: &mut Running, table: &str) -> LeftTable {
        let mut left = None;
        self.until(&format!("{table} leaves the cut"), running, async || {
            left = self.cut().await.and_then(|cut| cut.left.get(table).cloned());
            (left.is_some(), String::new())
        })
        .await;
        left.expect("it was waited for")
    }

    /// The incarnation ends by itself.
    async fn problem(&self) -> Problem {
        let running = self.start();
        let ended = tokio::time::timeout(support::DEADLINE, running.task).await.expect("ends within the deadline");
        ended.expect("no panic").expect_err("ends with a problem")
    }

    /// The incarnation halts and leaves the lake as it was.
    async fn halts_without_writing(&self) -> Problem {
        let before = self.contents().await;
        let problem = self.problem().await;
        assert_eq!(problem.reaction, Reaction::Halt, "{problem:?}");
        assert!(!problem.remedy.is_empty(), "{problem:?}");
        assert_eq!(self.contents().await, before, "{} was to write nothing", problem.code);
        problem
    }

    /// Every table's metadata file, and all files of the warehouse.
    async fn contents(&self) -> (BTreeMap<String, String>, BTreeSet<PathBuf>) {
        let catalog = self.catalog();
        let mut pointers = BTreeMap::new();
        for name in catalog.list(None).await.expect("a catalog") {
            let table = catalog.load(&name, None).await.expect("a readable table").expect("it is listed");
            pointers.insert(name.to_string(), table.metadata_location);
        }
        let (mut files, mut folders) = (BTreeSet::new(), vec![self.folder.path().join("warehouse")]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten() {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.insert(path);
                }
            }
        }
        (pointers, files)
    }

    /// Writes something else into a table's newest metadata file, and takes it back when told.
    async fn tamper(&self, table: &TableName, change: impl FnOnce(&mut Value)) -> Tampered {
        let loaded = self.catalog().load(table, None).await.expect("a readable table").expect("the table");
        let path = PathBuf::from(loaded.metadata_location.trim_start_matches("file://"));
        let original = std::fs::read(&path).expect("the metadata file");
        let mut metadata: Value = serde_json::from_slice(&original).expect("JSON");
        change(&mut metadata);
        std::fs::write(&path, metadata.to_string()).expect("write the metadata file");
        Tampered { path, original }
    }

    /// What `validate` finds, as codes and their texts.
    async fn findings(&self) -> Vec<(&'static str, Severity, String)> {
        let found = cdc_dynamodb::validate(&self.source, Some(&self.catalog())).await.expect("validation is possible");
        let told =
            |one: &Finding| (one.code, one.severity, format!("{one} {}", one.fix.as_deref().unwrap_or_default()));
        found.iter().map(told).collect()
    }
}

struct Tampered {
    path: PathBuf,
    original: Vec<u8>,
}

impl Drop for Tampered {
    fn drop(&mut self) {
        std::fs::write(&self.path, &self.original).expect("write the metadata file");
    }
}

// The stream.

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_the_images_that_are_needed_is_refused_before_anything_is_written() {
    let views = [
        (None, "no stream"),
        (Some(View::KeysOnly), "KEYS_ONLY"),
        (Some(View::OldImage), "OLD_IMAGE"),
        (Some(View::NewImage), "NEW_IMAGE"),
    ];
    for (view, named) in views {
        let service = service();
        service.put(TABLE, &item("a", "1"));
        service.enable_stream(OTHER, View::NewAndOldImages, 1);
        if let Some(view) = view {
            service.enable_stream(TABLE, view, 1);
        }
        let lake = lake(&service);
        let problem = lake.halts_without_writing().await;
        assert_eq!(problem.code, "STREAM_VIEW", "{problem:?}");
        assert!(problem.message.contains(named) && problem.remedy.contains("NEW_AND_OLD_IMAGES"), "{problem:?}");
        assert!(lake.contents().await.0.is_empty(), "a table was made");
        let findings = lake.findings().await;
        let [(code, severity, _)] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!((*code, *severity), ("STREAM_VIEW", Severity::Error));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_images_alone_are_enough_where_no_history_is_kept() {
    let service = service();
    for table in [TABLE, OTHER] {
        service.enable_stream(table, View::NewImage, 2);
    }
    service.put(TABLE, &item("copied", "1"));
    let mut lake = lake(&service);
    lake.source.history = false;
    let mut running = lake.start();
    lake.has(&mut running, TABLE, &["copied"]).await;
    service.put(TABLE, &item("streamed", "2"));
    service.put(TABLE, &item("copied", "3"));
    service.delete(TABLE, &json!({"id": {"S": "copied"}}));
    lake.has(&mut running, TABLE, &["streamed"]).await;
    assert!(lake.batches(&format!("{TABLE}_history")).await.is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_made_anew_meanwhile_is_another_one_for_that_table_alone() {
    let (service, lake) = stopped().await;
    service.disable_stream(TABLE);
    service.put(TABLE, &item("between", "1"));
    let arn = service.enable_stream(TABLE, View::NewAndOldImages, 1);
    service.put(TABLE, &item("behind", "1"));
    let mut running = lake.start();
    let left = lake.left(&mut running, TABLE).await;
    assert!(left.code == "IDENTITY" && left.reason.contains(&arn), "{left:?}");
    service.put(OTHER, &item("later", "1"));
    lake.has(&mut running, OTHER, &["copied", "streamed", "later"]).await;
    running.stop().await;
    assert_eq!(lake.ids(TABLE).await.len(), 2, "something was written across the gap");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_disabled_while_it_is_followed_is_told_after_its_last_record() {
    let (service, lake) = stopped().await;
    let mut running = lake.start();
    service.put(TABLE, &item("again", "1"));
    lake.has(&mut running, TABLE, &["again", "copied", "streamed"]).await;
    service.put(TABLE, &item("last", "1"));
    service.disable_stream(TABLE);
    service.put(TABLE, &item("unseen", "1"));
    let left = lake.left(&mut running, TABLE).await;
    assert_eq!(left.code, "STREAM_ENDED", "{left:?}");
    assert_eq!(lake.ids(TABLE).await, ["again", "copied", "last", "streamed"].map(str::to_owned).into());
    service.put(OTHER, &item("later", "1"));
    lake.has(&mut running, OTHER, &["copied", "streamed", "later"]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_trimmed_before_they_were_read_are_a_gap_that_says_where() {
    for trim in [TrimAnswer::WhereLost, TrimAnswer::EveryTrimmedNumber] {
        let (service, lake) = stopped().await;
        service.habits(|habits| habits.trim = trim);
        let reached: BTreeMap<String, String> =
            service.records(TABLE).into_iter().map(|record| (record.shard, record.sequence)).collect();
        for number in 0..20 {
            service.put(TABLE, &item(&format!("unread-{number}"), "1"));
        }
        for shard in service.open_shards(TABLE) {
            service.trim_shard(TABLE, &shard, 3);
        }
        let mut running = lake.start();
        let left = lake.left(&mut running, TABLE).await;
        assert_eq!(left.code, "GAP", "{left:?}");
        // It may be the shard of which nothing had been read: then its beginning is named.
        let shards = service.shards(TABLE);
        let named = shards.iter().find(|shard| left.reason.contains(&shard.id)).expect("the shard is named");
        let at = reached.get(&named.id).unwrap_or(&named.starting);
        assert!(left.reason.contains(at.trim_start_matches('0')), "{left:?} does not name {at}");
        service.put(OTHER, &item("later", "1"));
        lake.has(&mut running, OTHER, &["copied", "streamed", "later"]).await;
        running.stop().await;
        assert_eq!(lake.ids(TABLE).await.len(), 2, "something was written across the gap");
        // Still so at the next start.
        let mut running = lake.start();
        assert_eq!(lake.left(&mut running, TABLE).await.code, "GAP");
        running.stop().await;
    }
}

/// Where a service says nothing of what it has trimmed, the age of what was read last decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_not_read_for_a_day_is_a_gap_whatever_the_service_answers() {
    for (hours, code) in [(25, Some("GAP")), (22, None)] {
        let (service, lake) = stopped().await;
        service.habits(|habits| habits.trim = TrimAnswer::Never);
        let control = TableName::new(CONTROL_NAMESPACE, PIPELINE);
        let tampered = lake.tamper(&control, |metadata| {
            let lanes = &mut metadata["properties"]["cdc.lanes"];
            let mut stood: Value = serde_json::from_str(lanes.as_str().expect("lanes")).expect("JSON");
            let until = &mut stood[TABLE]["read_until"];
            *until = json!(until.as_i64().expect("it has been at its tip") - hours * 3_600_000);
            *lanes = json!(stood.to_string());
        });
        let _tampered = tampered.await;
        service.put(TABLE, &item("later", "1"));
        let mut running = lake.start();
        match code {
            Some(code) => {
                let left = lake.left(&mut running, TABLE).await;
                assert!(left.code == code && left.reason.contains("25 h "), "{left:?}");
                assert_eq!(lake.ids(TABLE).await.len(), 2, "something was written across the gap");
            }
            None => lake.has(&mut running, TABLE, &["copied", "streamed", "later"]).await,
        }
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_vanishes_unread_is_a_gap_and_one_that_was_read_to_its_end_is_not() {
    let (service, lake) = stopped().await;
    let [shard, ..] = &service.open_shards(TABLE)[..] else { panic!("no shard") };
    service.vanish(TABLE, shard);
    let mut running = lake.start();
    let left = lake.left(&mut running, TABLE).await;
    assert!(left.code == "GAP" && left.reason.contains(shard), "{left:?}");

    let children: Vec<String> = service.open_shards(OTHER).iter().map(|shard| service.roll(OTHER, shard)).collect();
    lake.until("the children are known", &mut running, async || {
        let cut = lake.cut().await.expect("a cut");
        let lanes = cut.lanes.of(OTHER).cloned().expect("lanes");
        (children.iter().all(|child| lanes.lanes.contains_key(child)), format!("{lanes:?}"))
    })
    .await;
    for shard in service.shards(OTHER).iter().filter(|shard| shard.ending.is_some()) {
        service.vanish(OTHER, &shard.id);
    }
    tokio::time::sleep(LAG * 2).await;
    service.put(OTHER, &item("later", "1"));
    lake.has(&mut running, OTHER, &["copied", "streamed", "later"]).await;
    assert_eq!(lake.cut().await.expect("a cut").left.len(), 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_whose_parent_nobody_has_seen_is_a_gap() {
    let (service, lake) = stopped().await;
    // A long outage: the children of what was read have come and gone.
    for shard in service.open_shards(TABLE) {
        let child = service.roll(TABLE, &shard);
        service.roll(TABLE, &child);
        service.vanish(TABLE, &child);
        service.vanish(TABLE, &shard);
    }
    let mut running = lake.start();
    let left = lake.left(&mut running, TABLE).await;
    assert_eq!(left.code, "GAP", "{left:?}");
    running.stop().await;
}

/// TRIM_HORIZON would begin behind what is trimmed, without a word: a child is opened at its first number.
#[tokio::test(flavor = "multi_thread")]
async fn a_child_whose_first_records_are_trimmed_is_a_gap_and_not_read_behind_them() {
    for trim in [TrimAnswer::WhereLost, TrimAnswer::EveryTrimmedNumber] {
        let (service, lake) = stopped().await;
        service.habits(|habits| habits.trim = trim);
        let children: Vec<String> = service.open_shards(TABLE).iter().map(|shard| service.roll(TABLE, shard)).collect();
        for number in 0..20 {
            service.put(TABLE, &item(&format!("unread-{number}"), "1"));
        }
        children.iter().for_each(|child| service.trim_shard(TABLE, child, 3));
        // As if it had stood still for so long that records behind what it has read may be gone, and no longer.
        let aged = |metadata: &mut Value| {
            let property = &mut metadata["properties"]["cdc.lanes"];
            let mut lanes: Value = serde_json::from_str(property.as_str().expect("lanes")).expect("JSON");
            let until = &mut lanes[TABLE]["read_until"];
            *until = (until.as_i64().expect("a time") - 23 * 3_600_000 - 1_800_000).into();
            *property = lanes.to_string().into();
        };
        let control = TableName::new(CONTROL_NAMESPACE, PIPELINE);
        let _aged = lake.tamper(&control, aged).await;
        let mut running = lake.start();
        let left = lake.left(&mut running, TABLE).await;
        assert_eq!(left.code, "GAP", "{left:?}");
        assert!(children.iter().any(|child| left.reason.contains(child)), "{left:?}");
        running.stop().await;
        assert_eq!(lake.ids(TABLE).await.len(), 2, "something was written across the gap");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_iterators_are_replaced_where_they_were_and_nothing_comes_twice() {
    let (service, lake) = stopped().await;
    let mut running = lake.start();
    let mut wanted = vec!["copied".to_owned(), "streamed".to_owned()];
    for number in 0..40 {
        if number % 8 == 0 {
            service.fail_next(Operation::GetRecords, Fault::ExpiredIterator, 5);
        }
        wanted.push(format!("item-{number}"));
        service.put(TABLE, &item(&format!("item-{number}"), "1"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    lake.has(&mut running, TABLE, &wanted.iter().map(String::as_str).collect::<Vec<_>>()).await;
    running.stop().await;
    let history = lake.history(TABLE, "id").await;
    assert_eq!(history.iter().filter(|change| change.key.starts_with("item-")).count(), 40);
    service.assert_one_reader_per_shard();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_gone_at_the_source_stays_in_the_lake() {
    let (service, lake) = stopped().await;
    service.delete_table(TABLE);
    let problem = lake.halts_without_writing().await;
    assert_eq!((problem.code, problem.subject.as_str()), ("SOURCE_GONE", TABLE), "{problem:?}");
    assert_eq!(lake.ids(TABLE).await.len(), 2);
    let findings = lake.findings().await;
    assert!(findings.iter().any(|(code, ..)| *code == "SOURCE_GONE"), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_goes_while_it_is_followed_stops_no_other() {
    let (service, lake) = stopped().await;
    let mut running = lake.start();
    service.put(TABLE, &item("again", "1"));
    lake.has(&mut running, TABLE, &["again", "copied", "streamed"]).await;
    service.put(TABLE, &item("last", "1"));
    service.delete_table(TABLE);
    assert_eq!(lake.left(&mut running, TABLE).await.code, "STREAM_ENDED");
    assert_eq!(lake.ids(TABLE).await, ["again", "copied", "last", "streamed"].map(str::to_owned).into());
    service.put(OTHER, &item("later", "1"));
    lake.has(&mut running, OTHER, &["copied", "streamed", "later"]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_global_table_is_warned_of_and_followed() {
    let (service, lake) = stopped().await;
    service.replicate_to(TABLE, &["us-east-1", "eu-west-1"]);
    let findings = lake.findings().await;
    let [(code, severity, text)] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((*code, *severity), ("GLOBAL_TABLE", Severity::Warning));
    assert!(text.contains("eu-west-1") && !text.contains("us-east-1,"), "{text}");
    let mut running = lake.start();
    service.put(TABLE, &item("later", "1"));
    lake.has(&mut running, TABLE, &["copied", "streamed", "later"]).await;
    running.stop().await;
}

// Rights.

#[tokio::test(flavor = "multi_thread")]
async fn what_the_role_may_not_do_is_named_with_its_action() {
    let before_the_copy = [Operation::DescribeTable, Operation::DescribeStream, Operation::Scan];
    for operation in before_the_copy.into_iter().chain([Operation::GetShardIterator, Operation::GetRecords]) {
        let service = service();
        for table in [TABLE, OTHER] {
            service.put(table, &item("a", "1"));
            service.enable_stream(table, View::NewAndOldImages, 1);
        }
        let lake = lake(&service);
        service.deny(operation);
        let problem = lake.problem().await;
        let action = format!("dynamodb:{operation:?}");
        assert_eq!((problem.code, problem.reaction), ("PERMISSION", Reaction::Halt), "{operation:?}: {problem:?}");
        assert!(problem.message.contains(&action) && problem.remedy.contains(&action), "{problem:?}");
        assert!([TABLE, OTHER].contains(&problem.subject.as_str()), "{problem:?}");
        if before_the_copy.contains(&operation) {
            let findings = lake.findings().await;
            let denied = |(code, _, text): &(&str, Severity, String)| *code == "PERMISSION" && text.contains(&action);
            assert!(findings.iter().any(denied), "{findings:?}");
        }
        // It goes on as soon as it may.
        service.allow(operation);
        let mut running = lake.start();
        lake.has(&mut running, TABLE, &["a"]).await;
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_not_be_used_is_named() {
    for operation in [Operation::Scan, Operation::GetRecords] {
        let service = service();
        for table in [TABLE, OTHER] {
            service.put(table, &item("a", "1"));
            service.enable_stream(table, View::NewAndOldImages, 1);
        }
        service.fail_next(operation, Fault::KeyRefused, 100);
        let problem = lake(&service).problem().await;
        assert_eq!((problem.code, problem.reaction), ("PERMISSION", Reaction::Halt), "{operation:?}: {problem:?}");
        assert!(problem.message.contains("arn:aws:kms:us-east-1:000000000000:key/"), "{problem:?}");
    }
}

// The lake.

#[tokio::test(flavor = "multi_thread")]
async fn positions_that_cannot_be_read_are_never_guessed() {
    let (_service, lake) = stopped().await;
    let mirror = TableName::new(PIPELINE, TABLE);
    let control = TableName::new(CONTROL_NAMESPACE, PIPELINE);
    type Change = fn(&mut Value);
    let history = mirror.history();
    let changes: [(&TableName, &str, Change); 7] = [
        (&mirror, "PROPERTY_DAMAGED", |metadata| metadata["properties"]["cdc.lanes"] = json!("{")),
        (&mirror, "PROPERTY_DAMAGED", |metadata| {
            let lanes = metadata["properties"]["cdc.lanes"].as_str().expect("lanes");
            metadata["properties"]["cdc.lanes"] = json!(lanes.replace("\"at\"", "\"reached\""));
        }),
        (&mirror, "PROPERTY_DAMAGED", |metadata| metadata["properties"]["cdc.position"] = json!("somewhere")),
        (&mirror, "NEWER_FORMAT", |metadata| metadata["properties"]["cdc.format"] = json!("99")),
        (&history, "NEWER_FORMAT", |metadata| metadata["properties"]["cdc.format"] = json!("99")),
        (&control, "PROPERTY_DAMAGED", |metadata| metadata["properties"]["cdc.cut"] = json!("{}")),
        (&control, "NEWER_FORMAT", |metadata| metadata["properties"]["cdc.format"] = json!("99")),
    ];
    for (table, code, change) in changes {
        let _tampered = lake.tamper(table, change).await;
        let before = lake.contents().await;
        let problem = lake.problem().await;
        assert_eq!(problem.code, code, "{table}: {problem:?}");
        assert_eq!(problem.reaction, Reaction::Halt, "{problem:?}");
        let after = lake.contents().await;
        let tables = |contents: &(BTreeMap<String, String>, _)| {
            let mut pointers = contents.0.clone();
            // A table is looked at behind GO, whose epoch stands in the control table.
            pointers.remove(&control.to_string());
            pointers
        };
        assert_eq!(tables(&before), tables(&after), "{table}: {code} has written");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_has_lost_a_declared_column_leaves_the_cut_alone() {
    let service = service();
    for table in [TABLE, OTHER] {
        service.put(table, &item("copied", "1"));
        service.enable_stream(table, View::NewAndOldImages, 1);
    }
    let mut lake = lake(&service);
    lake.options(TABLE).columns.insert("n".to_owned(), "long".to_owned());
    let mut running = lake.start();
    lake.has(&mut running, TABLE, &["copied"]).await;
    lake.has(&mut running, OTHER, &["copied"]).await;
    service.put(TABLE, &item("streamed", "1"));
    lake.has(&mut running, TABLE, &["copied", "streamed"]).await;
    running.stop().await;
    let mirror = TableName::new(PIPELINE, TABLE);
    let tampered = lake.tamper(&mirror, |metadata| {
        let current = metadata["current-schema-id"].clone();
        let schemas = metadata["schemas"].as_array_mut().expect("schemas");
        let mut schema = schemas.iter().find(|schema| schema["schema-id"] == current).expect("the current").clone();
        schema["fields"].as_array_mut().expect("fields").retain(|field| field["name"] != "n");
        schema["schema-id"] = json!(77);
        schemas.push(schema);
        metadata["current-schema-id"] = json!(77);
    });
    let tampered = tampered.await;
    let mut running = lake.start();
    service.put(TABLE, &item("unseen", "1"));
    let left = lake.left(&mut running, TABLE).await;
    assert_eq!(left.code, "SCHEMA_CHANGED", "{left:?}");
    assert_eq!(lake.ids(TABLE).await.len(), 2);
    service.put(OTHER, &item("later", "1"));
    lake.has(&mut running, OTHER, &["copied", "later"]).await;
    running.stop().await;
    drop(tampered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_taken_over_is_fenced_and_stops() {
    let (service, lake) = stopped().await;
    let first = lake.start_once("first").task;
    let epoch = lake.cut().await.expect("a cut").epoch;
    let taken = async |above: u64| {
        while lake.cut().await.expect("a cut").epoch <= above {
            assert!(!first.is_finished(), "the first has ended");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(support::DEADLINE, taken(epoch)).await.expect("the first begins");
    let Running { stop, task: second } = lake.start_beside("second");
    tokio::time::timeout(support::DEADLINE, taken(epoch + 1)).await.expect("the second begins");
    for number in 0..50 {
        service.put(TABLE, &item(&format!("item-{number}"), "1"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let ended = tokio::time::timeout(support::DEADLINE, first).await.expect("the first ends");
    let problem = ended.expect("no panic").expect_err("it is fenced");
    assert_eq!((problem.code, problem.reaction), ("FENCED", Reaction::Retry), "{problem:?}");
    let there = async || {
        while lake.ids(TABLE).await.len() < 52 {
            assert!(!second.is_finished(), "the second has ended");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(support::DEADLINE, there()).await.expect("the second goes on");
    stop.cancel();
    second.await.expect("no panic").expect("it stops without a problem");
    let history = lake.history(TABLE, "id").await;
    assert_eq!(history.iter().filter(|change| change.key.starts_with("item-")).count(), 50);
}

// Values and names.

#[tokio::test(flavor = "multi_thread")]
async fn values_of_a_wrong_type_stay_in_the_rest_or_stop_their_table_as_the_policy_says() {
    // A long that is none: too large, with a fraction, and a text.
    for (policy, value) in [
        (Mismatch::Rest, json!({"N": "9223372036854775808"})),
        (Mismatch::Rest, json!({"S": "many"})),
        (Mismatch::Fail, json!({"N": "9223372036854775808"})),
        (Mismatch::Fail, json!({"N": "1.5"})),
        (Mismatch::Fail, json!({"S": "many"})),
    ] {
        let service = service();
        for table in [TABLE, OTHER] {
            service.put(table, &item("copied", "1"));
            service.enable_stream(table, View::NewAndOldImages, 1);
        }
        let mut lake = lake(&service);
        lake.options(TABLE).columns.insert("n".to_owned(), "long".to_owned());
        lake.options(TABLE).mismatch.insert("n".to_owned(), policy);
        let mut running = lake.start();
        lake.has(&mut running, TABLE, &["copied"]).await;
        service.put(TABLE, &json!({"id": {"S": "wrong"}, "n": value}));
        match policy {
            Mismatch::Rest => {
                lake.has(&mut running, TABLE, &["copied", "wrong"]).await;
                let rest =
                    json!({"n": value["S"].as_str().map_or(json!(9_223_372_036_854_775_808_u64), |text| json!(text))});
                assert_eq!(rest_of(&lake, "wrong").await, Some(rest.to_string()));
            }
            Mismatch::Fail | Mismatch::Quarantine => {
                let left = lake.left(&mut running, TABLE).await;
                assert!(left.code == "VALUE_MISMATCH" && left.reason.contains("\"n\""), "{left:?}");
                assert!(!left.reason.contains("many") && !left.reason.contains("9223"), "a value is told: {left:?}");
                service.put(OTHER, &item("later", "1"));
                lake.has(&mut running, OTHER, &["copied", "later"]).await;
                assert_eq!(lake.ids(TABLE).await, ["copied".to_owned()].into());
            }
        }
        running.stop().await;
    }
}

/// What no column holds of an item, where something is.
async fn rest_of(lake: &Lake, id: &str) -> Option<String> {
    for batch in lake.batches(TABLE).await {
        let column = |name: &str| batch.column_by_name(name).expect("a column").clone();
        let (ids, rest) = (column("id"), column("_rest"));
        let found = ids.as_string::<i32>().iter().position(|one| one == Some(id));
        if let Some(row) = found.filter(|row| rest.is_valid(*row)) {
            return Some(rest.as_string::<i32>().value(row).to_owned());
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_its_column_cannot_hold_stops_the_table() {
    let service = DynamoDb::start_now(Habits::default(), 7);
    service.create_table(TABLE, &[("id", KeyType::N)]);
    service.create_table(OTHER, &[("id", KeyType::S)]);
    for table in [TABLE, OTHER] {
        service.enable_stream(table, View::NewAndOldImages, 1);
    }
    service.put(OTHER, &item("copied", "1"));
    let lake = lake(&service);
    let mut running = lake.start();
    lake.has(&mut running, OTHER, &["copied"]).await;
    service.put(TABLE, &json!({"id": {"N": "1"}}));
    service.put(TABLE, &json!({"id": {"N": "1.5"}}));
    let left = lake.left(&mut running, TABLE).await;
    assert!(left.code == "KEY_UNMAPPABLE" && !left.reason.contains("1.5"), "{left:?}");
    service.put(OTHER, &item("later", "1"));
    lake.has(&mut running, OTHER, &["copied", "later"]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_nine_digits_are_refused_by_name_wherever_they_come_from() {
    let service = service();
    for table in [TABLE, OTHER] {
        service.put(table, &item("copied", "1"));
        service.enable_stream(table, View::NewAndOldImages, 1);
    }
    let lake = lake(&service);
    let mut running = lake.start();
    lake.has(&mut running, TABLE, &["copied"]).await;
    // The service takes no such number; other servers do.
    service.put_unchecked(TABLE, &item("long", &"9".repeat(39)));
    let left = lake.left(&mut running, TABLE).await;
    assert!(left.code == "ROW_UNREADABLE" && left.reason.contains("38 significant digits"), "{left:?}");
    assert!(!left.reason.contains("999"), "a value is told: {left:?}");
    service.put(OTHER, &item("later", "1"));
    lake.has(&mut running, OTHER, &["copied", "later"]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_meet_are_refused_before_anything_is_written() {
    let service = service();
    for table in [TABLE, OTHER] {
        service.enable_stream(table, View::NewAndOldImages, 1);
    }
    let collisions = [("userId", "UserID"), ("a.b", "a_b"), ("ID", "other")];
    for (one, other) in collisions {
        let mut lake = lake(&service);
        for attribute in [one, other] {
            lake.options(TABLE).columns.insert(attribute.to_owned(), "string".to_owned());
        }
        let problem = lake.halts_without_writing().await;
        assert_eq!(problem.code, "NAME_COLLISION", "{problem:?}");
        assert!(problem.message.contains(one), "{problem:?}");
        assert!(lake.contents().await.0.is_empty(), "a table was made");
        assert_eq!(lake.findings().await[0].0, "NAME_COLLISION");
    }
}
