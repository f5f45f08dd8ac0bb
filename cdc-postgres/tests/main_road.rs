//! The main road on a real PostgreSQL: copy, stream, restart.

use crate::support::Lake;
use lakehouse_core::position::Position;
use testkit::postgres::{Cluster, Options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_copied_and_its_changes_follow_over_restarts() {
    let cluster = Cluster::start(Options::default()).await;
    cluster
        .sql(
            "postgres",
            "CREATE TABLE guests (id bigint PRIMARY KEY, name text, paid numeric(10, 2));
             INSERT INTO guests SELECT n, 'guest ' || n, n * 1.25 FROM generate_series(1, 1000) n",
        )
        .await;
    let lake = Lake::new(&cluster);
    let mut running = lake.start();
    lake.caught_up(&cluster, &mut running).await;
    assert_eq!(lake.rows("guests").await.len(), 1000);
    assert!(lake.rows("guests_history").await.is_empty(), "copied rows are not repeated in the history");

    cluster
        .sql(
            "postgres",
            "INSERT INTO guests VALUES (1001, 'new', 1);
             UPDATE guests SET name = 'renamed' WHERE id = 7;
             UPDATE guests SET id = 2000 WHERE id = 8;
             DELETE FROM guests WHERE id <= 3",
        )
        .await;
    lake.caught_up(&cluster, &mut running).await;
    running.stop().await;
    let rows = lake.rows("guests").await;
    assert_eq!(rows.len(), 998);
    assert!(rows.contains(&"7|renamed|8.75".to_owned()));
    assert!(rows.contains(&"2000|guest 8|10.00".to_owned()));
    assert!(!rows.iter().any(|row| row.starts_with("8|") || row.starts_with("3|")));

    cluster.sql("postgres", "UPDATE guests SET name = 'while down' WHERE id = 9").await;
    let mut running = lake.start();
    lake.caught_up(&cluster, &mut running).await;
    running.stop().await;
    assert!(lake.rows("guests").await.contains(&"9|while down|11.25".to_owned()));
    assert_eq!(lake.rows("guests_history").await.len(), 7);
}

/// Other tables' write-ahead log must not pile up because ours are silent (protocol C3).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_of_a_silent_table_moves_on_with_the_server_and_never_beyond_the_cut() {
    let cluster = Cluster::start(Options::default()).await;
    cluster.sql("postgres", "CREATE TABLE silent (id int PRIMARY KEY); CREATE TABLE busy (id int, filler text)").await;
    let mut lake = Lake::new(&cluster);
    lake.source.tables = vec!["public.silent".to_owned()];
    let mut running = lake.start();
    lake.caught_up(&cluster, &mut running).await;
    let client = cluster.connect("postgres").await;
    let slot = "SELECT confirmed_flush_lsn::text, pg_current_wal_lsn()::text FROM pg_replication_slots";
    for _ in 0..3 {
        client
            .batch_execute("INSERT INTO busy SELECT n, repeat('x', 500) FROM generate_series(1, 5000) n")
            .await
            .expect("rows of another table");
        let end: Position =
            client.query_one(slot, &[]).await.expect("a slot").get::<_, String>(1).parse().expect("an LSN");
        loop {
            let row = client.query_one(slot, &[]).await.expect("a slot");
            let confirmed: Position = row.get::<_, String>(0).parse().expect("an LSN");
            let cut = lake.cut().await.expect("a cut").position;
            assert!(confirmed <= cut, "the server may forget {confirmed}, the cut holds {cut}");
            if confirmed >= end {
                break;
            }
            assert!(!running.is_finished(), "the pipeline has ended");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    running.stop().await;
}
