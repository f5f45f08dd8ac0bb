//! Somebody else's engine commits to a mirror while the worker is busy with it (protocol F6): what keeps the table sound
//! is followed, and later changes hit the right rows; what does not, halts that table and no other, until it is resynced.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::live::books::Books;
use crate::live::{DEADLINE, Live, stop};
use fastrand::Rng;
use serde_json::{Value, json};
use testkit::lakehouse::Process;
use testkit::oracle;
use testkit::postgres::Options;
use testkit::readers::{Engine, ForeignEngine, Judge};
use tokio::task::JoinHandle;

/// Rows of `t` that the workload touches.
const BUSY: u64 = 1_000;
/// Rows of `t` altogether; those behind [`BUSY`] are left to the test.
const ROWS: u64 = 2_000;
/// A foreign engine that finds the catalog locked tries again.
const ATTEMPTS: usize = 5;

/// A copied table `t` with a workload on it, and a table `beside` that nobody else touches.
struct Scene {
    live: Live,
    worker: Process,
    stop: Arc<AtomicBool>,
    workload: Option<JoinHandle<()>>,
    books: Books,
}

impl Scene {
    async fn new() -> Self {
        let live = Live::new(Options::default()).await;
        live.sql(&format!(
            "CREATE TABLE t (id int8 PRIMARY KEY, v text NOT NULL, n int8 NOT NULL);
             CREATE TABLE beside (id int PRIMARY KEY, v text);
             INSERT INTO t SELECT n, 'copied', n FROM generate_series(1, {ROWS}) n;
             INSERT INTO beside VALUES (1, 'a')"
        ))
        .await;
        let worker = live.site.start();
        live.site.caught_up().await;
        let stop = Arc::new(AtomicBool::new(false));
        let workload = Some(busy(&live, Arc::clone(&stop)).await);
        Self { live, worker, stop, workload, books: Books::open().await }
    }

    async fn sql(&self, text: &str) {
        self.live.sql(text).await;
    }

    /// Ends the workload and waits until the lake has all of it.
    async fn quiet(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(workload) = self.workload.take() {
            workload.await.expect("the workload");
        }
        self.sql("INSERT INTO beside SELECT max(id) + 1, 'last' FROM beside").await;
        self.live.site.caught_up().await;
    }

    /// DuckDB finds in `t` exactly the source's rows for which the condition holds.
    async fn assert_rows(&mut self, condition: &str) {
        let found = self.books.rows(&self.live.site, "app.t", &[]).await;
        let client = self.live.cluster.connect("postgres").await;
        let mut expected = oracle::rows_where(&client, "public.t", condition).await;
        expected.sort();
        if let Some(difference) = oracle::difference(&expected, &found) {
            panic!("where {condition}: {difference}");
        }
    }

    async fn foreign_snapshots(&self) -> usize {
        let answer = self.live.site.lakehouse.ask(&["snapshots", "app.t"]).await;
        let snapshots = answer["snapshots"].as_array().expect("snapshots");
        snapshots.iter().filter(|snapshot| snapshot["kind"] == "foreign").count()
    }

    /// The operation of every snapshot of `t`, oldest first, as the metadata file says.
    async fn operations(&mut self) -> Vec<String> {
        let snapshots = self.books.snapshots(&self.live.site, "app.t").await;
        let operation = |snapshot: &Value| snapshot["summary"]["operation"].as_str().expect("an operation").to_owned();
        snapshots.iter().map(operation).collect()
    }

    async fn assert_streaming(&mut self) {
        assert!(self.worker.is_running(), "{}", self.worker.stderr());
        assert_eq!(self.live.site.table_status("public.t").await, ("streaming".to_owned(), None));
    }

    /// True if delete files of `t` have no data file.
    async fn dangling(&self) -> bool {
        let checked = self.live.site.lakehouse.ask(&["fsck", "--table", "app.t"]).await;
        checked.to_string().contains("is dangling")
    }

    /// `status` and `tables` say how many rows DuckDB finds.
    async fn assert_counted(&mut self) {
        let rows = self.books.rows(&self.live.site, "app.t", &[]).await.len();
        let status = self.live.site.lakehouse.ask(&["status"]).await;
        let tables = self.live.site.lakehouse.ask(&["tables"]).await;
        for listed in [&status["pipelines"][0]["tables"], &tables["tables"]] {
            let listed = listed.as_array().expect("tables");
            let table = listed.iter().find(|table| table["table"] == "app.t").expect("the table");
            assert_eq!(table["rows"], rows, "{table}");
        }
    }

    async fn assert_sound(&self) {
        let (code, checked) = self.live.site.lakehouse.json(&["fsck"]).await;
        assert_eq!((code, &checked["verdict"]), (Some(0), &"sound".into()), "{checked}");
    }

    /// The table has left the cut with this code; the other one goes on, and nothing is written to the first any more.
    async fn assert_halted(&mut self, code: &str) {
        let halted = || async { self.live.site.table_status("public.t").await };
        let wait = async {
            while halted().await != ("halted".to_owned(), Some(code.to_owned())) {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, wait).await.is_err() {
            panic!("not halted with {code}: {:?}", halted().await);
        }
        let before = self.live.site.lakehouse.ask(&["snapshots", "app.t"]).await;
        self.quiet().await;
        assert!(self.worker.is_running(), "{}", self.worker.stderr());
        assert_eq!(self.live.site.lakehouse.ask(&["snapshots", "app.t"]).await, before);
        let found = self.books.rows(&self.live.site, "app.beside", &[]).await;
        let client = self.live.cluster.connect("postgres").await;
        assert_eq!(oracle::difference(&oracle::rows(&client, "public.beside").await, &found), None);
    }

    /// An operator has the halted table copied anew while the worker runs: it is the source's again, and goes on with it.
    async fn end_resynced(self) {
        let asked = ["resync", "app.t", "--yes", "--reason", "another engine has broken it"];
        assert_eq!(self.live.site.lakehouse.ask(&asked).await["requested"], true);
        // A worker that is idle is not told; its next cut finds the request.
        self.sql("INSERT INTO beside SELECT max(id) + 1, 'wake' FROM beside").await;
        let streaming = async {
            while self.live.site.table_status("public.t").await != ("streaming".to_owned(), None) {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(DEADLINE, streaming).await.expect("copied anew");
        self.sql("UPDATE t SET v = 'after' WHERE id % 7 = 0; INSERT INTO t VALUES (9001, 'after', 1)").await;
        self.live.site.caught_up().await;
        self.end_equal().await;
    }

    /// Kills the worker and starts another one, which finds no local state.
    async fn restart(&mut self) {
        self.worker.kill().await;
        std::fs::remove_dir_all(self.live.site.path().join("state")).expect("delete the local state");
        self.worker = self.live.site.start();
    }

    async fn end(self) {
        stop(self.worker).await;
    }

    /// The table has followed its source to the end, whatever the other engine has done to it.
    async fn end_equal(self) {
        self.end_equal_for(Judge::start(Engine::PyIceberg).await).await;
    }

    /// The same, and this engine says so too.
    async fn end_equal_for(mut self, mut judge: Judge) {
        self.quiet().await;
        self.assert_streaming().await;
        self.assert_rows("true").await;
        let metadata = judge.metadata(&self.live.site.database(), "app.t").await;
        let found = self.books.rows(&self.live.site, "app.t", &[]).await;
        judge.assert_rows(&metadata, None, &[], &found).await;
        self.live.site.assert_equal().await;
        self.end().await;
    }
}

/// Changes of rows that the workload leaves alone; each round changes others.
fn changes(round: u64) -> String {
    format!(
        "UPDATE t SET v = 'round {round}' WHERE id > {BUSY} AND id % 5 = {round};
         DELETE FROM t WHERE id > {BUSY} AND id % 50 = {round}; DELETE FROM t WHERE id = {ROWS} - {round};
         INSERT INTO t VALUES ({ROWS} + {round}, 'new', 1) ON CONFLICT DO NOTHING"
    )
}

/// Small transactions on the first rows, until it is told to stop.
async fn busy(live: &Live, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    let client = live.cluster.connect("postgres").await;
    let mut rng = Rng::with_seed(7);
    tokio::spawn(async move {
        while !stop.load(Ordering::Relaxed) {
            let id = rng.u64(1..=BUSY);
            let statement = match rng.u8(0..10) {
                0 => format!("DELETE FROM t WHERE id = {id}"),
                1..=3 => format!("INSERT INTO t VALUES ({id}, 'new', 0) ON CONFLICT (id) DO UPDATE SET v = 'again'"),
                _ => format!("UPDATE t SET v = 'busy', n = n + 1 WHERE id BETWEEN {id} AND {id} + 3 AND id <= {BUSY}"),
            };
            client.batch_execute(&statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
}

/// What a foreign engine does in one commit.
#[derive(Clone, Debug)]
enum Deed {
    Delete(&'static str),
    Rewrite,
    /// All data files or some of them, in a commit that promises to keep the rows.
    Replace(&'static [&'static str]),
    Append(String),
    /// To the snapshot so many before the current one.
    RollBack(usize),
}

/// Commits to `app.t` as another engine. The worker sleeps meanwhile, in the middle of whatever it is at: it commits too
/// often for an engine that first reads all it rewrites.
async fn foreign(scene: &Scene, deed: Deed) {
    for _ in 0..ATTEMPTS {
        let (database, deed) = (scene.live.site.database(), deed.clone());
        scene.worker.freeze();
        let attempt = tokio::spawn(async move {
            let engine = ForeignEngine::new(&database);
            match deed {
                Deed::Delete(filter) => drop(engine.delete("app.t", filter).await),
                Deed::Rewrite => drop(engine.rewrite("app.t").await),
                Deed::Replace(choice) => drop(engine.replace("app.t", choice).await),
                Deed::Append(rows) => drop(engine.append("app.t", &rows).await),
                Deed::RollBack(steps) => roll_back(&database, steps).await,
            }
        });
        let done = attempt.await.is_ok();
        scene.worker.thaw();
        if done {
            return;
        }
        // It slept with the catalog locked.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{deed:?} failed {ATTEMPTS} times");
}

/// Spark compacts `app.t`: at first beside a worker that is at work, then while it sleeps, as what it commits meanwhile may
/// rule a compaction out.
async fn compact(scene: &Scene, spark: &mut Judge) {
    let question = json!({"do": "compact", "database": scene.live.site.database(), "table": "app.t"});
    let mut refused = match spark.ask(question.clone()).await {
        Ok(_) => return,
        Err(refused) => refused,
    };
    for _ in 0..ATTEMPTS {
        println!("Spark's compaction is refused: {}", refused.lines().take(2).collect::<String>());
        scene.worker.freeze();
        let answer = spark.ask(question.clone()).await;
        scene.worker.thaw();
        refused = match answer {
            Ok(_) => return,
            Err(refused) => refused,
        };
    }
    panic!("Spark cannot compact: {refused}");
}

/// As another engine's operator would set a table back.
async fn roll_back(database: &Path, steps: usize) {
    const ROLL_BACK: &str = r#"
import sys
from pyiceberg.catalog.sql import SqlCatalog
catalog = SqlCatalog("lakehouse", uri=f"sqlite:///{sys.argv[1]}", init_catalog_tables="false")
table = catalog.load_table("app.t")
snapshot = table.current_snapshot()
for _ in range(int(sys.argv[2])):
    snapshot = table.snapshot_by_id(snapshot.parent_snapshot_id)
table.manage_snapshots().rollback_to_snapshot(snapshot.snapshot_id).commit()
"#;
    let interpreter = std::env::var_os("LAKEHOUSE_READERS").expect("LAKEHOUSE_READERS is not set: run deploy/test");
    let mut command = tokio::process::Command::new(interpreter);
    command.args(["-c", ROLL_BACK]).arg(database).arg(steps.to_string()).stdin(Stdio::null());
    let output = command.kill_on_drop(true).output().await.expect("start PyIceberg");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_another_engine_deletes_stay_away_until_the_source_writes_them_again() {
    let mut scene = Scene::new().await;
    foreign(&scene, Deed::Delete("id > 1000 and id <= 1400")).await;
    // Of these rows a quarter is never touched again.
    scene
        .sql(
            "UPDATE t SET v = 'back' WHERE id BETWEEN 1101 AND 1200;
             DELETE FROM t WHERE id BETWEEN 1201 AND 1300;
             BEGIN; DELETE FROM t WHERE id BETWEEN 1301 AND 1400;
             INSERT INTO t SELECT n, 'anew', 0 FROM generate_series(1301, 1400) n; COMMIT;
             UPDATE t SET v = 'other' WHERE id BETWEEN 1401 AND 1500; DELETE FROM t WHERE id BETWEEN 1501 AND 1600",
        )
        .await;
    scene.live.site.caught_up().await;
    assert!(scene.foreign_snapshots().await > 0);
    scene.assert_streaming().await;

    // Once more, and the worker comes back without its index.
    foreign(&scene, Deed::Delete("id > 1600 and id <= 1700")).await;
    scene.restart().await;
    scene.sql("UPDATE t SET n = -n WHERE id BETWEEN 1650 AND 1750").await;
    scene.quiet().await;
    scene.assert_streaming().await;
    scene.assert_rows("id NOT BETWEEN 1001 AND 1100 AND id NOT BETWEEN 1601 AND 1649").await;
    scene.assert_sound().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_that_another_engine_leaves_without_effect_do_not_count_and_go_with_the_next_commit() {
    let mut scene = Scene::new().await;
    scene.sql(&changes(0)).await;
    scene.quiet().await;
    // Rewrites the file of the copy, and leaves our deletes from it where they are.
    foreign(&scene, Deed::Delete("id = 1992")).await;
    assert!(scene.dangling().await, "nothing to be told apart");
    scene.assert_counted().await;

    scene.sql("UPDATE t SET v = 'later' WHERE id = 1993").await;
    scene.live.site.caught_up().await;
    scene.assert_streaming().await;
    assert!(!scene.dangling().await);
    scene.assert_counted().await;
    scene.assert_rows("id <> 1992").await;
    scene.assert_sound().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_another_engine_rewrites_are_followed() {
    let mut scene = Scene::new().await;
    for round in 0..3 {
        foreign(&scene, Deed::Rewrite).await;
        scene.sql(&changes(round)).await;
        scene.live.site.caught_up().await;
        scene.assert_streaming().await;
    }
    assert!(scene.foreign_snapshots().await >= 3);

    foreign(&scene, Deed::Rewrite).await;
    scene.restart().await;
    scene.sql(&format!("UPDATE t SET n = -1 WHERE id > {BUSY} AND id % 3 = 0")).await;
    scene.end_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_another_engine_compacts_are_followed() {
    let mut scene = Scene::new().await;
    for (round, files) in [(0, &[][..]), (1, &["--files", "1"]), (2, &["--files", "2"])] {
        foreign(&scene, Deed::Replace(files)).await;
        scene.sql(&changes(round)).await;
        scene.live.site.caught_up().await;
        scene.assert_streaming().await;
    }

    foreign(&scene, Deed::Replace(&[])).await;
    scene.restart().await;
    scene.sql(&format!("UPDATE t SET n = -1 WHERE id > {BUSY} AND id % 3 = 0")).await;
    scene.live.site.caught_up().await;
    assert_eq!(scene.operations().await.iter().filter(|name| *name == "replace").count(), 4);
    scene.end_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_spark_compacts_are_followed() {
    if !Engine::Spark.is_at_hand() {
        return;
    }
    let mut scene = Scene::new().await;
    let mut spark = Judge::start(Engine::Spark).await;
    for round in 0..3 {
        compact(&scene, &mut spark).await;
        scene.sql(&changes(round)).await;
        scene.live.site.caught_up().await;
        scene.assert_streaming().await;
    }
    compact(&scene, &mut spark).await;
    scene.restart().await;
    scene.sql(&format!("UPDATE t SET n = -1 WHERE id > {BUSY} AND id % 3 = 0")).await;
    scene.live.site.caught_up().await;
    let replaced = scene.operations().await.iter().filter(|name| *name == "replace").count();
    assert!(replaced >= 4, "{replaced} of 4 compactions");
    scene.end_equal_for(spark).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_that_loses_a_row_halts_the_table_and_no_other() {
    halts_on_a_wrong_replace(&["--wrong", "lost"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_that_doubles_a_row_halts_the_table_and_no_other() {
    halts_on_a_wrong_replace(&["--wrong", "doubled"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_that_keeps_the_count_but_not_the_rows_halts_the_table_and_no_other() {
    halts_on_a_wrong_replace(&["--wrong", "exchanged"]).await;
}

async fn halts_on_a_wrong_replace(wrong: &'static [&'static str]) {
    let mut scene = Scene::new().await;
    foreign(&scene, Deed::Replace(wrong)).await;
    scene.sql("UPDATE t SET v = 'later' WHERE id > 1990").await;
    scene.assert_halted("FOREIGN_REPLACE").await;
    assert_eq!(scene.operations().await.last().map(String::as_str), Some("replace"));
    scene.end_resynced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_another_engine_adds_is_taken_over_by_the_source() {
    let scene = Scene::new().await;
    let rows = r#"{"id": 5001, "v": "theirs", "n": 1}
{"id": 5002, "v": "theirs", "n": 2}"#;
    foreign(&scene, Deed::Append(rows.to_owned())).await;
    scene.sql("INSERT INTO t VALUES (5001, 'ours', 3); INSERT INTO t VALUES (5002, 'ours', 4)").await;
    scene.live.site.caught_up().await;
    scene.sql("DELETE FROM t WHERE id = 5002").await;
    scene.end_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_another_engine_doubles_halt_the_table_and_no_other() {
    let mut scene = Scene::new().await;
    let double = r#"{"id": 1999, "v": "doubled", "n": 0}"#;
    foreign(&scene, Deed::Append(double.to_owned())).await;
    scene.sql("UPDATE t SET v = 'later' WHERE id = 1999").await;
    scene.assert_halted("DUPLICATE_KEYS").await;
    scene.end_resynced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_another_engine_sets_back_halts_and_no_other() {
    let mut scene = Scene::new().await;
    for round in 0..3 {
        scene.sql(&format!("UPDATE t SET v = 'round {round}' WHERE id > {BUSY}")).await;
        scene.live.site.caught_up().await;
    }
    foreign(&scene, Deed::RollBack(2)).await;
    scene.assert_halted("FOREIGN_ROLLBACK").await;
    scene.end_resynced().await;
}
