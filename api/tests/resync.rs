//! A table is copied anew beside what stands there, while its source goes on changing: readers see the old rows until one
//! commit replaces all of them, the changes that follow are applied once, and a kill at any moment costs only time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::live::books::Books;
use crate::live::{DEADLINE, Live, stop};
use fastrand::Rng;
use testkit::postgres::Options;
use tokio::task::JoinHandle;

/// Rows of `t` at the start; the workload deletes none of the upper half.
const ROWS: u64 = 60_000;
const KILLS: usize = 6;
const RESYNC: [&str; 4] = ["resync", "app.t", "--yes", "--reason=test"];

async fn begin() -> Live {
    let live = Live::new(Options::default()).await;
    live.sql(&format!(
        "CREATE TABLE t (id int8 PRIMARY KEY, v text NOT NULL, n int8 NOT NULL);
         CREATE TABLE beside (id int PRIMARY KEY, v text);
         INSERT INTO t SELECT n, repeat('copied', 20), n FROM generate_series(1, {ROWS}) n;
         INSERT INTO beside VALUES (1, 'a')"
    ))
    .await;
    live
}

/// Small transactions on both tables until it is told to stop.
async fn busy(live: &Live, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    let client = live.cluster.connect("postgres").await;
    let mut rng = Rng::with_seed(11);
    tokio::spawn(async move {
        let mut new = ROWS;
        while !stop.load(Ordering::Relaxed) {
            let id = rng.u64(1..=ROWS);
            new += 1;
            let statement = match rng.u8(0..10) {
                0 => format!("DELETE FROM t WHERE id = {} ; UPDATE beside SET v = 'd{id}'", id % (ROWS / 2)),
                1..=3 => format!("INSERT INTO t VALUES ({new}, 'new', 0)"),
                _ => format!("UPDATE t SET v = 'busy', n = n + 1 WHERE id BETWEEN {id} AND {id} + 9"),
            };
            client.batch_execute(&statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    })
}

/// Copies of `t` that have been finished.
async fn copies(live: &Live) -> usize {
    let answer = live.site.lakehouse.ask(&["snapshots", "app.t"]).await;
    let snapshots = answer["snapshots"].as_array().cloned().unwrap_or_default();
    snapshots.iter().filter(|snapshot| snapshot["kind"] == "copy" && !snapshot["to"].is_null()).count()
}

async fn head(live: &Live) -> i64 {
    let answer = live.site.lakehouse.ask(&["snapshots", "app.t"]).await;
    let last = answer["snapshots"].as_array().and_then(|all| all.last()).cloned().unwrap_or_default();
    last["snapshot_id"].as_str().and_then(|id| id.parse().ok()).expect("a snapshot")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_copied_anew_under_load_and_one_commit_puts_it_in_place() {
    let live = begin().await;
    let mut worker = live.site.start();
    live.site.caught_up().await;
    let mut books = Books::open().await;
    let digest = "SELECT count(*), sum(hash(id, v, n)) FROM t";
    let (before, first) = (head(&live).await, copies(&live).await);
    let then = books.sql(&live.site, "app.t", Some(before), digest).await;
    let done = Arc::new(AtomicBool::new(false));
    let workload = busy(&live, Arc::clone(&done)).await;

    let asked = live.site.lakehouse.ask(&RESYNC).await;
    assert_eq!((&asked["requested"], &asked["tables"][0]["source"]), (&true.into(), &"public.t".into()), "{asked}");
    let again = async {
        while copies(&live).await == first {
            let rows = books.sql(&live.site, "app.t", None, "SELECT count(*) FROM t").await;
            let row: Vec<String> = serde_json::from_str(&rows[0]).expect("a row");
            let rows: u64 = row[0].parse().expect("a count");
            assert!(rows >= ROWS / 2, "readers see {rows} rows in the middle of a resync");
        }
    };
    tokio::time::timeout(DEADLINE, again).await.expect("copied anew");
    done.store(true, Ordering::Relaxed);
    workload.await.expect("the workload");
    live.site.caught_up().await;

    assert!(worker.is_running(), "{}", worker.stderr());
    assert_eq!(live.site.table_status("public.t").await, ("streaming".to_owned(), None));
    assert_eq!(copies(&live).await, first + 1, "one commit");
    assert_eq!(books.sql(&live.site, "app.t", Some(before), digest).await, then, "the past has changed");
    live.site.assert_equal().await;
    let past = live.site.lakehouse.ask(&["verify", "--cut", &newest_cut(&live).await]).await;
    assert_eq!((&past["verdict"], &past["against"]), (&"equal".into(), &"history".into()), "{past}");
    stop(worker).await;
}

/// The position of the pipeline's cut.
async fn newest_cut(live: &Live) -> String {
    let status = live.site.lakehouse.ask(&["status"]).await;
    status["pipelines"][0]["cut"]["position"].as_str().expect("a position").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_that_is_killed_again_and_again_ends_with_every_change_applied_once() {
    let live = begin().await;
    let mut worker = live.site.start();
    live.site.caught_up().await;
    let done = Arc::new(AtomicBool::new(false));
    let workload = busy(&live, Arc::clone(&done)).await;
    let mut rng = Rng::new();
    for _ in 0..KILLS {
        live.site.lakehouse.ask(&RESYNC).await;
        tokio::time::sleep(Duration::from_millis(rng.u64(..1_500))).await;
        worker.kill().await;
        worker = live.site.start();
    }
    let streaming = async {
        while live.site.table_status("public.t").await != ("streaming".to_owned(), None) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(DEADLINE, streaming).await.expect("copied anew in the end");
    done.store(true, Ordering::Relaxed);
    workload.await.expect("the workload");
    live.site.caught_up().await;
    live.site.assert_equal().await;
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_copied_anew_is_refused_before_anything_changes() {
    let live = begin().await;
    let (code, answer) = live.site.lakehouse.json(&RESYNC).await;
    assert_eq!((code, &answer["code"]), (Some(1), &"CATALOG_MISSING".into()), "{answer}");
    let worker = live.site.start();
    live.site.caught_up().await;
    let before = newest_cut(&live).await;
    for (arguments, code) in [
        (&["resync", "app.unknown", "--yes", "--reason=test"][..], "TABLE_UNKNOWN"),
        (&["resync", "app.t_history", "--yes", "--reason=test"], "TABLE_UNKNOWN"),
        (&["resync", "app.t", "--reason=test"], "NOT_CONFIRMED"),
    ] {
        let (_, answer) = live.site.lakehouse.json(arguments).await;
        assert_eq!(answer["code"], code, "{arguments:?}: {answer}");
    }
    assert_eq!(newest_cut(&live).await, before);
    assert_eq!(live.site.table_status("public.t").await, ("streaming".to_owned(), None));
    stop(worker).await;
}
