//! Tables are kept by the real binary: what a dry run says is what happens, readers and worker notice nothing of it, and
//! its history can be read by anybody.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use crate::http::{Service, entries, problem, text, tokens};
use crate::live::books::Books;
use crate::live::{Live, Site, stop, until};
use crate::support::{Installation, lake};
use serde_json::{Value, json};
use testkit::http::{Exchange, exchange};
use testkit::postgres::{Cluster, Options};

/// Two small files are merged.
const SOON: &str = "maintenance.small_files=2";
/// And no tags are made, whatever hour the test comes to.
const ONLY_FILES: [&str; 6] =
    ["--set", SOON, "--set", "maintenance.hourly_tags=0s", "--set", "maintenance.daily_tags=0s"];
const RUNS: &str = "lakehouse_control.maintenance_runs";

fn entry<'a>(answer: &'a Value, table: &str) -> &'a Value {
    let tables = answer["tables"].as_array().expect("tables");
    tables.iter().find(|entry| entry["table"] == table).unwrap_or_else(|| panic!("no {table}: {answer}"))
}

/// Writes to every table again and again, each time in a commit of its own.
async fn work(live: &Live, from: u64, commits: u64) {
    for number in from..from + commits {
        live.sql(&format!(
            "INSERT INTO orders SELECT id, 'new' FROM generate_series({number} * 100, {number} * 100 + 9) id;
             UPDATE orders SET state = 'paid {number}' WHERE id % 7 = {number} % 7;
             DELETE FROM orders WHERE id = {number} * 100 - 95"
        ))
        .await;
        live.site.caught_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_the_run_does_and_neither_worker_nor_readers_notice() {
    let live = Live::new(Options::default()).await;
    live.sql("CREATE TABLE orders (id bigint PRIMARY KEY, state text)").await;
    live.sql("INSERT INTO orders SELECT id, 'old' FROM generate_series(1, 99) id").await;
    let (site, lakehouse) = (&live.site, &live.site.lakehouse);
    let worker = site.start();
    site.caught_up().await;
    work(&live, 1, 6).await;
    let data = site.path().join("lake/warehouse/app/orders/data");
    let (old, young) = (data.join("left-behind.parquet"), data.join("just-written.parquet"));
    for path in [&old, &young] {
        fs::write(path, "nobody names it").expect("a stray file");
    }
    let weeks_ago = SystemTime::now() - Duration::from_secs(14 * 86_400);
    File::options().append(true).open(&old).and_then(|file| file.set_modified(weeks_ago)).expect("an older time");

    let before = entry(&lakehouse.ask(&["health"]).await, "app.orders").clone();
    let with = |arguments: &[&'static str]| [&ONLY_FILES[..], arguments].concat();
    let planned = lakehouse.ask(&with(&["maintain", "--dry-run"])).await;
    let text = lakehouse.run(&with(&["maintain", "--dry-run", "--table", "app.orders"])).await;
    let plan = &entry(&planned, "app.orders")["plan"];
    let files = plan["rewrites"][0]["files"].as_array().expect("files");
    assert!(files.len() >= 6, "{planned}");
    for file in files {
        assert!(text.stdout.contains(file.as_str().expect("a path")), "{text:?}");
    }
    assert_eq!(plan["orphans"]["removable"].as_array().map(Vec::len), Some(1), "{planned}");
    assert_eq!(plan["orphans"]["waiting"], 1, "{planned}");
    assert!(old.exists(), "a dry run changes nothing");
    let counted = lakehouse.ask(&["health", "app.orders", "--unreferenced"]).await;
    let expected = json!({"files": 2, "bytes": 30, "removable_files": 1, "removable_bytes": 15});
    assert_eq!(entry(&counted, "app.orders")["unreferenced"], expected, "{counted}");

    let done = lakehouse.ask(&with(&["maintain", "--once"])).await;
    for table in ["app.orders", "app.orders_history"] {
        let (planned, done) = (entry(&planned, table), entry(&done, table));
        for part in ["snapshot_id", "rewrites", "expiry"] {
            assert_eq!(done["plan"][part], planned["plan"][part], "{table}: {part}");
        }
        let rewrites = done["outcome"]["rewrites"].as_array().expect("rewrites");
        assert!(rewrites.iter().all(|rewrite| rewrite["snapshot_id"].is_string()), "{done}");
        assert!(!rewrites.is_empty(), "{done}");
    }
    assert!(!old.exists() && young.exists());
    let after = entry(&lakehouse.ask(&["health"]).await, "app.orders").clone();
    let number = |health: &Value, key: &str| health[key].as_f64().unwrap_or_else(|| panic!("{key}: {health}"));
    assert!(number(&after, "score") > number(&before, "score"), "{before} {after}");
    assert!(number(&after, "debt_bytes") < number(&before, "debt_bytes"), "{before} {after}");
    assert_eq!(
        (&after["small_files"], &after["deleted_rows"], &after["delete_files"]),
        (&json!(1), &json!(0), &json!(0))
    );
    assert_eq!((&before["compaction_age_seconds"], after["compaction_age_seconds"].is_u64()), (&Value::Null, true));
    assert_eq!((&after["time_travel_kept"], &after["promised_time_travel_seconds"]), (&json!(true), &json!(86_400)));
    assert_eq!(lakehouse.run(&with(&["maintain", "--once"])).await.stdout, "nothing is to be done\n");

    // The history is a table like any other.
    let mut books = Books::open().await;
    let asked = "SELECT operation || ' ' || trigger || ' ' || result FROM t WHERE table_name = 'app.orders' ORDER BY 1";
    let told = books.sql(site, RUNS, None, asked).await;
    assert!(told.len() == 2 && told[0].contains("cleaning age landed"), "{told:?}");
    assert!(told[1].contains("compaction small-files landed"), "{told:?}");
    let rows = lakehouse.ask(&["rows", RUNS, "--where", "operation = 'compaction'"]).await;
    assert_eq!(rows["rows"].as_array().map(Vec::len), Some(2), "one of the mirror, one of its history: {rows}");
    assert_eq!(entry(&lakehouse.ask(&["tables"]).await, RUNS)["kind"], "maintenance");
    assert_eq!(lakehouse.ask(&["snapshots", RUNS]).await["snapshots"][0]["kind"], "maintenance");

    // The worker goes on where the rows stand now.
    work(&live, 7, 3).await;
    site.assert_equal().await;
    let status = lakehouse.ask(&["status"]).await;
    assert_eq!((&status["pipelines"][0]["epoch"], &status["pipelines"][0]["state"]), (&json!(1), &json!("streaming")));
    assert!(!worker.stderr().contains("resumes from its cut"), "{}", worker.stderr());
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_run_maintains_beside_replication() {
    let cluster = Cluster::start(Options::default()).await;
    let catalog = "path = \"lake/catalog.db\"\nwarehouse = \"lake/warehouse\"\n\
                   [maintenance]\nevery = \"1s\"\nsmall_files = 2\n";
    let site = Site::on(&cluster, catalog, &[("app", "postgres", "")]);
    let live = Live { cluster, site };
    live.sql("CREATE TABLE orders (id bigint PRIMARY KEY, state text)").await;
    let worker = live.site.lakehouse.spawn(&["run"]);
    live.site.caught_up().await;
    for from in (1..).step_by(3).take(10) {
        work(&live, from, 3).await;
        let tables = live.site.lakehouse.ask(&["tables"]).await;
        if tables["tables"].as_array().expect("tables").iter().any(|table| table["table"] == RUNS) {
            break;
        }
    }
    let told = live.site.lakehouse.ask(&["rows", RUNS, "--select", "operation,result"]).await;
    assert!(told["rows"].as_array().is_some_and(|rows| !rows.is_empty()), "{told}");
    live.site.assert_equal().await;
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_no_pipelines_is_left_alone() {
    let installation = lake::installation().await;
    for verb in [&["maintain", "--once", "--table"][..], &["maintain", "--dry-run", "--table"], &["health"]] {
        for table in ["app.nope", "lakehouse_control.app"] {
            let answer = installation.json(&[verb, &[table]].concat());
            assert_eq!(answer.error(), (1, "TABLE_UNKNOWN".to_owned()), "{verb:?} {table}");
        }
    }
    let health = installation.ask(&["health"]);
    let names: Vec<&Value> = health["tables"].as_array().expect("tables").iter().map(|table| &table["table"]).collect();
    assert_eq!(names, [&json!("app.orders"), &json!("app.orders_history")]);
    let one = installation.run(&["health", "app.orders"]);
    assert!(one.text().contains("equality deletes") && one.text().contains("of 100"), "{one:?}");
    let owner = json!({"compact": "self", "expire": "self", "clean": "self"});
    assert_eq!((&health["tables"][0]["owner"], &health["tables"][0]["owner_drift"]), (&owner, &json!(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duty_of_nobody_is_nobodys() {
    let installation = lake::installation().await;
    let idle = ["--set", SOON, "--set", "maintenance.owner=none", "maintain", "--once"];
    assert_eq!(installation.run(&idle).text(), "nothing is to be done\n");
    let ours = ["--set", SOON, "maintain", "--once", "--table", "app.orders"];
    assert!(installation.run(&ours).text().contains("compaction"));
    assert_eq!(installation.ask(&["fsck"])["verdict"], "sound");
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_for_spark_are_told_or_run() {
    let installation = lake::installation().await;
    let owner = ["--set", SOON, "--set", "maintenance.owner=spark", "maintain"];
    let told = installation.ask(&[&owner[..], &["--dry-run", "--table", "app.orders"]].concat());
    let spark = &entry(&told, "app.orders")["spark"];
    let statement = spark["statements"][0].as_str().expect("a statement").to_owned();
    let call = "CALL lakehouse.system.rewrite_data_files(table => 'app.orders', options => map(";
    assert!(statement.starts_with(call) && statement.contains("'min-input-files', '3'"), "{told}");
    assert_eq!(entry(&told, "app.orders")["plan"]["rewrites"], json!([]), "not ours to do: {told}");
    let printed = installation.run(&[&owner[..], &["--once"]].concat());
    assert!(printed.text().contains(&format!("{statement};\n")), "{printed:?}");

    let command = |script: &str| format!("maintenance.spark.command=[\"sh\", \"-c\", '{script}', \"spark\"]");
    let run = |script: &str| {
        let command = command(script);
        installation.json(&[&["--set", &command], &owner[..], &["--once", "--table", "app.orders"]].concat())
    };
    let ran = run("cat $1 > seen.sql");
    assert_eq!((ran.code, &entry(&ran.json(), "app.orders")["spark"]["submitted"]), (0, &json!(true)), "{ran:?}");
    let seen = fs::read_to_string(installation.path().join("seen.sql")).expect("the script has run");
    assert!(seen.starts_with(&statement) && seen.trim_end().ends_with(';'), "{seen}");
    let failed = run("exit 3");
    assert_eq!((failed.code, &entry(&failed.json(), "app.orders")["code"]), (1, &json!("SPARK_FAILED")), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_maintains_stops_when_told() {
    let installation: Installation = lake::installation().await;
    let mut role = installation.spawn(&["--set", SOON, "maintain"]);
    until("the first pass has been recorded", || {
        installation.path().join("lake/warehouse/lakehouse_control/maintenance_runs/metadata").exists()
    })
    .await;
    let told = std::process::Command::new("kill").args(["-TERM", &role.id().to_string()]).status();
    assert!(told.expect("kill starts").success());
    assert_eq!(role.wait().expect("it ends").code(), Some(0));
    assert_eq!(installation.ask(&["fsck"])["verdict"], "sound");
}

/// A document with this status.
fn document(answer: &Exchange, status: u16) -> Value {
    assert_eq!(answer.status(), status, "{}", text(answer));
    serde_json::from_slice(&answer.content()).expect("JSON")
}

/// How long a pass over a small lake may take.
const PASS: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_is_shown_asked_for_and_looked_at_over_http() {
    let section = "[audit]\nfile = \"audit.jsonl\"\n\
                   [maintenance]\nsmall_files = 2\nhourly_tags = \"0s\"\ndaily_tags = \"0s\"\n";
    let installation = lake::installation_with(&format!("{section}{}", tokens()), &[]).await;
    let service = Service::start(&installation).await;
    let operator = [("authorization", "Bearer operator-token")];
    let (reader, narrow) = ([("authorization", "Bearer reader-token")], [("authorization", "Bearer narrow-token")]);
    let runs = "/v1/maintenance/runs";
    assert_eq!(document(&service.send("GET", runs, &reader, "").await, 200), json!({"runs": []}));

    // What would be done is what the command line says, and nothing is done.
    let orders = r#"{"tables":["app.orders"]}"#;
    let planned = document(&service.send("POST", "/v1/maintenance", &operator, orders).await, 200);
    let told = installation.ask(&["maintain", "--dry-run", "--table", "app.orders"]);
    let plan = &entry(&planned, "app.orders")["plan"];
    assert_eq!(plan["rewrites"], entry(&told, "app.orders")["plan"]["rewrites"]);
    assert_eq!(plan["rewrites"].as_array().map(Vec::len), Some(1), "{plan}");
    assert_eq!(document(&service.send("GET", runs, &reader, "").await, 200), json!({"runs": []}));

    // A pass goes on behind its answer.
    let wanted = r#"{"tables":["app.orders"],"dry_run":false,"reason":"before the report"}"#;
    let begun = service.send("POST", "/v1/maintenance", &operator, wanted).await;
    let id = document(&begun, 202)["id"].as_str().expect("an id").to_owned();
    let address = format!("{runs}/{id}");
    assert_eq!(begun.header("location"), Some(address.as_str()));
    let wait = async {
        loop {
            let pass = document(&service.send("GET", &address, &operator, "").await, 200);
            match pass["state"].as_str() {
                Some("running") => tokio::time::sleep(Duration::from_millis(20)).await,
                _ => return pass,
            }
        }
    };
    let pass = tokio::time::timeout(PASS, wait).await.expect("an end");
    let expected = (&json!("done"), &json!("operator"), &json!("before the report"), &Value::Null);
    assert_eq!((&pass["state"], &pass["by"], &pass["reason"], &pass["code"]), expected, "{pass}");
    let snapshot = &entry(&pass, "app.orders")["outcome"]["rewrites"][0]["snapshot_id"];
    assert!(snapshot.is_string() && pass["ended_at"].is_string(), "{pass}");
    // What it has done and measured is counted.
    let metrics = exchange("GET", &format!("{}/metrics", service.metrics), &[], "").await.expect("metrics");
    for line in [
        "lakehouse_maintenance_runs_total{op=\"compaction\",result=\"landed\"} 1\n",
        "lakehouse_maintenance_owner_drift{table=\"app.orders\"} 0\n",
        "lakehouse_table_small_files{table=\"app.orders\"} 1.0\n",
        "lakehouse_table_delete_files{table=\"app.orders\",kind=\"equality\"} 0\n",
    ] {
        assert!(text(&metrics).contains(line), "{line}: {}", text(&metrics));
    }
    // Who may not see all of it sees nothing of it.
    assert_eq!(problem(&service.send("GET", &address, &narrow, "").await), (404, "RUN_UNKNOWN".to_owned()));

    let history = document(&service.send("GET", runs, &reader, "").await, 200);
    let step = &history["runs"][0];
    let expected = (&json!("app.orders"), &json!("compaction"), &json!("landed"), snapshot);
    assert_eq!((&step["table"], &step["operation"], &step["result"], &step["snapshot_id"]), expected, "{history}");
    let rows = installation.ask(&["rows", RUNS]);
    assert_eq!(step["started_at"].as_str().map(str::len), Some(24), "{history}");
    assert_eq!(history["runs"].as_array().map(Vec::len), rows["rows"].as_array().map(Vec::len), "{rows}");
    assert_eq!(document(&service.send("GET", runs, &narrow, "").await, 200), json!({"runs": []}));
    let of_others = format!("{runs}?table=app.orders");
    assert_eq!(problem(&service.send("GET", &of_others, &narrow, "").await), (403, "FORBIDDEN".to_owned()));
    let none = document(&service.send("GET", &format!("{runs}?table=app.orders_history"), &reader, "").await, 200);
    assert_eq!(none, json!({"runs": []}));
    for limit in ["0", "1001", "x"] {
        let answer = service.send("GET", &format!("{runs}?limit={limit}"), &reader, "").await;
        assert_eq!(problem(&answer), (400, "REQUEST_INVALID".to_owned()), "{limit}");
    }

    let (entries, all) = entries(&installation);
    let told: Vec<_> = entries
        .iter()
        .map(|entry| ["kind", "action", "subject"].map(|key| entry[key].as_str().unwrap_or("-")))
        .collect();
    assert!(told.contains(&["intent", "maintain", id.as_str()]), "{all}");
    let outcome = entries.iter().find(|entry| entry["kind"] == "outcome").expect("an outcome");
    assert_eq!(outcome["detail"], json!({"failed": [], "code": null}), "{all}");
}
