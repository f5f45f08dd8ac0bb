//! A pipeline in this process: the simulator of the service, the embedded catalog in a temporary folder, and what stands
//! in the lake.

#![allow(unreachable_pub, reason = "shared by the tests beside it, and by nothing else")]

#[path = "../../../lakehouse-core/tests/support/between.rs"]
pub mod between;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{Array as _, RecordBatch};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use cdc_dynamodb::config::{DynamodbSource, Pace, Settings, TableOptions};
use lakehouse_core::aws::AwsConfig;
use lakehouse_core::catalog::{Catalog, SqliteCatalog};
use lakehouse_core::commit::{ControlState, Cut, GiveWay};
use lakehouse_core::copy::CopyObserver;
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::lakehouse::{Environment, OWNER_INTERVAL, ROLLBACK_TAGS};
use lakehouse_core::pipeline::Limits;
use lakehouse_core::planted::Planted;
use lakehouse_core::read::{Projection, TableReader};
use lakehouse_core::schema::TableName;
use lakehouse_core::storage::Storage;
use serde_json::Value;
use testkit::dynamodb::{DynamoDb, REGION};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const PIPELINE: &str = "app";
/// The longest test has five thousand shards, on a machine that does much else.
pub const DEADLINE: Duration = Duration::from_secs(150);

pub struct Lake {
    pub folder: tempfile::TempDir,
    pub source: DynamodbSource,
    pub planted: Planted,
    /// Asked instead of the catalog itself.
    pub catalog_between: Option<Arc<dyn Catalog>>,
}

pub struct Running {
    pub stop: CancellationToken,
    pub task: JoinHandle<Result<(), Problem>>,
}

struct Quiet;

impl CopyObserver for Quiet {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: &str, _: u64, _: u64) {}
    fn done(&self, _: &str) {}
}

/// One row of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    pub operation: String,
    pub position: i64,
    pub ordinal: i32,
    pub lane: String,
    pub offset: String,
    pub actor: Option<String>,
    /// The first column of the key, as text.
    pub key: String,
}

impl Lake {
    /// A lake for these tables, whose pipeline asks often.
    pub fn new(service: &DynamoDb, tables: &[&str]) -> Self {
        Self::at(&service.endpoint(), tables)
    }

    /// The same at any server.
    pub fn at(endpoint: &str, tables: &[&str]) -> Self {
        let keys = Credentials::new("test", "test", None, None, "test");
        let source = DynamodbSource {
            pipeline: PIPELINE.to_owned(),
            namespace: PIPELINE.to_owned(),
            aws: AwsConfig {
                region: Some(REGION.to_owned()),
                endpoint: Some(endpoint.to_owned()),
                credentials: Some(SharedCredentialsProvider::new(keys)),
                ..AwsConfig::default()
            },
            tables: tables.iter().map(|&table| table.to_owned()).collect(),
            options: BTreeMap::new(),
            history: true,
            copy_workers: 2,
            memory: 64 << 20,
            pace: Pace {
                first_idle: Duration::from_millis(2),
                longest_idle: Duration::from_millis(20),
                listing: Duration::from_millis(50),
                eager_listing: Duration::from_millis(10),
                describing: Duration::ZERO,
                listing_lag: Duration::from_secs(5),
                linger: Duration::from_millis(10),
                copy_chunk: Duration::from_secs(300),
            },
            settings: Settings::default(),
        };
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            source,
            planted: Planted::none(),
            catalog_between: None,
        }
    }

    pub fn options(&mut self, table: &str) -> &mut TableOptions {
        self.source.options.entry(table.to_owned()).or_default()
    }

    /// The catalog's file.
    pub fn database(&self) -> PathBuf {
        self.folder.path().join("catalog.db")
    }

    pub fn catalog(&self) -> SqliteCatalog {
        let path = |name: &str| self.folder.path().join(name);
        SqliteCatalog::open(&path("catalog.db"), &path("warehouse"), Storage::local()).expect("catalog")
    }

    pub fn environment(&self) -> Environment {
        Environment {
            catalog: self.catalog_between.clone().unwrap_or_else(|| Arc::new(self.catalog())),
            storage: Storage::local(),
            local_state: self.folder.path().join("state"),
            sync_local_state: false,
            tables_at_once: 2,
            owner_interval: OWNER_INTERVAL,
            rollback_tags: ROLLBACK_TAGS,
            give_way: GiveWay::default(),
            planted: self.planted,
        }
    }

    /// A worker: one incarnation after the other, as the service does.
    pub fn start(&self) -> Running {
        self.start_in("state", true)
    }

    /// A worker with local state of its own, as on another machine.
    pub fn start_beside(&self, state: &str) -> Running {
        self.start_in(state, true)
    }

    /// The same, of one incarnation.
    pub fn start_once(&self, state: &str) -> Running {
        self.start_in(state, false)
    }

    fn start_in(&self, state: &str, resumes: bool) -> Running {
        let stop = CancellationToken::new();
        let (source, stopped) = (self.source.clone(), stop.clone());
        let environment = Environment { local_state: self.folder.path().join(state), ..self.environment() };
        let limits = Limits {
            interval: Duration::from_millis(40),
            bytes: 16 << 20,
            idle_interval: Duration::from_millis(100),
            planted: self.planted,
        };
        let task = tokio::spawn(async move {
            loop {
                let replicated =
                    cdc_dynamodb::replicate(&source, environment.clone(), limits, Arc::new(Quiet), stopped.clone());
                let ended = replicated.await;
                // What was killed within this process lets go of its files a moment later.
                let again = |problem: &Problem| match problem.reaction {
                    Reaction::Retry => resumes,
                    Reaction::Halt | Reaction::HaltTable => problem.code == "LOCAL_STATE_IN_USE",
                };
                match &ended {
                    Err(problem) if again(problem) => tokio::time::sleep(Duration::from_millis(10)).await,
                    _ => return ended,
                }
            }
        });
        Running { stop, task }
    }

    pub async fn cut(&self) -> Option<Cut> {
        let state = ControlState::read(&self.catalog(), PIPELINE).await.expect("a readable control table");
        let (state, table) = state?;
        // Short lanes stand in a property as they are.
        let lanes = table.property("cdc.lanes").and_then(|text| serde_json::from_str(text).ok());
        state.cut.map(|cut| Cut { lanes: lanes.unwrap_or_default(), ..cut })
    }

    /// Polls until `standing` says yes; the text says how it stands.
    pub async fn until(&self, what: &str, running: &mut Running, mut standing: impl AsyncFnMut() -> (bool, String)) {
        let begun = Instant::now();
        loop {
            let (done, text) = standing().await;
            if done {
                return;
            }
            if running.task.is_finished() {
                let ended = (&mut running.task).await.expect("no panic");
                panic!("the pipeline has ended before {what}: {ended:?}");
            }
            if begun.elapsed() > DEADLINE {
                panic!("not within {DEADLINE:?}: {what}; {text}; {:?}", self.cut().await);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The batches of a table's head; none where there is no such table.
    pub async fn batches(&self, table: &str) -> Vec<RecordBatch> {
        let name = TableName::new(PIPELINE, table);
        let Some(loaded) = self.catalog().load(&name, None).await.expect("a readable table") else { return Vec::new() };
        let reader = TableReader::at(&Storage::local(), &loaded, loaded.snapshot_id()).await.expect("a readable head");
        let columns = Projection::all(&reader.schema).expect("columns");
        let files: Vec<String> = reader.files().into_iter().map(str::to_owned).collect();
        let rows = files.iter().map(|file| reader.read(file, &columns).expect("a readable file"));
        rows.flatten().map(|batch| batch.expect("readable rows")).collect()
    }

    pub async fn history(&self, table: &str, key: &str) -> Vec<Recorded> {
        let mut all = Vec::new();
        for batch in self.batches(&format!("{table}_history")).await {
            let column = |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("no {name}")).clone();
            let text = |name: &str, row: usize| {
                let column = column(name);
                let column = column.as_string::<i32>();
                arrow_array::Array::is_valid(column, row).then(|| column.value(row).to_owned())
            };
            for row in 0..batch.num_rows() {
                all.push(Recorded {
                    operation: text("_cdc_operation", row).expect("an operation"),
                    position: column("_cdc_position").as_primitive::<Int64Type>().value(row),
                    ordinal: column("_cdc_ordinal").as_primitive::<Int32Type>().value(row),
                    lane: text("_cdc_lane", row).expect("a lane"),
                    offset: text("_cdc_offset", row).expect("an offset"),
                    actor: text("_cdc_actor", row),
                    key: text(key, row).expect("a key"),
                });
            }
        }
        all.sort_by_key(|change| (change.position, change.ordinal));
        all
    }
}

impl Running {
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("no panic").unwrap_or_else(|problem| panic!("{}: {problem}", problem.code));
    }

    /// As a crash of the process: nothing more is done.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// The table as `id`, `n` and `_rest`.
pub fn wanted(service: &DynamoDb, table: &str) -> BTreeMap<String, (i64, String)> {
    let row = |item: Value| {
        let n = item["n"]["N"].as_str().expect("a number").parse().expect("a number");
        (item["id"]["S"].as_str().expect("a key").to_owned(), (n, r#"{"v":"x"}"#.to_owned()))
    };
    service.items(table).into_iter().map(|item| row(serde_json::to_value(item).expect("JSON"))).collect()
}

/// Polls until the mirror holds what the source holds when this is called.
pub async fn until_equal(lake: &Lake, service: &DynamoDb, running: &mut Running, table: &str) {
    let wanted = wanted(service, table);
    let standing = async || {
        let mirror = mirror(lake, table).await;
        (mirror == wanted, format!("{} rows in the mirror, {} items", mirror.len(), wanted.len()))
    };
    lake.until("the mirror is the table", running, standing).await;
}

/// The mirror, likewise; panics where a key stands twice.
pub async fn mirror(lake: &Lake, table: &str) -> BTreeMap<String, (i64, String)> {
    let mut rows = BTreeMap::new();
    for batch in lake.batches(table).await {
        let column = |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("no {name}")).clone();
        let (ids, n, rest) = (column("id"), column("n"), column("_rest"));
        for row in 0..batch.num_rows() {
            let rest = rest.as_string::<i32>();
            let value = (n.as_primitive::<Int64Type>().value(row), rest.value(row).to_owned());
            let before = rows.insert(ids.as_string::<i32>().value(row).to_owned(), value);
            assert!(before.is_none() && rest.is_valid(row), "a key stands twice in the mirror");
        }
    }
    rows
}
