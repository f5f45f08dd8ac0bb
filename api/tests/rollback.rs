//! Rollback by the real binary while a worker follows its source: the table goes back and is held, everything else goes on,
//! and each way out ends where it should; killed anywhere, it comes to one end in all tables. Rows are read by DuckDB.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::live::books::Books;
use crate::live::{DEADLINE, Live, stop};
use fastrand::Rng;
use serde_json::Value;
use testkit::postgres::Options;
use testkit::tier;

const ROWS: &str = "SELECT id, n FROM t";

struct Scene {
    live: Live,
    books: Books,
}

impl Scene {
    /// Two tables, copied, and a worker that follows them.
    async fn begin() -> (Self, testkit::lakehouse::Process) {
        Self::on(Live::new(Options::default()).await).await
    }

    async fn on(live: Live) -> (Self, testkit::lakehouse::Process) {
        live.sql(
            "CREATE TABLE t (id int8 PRIMARY KEY, n int8 NOT NULL);
             CREATE TABLE beside (id int8 PRIMARY KEY, n int8 NOT NULL);
             INSERT INTO t SELECT n, 0 FROM generate_series(1, 1000) n;
             INSERT INTO beside SELECT n, 0 FROM generate_series(1, 10) n",
        )
        .await;
        let worker = live.site.start();
        live.site.caught_up().await;
        (Self { live, books: Books::open().await }, worker)
    }

    async fn ask(&self, arguments: &[&str]) -> Value {
        self.live.site.lakehouse.ask(arguments).await
    }

    async fn rows(&mut self, table: &str) -> BTreeSet<String> {
        let rows = self.books.sql(&self.live.site, table, None, ROWS).await;
        let cells = |row: &String| serde_json::from_str::<Vec<String>>(row).expect("a row").join(",");
        rows.iter().map(cells).collect()
    }

    async fn head(&self, table: &str) -> String {
        let answer = self.ask(&["snapshots", table]).await;
        let last = answer["snapshots"].as_array().and_then(|all| all.last()).cloned().unwrap_or_default();
        last["snapshot_id"].as_str().expect("a snapshot").to_owned()
    }

    /// Since where `t` is not as its source, as `status` says.
    async fn diverged_since(&self) -> Value {
        let answer = self.ask(&["status"]).await;
        let tables = answer["pipelines"][0]["tables"].as_array().expect("tables");
        tables.iter().find(|table| table["table"] == "app.t").expect("a table")["diverged_since"].clone()
    }

    /// Tags of rollbacks on `t`.
    async fn tags(&self) -> Vec<Value> {
        let answer = self.ask(&["snapshots", "app.t"]).await;
        let snapshots = answer["snapshots"].as_array().expect("snapshots");
        let tags = snapshots.iter().flat_map(|one| one["tags"].as_array().expect("tags").clone());
        let is_of_rollback = |tag: &str| tag.starts_with("undo/") || tag.starts_with("target/");
        tags.filter(|tag| tag.as_str().is_some_and(is_of_rollback)).collect()
    }

    async fn rolled_back(&self, snapshot: &str) -> String {
        let done = self.ask(&["rollback", "app.t", "--snapshot", snapshot, "--yes", "--reason=test"]).await;
        assert_eq!(done["stage"], "rolled_back", "{done}");
        done["operation"].as_str().expect("an id").to_owned()
    }

    /// Until no table is held any more.
    async fn released(&self) {
        let wait = async {
            while self.live.site.table_status("public.t").await != ("streaming".to_owned(), None) {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.expect("released");
        self.live.site.caught_up().await;
    }

    fn row(id: i64, n: i64) -> String {
        format!("{id},{n}")
    }
}

/// The ways out begin alike: three transactions, a rollback behind all of them, and two more while the table is held.
struct Held {
    operation: String,
    wrong: String,
    before: BTreeSet<String>,
}

async fn hold(scene: &mut Scene, round: i64) -> Held {
    let target = scene.head("app.t").await;
    let before = scene.rows("app.t").await;
    scene.live.transaction("UPDATE t SET n = n + 1 WHERE id <= 500").await;
    let wrong = scene.live.transaction("DELETE FROM t WHERE id BETWEEN 600 AND 700").await;
    let new = 10_000 + round;
    scene.live.transaction(&format!("INSERT INTO t VALUES ({new}, 1)")).await;
    scene.live.site.caught_up().await;
    assert!(scene.rows("app.t").await != before);
    let operation = scene.rolled_back(&target).await;
    assert!(scene.rows("app.t").await == before, "not the target's rows");
    assert_eq!(
        scene.live.site.table_status("public.t").await,
        ("paused_diverged".to_owned(), Some("ROLLED_BACK".into()))
    );

    scene.live.transaction(&format!("INSERT INTO t VALUES ({}, 2); UPDATE beside SET n = n + 1", 20_000 + round)).await;
    scene.live.transaction("UPDATE t SET n = n + 100 WHERE id = 1000").await;
    scene.live.site.caught_up().await;
    assert!(scene.rows("app.t").await == before, "a held table has taken changes");
    let beside = scene.rows("app.beside").await;
    assert!(beside.iter().all(|row| row.ends_with(&format!(",{}", round + 1))), "others go on: {beside:?}");
    Held { operation, wrong, before }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_out_of_a_rollback_ends_where_it_should() {
    let (mut scene, mut worker) = Scene::begin().await;
    // Undo: the rows before, and what came since.
    let held = hold(&mut scene, 0).await;
    assert_eq!(scene.tags().await.len(), 2, "where it was, and where it went");
    scene.ask(&["undo", &held.operation, "--yes", "--reason=test"]).await;
    scene.released().await;
    scene.live.site.assert_equal().await;
    assert_eq!((scene.tags().await, scene.diverged_since().await), (Vec::new(), Value::Null));

    // Without the transaction that was wrong: its rows are there, and all else is as at the source.
    scene.live.transaction("INSERT INTO t SELECT n, 7 FROM generate_series(600, 700) n").await;
    scene.live.site.caught_up().await;
    let clean = scene.head("app.t").await;
    let held = hold(&mut scene, 1).await;
    let without = format!("--without={}", held.wrong);
    scene.ask(&["replay", &held.operation, &without, "--yes", "--reason=test"]).await;
    scene.released().await;
    let verified = scene.live.site.lakehouse.json(&["verify", "--table", "app.t"]).await;
    assert_eq!((verified.0, &verified.1["tables"][0]["only_in_mirror"]), (Some(5), &101.into()), "{}", verified.1);
    assert_eq!(verified.1["tables"][0]["only_in_source"], 0, "{}", verified.1);
    assert_eq!(verified.1["tables"][0]["differing"], 0, "{}", verified.1);
    let kept = scene.rows("app.t").await;
    assert!((600..=700).all(|id| kept.contains(&Scene::row(id, 7))), "the rows that were deleted by mistake");
    // Its tags stay for a while; those of an operation that is undone go at once.
    assert!(scene.tags().await.len() == 2 && scene.diverged_since().await.is_string());
    // What diverges goes on doing so through another rollback that is undone.
    let held = hold(&mut scene, 2).await;
    scene.ask(&["undo", &held.operation, "--yes", "--reason=test"]).await;
    scene.released().await;
    assert!(scene.tags().await.len() == 2 && scene.diverged_since().await.is_string());
    // All changes since a state from before it are a way back to the source.
    let operation = scene.rolled_back(&clean).await;
    scene.ask(&["replay", &operation, "--yes", "--reason=test"]).await;
    scene.released().await;
    scene.live.site.assert_equal().await;
    assert_eq!((scene.tags().await.len(), scene.diverged_since().await), (4, Value::Null));
    // So is a resync, also of a table that is held.
    hold(&mut scene, 3).await;
    scene.ask(&["resync", "app.t", "--yes", "--reason=test"]).await;
    scene.released().await;
    scene.live.site.assert_equal().await;
    assert_eq!((scene.tags().await.len(), scene.diverged_since().await), (6, Value::Null));

    // Accept: the target's rows and what came since the rollback, nothing of what was between.
    let held = hold(&mut scene, 4).await;
    scene.ask(&["accept", &held.operation, "--yes", "--reason=test"]).await;
    scene.released().await;
    let now = scene.rows("app.t").await;
    let came: Vec<&String> = now.difference(&held.before).collect();
    assert_eq!(came.len(), 2, "one new row, and one updated: {came:?}");
    assert!(now.contains(&Scene::row(20_004, 2)) && !now.contains(&Scene::row(10_004, 1)));
    assert!(scene.tags().await.len() == 8 && scene.diverged_since().await.is_string());

    // It diverges; a resync is the way back.
    scene.ask(&["resync", "app.t", "--yes", "--reason=test"]).await;
    scene.released().await;
    scene.live.site.assert_equal().await;
    assert_eq!(scene.diverged_since().await, Value::Null);
    assert!(worker.is_running(), "{}", worker.stderr());
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_closed_behind_its_time_and_never_while_it_holds_a_table() {
    let mut live = Live::new(Options::default()).await;
    live.site.lakehouse.set_environment("LAKEHOUSE__PIPELINES__APP__ROLLBACK_TAGS", "1s");
    let (scene, worker) = Scene::on(live).await;
    let target = scene.head("app.t").await;
    scene.live.transaction("DELETE FROM t WHERE id > 500").await;
    scene.live.site.caught_up().await;
    let operation = scene.rolled_back(&target).await;
    let stage = async || scene.ask(&["operations", &operation]).await["operations"][0]["stage"].clone();
    // Longer than its time would be.
    tokio::time::sleep(Duration::from_secs(2)).await;
    scene.ask(&["maintain", "--once"]).await;
    assert_eq!((scene.tags().await.len(), stage().await), (2, Value::from("rolled_back")), "it holds a table");

    scene.ask(&["accept", &operation, "--yes", "--reason=test"]).await;
    scene.released().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((scene.tags().await.len(), stage().await), (2, Value::from("rolled_back")), "nobody has expired them");

    // What was accepted is taken back by another rollback, as long as the tag is there (protocol E7 g).
    let undo = format!("undo/{operation}");
    let back = scene.ask(&["rollback", "app.t", "--tag", &undo, "--yes", "--reason=test"]).await;
    scene.ask(&["replay", back["operation"].as_str().expect("an id"), "--yes", "--reason=test"]).await;
    scene.released().await;
    scene.live.site.assert_equal().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    scene.ask(&["maintain", "--once"]).await;
    assert_eq!((scene.tags().await, stage().await), (Vec::new(), Value::from("closed")));
    for verb in ["undo", "replay", "accept"] {
        let (_, answer) = scene.live.site.lakehouse.json(&[verb, &operation, "--yes", "--reason=test"]).await;
        assert_eq!(answer["code"], "OPERATION_CLOSED", "{verb}: {answer}");
    }
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_of_all_tables_that_is_killed_anywhere_comes_to_one_end_in_all_of_them() {
    let (mut scene, worker) = Scene::begin().await;
    let mut rng = Rng::new();
    let mut ends = BTreeSet::new();
    let kills = tier::size("LAKEHOUSE_KILLS", 6, 60);
    for round in 0..kills {
        let status = scene.ask(&["status"]).await;
        let cut = status["pipelines"][0]["cut"]["position"].as_str().expect("a cut").to_owned();
        let before = (scene.rows("app.t").await, scene.rows("app.beside").await);
        scene.live.transaction("UPDATE t SET n = n + 1; UPDATE beside SET n = n + 1").await;
        scene.live.site.caught_up().await;
        let after = (scene.rows("app.t").await, scene.rows("app.beside").await);
        let lakehouse = &scene.live.site.lakehouse;
        let mut rollback = lakehouse.spawn(&["rollback", "--cut", &cut, "--yes", "--reason=test"]);
        tokio::time::sleep(Duration::from_millis(rng.u64(..400))).await;
        rollback.kill().await;
        // Whoever comes next brings it to its end: here the worker, which the journal has fenced.
        let ended = async {
            loop {
                let open = scene.ask(&["operations"]).await;
                // Looked at behind it: an operation that has ended then has left no table in a state of before.
                let states = [live_state(&scene, "public.t").await, live_state(&scene, "public.beside").await];
                let last = open["operations"].as_array().and_then(|all| all.last()).cloned().unwrap_or_default();
                let stage = last["stage"].as_str().unwrap_or("none").to_owned();
                if states[0] == states[1] && !matches!(stage.as_str(), "forward" | "back") {
                    return (states[0].clone(), last["id"].as_str().unwrap_or_default().to_owned());
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let (state, id) = tokio::time::timeout(DEADLINE, ended).await.expect("an end");
        let now = (scene.rows("app.t").await, scene.rows("app.beside").await);
        match state.as_str() {
            "paused_diverged" => {
                assert!(now == before, "round {round}: all tables at the cut");
                scene.ask(&["undo", &id, "--yes", "--reason=test"]).await;
                scene.released().await;
            }
            _ => assert!(now == after, "round {round}: no table has gone back"),
        }
        ends.insert(state);
        scene.released().await;
        scene.live.site.assert_equal().await;
    }
    println!("{kills} rollbacks killed, ends: {ends:?}");
    stop(worker).await;
}

async fn live_state(scene: &Scene, table: &str) -> String {
    scene.live.site.table_status(table).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_rolled_back_is_refused_before_anything_changes() {
    let (scene, worker) = Scene::begin().await;
    let head = scene.head("app.t").await;
    scene.live.transaction("UPDATE t SET n = 5 WHERE id = 1").await;
    scene.live.site.caught_up().await;
    let now = scene.head("app.t").await;
    let shown = scene.ask(&["rollback", "app.t", "--snapshot", &head, "--dry-run"]).await;
    assert_eq!((&shown["operation"], &shown["tables"][0]["snapshots_undone"]), (&Value::Null, &1.into()), "{shown}");
    let changes = ["inserted", "updated", "deleted"].map(|kind| shown["tables"][0][kind].clone());
    assert_eq!(changes, [0, 1, 0].map(Value::from), "{shown}");
    assert_eq!(shown["tables"][0]["exits"], serde_json::json!(["undo", "replay", "accept", "resync"]), "{shown}");
    for (arguments, code) in [
        (&["rollback", "app.t", "--snapshot", &now, "--yes", "--reason=test"][..], "TARGET_IS_HEAD"),
        (&["rollback", "app.t", "--snapshot", "1", "--yes", "--reason=test"], "SNAPSHOT_UNKNOWN"),
        (&["rollback", "app.t_history", "--snapshot", &head, "--yes", "--reason=test"], "TABLE_UNKNOWN"),
        (&["rollback", "app.t", "--snapshot", &head, "--reason=test"], "NOT_CONFIRMED"),
        (&["rollback", "app.t", "--snapshot", &head, "--yes"], "USAGE"),
        (&["rollback", "app.t", "--yes", "--reason=test"], "USAGE"),
        (&["undo", "unknown", "--yes", "--reason=test"], "OPERATION_UNKNOWN"),
    ] {
        let (_, answer) = scene.live.site.lakehouse.json(arguments).await;
        assert_eq!(answer["code"], code, "{arguments:?}: {answer}");
    }
    assert_eq!(scene.head("app.t").await, now);
    assert_eq!(scene.live.site.table_status("public.t").await, ("streaming".to_owned(), None));

    // A second rollback in the pipeline waits for the first one's end, of the table that is held and of any other.
    let operation = scene.rolled_back(&head).await;
    let beside = scene.head("app.beside").await;
    for (table, snapshot) in [("app.t", &now), ("app.beside", &beside)] {
        let rollback = ["rollback", table, "--snapshot", snapshot, "--yes", "--reason=test"];
        let (code, answer) = scene.live.site.lakehouse.json(&rollback).await;
        assert_eq!((code, &answer["code"]), (Some(3), &"ROLLBACK_OPEN".into()), "{table}: {answer}");
    }
    assert_eq!(scene.head("app.beside").await, beside);
    scene.ask(&["undo", &operation, "--yes", "--reason=test"]).await;
    scene.released().await;
    let (_, answer) = scene.live.site.lakehouse.json(&["replay", &operation, "--yes", "--reason=test"]).await;
    assert_eq!(answer["code"], "NOT_HELD", "{answer}");
    scene.live.site.assert_equal().await;
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_pipeline_stands_still_and_goes_on_from_its_cut() {
    let (mut scene, worker) = Scene::begin().await;
    scene.ask(&["pause", "--reason=test"]).await;
    assert_eq!(scene.live.site.status().await.0, "paused");
    // What was under way may still land; what comes next does not.
    scene.live.transaction("UPDATE t SET n = 8").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let before = scene.rows("app.t").await;
    scene.live.transaction("UPDATE t SET n = 9").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(scene.rows("app.t").await == before, "a paused pipeline has written");
    scene.ask(&["resume"]).await;
    scene.released().await;
    scene.live.site.assert_equal().await;
    stop(worker).await;
}
