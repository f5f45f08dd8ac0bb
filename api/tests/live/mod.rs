//! One pipeline of the real binary on a private PostgreSQL, in a folder of its own.
//!
//! Not here: what a test does to it.

pub(crate) mod books;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use testkit::lakehouse::{Answer, Lakehouse, Process};
use testkit::postgres::{Cluster, Options};

/// How long a process may take to end by itself.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
/// The pipeline and its namespace.
pub(crate) const PIPELINE: &str = "app";

/// A cluster and an installation that follows its database `postgres`.
pub(crate) struct Live {
    pub(crate) cluster: Cluster,
    pub(crate) site: Site,
}

/// The installation alone.
pub(crate) struct Site {
    pub(crate) lakehouse: Lakehouse,
    folder: tempfile::TempDir,
}

impl Live {
    /// Nothing is started but the server.
    pub(crate) async fn new(options: Options) -> Self {
        let cluster = Cluster::start(options).await;
        let site = Site::new(&cluster, "");
        Self { cluster, site }
    }

    pub(crate) async fn sql(&self, text: &str) {
        self.cluster.sql("postgres", text).await;
    }

    /// A transaction at the source; its number there.
    pub(crate) async fn transaction(&self, sql: &str) -> String {
        let client = self.cluster.connect("postgres").await;
        client.batch_execute(&format!("BEGIN; {sql}")).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let row = client.query_one("SELECT pg_current_xact_id()::text", &[]).await.expect("a transaction");
        client.batch_execute("COMMIT").await.expect("it commits");
        row.get(0)
    }
}

impl Site {
    /// Follows the database `postgres` as superuser; `section` adds lines to the pipeline's section.
    pub(crate) fn new(cluster: &Cluster, section: &str) -> Self {
        let catalog = "path = \"lake/catalog.db\"\nwarehouse = \"lake/warehouse\"";
        Self::on(cluster, catalog, &[(PIPELINE, "postgres", section)])
    }

    /// Several pipelines (name, database, lines of its section) on the catalog that its section describes.
    pub(crate) fn on(cluster: &Cluster, catalog: &str, pipelines: &[(&str, &str, &str)]) -> Self {
        let pipeline = |(name, database, section): &(&str, &str, &str)| {
            format!(
                "[pipelines.{name}]\ncommit_interval_seconds = 1\n{section}\n\
                 [pipelines.{name}.postgres]\nhost = \"127.0.0.1\"\nport = {}\ndatabase = \"{database}\"\n\
                 user = \"postgres\"\npassword = {{ env = \"SOURCE_PASSWORD\" }}\ntls = \"disable\"\n",
                cluster.port()
            )
        };
        let config = format!("[catalog]\n{catalog}\n{}", pipelines.iter().map(pipeline).collect::<String>());
        let mut site = Self::with(&config);
        site.lakehouse.set_environment("SOURCE_PASSWORD", cluster.superuser_password());
        site
    }

    /// With this configuration file.
    pub(crate) fn with(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self { lakehouse: Lakehouse::new(folder.path(), config), folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path().join("lake/catalog.db")
    }

    /// The worker: one process that replicates.
    pub(crate) fn start(&self) -> Process {
        self.lakehouse.spawn(&["replicate"])
    }

    /// A worker that is expected to end by itself.
    pub(crate) async fn ended(&self, flags: &[&str]) -> Answer {
        let mut process = self.lakehouse.spawn(&[flags, &["replicate"]].concat());
        let status = process.wait(DEADLINE).await;
        Answer { code: status.code(), stdout: process.stdout(), stderr: process.stderr() }
    }

    /// Returns when a cut holds all that the source has committed before the call.
    pub(crate) async fn caught_up(&self) -> Value {
        self.lakehouse.ask(&["wait", "--caught-up", "--timeout", "300s"]).await
    }

    /// The source's rows and the lake's are equal, and all files are sound.
    pub(crate) async fn assert_equal(&self) {
        let verified = self.lakehouse.ask(&["verify"]).await;
        assert_eq!(verified["verdict"], "equal", "{verified}");
        let checked = self.lakehouse.ask(&["fsck"]).await;
        assert_eq!(checked["verdict"], "sound", "{checked}");
    }

    /// State and code of the pipeline.
    pub(crate) async fn status(&self) -> (String, Option<String>) {
        let answer = self.lakehouse.ask(&["status"]).await;
        state_and_code(&answer["pipelines"][0])
    }

    /// State and code of the table of this name at the source.
    pub(crate) async fn table_status(&self, source: &str) -> (String, Option<String>) {
        let answer = self.lakehouse.ask(&["status"]).await;
        let tables = answer["pipelines"][0]["tables"].as_array().cloned().unwrap_or_default();
        let table = tables.iter().find(|table| table["source"] == source);
        state_and_code(table.unwrap_or_else(|| panic!("no table {source}: {answer}")))
    }

    /// What the worker last said of itself: its phase and the code that goes with it.
    pub(crate) fn worker_state(&self) -> (String, Option<String>) {
        let file = self.path().join("state").join(PIPELINE).join("worker.json");
        let state: Value = fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        state_and_code(&state)
    }
}

fn state_and_code(object: &Value) -> (String, Option<String>) {
    (object["state"].as_str().unwrap_or_default().to_owned(), object["code"].as_str().map(str::to_owned))
}

/// Stops it politely and waits until it is gone.
pub(crate) async fn stop(mut worker: Process) {
    worker.terminate();
    assert_eq!(worker.wait(DEADLINE).await.code(), Some(0), "{}", worker.stderr());
}

/// Polls until `done`; for what another process does in its own time.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"));
}
