//! The main road on a real PostgreSQL: copy, stream, restart.

mod support;

use support::Lake;
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
