//! Spark with Iceberg's own runtime deletes rows, compacts and expires snapshots of mirrors while a worker commits to them
//! (long tier). What Spark deletes stays deleted, and nothing else is lost: `verify` names exactly those rows.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::live::{DEADLINE, PIPELINE, Site, stop};
use fastrand::Rng;
use serde_json::{Value, json};
use testkit::emulators::{RestCatalog, Warehouse};
use testkit::lakehouse::Process;
use testkit::postgres::{Cluster, Options};
use testkit::readers::{Engine, Judge, program};
use tokio::task::JoinHandle;

/// Mirrors, half of which Spark deletes from by delete files, half by rewriting data files.
const TABLES: usize = 4;
/// Rows of a table that the workload touches; those behind them are left to Spark.
const BUSY: u64 = 200;
const ROWS: u64 = 300;
/// Commits of the worker to the mirrors, at least.
const COMMITS: usize = 500;
/// Rows that Spark deletes from each table: `verify` names as many.
const DELETED: [&[u64]; 3] = [&[201, 202, 203, 250, 300], &[204, 251, 299], &[205, 206, 252, 253, 254, 298]];
/// A statement that meets a commit of the worker is run again, in the end while the worker sleeps.
const ATTEMPTS: usize = 8;
const BESIDE: usize = 3;
/// Between two looks for the worker's commits.
const LOOK: Duration = Duration::from_millis(250);

struct Scene {
    cluster: Cluster,
    site: Site,
    worker: Process,
    spark: Judge,
    /// As Spark is told where the catalog is.
    catalog: Value,
    /// Snapshots of the worker that were seen on the mirrors.
    commits: HashSet<String>,
    statements: u64,
    refused: u64,
    _rest: Option<RestCatalog>,
}

impl Scene {
    async fn on_sqlite(spark: Judge) -> Self {
        let cluster = filled().await;
        let site = Site::new(&cluster, "history = false");
        let catalog = json!({"database": site.database()});
        Self::start(cluster, site, spark, catalog, None).await
    }

    async fn on_rest(spark: Judge, rest: RestCatalog) -> Self {
        let cluster = filled().await;
        let section = format!("kind = \"rest\"\nuri = \"{}\"", rest.uri());
        let mut site = Site::on(&cluster, &section, &[(PIPELINE, "postgres", "history = false")]);
        // Its tables lie in files; nobody is asked for objects.
        site.lakehouse.set_environment("AWS_REGION", "us-east-1");
        let catalog = json!({"uri": rest.uri()});
        Self::start(cluster, site, spark, catalog, Some(rest)).await
    }

    async fn start(cluster: Cluster, site: Site, spark: Judge, catalog: Value, rest: Option<RestCatalog>) -> Self {
        let worker = site.start();
        site.caught_up().await;
        Self { cluster, site, worker, spark, catalog, commits: HashSet::new(), statements: 0, refused: 0, _rest: rest }
    }

    async fn query(&mut self, sql: &str) -> Vec<Vec<String>> {
        let question = json!({"do": "run", "catalog": self.catalog, "sql": sql});
        let rows = self.spark.ask(question).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        rows.iter().map(|row| serde_json::from_str(row).expect("a row")).collect()
    }

    /// Runs a statement of Spark that commits: beside a worker at work, and if that fails again and again, while it sleeps.
    async fn commit(&mut self, sql: &str) {
        self.statements += 1;
        let mut last = String::new();
        for attempt in 0..ATTEMPTS {
            let question = json!({"do": "run", "catalog": self.catalog, "sql": sql});
            if attempt >= BESIDE {
                self.worker.freeze();
            }
            let answer = self.spark.ask(question).await;
            self.worker.thaw();
            match answer {
                Ok(_) => return,
                Err(refused) => last = refused,
            }
            self.refused += 1;
            // It may have slept with the catalog locked.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("{sql} failed {ATTEMPTS} times: {last}");
    }

    /// Returns when the worker has committed to a mirror since this was asked last.
    async fn another_commit(&mut self, table: usize) {
        let sql = format!(
            "SELECT snapshot_id FROM lakehouse.{PIPELINE}.t{table}.snapshots WHERE summary['cdc.kind'] = 'change'"
        );
        let (known, deadline) = (self.commits.len(), Instant::now() + DEADLINE);
        while self.commits.len() == known {
            // Spark takes as much of the machine as the worker.
            tokio::time::sleep(LOOK).await;
            assert!(Instant::now() < deadline, "no commit to t{table}: {}", self.worker.stderr());
            let found = self.query(&sql).await;
            self.commits.extend(found.into_iter().flatten());
        }
    }
}

/// A server with the tables that the worker copies.
async fn filled() -> Cluster {
    let cluster = Cluster::start(Options::default()).await;
    for table in 0..TABLES {
        let sql = format!(
            "CREATE TABLE t{table} (id int8 PRIMARY KEY, v text NOT NULL, n int8 NOT NULL);
             INSERT INTO t{table} SELECT n, 'copied', n FROM generate_series(1, {ROWS}) n"
        );
        cluster.sql("postgres", &sql).await;
    }
    cluster
}

/// Small transactions on the first rows of every table, until it is told to stop.
async fn busy(cluster: &Cluster, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    let client = cluster.connect("postgres").await;
    let mut rng = Rng::with_seed(7);
    tokio::spawn(async move {
        while !stop.load(Ordering::Relaxed) {
            for table in 0..TABLES {
                let id = rng.u64(1..=BUSY);
                let statement = match rng.u8(0..10) {
                    0 => format!("DELETE FROM t{table} WHERE id = {id}"),
                    1..=3 => format!(
                        "INSERT INTO t{table} VALUES ({id}, 'new', 0) ON CONFLICT (id) DO UPDATE SET v = 'again'"
                    ),
                    _ => format!(
                        "UPDATE t{table} SET v = 'busy', n = n + 1 WHERE id BETWEEN {id} AND {id} + 3 AND id <= {BUSY}"
                    ),
                };
                client.batch_execute(&statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
}

async fn spark(test: &str) -> Option<Judge> {
    if Engine::Spark.is_at_hand() {
        return Some(Judge::start(Engine::Spark).await);
    }
    println!("SKIP {test}: needs Spark");
    None
}

/// Spark at work on every mirror until the worker has committed often enough; then the books.
async fn race(mut scene: Scene) {
    let done = Arc::new(AtomicBool::new(false));
    let workload = busy(&scene.cluster, Arc::clone(&done)).await;
    for table in TABLES / 2..TABLES {
        let name = format!("lakehouse.{PIPELINE}.t{table}");
        scene.commit(&format!("ALTER TABLE {name} SET TBLPROPERTIES ('write.delete.mode' = 'merge-on-read')")).await;
    }
    for step in 0.. {
        let (table, round) = (step % TABLES, step / TABLES);
        if round >= DELETED.len() && scene.commits.len() >= COMMITS {
            break;
        }
        let name = format!("{PIPELINE}.t{table}");
        scene.another_commit(table).await;
        if let Some(ids) = DELETED.get(round) {
            let ids = ids.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
            scene.commit(&format!("DELETE FROM lakehouse.{name} WHERE id IN ({ids})")).await;
        }
        scene.another_commit(table).await;
        let options = "map('rewrite-all', 'true', 'remove-dangling-deletes', 'true')";
        let compact = format!("CALL lakehouse.system.rewrite_data_files(table => '{name}', options => {options})");
        scene.commit(&compact).await;
        // What is seen is counted before it expires.
        scene.another_commit(table).await;
        let expire = format!(
            "CALL lakehouse.system.expire_snapshots(table => '{name}', \
             older_than => TIMESTAMP '2100-01-01 00:00:00', retain_last => 20)"
        );
        scene.commit(&expire).await;
        if table == 0 {
            eprintln!("round {round}: {} commits of the worker, {} refusals", scene.commits.len(), scene.refused);
        }
    }
    done.store(true, Ordering::Relaxed);
    workload.await.expect("the workload");
    scene.site.caught_up().await;
    assert!(scene.worker.is_running(), "{}", scene.worker.stderr());
    check(&mut scene).await;
    let Scene { commits, statements, refused, worker, .. } = scene;
    eprintln!("{} commits of the worker, {statements} statements of Spark, refused {refused} times", commits.len());
    stop(worker).await;
}

/// Each mirror has the source's rows but for those that Spark deleted, and `verify` says so, row by row.
async fn check(scene: &mut Scene) {
    let deleted: Vec<u64> = DELETED.concat();
    let (code, verified) = scene.site.lakehouse.json(&["verify", "--show-keys"]).await;
    assert_eq!((code, &verified["verdict"]), (Some(5), &json!("different")), "{verified}");
    let mut names: Vec<String> = deleted.iter().map(u64::to_string).collect();
    names.sort();
    for table in verified["tables"].as_array().expect("tables") {
        assert_eq!(scene.site.table_status(&source_of(table)).await, ("streaming".to_owned(), None));
        assert_eq!(table["only_in_source"], deleted.len(), "{table}");
        assert_eq!((&table["only_in_mirror"], &table["differing"]), (&json!(0), &json!(0)), "{table}");
        let sample =
            |sample: &Value| sample["key"].to_string().chars().filter(char::is_ascii_digit).collect::<String>();
        let mut named: Vec<String> = table["samples"].as_array().expect("samples").iter().map(sample).collect();
        named.sort();
        assert_eq!(named, names, "{table}");
    }
    for table in 0..TABLES {
        let mut mirror = scene.query(&format!("SELECT id, v, n FROM lakehouse.{PIPELINE}.t{table}")).await;
        let mut source: Vec<Vec<String>> = scene
            .cluster
            .sql("postgres", &format!("SELECT id, v, n FROM t{table}"))
            .await
            .into_iter()
            .map(|row| row.into_iter().flatten().collect())
            .filter(|row: &Vec<String>| !names.contains(&row[0]))
            .collect();
        mirror.sort();
        source.sort();
        assert_eq!(mirror, source, "t{table}");
    }
    let (code, checked) = scene.site.lakehouse.json(&["fsck"]).await;
    assert_eq!((code, &checked["verdict"]), (Some(0), &json!("sound")), "{checked}");
}

/// The source table of a mirror that `verify` names.
fn source_of(table: &Value) -> String {
    let name = table["table"].as_str().expect("a name");
    format!("public.{}", name.rsplit('.').next().expect("a name"))
}

#[tokio::test(flavor = "multi_thread")]
async fn spark_deletes_compacts_and_expires_on_the_shared_sqlite_file_and_nothing_else_is_lost() {
    let test = "spark_deletes_compacts_and_expires_on_the_shared_sqlite_file_and_nothing_else_is_lost";
    let Some(spark) = spark(test).await else { return };
    race(Scene::on_sqlite(spark).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spark_deletes_compacts_and_expires_on_a_rest_catalog_and_nothing_else_is_lost() {
    let test = "spark_deletes_compacts_and_expires_on_a_rest_catalog_and_nothing_else_is_lost";
    let Some(spark) = spark(test).await else { return };
    let Some(rest) = RestCatalog::start_or_skip(test, &Warehouse::Files).await else { return };
    race(Scene::on_rest(spark, rest).await).await;
}

/// The owner of a duty: what maintenance plans for Spark is run by it, and what comes of it is recognised and recorded.
#[tokio::test(flavor = "multi_thread")]
async fn spark_has_the_duty_of_compacting_and_what_it_did_is_recognised() {
    let test = "spark_has_the_duty_of_compacting_and_what_it_did_is_recognised";
    let Some(spark) = spark(test).await else { return };
    let mut scene = Scene::on_sqlite(spark).await;
    for round in 1..=6 {
        for table in 0..TABLES {
            let sql = format!("UPDATE t{table} SET n = n + {round} WHERE id % 6 = {round} % 6");
            scene.cluster.sql("postgres", &sql).await;
        }
        scene.site.caught_up().await;
    }
    let [python, file] = program(Engine::Spark, "spark_file.py");
    let database = scene.site.database();
    // What the kit knows of Spark is kept from the product, and so from what it starts.
    let home = format!("LAKEHOUSE_SPARK={}", std::env::var("LAKEHOUSE_SPARK").expect("Spark is at hand"));
    let command = json!(["env", home, python, "-B", file, "--database", database]);
    let command = format!("maintenance.spark.command={command}");
    let settings =
        ["--set", "maintenance.owner.compact=spark", "--set", "maintenance.small_files=2", "--set", &command];
    let tables = ["--table", "app.t0", "--table", "app.t1"];
    let told = scene.site.lakehouse.ask(&[&settings[..], &["maintain", "--dry-run"], &tables[..]].concat()).await;
    let ran = scene.site.lakehouse.ask(&[&settings[..], &["maintain", "--once"], &tables[..]].concat()).await;
    for (told, ran) in told["tables"].as_array().expect("tables").iter().zip(ran["tables"].as_array().expect("tables"))
    {
        assert_eq!((&told["spark"]["submitted"], &ran["spark"]["submitted"]), (&json!(false), &json!(true)), "{ran}");
        assert_eq!(told["spark"]["statements"], ran["spark"]["statements"]);
        assert!(ran["foreign"][0]["input_files"].as_u64().is_some_and(|files| files > 1), "{ran}");
    }
    // No table is old enough for the other duties: their statements, by hand.
    let snapshots = "SELECT snapshot_id FROM lakehouse.app.t2.snapshots ORDER BY committed_at";
    let before = scene.query(snapshots).await.concat();
    let named = format!("snapshot_ids => array({}L), older_than => TIMESTAMP '1970-01-01T00:00:00Z'", before[0]);
    scene.commit(&format!("CALL lakehouse.system.expire_snapshots(table => 'app.t2', {named})")).await;
    assert_eq!(scene.query(snapshots).await.concat(), before[1..], "what is named goes, and nothing else");
    let since = "older_than => TIMESTAMP '2023-11-07T22:13:20Z'";
    let removed = scene.query(&format!("CALL lakehouse.system.remove_orphan_files(table => 'app.t2', {since})")).await;
    assert!(removed.is_empty(), "{removed:?}");
    // The worker follows, and finds its rows where Spark has put them.
    for table in 0..TABLES {
        scene.cluster.sql("postgres", &format!("UPDATE t{table} SET v = 'later' WHERE id % 5 = 0")).await;
    }
    scene.site.caught_up().await;
    assert!(scene.worker.is_running(), "{}", scene.worker.stderr());
    scene.site.assert_equal().await;
    let owned = "owner = 'spark' AND trigger = 'found' AND result = 'landed'";
    let runs = scene.site.lakehouse.ask(&["rows", "lakehouse_control.maintenance_runs", "--where", owned]).await;
    assert!(runs["rows"].as_array().is_some_and(|rows| rows.len() >= 2), "{runs}");
    stop(scene.worker).await;
}
