//! A pipeline in this process: a real cluster, the embedded catalog in a temporary folder, and a way to read back.

#![allow(unreachable_pub, reason = "shared by the tests beside it, and by nothing else")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use cdc_postgres::config::{PostgresSource, TableOptions};
use cdc_postgres::connection::{ConnectionSettings, Secret, Tls};
use lakehouse_core::catalog::{Catalog, LoadedTable, SqliteCatalog};
use lakehouse_core::commit::{ControlState, Cut, GiveWay};
use lakehouse_core::copy::CopyObserver;
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::lakehouse::{Environment, TABLES_AT_ONCE};
use lakehouse_core::pipeline::Limits;
use lakehouse_core::planted::Planted;
use lakehouse_core::position::Position;
use lakehouse_core::read::{Projection, TableReader};
use lakehouse_core::schema::TableName;
use lakehouse_core::storage::Storage;
use testkit::oracle;
use testkit::postgres::{Cluster, Options};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const PIPELINE: &str = "shop";
const DEADLINE: Duration = Duration::from_secs(120);

pub struct Lake {
    pub folder: tempfile::TempDir,
    pub source: PostgresSource,
    pub memory: usize,
    pub planted: Planted,
    /// Folder of the key indexes: workers on different machines have different ones.
    pub local_state: String,
    pub observer: Arc<dyn CopyObserver>,
}

/// A database of its own on the test binary's one server, and its lake.
pub struct Shop {
    pub cluster: &'static Cluster,
    pub database: String,
    pub lake: Lake,
}

/// All that is in a lake, to see whether anything was written.
#[derive(Debug, PartialEq, Eq)]
pub struct Contents {
    /// The metadata file of each table.
    pub pointers: BTreeMap<String, String>,
    pub files: BTreeSet<PathBuf>,
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
        let (planted, local_state, observer) = (Planted::none(), "state".to_owned(), Arc::new(Quiet));
        Self { folder, source, memory: 16 << 20, planted, local_state, observer }
    }

    /// The same for another database.
    pub fn of_database(cluster: &Cluster, database: &str) -> Self {
        let mut lake = Self::new(cluster);
        lake.source.connection.database = database.to_owned();
        lake.source.slot = format!("lakehouse_{database}");
        lake
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
            local_state: self.path(&self.local_state),
            sync_local_state: true,
            tables_at_once: TABLES_AT_ONCE,
            owner_interval: lakehouse_core::lakehouse::OWNER_INTERVAL,
            rollback_tags: lakehouse_core::lakehouse::ROLLBACK_TAGS,
            give_way: GiveWay::default(),
            planted: self.planted,
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            interval: Duration::from_millis(200),
            bytes: self.memory,
            idle_interval: Duration::from_secs(1),
            planted: self.planted,
        }
    }

    /// Runs one incarnation: it ends with the first problem.
    pub fn start(&self) -> Running {
        self.start_elsewhere(&self.local_state)
    }

    /// The same on another machine, as it were: with key indexes of its own.
    pub fn start_elsewhere(&self, local_state: &str) -> Running {
        let stop = CancellationToken::new();
        let (source, limits, token) = (self.source.clone(), self.limits(), stop.clone());
        let environment = Environment { local_state: self.path(local_state), ..self.environment() };
        let observer = Arc::clone(&self.observer);
        let task =
            tokio::spawn(async move { cdc_postgres::replicate(&source, environment, limits, observer, token).await });
        Running { stop, task }
    }

    /// Runs one incarnation after the other, as the service does: only a halt or `stop` ends it.
    pub fn start_resuming(&self, local_state: &str) -> Running {
        const PAUSE: Duration = Duration::from_millis(100);
        let stop = CancellationToken::new();
        let (source, limits, token) = (self.source.clone(), self.limits(), stop.clone());
        let environment = Environment { local_state: self.path(local_state), ..self.environment() };
        let observer = Arc::clone(&self.observer);
        let task = tokio::spawn(async move {
            loop {
                let (environment, observer) = (environment.clone(), Arc::clone(&observer));
                let ended = cdc_postgres::replicate(&source, environment, limits, observer, token.clone()).await;
                match ended {
                    Err(problem) if problem.reaction == Reaction::Retry => {
                        eprintln!("worker comes back: {} {problem}", problem.code);
                        if token.is_cancelled() {
                            return Ok(());
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                    other => return other,
                }
            }
        });
        Running { stop, task }
    }

    /// Runs one incarnation that is expected to end by itself, and says with what code.
    pub async fn code(&self) -> &'static str {
        self.start().problem().await.code
    }

    /// As [`Lake::code`], for an incarnation that must leave the lake as it finds it.
    pub async fn halts_without_writing(&self) -> &'static str {
        let before = self.contents().await;
        let problem = self.start().problem().await;
        assert_eq!(problem.reaction, Reaction::Halt, "{problem:?}");
        assert!(!problem.remedy.is_empty(), "{problem:?}");
        assert_eq!(self.contents().await, before, "{} was to write nothing", problem.code);
        problem.code
    }

    pub async fn contents(&self) -> Contents {
        let catalog = self.catalog();
        let mut pointers = BTreeMap::new();
        for name in catalog.list(None).await.expect("catalog") {
            let table = catalog.load(&name, None).await.expect("catalog").expect("listed");
            pointers.insert(name.to_string(), table.metadata_location);
        }
        let mut files = BTreeSet::new();
        let mut folders = vec![self.path("warehouse")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).expect("folder") {
                let path = entry.expect("entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.insert(path);
                }
            }
        }
        Contents { pointers, files }
    }

    /// Why a source table has left the cut.
    pub async fn left(&self, table: &str) -> Option<String> {
        let cut = self.cut().await?;
        cut.left.get(table).map(|left| left.code.clone())
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

    /// All snapshots of a table, oldest first.
    pub async fn snapshots(&self, name: &str) -> (LoadedTable, Vec<i64>) {
        let table = self.table(name).await;
        let mut snapshots: Vec<_> = table.metadata.snapshots().cloned().collect();
        snapshots.sort_by_key(|snapshot| snapshot.sequence_number());
        let ids = snapshots.iter().map(|snapshot| snapshot.snapshot_id()).collect();
        (table, ids)
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

impl Shop {
    /// Makes the database and a lake for its schema `public`.
    pub async fn open(database: &str) -> Self {
        static SERVER: OnceCell<Cluster> = OnceCell::const_new();
        let config = ["max_replication_slots = 100", "max_wal_senders = 50", "max_prepared_transactions = 5"];
        let config = config.map(str::to_owned).to_vec();
        let options = Options { config, ..Options::default() };
        let cluster = SERVER.get_or_init(|| Cluster::start(options)).await;
        cluster.sql("postgres", &format!("CREATE DATABASE {database}")).await;
        let lake = Lake::of_database(cluster, database);
        Self { cluster, database: database.to_owned(), lake }
    }

    pub async fn sql(&self, text: &str) -> Vec<Vec<Option<String>>> {
        self.cluster.sql(&self.database, text).await
    }

    pub async fn caught_up(&self, running: &mut Running) -> Cut {
        self.lake.caught_up(self.cluster, running).await
    }

    /// Waits for everything committed so far and compares each table (name in SQL, name in the lake) with the source.
    pub async fn follows(&self, running: &mut Running, tables: &[(&str, &str)]) {
        self.caught_up(running).await;
        for (source, mirror) in tables {
            self.assert_equal(source, mirror).await;
        }
    }

    /// The mirror has the rows that a SELECT shows. For types whose text is the same on both sides: numbers and text.
    pub async fn assert_equal(&self, source: &str, mirror: &str) {
        let expected = self.selected(&format!("SELECT * FROM {source}")).await;
        if let Some(difference) = oracle::difference(&expected, &self.lake.rows(mirror).await) {
            let left = self.lake.cut().await.map(|cut| cut.left);
            panic!("{source} and {mirror} differ: {difference}left the cut: {left:?}");
        }
    }

    /// A query's rows in the form of [`Lake::rows`].
    pub async fn selected(&self, query: &str) -> Vec<String> {
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "NULL".to_owned());
        let row = |row: &Vec<Option<String>>| row.iter().map(value).collect::<Vec<_>>().join("|");
        let mut rows: Vec<String> = self.sql(query).await.iter().map(row).collect();
        rows.sort();
        rows
    }
}

impl Running {
    /// Stops in good order.
    pub async fn stop(self) {
        self.stop.cancel();
        let ended = tokio::time::timeout(DEADLINE, self.task).await.expect("stops within the deadline");
        ended.expect("no panic").expect("stops without a problem");
    }

    /// Waits for its end, which must be a problem.
    pub async fn problem(self) -> Problem {
        let ended = tokio::time::timeout(DEADLINE, self.task).await.expect("ends within the deadline");
        ended.expect("no panic").expect_err("ends with a problem")
    }

    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Ends at once, wherever it is; a commit that it has begun goes on, as that of a worker cut off would.
    pub async fn abort(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
