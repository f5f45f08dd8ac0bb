//! The named halts on a real server: each ends with its code, and nothing is written (protocol section D).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::{Lake, Shop};
use lakehouse_core::error::Reaction;
use lakehouse_core::planted::{Bug, Planted};
use testkit::postgres::{Cluster, Options, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'copied'), (2, 'copied')";

/// A pipeline that has copied and streamed, and is stopped.
async fn stopped_shop(database: &str) -> Shop {
    let shop = Shop::open(database).await;
    shop.sql(TABLE).await;
    let mut running = shop.lake.start();
    shop.caught_up(&mut running).await;
    shop.sql("INSERT INTO t VALUES (3, 'streamed')").await;
    shop.caught_up(&mut running).await;
    running.stop().await;
    shop
}

impl Shop {
    fn slot(&self) -> &str {
        &self.lake.source.slot
    }

    async fn drop_slot(&self) {
        // A walsender lives on for a moment after its client.
        let free = format!("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{}'", self.slot());
        wait_until(self.cluster, &self.database, &free, DEADLINE).await;
        self.sql(&format!("SELECT pg_drop_replication_slot('{}')", self.slot())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_slot_is_lost_and_no_new_one_takes_its_place() {
    let shop = stopped_shop("slot_dropped").await;
    shop.drop_slot().await;
    shop.sql("INSERT INTO t VALUES (4, 'unseen')").await;
    assert_eq!(shop.lake.halts_without_writing().await, "SLOT_LOST");
    let slots = shop.sql("SELECT 1 FROM pg_replication_slots WHERE database = current_database()").await;
    assert!(slots.is_empty(), "a slot was made in secret");
    assert_eq!(shop.lake.halts_without_writing().await, "SLOT_LOST", "and it stays halted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_was_made_again_under_the_same_name_is_a_gap() {
    let shop = stopped_shop("slot_recreated").await;
    shop.drop_slot().await;
    shop.sql("INSERT INTO t VALUES (4, 'unseen')").await;
    shop.sql(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", shop.slot())).await;
    shop.sql("INSERT INTO t VALUES (5, 'seen by the new slot')").await;
    assert_eq!(shop.lake.halts_without_writing().await, "GAP");
}

/// Bug B11: what the check is for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_advanced_by_hand_is_a_gap_and_without_the_check_rows_are_lost_in_silence() {
    let mut shop = stopped_shop("slot_advanced").await;
    shop.sql("INSERT INTO t VALUES (4, 'skipped')").await;
    let advance = format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", shop.slot());
    let free = format!("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{}'", shop.slot());
    wait_until(shop.cluster, &shop.database, &free, DEADLINE).await;
    shop.sql(&advance).await;
    shop.sql("INSERT INTO t VALUES (5, 'behind the gap')").await;
    assert_eq!(shop.lake.halts_without_writing().await, "GAP");

    shop.lake.planted = Planted::only(Bug::NoGapCheck);
    let mut running = shop.lake.start();
    shop.caught_up(&mut running).await;
    running.stop().await;
    let (source, mirror) = (shop.selected("SELECT * FROM t").await, shop.lake.rows("t").await);
    assert_ne!(source, mirror, "the planted bug must be visible in a comparison with the source");
    assert!(mirror.contains(&"5|behind the gap".to_owned()) && !mirror.contains(&"4|skipped".to_owned()), "{mirror:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_whose_wal_was_removed_is_lost() {
    let config = ["max_slot_wal_keep_size = 1MB", "max_wal_size = 32MB", "min_wal_size = 32MB", "wal_keep_size = 0"];
    let config = config.map(str::to_owned).to_vec();
    let cluster = Cluster::start(Options { config, ..Options::default() }).await;
    let lake = stopped_lake(&cluster).await;
    for _ in 0..5 {
        cluster.sql("postgres", "UPDATE t SET v = v || 'x'").await;
        cluster.sql("postgres", "SELECT pg_switch_wal()").await;
        cluster.sql("postgres", "CHECKPOINT").await;
    }
    wait_until(&cluster, "postgres", "SELECT wal_status = 'lost' FROM pg_replication_slots", DEADLINE).await;
    assert_eq!(lake.halts_without_writing().await, "SLOT_LOST");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_database_behind_the_same_address_is_not_followed() {
    let mut cluster = Cluster::start(Options::default()).await;
    let mut lake = stopped_lake(&cluster).await;
    let mut other = Cluster::start(Options::default()).await;
    // It looks the same in every way that names can tell, and it is further on.
    other.sql("postgres", &format!("{TABLE}; CREATE PUBLICATION lakehouse_shop FOR TABLE t")).await;
    other.sql("postgres", "SELECT pg_create_logical_replication_slot('lakehouse_shop', 'pgoutput')").await;
    other.sql("postgres", "INSERT INTO t VALUES (9, 'of another database')").await;
    cluster.stop_immediate().await;
    other.configure(&[&format!("port = {}", cluster.port())]);
    other.restart().await;
    lake.source.connection = Lake::new(&other).source.connection;
    lake.source.connection.port = cluster.port();
    assert_eq!(lake.halts_without_writing().await, "IDENTITY");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_database_of_the_same_server_is_not_followed() {
    let mut shop = stopped_shop("renamed_old").await;
    shop.sql("CREATE DATABASE renamed_new").await;
    shop.cluster.sql("renamed_new", TABLE).await;
    shop.lake.source.connection.database = "renamed_new".to_owned();
    assert_eq!(shop.lake.halts_without_writing().await, "SLOT_DB");
    shop.drop_slot().await;
    assert_eq!(shop.lake.halts_without_writing().await, "IDENTITY");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_restored_to_an_earlier_state_is_behind() {
    let mut cluster = Cluster::start(Options::default()).await;
    let lake = stopped_lake(&cluster).await;
    cluster.stop_immediate().await;
    let backup = copy_of(cluster.dir());
    cluster.restart().await;
    let mut running = lake.start();
    cluster.sql("postgres", "INSERT INTO t SELECT n, repeat('later', 200) FROM generate_series(10, 2000) n").await;
    lake.caught_up(&cluster, &mut running).await;
    running.stop().await;
    assert!(lake.rows("t").await.len() > 1900);

    cluster.stop_immediate().await;
    replace(cluster.dir(), &backup);
    cluster.restart().await;
    assert_eq!(cluster.value("postgres", "SELECT count(*) FROM t").await, "3");
    assert_eq!(lake.halts_without_writing().await, "SERVER_BEHIND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_copy_of_the_server_is_another_timeline() {
    let mut cluster = Cluster::start(Options::default()).await;
    let lake = stopped_lake(&cluster).await;
    cluster.stop_immediate().await;
    // Recovery with a signal file and nothing to fetch ends in a promotion, and slots survive it.
    let signal = cluster.dir().join("recovery.signal");
    std::fs::write(&signal, "").expect("signal file");
    own_like(&signal, cluster.dir());
    cluster.configure(&["restore_command = 'false'"]);
    cluster.restart().await;
    wait_until(&cluster, "postgres", "SELECT NOT pg_is_in_recovery()", DEADLINE).await;
    cluster.sql("postgres", "INSERT INTO t VALUES (4, 'on a new timeline'); CHECKPOINT").await;
    assert_eq!(lake.halts_without_writing().await, "IDENTITY");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_nobody_knows_is_not_taken() {
    let shop = Shop::open("slot_foreign").await;
    shop.sql(TABLE).await;
    shop.sql(&format!("CREATE PUBLICATION {} FOR TABLE t", shop.lake.source.publication)).await;
    shop.sql(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", shop.slot())).await;
    assert_eq!(shop.lake.code().await, "SLOT_FOREIGN");
    assert_eq!(shop.lake.cut().await, None, "nothing was begun");
    assert_eq!(shop.lake.halts_without_writing().await, "SLOT_FOREIGN");

    // One of another kind is told apart.
    shop.drop_slot().await;
    shop.sql(&format!("SELECT pg_create_logical_replication_slot('{}', 'test_decoding')", shop.slot())).await;
    assert_eq!(shop.lake.halts_without_writing().await, "SLOT_PLUGIN");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_made_after_the_slot_is_refused() {
    let shop = Shop::open("publication_late").await;
    shop.sql(TABLE).await;
    shop.sql(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", shop.slot())).await;
    assert_eq!(shop.lake.code().await, "PUBLICATION_MISSING");
    assert_eq!(shop.lake.cut().await, None, "nothing was begun");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_publication_halts_the_pipeline_and_stays_a_halt_when_it_is_made_again() {
    let shop = Shop::open("publication_dropped").await;
    shop.sql(TABLE).await;
    let mut running = shop.lake.start();
    shop.caught_up(&mut running).await;
    let publication = &shop.lake.source.publication;
    shop.sql(&format!("DROP PUBLICATION {publication}")).await;
    shop.sql("INSERT INTO t VALUES (3, 'unpublished')").await;
    let problem = running.problem().await;
    assert_eq!((problem.code, problem.reaction), ("PUBLICATION_MISSING", Reaction::Halt));
    assert_eq!(shop.lake.halts_without_writing().await, "PUBLICATION_MISSING");

    // The slot's changes are decoded with the catalog of their time, in which there was none.
    shop.sql(&format!("CREATE PUBLICATION {publication} FOR TABLE t")).await;
    assert_eq!(shop.lake.code().await, "PUBLICATION_MISSING");
    assert_eq!(shop.lake.rows("t").await, ["1|copied", "2|copied"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_worker_waits_while_the_first_one_works() {
    let shop = stopped_shop("two_workers").await;
    let mut first = shop.lake.start();
    shop.sql("INSERT INTO t VALUES (4, 'streamed')").await;
    shop.caught_up(&mut first).await;
    let epoch = shop.lake.cut().await.expect("a cut").epoch;
    let problem = shop.lake.start_elsewhere("second").problem().await;
    assert_eq!((problem.code, problem.reaction), ("SLOT_BUSY", Reaction::Retry));
    assert_eq!(shop.lake.cut().await.expect("a cut").epoch, epoch, "the one that waits raises nothing");

    // Once the first is cut off, the second comes in by itself; whatever the first had begun is not doubled.
    let mut second = shop.lake.start_resuming("second");
    shop.sql("INSERT INTO t SELECT n, 'streamed' FROM generate_series(10, 500) n").await;
    first.abort().await;
    shop.follows(&mut second, &[("t", "t")]).await;
    assert!(shop.lake.cut().await.expect("a cut").epoch > epoch);
    assert_eq!(shop.lake.rows("t_history").await.len(), 493);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_that_take_the_slot_from_each_other_double_nothing() {
    let shop = stopped_shop("two_workers_in_turn").await;
    let (mut first, second) = (shop.lake.start_resuming("first"), shop.lake.start_resuming("second"));
    for round in 0..8 {
        let script = format!(
            "INSERT INTO t SELECT n, 'round {round}' FROM generate_series({0}, {0} + 99) n;
             UPDATE t SET v = v || '.' WHERE id % 7 = {round} % 7; DELETE FROM t WHERE id = {0}",
            1000 * (round + 1)
        );
        shop.sql(&script).await;
        shop.sql(&format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{}'",
            shop.slot()
        ))
        .await;
    }
    shop.follows(&mut first, &[("t", "t")]).await;
    first.stop().await;
    second.stop().await;
    let history = shop.lake.rows("t_history").await;
    let changes = |operation: &str| history.iter().filter(|row| row.starts_with(operation)).count();
    assert_eq!((changes("insert"), changes("delete")), (801, 8));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_column_type_halts_its_table_and_no_other() {
    let shop = Shop::open("type_changed").await;
    shop.sql(TABLE).await;
    shop.sql("CREATE TABLE other (id int PRIMARY KEY)").await;
    let mut running = shop.lake.start();
    shop.caught_up(&mut running).await;
    shop.sql("INSERT INTO t VALUES (3, 'before')").await;
    shop.caught_up(&mut running).await;
    // One transaction: its rows of the old shape are not shown without those of the new one.
    shop.sql(
        "INSERT INTO t VALUES (4, 'old shape'); ALTER TABLE t ALTER COLUMN v TYPE varchar(20);
         INSERT INTO t VALUES (5, 'new shape'); INSERT INTO other VALUES (1)",
    )
    .await;
    shop.caught_up(&mut running).await;
    assert_eq!(shop.lake.left("public.t").await.as_deref(), Some("SCHEMA_CHANGED"));
    assert_eq!(shop.lake.left("public.other").await, None);
    shop.sql("INSERT INTO t VALUES (6, 'later'); INSERT INTO other VALUES (2)").await;
    shop.follows(&mut running, &[("other", "other")]).await;
    assert_eq!(shop.lake.rows("t").await, ["1|copied", "2|copied", "3|before"]);
    running.stop().await;

    // It stays halted over a restart: what it has missed does not come back.
    let mut running = shop.lake.start();
    shop.sql("INSERT INTO t VALUES (7, 'after the restart'); INSERT INTO other VALUES (3)").await;
    shop.follows(&mut running, &[("other", "other")]).await;
    assert_eq!(shop.lake.rows("t").await, ["1|copied", "2|copied", "3|before"]);
    assert_eq!(shop.lake.left("public.t").await.as_deref(), Some("SCHEMA_CHANGED"));
    running.stop().await;
}

/// Made while the worker runs, while it is down and has changes to catch up with, and while it is down without any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_change_that_is_not_followed_halts_its_table_whenever_it_is_made() {
    type Change = (&'static str, &'static str, &'static str);
    const OTHER: &str = "CREATE TABLE other (id int PRIMARY KEY);";
    let changes: [Change; 8] = [
        ("text", "v int", "ALTER COLUMN v TYPE text"),
        ("wider", "v int", "ALTER COLUMN v TYPE bigint"),
        ("scale", "v numeric(10, 2)", "ALTER COLUMN v TYPE numeric(10, 3)"),
        ("longer", "v varchar(10)", "ALTER COLUMN v TYPE varchar(20)"),
        ("renamed", "v int", "RENAME COLUMN v TO w"),
        ("dropped", "v int", "DROP COLUMN v"),
        ("key", "v int NOT NULL", "DROP CONSTRAINT TABLE_pkey, ADD PRIMARY KEY (v)"),
        ("fewer", "v int, PRIMARY KEY (id, v)", "DROP CONSTRAINT TABLE_pkey, ADD PRIMARY KEY (id)"),
    ];
    let shop = Shop::open("schema_changed").await;
    let of = |when: &str, table: &dyn Fn(&str, &Change) -> String| -> String {
        changes.iter().map(|change| table(&format!("{}_{when}", change.0), change)).collect()
    };
    let create = |name: &str, (_, columns, _): &Change| {
        let id = if columns.contains("PRIMARY KEY") { "id int" } else { "id int PRIMARY KEY" };
        format!("CREATE TABLE {name} ({id}, {columns}); INSERT INTO {name} VALUES (1, 1);")
    };
    let row = |name: &str, _: &Change| format!("INSERT INTO {name} VALUES (2, 2);");
    let alter = |name: &str, (_, _, change): &Change| format!("ALTER TABLE {name} {};", change.replace("TABLE", name));
    let new_row = |name: &str, (kind, ..): &Change| {
        format!("INSERT INTO {name} VALUES (3{});", if *kind == "dropped" { "" } else { ", 3" })
    };
    for when in ["running", "behind", "quiet"] {
        shop.sql(&of(when, &create)).await;
    }
    shop.sql(OTHER).await;
    let mut running = shop.lake.start();
    shop.caught_up(&mut running).await;
    for step in [of("running", &row), of("running", &alter), of("running", &new_row)] {
        shop.sql(&step).await;
    }
    shop.caught_up(&mut running).await;
    running.stop().await;
    for step in [of("behind", &row), of("behind", &alter), of("behind", &new_row), of("quiet", &alter)] {
        shop.sql(&step).await;
    }
    let mut running = shop.lake.start();
    shop.sql("INSERT INTO other VALUES (1)").await;
    shop.follows(&mut running, &[("other", "other")]).await;
    shop.sql(&of("quiet", &new_row)).await;
    shop.sql("INSERT INTO other VALUES (2)").await;
    shop.follows(&mut running, &[("other", "other")]).await;
    running.stop().await;

    let mut wrong = Vec::new();
    for when in ["running", "behind", "quiet"] {
        for (name, ..) in changes {
            let left = shop.lake.left(&format!("public.{name}_{when}")).await;
            let rows = shop.lake.rows(&format!("{name}_{when}")).await;
            if left.is_none() {
                wrong.push(format!("{name}_{when} goes on with {rows:?}"));
            } else if rows.iter().any(|row| row.starts_with("3|")) {
                wrong.push(format!("{name}_{when} has left with {left:?} and yet {rows:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// PostgreSQL itself refuses the application's updates then, so the whole start is refused, with the way out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_key_that_is_dropped_while_the_worker_is_down_is_found_at_the_start() {
    let shop = stopped_shop("key_dropped").await;
    shop.sql("ALTER TABLE t DROP CONSTRAINT t_pkey").await;
    assert_eq!(shop.lake.halts_without_writing().await, "NO_IDENTITY_PUBLISHED");
    // With inserts alone published a mirror cannot be kept.
    shop.sql("ALTER PUBLICATION lakehouse_shop DROP TABLE t; CREATE TABLE other (id int PRIMARY KEY)").await;
    let mut running = shop.lake.start();
    shop.sql("INSERT INTO t VALUES (4, 'unkeyed'); DELETE FROM t WHERE id = 1; INSERT INTO other VALUES (1)").await;
    shop.follows(&mut running, &[("other", "other")]).await;
    running.stop().await;
    assert_eq!(shop.lake.left("public.t").await.as_deref(), Some("SCHEMA_CHANGED"));
    assert_eq!(shop.lake.rows("t").await, ["1|copied", "2|copied", "3|streamed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_table_keeps_its_rows_in_the_lake_and_stops_no_other() {
    let shop = Shop::open("table_dropped").await;
    shop.sql(TABLE).await;
    shop.sql("CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE again (id int PRIMARY KEY)").await;
    let mut running = shop.lake.start();
    shop.caught_up(&mut running).await;
    shop.sql("INSERT INTO t VALUES (3, 'last'); INSERT INTO again VALUES (1)").await;
    shop.caught_up(&mut running).await;
    shop.sql(
        "DROP TABLE t; INSERT INTO other VALUES (1);
         DROP TABLE again; CREATE TABLE again (id int PRIMARY KEY);
         ALTER PUBLICATION lakehouse_shop ADD TABLE again; INSERT INTO again VALUES (7)",
    )
    .await;
    shop.follows(&mut running, &[("other", "other")]).await;
    assert_eq!(shop.lake.rows("t").await, ["1|copied", "2|copied", "3|last"]);
    assert_eq!(shop.lake.left("public.again").await.as_deref(), Some("DETACHED"));
    assert_eq!(shop.lake.rows("again").await, ["1"]);
    running.stop().await;

    let mut running = shop.lake.start();
    shop.sql("INSERT INTO other VALUES (2); INSERT INTO again VALUES (8)").await;
    shop.follows(&mut running, &[("other", "other")]).await;
    assert_eq!(shop.lake.rows("t").await, ["1|copied", "2|copied", "3|last"]);
    assert_eq!(shop.lake.rows("again").await, ["1"]);
    running.stop().await;
}

/// As [`stopped_shop`], on a server of its own.
async fn stopped_lake(cluster: &Cluster) -> Lake {
    cluster.sql("postgres", TABLE).await;
    let lake = Lake::new(cluster);
    let mut running = lake.start();
    lake.caught_up(cluster, &mut running).await;
    cluster.sql("postgres", "INSERT INTO t VALUES (3, 'streamed')").await;
    lake.caught_up(cluster, &mut running).await;
    running.stop().await;
    lake
}

/// A copy of a stopped server's folder beside it, so that it goes with it.
fn copy_of(dir: &Path) -> PathBuf {
    let copy = dir.with_extension("backup");
    must(Command::new("cp").arg("-a").arg(dir).arg(&copy));
    copy
}

fn replace(dir: &Path, copy: &Path) {
    std::fs::remove_dir_all(dir).expect("remove the folder");
    std::fs::rename(copy, dir).expect("put the copy in its place");
}

fn own_like(path: &Path, example: &Path) {
    must(Command::new("chown").arg(format!("--reference={}", example.display())).arg(path));
}

fn must(command: &mut Command) {
    assert!(command.status().is_ok_and(|status| status.success()), "{command:?}");
}
