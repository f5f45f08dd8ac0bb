//! A pipeline in this process: a real cluster, the embedded catalog in a temporary folder, and a way to read back.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use cdc_postgres::CopyObserver;
use cdc_postgres::config::{PostgresSource, TableOptions};
use cdc_postgres::connection::{ConnectionSettings, Secret, Tls};
use lakehouse_core::catalog::{Catalog, LoadedTable, SqliteCatalog};
use lakehouse_core::commit::{ControlState, Cut};
use lakehouse_core::error::Problem;
use lakehouse_core::lakehouse::{Environment, TABLES_AT_ONCE};
use lakehouse_core::pipeline::Limits;
use lakehouse_core::planted::Planted;
use lakehouse_core::position::Position;
use lakehouse_core::read::{Projection, TableReader};
use lakehouse_core::schema::TableName;
use lakehouse_core::storage::Storage;
use testkit::postgres::Cluster;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const PIPELINE: &str = "shop";
const DEADLINE: Duration = Duration::from_secs(120);

pub struct Lake {
    pub folder: tempfile::TempDir,
    pub source: PostgresSource,
    pub memory: usize,
    pub planted: Planted,
}

pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), Problem>>,
}

struct Quiet;

impl CopyObserver for Quiet {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: &str, _: u64, _: u64) {}
    fn done(&self, _: &str) {}
}

impl Lake {
    /// A lake for the tables of schema `public` in database `postgres`.
    pub fn new(cluster: &Cluster) -> Self {
        let password = Secret::from(cluster.superuser_password().to_owned());
        let mut connection = ConnectionSettings::new("127.0.0.1", "postgres", "postgres", password);
        connection.port = cluster.port();
        connection.tls = Tls::Disable;
        let source = PostgresSource {
            pipeline: PIPELINE.to_owned(),
            namespace: PIPELINE.to_owned(),
            connection,
            slot: "lakehouse_shop".to_owned(),
            publication: "lakehouse_shop".to_owned(),
            tables: vec!["public.*".to_owned()],
            exclude: vec![],
            options: BTreeMap::new(),
            history: true,
            copy_workers: 2,
            memory: 256 << 20,
        };
        let folder = tempfile::tempdir().expect("temporary folder");
        Self { folder, source, memory: 16 << 20, planted: Planted::none() }
    }

    pub fn options(&mut self, table: &str) -> &mut TableOptions {
        self.source.options.entry(table.to_owned()).or_default()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn database(&self) -> PathBuf {
        self.path("catalog.db")
    }

    pub fn catalog(&self) -> SqliteCatalog {
        let (database, warehouse) = (self.database(), self.path("warehouse"));
        SqliteCatalog::open(&database, &warehouse, Storage::local()).expect("catalog")
    }

    pub fn environment(&self) -> Environment {
        Environment {
            catalog: Arc::new(self.catalog()),
            storage: Storage::local(),
            local_state: self.path("state"),
            sync_local_state: true,
            tables_at_once: TABLES_AT_ONCE,
            planted: self.planted,
        }
    }

    pub fn start(&self) -> Running {
        let stop = CancellationToken::new();
        let limits = Limits {
            interval: Duration::from_millis(200),
            bytes: self.memory,
            idle_interval: Duration::from_secs(1),
            planted: self.planted,
        };
        let (source, environment, token) = (self.source.clone(), self.environment(), stop.clone());
        let task =
            tokio::spawn(
                async move { cdc_postgres::replicate(&source, environment, limits, Arc::new(Quiet), token).await },
            );
        Running { stop, task }
    }

    /// Runs one incarnation that is expected to end by itself, and says with what code.
    pub async fn code(&self) -> &'static str {
        let running = self.start();
        let ended = tokio::time::timeout(DEADLINE, running.task).await.expect("ends within the deadline");
        ended.expect("no panic").expect_err("ends with a problem").code
    }

    pub async fn cut(&self) -> Option<Cut> {
        let state = ControlState::read(&self.catalog(), PIPELINE).await.expect("control table");
        state.and_then(|(state, _)| state.cut)
    }

    /// Waits until a cut holds everything that the source has committed so far.
    pub async fn caught_up(&self, cluster: &Cluster, running: &mut Running) -> Cut {
        let end: Position = cluster.value("postgres", "SELECT pg_current_wal_flush_lsn()").await.parse().expect("LSN");
        let reached = async {
            loop {
                if let Some(cut) = self.cut().await
                    && cut.position >= end
                    && !cut.tables.is_empty()
                {
                    return cut;
                }
                if running.task.is_finished() {
                    panic!("the pipeline has ended: {:?}", (&mut running.task).await);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(DEADLINE, reached).await.expect("caught up within the deadline")
    }

    pub async fn table(&self, name: &str) -> LoadedTable {
        let name = TableName::new(PIPELINE, name);
        self.catalog().load(&name, None).await.expect("catalog").unwrap_or_else(|| panic!("table {name} exists"))
    }

    /// Rows of a table, as text, sorted: columns joined by `|`.
    pub async fn rows(&self, name: &str) -> Vec<String> {
        let table = self.table(name).await;
        let snapshot = table.snapshot_id();
        rows_at(&table, snapshot).await
    }
}

pub async fn rows_at(table: &LoadedTable, snapshot: Option<i64>) -> Vec<String> {
    let reader = TableReader::at(&Storage::local(), table, snapshot).await.expect("snapshot");
    let projection = Projection::all(&reader.schema).expect("schema");
    let mut rows = Vec::new();
    for path in reader.files() {
        for batch in reader.read(path, &projection).expect("file") {
            rows.extend(texts(&batch.expect("batch")));
        }
    }
    rows.sort();
    rows
}

fn texts(batch: &RecordBatch) -> Vec<String> {
    let options = arrow_cast::display::FormatOptions::default().with_null("NULL");
    let columns: Vec<_> = batch
        .columns()
        .iter()
        .map(|column| arrow_cast::display::ArrayFormatter::try_new(column, &options).expect("formatter"))
        .collect();
    let row = |row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join("|");
    (0..batch.num_rows()).map(row).collect()
}

impl Running {
    /// Stops in good order.
    pub async fn stop(self) {
        self.stop.cancel();
        let ended = tokio::time::timeout(DEADLINE, self.task).await.expect("stops within the deadline");
        ended.expect("no panic").expect("stops without a problem");
    }

    /// Ends at once, wherever it is.
    pub async fn abort(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

pub fn exists(path: &Path) -> bool {
    path.exists()
}
