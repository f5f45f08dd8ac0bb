//! The answers about a lake that scripts rely on (`design/interface.md` section 2), and the formats of rows.

use crate::support::{Installation, lake};
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_ipc::reader::StreamReader;
use serde_json::{Value, json};

/// The ids of the rows that `rows app.orders` shows, sorted.
fn ids(installation: &Installation, arguments: &[&str]) -> Vec<i64> {
    let answer = installation.ask(&[&["rows", "app.orders"], arguments].concat());
    let rows = answer["rows"].as_array().expect("rows");
    let mut ids: Vec<i64> = rows.iter().map(|row| row["id"].as_i64().expect("an id")).collect();
    ids.sort_unstable();
    ids
}

fn keys(value: &Value) -> Vec<&String> {
    value.as_object().expect("an object").keys().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_how_pipeline_and_tables_stand() {
    let installation = lake::installation().await;
    let answer = installation.ask(&["status", "--pipeline", "app"]);
    let pipeline = &answer["pipelines"][0];
    for (key, value) in [
        ("name", json!("app")),
        ("source", json!("postgres")),
        ("state", json!("streaming")),
        ("code", Value::Null),
        ("epoch", json!(1)),
        ("position", json!("0/12C")),
        ("source_position", Value::Null),
    ] {
        assert_eq!(pipeline[key], value, "{key}");
    }
    assert_eq!(pipeline["cut"]["position"], "0/12C");
    assert!(pipeline["cut"]["committed_at"].as_str().is_some_and(|time| time.ends_with('Z')));
    let [table] = &pipeline["tables"].as_array().expect("tables")[..] else { panic!("one table: {pipeline}") };
    assert_eq!(keys(table), ["code", "position", "rows", "snapshot_id", "source", "state", "table"]);
    assert_eq!((&table["source"], &table["table"]), (&json!("public.orders"), &json!("app.orders")));
    assert_eq!(
        (&table["state"], &table["rows"], &table["position"]),
        (&json!("streaming"), &json!(4), &json!("0/12C"))
    );
    assert!(table["snapshot_id"].as_str().is_some_and(|id| id.parse::<i64>().is_ok()));
    let text = installation.run(&["status"]);
    assert!(text.text().contains("app: streaming, postgres, epoch 1"), "{}", text.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_snapshots_are_listed() {
    let installation = lake::installation().await;
    let answer = installation.ask(&["tables"]);
    let tables: Vec<_> =
        answer["tables"].as_array().expect("tables").iter().map(|t| (&t["table"], &t["kind"])).collect();
    let expected = [("app.orders", "mirror"), ("app.orders_history", "history")].map(|(t, k)| (json!(t), json!(k)));
    assert_eq!(tables, expected.iter().map(|(table, kind)| (table, kind)).collect::<Vec<_>>());

    let answer = installation.ask(&["snapshots", "app.orders"]);
    assert_eq!(answer["table"], "app.orders");
    let snapshots = answer["snapshots"].as_array().expect("snapshots");
    let kinds: Vec<&Value> = snapshots.iter().map(|snapshot| &snapshot["kind"]).collect();
    assert_eq!(kinds[0], "copy");
    assert_eq!(kinds[kinds.len() - 2..], ["change", "change"]);
    let change = &snapshots[snapshots.len() - 2];
    let fixed =
        ["committed_at", "deleted", "from", "inserted", "kind", "parent_id", "snapshot_id", "tags", "to", "updated"];
    assert_eq!(keys(change), fixed);
    assert_eq!((&change["from"], &change["to"]), (&json!("0/64"), &json!("0/C8")));
    assert_eq!((&change["inserted"], &change["updated"], &change["deleted"]), (&json!(1), &json!(1), &json!(1)));
    assert_eq!((&change["tags"], snapshots[0]["parent_id"].is_null()), (&json!([]), true));
    let unknown = installation.json(&["snapshots", "app.order"]);
    assert_eq!(unknown.error(), (1, "TABLE_UNKNOWN".to_owned()));
    assert!(unknown.text().contains("app.orders"), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_quarantine_has_nothing_in_it() {
    let installation = lake::installation().await;
    let nothing = json!({"table": "app.orders", "quarantine": null, "rows": 0, "quarantined": []});
    assert_eq!(installation.ask(&["quarantine", "app.orders"]), nothing);
    assert_eq!(installation.run(&["quarantine", "app.orders"]).text(), "app.orders has no quarantine\n");
    for other in ["app.orders_history", "app.order"] {
        assert_eq!(installation.json(&["quarantine", other]).error(), (1, "TABLE_UNKNOWN".to_owned()), "{other}");
    }
    for wrong in [&["--limit", "0"][..], &["--replay"], &["--yes"]] {
        let answer = installation.json(&[&["quarantine", "app.orders"], wrong].concat());
        assert_eq!(answer.error(), (2, "USAGE".to_owned()), "{wrong:?}");
    }
    let replay = installation.json(&["quarantine", "app.orders", "--replay", "--reason", "test", "--yes"]);
    assert_eq!(replay.error(), (1, "TABLE_UNKNOWN".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_as_of_any_point_that_is_kept() {
    let installation = lake::installation().await;
    assert_eq!(ids(&installation, &[]), [1, 2, 4, 5]);
    assert_eq!(ids(&installation, &["--cut", "0/C8"]), [1, 2, 4]);
    assert_eq!(ids(&installation, &["--cut", "0/64"]), [1, 2, 3], "the copy ends with a cut of its own");
    assert_eq!(ids(&installation, &["--as-of", "2999-01-01"]), [1, 2, 4, 5]);
    let snapshots = installation.ask(&["snapshots", "app.orders"]);
    let copied = snapshots["snapshots"][0]["snapshot_id"].as_str().expect("an id");
    assert_eq!(ids(&installation, &["--snapshot", copied]), [1, 2, 3]);

    let between = installation.ask(&["rows", "app.orders", "--cut", "0/FF"]);
    assert_eq!(between["cut"], json!({"position": "0/C8", "exact": false}));
    let labelled = installation.run(&["rows", "app.orders", "--cut", "0/FF", "--format", "csv"]);
    assert!(labelled.stderr.contains("cut 0/C8, the newest at or before 0/FF"), "{labelled:?}");

    // A digit is lost on the way: the one that was meant is the nearest.
    let mistyped = &copied[..copied.len() - 1];
    for (arguments, code, part) in [
        (&["--snapshot", mistyped][..], "SNAPSHOT_UNKNOWN", copied),
        (&["--as-of", "2000-01-01T00:00:00Z"], "SNAPSHOT_UNKNOWN", copied),
        (&["--tag", "mian"], "TAG_UNKNOWN", "main"),
        (&["--cut", "0/1"], "CUT_UNKNOWN", "0/64"),
        (&["--select", "nmae"], "COLUMN_UNKNOWN", "name"),
    ] {
        let answer = installation.json(&[&["rows", "app.orders"], arguments].concat());
        assert_eq!(answer.error(), (1, code.to_owned()), "{arguments:?}");
        assert!(answer.text().contains(part), "{part}: {answer:?}");
    }
    let two = installation.json(&["rows", "app.orders", "--tag", "a", "--cut", "0/1"]);
    assert_eq!(two.error(), (2, "USAGE".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_keep_their_values_in_every_format() {
    let installation = lake::installation().await;
    let rows = |format: &str, more: &[&str]| {
        let answer = installation.run(&[&["rows", "app.orders", "--format", format], more].concat());
        assert_eq!(answer.code, 0, "{answer:?}");
        answer
    };
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let uuid = |pair: &str| [4, 2, 2, 2, 6].map(|pairs| pair.repeat(pairs)).join("-");
    let csv = rows("csv", &["--cut", "0/C8"]);
    let expected = [
        format!("1,Ann,1.50,{},1970-01-01T00:00:01.000000Z", uuid("01")),
        format!("2,Bea,0.01,{},1970-01-01T00:00:02.000000Z", uuid("02")),
        format!("4,,0.99,{},1970-01-01T00:00:04.000000Z", uuid("04")),
        "id,name,amount,token,at".to_owned(),
    ];
    assert_eq!(sorted(csv.text()), expected);
    let ndjson = rows("ndjson", &["--select", "amount,id"]);
    let expected = [
        r#"{"amount":"0.01","id":2}"#,
        r#"{"amount":"0.99","id":4}"#,
        r#"{"amount":"1.50","id":1}"#,
        r#"{"amount":null,"id":5}"#,
    ];
    assert_eq!(sorted(ndjson.text()), expected);
    let arrow = rows("arrow", &[]);
    let batches = StreamReader::try_new(&arrow.stdout[..], None).expect("an Arrow stream");
    let batches: Vec<_> = batches.map(|batch| batch.expect("a batch")).collect();
    let mut ids: Vec<i64> =
        batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 4, 5]);
    let table = rows("table", &["--limit", "2", "--select", "id,name"]);
    assert_eq!((table.text().lines().count(), table.text().lines().next()), (3, Some("id  name")));
    assert_eq!(rows("csv", &["--limit", "0"]).text(), "id,name,amount,token,at\n");
    let both = installation.json(&["rows", "app.orders", "--format", "arrow"]);
    assert_eq!(both.error(), (2, "USAGE".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_filtered_by_a_sql_condition() {
    let installation = lake::installation().await;
    let uuid = [4, 2, 2, 2, 6].map(|pairs| "04".repeat(pairs)).join("-");
    for (condition, expected) in [
        ("id = 2 OR id > 4", &[2, 5][..]),
        ("amount > 0.98 and amount <= 1.5", &[1, 4]),
        ("amount = 0.01", &[2]),
        ("amount is null", &[5]),
        ("name like 'A%' or name = 'Bea'", &[1, 2]),
        ("lower(name) = 'ann'", &[1]),
        (&format!("token = '{uuid}'"), &[4]),
        ("at > '1970-01-01T00:00:02Z'", &[4, 5]),
        ("not (amount > 1)", &[2, 4]),
        ("null", &[]),
    ] {
        assert_eq!(ids(&installation, &["--where", condition]), expected, "{condition}");
    }
    assert_eq!(ids(&installation, &["--where", "id <> 1", "--cut", "0/64"]), [2, 3]);
    let limited = installation.ask(&["rows", "app.orders", "--where", "id > 1", "--limit", "2"]);
    assert_eq!(limited["rows"].as_array().map(Vec::len), Some(2));
    let hidden = installation.ask(&["rows", "app.orders", "--where", "id = 1", "--select", "name"]);
    assert_eq!(hidden["rows"], json!([{"name": "Ann"}]));
    for (condition, exit, part) in [
        ("nmae = 'Ann'", 2, "name"),
        ("amount >", 2, "SQL condition"),
        ("amount + 1", 2, "true or false"),
        ("id in (select id from orders)", 2, "condition"),
        ("count(*) > 1", 2, "condition"),
    ] {
        let answer = installation.json(&["rows", "app.orders", "--where", condition]);
        assert_eq!(answer.error(), (exit, "FILTER_INVALID".to_owned()), "{condition}");
        assert!(answer.text().contains(part), "{condition}: {answer:?}");
    }
    // A row that a condition cannot judge is met in the middle of the answer.
    let divided = installation.run(&["rows", "app.orders", "--where", "1 / (id - 2) > 0", "--format", "csv"]);
    assert_eq!(divided.code, 1);
    assert!(divided.stderr.contains("FILTER_INVALID") && divided.stderr.contains("zero"), "{}", divided.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diff_tells_what_was_inserted_updated_and_deleted() {
    let installation = lake::installation().await;
    let answer = installation.ask(&["diff", "app.orders", "0/64", "0/C8"]);
    assert_eq!(keys(&answer), ["changes", "deleted", "from", "inserted", "table", "to", "updated"]);
    assert_eq!((&answer["inserted"], &answer["updated"], &answer["deleted"]), (&json!(1), &json!(1), &json!(1)));
    let change = |word: &str| {
        let changes = answer["changes"].as_array().expect("changes");
        changes.iter().find(|change| change["change"] == word).unwrap_or_else(|| panic!("{word}: {answer}"))
    };
    assert_eq!(keys(change("inserted")), ["after", "change"]);
    assert_eq!(change("inserted")["after"]["id"], 4);
    assert_eq!(change("deleted")["before"]["id"], 3);
    let updated = change("updated");
    assert_eq!((&updated["before"]["name"], &updated["after"]["name"]), (&json!("Bob \"B\", Jr."), &json!("Bea")));
    assert_eq!((&updated["before"]["amount"], &updated["after"]["amount"]), (&Value::Null, &json!("0.01")));

    let id = |key: &str| answer[key].as_str().expect("an id");
    let (from, to) = (id("from"), id("to"));
    let back = installation.ask(&["diff", "app.orders", to, from, "--counts"]);
    assert_eq!(keys(&back), ["deleted", "from", "inserted", "table", "to", "updated"]);
    assert_eq!((&back["inserted"], &back["updated"], &back["deleted"]), (&json!(1), &json!(1), &json!(1)));
    let csv = installation.run(&["diff", "app.orders", from, to, "--format", "csv"]);
    let words: Vec<&str> = csv.text().lines().filter_map(|line| line.split(',').next()).collect();
    let mut sorted = words.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ["_change", "delete", "insert", "update_after", "update_before"], "{csv:?}");
    let before = words.iter().position(|word| *word == "update_before").expect("an update");
    assert_eq!(words[before + 1], "update_after");

    let verdict =
        |from: &str, to: &str| installation.run(&["diff", "app.orders", from, to, "--counts", "--exit-code"]).code;
    assert_eq!((verdict(from, to), verdict("main", "0/12C"), verdict(from, "main")), (5, 0, 5));
    let text = installation.run(&["diff", "app.orders", from, to, "--counts"]);
    assert_eq!(text.text(), "1 inserted, 1 updated, 1 deleted\n");
    for (arguments, error) in [
        (&["app.orders", "main", "mian"][..], (1, "TAG_UNKNOWN")),
        (&["app.orders", "main", "1"], (1, "SNAPSHOT_UNKNOWN")),
        (&["app.order", "main", "main"], (1, "TABLE_UNKNOWN")),
        (&["app.orders", "main", "main", "--format", "csv"], (2, "USAGE")),
        (&["app.orders", "main"], (2, "USAGE")),
    ] {
        let answer = installation.json(&[&["diff"], arguments].concat());
        assert_eq!(answer.error(), (error.0, error.1.to_owned()), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_when_a_cut_holds_the_position() {
    let installation = lake::installation().await;
    let answer = installation.ask(&["wait", "--position", "0/12C"]);
    assert_eq!((&answer["pipeline"], &answer["cut"]["position"]), (&json!("app"), &json!("0/12C")));
    let late = installation.json(&["wait", "--position", "0/12D", "--timeout", "150ms"]);
    assert_eq!(late.error(), (1, "WAIT_TIMEOUT".to_owned()));
    assert!(late.text().contains("0/12C"), "{late:?}");
    let unreachable = installation.json(&["wait", "--caught-up"]);
    assert_eq!(unreachable.error(), (1, "REFUSED".to_owned()));
    assert_eq!(installation.json(&["wait", "--position", "x"]).error(), (2, "USAGE".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_lake_passes_fsck_and_a_damaged_one_does_not() {
    let installation = lake::installation().await;
    let answer = installation.ask(&["fsck"]);
    assert_eq!(answer["verdict"], "sound");
    let check = &answer["tables"][0]["checks"][0];
    assert_eq!(keys(check), ["detail", "name", "ok"]);
    assert_eq!(installation.json(&["fsck", "--table", "app.nope"]).error(), (1, "TABLE_UNKNOWN".to_owned()));

    let data = installation.path().join("lake/warehouse/app/orders/data");
    let mut files = std::fs::read_dir(data).expect("data files");
    std::fs::remove_file(files.next().expect("one").expect("readable").path()).expect("removed");
    let answer = installation.json(&["fsck", "--table", "app.orders"]);
    assert_eq!((answer.code, &answer.json()["verdict"]), (5, &json!("unsound")));
    assert!(installation.run(&["fsck"]).text().ends_with("verdict: unsound\n"));
}
