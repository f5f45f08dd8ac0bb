//! A pipeline in this process: the simulator of the service, the embedded catalog in a temporary folder, and what stands
//! in the lake.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use cdc_dynamodb::config::{DynamodbSource, Pace, TableOptions};
use lakehouse_core::aws::AwsConfig;
use lakehouse_core::catalog::{Catalog, SqliteCatalog};
use lakehouse_core::commit::{ControlState, Cut};
use lakehouse_core::copy::CopyObserver;
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::lakehouse::{Environment, OWNER_INTERVAL};
use lakehouse_core::pipeline::Limits;
use lakehouse_core::planted::Planted;
use lakehouse_core::read::{Projection, TableReader};
use lakehouse_core::schema::TableName;
use lakehouse_core::storage::Storage;
use testkit::dynamodb::{DynamoDb, REGION};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const PIPELINE: &str = "app";
pub const DEADLINE: Duration = Duration::from_secs(60);

pub struct Lake {
    pub folder: tempfile::TempDir,
    pub source: DynamodbSource,
    pub planted: Planted,
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
        let keys = Credentials::new("test", "test", None, None, "test");
        let source = DynamodbSource {
            pipeline: PIPELINE.to_owned(),
            namespace: PIPELINE.to_owned(),
            aws: AwsConfig {
                region: Some(REGION.to_owned()),
                endpoint: Some(service.endpoint()),
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
            },
        };
        Self { folder: tempfile::tempdir().expect("a temporary folder"), source, planted: Planted::none() }
    }

    pub fn options(&mut self, table: &str) -> &mut TableOptions {
        self.source.options.entry(table.to_owned()).or_default()
    }

    pub fn catalog(&self) -> SqliteCatalog {
        let path = |name: &str| self.folder.path().join(name);
        SqliteCatalog::open(&path("catalog.db"), &path("warehouse"), Storage::local()).expect("catalog")
    }

    pub fn environment(&self) -> Environment {
        Environment {
            catalog: Arc::new(self.catalog()),
            storage: Storage::local(),
            local_state: self.folder.path().join("state"),
            sync_local_state: false,
            tables_at_once: 2,
            owner_interval: OWNER_INTERVAL,
            planted: self.planted,
        }
    }

    /// One incarnation.
    pub fn start(&self) -> Running {
        let stop = CancellationToken::new();
        let (source, environment, stopped) = (self.source.clone(), self.environment(), stop.clone());
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
                match replicated.await {
                    // What was killed within this process lets go of its files a moment later.
                    Err(problem) if problem.reaction == Reaction::Retry || problem.code == "LOCAL_STATE_IN_USE" => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    ended => return ended,
                }
            }
        });
        Running { stop, task }
    }

    pub async fn cut(&self) -> Option<Cut> {
        let state = ControlState::read(&self.catalog(), PIPELINE).await.expect("a readable control table");
        state.and_then(|(state, _)| state.cut)
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
