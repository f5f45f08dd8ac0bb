//! What operators do over HTTP, by the real binary while a worker follows its source: a rollback is shown, confirmed on what
//! was shown and once only, and undone or replayed; a pipeline stands still and goes on; a table is copied anew; mirrors are
//! verified.
//!
//! Which caller may call what, and what is refused before anything is looked at, is in `http.rs`.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::live::{DEADLINE, Live, stop};
use serde_json::{Value, json};
use testkit::http::{Exchange, exchange};
use testkit::lakehouse::Process;
use testkit::postgres::Options;

/// An audit trail, and SHA-256 of `operator-token`, `second-token` and `foreign-token`.
const TOKENS: &str = r#"
[audit]
file = "audit.jsonl"
[api]
[api.auth.tokens.operator]
sha256 = "0850123315d21ab90f4f7236408a52ef6dbd6a02a6550e5c10dc73f4d993680e"
role = "operator"
[api.auth.tokens.second]
sha256 = "7a35833597e6687c599a0988b7a53b9b6a7ec18b88ca2a8e60f3265c8be6d527"
role = "operator"
[api.auth.tokens.foreign]
sha256 = "235f92570efc97561c766e038aa69ebdc21edd7ba1b762f4fb23202580618cd4"
role = "operator"
tables = ["app.beside"]
"#;
const VERIFY: &str = "/v1/pipelines/app/verify";
const POLL: Duration = Duration::from_millis(100);
/// Longer than a batch that was under way takes to land: its interval is a second.
const STILL: Duration = Duration::from_secs(4);

/// A site whose worker follows two tables, and a service beside it.
pub(crate) struct Scene {
    pub(crate) service: Process,
    pub(crate) uri: String,
    pub(crate) live: Live,
}

/// Status and body.
pub(crate) type Answer = (u16, Value);

impl Scene {
    pub(crate) async fn begin() -> (Self, Process) {
        let live = Live::new(Options::default()).await;
        let config = live.site.lakehouse.config();
        let text = fs::read_to_string(&config).expect("a configuration");
        live.site.lakehouse.configure(&format!("{text}{TOKENS}"));
        live.sql(
            "CREATE TABLE t (id int8 PRIMARY KEY, n int8 NOT NULL);
             CREATE TABLE beside (id int8 PRIMARY KEY, n int8 NOT NULL);
             INSERT INTO t SELECT n, 0 FROM generate_series(1, 100) n;
             INSERT INTO beside SELECT n, 0 FROM generate_series(1, 10) n",
        )
        .await;
        let worker = live.site.start();
        live.site.caught_up().await;
        let (service, uri) = serve(&live).await;
        (Self { service, uri, live }, worker)
    }

    /// The service is killed and started anew: it has forgotten what it had in memory.
    async fn restart(&mut self) {
        self.service.kill().await;
        (self.service, self.uri) = serve(&self.live).await;
    }

    async fn call(&self, token: &str, method: &str, target: &str, more: &[(&str, &str)], body: &Value) -> Exchange {
        let authorization = format!("Bearer {token}-token");
        let mut headers = vec![("authorization", authorization.as_str()), ("content-type", "application/json")];
        headers.extend(more);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = exchange(method, &format!("{}{target}", self.uri), &headers, &body).await;
        answer.unwrap_or_else(|error| panic!("{method} {target}: {error}"))
    }

    pub(crate) async fn get(&self, target: &str) -> Value {
        let answer = self.call("operator", "GET", target, &[], &Value::Null).await;
        assert_eq!(answer.status(), 200, "{target}: {}", document(&answer));
        document(&answer)
    }

    pub(crate) async fn post(&self, token: &str, target: &str, body: Value) -> Answer {
        let answer = self.call(token, "POST", target, &[], &body).await;
        (answer.status(), document(&answer))
    }

    async fn plan(&self, snapshot: &str) -> Value {
        let wanted = json!({"pipeline": "app", "tables": ["app.t"], "snapshot_id": snapshot});
        let answer = self.call("operator", "POST", "/v1/rollbacks", &[], &wanted).await;
        let plan = document(&answer);
        assert_eq!((answer.status(), answer.header("etag")), (200, plan["etag"].as_str()), "{plan}");
        plan
    }

    /// Confirms a plan; `headers` are `If-Match` and `Idempotency-Key`.
    async fn confirm(&self, token: &str, plan: &Value, headers: [Option<&str>; 2], reason: &str) -> Exchange {
        let names = ["if-match", "idempotency-key"];
        let headers: Vec<_> = names.into_iter().zip(headers).filter_map(|(name, value)| Some((name, value?))).collect();
        let target = format!("/v1/rollbacks/{}/confirm", plan["id"].as_str().expect("an id"));
        self.call(token, "POST", &target, &headers, &json!({"reason": reason})).await
    }

    /// Confirms a plan as the operator, and does not wait for the answer.
    fn confirm_and_leave(&self, plan: &Value, key: &str, reason: &str) {
        let address = self.uri.trim_start_matches("http://");
        let (id, tag) = (plan["id"].as_str().expect("an id"), plan["etag"].as_str().expect("a tag"));
        let body = json!({"reason": reason}).to_string();
        let request = format!(
            "POST /v1/rollbacks/{id}/confirm HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer operator-token\r\n\
             if-match: {tag}\r\nidempotency-key: {key}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut client = TcpStream::connect(address).expect("a connection");
        client.write_all(request.as_bytes()).expect("sent");
    }

    /// The operation that has begun by this confirmation, at its end.
    pub(crate) async fn rolled_back(&self, plan: &Value, key: &str) -> Value {
        let answer = self.confirm("operator", plan, [plan["etag"].as_str(), Some(key)], "test").await;
        let begun = document(&answer);
        let address = format!("/v1/operations/{}", begun["id"].as_str().unwrap_or_default());
        assert_eq!((answer.status(), answer.header("location")), (202, Some(address.as_str())), "{begun}");
        let wait = async {
            loop {
                let operation = self.get(&address).await;
                match operation["stage"].as_str() {
                    Some("forward") => tokio::time::sleep(POLL).await,
                    _ => return operation,
                }
            }
        };
        let operation = tokio::time::timeout(DEADLINE, wait).await.expect("an end");
        assert_eq!(operation["stage"], "rolled_back", "{operation}");
        operation
    }

    /// Until the audit trail says of the operation that the verb has brought it to this stage.
    async fn audited(&self, verb: &str, operation: &str, stage: &str) {
        let file = self.live.site.lakehouse.config().with_file_name("audit.jsonl");
        let says = |line: &str| {
            let entry: Value = serde_json::from_str(line).expect("an entry");
            let of = |value: &Value| entry["principal"] == "operator" && value["code"].is_null();
            entry["kind"] == "outcome"
                && entry["action"] == verb
                && of(&entry["detail"])
                && entry["detail"]["operation"] == operation
                && entry["detail"]["stage"] == stage
                && entry["detail"]["snapshots"]["app.t"].is_string()
        };
        let trail = || fs::read_to_string(&file).expect("an audit trail");
        let wait = async {
            while !trail().lines().any(says) {
                tokio::time::sleep(POLL).await;
            }
        };
        let told = tokio::time::timeout(DEADLINE, wait).await;
        told.unwrap_or_else(|_| panic!("no outcome of {verb} at {stage}:\n{}", trail()));
        let verified = self.live.site.lakehouse.ask(&["audit", "verify"]).await;
        assert_eq!(verified["verdict"], "sound", "{verified}");
    }

    /// Asks for a verification, and gives its address.
    async fn verify(&self, token: &str, wanted: Value) -> String {
        let answer = self.call(token, "POST", VERIFY, &[], &wanted).await;
        let begun = document(&answer);
        let address = format!("/v1/verifications/{}", begun["id"].as_str().unwrap_or_default());
        assert_eq!((answer.status(), answer.header("location")), (202, Some(address.as_str())), "{begun}");
        address
    }

    /// A verification that has come to a verdict.
    async fn verified(&self, address: &str) -> Value {
        let wait = async {
            loop {
                let verification = self.get(address).await;
                match verification["state"].as_str() {
                    Some("running") => tokio::time::sleep(POLL).await,
                    _ => return verification,
                }
            }
        };
        let verification = tokio::time::timeout(DEADLINE, wait).await.expect("an end");
        assert_eq!((&verification["state"], &verification["code"]), (&json!("done"), &Value::Null), "{verification}");
        verification
    }

    /// A transaction at the source that the lake has; its number there.
    async fn change(&self, sql: &str) -> String {
        let number = self.live.transaction(sql).await;
        self.live.site.caught_up().await;
        number
    }

    async fn head(&self) -> String {
        self.get("/v1/tables/app/t").await["snapshot_id"].as_str().expect("a snapshot").to_owned()
    }

    /// Of `t`, by id.
    async fn rows(&self) -> Vec<(i64, i64)> {
        let told = self.get("/v1/tables/app/t/rows?select=id,n").await;
        let number = |value: &Value| value.as_i64().unwrap_or_else(|| panic!("{value} is no number"));
        let row = |row: &Value| (number(&row["id"]), number(&row["n"]));
        let mut rows: Vec<_> = told["rows"].as_array().expect("rows").iter().map(row).collect();
        rows.sort_unstable();
        rows
    }

    /// State and code of `t`, as the service tells it.
    async fn state(&self) -> (String, Option<String>) {
        let pipeline = self.get("/v1/pipelines/app").await;
        let tables = pipeline["tables"].as_array().expect("tables");
        let table = tables.iter().find(|table| table["table"] == "app.t").expect("a table");
        (table["state"].as_str().expect("a state").to_owned(), table["code"].as_str().map(str::to_owned))
    }

    /// Until `t` takes its changes, all that there are.
    async fn streaming(&self) {
        let wait = async {
            while self.state().await != ("streaming".to_owned(), None) {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.expect("streaming");
        self.live.site.caught_up().await;
    }
}

/// A service beside the worker, and its address.
pub(crate) async fn serve(live: &Live) -> (Process, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    drop(listener);
    let service = live.site.lakehouse.spawn(&["--set", &format!("api.listen={address}"), "serve"]);
    let uri = format!("http://{address}");
    let wait = async {
        while exchange("GET", &format!("{uri}/livez"), &[], "").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("the service answers");
    (service, uri)
}

fn document(answer: &Exchange) -> Value {
    serde_json::from_slice(&answer.content()).unwrap_or_default()
}

fn refused(answer: &Exchange) -> (u16, String) {
    code((answer.status(), document(answer)))
}

fn code((status, body): Answer) -> (u16, String) {
    (status, body["code"].as_str().unwrap_or_default().to_owned())
}

fn problem(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_shown_confirmed_once_and_undone() {
    let (mut scene, worker) = Scene::begin().await;
    let (target, before) = (scene.head().await, scene.rows().await);
    scene.change("UPDATE t SET n = n + 1 WHERE id <= 50; DELETE FROM t WHERE id > 90").await;
    let wrong = scene.rows().await;

    // What is shown is what the command line shows.
    let plan = scene.plan(&target).await;
    let shown = scene.live.site.lakehouse.ask(&["rollback", "app.t", "--snapshot", &target, "--dry-run"]).await;
    assert_eq!((&plan["tables"], &plan["pipeline"]), (&shown["tables"], &json!("app")), "{plan}");
    assert!(plan["expires_at"].as_str().is_some_and(|time| time.ends_with('Z')), "{plan}");

    // Not without what was seen and a key, not on another plan, not by somebody else.
    let tag = plan["etag"].as_str();
    for (token, headers, reason, expected) in [
        ("operator", [None, Some("k")], "test", problem(428, "PRECONDITION_REQUIRED")),
        ("operator", [tag, None], "test", problem(428, "PRECONDITION_REQUIRED")),
        ("operator", [tag, Some("")], "test", problem(400, "REQUEST_INVALID")),
        ("operator", [tag, Some("k")], "", problem(400, "REQUEST_INVALID")),
        ("operator", [Some("\"other\""), Some("k")], "test", problem(412, "PLAN_MOVED")),
        ("operator", [Some("*"), Some("k")], "test", problem(412, "PLAN_MOVED")),
        ("second", [tag, Some("k")], "test", problem(404, "PLAN_UNKNOWN")),
        ("foreign", [tag, Some("k")], "test", problem(404, "PLAN_UNKNOWN")),
    ] {
        let answer = scene.confirm(token, &plan, headers, reason).await;
        assert_eq!(refused(&answer), expected, "{token} {headers:?} {reason:?}");
    }
    assert_eq!(scene.get("/v1/operations").await, json!({"operations": []}));
    assert!(scene.rows().await == wrong, "nothing was changed");

    let operation = scene.rolled_back(&plan, "the-key").await;
    let id = operation["id"].as_str().expect("an id").to_owned();
    scene.audited("rollback", &id, "rolled_back").await;
    assert_eq!((&operation["by"], &operation["reason"]), (&json!("operator"), &json!("test")), "{operation}");
    assert_eq!(operation["tables"]["app.t"]["target"], json!(target), "{operation}");
    assert!(scene.rows().await == before, "not the target's rows");
    assert_eq!(scene.state().await, ("paused_diverged".to_owned(), Some("ROLLED_BACK".to_owned())));
    assert_eq!(scene.get("/v1/operations?pipeline=app").await["operations"], json!([operation]));
    let told = scene.live.site.lakehouse.ask(&["operations"]).await;
    assert_eq!((&told["operations"][0]["id"], &told["operations"][0]["request"]), (&json!(id), &Value::Null), "{told}");

    // Repeated, it is the same operation, also by a service that has forgotten the plan.
    for round in ["while the plan was known", "after a restart"] {
        let again = scene.confirm("operator", &plan, [tag, Some("the-key")], "test").await;
        assert_eq!((again.status(), &document(&again)["id"]), (202, &json!(id)), "{round}");
        let other = scene.confirm("operator", &plan, [tag, Some("the-key")], "another reason").await;
        assert_eq!(refused(&other), problem(422, "IDEMPOTENCY_REUSED"), "{round}");
        for (token, key) in [("operator", "another-key"), ("second", "the-key")] {
            let other = scene.confirm(token, &plan, [tag, Some(key)], "test").await;
            assert_eq!(refused(&other), problem(404, "PLAN_UNKNOWN"), "{round}, {token} {key}");
        }
        scene.restart().await;
    }
    assert_eq!(scene.get("/v1/operations").await["operations"].as_array().map(Vec::len), Some(1));

    // What its state does not allow, and who may not touch it.
    let undo = format!("/v1/operations/{id}/undo");
    let wanted = json!({"pipeline": "app", "tables": ["app.t"], "snapshot_id": scene.head().await});
    assert_eq!(code(scene.post("operator", "/v1/rollbacks", wanted.clone()).await), problem(409, "ROLLBACK_OPEN"));
    let abort = format!("/v1/operations/{id}/abort");
    assert_eq!(code(scene.post("operator", &abort, json!({"reason": "x"})).await), problem(409, "NOT_OPEN"));
    for (target, body) in [
        (undo.as_str(), json!({"reason": "x"})),
        ("/v1/rollbacks", wanted),
        ("/v1/rollbacks", json!({"pipeline": "app", "as_of": "2999-01-01"})),
        ("/v1/pipelines/app/pause", json!({"reason": "x"})),
        ("/v1/pipelines/app/resync", json!({"tables": ["app.beside", "app.t"], "reason": "x"})),
    ] {
        assert_eq!(code(scene.post("foreign", target, body).await), problem(403, "FORBIDDEN"), "{target}");
    }
    let hidden = scene.call("foreign", "GET", &format!("/v1/operations/{id}"), &[], &Value::Null).await;
    assert_eq!(refused(&hidden), problem(404, "OPERATION_UNKNOWN"));
    let listed = scene.call("foreign", "GET", "/v1/operations", &[], &Value::Null).await;
    assert_eq!(document(&listed), json!({"operations": []}));

    // Back to the rows before it.
    let (status, undone) = scene.post("operator", &undo, json!({"reason": "was right"})).await;
    assert_eq!((status, &undone["id"], &undone["turned"]), (202, &json!(id), &json!("was right")), "{undone}");
    scene.streaming().await;
    assert!(scene.rows().await == wrong, "not the rows before the rollback");
    scene.audited("undo", &id, "released").await;
    for verb in ["undo", "accept", "replay"] {
        let target = format!("/v1/operations/{id}/{verb}");
        let answer = scene.post("operator", &target, json!({"reason": "x"})).await;
        assert_eq!(code(answer), problem(409, "NOT_HELD"), "{verb}");
    }
    scene.live.site.assert_equal().await;
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_confirmed_on_what_it_has_shown_or_not_at_all() {
    let (scene, worker) = Scene::begin().await;
    let target = scene.head().await;
    scene.change("UPDATE t SET n = 1 WHERE id = 1").await;
    let plan = scene.plan(&target).await;
    let unwanted = scene.change("DELETE FROM t WHERE id BETWEEN 60 AND 70").await;
    let (head, rows) = (scene.head().await, scene.rows().await);
    let moved = scene.confirm("operator", &plan, [plan["etag"].as_str(), Some("k")], "test").await;
    assert_eq!(refused(&moved), problem(412, "TABLE_MOVED"), "{}", document(&moved));
    assert_eq!((scene.head().await, scene.rows().await), (head, rows));
    assert_eq!(scene.state().await, ("streaming".to_owned(), None));
    assert_eq!(scene.get("/v1/operations").await, json!({"operations": []}));

    // Looked at again it is confirmed; the key has begun nothing, so it is free. Then all comes back but one transaction.
    let plan = scene.plan(&target).await;
    // The first answer is lost; whether it had begun anything or not, there is one operation.
    scene.confirm_and_leave(&plan, "k", "test");
    let operation = scene.rolled_back(&plan, "k").await;
    assert_eq!(scene.get("/v1/operations").await, json!({"operations": [operation]}));
    let replay = format!("/v1/operations/{}/replay", operation["id"].as_str().expect("an id"));
    let other = scene.post("operator", &replay, json!({"reason": "x", "tables": ["app.beside"]})).await;
    assert_eq!(code(other), problem(404, "TABLE_UNKNOWN"));
    let (status, replayed) =
        scene.post("operator", &replay, json!({"reason": "without the delete", "without": [unwanted]})).await;
    assert_eq!((status, &replayed["id"]), (202, &operation["id"]), "{replayed}");
    scene.streaming().await;
    let rows = scene.rows().await;
    assert_eq!(rows.len(), 100, "the deleted rows are there");
    assert!(rows.contains(&(1, 1)) && rows.contains(&(65, 0)), "and what came before them");
    let pipeline = scene.get("/v1/pipelines/app").await;
    let tables = pipeline["tables"].as_array().expect("tables");
    let since: Vec<_> = tables.iter().map(|table| (&table["table"], table["diverged_since"].is_string())).collect();
    assert_eq!(since, [(&json!("app.beside"), false), (&json!("app.t"), true)], "{pipeline}");

    // One more, and the list in pages: what happens to an operation between two of them moves none.
    let plan = scene.plan(&target).await;
    let second = scene.rolled_back(&plan, "another-key").await;
    let page = scene.get("/v1/operations?page_size=1").await;
    assert_eq!(
        (page["operations"].as_array().map(Vec::len), &page["operations"][0]["id"]),
        (Some(1), &operation["id"])
    );
    let undo = format!("/v1/operations/{}/undo", second["id"].as_str().expect("an id"));
    let (status, undone) = scene.post("operator", &undo, json!({"reason": "test"})).await;
    assert_eq!(status, 202, "{undone}");
    let token = page["next_page_token"].as_str().expect("a token");
    let rest = scene.get(&format!("/v1/operations?page_size=1&page_token={token}")).await;
    assert_eq!((&rest["operations"][0]["id"], &rest["next_page_token"]), (&second["id"], &Value::Null), "{rest}");
    scene.streaming().await;
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_stands_still_and_goes_on_and_a_table_is_copied_anew() {
    let (scene, worker) = Scene::begin().await;
    let (status, paused) = scene.post("operator", "/v1/pipelines/app/pause", json!({"reason": "a look"})).await;
    assert_eq!((status, &paused["paused"], &paused["state"]), (200, &json!("a look"), &json!("paused")), "{paused}");
    scene.live.sql("UPDATE t SET n = 8").await;
    tokio::time::sleep(STILL).await;
    let before = scene.rows().await;
    scene.live.sql("UPDATE t SET n = 9").await;
    tokio::time::sleep(STILL).await;
    assert!(scene.rows().await == before, "a paused pipeline has written");
    let (status, resumed) = scene.post("operator", "/v1/pipelines/app/resume", json!({})).await;
    assert_eq!((status, &resumed["paused"]), (200, &Value::Null), "{resumed}");
    scene.streaming().await;
    assert!(scene.rows().await.iter().all(|row| row.1 == 9));

    let wanted = json!({"tables": ["app.t"], "reason": "test"});
    let (status, requested) = scene.post("operator", "/v1/pipelines/app/resync", wanted).await;
    assert_eq!((status, &requested["tables"][0]["table"]), (202, &json!("app.t")), "{requested}");
    scene.streaming().await;
    let snapshots = scene.get("/v1/tables/app/t/snapshots").await;
    let copied = |one: &&Value| one["kind"] == "copy" && !one["to"].is_null();
    let copies = snapshots["snapshots"].as_array().expect("snapshots").iter().filter(copied).count();
    assert_eq!(copies, 2, "{snapshots}");
    scene.live.site.assert_equal().await;
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_verified_and_one_that_is_held_differs() {
    let (scene, worker) = Scene::begin().await;
    let address = scene.verify("operator", json!({"reason": "after the load"})).await;
    let verification = scene.verified(&address).await;
    for (key, expected) in [("pipeline", "app"), ("by", "operator"), ("reason", "after the load")] {
        assert_eq!(verification[key], expected, "{verification}");
    }
    let report = &verification["report"];
    assert_eq!((&report["verdict"], report["tables"].as_array().map(Vec::len)), (&json!("equal"), Some(2)), "{report}");
    // The command line says the same, at a later position.
    let told = scene.live.site.lakehouse.ask(&["verify"]).await;
    for key in ["verdict", "against", "tables"] {
        assert_eq!(report[key], told[key], "{report}");
    }

    // Each for their own tables; and nothing but mirrors.
    for wanted in [json!({}), json!({"tables": ["app.beside", "app.t"]})] {
        assert_eq!(code(scene.post("foreign", VERIFY, wanted).await), problem(403, "FORBIDDEN"));
    }
    let look = async |address: &str| scene.call("foreign", "GET", address, &[], &Value::Null).await;
    assert_eq!(refused(&look(&address).await), problem(404, "RUN_UNKNOWN"));
    let own = scene.verify("foreign", json!({"tables": ["app.beside"]})).await;
    let verification = scene.verified(&own).await;
    assert_eq!(document(&look(&own).await), verification);
    assert_eq!(verification["report"]["tables"].as_array().map(Vec::len), Some(1), "{verification}");
    let history = scene.post("operator", VERIFY, json!({"tables": ["app.t_history"]})).await;
    assert_eq!(code(history), problem(404, "TABLE_UNKNOWN"));

    // While a table is held at older rows it is not as its source.
    let target = scene.head().await;
    scene.change("UPDATE t SET n = n + 1 WHERE id <= 50; DELETE FROM t WHERE id > 90").await;
    scene.rolled_back(&scene.plan(&target).await, "k").await;
    let verification = scene.verified(&scene.verify("operator", json!({})).await).await;
    let report = &verification["report"];
    let counts = |table: &Value| {
        let keys = ["table", "verdict", "only_in_source", "only_in_mirror", "differing"];
        keys.map(|key| table[key].clone())
    };
    let tables: Vec<_> = report["tables"].as_array().expect("tables").iter().map(counts).collect();
    let expected = [
        [json!("app.beside"), json!("equal"), json!(0), json!(0), json!(0)],
        [json!("app.t"), json!("different"), json!(0), json!(10), json!(50)],
    ];
    assert_eq!((&report["verdict"], &tables[..]), (&json!("different"), &expected[..]), "{report}");
    let samples = report["tables"][1]["samples"].as_array().expect("samples");
    let is_digest = |key: &str| key.len() == 32 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(samples.len() == 20 && samples.iter().all(|one| one["key"].as_str().is_some_and(is_digest)), "{report}");

    let trail = scene.live.site.lakehouse.config().with_file_name("audit.jsonl");
    let trail = fs::read_to_string(trail).expect("an audit trail");
    let entries = trail.lines().map(|line| serde_json::from_str::<Value>(line).expect("an entry"));
    let of_verify: Vec<_> = entries.filter(|entry| entry["action"] == "verify").collect();
    let told: Vec<_> = of_verify.iter().map(|entry| (&entry["kind"], &entry["detail"]["verdict"])).collect();
    let (intent, outcome) = (json!("intent"), json!("outcome"));
    let (none, [equal, different]) = (Value::Null, ["equal", "different"].map(Value::from));
    let [first, second, third] = [&equal, &equal, &different].map(|verdict| [(&intent, &none), (&outcome, verdict)]);
    assert_eq!(told, [first, second, third].concat(), "{trail}");
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_is_verified_once_at_a_time() {
    let (scene, worker) = Scene::begin().await;
    stop(worker).await;
    // Without a worker no cut comes to where the source is, so the verification waits for one.
    scene.live.sql("UPDATE t SET n = 1").await;
    let address = scene.verify("operator", json!({})).await;
    let other = scene.post("second", VERIFY, json!({"tables": ["app.beside"]})).await;
    assert_eq!(code(other), problem(409, "VERIFY_RUNNING"));
    let running = scene.get(&address).await;
    assert_eq!((&running["state"], &running["report"]), (&json!("running"), &Value::Null), "{running}");
    let worker = scene.live.site.start();
    assert_eq!(scene.verified(&address).await["report"]["verdict"], "equal");
    let next = scene.verify("second", json!({"tables": ["app.beside"]})).await;
    assert_eq!(scene.verified(&next).await["report"]["verdict"], "equal");
    stop(worker).await;
}
