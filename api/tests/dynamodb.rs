//! The real binary on DynamoDB: kills on the whole path, on a server that other people wrote and on the simulator, whose
//! shards split, roll over and are listed late.
//!
//! What was written is read back by DuckDB and compared with what the test has put. `LAKEHOUSE_KILLS` sets the number of
//! kills, `LAKEHOUSE_SEED` the seed.

#[allow(dead_code, reason = "each test binary uses its part")]
mod live;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
    StreamSpecification, StreamViewType,
};
use fastrand::Rng;
use live::books::Books;
use live::{PIPELINE, Site, stop};
use testkit::dynamodb::{self, DynamoDb, Habits, View};
use testkit::emulators::Ministack;
use tokio::task::JoinHandle;

const TABLE: &str = "profiles";
const MIRROR: &str = "app.profiles";
const HISTORY: &str = "app.profiles_history";
/// Items that are there before the first start.
const ITEMS: u32 = 1_500;
/// Keys that the load writes.
const KEYS: u32 = 2_000;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_on_an_emulator_however_often_the_worker_is_killed() {
    let ministack = Ministack::start().await;
    let endpoint = ministack.endpoint();
    let client = dynamodb::client(&endpoint);
    create_table(&client).await;
    Story { endpoint, client }.run(|_| {}).await;
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
    Story { endpoint, client }
        .run(|history| {
            assert!(service.shards(TABLE).len() > 4, "no shard has split or rolled over");
            assert!(history <= service.records(TABLE).len(), "more than the stream has");
        })
        .await;
    service.assert_one_reader_per_shard();
}

struct Story {
    endpoint: String,
    client: Client,
}

impl Story {
    /// Items, a load, kills; then what stands in the lake. `check` gets the number of the history's rows.
    async fn run(self, check: impl FnOnce(usize)) {
        let kills: u64 = match std::env::var("LAKEHOUSE_KILLS") {
            Ok(kills) => kills.parse().expect("LAKEHOUSE_KILLS is a number"),
            Err(_) if std::env::var_os("LAKEHOUSE_LONG").is_some() => 200,
            Err(_) => 12,
        };
        let seed = seed();
        eprintln!("kills on DynamoDB: LAKEHOUSE_SEED={seed} LAKEHOUSE_KILLS={kills}");
        let begun = Instant::now();
        let mut rng = Rng::with_seed(seed);
        let mut load = Load { client: self.client.clone(), items: BTreeMap::new(), changes: 0, rng: rng.fork() };
        for user in 0..ITEMS {
            load.put(user).await;
        }
        // Shards that have ended by now are not read: the copy has what came of them.
        let before = load.changes;
        let site = site(&self.endpoint);
        let running = Running::start(load);
        for _ in 0..kills {
            let mut worker = site.start();
            tokio::time::sleep(Duration::from_millis(rng.u64(100..2_500))).await;
            assert!(worker.is_running(), "it has ended by itself: {}", worker.stderr());
            worker.kill().await;
        }
        let worker = site.start();
        let load = running.stop().await;
        site.caught_up().await;
        let mut books = Books::open().await;
        let wanted: Vec<String> = load.items.values().map(Profile::row).collect();
        let mut found = books.rows(&site, MIRROR, &["user_id", "level", "_rest"]).await;
        found.sort();
        assert_same(&wanted, &found);
        let history =
            books.sql(&site, HISTORY, None, "SELECT count(*), count(DISTINCT (_cdc_lane, _cdc_offset)) FROM t");
        let history = history.await.remove(0);
        let (rows, distinct) = counts(&history);
        assert_eq!(rows, distinct, "a change stands twice in the history");
        let since = load.changes - before;
        assert!((since..=load.changes).contains(&rows), "{rows} rows in the history, {since} changes since the start");
        check(rows);
        let checked = site.lakehouse.ask(&["fsck"]).await;
        assert_eq!(checked["verdict"], "sound", "{checked}");
        let verified = site.lakehouse.ask(&["verify"]).await;
        assert_eq!(verified["verdict"], "equal", "{verified}");
        stop(worker).await;
        eprintln!("{} changes, {rows} rows in the history, {:?}", load.changes, begun.elapsed());
    }
}

fn seed() -> u64 {
    match std::env::var("LAKEHOUSE_SEED") {
        Ok(seed) => seed.parse().expect("LAKEHOUSE_SEED is a number"),
        Err(_) => fastrand::u64(..),
    }
}

fn site(endpoint: &str) -> Site {
    let mut site = Site::with(&format!(
        "[catalog]\npath = \"lake/catalog.db\"\nwarehouse = \"lake/warehouse\"\n\
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

    /// The row that DuckDB must find, written down here and nowhere taken from the product.
    fn row(&self) -> String {
        let tags = self.tags.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let rest = format!("{{\"prefs\":{{\"theme\":\"{}\"}},\"tags\":{{\"$NS\":[{tags}]}}}}", self.theme);
        serde_json::to_string(&(&self.user, self.level, rest)).expect("plain data")
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

/// The simulator throttles and fails writes, too; a client tries them again.
fn is_passing(code: Option<&str>) -> bool {
    matches!(code, Some("InternalServerError" | "ProvisionedThroughputExceededException"))
}

/// A load on its way.
struct Running {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Load>,
}

impl Running {
    fn start(mut load: Load) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                load.one().await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            load
        });
        Self { stop, task }
    }

    async fn stop(self) -> Load {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the load has not panicked")
    }
}

fn counts(row: &str) -> (usize, usize) {
    let counts: (usize, usize) = serde_json::from_str(row).unwrap_or_else(|error| panic!("{row}: {error}"));
    counts
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
