//! Random transactions on tables of every kind of identity, with restarts: the mirrors equal the source, and the
//! histories tell how they came about.

use std::fmt::Write as _;

use crate::support::Shop;
use cdc_postgres::verify;
use fastrand::Rng;
use lakehouse_core::verify::VerifyOptions;

const ROUNDS: usize = 12;
const TRANSACTIONS: usize = 25;
const KEYS: u64 = 40;

/// Name, columns and identity; `id` is not always the key.
const TABLES: [(&str, &str); 6] = [
    ("by_key", "PRIMARY KEY (id)"),
    ("by_pair", "PRIMARY KEY (small, id)"),
    ("by_full", "PRIMARY KEY (id)"),
    ("by_index", "UNIQUE (id)"),
    ("whole", "CHECK (true)"),
    ("parts", "PRIMARY KEY (id)"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_transactions_leave_mirrors_equal_to_the_source() {
    let seed = testkit::tier::seed();
    println!("LAKEHOUSE_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let mut shop = Shop::open("random").await;
    shop.lake.memory = 1 << 20;
    let by = |text: &str| text.parse().expect("a partition field");
    shop.lake.options("public.by_pair").partition = vec![by("small")];
    shop.lake.options("public.whole").partition = vec![by("bucket(3, id)")];
    shop.sql(&tables()).await;
    for (table, _) in TABLES {
        let script = format!("INSERT INTO {table} {}", rows(&mut random, 1, KEYS / 2));
        shop.sql(&script).await;
    }
    let names = TABLES.map(|(table, _)| (table, table));
    let mut running = shop.lake.start_resuming(&shop.lake.local_state);
    for round in 0..ROUNDS {
        for _ in 0..TRANSACTIONS {
            // A transaction that breaks a key is rolled back as a whole: then it never happened.
            let _ = shop.cluster.try_sql(&shop.database, &transaction(&mut random)).await;
        }
        match round % 3 {
            0 => shop.follows(&mut running, &names).await,
            1 => {
                // On another machine: the one that was cut off still holds its key indexes.
                running.abort().await;
                shop.lake.local_state = format!("state-{round}");
                running = shop.lake.start_resuming(&shop.lake.local_state);
            }
            _ => {
                running.stop().await;
                // Without its index a worker reads the table.
                let state = shop.lake.path(&shop.lake.local_state);
                if random.bool() && state.exists() {
                    std::fs::remove_dir_all(&state).expect("remove the key indexes");
                }
                let _ = shop.cluster.try_sql(&shop.database, &transaction(&mut random)).await;
                running = shop.lake.start_resuming(&shop.lake.local_state);
            }
        }
    }
    shop.follows(&mut running, &names).await;
    let report = verify(&shop.lake.source, shop.lake.environment(), VerifyOptions::default()).await.expect("a verdict");
    assert_eq!(report.verdict, "equal", "{report:?}");
    let cut = shop.caught_up(&mut running).await;
    running.stop().await;
    assert!(cut.left.is_empty(), "{:?}", cut.left);
    let options = VerifyOptions { cut: Some(cut.position), ..VerifyOptions::default() };
    let report = verify(&shop.lake.source, shop.lake.environment(), options).await.expect("a verdict");
    assert_eq!((report.verdict, report.against), ("equal", "history"), "{report:?}");
}

fn tables() -> String {
    let mut script = String::new();
    for (table, key) in TABLES {
        let partitioned = if table == "parts" { " PARTITION BY RANGE (id)" } else { "" };
        let _ = write!(
            script,
            "CREATE TABLE {table} (id int NOT NULL, small int NOT NULL, word text, big text, {key}){partitioned};"
        );
    }
    script.push_str(
        "CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (MINVALUE) TO (20);
         CREATE TABLE parts_high (big text, word text, small int NOT NULL, id int NOT NULL);
         ALTER TABLE parts ATTACH PARTITION parts_high FOR VALUES FROM (20) TO (MAXVALUE);
         ALTER TABLE by_full REPLICA IDENTITY FULL; ALTER TABLE whole REPLICA IDENTITY FULL;
         ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_id_key;",
    );
    for table in ["by_key", "by_pair", "by_full", "by_index", "whole", "parts_low", "parts_high"] {
        let _ = write!(script, "ALTER TABLE {table} ALTER big SET STORAGE EXTERNAL;");
    }
    script
}

/// Rows with ids of a range; large values for about half of them.
fn rows(random: &mut Rng, first: u64, count: u64) -> String {
    format!(
        "SELECT n, n % 4, NULLIF('w' || n % 5, 'w3'), CASE WHEN n % 2 = 0 THEN repeat(md5((n + {})::text), 100) END
         FROM generate_series({first}, {}) n",
        random.u32(0..1000),
        first + count - 1
    )
}

fn transaction(random: &mut Rng) -> String {
    let mut script = "BEGIN;".to_owned();
    let mut depth = 0;
    for _ in 0..random.usize(1..8) {
        match random.u8(0..20) {
            0..=1 => {
                script.push_str("SAVEPOINT s;");
                depth += 1;
            }
            2 if depth > 0 => script.push_str("ROLLBACK TO s;"),
            _ => {
                let (table, _) = TABLES[random.usize(..TABLES.len())];
                script.push_str(&statement(random, table));
            }
        }
    }
    script.push_str(if random.u8(0..10) == 0 { "ROLLBACK" } else { "COMMIT" });
    script
}

fn statement(random: &mut Rng, table: &str) -> String {
    let id = random.u64(1..=KEYS);
    let other = random.u64(1..=KEYS);
    let rows_of = |random: &mut Rng| match random.u8(0..3) {
        0 => format!("id = {id}"),
        1 => format!("id BETWEEN {id} AND {}", id + 6),
        _ => format!("ctid IN (SELECT ctid FROM {table} WHERE small = {} LIMIT 2)", id % 4),
    };
    match random.u8(0..40) {
        0..=9 => {
            let conflict = if table == "whole" { "" } else { " ON CONFLICT DO NOTHING" };
            format!("INSERT INTO {table} {}{conflict};", rows(random, id, 1 + other % 4))
        }
        10..=17 => format!("UPDATE {table} SET word = 'u{other}' WHERE {};", rows_of(random)),
        18..=20 => format!("UPDATE {table} SET big = repeat('{other}', 3000) WHERE {};", rows_of(random)),
        21..=22 => format!("UPDATE {table} SET big = NULL, word = NULL WHERE {};", rows_of(random)),
        23..=26 => format!("UPDATE {table} SET small = {} WHERE id = {id};", other % 4),
        // A new place for a row: where it is taken, the row that stands there goes first.
        27..=30 => format!(
            "DELETE FROM {table} WHERE id = {other} AND {id} <> {other}; UPDATE {table} SET id = {other} WHERE id = {id};"
        ),
        // Two rows change places.
        31..=33 => format!(
            "UPDATE {table} SET id = 1000 WHERE id = {id}; UPDATE {table} SET id = {id} WHERE id = {other};
             UPDATE {table} SET id = {other} WHERE id = 1000;"
        ),
        34..=37 => format!("DELETE FROM {table} WHERE {};", rows_of(random)),
        38 => format!("TRUNCATE {table}; INSERT INTO {table} {};", rows(random, 1, 5)),
        _ => format!(
            "DELETE FROM {table} WHERE id % 3 = 0; INSERT INTO {table} {};",
            rows(random, 2000 + id * 100 + other, 3)
        ),
    }
}
