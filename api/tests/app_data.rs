//! The real binary on DynamoDB: kills on the whole path, on a server that other people wrote and on the simulator, whose
//! shards split, roll over and are listed late.
//!
//! What was written is read back by DuckDB and compared with what the test has put, and `verify` must come to the same
//! end: equal, and different where the table is not what was streamed. `LAKEHOUSE_KILLS` sets the number of kills,
//! `LAKEHOUSE_SEED` the seed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::live::books::Books;
use crate::live::{DEADLINE, PIPELINE, Site, stop, until};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
    StreamSpecification, StreamViewType,
};
use fastrand::Rng;
use serde_json::{Value, json};
use testkit::dynamodb::{self, DynamoDb, Habits, View};
use testkit::emulators::Ministack;
use testkit::tier::{self, seed};
use tokio::task::JoinHandle;

const TABLE: &str = "profiles";
const MIRROR: &str = "app.profiles";
const HISTORY: &str = "app.profiles_history";
/// Items that are there before the first start.
const ITEMS: u32 = 1_500;
/// Keys that the load writes.
const KEYS: u32 = 2_000;

/// Shard and sequence number of a record.
type Place = (String, String);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_on_an_emulator_however_often_the_worker_is_killed() {
    let ministack = Ministack::start().await;
    let endpoint = ministack.endpoint();
    let client = dynamodb::client(&endpoint);
    create_table(&client).await;
    Story { endpoint, client, simulator: None }.run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_while_shards_split_and_roll_over() {
    let seed = seed();
    let habits = Habits {
        splits: 2,
        rolls: 2,
        most_open_shards: 8,
        listed_late: 1,
        closed_late: 1,
        unordered: true,
        throttled: 20,
        internal_errors: 10,
        expired_iterators: 10,
        empty_pages: 50,
        short_pages: 50,
        ends_with_records: 500,
        ..Habits::default()
    };
    let service = DynamoDb::start_now(habits, seed);
    service.create_table(TABLE, &[("user_id", dynamodb::KeyType::S)]);
    service.enable_stream(TABLE, View::NewAndOldImages, 4);
    let endpoint = service.endpoint();
    let client = dynamodb::client(&endpoint);
    Story { endpoint, client, simulator: Some(&service) }.run().await;
    assert!(service.shards(TABLE).len() > 4, "no shard has split or rolled over");
    service.assert_one_reader_per_shard();
}

/// A worker that was stopped in mid-work, for as long as it takes another one to take over and to go on, has nothing to say
/// when it wakes up: whatever it still holds comes to nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_wakes_up_behind_its_successor_writes_no_cut_and_no_table() {
    const ROUNDS: usize = 4;
    let seed = seed();
    eprintln!("a zombie on DynamoDB: LAKEHOUSE_SEED={seed}");
    let habits = Habits { splits: 2, rolls: 2, most_open_shards: 8, short_pages: 50, ..Habits::default() };
    let service = DynamoDb::start_now(habits, seed);
    service.create_table(TABLE, &[("user_id", dynamodb::KeyType::S)]);
    service.enable_stream(TABLE, View::NewAndOldImages, 4);
    let mut rng = Rng::with_seed(seed);
    let client = dynamodb::client(&service.endpoint());
    let mut load = Load { client, items: BTreeMap::new(), changes: 0, rng: rng.fork() };
    for user in 0..ITEMS {
        load.put(user).await;
    }
    let site = site(&service.endpoint());
    let elsewhere = sharing(&site, &service.endpoint());
    let running = Running::start(load);
    let mut books = Books::open().await;
    let mut worker = site.start();
    site.caught_up().await;
    let before = places(&service);
    let mut highest = 0;
    for round in 0..ROUNDS {
        tokio::time::sleep(Duration::from_millis(rng.u64(500..2_500))).await;
        worker.freeze();
        let successor = elsewhere.start();
        until("the successor has taken over", || successor.stderr().contains("worker has taken over")).await;
        elsewhere.caught_up().await;
        let epoch = epoch(&mut books, &site).await;
        assert!(epoch > highest, "round {round}: epoch {epoch} after {highest}");
        highest = epoch;
        worker.thaw();
        // It is fenced at its next commit; then it stands by, and may take over again.
        until("the sleeper is fenced", || worker.stderr().contains("FENCED")).await;
        worker.kill().await;
        elsewhere.caught_up().await;
        stop(successor).await;
        worker = site.start();
        site.caught_up().await;
    }
    let load = running.stop().await;
    site.caught_up().await;
    for table in [MIRROR, HISTORY, &format!("lakehouse_control.{PIPELINE}")] {
        let epochs = epochs(&mut books, &site, table).await;
        assert!(epochs.is_sorted(), "{table}: a worker has written behind its successor: {epochs:?}");
        assert!(epochs.last() > epochs.first(), "{table}: {epochs:?}");
    }
    let wanted: Vec<String> = load.items.values().map(Profile::row).collect();
    let mut found = books.rows(&site, MIRROR, &["user_id", "level", "_rest"]).await;
    found.sort();
    assert_same(&wanted, &found);
    let story = Story { endpoint: service.endpoint(), client: load.client.clone(), simulator: Some(&service) };
    story.check_history(&site, &mut books, Some(before), load.changes).await;
    assert_equal(&site).await;
    stop(worker).await;
}

/// What a person sees of items that cannot be mapped: how many, which ones and why; and that their table stops at too many.
#[tokio::test(flavor = "multi_thread")]
async fn items_that_cannot_be_mapped_are_counted_and_listed_and_too_many_stop_their_table() {
    let service = DynamoDb::start_now(Habits::default(), 0);
    service.create_table(TABLE, &[("user_id", dynamodb::KeyType::S)]);
    service.enable_stream(TABLE, View::NewAndOldImages, 1);
    let put = |user: &str, level: Value| service.put(TABLE, &json!({"user_id": {"S": user}, "level": level}));
    put("mappable", json!({"N": "1"}));
    let site = site(&service.endpoint());
    // The file ends with the table's section.
    let config = fs::read_to_string(site.lakehouse.config()).expect("the configuration");
    let configure = |mismatch: &str| {
        site.lakehouse.configure(&format!("{config}mismatch = \"{mismatch}\"\nquarantine_rows = 2\n"));
    };
    configure("quarantine");
    let worker = site.start();
    site.caught_up().await;
    let table = async || {
        let answer = site.lakehouse.ask(&["status"]).await;
        answer["pipelines"][0]["tables"][0].clone()
    };
    let standing = |table: &Value| ["state", "code", "rows", "quarantined"].map(|key| table[key].clone());
    assert_eq!(standing(&table().await), [json!("streaming"), Value::Null, json!(1), json!(0)]);

    put("first-user", json!({"S": "one"}));
    put("second-user", json!({"BOOL": true}));
    site.caught_up().await;
    assert_eq!(standing(&table().await), [json!("streaming"), Value::Null, json!(1), json!(2)]);
    let text = site.lakehouse.run(&["status"]).await.stdout;
    assert!(text.contains("app.profiles: rows in app.profiles_quarantine: 2"), "{text}");

    let listed = site.lakehouse.ask(&["quarantine", MIRROR]).await;
    assert_eq!(
        [&listed["table"], &listed["quarantine"], &listed["rows"]],
        [&json!(MIRROR), &json!("app.profiles_quarantine"), &json!(2)]
    );
    let rows = listed["quarantined"].as_array().expect("rows");
    let sent: Vec<Place> = service.records(TABLE).into_iter().map(|record| (record.shard, record.sequence)).collect();
    let [first, second] = &sent[sent.len() - 2..] else { panic!("two records: {sent:?}") };
    for (row, place, found) in [(&rows[0], second, "BOOL"), (&rows[1], first, "S")] {
        assert_eq!([&row["operation"], &row["column"], &row["code"]], ["insert", "level", "VALUE_MISMATCH"], "{row}");
        assert_eq!([&row["lane"], &row["offset"]], [&place.0, &place.1], "{row}");
        assert!(row["reason"].as_str().is_some_and(|reason| reason.contains(&format!("type {found} "))), "{row}");
        assert!(row["position"].as_str().is_some_and(|position| position.contains('/')), "{row}");
        assert!(row["committed_at"].as_str().is_some_and(|time| time.ends_with('Z')), "{row}");
        assert!(row["key"].as_str().is_some_and(|key| key.len() == 32), "{row}");
    }
    assert_eq!(rows.len(), 2);
    assert!(!listed.to_string().contains("-user"), "keys are not asked for: {listed}");
    let newest = site.lakehouse.ask(&["quarantine", MIRROR, "--show-keys", "--limit", "1"]).await;
    let keys: Vec<&Value> = newest["quarantined"].as_array().expect("rows").iter().map(|row| &row["key"]).collect();
    assert_eq!((keys, &newest["rows"]), (vec![&json!(r#"{"user_id":"second-user"}"#)], &json!(2)));
    let text = site.lakehouse.run(&["quarantine", MIRROR]).await.stdout;
    assert!(text.ends_with("2 of 2 rows in app.profiles_quarantine\n") && !text.contains("-user"), "{text}");

    // Another policy takes them: a replay brings them, and leaves them in the quarantine.
    stop(worker).await;
    configure("rest");
    let (code, refused) = site.lakehouse.json(&["quarantine", MIRROR, "--replay", "--reason", "test"]).await;
    assert_eq!((code, &refused["code"]), (Some(2), &json!("NOT_CONFIRMED")), "{refused}");
    let asked = site.lakehouse.ask(&["quarantine", MIRROR, "--replay", "--reason", "test", "--yes"]).await;
    assert_eq!([&asked["requested"], &asked["rows"]], [&json!(true), &json!(2)]);
    let worker = site.start();
    site.caught_up().await;
    assert_eq!(standing(&table().await), [json!("streaming"), Value::Null, json!(3), json!(2)]);
    assert_equal(&site).await;
    stop(worker).await;
    configure("quarantine");
    let worker = site.start();

    put("third-user", json!({"S": "one too many"}));
    let stopped = async {
        loop {
            let table = table().await;
            if !table["code"].is_null() {
                return table;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let stopped = tokio::time::timeout(DEADLINE, stopped).await.expect("the table stops");
    assert_eq!(standing(&stopped), [json!("quarantined"), json!("QUARANTINE_LIMIT"), json!(3), json!(2)]);
    stop(worker).await;
}

/// Another installation on the same lake, with local state of its own.
fn sharing(site: &Site, endpoint: &str) -> Site {
    let folder = site.path().join("lake");
    let catalog =
        format!("path = \"{0}/catalog.db\"\nwarehouse = \"{0}/warehouse\"", folder.to_str().expect("a plain path"));
    configured(&catalog, endpoint)
}

/// The epochs of a table's snapshots, in the order in which they were committed.
async fn epochs(books: &mut Books, site: &Site, table: &str) -> Vec<u64> {
    let of = |snapshot: &Value| {
        let summary = &snapshot["summary"];
        let cut = summary["cdc.cut"].as_str().and_then(|cut| serde_json::from_str::<Value>(cut).ok());
        let own = summary["cdc.epoch"].as_str().and_then(|epoch| epoch.parse().ok());
        own.or_else(|| cut?["epoch"].as_u64())
    };
    books.snapshots(site, table).await.iter().filter_map(of).collect()
}

/// The epoch of the newest cut.
async fn epoch(books: &mut Books, site: &Site) -> u64 {
    epochs(books, site, &format!("lakehouse_control.{PIPELINE}")).await.last().copied().unwrap_or_default()
}

struct Story<'a> {
    endpoint: String,
    client: Client,
    /// Where there is one, it knows all its records.
    simulator: Option<&'a DynamoDb>,
}

impl Story<'_> {
    /// Items, a load, kills; then what stands in the lake.
    async fn run(self) {
        let seed = seed();
        let kills = tier::size("LAKEHOUSE_KILLS", 10, 200);
        eprintln!("kills on DynamoDB: LAKEHOUSE_SEED={seed} LAKEHOUSE_KILLS={kills}");
        let begun = Instant::now();
        let mut rng = Rng::with_seed(seed);
        let mut load = Load { client: self.client.clone(), items: BTreeMap::new(), changes: 0, rng: rng.fork() };
        for user in 0..ITEMS {
            load.put(user).await;
        }
        let site = site(&self.endpoint);
        let running = Running::start(load);
        // Killed in the copy first, then when there is one.
        let mut worker = site.start();
        tokio::time::sleep(Duration::from_millis(rng.u64(100..5_000))).await;
        worker.kill().await;
        let mut worker = site.start();
        site.caught_up().await;
        worker.kill().await;
        // Shards that had ended before the copy are not read: it has what came of them.
        let before = self.simulator.map(places);
        let mut killed = 2;
        while killed < kills {
            let mut worker = site.start();
            // As often before anything is read as while it is being committed.
            let longest = if rng.bool() { 400 } else { 2_500 };
            tokio::time::sleep(Duration::from_millis(rng.u64(20..longest))).await;
            assert!(worker.is_running(), "it has ended by itself: {}", worker.stderr());
            worker.kill().await;
            killed += 1;
        }
        let worker = site.start();
        // Under load first: what changes meanwhile is looked at again, until it rests.
        running.pause(Duration::from_millis(100));
        assert_equal(&site).await;
        let load = running.stop().await;
        site.caught_up().await;
        let wanted: Vec<String> = load.items.values().map(Profile::row).collect();
        let mut books = Books::open().await;
        let mut found = books.rows(&site, MIRROR, &["user_id", "level", "_rest"]).await;
        found.sort();
        assert_same(&wanted, &found);
        let rows = self.check_history(&site, &mut books, before, load.changes).await;
        let checked = site.lakehouse.ask(&["fsck"]).await;
        assert_eq!(checked["verdict"], "sound", "{checked}");
        assert_equal(&site).await;
        assert_differences_are_named(&site, &load).await;
        stop(worker).await;
        eprintln!("{killed} kills, {} changes, {rows} rows in the history, {:?}", load.changes, begun.elapsed());
    }

    /// Each record once, and none but the stream's.
    async fn check_history(
        &self,
        site: &Site,
        books: &mut Books,
        before: Option<BTreeSet<Place>>,
        changes: usize,
    ) -> usize {
        let rows = books.sql(site, HISTORY, None, "SELECT _cdc_lane, _cdc_offset FROM t").await;
        let place = |row: &String| serde_json::from_str::<Place>(row).unwrap_or_else(|error| panic!("{row}: {error}"));
        let found: BTreeSet<Place> = rows.iter().map(place).collect();
        assert_eq!(found.len(), rows.len(), "a change stands twice in the history");
        match (self.simulator, before) {
            (Some(service), Some(before)) => {
                let sent = places(service);
                let unknown: Vec<&Place> = found.difference(&sent).take(5).collect();
                assert!(unknown.is_empty(), "in the history and not in the stream: {unknown:?}");
                let missing: Vec<&Place> = sent.difference(&before).filter(|place| !found.contains(place)).collect();
                assert!(missing.is_empty(), "{} records are not in the history: {missing:?}", missing.len());
            }
            // One shard, open since the table was made.
            _ => assert_eq!(rows.len(), changes, "rows in the history"),
        }
        rows.len()
    }
}

/// Everything that the simulator has recorded.
fn places(service: &DynamoDb) -> BTreeSet<Place> {
    service.records(TABLE).into_iter().map(|record| (record.shard, record.sequence)).collect()
}

async fn assert_equal(site: &Site) {
    let verified = site.lakehouse.ask(&["verify"]).await;
    assert_eq!(verified["verdict"], "equal", "{verified}");
}

/// A table of the same name elsewhere, that lacks an item, has one too many and one with another attribute: as if the
/// table had been changed behind its stream's back.
async fn assert_differences_are_named(site: &Site, load: &Load) {
    let service = DynamoDb::start_now(Habits::default(), 0);
    service.create_table(TABLE, &[("user_id", dynamodb::KeyType::S)]);
    service.enable_stream(TABLE, View::NewAndOldImages, 1);
    let mut profiles = load.items.values().skip(1);
    let missing = load.items.values().next().expect("some items");
    let changed = profiles.next().expect("some items");
    service.put(TABLE, &json!({"user_id": {"S": "nobody"}}));
    let other = Profile { theme: "another".to_owned(), ..changed.clone() };
    for profile in std::iter::once(&other).chain(profiles) {
        service.put(TABLE, &profile.json());
    }
    let endpoint = format!("pipelines.{PIPELINE}.dynamodb.endpoint={}", service.endpoint());
    let (code, verified) = site.lakehouse.json(&["--set", &endpoint, "verify", "--show-keys"]).await;
    assert_eq!((code, &verified["verdict"]), (Some(5), &json!("different")), "{verified}");
    let table = &verified["tables"][0];
    for kind in ["only_in_source", "only_in_mirror", "differing"] {
        assert_eq!(table[kind], 1, "{kind}: {table}");
    }
    let samples: Vec<&Value> = table["samples"].as_array().expect("samples").iter().collect();
    let named = [("nobody", "only_in_source"), (&missing.user, "only_in_mirror"), (&changed.user, "differing")];
    for (user, difference) in named {
        let sample = json!({"difference": difference, "key": format!("user_id={user}")});
        assert!(samples.contains(&&sample), "{sample}: {table}");
    }
}

fn site(endpoint: &str) -> Site {
    configured("path = \"lake/catalog.db\"\nwarehouse = \"lake/warehouse\"", endpoint)
}

fn configured(catalog: &str, endpoint: &str) -> Site {
    let mut site = Site::with(&format!(
        "[catalog]\n{catalog}\n\
         [pipelines.{PIPELINE}]\ncommit_interval_seconds = 1\n\
         [pipelines.{PIPELINE}.dynamodb]\nregion = \"us-east-1\"\nendpoint = \"{endpoint}\"\ntables = [\"{TABLE}\"]\n\
         idle_cut_seconds = 1\n\
         [pipelines.{PIPELINE}.tables.\"{TABLE}\"]\ncolumns = {{ level = \"long\" }}\n"
    ));
    site.lakehouse.set_environment("AWS_ACCESS_KEY_ID", "test");
    site.lakehouse.set_environment("AWS_SECRET_ACCESS_KEY", "test");
    site
}

async fn create_table(client: &Client) {
    let attribute = AttributeDefinition::builder().attribute_name("user_id").attribute_type(ScalarAttributeType::S);
    let key = KeySchemaElement::builder().attribute_name("user_id").key_type(KeyType::Hash);
    let stream = StreamSpecification::builder().stream_enabled(true).stream_view_type(StreamViewType::NewAndOldImages);
    let created = client
        .create_table()
        .table_name(TABLE)
        .attribute_definitions(attribute.build().expect("a definition"))
        .key_schema(key.build().expect("a key"))
        .billing_mode(BillingMode::PayPerRequest)
        .stream_specification(stream.build().expect("a stream"));
    created.send().await.unwrap_or_else(|error| panic!("create {TABLE}: {error:?}"));
}

/// What an item says.
#[derive(Clone, Debug, PartialEq)]
struct Profile {
    user: String,
    level: u32,
    theme: String,
    tags: Vec<u32>,
}

impl Profile {
    fn item(&self) -> HashMap<String, AttributeValue> {
        let prefs = HashMap::from([("theme".to_owned(), AttributeValue::S(self.theme.clone()))]);
        let tags = self.tags.iter().map(ToString::to_string).collect();
        HashMap::from([
            ("user_id".to_owned(), AttributeValue::S(self.user.clone())),
            ("level".to_owned(), AttributeValue::N(self.level.to_string())),
            ("prefs".to_owned(), AttributeValue::M(prefs)),
            ("tags".to_owned(), AttributeValue::Ns(tags)),
        ])
    }

    fn json(&self) -> Value {
        let tags: Vec<String> = self.tags.iter().map(ToString::to_string).collect();
        json!({
            "user_id": {"S": self.user}, "level": {"N": self.level.to_string()},
            "prefs": {"M": {"theme": {"S": self.theme}}}, "tags": {"NS": tags},
        })
    }

    /// The row that DuckDB must find, written down here and nowhere taken from the product.
    fn row(&self) -> String {
        let tags = self.tags.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let rest = format!("{{\"prefs\":{{\"theme\":\"{}\"}},\"tags\":{{\"$NS\":[{tags}]}}}}", self.theme);
        serde_json::to_string(&(&self.user, self.level.to_string(), rest)).expect("plain data")
    }
}

/// One client that writes, and knows what it has written.
struct Load {
    client: Client,
    items: BTreeMap<String, Profile>,
    /// Writes that changed something.
    changes: usize,
    rng: Rng,
}

impl Load {
    async fn put(&mut self, user: u32) {
        let rng = &mut self.rng;
        let mut tags: Vec<u32> = (0..rng.u32(1..5)).map(|_| rng.u32(..100)).collect();
        tags.sort_unstable();
        tags.dedup();
        let theme = ["dark", "light", "富士"][rng.usize(..3)].to_owned();
        let profile = Profile { user: format!("user-{user:05}"), level: rng.u32(..1_000_000), theme, tags };
        let put = || self.client.put_item().table_name(TABLE).set_item(Some(profile.item())).send();
        while let Err(error) = put().await {
            assert!(is_passing(error.code()), "put: {error:?}");
        }
        let before = self.items.insert(profile.user.clone(), profile.clone());
        self.changes += usize::from(before.as_ref() != Some(&profile));
    }

    async fn delete(&mut self, user: u32) {
        let key = format!("user-{user:05}");
        let user_id = AttributeValue::S(key.clone());
        let delete = || self.client.delete_item().table_name(TABLE).key("user_id", user_id.clone()).send();
        while let Err(error) = delete().await {
            assert!(is_passing(error.code()), "delete: {error:?}");
        }
        self.changes += usize::from(self.items.remove(&key).is_some());
    }

    async fn one(&mut self) {
        let user = self.rng.u32(..KEYS);
        match self.rng.u32(..10) {
            0..3 => self.delete(user).await,
            _ => self.put(user).await,
        }
    }
}

/// The simulator throttles and fails writes, too, and the emulator drops connections; a client tries them again, and what
/// had landed changes nothing then.
fn is_passing(code: Option<&str>) -> bool {
    matches!(code, None | Some("InternalServerError" | "ProvisionedThroughputExceededException"))
}

/// A load on its way.
struct Running {
    stop: Arc<AtomicBool>,
    /// Milliseconds between two writes.
    pause: Arc<AtomicU64>,
    task: JoinHandle<Load>,
}

impl Running {
    fn start(mut load: Load) -> Self {
        let (stop, pause) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(2)));
        let (stopped, paused) = (Arc::clone(&stop), Arc::clone(&pause));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                load.one().await;
                tokio::time::sleep(Duration::from_millis(paused.load(Ordering::Relaxed))).await;
            }
            load
        });
        Self { stop, pause, task }
    }

    fn pause(&self, pause: Duration) {
        self.pause.store(u64::try_from(pause.as_millis()).expect("a short pause"), Ordering::Relaxed);
    }

    async fn stop(self) -> Load {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the load has not panicked")
    }
}

/// Both are sorted; says which rows are on one side only.
fn assert_same(wanted: &[String], found: &[String]) {
    let only = |left: &[String], right: &[String]| -> Vec<String> {
        left.iter().filter(|row| right.binary_search(row).is_err()).take(5).cloned().collect()
    };
    let (missing, unwanted) = (only(wanted, found), only(found, wanted));
    assert!(missing.is_empty() && unwanted.is_empty(), "missing: {missing:#?}, unwanted: {unwanted:#?}");
    assert_eq!(wanted.len(), found.len(), "rows");
}
