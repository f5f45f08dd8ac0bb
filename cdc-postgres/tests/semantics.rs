//! What PostgreSQL means by its changes, case by case: copied, streamed and streamed again over a restart, each time
//! compared with what a SELECT shows at the source.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::Shop;
use lakehouse_core::copy::CopyObserver;
use lakehouse_core::error::Reaction;
use lakehouse_core::planted::{Bug, Planted};
use testkit::postgres::Cluster;

/// Steps of one case: SQL scripts, each one transaction. The pipeline starts behind the first, is stopped and started
/// behind `stopped_behind`, and the mirrors are compared behind each.
async fn check(shop: &Shop, tables: &[(&str, &str)], before: &[&str], live: &[&str], down: &[&str], again: &[&str]) {
    for script in before {
        shop.sql(script).await;
    }
    let mut running = shop.lake.start();
    shop.follows(&mut running, tables).await;
    // One by one, so that most are batches of their own; then close together, so that batches hold several.
    for script in live {
        shop.sql(script).await;
        shop.follows(&mut running, tables).await;
    }
    running.stop().await;
    for script in down {
        shop.sql(script).await;
    }
    let mut running = shop.lake.start();
    shop.follows(&mut running, tables).await;
    for script in again {
        shop.sql(script).await;
    }
    shop.follows(&mut running, tables).await;
    running.stop().await;
    let left = shop.lake.cut().await.expect("a cut").left;
    assert!(left.is_empty(), "{left:?}");
}

/// 9,600 characters that do not compress enough to stay in the row.
const BIG: &str = "repeat(md5(random()::text), 300)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_large_value_is_never_null_and_never_a_placeholder() {
    let shop = Shop::open("toast").await;
    let tables = [("by_default", "by_default"), ("by_full", "by_full"), ("by_index", "by_index"), ("whole", "whole")];
    let create = |name: &str, key: &str, identity: &str| {
        format!(
            "CREATE TABLE {name} (id int {key}, code int NOT NULL, small int, big text, doc jsonb);
             CREATE UNIQUE INDEX {name}_code ON {name} (code);
             ALTER TABLE {name} ALTER big SET STORAGE EXTERNAL, ALTER doc SET STORAGE EXTERNAL, REPLICA IDENTITY {identity};
             INSERT INTO {name} SELECT n, n, 0, {BIG}, jsonb_build_object('v', {BIG}) FROM generate_series(1, 20) n;"
        )
    };
    let before = [
        create("by_default", "PRIMARY KEY", "DEFAULT"),
        create("by_full", "PRIMARY KEY", "FULL"),
        create("by_index", "PRIMARY KEY", "USING INDEX by_index_code"),
        create("whole", "", "FULL"),
    ]
    .concat();
    let each = |script: &str| -> String { tables.map(|(name, _)| script.replace("TABLE", name)).join(";") };
    let steps = [
        // In the table, in the batch, twice in the batch, over a key change, behind a truncate in the transaction.
        "UPDATE TABLE SET small = 1 WHERE id <= 5",
        "INSERT INTO TABLE SELECT n, n, 0, repeat(md5(n::text), 300), jsonb_build_object('v', repeat(md5(n::text), 300))
             FROM generate_series(101, 110) n; UPDATE TABLE SET small = 2 WHERE id > 100;
         UPDATE TABLE SET small = 3 WHERE id > 105",
        "UPDATE TABLE SET id = id + 1000, code = code + 1000 WHERE id BETWEEN 3 AND 8",
        "UPDATE TABLE SET id = -id, code = -code WHERE id = 10; UPDATE TABLE SET small = 4 WHERE id = -10;
         UPDATE TABLE SET id = -id, code = -code WHERE id = -10; UPDATE TABLE SET small = 5 WHERE id = 10",
        "UPDATE TABLE SET big = 'short now' WHERE id = 11; UPDATE TABLE SET small = 6 WHERE id = 11;
         UPDATE TABLE SET doc = NULL, small = 7 WHERE id = 12; UPDATE TABLE SET small = 8 WHERE id = 12",
        "DELETE FROM TABLE WHERE id = 13; INSERT INTO TABLE VALUES (13, 13, 0, repeat('new', 4000), '{}');
         UPDATE TABLE SET small = 9 WHERE id = 13",
        // Keys swapped: each value must stay with its row.
        "UPDATE TABLE SET id = 0, code = 0 WHERE id = 14; UPDATE TABLE SET id = 14, code = 14 WHERE id = 15;
         UPDATE TABLE SET id = 15, code = 15 WHERE id = 0; UPDATE TABLE SET small = 10 WHERE id = 14",
        "SAVEPOINT a; UPDATE TABLE SET big = 'undone' WHERE id = 16; ROLLBACK TO a; UPDATE TABLE SET small = 11 WHERE id = 16",
        "TRUNCATE TABLE; INSERT INTO TABLE SELECT n, n, 0, repeat(md5(n::text), 300), '[]' FROM generate_series(1, 9) n;
         UPDATE TABLE SET small = 12 WHERE id < 5",
    ]
    .map(|script| format!("BEGIN; {}; COMMIT", each(script)));
    let live: Vec<&str> = steps.iter().map(String::as_str).collect();
    let down = each("UPDATE TABLE SET small = 13 WHERE id < 7; UPDATE TABLE SET small = 14 WHERE id = 2");
    let again =
        each("UPDATE TABLE SET small = small + 1; UPDATE TABLE SET id = id + 50, code = code + 50 WHERE id = 3");
    check(&shop, &tables, &[&before], &live, &[&down], &[&again]).await;
    // Nor in the history: the only values missing are those of deletes, truncates and the NULL that was set.
    for (_, mirror) in tables {
        let history = shop.lake.rows(&format!("{mirror}_history")).await;
        let changes: Vec<&String> =
            history.iter().filter(|row| row.starts_with("insert") || row.starts_with("update")).collect();
        assert!(changes.len() > 30, "{mirror}: {}", changes.len());
        let empty = changes.iter().filter(|row| row.split('|').rev().take(2).any(|value| value == "NULL"));
        assert_eq!(empty.count(), 2, "{mirror}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_large_value_that_does_not_fit_its_type_keeps_its_exact_text() {
    let shop = Shop::open("toast_overflow").await;
    shop.sql(
        "CREATE TABLE t (id int PRIMARY KEY, small int, wide text[]);
         ALTER TABLE t ALTER wide SET STORAGE EXTERNAL;
         INSERT INTO t SELECT n, 0, ARRAY[ARRAY[repeat('x', 5000)], ARRAY[n::text]] FROM generate_series(1, 4) n",
    )
    .await;
    let mut running = shop.lake.start();
    shop.caught_up(&mut running).await;
    let copied = shop.lake.rows("t").await;
    assert!(copied.iter().all(|row| row.contains("xxxxx")), "{copied:?}");
    shop.sql("UPDATE t SET small = 1 WHERE id = 1; UPDATE t SET id = 12 WHERE id = 2").await;
    shop.sql("BEGIN; INSERT INTO t SELECT n + 4, 0, wide FROM t, generate_series(1, 1) n WHERE id = 4 LIMIT 1; UPDATE t SET small = 2 WHERE id = 5; COMMIT").await;
    shop.caught_up(&mut running).await;
    running.stop().await;
    let expected = shop.selected("SELECT id, small, NULL, format('{wide: %s}', wide) FROM t").await;
    assert_eq!(shop.lake.rows("t").await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_change_and_change_places() {
    let shop = Shop::open("keys").await;
    let tables = [("single", "single"), ("pair", "pair"), ("full_row", "full_row"), ("coded", "coded")];
    let before = "
        CREATE TABLE single (id int PRIMARY KEY, v text);
        CREATE TABLE pair (a int, v text, b varchar(10), PRIMARY KEY (b, a));
        CREATE TABLE full_row (id text PRIMARY KEY, n int, v text); ALTER TABLE full_row REPLICA IDENTITY FULL;
        CREATE TABLE coded (id int PRIMARY KEY, v text, code text NOT NULL); CREATE UNIQUE INDEX code ON coded (code);
        ALTER TABLE coded REPLICA IDENTITY USING INDEX code;
        INSERT INTO single SELECT n, 'row ' || n FROM generate_series(1, 50) n;
        INSERT INTO pair SELECT n, 'row ' || n, 'b' || n % 3 FROM generate_series(1, 50) n;
        INSERT INTO full_row SELECT md5(n::text), n, 'row ' || n FROM generate_series(1, 50) n;
        INSERT INTO coded SELECT n, 'row ' || n, 'code ' || n FROM generate_series(1, 50) n";
    let live = [
        "UPDATE single SET id = 100 WHERE id = 1; UPDATE pair SET b = 'moved' WHERE a = 1;
         UPDATE full_row SET id = md5('x') WHERE n = 1; UPDATE coded SET code = 'other' WHERE id = 1",
        // Places exchanged in one transaction.
        "UPDATE single SET id = -1 WHERE id = 2; UPDATE single SET id = 2 WHERE id = 3; UPDATE single SET id = 3 WHERE id = -1;
         UPDATE pair SET a = -1, b = '' WHERE a = 2; UPDATE pair SET a = 2, b = 'b2' WHERE a = 3;
         UPDATE pair SET a = 3, b = 'b0' WHERE a = -1;
         UPDATE full_row SET id = md5('y') WHERE n = 2; UPDATE full_row SET id = md5('2') WHERE n = 3;
         UPDATE full_row SET id = md5('3') WHERE n = 2;
         UPDATE coded SET code = '' WHERE id = 2; UPDATE coded SET code = 'code 2' WHERE id = 3;
         UPDATE coded SET code = 'code 3' WHERE id = 2",
        // A chain: every row takes the place of the next, the last one first.
        "DO $$ BEGIN FOR n IN REVERSE 50..10 LOOP UPDATE single SET id = id + 1 WHERE id = n;
             UPDATE coded SET code = 'code ' || n + 1, id = -n WHERE code = 'code ' || n; END LOOP; END $$",
        // There and back, deleted and made again, made and deleted, all in one transaction.
        "UPDATE single SET id = 900 WHERE id = 20; UPDATE single SET id = 20 WHERE id = 900;
         DELETE FROM single WHERE id = 21; INSERT INTO single VALUES (21, 'again'); UPDATE single SET id = 901 WHERE id = 21;
         INSERT INTO single VALUES (902, 'short'); DELETE FROM single WHERE id = 902;
         INSERT INTO single VALUES (903, 'lives'), (904, 'shortly'); UPDATE single SET id = 905 WHERE id = 904;
         DELETE FROM single WHERE id = 905",
        // The primary key moves, the identity does not.
        "UPDATE coded SET id = id + 5000 WHERE id > 0",
        "UPDATE single SET id = id + 10000; UPDATE pair SET a = a + 10000; UPDATE coded SET code = code || '!'",
    ];
    let down = ["UPDATE single SET id = id - 5000 WHERE id % 2 = 0; DELETE FROM pair WHERE a % 5 = 0;
         UPDATE pair SET b = 'down' WHERE b = 'b1'; UPDATE full_row SET id = md5(v)"];
    let again = [
        "UPDATE single SET id = -id",
        "UPDATE single SET id = -id, v = v || '.' WHERE id % 3 = 0",
        "INSERT INTO pair VALUES (1, 'back', 'b1'); DELETE FROM full_row WHERE n < 10",
    ];
    check(&shop, &tables, &[before], &live, &down, &again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_key_are_told_apart_by_all_their_columns_and_counted() {
    let shop = Shop::open("whole_rows").await;
    let before = "CREATE TABLE t (a int, b text, c numeric(6, 2)); ALTER TABLE t REPLICA IDENTITY FULL;
        INSERT INTO t SELECT n % 5, NULLIF('v' || n % 3, 'v0'), NULLIF(n % 2, 0) FROM generate_series(1, 200) n;
        INSERT INTO t SELECT NULL, NULL, NULL FROM generate_series(1, 7)";
    let live = [
        "INSERT INTO t SELECT 1, 'v1', 1 FROM generate_series(1, 5)",
        "DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE a = 1 LIMIT 3)",
        "UPDATE t SET b = 'changed' WHERE ctid IN (SELECT ctid FROM t WHERE a = 2 ORDER BY ctid LIMIT 4)",
        "DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE a IS NULL)",
        "UPDATE t SET a = 9 WHERE ctid = (SELECT min(ctid) FROM t WHERE a IS NULL)",
        // Copies made, changed and deleted in one transaction, of rows that stand in the table too.
        "INSERT INTO t SELECT 3, 'v1', 1 FROM generate_series(1, 4);
         DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE a = 3 AND b = 'v1' ORDER BY ctid DESC LIMIT 6);
         UPDATE t SET c = 2 WHERE ctid IN (SELECT ctid FROM t WHERE a = 3 ORDER BY ctid DESC LIMIT 3)",
        // An update to a row that is there already, and one that changes nothing.
        "UPDATE t SET a = 4, b = 'v1', c = 1 WHERE a = 9; UPDATE t SET a = a WHERE a = 4",
        "TRUNCATE t; INSERT INTO t SELECT 1, 'one', 1 FROM generate_series(1, 10)",
    ];
    let down = [
        "DELETE FROM t WHERE ctid IN (SELECT ctid FROM t LIMIT 4)",
        "INSERT INTO t VALUES (1, 'one', 1), (2, 'two', 2)",
    ];
    let again = [
        "UPDATE t SET b = NULL WHERE ctid IN (SELECT ctid FROM t LIMIT 2)",
        "INSERT INTO t VALUES (1, NULL, 1)",
        "DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE b IS NULL LIMIT 1)",
    ];
    check(&shop, &[("t", "t")], &[before], &live, &down, &again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_identity_has_a_history_and_its_application_is_not_disturbed() {
    let shop = Shop::open("no_identity").await;
    shop.sql("CREATE TABLE log (at int, text text); INSERT INTO log VALUES (1, 'before the start')").await;
    shop.sql("CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING").await;
    let mut running = shop.lake.start();
    shop.caught_up(&mut running).await;
    // With its changes published, PostgreSQL would refuse these.
    shop.sql("INSERT INTO log VALUES (2, 'a'), (3, 'b'); UPDATE log SET text = 'c'; DELETE FROM log WHERE at = 3")
        .await;
    shop.sql("INSERT INTO nothing VALUES (1), (2); UPDATE nothing SET id = 3 WHERE id = 2; DELETE FROM nothing").await;
    shop.caught_up(&mut running).await;
    running.stop().await;
    shop.sql("INSERT INTO log VALUES (4, 'while down'); TRUNCATE log; INSERT INTO log VALUES (5, 'last')").await;
    let mut running = shop.lake.start();
    shop.caught_up(&mut running).await;
    running.stop().await;
    let history = shop.lake.rows("log_history").await;
    let mut changes: Vec<(i32, String, String)> = history.iter().map(|row| operation_and_row(row, 2)).collect();
    changes.sort();
    let changes: Vec<(&str, &str)> =
        changes.iter().map(|(_, operation, row)| (operation.as_str(), row.as_str())).collect();
    let expected = [
        ("insert", "2|a"),
        ("insert", "4|while down"),
        ("insert", "3|b"),
        ("truncate", "NULL|NULL"),
        ("insert", "5|last"),
    ];
    assert_eq!(changes, expected);
    assert_eq!(shop.lake.rows("nothing_history").await.len(), 2);
    let tables: Vec<String> = shop.lake.contents().await.pointers.into_keys().collect();
    assert_eq!(tables, ["lakehouse_control.shop", "shop.log_history", "shop.nothing_history"], "and no mirror");
}

/// Ordinal, operation, and the last columns of a history's row.
fn operation_and_row(row: &str, columns: usize) -> (i32, String, String) {
    let values: Vec<&str> = row.split('|').collect();
    let ordinal = values[2].parse().expect("an ordinal");
    (ordinal, values[0].to_owned(), values[values.len() - columns..].join("|"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncate_counts_at_its_place_in_the_transaction_and_for_all_its_tables() {
    let shop = Shop::open("truncates").await;
    let tables = [("a", "a"), ("b", "b"), ("parent", "parent"), ("child", "child"), ("parts", "parts")];
    let before = "
        CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, v text);
        CREATE TABLE parent (id int PRIMARY KEY, v text);
        CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
        CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
        CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (10000);
        INSERT INTO a SELECT n, 'copied' FROM generate_series(1, 30) n; INSERT INTO b SELECT * FROM a;
        INSERT INTO parent SELECT * FROM a; INSERT INTO child SELECT id, id FROM a;
        INSERT INTO parts SELECT n * 10, 'copied' FROM generate_series(1, 30) n";
    let live = [
        "INSERT INTO a VALUES (100, 'before'); UPDATE a SET v = 'before' WHERE id = 1; INSERT INTO b VALUES (100, 'before');
         TRUNCATE a, b; INSERT INTO a VALUES (1, 'behind'), (101, 'behind'); UPDATE a SET v = v || '!' WHERE id = 1",
        "TRUNCATE parent RESTART IDENTITY CASCADE; INSERT INTO parent VALUES (1, 'new'); INSERT INTO child VALUES (1, 1)",
        "TRUNCATE parts; INSERT INTO parts VALUES (5, 'new'), (500, 'new')",
        "INSERT INTO b SELECT n, 'b' FROM generate_series(1, 20) n",
        "SAVEPOINT s; TRUNCATE b; INSERT INTO b VALUES (1, 'undone'); ROLLBACK TO s; DELETE FROM b WHERE id = 2",
        "TRUNCATE b; INSERT INTO b VALUES (1, 'x'); TRUNCATE b; INSERT INTO b VALUES (2, 'y'), (3, 'z'); DELETE FROM b WHERE id = 3",
        "TRUNCATE a, b, parent, child, parts",
    ];
    let live: Vec<String> = live.iter().map(|script| format!("BEGIN; {script}; COMMIT")).collect();
    let live: Vec<&str> = live.iter().map(String::as_str).collect();
    let down = [
        "INSERT INTO a SELECT n, 'down' FROM generate_series(1, 10) n",
        "TRUNCATE a",
        "INSERT INTO a VALUES (7, 'down')",
        "INSERT INTO parts VALUES (50, 'down'), (5000, 'down')",
    ];
    let again = [
        "UPDATE a SET v = 'again'",
        "TRUNCATE a, parts",
        "INSERT INTO a VALUES (7, 'last'); INSERT INTO b VALUES (7, 'last')",
    ];
    check(&shop, &tables, &[before], &live, &down, &again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_table_is_one_table_whatever_its_partitions_look_like() {
    let shop = Shop::open("partitions").await;
    let before = "
        CREATE TABLE t (id int, region text, v text, n numeric(8, 2), PRIMARY KEY (id, region)) PARTITION BY LIST (region);
        CREATE TABLE t_north PARTITION OF t FOR VALUES IN ('north');
        CREATE TABLE t_south (gone int, n numeric(8, 2), v text, region text NOT NULL, id int NOT NULL);
        ALTER TABLE t_south DROP COLUMN gone;
        ALTER TABLE t ATTACH PARTITION t_south FOR VALUES IN ('south');
        CREATE TABLE t_rest PARTITION OF t DEFAULT PARTITION BY HASH (id);
        CREATE TABLE t_rest_0 PARTITION OF t_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE t_rest_1 PARTITION OF t_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        INSERT INTO t SELECT n, (ARRAY['north', 'south', 'east', 'west'])[n % 4 + 1], 'row ' || n, n FROM generate_series(1, 80) n";
    let live = [
        "INSERT INTO t VALUES (101, 'north', 'new', 1), (102, 'south', 'new', 2), (103, 'east', 'new', 3)",
        "UPDATE t SET v = 'updated' WHERE id % 3 = 0",
        "UPDATE t SET region = 'south' WHERE region = 'north'",
        "UPDATE t SET region = 'north' WHERE id < 20 AND region <> 'north'; UPDATE t SET region = 'west', v = v || '>' WHERE id < 10",
        "UPDATE t SET id = id + 1000 WHERE region = 'west'; DELETE FROM t WHERE region = 'east' AND id % 2 = 0",
        "INSERT INTO t_south (id, region, v, n) VALUES (201, 'south', 'straight into the partition', 5)",
        "CREATE TABLE t_up PARTITION OF t FOR VALUES IN ('up'); INSERT INTO t VALUES (301, 'up', 'new partition', 6)",
        "UPDATE t SET region = 'up' WHERE id % 7 = 0",
    ];
    let down = ["UPDATE t SET region = 'north' WHERE region = 'up'", "DELETE FROM t WHERE id > 1000"];
    let again = [
        "INSERT INTO t SELECT n, 'up', 'again', 1 FROM generate_series(400, 420) n",
        "UPDATE t SET region = 'south' WHERE id = 410",
    ];
    check(&shop, &[("t", "t")], &[before], &live, &down, &again).await;
    let tables: Vec<String> = shop.lake.contents().await.pointers.into_keys().collect();
    assert_eq!(tables, ["lakehouse_control.shop", "shop.t", "shop.t_history"], "partitions are no tables of their own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_every_kind_are_followed() {
    let mut shop = Shop::open("names").await;
    shop.lake.source.tables = vec!["*".to_owned()];
    let tables = [
        (r#"public."Mixed Case""#, "mixed_case"),
        (r#"public."quote""and.dot""#, "quote_and_dot"),
        (r#""Other Schema"."žluťoučký""#, "_lu_ou_k_"),
        (r#"public."select""#, "select"),
    ];
    let before = r#"
        CREATE TABLE "Mixed Case" ("Key" int PRIMARY KEY, "Some Value" text, "select" int);
        CREATE TABLE "quote""and.dot" ("a""b" int PRIMARY KEY, "it's" text, "c.d" int);
        CREATE SCHEMA "Other Schema"; CREATE TABLE "Other Schema"."žluťoučký" ("klíč" text PRIMARY KEY, "日本" int);
        CREATE TABLE "select" ("from" int PRIMARY KEY, "Where" text); ALTER TABLE "select" REPLICA IDENTITY FULL;
        INSERT INTO "Mixed Case" VALUES (1, 'copied', 1); INSERT INTO "quote""and.dot" VALUES (1, 'copied', 1);
        INSERT INTO "Other Schema"."žluťoučký" VALUES ('ž', 1); INSERT INTO "select" VALUES (1, 'copied')"#;
    let live = [
        r#"INSERT INTO "Mixed Case" VALUES (2, 'streamed', 2); INSERT INTO "quote""and.dot" VALUES (2, 'streamed', 2);
           INSERT INTO "Other Schema"."žluťoučký" VALUES ('日', 2); INSERT INTO "select" VALUES (2, 'streamed')"#,
        r#"UPDATE "Mixed Case" SET "Key" = 3, "Some Value" = NULL WHERE "Key" = 1; DELETE FROM "quote""and.dot" WHERE "a""b" = 1;
           UPDATE "Other Schema"."žluťoučký" SET "klíč" = 'Ž' WHERE "klíč" = 'ž'; UPDATE "select" SET "Where" = 'new'"#,
        r#"ALTER TABLE "Mixed Case" ADD COLUMN "Neu Ä" text; INSERT INTO "Mixed Case" VALUES (4, 'wider', 4, 'ä')"#,
    ];
    let down = [r#"INSERT INTO "Mixed Case" VALUES (5, 'down', 5, 'x')"#, r#"TRUNCATE "Other Schema"."žluťoučký""#];
    let again = [r#"DELETE FROM "Mixed Case" WHERE "Key" = 2; INSERT INTO "Other Schema"."žluťoučký" VALUES ('č', 3)"#];
    check(&shop, &tables, &[before], &live, &down, &again).await;
    let source = shop.lake.table("_lu_ou_k_").await;
    assert_eq!(source.property("cdc.source_table"), Some("Other Schema.žluťoučký"));
    let column = source.metadata.current_schema().field_by_name("kl__").expect("a folded name").clone();
    assert!(column.doc.as_deref().is_some_and(|doc| doc.contains("klíč")), "{:?}", column.doc);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_added_column_is_followed_while_running_and_over_a_pause() {
    let shop = Shop::open("add_column").await;
    // A column joins the lake with its table's next change, so the quiet table is compared at the end.
    let tables = [("t", "t"), ("full_row", "full_row"), ("whole", "whole")];
    let before = "
        CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE full_row (id int PRIMARY KEY, v text);
        CREATE TABLE whole (id int, v text); CREATE TABLE quiet (id int PRIMARY KEY, v text);
        ALTER TABLE full_row REPLICA IDENTITY FULL; ALTER TABLE whole REPLICA IDENTITY FULL;
        INSERT INTO t SELECT n, 'copied' FROM generate_series(1, 10) n; INSERT INTO full_row SELECT * FROM t;
        INSERT INTO whole SELECT id % 3, v FROM t; INSERT INTO quiet SELECT * FROM t";
    let live = [
        "ALTER TABLE t ADD COLUMN a int; INSERT INTO t VALUES (11, 'new', 1); UPDATE t SET a = 2 WHERE id = 1",
        "INSERT INTO full_row VALUES (11, 'before'); ALTER TABLE full_row ADD COLUMN a int, ADD COLUMN b text;
         INSERT INTO full_row VALUES (12, 'behind', 1, 'b'); UPDATE full_row SET a = 3 WHERE id IN (1, 11)",
        "ALTER TABLE whole ADD COLUMN a int; UPDATE whole SET a = 1 WHERE id = 1; INSERT INTO whole VALUES (5, 'x', 5)",
        "DELETE FROM whole WHERE id = 1; UPDATE whole SET v = 'y' WHERE id = 2",
        "ALTER TABLE t ADD COLUMN big text; UPDATE t SET big = repeat(md5('x'), 300) WHERE id < 5",
        "UPDATE t SET a = 9 WHERE id < 4",
    ];
    let down = [
        "INSERT INTO t VALUES (20, 'before', 1, 'b'); UPDATE full_row SET v = 'before' WHERE id = 2",
        "ALTER TABLE t ADD COLUMN c numeric(5, 1); ALTER TABLE full_row ADD COLUMN c int; ALTER TABLE whole ADD COLUMN c text;
         ALTER TABLE quiet ADD COLUMN a int",
        "INSERT INTO t VALUES (21, 'behind', 1, 'b', 7.5); UPDATE full_row SET c = 4 WHERE id = 3; DELETE FROM whole WHERE id = 0",
    ];
    let again = [
        "UPDATE t SET c = 1 WHERE id IN (2, 20); UPDATE t SET a = 5 WHERE id = 3",
        "INSERT INTO whole VALUES (7, 'z', 1, 'c'); UPDATE quiet SET a = id",
        "ALTER TABLE quiet ADD COLUMN b text; INSERT INTO quiet VALUES (30, 'q', 3, 'b')",
    ];
    check(&shop, &tables, &[before], &live, &down, &again).await;
    shop.assert_equal("quiet", "quiet").await;
}

/// PostgreSQL changes no row for a constant default and says nothing of rows that it rewrites: rows from before the
/// column was added read NULL until they change, which `verify` shows as a difference (R61, `backfill = none`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_added_column_has_its_default_in_rows_written_since() {
    let shop = Shop::open("add_default").await;
    shop.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'copied'), (2, 'copied')").await;
    let mut running = shop.lake.start();
    shop.caught_up(&mut running).await;
    shop.sql("ALTER TABLE t ADD COLUMN a int NOT NULL DEFAULT 7; INSERT INTO t (id) VALUES (3)").await;
    shop.caught_up(&mut running).await;
    assert_eq!(shop.lake.rows("t").await, ["1|copied|NULL", "2|copied|NULL", "3|NULL|7"]);
    shop.sql("UPDATE t SET v = 'touched'").await;
    shop.follows(&mut running, &[("t", "t")]).await;
    running.stop().await;
    shop.sql("ALTER TABLE t ADD COLUMN b text DEFAULT 'x'").await;
    shop.sql("INSERT INTO t (id) VALUES (4)").await;
    let mut running = shop.lake.start();
    shop.caught_up(&mut running).await;
    assert_eq!(shop.lake.rows("t").await, ["1|touched|7|NULL", "2|touched|7|NULL", "3|touched|7|NULL", "4|NULL|7|x"]);
    shop.sql("UPDATE t SET v = 'touched again'").await;
    shop.follows(&mut running, &[("t", "t")]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_rolled_back_never_happened() {
    let shop = Shop::open("rollbacks").await;
    let before =
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'copied' FROM generate_series(1, 20) n";
    let live = [
        "BEGIN; INSERT INTO t VALUES (100, 'never'); UPDATE t SET v = 'never'; ROLLBACK",
        "BEGIN; INSERT INTO t VALUES (101, 'kept'); SAVEPOINT a; INSERT INTO t VALUES (102, 'undone'); DELETE FROM t WHERE id = 1;
         SAVEPOINT b; UPDATE t SET id = id + 500; ROLLBACK TO b; INSERT INTO t VALUES (103, 'undone'); ROLLBACK TO a;
         INSERT INTO t VALUES (102, 'kept'); SAVEPOINT c; UPDATE t SET v = 'kept' WHERE id = 2; RELEASE c; COMMIT",
        "DO $$ BEGIN FOR n IN 200..260 LOOP BEGIN INSERT INTO t VALUES (n, 'loop'); UPDATE t SET v = v || n WHERE id = 3;
             IF n % 3 = 0 THEN RAISE 'undone'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$",
        "BEGIN; SAVEPOINT a; TRUNCATE t; ROLLBACK TO a; UPDATE t SET v = 'last' WHERE id = 4; COMMIT",
    ];
    let down = [
        "BEGIN; INSERT INTO t VALUES (900, 'never'); ROLLBACK",
        "BEGIN; SAVEPOINT a; DELETE FROM t; ROLLBACK TO a; DELETE FROM t WHERE id = 5; COMMIT",
    ];
    check(&shop, &[("t", "t")], &[before], &live, &down, &["UPDATE t SET v = 'end' WHERE id = 6"]).await;
    let history = shop.lake.rows("t_history").await;
    assert!(!history.iter().any(|row| row.contains("never") || row.contains("undone")), "{history:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_move_between_the_partitions_of_a_mirror() {
    let mut shop = Shop::open("mirror_partitions").await;
    let tables = [("t", "t"), ("whole", "whole")];
    let by = |text: &str| text.parse().expect("a partition field");
    shop.lake.options("public.t").partition = vec![by("region"), by("bucket(4, id)"), by("truncate(3, v)")];
    shop.lake.options("public.whole").partition = vec![by("region")];
    let before = "
        CREATE TABLE t (id int PRIMARY KEY, region text, v text);
        CREATE TABLE whole (region text, n int); ALTER TABLE whole REPLICA IDENTITY FULL;
        INSERT INTO t SELECT n, (ARRAY['north', 'south', NULL, 'a/b=c %'])[n % 4 + 1], 'value ' || n FROM generate_series(1, 60) n;
        INSERT INTO whole SELECT region, id % 4 FROM t";
    let live = [
        "UPDATE t SET region = 'south' WHERE region = 'north' AND id % 2 = 0; UPDATE whole SET region = 'south' WHERE n = 1",
        "UPDATE t SET v = 'v' || id; UPDATE t SET region = NULL WHERE id < 10; UPDATE t SET region = 'new' WHERE region IS NULL AND id > 5",
        "UPDATE t SET id = id + 1000 WHERE id % 3 = 0; DELETE FROM t WHERE region = 'a/b=c %' AND id % 5 = 0",
        "BEGIN; UPDATE t SET region = 'x' WHERE id = 20; UPDATE t SET region = 'y' WHERE id = 20; UPDATE t SET region = 'x' WHERE id = 20; COMMIT",
        "DELETE FROM whole WHERE ctid IN (SELECT ctid FROM whole LIMIT 9); UPDATE whole SET region = NULL WHERE n = 2",
        "BEGIN; TRUNCATE t; INSERT INTO t SELECT n, 'r' || n % 3, 'again' FROM generate_series(1, 30) n; COMMIT",
    ];
    let down = ["UPDATE t SET region = 'r' || id % 2", "DELETE FROM t WHERE id > 25"];
    let again =
        ["UPDATE t SET region = 'end', v = 'end' WHERE id < 8", "INSERT INTO whole VALUES ('end', 1), ('end', 1)"];
    check(&shop, &tables, &[before], &live, &down, &again).await;
}

/// A transaction far larger than the pipeline's memory goes through in parts and still counts as one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_larger_than_memory_is_taken_in_parts() {
    let mut shop = Shop::open("parts").await;
    shop.lake.memory = 1 << 20;
    let tables = [("t", "t"), ("other", "other"), ("whole", "whole")];
    let before = "
        CREATE TABLE t (id int PRIMARY KEY, n int, v text); CREATE TABLE other (id int PRIMARY KEY);
        CREATE TABLE whole (n int, v text); ALTER TABLE whole REPLICA IDENTITY FULL;
        INSERT INTO t SELECT n, 0, repeat(md5(n::text), 10) FROM generate_series(1, 20000) n";
    let live = [
        "BEGIN; INSERT INTO t SELECT n, 1, repeat(md5(n::text), 10) FROM generate_series(20001, 60000) n;
         UPDATE t SET n = n + 1 WHERE id % 2 = 0; INSERT INTO other VALUES (1);
         UPDATE t SET id = id + 1000000 WHERE id % 7 = 0; DELETE FROM t WHERE id % 11 = 0;
         UPDATE t SET n = n + 1 WHERE id % 2 = 0; INSERT INTO whole SELECT id % 100, v FROM t WHERE id < 9000; COMMIT",
        "BEGIN; UPDATE t SET v = v || 'x'; UPDATE whole SET n = n + 1 WHERE n < 50; DELETE FROM whole WHERE n = 60;
         TRUNCATE t; INSERT INTO t SELECT n, 2, repeat(md5(n::text), 10) FROM generate_series(1, 40000) n;
         DELETE FROM t WHERE id % 3 = 0; COMMIT",
    ];
    let down = ["BEGIN; UPDATE t SET n = 5; UPDATE t SET id = -id WHERE id % 5 = 0; COMMIT"];
    check(&shop, &tables, &[before], &live, &down, &["UPDATE t SET n = 6 WHERE id < 100"]).await;
}

/// Rows without a key that differ only in a value that the lake's type cannot hold are still different rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_key_are_told_apart_by_values_that_do_not_fit_too() {
    let shop = Shop::open("whole_overflow").await;
    shop.sql(
        "CREATE TABLE t (a int, d date, n numeric(6, 2)); ALTER TABLE t REPLICA IDENTITY FULL;
         INSERT INTO t VALUES (1, 'infinity', 1), (1, '-infinity', 1), (1, NULL, 1), (2, '2024-01-31', 'NaN'), (3, NULL, 3)",
    )
    .await;
    let seen = "SELECT a, CASE WHEN isfinite(d) THEN d END, NULLIF(n, 'NaN'), CASE WHEN NOT isfinite(d) AND n = 'NaN'
         THEN format('{d: %s, n: NaN}', d) WHEN NOT isfinite(d) THEN format('{d: %s}', d) WHEN n = 'NaN' THEN '{n: NaN}' ELSE '' END FROM t";
    let mut running = shop.lake.start();
    for script in [
        "SELECT 1",
        "UPDATE t SET a = 10 WHERE d = '-infinity'",
        "UPDATE t SET n = 5 WHERE a = 2; UPDATE t SET a = 4 WHERE a = 3",
        "INSERT INTO t VALUES (1, 'infinity', 1), (1, 'infinity', 1), (7, '-infinity', 'NaN')",
        "DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE d = 'infinity')",
        "UPDATE t SET d = '-infinity' WHERE a = 1 AND d IS NULL; UPDATE t SET a = 8, n = 8 WHERE a = 7",
    ] {
        shop.sql(script).await;
        shop.caught_up(&mut running).await;
        let rows: Vec<String> = shop.lake.rows("t").await.into_iter().map(|row| row.replace("|NULL", "|")).collect();
        let expected: Vec<String> =
            shop.selected(seen).await.into_iter().map(|row| row.replace("|NULL", "|")).collect();
        assert_eq!(rows, expected, "behind {script}");
    }
    running.stop().await;
    let left = shop.lake.cut().await.expect("a cut").left;
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_key_are_told_apart_by_maps_and_lists_too() {
    let shop = Shop::open("whole_nested").await;
    shop.sql(
        "CREATE EXTENSION hstore; CREATE TABLE t (a int, h hstore, hs hstore[], l text[], p point);
         ALTER TABLE t REPLICA IDENTITY FULL;
         INSERT INTO t SELECT n, hstore(ARRAY['k', 'n'], ARRAY[NULL, (n % 3)::text]), ARRAY[hstore('k', (n % 2)::text), NULL],
             ARRAY['x', NULL, (n % 5)::text], point(n, 0) FROM generate_series(1, 20) n",
    )
    .await;
    let numbers = async |shop: &Shop| -> Vec<String> {
        let rows = shop.lake.rows("t").await;
        let mut numbers: Vec<String> =
            rows.iter().map(|row| row.split('|').next().unwrap_or_default().to_owned()).collect();
        numbers.sort();
        numbers
    };
    let mut running = shop.lake.start();
    for script in [
        "UPDATE t SET a = a + 100 WHERE a < 5",
        "UPDATE t SET h = h || 'new=>1', hs = NULL WHERE a > 15",
        "DELETE FROM t WHERE a % 4 = 0; INSERT INTO t VALUES (7, '', '{}', '{}', NULL), (7, NULL, NULL, NULL, NULL)",
        "UPDATE t SET a = 8 WHERE h = ''; DELETE FROM t WHERE a > 12 AND h ? 'new'",
    ] {
        shop.sql(script).await;
        shop.caught_up(&mut running).await;
        assert_eq!(numbers(&shop).await, shop.selected("SELECT a FROM t").await, "behind {script}");
    }
    running.stop().await;
    assert!(shop.lake.cut().await.expect("a cut").left.is_empty());
}

/// TRUNCATE is not MVCC-safe: behind it the table looks empty also to the copy's snapshot, in which it was full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_truncated_before_it_is_copied_is_copied_from_a_newer_snapshot() {
    struct TruncateFirst(&'static Cluster, AtomicBool);
    impl CopyObserver for TruncateFirst {
        fn begin(&self, _: &str, _: u64) {
            if self.1.swap(false, Ordering::Relaxed) {
                let script = "UPDATE t SET small = 1 WHERE id = 1; UPDATE t SET small = 2 WHERE id = 2";
                tokio::task::block_in_place(|| {
                    tokio::runtime::Handle::current().block_on(async {
                        self.0.sql("truncated", script).await;
                        self.0.sql("truncated", "TRUNCATE t; INSERT INTO t VALUES (7, 0, 'new')").await;
                    });
                });
            }
        }
        fn advance(&self, _: &str, _: u64, _: u64) {}
        fn done(&self, _: &str) {}
    }
    let mut shop = Shop::open("truncated").await;
    shop.sql(&format!(
        "CREATE TABLE t (id int PRIMARY KEY, small int, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
         INSERT INTO t SELECT n, 0, {BIG} FROM generate_series(1, 5) n"
    ))
    .await;
    shop.lake.observer = Arc::new(TruncateFirst(shop.cluster, AtomicBool::new(true)));
    let problem = shop.lake.start().problem().await;
    assert_eq!((problem.code, problem.reaction), ("TABLE_REWRITTEN", Reaction::Retry));
    let mut running = shop.lake.start();
    shop.follows(&mut running, &[("t", "t")]).await;
    running.stop().await;
    assert!(shop.lake.cut().await.expect("a cut").left.is_empty());
}

/// A table that appears later is copied and followed, also one without a key, and disturbs no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_appear_while_the_worker_is_down_join() {
    let shop = Shop::open("late_tables").await;
    shop.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'copied')").await;
    let mut running = shop.lake.start();
    shop.follows(&mut running, &[("t", "t")]).await;
    running.stop().await;
    shop.sql("INSERT INTO t VALUES (2, 'while down')").await;
    shop.sql("CREATE TABLE late (id int PRIMARY KEY, v text); CREATE TABLE log (v text)").await;
    shop.sql("INSERT INTO late VALUES (1, 'before the start'); INSERT INTO log VALUES ('before the start')").await;
    shop.sql("INSERT INTO t VALUES (3, 'while down')").await;
    let mut running = shop.lake.start();
    shop.caught_up(&mut running).await;
    shop.sql("INSERT INTO t VALUES (4, 'on'); INSERT INTO late VALUES (2, 'on'); INSERT INTO log VALUES ('on')").await;
    shop.sql("UPDATE late SET v = 'changed'; DELETE FROM log").await;
    shop.follows(&mut running, &[("t", "t"), ("late", "late")]).await;
    running.stop().await;
    let log = shop.lake.rows("log_history").await;
    assert_eq!(log.len(), 1, "{log:?}");
}

/// That the comparisons above can fail: each planted bug (B9, B10, B13) shows in one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_bugs_show_in_the_comparison_with_the_source() {
    for (database, bug) in [
        ("sound", None),
        ("keep_old_row", Some(Bug::KeepOldRow)),
        ("unchanged_as_null", Some(Bug::UnchangedAsNull)),
        ("stale_schema", Some(Bug::StaleSchema)),
    ] {
        let mut shop = Shop::open(&format!("planted_{database}")).await;
        shop.lake.planted = bug.map_or(Planted::none(), Planted::only);
        shop.sql(&format!(
            "CREATE TABLE t (id int PRIMARY KEY, small int, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
             INSERT INTO t SELECT n, 0, {BIG} FROM generate_series(1, 5) n"
        ))
        .await;
        let mut running = shop.lake.start();
        shop.caught_up(&mut running).await;
        shop.sql("UPDATE t SET small = 1 WHERE id = 1").await;
        shop.sql("ALTER TABLE t ADD COLUMN late int; INSERT INTO t VALUES (6, 0, NULL, 5)").await;
        shop.caught_up(&mut running).await;
        running.stop().await;
        let rows = shop.lake.rows("t").await;
        let equal = rows == shop.selected("SELECT * FROM t").await;
        assert_eq!(equal, bug.is_none(), "{bug:?} {rows:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_transaction_counts_from_its_commit_on() {
    let shop = Shop::open("prepared").await;
    shop.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'copied')").await;
    let mut running = shop.lake.start();
    shop.follows(&mut running, &[("t", "t")]).await;
    shop.sql(
        "BEGIN; INSERT INTO t VALUES (2, 'kept'); UPDATE t SET v = 'kept' WHERE id = 1; PREPARE TRANSACTION 'kept'",
    )
    .await;
    shop.sql("BEGIN; INSERT INTO t VALUES (3, 'undone'); PREPARE TRANSACTION 'undone'").await;
    shop.sql("INSERT INTO t VALUES (4, 'between')").await;
    shop.follows(&mut running, &[("t", "t")]).await;
    running.stop().await;
    shop.sql("COMMIT PREPARED 'kept'").await;
    shop.sql("ROLLBACK PREPARED 'undone'").await;
    let mut running = shop.lake.start();
    shop.follows(&mut running, &[("t", "t")]).await;
    running.stop().await;
    assert_eq!(shop.lake.rows("t").await, ["1|kept", "2|kept", "4|between"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_of_some_columns_and_rows_is_obeyed_by_copy_and_stream() {
    let shop = Shop::open("filters").await;
    shop.sql(
        "CREATE TABLE t (id int, secret text, region text, v text, PRIMARY KEY (id, region));
         INSERT INTO t SELECT n, 'secret', (ARRAY['north', 'south'])[n % 2 + 1], 'copied' FROM generate_series(1, 10) n;
         CREATE PUBLICATION lakehouse_shop FOR TABLE t (id, region, v) WHERE (region = 'north')",
    )
    .await;
    let mut running = shop.lake.start();
    for script in [
        "SELECT 1",
        "INSERT INTO t VALUES (11, 'secret', 'north', 'new'), (12, 'secret', 'south', 'new')",
        // In and out of what is published.
        "UPDATE t SET region = 'south' WHERE id = 2; UPDATE t SET region = 'north' WHERE id = 1",
        "UPDATE t SET v = 'changed', secret = 'other'; DELETE FROM t WHERE id IN (3, 4)",
    ] {
        shop.sql(script).await;
        shop.caught_up(&mut running).await;
        let expected = shop.selected("SELECT id, region, v FROM t WHERE region = 'north'").await;
        assert_eq!(shop.lake.rows("t").await, expected, "behind {script}");
    }
    running.stop().await;
    let history = shop.lake.rows("t_history").await;
    assert!(!history.iter().any(|row| row.contains("secret") || row.contains("south")), "{history:?}");
}

/// REPLICA IDENTITY of a root does not reach its partitions, and those are what PostgreSQL looks at (V3).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_table_whose_partitions_lack_an_identity_is_not_disturbed() {
    let shop = Shop::open("partition_identity").await;
    shop.sql(
        "CREATE TABLE root_only (id int, v text) PARTITION BY RANGE (id);
         CREATE TABLE root_only_1 PARTITION OF root_only FOR VALUES FROM (0) TO (100);
         ALTER TABLE root_only REPLICA IDENTITY FULL;
         CREATE TABLE everywhere (id int, v text) PARTITION BY RANGE (id);
         CREATE TABLE everywhere_1 PARTITION OF everywhere FOR VALUES FROM (0) TO (100);
         CREATE TABLE everywhere_2 PARTITION OF everywhere FOR VALUES FROM (100) TO (200);
         ALTER TABLE everywhere REPLICA IDENTITY FULL; ALTER TABLE everywhere_1 REPLICA IDENTITY FULL;
         ALTER TABLE everywhere_2 REPLICA IDENTITY FULL;
         INSERT INTO everywhere SELECT n, 'copied' FROM generate_series(1, 150, 10) n",
    )
    .await;
    let mut running = shop.lake.start();
    shop.follows(&mut running, &[("everywhere", "everywhere")]).await;
    shop.sql("INSERT INTO root_only VALUES (1, 'a'), (2, 'b'); UPDATE root_only SET v = 'c'; DELETE FROM root_only")
        .await;
    shop.sql("UPDATE everywhere SET id = id + 100 WHERE id < 50; DELETE FROM everywhere WHERE id = 61").await;
    shop.follows(&mut running, &[("everywhere", "everywhere")]).await;
    running.stop().await;
    assert_eq!(shop.lake.rows("root_only_history").await.len(), 2, "its inserts are in a history");
}
