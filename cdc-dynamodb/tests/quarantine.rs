//! Items that cannot be mapped and whose column's policy is `quarantine` (D53): whole in a table of their own before
//! anything goes without them, each once, whatever is interrupted where.

use crate::support;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::support::between::{Between, Meddler};
use crate::support::{Lake, PIPELINE, Running};
use arrow_array::Array as _;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use async_trait::async_trait;
use cdc_dynamodb::config::{CopyRoad, ExportPlace};
use cdc_dynamodb::items::Mismatch;
use iceberg::TableUpdate;
use lakehouse_core::catalog::{Catalog, LoadedTable, Swap};
use lakehouse_core::commit::Control;
use lakehouse_core::commit::properties::{CopyProgress, FORMAT, FORMAT_VERSION, TableState};
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::fsck::{Verdict, fsck};
use lakehouse_core::planted::{Bug, Planted};
use lakehouse_core::quarantine::QUARANTINE_LIMIT;
use lakehouse_core::schema::TableName;
use lakehouse_core::storage::Storage;
use lakehouse_core::verify::{TableVerdict, VerifyOptions};
use serde_json::{Value, json};
use testkit::dynamodb::{DynamoDb, Habits, KeyType, View};

const TABLE: &str = "profiles";
const TABLES: [&str; 3] = ["profiles_quarantine", "profiles_history", "profiles"];

fn service(habits: Habits) -> DynamoDb {
    let service = DynamoDb::start_now(habits, 53);
    service.create_table(TABLE, &[("id", KeyType::S)]);
    service.enable_stream(TABLE, View::NewAndOldImages, 1);
    service
}

fn lake(service: &DynamoDb) -> Lake {
    let mut lake = Lake::new(service, &[TABLE]);
    lake.options(TABLE).columns.insert("n".to_owned(), "long".to_owned());
    lake.options(TABLE).mismatch.insert("n".to_owned(), Mismatch::Quarantine);
    lake.source.pace.listing_lag = Duration::from_millis(300);
    lake
}

fn good(service: &DynamoDb, id: &str, n: i64) {
    service.put(TABLE, &json!({"id": {"S": id}, "n": {"N": n.to_string()}}));
}

/// An item whose `n` is no number, told apart by its text.
fn bad(service: &DynamoDb, id: &str, text: &str) {
    service.put(TABLE, &json!({"id": {"S": id}, "n": {"S": text}, "v": {"BOOL": true}}));
}

fn image(id: &str, text: &str) -> String {
    format!(r#"{{"id":"{id}","n":"{text}","v":true}}"#)
}

/// One row of the quarantine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    operation: String,
    key: String,
    image: String,
    old_image: Option<String>,
    column: String,
    code: String,
    reason: String,
    /// Lane and offset; `None` for a row of a copy.
    place: Option<(String, String)>,
    positioned: bool,
}

async fn kept(lake: &Lake) -> Vec<Kept> {
    let mut all = Vec::new();
    for batch in lake.batches("profiles_quarantine").await {
        let text = |name: &str, row: usize| {
            let column = batch.column_by_name(name).unwrap_or_else(|| panic!("no {name}")).as_string::<i32>();
            column.is_valid(row).then(|| column.value(row).to_owned())
        };
        let always = |name: &str, row: usize| text(name, row).unwrap_or_else(|| panic!("{name} is NULL"));
        let positions = batch.column_by_name("_cdc_position").expect("positions").as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            all.push(Kept {
                operation: always("_cdc_operation", row),
                key: always("_cdc_key", row),
                image: always("_cdc_image", row),
                old_image: text("_cdc_old_image", row),
                column: always("_cdc_column", row),
                code: always("_cdc_code", row),
                reason: always("_cdc_reason", row),
                place: text("_cdc_lane", row).zip(text("_cdc_offset", row)),
                positioned: positions.is_valid(row),
            });
        }
    }
    all.sort();
    all
}

/// The mirror's rows; panics where a key stands twice.
async fn rows(lake: &Lake) -> BTreeMap<String, i64> {
    let mut rows = BTreeMap::new();
    for batch in lake.batches(TABLE).await {
        let ids = batch.column_by_name("id").expect("a key").as_string::<i32>().clone();
        let n = batch.column_by_name("n").expect("a column").as_primitive::<Int64Type>().clone();
        for row in 0..batch.num_rows() {
            assert!(n.is_valid(row), "an item without its number is in the mirror");
            assert!(rows.insert(ids.value(row).to_owned(), n.value(row)).is_none(), "a key stands twice");
        }
    }
    rows
}

async fn has(lake: &Lake, running: &mut Running, wanted: &[(&str, i64)]) {
    let wanted: BTreeMap<String, i64> = wanted.iter().map(|(id, n)| ((*id).to_owned(), *n)).collect();
    let standing = async || {
        let found = rows(lake).await;
        (found == wanted, format!("{found:?}"))
    };
    lake.until(&format!("the mirror has {wanted:?}"), running, standing).await;
}

async fn quarantined(lake: &Lake, running: &mut Running, images: &[String]) {
    let mut wanted = images.to_vec();
    wanted.sort();
    let standing = async || {
        let mut found: Vec<String> = kept(lake).await.into_iter().map(|row| row.image).collect();
        found.sort();
        (found == wanted, format!("{found:?}"))
    };
    lake.until(&format!("the quarantine has {wanted:?}"), running, standing).await;
}

/// Each record of the stream once in the history, and the quarantined ones once in the quarantine, under the same place.
async fn each_record_stands_once(lake: &Lake, service: &DynamoDb, running: &mut Running) {
    let sent: BTreeSet<(String, String)> =
        service.records(TABLE).into_iter().map(|record| (record.shard, record.sequence)).collect();
    let standing = async || {
        let history = lake.history(TABLE, "id").await;
        let places: BTreeSet<_> = history.iter().map(|change| (change.lane.clone(), change.offset.clone())).collect();
        assert_eq!(places.len(), history.len(), "a record stands twice in the history");
        (places == sent, format!("{} of {} records", places.len(), sent.len()))
    };
    lake.until("the history has every record", running, standing).await;
    let told = lake.history(TABLE, "id").await.into_iter().filter(|change| change.operation == "quarantine");
    let told: Vec<(String, String)> = told.map(|change| (change.lane, change.offset)).collect();
    let in_quarantine: Vec<_> = kept(lake).await.into_iter().filter_map(|row| row.place).collect();
    let (told_once, once): (BTreeSet<_>, BTreeSet<_>) =
        (told.iter().cloned().collect(), in_quarantine.iter().cloned().collect());
    assert_eq!((told.len(), in_quarantine.len()), (told_once.len(), once.len()), "a record stands twice");
    assert_eq!(told_once, once, "what the history says of the quarantine and what stands there");
}

async fn sound(lake: &Lake) {
    let report = fsck(&lake.catalog(), &Storage::local(), None).await.expect("a report");
    let failed = report.tables.iter().filter(|table| !table.is_sound());
    assert_eq!(report.verdict, Verdict::Sound, "{:?}", failed.collect::<Vec<_>>());
}

async fn verified(lake: &Lake) -> TableVerdict {
    let options = VerifyOptions { show_keys: true, ..VerifyOptions::default() };
    let report = cdc_dynamodb::verify(&lake.source, lake.environment(), options).await;
    let report = report.unwrap_or_else(|problem| panic!("{}: {problem}", problem.code));
    report.tables.into_iter().next().expect("a table")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_type_goes_to_the_quarantine_and_its_key_leaves_the_mirror_until_it_is_good_again() {
    let service = service(Habits::default());
    // Records of before the copy come from the stream too, so what the copy reads here has none.
    service.disable_stream(TABLE);
    good(&service, "a", 1);
    good(&service, "b", 1);
    bad(&service, "copied", "x");
    service.enable_stream(TABLE, View::NewAndOldImages, 1);
    let lake = lake(&service);
    let mut running = lake.start();
    has(&lake, &mut running, &[("a", 1), ("b", 1)]).await;
    quarantined(&lake, &mut running, &[image("copied", "x")]).await;
    let of_copy = kept(&lake).await.remove(0);
    let reason = r#"attribute "n" is of type S and not the long that its column is"#;
    let expected = Kept {
        operation: "copy".to_owned(),
        key: r#"{"id":"copied"}"#.to_owned(),
        image: image("copied", "x"),
        old_image: None,
        column: "n".to_owned(),
        code: "VALUE_MISMATCH".to_owned(),
        reason: reason.to_owned(),
        place: None,
        positioned: false,
    };
    assert_eq!(of_copy, expected);

    // The old row would be a lie, and a new one has none.
    bad(&service, "a", "y");
    bad(&service, "new", "z");
    has(&lake, &mut running, &[("b", 1)]).await;
    quarantined(&lake, &mut running, &[image("copied", "x"), image("a", "y"), image("new", "z")]).await;
    each_record_stands_once(&lake, &service, &mut running).await;
    let rows_kept = kept(&lake).await;
    let told: Vec<_> = rows_kept.iter().filter(|row| row.positioned && row.place.is_some()).collect();
    let told: Vec<_> =
        told.iter().map(|row| (row.operation.as_str(), row.key.as_str(), row.old_image.as_deref())).collect();
    let old = Some(r#"{"id":"a","n":1}"#);
    assert_eq!(told, [("insert", r#"{"id":"new"}"#, None), ("update", r#"{"id":"a"}"#, old)]);
    let verdict = verified(&lake).await;
    assert_eq!((verdict.verdict, verdict.quarantined, verdict.source_rows), ("equal", Some(3), 1));

    // A later good change heals the mirror; the quarantine keeps what was.
    good(&service, "a", 2);
    good(&service, "copied", 3);
    has(&lake, &mut running, &[("a", 2), ("b", 1), ("copied", 3)]).await;
    service.delete(TABLE, &json!({"id": {"S": "new"}}));
    each_record_stands_once(&lake, &service, &mut running).await;
    assert_eq!(kept(&lake).await, rows_kept);
    let operations: Vec<_> = lake.history(TABLE, "id").await.into_iter().map(|c| (c.operation, c.key)).collect();
    let expected =
        [("quarantine", "a"), ("quarantine", "new"), ("update", "a"), ("update", "copied"), ("delete", "new")];
    assert_eq!(operations, expected.map(|(operation, key)| (operation.to_owned(), key.to_owned())));
    let verdict = verified(&lake).await;
    assert_eq!((verdict.verdict, verdict.quarantined), ("equal", Some(0)));
    // The same by the history alone: a quarantined key has no row.
    let cut = lake.cut().await.expect("a cut").position;
    let options = VerifyOptions { cut: Some(cut), ..VerifyOptions::default() };
    let report = cdc_dynamodb::verify(&lake.source, lake.environment(), options).await.expect("a verdict");
    assert_eq!(report.verdict, "equal");
    running.stop().await;
    sound(&lake).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_decoded_is_written_or_quarantined() {
    let service = service(Habits::default());
    (0..20).for_each(|n| good(&service, &format!("u{n}"), 1));
    let lake = lake(&service);
    let mut running = lake.start();
    let all: Vec<(String, i64)> = (0..20).map(|n| (format!("u{n}"), 1)).collect();
    has(&lake, &mut running, &all.iter().map(|(id, n)| (id.as_str(), *n)).collect::<Vec<_>>()).await;
    for n in 0..20 {
        match n % 3 {
            0 => bad(&service, &format!("u{n}"), "x"),
            _ => good(&service, &format!("u{n}"), 2),
        }
    }
    each_record_stands_once(&lake, &service, &mut running).await;
    running.stop().await;
    let load = async |table: &str| {
        let name = TableName::new(PIPELINE, table);
        lake.catalog().load(&name, None).await.expect("readable").expect("it is there")
    };
    let numbers = |table: &LoadedTable| -> BTreeMap<String, BTreeMap<String, u64>> {
        let commits = table.metadata.snapshots().filter_map(|snapshot| {
            let summary = &snapshot.summary().additional_properties;
            let number = |(key, value): (&String, &String)| Some((key.clone(), value.parse().ok()?));
            Some((
                summary.get("cdc.to").filter(|_| summary["cdc.kind"] == "change")?.clone(),
                summary.iter().filter_map(number).collect(),
            ))
        });
        commits.collect()
    };
    let (quarantine, history) = (numbers(&load(TABLES[0]).await), numbers(&load(TABLES[1]).await));
    assert!(!quarantine.is_empty());
    let mut sum = 0;
    for (to, of) in &quarantine {
        assert_eq!(of["cdc.decoded"], of["cdc.written"] + of["cdc.quarantined"]);
        assert_eq!(of["cdc.quarantined"], of["added-records"]);
        // The history has one row for each change of the batch.
        assert_eq!(of["cdc.decoded"], history[to]["cdc.inserted"], "the batch to {to}");
        sum += of["cdc.quarantined"];
    }
    assert_eq!(sum, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_policy_there_is_no_such_table() {
    let service = service(Habits::default());
    good(&service, "a", 1);
    let mut lake = lake(&service);
    lake.options(TABLE).mismatch.insert("n".to_owned(), Mismatch::Rest);
    let mut running = lake.start();
    has(&lake, &mut running, &[("a", 1)]).await;
    running.stop().await;
    let names = lake.catalog().list(Some(PIPELINE)).await.expect("a catalog");
    assert_eq!(names.iter().map(|name| name.name.as_str()).collect::<Vec<_>>(), ["profiles", "profiles_history"]);

    // Said later, it begins where the mirror stands.
    lake.options(TABLE).mismatch.insert("n".to_owned(), Mismatch::Quarantine);
    let mut running = lake.start();
    bad(&service, "a", "x");
    has(&lake, &mut running, &[]).await;
    quarantined(&lake, &mut running, &[image("a", "x")]).await;
    each_record_stands_once(&lake, &service, &mut running).await;
    running.stop().await;
    sound(&lake).await;
}

/// A process dies at the n-th commit of one table, before its effect or after it.
struct Dying {
    table: &'static str,
    /// Commits that are let through.
    spared: AtomicUsize,
    after: bool,
    dead: AtomicBool,
    log: Mutex<Vec<String>>,
}

impl Dying {
    fn new(table: &'static str, spared: usize, after: bool) -> Self {
        let (dead, log) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        Self { table, spared: AtomicUsize::new(spared), after, dead, log }
    }

    /// From here on nothing has an effect any more.
    fn die(&self) -> Problem {
        self.dead.store(true, Ordering::SeqCst);
        Problem::halt("CRASHED", self.table, "the process has died", "start it again")
    }
}

#[async_trait]
impl Meddler for Dying {
    async fn commit(
        &self,
        inner: &dyn Catalog,
        base: &LoadedTable,
        updates: Vec<TableUpdate>,
    ) -> Result<Swap, Problem> {
        let now = base.name.name == self.table && {
            let spared = self.spared.load(Ordering::SeqCst);
            self.spared.store(spared.saturating_sub(1), Ordering::SeqCst);
            spared == 0
        };
        if self.dead.load(Ordering::SeqCst) || (now && !self.after) {
            return Err(self.die());
        }
        let swapped = inner.commit(base, updates).await;
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(base.name.name.clone());
        if now { Err(self.die()) } else { swapped }
    }
}

/// Runs a worker until it dies there; what it has committed, in order.
async fn run_and_die(lake: &mut Lake, table: &'static str, spared: usize, after: bool) -> Vec<String> {
    let inner = Arc::new(lake.catalog());
    let dying = Arc::new(Between { inner, meddler: Dying::new(table, spared, after) });
    lake.catalog_between = Some(dying.clone());
    let running = lake.start();
    let ended = tokio::time::timeout(support::DEADLINE, running.task).await.expect("the step is reached");
    let problem = ended.expect("no panic").expect_err("the worker has died");
    assert_eq!(problem.code, "CRASHED", "{problem:?}");
    lake.catalog_between = None;
    dying.meddler.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_any_two_commits_leaves_each_change_once_everywhere() {
    for table in TABLES {
        for after in [false, true] {
            let service = service(Habits::default());
            good(&service, "a", 1);
            good(&service, "b", 1);
            let mut lake = lake(&service);
            let mut running = lake.start();
            has(&lake, &mut running, &[("a", 1), ("b", 1)]).await;
            each_record_stands_once(&lake, &service, &mut running).await;
            running.stop().await;

            bad(&service, "a", "x");
            good(&service, "b", 2);
            bad(&service, "c", "y");
            let log = run_and_die(&mut lake, table, 0, after).await;
            let order: Vec<&str> = log.iter().map(String::as_str).filter(|name| TABLES.contains(name)).collect();
            let landed = TABLES.iter().position(|one| *one == table).expect("one of them") + usize::from(after);
            assert_eq!(order, TABLES[..landed], "the order of commits before a crash at {table}");

            // A batch that is formed anew ends elsewhere.
            bad(&service, "b", "z");
            good(&service, "c", 3);
            let mut running = lake.start();
            has(&lake, &mut running, &[("c", 3)]).await;
            each_record_stands_once(&lake, &service, &mut running).await;
            quarantined(&lake, &mut running, &[image("a", "x"), image("c", "y"), image("b", "z")]).await;
            let verdict = verified(&lake).await;
            assert_eq!((verdict.verdict, verdict.quarantined), ("equal", Some(2)), "{table}, after: {after}");
            running.stop().await;
            sound(&lake).await;
        }
    }
}

/// Sixteen items, of which every fourth cannot be mapped, on pages of four.
fn mixed(service: &DynamoDb) -> (Vec<(String, i64)>, Vec<String>) {
    let id = |n: u32| format!("u{n}");
    for n in 0..16 {
        if n % 4 == 0 { bad(service, &id(n), "x") } else { good(service, &id(n), 1) }
    }
    let (bad, good): (Vec<u32>, Vec<u32>) = (0..16).partition(|n| n % 4 == 0);
    (good.into_iter().map(|n| (id(n), 1)).collect(), bad.into_iter().map(|n| image(&id(n), "x")).collect())
}

async fn copy_of(lake: &Lake, table: &str) -> Option<CopyProgress> {
    let table = lake.catalog().load(&TableName::new(PIPELINE, table), None).await.expect("readable")?;
    TableState::of(&table).expect("properties").copy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_dies_at_any_commit_ends_with_each_item_once() {
    // Each page is a chunk: four or more commits of the mirror, and at most as many of the quarantine.
    for (table, spared, after) in [
        ("profiles_quarantine", 0, false),
        ("profiles_quarantine", 0, true),
        ("profiles_quarantine", 1, false),
        ("profiles_quarantine", 1, true),
        ("profiles", 0, true),
        ("profiles", 1, true),
        ("profiles", 3, true),
    ] {
        let service = service(Habits { largest_scan: 4, ..Habits::default() });
        service.disable_stream(TABLE);
        let (good, bad) = mixed(&service);
        service.enable_stream(TABLE, View::NewAndOldImages, 1);
        let mut lake = lake(&service);
        lake.source.pace.copy_chunk = Duration::ZERO;
        run_and_die(&mut lake, table, spared, after).await;
        let (mirror, ahead) = (copy_of(&lake, TABLE).await, copy_of(&lake, TABLES[0]).await);
        let mut running = lake.start();
        has(&lake, &mut running, &good.iter().map(|(id, n)| (id.as_str(), *n)).collect::<Vec<_>>()).await;
        quarantined(&lake, &mut running, &bad).await;
        let verdict = verified(&lake).await;
        assert_eq!((verdict.verdict, verdict.quarantined), ("equal", Some(4)), "{table} {spared} {after}");
        running.stop().await;
        sound(&lake).await;
        // Only where the quarantine has a chunk that the mirror has not is the copy begun anew.
        if let Some(mirror) = mirror.filter(|mirror| !mirror.done) {
            let level = ahead.is_none_or(|ahead| ahead.attempt != mirror.attempt || ahead.chunks <= mirror.chunks);
            let now = copy_of(&lake, TABLE).await.expect("a copy");
            assert_eq!(now.attempt == mirror.attempt, level, "{table} {spared} {after}");
        }
    }
}

/// What `lakehouse resync` does.
async fn request_resync(lake: &Lake, table: &str) {
    let mirror = TableName::new(PIPELINE, table);
    let names = vec![mirror.quarantine(), mirror.history(), mirror];
    let control = Control::open(Arc::new(lake.catalog()), Storage::local(), PIPELINE).await;
    let mut control = control.expect("a control table");
    control.request_resync(&BTreeMap::from([(table.to_owned(), names)]), "test").await.expect("asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_takes_the_place_of_what_an_earlier_copy_has_quarantined_and_keeps_what_the_stream_had() {
    let service = service(Habits::default());
    service.disable_stream(TABLE);
    good(&service, "a", 1);
    bad(&service, "b", "x");
    bad(&service, "c", "y");
    service.enable_stream(TABLE, View::NewAndOldImages, 1);
    let mut lake = lake(&service);
    let mut running = lake.start();
    has(&lake, &mut running, &[("a", 1)]).await;
    bad(&service, "a", "z");
    quarantined(&lake, &mut running, &[image("a", "z"), image("b", "x"), image("c", "y")]).await;
    has(&lake, &mut running, &[]).await;
    good(&service, "b", 2);
    has(&lake, &mut running, &[("b", 2)]).await;
    running.stop().await;

    // What an open shard still holds would come again, here as in the history.
    service.roll(TABLE, &service.open_shards(TABLE)[0].clone());
    // The first attempt dies between its two commits.
    request_resync(&lake, TABLE).await;
    run_and_die(&mut lake, "profiles", 0, false).await;
    let mut running = lake.start();
    // By the stream once, and by the copy, as it stands at the source; `b` is good by now.
    quarantined(&lake, &mut running, &[image("a", "z"), image("a", "z"), image("c", "y")]).await;
    let operations: Vec<_> = kept(&lake).await.into_iter().map(|row| (row.operation, row.key)).collect();
    let expected = [("copy", r#"{"id":"a"}"#), ("copy", r#"{"id":"c"}"#), ("update", r#"{"id":"a"}"#)]
        .map(|(operation, key)| (operation.to_owned(), key.to_owned()));
    assert_eq!(operations, expected);
    back_in_the_cut(&lake, &mut running).await;
    good(&service, "a", 5);
    has(&lake, &mut running, &[("a", 5), ("b", 2)]).await;
    let verdict = verified(&lake).await;
    assert_eq!((verdict.verdict, verdict.quarantined), ("equal", Some(1)));
    running.stop().await;
    sound(&lake).await;
}

/// Runs a worker that must end by itself.
async fn problem(lake: &Lake) -> Problem {
    let ended = tokio::time::timeout(support::DEADLINE, lake.start().task).await.expect("it ends");
    ended.expect("no panic").expect_err("it ends with a problem")
}

/// Waits until the table is in the cut again.
async fn back_in_the_cut(lake: &Lake, running: &mut Running) {
    let back = async || (lake.cut().await.is_some_and(|cut| cut.left.is_empty()), String::new());
    lake.until("the table is in the cut again", running, back).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_quarantine_stops_its_table_before_anything_goes_without_the_row() {
    let service = service(Habits::default());
    service.disable_stream(TABLE);
    good(&service, "a", 1);
    service.enable_stream(TABLE, View::NewAndOldImages, 1);
    let mut lake = lake(&service);
    lake.options(TABLE).quarantine_limit.rows = 2;
    let mut running = lake.start();
    has(&lake, &mut running, &[("a", 1)]).await;
    bad(&service, "b", "x");
    bad(&service, "c", "y");
    let two = [image("b", "x"), image("c", "y")];
    quarantined(&lake, &mut running, &two).await;
    each_record_stands_once(&lake, &service, &mut running).await;

    bad(&service, "a", "z");
    let mut left = None;
    let leaves = async || {
        left = lake.cut().await.and_then(|cut| cut.left.get(TABLE).cloned());
        (left.is_some(), String::new())
    };
    lake.until("the table leaves the cut", &mut running, leaves).await;
    let left = left.expect("it was waited for");
    assert_eq!(left.code, QUARANTINE_LIMIT, "{left:?}");
    assert!(left.reason.contains("limit is 2"), "{left:?}");
    quarantined(&lake, &mut running, &two).await;
    has(&lake, &mut running, &[("a", 1)]).await;
    assert_eq!(lake.history(TABLE, "id").await.len(), 2, "the history has the change that the quarantine has not");
    running.stop().await;
    sound(&lake).await;

    // With room for them a resync takes all of them; what an open shard still holds would come again.
    service.roll(TABLE, &service.open_shards(TABLE)[0].clone());
    lake.options(TABLE).quarantine_limit.rows = 5;
    request_resync(&lake, TABLE).await;
    let mut running = lake.start();
    has(&lake, &mut running, &[]).await;
    let copied = [image("a", "z"), image("b", "x"), image("c", "y")];
    quarantined(&lake, &mut running, &[&two[..], &copied].concat()).await;
    back_in_the_cut(&lake, &mut running).await;
    good(&service, "a", 2);
    has(&lake, &mut running, &[("a", 2)]).await;
    let verdict = verified(&lake).await;
    assert_eq!((verdict.verdict, verdict.quarantined), ("equal", Some(2)));
    running.stop().await;
    sound(&lake).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_with_more_such_items_than_the_limit_stops_before_it_commits_the_first_too_many() {
    let service = service(Habits::default());
    service.disable_stream(TABLE);
    let (good, bad) = mixed(&service);
    service.enable_stream(TABLE, View::NewAndOldImages, 1);
    let mut lake = lake(&service);
    lake.options(TABLE).quarantine_limit.rows = 3;
    let stopped = problem(&lake).await;
    assert_eq!((stopped.code, stopped.reaction), (QUARANTINE_LIMIT, Reaction::Halt), "{stopped:?}");
    assert!(kept(&lake).await.len() <= 3, "{:?}", kept(&lake).await);

    lake.options(TABLE).quarantine_limit.rows = 4;
    let mut running = lake.start();
    has(&lake, &mut running, &good.iter().map(|(id, n)| (id.as_str(), *n)).collect::<Vec<_>>()).await;
    quarantined(&lake, &mut running, &bad).await;
    running.stop().await;
    sound(&lake).await;
}

/// What `lakehouse quarantine --replay` does, while no worker runs.
async fn request_replay(lake: &Lake, id: &str) {
    let control = Control::open(Arc::new(lake.catalog()), Storage::local(), PIPELINE).await;
    let asked = control.expect("a control table").request_replay(TABLE, id, "test").await;
    assert_eq!(asked.expect("asked for"), id);
}

/// Waits until a cut says that it has been done.
async fn replayed(lake: &Lake, running: &mut Running, id: &str) {
    let lane = format!("replay/{id}");
    let done = async || {
        let lanes = lake.cut().await.and_then(|cut| cut.lanes.of(TABLE).cloned());
        (lanes.as_ref().is_some_and(|lanes| lanes.lanes.contains_key(&lane)), format!("{lanes:?}"))
    };
    lake.until(&format!("the replay {id} is done"), running, done).await;
}

/// What the history has of a replay: operation and key.
async fn of_replay(lake: &Lake, id: &str) -> Vec<(String, String)> {
    let lane = format!("replay/{id}");
    let changes = lake.history(TABLE, "id").await.into_iter().filter(|change| change.lane == lane);
    let mut changes: Vec<_> = changes.map(|change| (change.key, change.operation)).collect();
    changes.sort();
    changes
}

/// The mirror's rows, whether they have their number or not: `n` and `_rest`.
async fn whole_rows(lake: &Lake) -> BTreeMap<String, (Option<i64>, Option<String>)> {
    let mut rows = BTreeMap::new();
    for batch in lake.batches(TABLE).await {
        let column = |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("no {name}")).clone();
        let (ids, n, rest) = (column("id"), column("n"), column("_rest"));
        let (ids, n, rest) = (ids.as_string::<i32>(), n.as_primitive::<Int64Type>(), rest.as_string::<i32>());
        for row in 0..batch.num_rows() {
            let value = (n.is_valid(row).then(|| n.value(row)), rest.is_valid(row).then(|| rest.value(row).to_owned()));
            assert!(rows.insert(ids.value(row).to_owned(), value).is_none(), "a key stands twice");
        }
    }
    rows
}

/// Waits for rows as [`whole_rows`] has them: keys with a number, or with the text that stands in its place.
async fn has_whole(lake: &Lake, running: &mut Running, wanted: &[(&str, Result<i64, &str>)]) {
    let row = |(id, n): &(&str, Result<i64, &str>)| {
        let rest = n.err().map(|text| format!(r#"{{"n":"{text}","v":true}}"#));
        ((*id).to_owned(), (n.ok(), rest))
    };
    let wanted: BTreeMap<_, _> = wanted.iter().map(row).collect();
    let standing = async || {
        let found = whole_rows(lake).await;
        (found == wanted, format!("{found:?}"))
    };
    lake.until(&format!("the mirror has {wanted:?}"), running, standing).await;
}

/// With the source, and with the history folded to the newest cut.
async fn equal_both_ways(lake: &Lake) {
    assert_eq!(verified(lake).await.verdict, "equal");
    let cut = lake.cut().await.expect("a cut").position;
    let options = VerifyOptions { cut: Some(cut), ..VerifyOptions::default() };
    let report = cdc_dynamodb::verify(&lake.source, lake.environment(), options).await.expect("a verdict");
    assert_eq!(report.verdict, "equal", "against the history");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_applies_what_can_be_mapped_by_now_and_nothing_whose_key_was_written_since() {
    let service = service(Habits::default());
    service.disable_stream(TABLE);
    good(&service, "a", 1);
    bad(&service, "copied", "c");
    bad(&service, "rewritten", "r");
    service.enable_stream(TABLE, View::NewAndOldImages, 1);
    let mut lake = lake(&service);
    let mut running = lake.start();
    has(&lake, &mut running, &[("a", 1)]).await;
    bad(&service, "a", "x");
    bad(&service, "b", "older");
    bad(&service, "b", "newer");
    bad(&service, "c", "z");
    bad(&service, "gone", "g");
    good(&service, "rewritten", 5);
    good(&service, "c", 7);
    service.delete(TABLE, &json!({"id": {"S": "gone"}}));
    each_record_stands_once(&lake, &service, &mut running).await;
    has(&lake, &mut running, &[("c", 7), ("rewritten", 5)]).await;
    let rows_kept = kept(&lake).await;
    running.stop().await;

    // Nothing fits better than it did.
    request_replay(&lake, "one").await;
    let mut running = lake.start();
    replayed(&lake, &mut running, "one").await;
    assert!(of_replay(&lake, "one").await.is_empty());
    has(&lake, &mut running, &[("c", 7), ("rewritten", 5)]).await;
    running.stop().await;

    lake.options(TABLE).mismatch.insert("n".to_owned(), Mismatch::Rest);
    request_replay(&lake, "two").await;
    let mut running = lake.start();
    let wanted = [("a", Err("x")), ("b", Err("newer")), ("c", Ok(7)), ("copied", Err("c")), ("rewritten", Ok(5))];
    has_whole(&lake, &mut running, &wanted).await;
    replayed(&lake, &mut running, "two").await;
    let expected = [("a", "update"), ("b", "update"), ("copied", "insert")];
    let expected = expected.map(|(key, operation)| (key.to_owned(), operation.to_owned()));
    assert_eq!(of_replay(&lake, "two").await, expected);
    assert_eq!(kept(&lake).await, rows_kept, "the quarantine keeps its rows");
    equal_both_ways(&lake).await;

    // What comes later comes behind it, and is not taken back by a request that is done, nor by another one.
    good(&service, "a", 9);
    let wanted = [("a", Ok(9)), ("b", Err("newer")), ("c", Ok(7)), ("copied", Err("c")), ("rewritten", Ok(5))];
    has_whole(&lake, &mut running, &wanted).await;
    running.stop().await;
    let mut running = lake.start();
    service.delete(TABLE, &json!({"id": {"S": "copied"}}));
    let wanted = [("a", Ok(9)), ("b", Err("newer")), ("c", Ok(7)), ("rewritten", Ok(5))];
    has_whole(&lake, &mut running, &wanted).await;
    running.stop().await;
    request_replay(&lake, "three").await;
    let mut running = lake.start();
    replayed(&lake, &mut running, "three").await;
    assert!(of_replay(&lake, "three").await.is_empty());
    has_whole(&lake, &mut running, &wanted).await;
    assert_eq!(of_replay(&lake, "two").await, expected, "once");
    equal_both_ways(&lake).await;
    running.stop().await;
    sound(&lake).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_dies_at_any_commit_is_applied_once() {
    for table in ["profiles_history", "profiles"] {
        for after in [false, true] {
            let service = service(Habits::default());
            service.disable_stream(TABLE);
            good(&service, "a", 1);
            good(&service, "b", 1);
            service.enable_stream(TABLE, View::NewAndOldImages, 1);
            let mut lake = lake(&service);
            let mut running = lake.start();
            has(&lake, &mut running, &[("a", 1), ("b", 1)]).await;
            bad(&service, "a", "x");
            bad(&service, "b", "y");
            each_record_stands_once(&lake, &service, &mut running).await;
            has(&lake, &mut running, &[]).await;
            running.stop().await;

            lake.options(TABLE).mismatch.insert("n".to_owned(), Mismatch::Rest);
            request_replay(&lake, "one").await;
            run_and_die(&mut lake, table, 0, after).await;
            // Asked once more, it is the same one: it may have landed in part.
            let control = Control::open(Arc::new(lake.catalog()), Storage::local(), PIPELINE).await;
            let asked = control.expect("a control table").request_replay(TABLE, "two", "test").await;
            assert_eq!(asked.expect("asked for"), "one");
            good(&service, "b", 2);
            let mut running = lake.start();
            has_whole(&lake, &mut running, &[("a", Err("x")), ("b", Ok(2))]).await;
            replayed(&lake, &mut running, "one").await;
            let both = ["a", "b"].map(|key| (key.to_owned(), "update".to_owned()));
            assert_eq!(of_replay(&lake, "one").await, both, "{table}, after: {after}");
            equal_both_ways(&lake).await;
            running.stop().await;
            sound(&lake).await;
        }
    }
}

/// Beside a copy it has to wait, and then nobody has to start the worker for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_asked_for_beside_a_copy_is_done_behind_it_by_the_same_worker() {
    const OTHER: &str = "orders";
    let service = service(Habits::default());
    service.create_table(OTHER, &[("id", KeyType::S)]);
    service.enable_stream(OTHER, View::NewAndOldImages, 1);
    service.put(OTHER, &json!({"id": {"S": "o1"}}));
    let mut lake = Lake::new(&service, &[TABLE, OTHER]);
    lake.options(TABLE).columns.insert("n".to_owned(), "long".to_owned());
    lake.options(TABLE).mismatch.insert("n".to_owned(), Mismatch::Quarantine);
    let mut running = lake.start();
    good(&service, "a", 1);
    bad(&service, "b", "x");
    each_record_stands_once(&lake, &service, &mut running).await;
    has(&lake, &mut running, &[("a", 1)]).await;
    running.stop().await;

    lake.options(TABLE).mismatch.insert("n".to_owned(), Mismatch::Rest);
    request_replay(&lake, "one").await;
    request_resync(&lake, OTHER).await;
    // What is read while the copy runs is kept, and newer than what is replayed.
    bad(&service, "c", "y");
    good(&service, "b", 2);
    let mut running = lake.start();
    replayed(&lake, &mut running, "one").await;
    has_whole(&lake, &mut running, &[("a", Ok(1)), ("b", Ok(2)), ("c", Err("y"))]).await;
    back_in_the_cut(&lake, &mut running).await;
    running.stop().await;

    // The same where the row still stands.
    lake.options(TABLE).mismatch.insert("n".to_owned(), Mismatch::Quarantine);
    let mut running = lake.start();
    bad(&service, "d", "z");
    let there = async || (kept(&lake).await.iter().any(|row| row.image == image("d", "z")), String::new());
    lake.until("d is quarantined", &mut running, there).await;
    running.stop().await;
    lake.options(TABLE).mismatch.insert("n".to_owned(), Mismatch::Rest);
    request_replay(&lake, "two").await;
    request_resync(&lake, OTHER).await;
    let mut running = lake.start();
    let wanted = [("a", Ok(1)), ("b", Ok(2)), ("c", Err("y")), ("d", Err("z"))];
    has_whole(&lake, &mut running, &wanted).await;
    replayed(&lake, &mut running, "two").await;
    assert_eq!(of_replay(&lake, "two").await, [("d".to_owned(), "insert".to_owned())]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantine_that_a_newer_release_has_written_is_not_touched() {
    let service = service(Habits::default());
    good(&service, "a", 1);
    let lake = lake(&service);
    let mut running = lake.start();
    has(&lake, &mut running, &[("a", 1)]).await;
    running.stop().await;
    let quarantine = TableName::new(PIPELINE, TABLE).quarantine();
    let table = lake.catalog().load(&quarantine, None).await.expect("readable").expect("it is there");
    let updates = HashMap::from([(FORMAT.to_owned(), (FORMAT_VERSION + 1).to_string())]);
    lake.catalog().commit(&table, vec![TableUpdate::SetProperties { updates }]).await.expect("a commit");
    let standing = async || {
        let mut pointers = Vec::new();
        for name in TABLES {
            let table = lake.catalog().load(&TableName::new(PIPELINE, name), None).await.expect("readable");
            pointers.push(table.expect("it is there").metadata_location);
        }
        pointers
    };
    let before = standing().await;
    bad(&service, "a", "x");
    let stopped = problem(&lake).await;
    assert_eq!((stopped.code, stopped.reaction), ("NEWER_FORMAT", Reaction::Halt), "{stopped:?}");
    assert_eq!(stopped.subject, quarantine.to_string());
    assert_eq!(standing().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exports_items_are_quarantined_too() {
    let service = Arc::new(DynamoDb::start(Habits::default(), 11));
    let hours = Duration::from_secs(2 * 3_600);
    service.advance(std::time::SystemTime::now().duration_since(service.now()).expect("a later time") - hours);
    service.create_table(TABLE, &[("id", KeyType::S)]);
    service.point_in_time_recovery(TABLE, true);
    good(&service, "a", 1);
    bad(&service, "b", "x");
    service.enable_stream(TABLE, View::NewAndOldImages, 1);
    service.advance(hours);
    let ticking = Arc::clone(&service);
    let clock = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            ticking.advance(Duration::from_millis(20));
        }
    });
    let mut lake = lake(&service);
    lake.source.aws.s3_endpoint = Some(service.endpoint());
    let place = ExportPlace::new("exports", Some("a/b".to_owned()));
    lake.source.settings.exports =
        Some(ExportPlace { margin: Duration::ZERO, poll: Duration::from_millis(20), ..place });
    lake.source.settings.copy = CopyRoad::Export;
    let mut running = lake.start();
    has(&lake, &mut running, &[("a", 1)]).await;
    quarantined(&lake, &mut running, &[image("b", "x")]).await;
    assert_eq!(kept(&lake).await[0].operation, "copy");
    running.stop().await;
    clock.abort();
    sound(&lake).await;
}

/// Whether every item of the source stands in the lake: as `verify` sees it, and as the quarantine's rows show.
async fn nothing_is_lost(planted: Planted) -> (bool, bool) {
    let service = service(Habits::default());
    good(&service, "a", 1);
    let mut lake = lake(&service);
    lake.planted = planted;
    let mut running = lake.start();
    has(&lake, &mut running, &[("a", 1)]).await;
    bad(&service, "a", "x");
    good(&service, "b", 1);
    has(&lake, &mut running, &[("b", 1)]).await;
    let verdict = verified(&lake).await;
    running.stop().await;
    let lost = (verdict.verdict, verdict.only_in_source, verdict.quarantined);
    assert!([("equal", 0, Some(1)), ("different", 1, Some(0))].contains(&lost), "{lost:?}");
    let images: Vec<Value> = kept(&lake).await.iter().map(|row| json!(row.image)).collect();
    (verdict.verdict == "equal", images == [json!(image("a", "x"))])
}

#[tokio::test(flavor = "multi_thread")]
async fn b16_a_quarantined_row_that_is_dropped_is_caught() {
    assert_eq!(nothing_is_lost(Planted::none()).await, (true, true));
    assert_eq!(nothing_is_lost(Planted::only(Bug::DropQuarantined)).await, (false, false));
}
