//! What a commit costs in requests, on S3 Tables (the simulator): small transactions one by one, by the real binary, to a
//! table of few data files and to one of many. Between it and the services stand proxies that count.
//!
//! A table commit is one to the mirror or one to the control table. Not here: bounds for every kind of commit, which
//! `lakehouse-core/tests/requests.rs` asserts.

use serde::Serialize;
use tempfile::TempDir;
use testkit::emulators::Ministack;
use testkit::fault_proxy::FaultProxy;
use testkit::lakehouse::Lakehouse;
use testkit::s3_tables::S3Tables;

use crate::Result;
use crate::server::Server;

/// Data files of the table, in turn.
pub(crate) const DATA_FILES: [u64; 2] = [10, 10_000];
/// Transactions that are counted: enough for manifests to be merged twice.
const TRANSACTIONS: u64 = 20;

/// A figure as scripts read it: these keys are fixed.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Requested {
    pub(crate) bench: &'static str,
    pub(crate) data_files: u64,
    pub(crate) table_commits: u64,
    pub(crate) object_requests_per_commit: f64,
    pub(crate) catalog_requests_per_commit: f64,
}

pub(crate) fn name(data_files: u64) -> String {
    format!("requests-{data_files}")
}

pub(crate) async fn measure(data_files: u64) -> Result<Requested> {
    let server = Server::start().await;
    // Each row is a partition, so each is in a file of its own.
    let rows = format!("INSERT INTO t SELECT n, 0 FROM generate_series(1, {data_files}) n");
    server.sql(&format!("CREATE TABLE t (id bigint PRIMARY KEY, v bigint); {rows}")).await?;
    let place = Place::start(&server).await?;
    eprintln!("bench: {}: copying", name(data_files));
    let worker = place.worker.spawn(&["replicate"]);
    place.caught_up().await;

    let before = place.counts();
    for transaction in 0..TRANSACTIONS {
        let id = transaction * data_files / TRANSACTIONS + 1;
        // What is not flushed yet is nothing to catch up with.
        server.sql(&format!("SET synchronous_commit = on; UPDATE t SET v = v + 1 WHERE id = {id}")).await?;
        place.caught_up().await;
    }
    let [commits, objects, catalog] = std::array::from_fn(|n| place.counts()[n] - before[n]);
    drop(worker);
    if commits < 2 * TRANSACTIONS {
        return Err(format!("{commits} commits for {TRANSACTIONS} transactions").into());
    }
    let per_commit = |requests: u64| (requests as f64 / commits as f64 * 100.0).round() / 100.0;
    Ok(Requested {
        bench: "requests",
        data_files,
        table_commits: commits,
        object_requests_per_commit: per_commit(objects),
        catalog_requests_per_commit: per_commit(catalog),
    })
}

/// A table bucket, and the product pointed at it twice: the worker by way of the proxies, whoever asks how far it is not.
struct Place {
    worker: Lakehouse,
    asker: Lakehouse,
    objects: FaultProxy,
    catalog: FaultProxy,
    _tables: S3Tables,
    _ministack: Ministack,
    _folders: [TempDir; 2],
}

impl Place {
    async fn start(server: &Server) -> Result<Self> {
        let ministack = Ministack::start().await;
        let tables = S3Tables::start(&ministack.objects());
        let bucket = tables.create_table_bucket("bench");
        let (objects, catalog) = (FaultProxy::start(&tables.s3_endpoint()), FaultProxy::start(&tables.endpoint()));
        let folders = [tempfile::tempdir()?, tempfile::tempdir()?];
        let lakehouse = |folder: &TempDir, endpoint: &str, s3_endpoint: &str| {
            let config = configuration(&bucket, endpoint, s3_endpoint, server.port());
            let mut lakehouse = Lakehouse::new(folder.path(), &config);
            let keys = tables.objects();
            lakehouse.set_environment("BENCH_PASSWORD", server.password());
            lakehouse.set_environment("AWS_ACCESS_KEY_ID", &keys.access_key);
            lakehouse.set_environment("AWS_SECRET_ACCESS_KEY", &keys.secret_key);
            lakehouse.set_environment("AWS_REGION", &keys.region);
            lakehouse
        };
        let worker = lakehouse(&folders[0], &catalog.uri(), &objects.uri());
        let asker = lakehouse(&folders[1], &tables.endpoint(), &tables.s3_endpoint());
        Ok(Self { worker, asker, objects, catalog, _tables: tables, _ministack: ministack, _folders: folders })
    }

    /// Returns when a cut holds all that was written.
    async fn caught_up(&self) {
        self.asker.ask(&["wait", "--caught-up", "--timeout", "300s"]).await;
    }

    /// Pointers moved, requests to the object store, requests to the catalog.
    fn counts(&self) -> [u64; 3] {
        let catalog = self.catalog.requests();
        [catalog.of("PUT", "metadata-location"), self.objects.requests().total(), catalog.total()]
    }
}

fn configuration(bucket: &str, endpoint: &str, s3_endpoint: &str, port: u16) -> String {
    format!(
        r#"[catalog]
kind = "s3-tables"
table_bucket = "{bucket}"
endpoint = "{endpoint}"
s3_endpoint = "{s3_endpoint}"

[pipelines.bench]
commit_interval_seconds = 1
history = false

[pipelines.bench.tables."public.t"]
partition = ["id"]

[pipelines.bench.postgres]
host = "127.0.0.1"
port = {port}
database = "postgres"
user = "postgres"
password = {{ env = "BENCH_PASSWORD" }}
tls = "disable"
"#
    )
}
