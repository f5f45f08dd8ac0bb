//! The HTTP service of the real binary, over loopback: what it answers to whom, and that rows are those of the command line.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Child;
use std::time::{Duration, Instant};

use crate::openapi;
use crate::support::{Installation, lake};
use iceberg::TableUpdate;
use lakehouse_core::catalog::{Catalog, SqliteCatalog, Swap};
use lakehouse_core::schema::TableName;
use lakehouse_core::storage::Storage;
use serde_json::{Value, json};
use testkit::http::{Exchange, exchange};

/// Longer than a start takes.
const START: Duration = Duration::from_secs(30);
/// Within which a scan has noticed that its client has left: less than it waits for one that is slow (10 s).
pub(crate) const LEFT: Duration = Duration::from_secs(8);

/// SHA-256 of `reader-token`, `operator-token`, `admin-token`, `narrow-token` and `old-token`.
const TOKENS: [(&str, &str, &str); 5] = [
    ("reader", "ba5005a40cf5212e4ac0190104cc127edab013294bb71279a975b27a80982d45", "role = \"reader\""),
    ("operator", "0850123315d21ab90f4f7236408a52ef6dbd6a02a6550e5c10dc73f4d993680e", "role = \"operator\""),
    ("admin", "10a4c7c9fc5206d6f36dc6944a81bb6f4a3cb0e25014ae3b12e6c3e52712292a", "role = \"admin\""),
    (
        "narrow",
        "24fd4bd1faba5000f7381c1a788fa9b48d0d17280fc3e3dda83e4193184c8158",
        "role = \"admin\"\ntables = [\"other.*\", \"app.nothing\"]",
    ),
    (
        "old",
        "9bdf10a691a1cfda89d9ff66629d1609ab176cec9b6a3146a8929f28937a9fce",
        "role = \"admin\"\nexpires = \"2020-01-01T00:00:00Z\"",
    ),
];

/// Every address with a table in it, and the list.
const ROUTES: [&str; 7] = [
    "/v1/tables",
    "/v1/tables/app/orders",
    "/v1/tables/app/orders/snapshots",
    "/v1/tables/app/orders/refs",
    "/v1/tables/app/orders/health",
    "/v1/tables/app/orders/rows",
    "/v1/tables/app/orders/diff?from=main&to=main",
];

/// What is shown of the caller, pipelines and operations, and what operators do to them: method, address, body, and the statuses that a
/// reader, an operator and an admin for other tables get. The last one copies a table anew, and so takes it out of the cut.
const OPERATING: [(&str, &str, &str, [u16; 3]); 26] = [
    ("GET", "/v1/me", "", [200, 200, 200]),
    ("GET", "/v1/tables/app/orders/history", "", [200, 200, 403]),
    ("POST", "/v1/tables/app/orders/rows:query", "{}", [200, 200, 403]),
    ("GET", "/v1/tables/app/orders/quarantine", "", [200, 200, 403]),
    ("POST", "/v1/tables/app/orders/quarantine:replay", r#"{"reason":"test"}"#, [403, 404, 403]),
    ("GET", "/v1/pipelines", "", [200, 200, 200]),
    ("GET", "/v1/pipelines/app", "", [200, 200, 200]),
    ("GET", "/v1/operations", "", [200, 200, 200]),
    ("GET", "/v1/operations?pipeline=app", "", [200, 200, 200]),
    ("GET", "/v1/operations/none", "", [404, 404, 404]),
    ("POST", "/v1/pipelines/app/pause", r#"{"reason":"test"}"#, [403, 200, 403]),
    ("POST", "/v1/pipelines/app/resume", "{}", [403, 200, 403]),
    ("POST", "/v1/rollbacks", r#"{"pipeline":"app","cut":"0/64"}"#, [403, 200, 403]),
    ("POST", "/v1/rollbacks/none/confirm", r#"{"reason":"test"}"#, [403, 428, 428]),
    ("POST", "/v1/operations/none/undo", r#"{"reason":"test"}"#, [403, 404, 404]),
    ("POST", "/v1/operations/none/abort", r#"{"reason":"test"}"#, [403, 404, 404]),
    ("POST", "/v1/operations/none/accept", r#"{"reason":"test"}"#, [403, 404, 404]),
    ("POST", "/v1/operations/none/replay", r#"{"reason":"test"}"#, [403, 404, 404]),
    ("PUT", "/v1/tables/app/orders/tags/v1", r#"{"cut":"0/64"}"#, [403, 428, 403]),
    ("DELETE", "/v1/tables/app/orders/tags/v1", "", [403, 428, 403]),
    ("GET", "/v1/maintenance/runs", "", [200, 200, 200]),
    ("GET", "/v1/maintenance/runs/none", "", [403, 404, 404]),
    ("POST", "/v1/maintenance", r#"{"tables":["app.orders"]}"#, [403, 200, 403]),
    ("POST", "/v1/pipelines/app/verify", r#"{"tables":["app.order"]}"#, [403, 404, 403]),
    ("GET", "/v1/verifications/none", "", [403, 404, 404]),
    ("POST", "/v1/pipelines/app/resync", r#"{"tables":["app.orders"],"reason":"test"}"#, [403, 202, 403]),
];

/// A serving process, which ends with this.
pub(crate) struct Service {
    process: Child,
    pub(crate) uri: String,
    pub(crate) metrics: String,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.process.kill().expect("the service was running");
        self.process.wait().expect("the service has ended");
    }
}

pub(crate) fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

impl Service {
    pub(crate) async fn start(installation: &Installation) -> Self {
        let service = Self::spawn(installation);
        let begun = Instant::now();
        // Both addresses are had before either answers, and this one has no TLS unless it is asked for.
        while exchange("GET", &format!("{}/livez", service.metrics), &[], "").await.is_err() {
            assert!(begun.elapsed() < START, "the service does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        service
    }

    /// Not waited for.
    pub(crate) fn spawn(installation: &Installation) -> Self {
        let (listen, metrics) = (free_address(), free_address());
        let (api, other) = (format!("api.listen={listen}"), format!("api.metrics_listen={metrics}"));
        let process = installation.spawn(&["--set", &api, "--set", &other, "serve"]);
        Self { process, uri: format!("http://{listen}"), metrics: format!("http://{metrics}") }
    }

    pub(crate) async fn get(&self, target: &str, headers: &[(&str, &str)]) -> Exchange {
        self.call("GET", target, headers).await
    }

    async fn call(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Exchange {
        self.send(method, target, headers, "").await
    }

    pub(crate) async fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Exchange {
        let answer = exchange(method, &format!("{}{target}", self.uri), headers, body).await;
        let answer = answer.unwrap_or_else(|error| panic!("{method} {target}: {error}"));
        openapi::check_answer(method, target, &answer);
        answer
    }

    /// A JSON document with status 200.
    pub(crate) async fn ask(&self, target: &str) -> Value {
        let answer = self.get(target, &[]).await;
        assert_eq!(answer.status(), 200, "{target}: {}", text(&answer));
        serde_json::from_slice(&answer.content()).expect("JSON")
    }
}

pub(crate) fn text(answer: &Exchange) -> String {
    String::from_utf8(answer.content()).expect("text")
}

/// The stable code of an error, whose form is that of RFC 9457; below 500 the OpenAPI document knows it.
pub(crate) fn problem(answer: &Exchange) -> (u16, String) {
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{}", text(answer));
    let document: Value = serde_json::from_slice(&answer.content()).expect("JSON");
    for key in ["type", "title", "detail", "code", "request_id"] {
        assert!(document[key].as_str().is_some_and(|value| !value.is_empty()), "{key}: {document}");
    }
    assert_eq!(document["status"], json!(answer.status()));
    assert_eq!(document["request_id"].as_str(), answer.header("x-request-id"));
    match openapi::codes(answer.status()) {
        Some(codes) => assert!(codes.contains(&document["code"]), "{document}"),
        None => assert!(answer.status() >= 500, "{document}"),
    }
    (answer.status(), document["code"].as_str().expect("a code").to_owned())
}

pub(crate) async fn anonymous() -> Installation {
    lake::installation_with("[api]\nallow_anonymous = true\n", &[]).await
}

/// The configuration of all [`TOKENS`].
pub(crate) fn tokens() -> String {
    let token = |(name, digest, more): &(&str, &str, &str)| {
        format!("[api.auth.tokens.{name}]\nsha256 = \"{digest}\"\n{more}\n")
    };
    TOKENS.iter().map(token).collect()
}

async fn with_tokens() -> Installation {
    lake::installation_with(&tokens(), &[]).await
}

pub(crate) fn catalog(installation: &Installation) -> SqliteCatalog {
    let lake = installation.path().join("lake");
    SqliteCatalog::open(&lake.join("catalog.db"), &lake.join("warehouse"), Storage::local()).expect("the catalog")
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_those_of_the_command_line_in_every_format() {
    let installation = anonymous().await;
    let service = Service::start(&installation).await;
    for (query, arguments) in [
        ("", &[][..]),
        ("?cut=0/C8", &["--cut", "0/C8"]),
        ("?tag=main&select=amount,id", &["--tag", "main", "--select", "amount,id"]),
        ("?as_of=2999-01-01&limit=2", &["--as-of", "2999-01-01", "--limit", "2"]),
        (
            "?filter=%7B%22and%22:[%7B%22gt%22:%7B%22column%22:%22id%22,%22value%22:1%7D%7D,\
             %7B%22le%22:%7B%22column%22:%22amount%22,%22value%22:%220.99%22%7D%7D]%7D",
            &["--where", "id > 1 AND amount <= 0.99"],
        ),
    ] {
        let target = format!("/v1/tables/app/orders/rows{query}");
        for (accept, format) in
            [("text/csv", "csv"), ("application/x-ndjson", "ndjson"), ("application/vnd.apache.arrow.stream", "arrow")]
        {
            let answer = service.get(&target, &[("accept", accept)]).await;
            assert_eq!((answer.status(), answer.header("content-type")), (200, Some(accept)), "{target}");
            let told = installation.run(&[&["rows", "app.orders", "--format", format], arguments].concat());
            let mut expected = told.stdout.clone();
            if format == "ndjson" {
                let rows = told.text().lines().count();
                let consistency = if query.contains("cut=") { "cut" } else { "per_table" };
                let end = json!({"_status": "complete", "rows": rows, "consistency": consistency});
                expected.extend(format!("{end}\n").bytes());
            }
            assert_eq!(answer.content(), expected, "{target} as {format}");
        }
        let told = installation.json(&[&["rows", "app.orders"], arguments].concat());
        assert_eq!(service.get(&target, &[]).await.content(), told.stdout, "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_selector_chooses_the_state_and_headers_say_which() {
    let installation = anonymous().await;
    let service = Service::start(&installation).await;
    let told = installation.ask(&["snapshots", "app.orders"]);
    let first = &told["snapshots"][0];
    let id = first["snapshot_id"].as_str().expect("an id");
    let answer = service.get(&format!("/v1/tables/app/orders/rows?snapshot_id={id}&select=id,name"), &[]).await;
    assert_eq!(answer.header("snapshot-id"), Some(id));
    assert_eq!(answer.header("snapshot-timestamp"), first["committed_at"].as_str());
    assert_eq!(answer.header("consistency"), Some("per_table"));
    let sql = format!("SELECT \"id\", \"name\" FROM \"app\".\"orders\" FOR VERSION AS OF {id}");
    assert_eq!(answer.header("athena-sql"), Some(sql.as_str()));
    let document: Value = serde_json::from_slice(&answer.content()).expect("JSON");
    assert_eq!((document["rows"].as_array().map(Vec::len), &document["snapshot_id"]), (Some(3), &json!(id)));
    let cut = service.get("/v1/tables/app/orders/rows?cut=0/FF", &[]).await;
    assert_eq!((cut.header("consistency"), cut.header("cut")), (Some("cut"), Some("0/C8")));
    assert!(text(&cut).contains("\"cut\":{\"exact\":false,\"position\":\"0/C8\"}"), "{}", text(&cut));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_about_tables_is_that_of_the_command_line() {
    let installation = anonymous().await;
    let service = Service::start(&installation).await;
    assert_eq!(service.ask("/v1/tables").await, installation.ask(&["tables"]));
    assert_eq!(service.ask("/v1/tables/app/orders/snapshots").await, installation.ask(&["snapshots", "app.orders"]));
    let described = service.ask("/v1/tables/app/orders").await;
    assert_eq!(
        (&described["table"], &described["rows"], &described["key"]),
        (&json!("app.orders"), &json!(4), &json!(["id"]))
    );
    let columns: Vec<&Value> = described["columns"].as_array().expect("columns").iter().map(|c| &c["name"]).collect();
    assert_eq!(columns, ["id", "name", "amount", "token", "at"]);
    let references = service.ask("/v1/tables/app/orders/refs").await;
    assert_eq!(references["refs"][0]["snapshot_id"], described["snapshot_id"]);
    assert_eq!((&references["refs"][0]["name"], &references["refs"][0]["kind"]), (&json!("main"), &json!("branch")));
    let health = service.ask("/v1/tables/app/orders/health").await;
    assert_eq!(health["rows"], installation.ask(&["health", "app.orders"])["tables"][0]["rows"]);
    assert_eq!(problem(&service.get("/v1/tables/lakehouse_control/app", &[]).await), (404, "TABLE_UNKNOWN".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diff_is_that_of_the_command_line() {
    let installation = anonymous().await;
    let service = Service::start(&installation).await;
    let target = "/v1/tables/app/orders/diff?from=0/64&to=main";
    let told = installation.json(&["diff", "app.orders", "0/64", "main"]);
    assert_eq!(service.get(target, &[]).await.content(), told.stdout);
    let csv = service.get(target, &[("accept", "text/csv")]).await;
    assert_eq!(csv.content(), installation.run(&["diff", "app.orders", "0/64", "main", "--format", "csv"]).stdout);
    let lines = service.get(target, &[("accept", "application/x-ndjson")]).await;
    let last: Value = serde_json::from_str(text(&lines).lines().last().expect("a last line")).expect("JSON");
    assert_eq!(last, json!({"_status": "complete", "inserted": 2, "updated": 1, "deleted": 1}));
    let counts = service.ask(&format!("{target}&counts=true")).await;
    assert_eq!(counts, installation.ask(&["diff", "app.orders", "0/64", "main", "--counts"]));
    let missing = service.get("/v1/tables/app/orders/diff?from=main", &[]).await;
    assert_eq!(problem(&missing), (400, "REQUEST_INVALID".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_is_a_problem_with_a_code_of_its_own() {
    let installation = anonymous().await;
    let service = Service::start(&installation).await;
    let rows = |query: &str| format!("/v1/tables/app/orders/rows?{query}");
    for (target, status, code) in [
        ("/v1/tables/app/order".to_owned(), 404, "TABLE_UNKNOWN"),
        ("/v1/tables/app".to_owned(), 404, "ROUTE_UNKNOWN"),
        ("/metrics".to_owned(), 404, "ROUTE_UNKNOWN"),
        ("/v1/tables/%FF/orders".to_owned(), 400, "REQUEST_INVALID"),
        (rows("snapshot_id=1"), 404, "SNAPSHOT_UNKNOWN"),
        (rows("snapshot_id=x"), 400, "REQUEST_INVALID"),
        (rows("as_of=2000-01-01"), 404, "SNAPSHOT_UNKNOWN"),
        (rows("as_of=yesterday"), 400, "REQUEST_INVALID"),
        (rows("tag=mian"), 404, "TAG_UNKNOWN"),
        (rows("cut=0/1"), 404, "CUT_UNKNOWN"),
        (rows("cut=x"), 400, "REQUEST_INVALID"),
        (rows("tag=main&cut=0/C8"), 400, "REQUEST_INVALID"),
        (rows("order_by=id"), 400, "REQUEST_INVALID"),
        (rows("select=nmae"), 400, "COLUMN_UNKNOWN"),
        (rows("filter=id%3D1"), 400, "FILTER_INVALID"),
        (rows("filter=%7B%22eq%22:%7B%22column%22:%22nmae%22,%22value%22:1%7D%7D"), 400, "FILTER_INVALID"),
        (rows("limit=10001"), 400, "ROWS_LIMIT"),
        (rows("limit=-1"), 400, "REQUEST_INVALID"),
    ] {
        let answer = service.get(&target, &[]).await;
        assert_eq!(problem(&answer), (status, code.to_owned()), "{target}");
    }
    let html = service.get(&rows(""), &[("accept", "text/html")]).await;
    assert_eq!(problem(&html), (406, "NOT_ACCEPTABLE".to_owned()));
    let posted = service.call("POST", &rows(""), &[]).await;
    assert_eq!(problem(&posted), (405, "METHOD_UNKNOWN".to_owned()));
    // A file that is gone: the answer says so little that nobody learns where it was.
    let data = installation.path().join("lake/warehouse/app/orders/data");
    fs::remove_dir_all(&data).expect("removed");
    let broken = service.get(&rows(""), &[]).await;
    assert_eq!(problem(&broken), (500, "FILE_MISSING".to_owned()));
    assert!(!text(&broken).contains("warehouse"), "{}", text(&broken));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_point_is_gone_and_its_neighbours_are_named() {
    let installation = anonymous().await;
    let service = Service::start(&installation).await;
    let told = installation.ask(&["snapshots", "app.orders"]);
    let snapshots = told["snapshots"].as_array().expect("snapshots");
    let id = |number: usize| snapshots[number]["snapshot_id"].as_str().expect("an id");
    let kept = snapshots.len() - 2;
    let removed: Vec<i64> = (0..kept).map(|number| id(number).parse().expect("a number")).collect();
    let catalog = catalog(&installation);
    let table = catalog.load(&TableName::new("app", "orders"), None).await.expect("a catalog").expect("a table");
    let expired = catalog.commit(&table, vec![TableUpdate::RemoveSnapshots { snapshot_ids: removed }]).await;
    assert!(matches!(expired, Ok(Swap::Landed(_))), "{expired:?}");
    let gone = |query: String| {
        let service = &service;
        async move {
            let answer = service.get(&format!("/v1/tables/app/orders/rows?{query}"), &[]).await;
            assert_eq!(problem(&answer), (410, "SNAPSHOT_EXPIRED".to_owned()), "{query}");
            serde_json::from_slice::<Value>(&answer.content()).expect("JSON")["nearest"].clone()
        }
    };
    for query in [format!("snapshot_id={}", id(kept - 1)), "as_of=2000-01-01".to_owned(), "cut=0/64".to_owned()] {
        let nearest = gone(query.clone()).await;
        assert_eq!((&nearest["older"], &nearest["tag"]), (&Value::Null, &Value::Null), "{query}");
        assert_eq!(nearest["newer"]["snapshot_id"], json!(id(kept)), "{query}");
    }
    let answer = installation.json(&["rows", "app.orders", "--snapshot", id(kept - 1)]);
    assert_eq!(answer.error(), (1, "SNAPSHOT_EXPIRED".to_owned()));
    assert!(answer.text().contains(id(kept)), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_has_already_is_not_sent_again() {
    let installation = anonymous().await;
    let service = Service::start(&installation).await;
    for target in ROUTES {
        let first = service.get(target, &[]).await;
        let Some(etag) = first.header("etag") else {
            assert!(target.ends_with("/health"), "{target} has no tag");
            continue;
        };
        assert!(etag.starts_with('"') && etag.ends_with('"'), "{etag}");
        let again = service.get(target, &[("if-none-match", etag)]).await;
        assert_eq!((again.status(), again.content().len(), again.header("etag")), (304, 0, Some(etag)), "{target}");
        let other = service.get(target, &[("if-none-match", "\"other\"")]).await;
        assert_eq!(other.status(), 200, "{target}");
    }
    let rows = service.get(ROUTES[5], &[]).await;
    let csv =
        service.get(ROUTES[5], &[("accept", "text/csv"), ("if-none-match", rows.header("etag").expect("a tag"))]).await;
    assert_eq!(csv.status(), 200, "another format is another answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_sees_what_it_may_and_nobody_else_anything() {
    let installation = with_tokens().await;
    let service = Service::start(&installation).await;
    for target in ROUTES {
        let of_a_table = target != "/v1/tables";
        for (authorization, expected) in [
            (Some("Bearer reader-token"), 200),
            (Some("bearer operator-token"), 200),
            (Some("Bearer admin-token"), 200),
            (Some("Bearer narrow-token"), if of_a_table { 403 } else { 200 }),
            (Some("Bearer old-token"), 401),
            (Some("Bearer reader"), 401),
            (Some("Bearer "), 401),
            (Some("Basic cmVhZGVyOnJlYWRlci10b2tlbg=="), 401),
            (Some("reader-token"), 401),
            (None, 401),
        ] {
            let headers: Vec<(&str, &str)> = authorization.into_iter().map(|value| ("authorization", value)).collect();
            let answer = service.get(target, &headers).await;
            assert_eq!(answer.status(), expected, "{target} for {authorization:?}");
            match expected {
                401 => {
                    assert_eq!(problem(&answer).1, "UNAUTHENTICATED");
                    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
                }
                403 => assert_eq!(problem(&answer).1, "FORBIDDEN"),
                _ => {}
            }
        }
    }
    // Whether a table is there is not told to who may not see it; lists leave out what is not for the caller.
    let narrow = [("authorization", "Bearer narrow-token")];
    assert_eq!(service.get("/v1/tables/app/other", &narrow).await.status(), 403);
    assert_eq!(service.get("/v1/tables/app/nothing", &narrow).await.status(), 404);
    assert_eq!(text(&service.get("/v1/tables", &narrow).await), "{\"tables\":[]}");
    assert_eq!(service.get("/livez", &[]).await.status(), 200);
    assert_eq!(service.get("/readyz", &[]).await.content().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_do_what_readers_only_look_at_and_for_their_own_tables() {
    let installation = with_tokens().await;
    let service = Service::start(&installation).await;
    for (method, target, body, [reader, operator, narrow]) in OPERATING {
        for (authorization, expected) in [
            (Some("Bearer reader-token"), reader),
            (Some("bearer operator-token"), operator),
            (Some("Bearer admin-token"), operator),
            (Some("Bearer narrow-token"), narrow),
            (Some("Bearer old-token"), 401),
            (Some("Bearer reader"), 401),
            (Some("operator-token"), 401),
            (None, 401),
        ] {
            let headers: Vec<(&str, &str)> = authorization.into_iter().map(|value| ("authorization", value)).collect();
            let answer = service.send(method, target, &headers, body).await;
            assert_eq!(answer.status(), expected, "{target} for {authorization:?}: {}", text(&answer));
            match expected {
                401 => assert_eq!(problem(&answer).1, "UNAUTHENTICATED"),
                403 => assert_eq!(problem(&answer).1, "FORBIDDEN"),
                404 => assert!(
                    ["OPERATION_UNKNOWN", "RUN_UNKNOWN", "TABLE_UNKNOWN"].contains(&problem(&answer).1.as_str())
                ),
                428 => assert_eq!(problem(&answer).1, "PRECONDITION_REQUIRED"),
                _ => {}
            }
        }
    }
    // The answers say as much as the caller may see.
    let narrow = service.get("/v1/pipelines/app", &[("authorization", "Bearer narrow-token")]).await;
    let narrow: Value = serde_json::from_slice(&narrow.content()).expect("JSON");
    assert_eq!((&narrow["name"], &narrow["tables"]), (&json!("app"), &json!([])));
    let all = service.get("/v1/pipelines/app", &[("authorization", "Bearer reader-token")]).await;
    let all: Value = serde_json::from_slice(&all.content()).expect("JSON");
    assert_eq!((&all["tables"][0]["table"], &all["tables"][0]["state"]), (&json!("app.orders"), &json!("copying")));
    assert_eq!((&all["tables"][0]["code"], &all["paused"]), (&json!("RESYNC_REQUESTED"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_are_told_who_they_are() {
    let installation = with_tokens().await;
    let service = Service::start(&installation).await;
    let all = json!(["*.*"]);
    for (name, role, tables) in [
        ("reader", "reader", &all),
        ("operator", "operator", &all),
        ("admin", "admin", &all),
        ("narrow", "admin", &json!(["other.*", "app.nothing"])),
    ] {
        let authorization = format!("Bearer {name}-token");
        let told = service.get("/v1/me", &[("authorization", &authorization)]).await;
        let told: Value = serde_json::from_slice(&told.content()).expect("JSON");
        assert_eq!(told, json!({"principal": name, "role": role, "tables": tables}));
    }
    let open = anonymous().await;
    let service = Service::start(&open).await;
    assert_eq!(service.ask("/v1/me").await, json!({"principal": "anonymous", "role": "reader", "tables": all}));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_is_the_same_for_everybody_and_has_nothing_from_elsewhere() {
    let installation = with_tokens().await;
    let service = Service::start(&installation).await;
    // The page, and whatever it or a part of it names.
    let mut wanted = vec!["/console".to_owned()];
    let mut known = BTreeMap::new();
    while let Some(target) = wanted.pop() {
        let answer = service.get(&target, &[]).await;
        assert_eq!(answer.status(), 200, "{target}");
        for (name, value) in [
            (
                "content-security-policy",
                "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                 base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            ),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-cache"),
            ("x-content-type-options", "nosniff"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{target}");
        }
        let tag = answer.header("etag").expect("a tag");
        let again = service.get(&target, &[("if-none-match", tag)]).await;
        assert_eq!((again.status(), again.content().len(), again.header("etag")), (304, 0, Some(tag)), "{target}");
        let (media_type, content) = (answer.header("content-type").expect("a type").to_owned(), text(&answer));
        for part in content.split('"').filter(|part| [".js", ".css", ".md"].iter().any(|end| part.ends_with(end))) {
            let own = part.strip_prefix("./").or(part.strip_prefix("console/"));
            let named = own.map(|name| format!("/console/{name}"));
            wanted.extend(named.filter(|target| !known.contains_key(target) && !wanted.contains(target)));
        }
        known.insert(target, (media_type, content));
    }
    for (target, media_type) in [
        ("/console", "text/html; charset=utf-8"),
        ("/console/console.css", "text/css; charset=utf-8"),
        ("/console/console.js", "text/javascript; charset=utf-8"),
        ("/console/rollback.js", "text/javascript; charset=utf-8"),
        ("/console/troubleshooting.md", "text/markdown; charset=utf-8"),
    ] {
        assert_eq!(known.get(target).map(|(media_type, _)| media_type.as_str()), Some(media_type), "{target}");
    }
    // No other address; no markup out of text, nothing that runs text, nothing that outlives the tab.
    for (target, (_, content)) in known.iter().filter(|(target, _)| !target.ends_with(".md")) {
        let content = content.replace("http://www.w3.org/2000/svg", "");
        for word in
            ["http:", "https:", "innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "localStorage"]
        {
            assert!(!content.contains(word), "{target}: {word}");
        }
    }
    let (_, page) = &known["/console"];
    for part in ["src=", "href="].into_iter().flat_map(|name| page.split(name).skip(1)) {
        let address = part.split('"').nth(1).expect("an address");
        assert!(["console/", "#", "data:"].iter().any(|own| address.starts_with(own)), "{address}");
    }
    assert_eq!(problem(&service.get("/console/http.rs", &[]).await), (404, "ROUTE_UNKNOWN".to_owned()));
    assert_eq!(problem(&service.call("POST", "/console", &[]).await), (405, "METHOD_UNKNOWN".to_owned()));
    let slash = service.get("/console/", &[]).await;
    assert_eq!((slash.status(), slash.header("location")), (308, Some("../console")));
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_are_those_of_the_command_line_without_their_sources() {
    let installation = anonymous().await;
    let service = Service::start(&installation).await;
    installation.ask(&["pause", "--reason=a look"]);
    let mut shown = service.ask("/v1/pipelines").await;
    let one = service.ask("/v1/pipelines/app").await;
    assert_eq!(one, shown["pipelines"][0]);
    assert_eq!((&one["paused"], &one["state"]), (&json!("a look"), &json!("paused")));
    shown["pipelines"][0].as_object_mut().expect("an object").remove("paused");
    // The source of this installation does not answer.
    assert_eq!(shown, installation.ask(&["status"]));
    assert_eq!(service.ask("/v1/operations").await, json!({"operations": []}));
    let anonymous = service.send("POST", "/v1/pipelines/app/resume", &[], "{}").await;
    assert_eq!(problem(&anonymous), (403, "FORBIDDEN".to_owned()));
    assert_eq!(service.ask("/v1/pipelines/app").await["paused"], "a look");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_cannot_be_understood_changes_nothing() {
    let installation = with_tokens().await;
    let service = Service::start(&installation).await;
    let operator = [("authorization", "Bearer operator-token")];
    let before = text(&service.get("/v1/pipelines/app", &operator).await);
    let long = format!(r#"{{"reason":"{}"}}"#, "x".repeat(1_001));
    let huge = " ".repeat((256 << 10) + 1);
    let orders = r#""tables":["app.orders"]"#;
    for (target, body, status, code) in [
        ("/v1/pipelines/app/pause", "", 400, "REQUEST_INVALID"),
        ("/v1/pipelines/app/pause", "pause", 400, "REQUEST_INVALID"),
        ("/v1/pipelines/app/pause", r#"{"reason":" "}"#, 400, "REQUEST_INVALID"),
        ("/v1/pipelines/app/pause", r#"{"reason":"x","until":"y"}"#, 400, "REQUEST_INVALID"),
        ("/v1/pipelines/app/pause", &long, 400, "REQUEST_INVALID"),
        ("/v1/pipelines/app/pause", &huge, 413, "BODY_LIMIT"),
        ("/v1/pipelines/ap/pause", r#"{"reason":"x"}"#, 404, "PIPELINE_UNKNOWN"),
        ("/v1/pipelines/app/resume", r#"{"reason":"x"}"#, 400, "REQUEST_INVALID"),
        ("/v1/pipelines/app/resync", r#"{"reason":"x"}"#, 400, "REQUEST_INVALID"),
        ("/v1/pipelines/app/resync", r#"{"tables":[],"reason":"x"}"#, 400, "REQUEST_INVALID"),
        ("/v1/pipelines/app/resync", r#"{"tables":["orders"],"reason":"x"}"#, 400, "REQUEST_INVALID"),
        ("/v1/pipelines/app/resync", r#"{"tables":["app.order"],"reason":"x"}"#, 404, "TABLE_UNKNOWN"),
        ("/v1/pipelines/app/verify", r#"{"tables":[]}"#, 400, "REQUEST_INVALID"),
        ("/v1/pipelines/app/verify", r#"{"cut":"x"}"#, 400, "REQUEST_INVALID"),
        ("/v1/pipelines/app/verify", r#"{"reason":" "}"#, 400, "REQUEST_INVALID"),
        ("/v1/pipelines/app/verify", r#"{"show_keys":true}"#, 400, "REQUEST_INVALID"),
        ("/v1/pipelines/app/verify", r#"{"tables":["app.order"]}"#, 404, "TABLE_UNKNOWN"),
        ("/v1/pipelines/ap/verify", "{}", 404, "PIPELINE_UNKNOWN"),
        ("/v1/rollbacks", r#"{"pipeline":"app"}"#, 400, "REQUEST_INVALID"),
        ("/v1/rollbacks", r#"{"pipeline":"app","cut":"0/64","tag":"x"}"#, 400, "REQUEST_INVALID"),
        ("/v1/rollbacks", r#"{"pipeline":"app","snapshot_id":"1"}"#, 400, "REQUEST_INVALID"),
        ("/v1/rollbacks", r#"{"pipeline":"app","tables":[],"cut":"0/64"}"#, 400, "REQUEST_INVALID"),
        ("/v1/rollbacks", r#"{"pipeline":"app","cut":"0/64","reason":"x"}"#, 400, "REQUEST_INVALID"),
        ("/v1/rollbacks", r#"{"pipeline":"ap","cut":"0/64"}"#, 404, "PIPELINE_UNKNOWN"),
        ("/v1/rollbacks", r#"{"pipeline":"app","cut":"0/1"}"#, 404, "CUT_UNKNOWN"),
        ("/v1/rollbacks", &format!(r#"{{"pipeline":"app",{orders},"snapshot_id":"1"}}"#), 404, "SNAPSHOT_UNKNOWN"),
        ("/v1/rollbacks", &format!(r#"{{"pipeline":"app",{orders},"tag":"main"}}"#), 409, "TARGET_IS_HEAD"),
        ("/v1/maintenance", r#"{"dry_run":false}"#, 400, "REQUEST_INVALID"),
        ("/v1/maintenance", r#"{"tables":[]}"#, 400, "REQUEST_INVALID"),
        ("/v1/maintenance", r#"{"tables":["app.order"],"dry_run":false,"reason":"x"}"#, 404, "TABLE_UNKNOWN"),
        ("/v1/maintenance", r#"{"tables":["lakehouse_control.app"]}"#, 404, "TABLE_UNKNOWN"),
        ("/v1/operations/none/undo", "{}", 400, "REQUEST_INVALID"),
        ("/v1/operations/none/replay", r#"{"reason":"x","without":["y"]}"#, 400, "REQUEST_INVALID"),
        (
            "/v1/operations/none/replay",
            r#"{"reason":"x","without_range":{"after":"0/2","up_to":"0/1"}}"#,
            400,
            "REQUEST_INVALID",
        ),
    ] {
        let answer = service.send("POST", target, &operator, body).await;
        assert_eq!(problem(&answer), (status, code.to_owned()), "{target} {}", body.trim());
    }
    let looked = service.get("/v1/pipelines/app/pause", &operator).await;
    assert_eq!(problem(&looked), (405, "METHOD_UNKNOWN".to_owned()));
    let other = service.get("/v1/operations?pipeline=ap", &operator).await;
    assert_eq!(problem(&other), (404, "PIPELINE_UNKNOWN".to_owned()));
    assert_eq!(text(&service.get("/v1/pipelines/app", &operator).await), before);
}

/// Why a verification of the whole pipeline has come to nothing, in every word that a client gets of it.
async fn failed_verification(service: &Service) -> Value {
    let operator = [("authorization", "Bearer operator-token")];
    let begun = service.send("POST", "/v1/pipelines/app/verify", &operator, "{}").await;
    let address = begun.header("location").unwrap_or_else(|| panic!("{}", text(&begun)));
    let since = Instant::now();
    loop {
        let verification: Value =
            serde_json::from_slice(&service.get(address, &operator).await.content()).expect("JSON");
        if verification["state"] != "running" {
            assert_eq!(
                (&verification["state"], &verification["report"]),
                (&json!("failed"), &Value::Null),
                "{verification}"
            );
            return verification;
        }
        assert!(since.elapsed() < START, "{verification}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_without_a_way_to_the_source_says_so_and_no_secret() {
    const SECRET: &str = "hunter-2-of-the-source";
    let config = "password = { env = \"VERIFIED_PASSWORD\" }\n[audit]\nfile = \"audit.jsonl\"\n";
    let installation = lake::installation_with(&format!("{config}{}", tokens()), &[]).await;
    let unset = failed_verification(&Service::start(&installation).await).await;
    assert_eq!(unset["code"], "SECRET_UNREADABLE", "{unset}");

    let installation = installation.variable("VERIFIED_PASSWORD", SECRET);
    let verification = failed_verification(&Service::start(&installation).await).await;
    let told = installation.json(&["verify"]);
    assert_eq!((told.error().1.as_str(), &verification["code"]), ("REFUSED", &json!("REFUSED")), "{verification}");
    assert_eq!(verification["remedy"], told.json()["remedy"], "{verification}");
    let (entries, all) = entries(&installation);
    let outcomes: Vec<_> = entries.iter().filter(|entry| entry["kind"] == "outcome").collect();
    let codes: Vec<_> = outcomes.iter().map(|entry| [&entry["action"], &entry["detail"]["code"]]).collect();
    assert_eq!(codes, [[&json!("verify"), &unset["code"]], [&json!("verify"), &verification["code"]]], "{all}");
    for shown in [verification.to_string(), all, installation.log()] {
        assert!(!shown.contains(SECRET), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_finds_the_pipeline_of_its_tables() {
    let other = lake::CONFIG.replace("pipelines.app", "pipelines.other");
    let installation = lake::installation_with(&format!("{other}{}", tokens()), &[]).await;
    lake::add_other(&installation).await;
    let service = Service::start(&installation).await;
    let operator = [("authorization", "Bearer operator-token")];
    let asked = async |body: &str| service.send("POST", "/v1/rollbacks", &operator, body).await;
    for pipeline in ["app", "other"] {
        let plan = asked(&format!(r#"{{"tables":["{pipeline}.orders"],"cut":"0/64"}}"#)).await;
        assert_eq!(plan.status(), 200, "{}", text(&plan));
        let plan: Value = serde_json::from_slice(&plan.content()).expect("JSON");
        assert_eq!((&plan["pipeline"], plan["tables"].as_array().map(Vec::len)), (&json!(pipeline), Some(1)));
        let table = format!("{pipeline}.orders");
        let told = installation.ask(&["rollback", &table, "--cut", "0/64", "--dry-run"]);
        assert_eq!(told["tables"], plan["tables"]);
    }
    for (body, status, code) in [
        (r#"{"tables":["app.orders","other.orders"],"cut":"0/64"}"#, 400, "PIPELINE_AMBIGUOUS"),
        (r#"{"pipeline":"other","tables":["app.orders"],"cut":"0/64"}"#, 404, "TABLE_UNKNOWN"),
        (r#"{"tables":["app.order"],"cut":"0/64"}"#, 404, "TABLE_UNKNOWN"),
        (r#"{"cut":"0/64"}"#, 400, "REQUEST_INVALID"),
    ] {
        let refused = asked(body).await;
        assert_eq!(problem(&refused), (status, code.to_owned()), "{body}");
        if code == "PIPELINE_AMBIGUOUS" {
            let detail = text(&refused);
            assert!(detail.contains("app.orders to app; other.orders to other"), "{detail}");
        }
    }
    let both = installation.json(&["rollback", "app.orders", "other.orders", "--cut", "0/64", "--dry-run"]);
    assert_eq!(both.error(), (2, "PIPELINE_AMBIGUOUS".to_owned()));
    let all = installation.json(&["rollback", "--cut", "0/64", "--dry-run"]);
    assert_eq!(all.error(), (2, "PIPELINE_AMBIGUOUS".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_address_passes_over_a_parameter_that_it_does_not_know() {
    let installation = with_tokens().await;
    let service = Service::start(&installation).await;
    let admin = [("authorization", "Bearer admin-token")];
    let mut asked = 0;
    for (method, path, operation) in openapi::operations() {
        let target = path.replace("{namespace}", "app").replace("{table}", "orders");
        let part = |part: &str| if part.starts_with('{') { "none".to_owned() } else { part.to_owned() };
        let target = target.split('/').map(part).collect::<Vec<_>>().join("/");
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let known: Vec<_> =
            parameters.filter(|one| one["in"] == "query").filter_map(|one| one["name"].as_str()).collect();
        // The right name with a letter less, the right one of other addresses, and one with nothing behind it.
        let near: Vec<String> = known.iter().map(|name| format!("{}=1", &name[1..])).collect();
        for query in near.iter().map(String::as_str).chain(["nonsense=1", "Limit=1", "nonsense"]) {
            let answer = service.send(&method, &format!("{target}?{query}"), &admin, "").await;
            assert_eq!(problem(&answer), (400, "REQUEST_INVALID".to_owned()), "{method} {path}?{query}");
            let name = query.split('=').next().expect("a name");
            assert!(text(&answer).contains(name), "{method} {path}?{query}: {}", text(&answer));
            asked += 1;
        }
        let role = operation["x-role"].is_string();
        let stranger = service.send(&method, &format!("{target}?nonsense=1"), &[], "").await.status();
        assert_eq!(stranger, if role { 401 } else { 400 }, "{method} {path}");
    }
    assert!(asked > 100, "{asked}");
    let head = service.call("HEAD", "/v1/tables?nonsense=1", &admin).await;
    assert_eq!(head.status(), 400);
    let known = service.get("/v1/tables?page_size=1", &admin).await;
    assert_eq!(known.status(), 200, "{}", text(&known));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_let_in_by_default_and_no_strange_name_by_anonymous_access() {
    let closed = lake::installation_with("[api]\n", &[]).await;
    let service = Service::start(&closed).await;
    for target in ROUTES {
        assert_eq!(problem(&service.get(target, &[]).await), (401, "UNAUTHENTICATED".to_owned()), "{target}");
    }
    for (method, target, body, _) in OPERATING {
        let answer = service.send(method, target, &[], body).await;
        assert_eq!(problem(&answer), (401, "UNAUTHENTICATED".to_owned()), "{target}");
    }
    let open = anonymous().await;
    let service = Service::start(&open).await;
    let strange = service.get("/v1/tables", &[("host", "rebound.example")]).await;
    assert_eq!(problem(&strange), (401, "UNAUTHENTICATED".to_owned()));
    let hidden = lake::installation_with("[api]\nallow_anonymous = true\nrows = false\n", &[]).await;
    let service = Service::start(&hidden).await;
    for target in &ROUTES[5..] {
        assert_eq!(problem(&service.get(target, &[]).await), (403, "ROWS_DISABLED".to_owned()), "{target}");
    }
    assert_eq!(service.get(ROUTES[1], &[]).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_are_counted_and_end_when_their_client_leaves() {
    let wide = "x".repeat(1 << 20);
    let rows: Vec<lake::Row<'_>> = (10..74).map(|id| (id, Some(wide.as_str()), None)).collect();
    let installation = lake::installation_with("[api]\nallow_anonymous = true\nscans = 1\n", &rows).await;
    let service = Service::start(&installation).await;
    let target = "/v1/tables/app/orders/rows";
    let address = service.uri.trim_start_matches("http://").to_owned();
    let mut client = TcpStream::connect(&address).expect("a connection");
    let request = format!("GET {target} HTTP/1.1\r\nhost: {address}\r\naccept: application/x-ndjson\r\n\r\n");
    client.write_all(request.as_bytes()).expect("sent");
    let mut begin = [0; 1_024];
    client.read_exact(&mut begin).expect("the answer begins");
    let refused = service.get(target, &[]).await;
    assert_eq!(problem(&refused), (429, "TOO_MANY_SCANS".to_owned()));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(service.get("/v1/tables", &[]).await.status(), 200, "what is no scan goes on");
    drop(client);
    let left = Instant::now();
    while service.get(&format!("{target}?select=id&limit=1"), &[]).await.status() != 200 {
        assert!(left.elapsed() < LEFT, "the scan goes on without its client");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // More than one document holds is refused, not cut short.
    let document = service.get(target, &[]).await;
    assert_eq!(problem(&document), (400, "ROWS_LIMIT".to_owned()));
    let metrics = exchange("GET", &format!("{}/metrics", service.metrics), &[], "").await.expect("metrics");
    assert!(text(&metrics).contains("lakehouse_http_refused_total{reason=\"scans\"} "), "{}", text(&metrics));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_has_its_bounds_in_time_and_rows() {
    let late = lake::installation_with("[api]\nallow_anonymous = true\nscan_time = \"0s\"\n", &[]).await;
    let service = Service::start(&late).await;
    let answer = service.get(ROUTES[5], &[]).await;
    assert_eq!(problem(&answer), (503, "SCAN_TIME".to_owned()));
    assert!(answer.header("retry-after").is_some());
    let small = lake::installation_with("[api]\nallow_anonymous = true\nmax_rows = 3\n", &[]).await;
    let service = Service::start(&small).await;
    for accept in ["application/json", "text/csv", "application/x-ndjson", "application/vnd.apache.arrow.stream"] {
        let answer = service.get(ROUTES[5], &[("accept", accept)]).await;
        assert_eq!(problem(&answer), (400, "ROWS_LIMIT".to_owned()), "{accept}");
        let answer = service.get(&format!("{}?limit=3", ROUTES[5]), &[("accept", accept)]).await;
        assert_eq!(answer.status(), 200, "{accept}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_have_an_address_of_their_own() {
    let installation = anonymous().await;
    let service = Service::start(&installation).await;
    service.ask("/v1/tables/app/orders/rows").await;
    assert_eq!(service.get("/v1/tables/app/x", &[]).await.status(), 404);
    let other =
        async |target: &str| exchange("GET", &format!("{}{target}", service.metrics), &[], "").await.expect(target);
    assert_eq!(other("/livez").await.status(), 200);
    assert_eq!((other("/readyz").await.status(), other("/readyz").await.content().len()), (200, 0));
    assert_eq!(problem(&other("/v1/tables").await), (404, "ROUTE_UNKNOWN".to_owned()));
    let metrics = text(&other("/metrics").await);
    for line in [
        "lakehouse_build_info{version=\"0.1.0\"} 1",
        "lakehouse_http_rows_total 4",
        "lakehouse_http_scans 0",
        "lakehouse_cut_age_seconds{pipeline=\"app\"} ",
        "route=\"/v1/tables/{namespace}/{table}\",method=\"GET\",status=\"404\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(!metrics.contains("lakehouse_quarantine_rows{"), "a table without a quarantine: {metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_the_rows_of_each_quarantine_as_the_status_has_them() {
    let installation = lake::with_quarantine("[api]\nallow_anonymous = true\n", &[7, 8, 9]).await;
    let service = Service::start(&installation).await;
    let scraped = exchange("GET", &format!("{}/metrics", service.metrics), &[], "").await.expect("metrics");
    let line = "lakehouse_quarantine_rows{pipeline=\"app\",table=\"app.orders\"} 3\n";
    assert!(text(&scraped).contains(line), "{}", text(&scraped));
    let status = installation.ask(&["status"]);
    assert_eq!(status["pipelines"][0]["tables"][0]["quarantined"], json!(3), "{status}");
}

/// The entries of an audit trail, and their text.
pub(crate) fn entries(installation: &Installation) -> (Vec<Value>, String) {
    let text = fs::read_to_string(installation.path().join("audit.jsonl")).expect("a trail");
    (text.lines().map(|line| serde_json::from_str(line).expect("an entry")).collect(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_and_refusals_leave_entries_and_no_secret() {
    let config = format!("[audit]\nfile = \"audit.jsonl\"\n{}", tokens());
    let installation = lake::installation_with(&config, &[]).await;
    let service = Service::start(&installation).await;
    let reader = [("authorization", "Bearer reader-token"), ("accept", "text/csv")];
    let filter = "{\"eq\":{\"column\":\"name\",\"value\":\"Eve\"}}";
    let encoded = filter.replace('"', "%22").replace('{', "%7B").replace('}', "%7D");
    let rows = service.get(&format!("/v1/tables/app/orders/rows?select=id,%20name&filter={encoded}"), &reader).await;
    assert!(rows.status() == 200 && text(&rows).contains("Eve"), "{}", text(&rows));
    let whole = service.get(ROUTES[5], &[("authorization", "Bearer admin-token")]).await;
    let diff = service.get("/v1/tables/app/orders/diff?from=0/64&to=main", &reader).await;
    let counts = service.get("/v1/tables/app/orders/diff?from=main&to=main&counts=true", &reader).await;
    let wrong = service.get("/v1/tables?token=in-the-query", &[("authorization", "Bearer wrong-token")]).await;
    let narrow = service.get(ROUTES[5], &[("authorization", "Bearer narrow-token")]).await;
    // What shows no rows has no entry: what stands about tables, an answer that the client has, a wrong request.
    let etag = whole.header("etag").expect("a tag");
    for (target, headers, status) in [
        (ROUTES[1], &reader[..], 200),
        (ROUTES[5], &[("authorization", "Bearer admin-token"), ("if-none-match", etag)], 304),
        ("/v1/tables/app/orders/rows?select=nmae", &reader, 400),
        ("/v1/tables/app/order/rows", &reader, 404),
    ] {
        assert_eq!(service.get(target, headers).await.status(), status, "{target}");
    }
    let (entries, all) = entries(&installation);
    let told: Vec<_> = entries
        .iter()
        .map(|entry| ["kind", "action", "principal", "subject"].map(|key| entry[key].as_str().unwrap_or("-")))
        .collect();
    let expected = [
        ["read", "rows", "reader", "app.orders"],
        ["outcome", "rows", "reader", "app.orders"],
        ["read", "rows", "admin", "app.orders"],
        ["outcome", "rows", "admin", "app.orders"],
        ["read", "diff", "reader", "app.orders"],
        ["outcome", "diff", "reader", "app.orders"],
        ["read", "diff", "reader", "app.orders"],
        ["outcome", "diff", "reader", "app.orders"],
        ["refused", "refused", "", ""],
        ["refused", "refused", "narrow", "app.orders"],
    ];
    assert_eq!(told, expected, "{all}");
    let answers = [&rows, &rows, &whole, &whole, &diff, &diff, &counts, &counts, &wrong, &narrow];
    for (entry, answer) in entries.iter().zip(answers) {
        assert_eq!(entry["request_id"].as_str(), answer.header("x-request-id"), "{entry}");
        assert_eq!(entry["via"], "http");
    }
    let detail = |number: usize| &entries[number]["detail"];
    assert_eq!(detail(0)["columns"], json!(["id", "name"]));
    assert_eq!(detail(0)["snapshot_id"].as_str(), rows.header("snapshot-id"));
    assert_eq!(detail(0)["filter_sha256"].as_str().map(str::len), Some(64));
    assert_eq!((&detail(0)["format"], &detail(0)["limit"]), (&json!("text/csv"), &Value::Null));
    assert_eq!(*detail(1), json!({"rows": 1, "code": null}));
    assert_eq!((&detail(2)["columns"], &detail(2)["filter_sha256"]), (&Value::Null, &Value::Null));
    assert_eq!(*detail(3), json!({"rows": 4, "code": null}));
    assert_eq!(detail(4)["to"].as_str(), whole.header("snapshot-id"));
    assert_eq!(*detail(8), json!({"path": "/v1/tables", "why": "unknown_token", "status": 401}));
    assert_eq!(*detail(9), json!({"path": ROUTES[5], "why": "table", "status": 403}));
    for secret in ["-token\"", "reader-token", "wrong-token", "in-the-query", "Eve", "Bearer"] {
        assert!(!all.contains(secret), "{secret}: {all}");
    }
    // An operator's verb adds to the same chain while the service runs.
    installation.ask(&["pause", "--reason", "look"]);
    let head = installation.ask(&["audit", "verify"]);
    assert_eq!((&head["verdict"], &head["entries"]), (&json!("sound"), &json!(12)), "{head}");
    service.get(ROUTES[5], &reader).await;
    let noted = head["hash"].as_str().expect("a hash");
    let sound = installation.ask(&["audit", "verify", "--expect-head", noted, "--expect-at-least", "14"]);
    assert_eq!(sound["entries"], json!(14));
    let metrics = exchange("GET", &format!("{}/metrics", service.metrics), &[], "").await.expect("metrics");
    assert!(text(&metrics).contains("lakehouse_audit_entries_total 12\n"), "{}", text(&metrics));
    fs::write(installation.path().join("audit.jsonl"), all.replacen("reader", "writer", 1)).expect("tampered with");
    let answer = installation.json(&["audit", "verify"]);
    assert_eq!((answer.code, &answer.json()["line"]), (5, &json!(1)), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_row_is_shown_without_its_entry() {
    let config = "[audit]\nfile = \"/dev/full\"\n[api]\nallow_anonymous = true\n";
    let full = lake::installation_with(config, &[]).await;
    let service = Service::start(&full).await;
    for target in &ROUTES[5..] {
        let refused = service.get(target, &[]).await;
        assert_eq!(problem(&refused), (503, "AUDIT_UNWRITABLE".to_owned()), "{target}");
        assert!(refused.header("retry-after").is_some() && !text(&refused).contains("/dev"), "{}", text(&refused));
    }
    assert_eq!(service.get("/v1/tables", &[]).await.status(), 200, "what shows no rows goes on");
    assert_eq!(service.get("/v1/tables", &[("authorization", "Bearer x")]).await.status(), 401);
    let unrecorded = lake::installation_with(&config.replace("[api]", "rows = false\n[api]"), &[]).await;
    let service = Service::start(&unrecorded).await;
    assert_eq!(service.get(ROUTES[5], &[]).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_told_at_once() {
    let installation = anonymous().await;
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    let flag = format!("api.listen={address}");
    for verb in ["serve", "run"] {
        let answer = installation.json(&["--set", &flag, verb]);
        assert_eq!(answer.error(), (1, "LISTEN".to_owned()), "{verb}: {answer:?}");
        assert!(answer.text().contains(&address), "{answer:?}");
    }
    let without = lake::installation().await;
    assert_eq!(without.json(&["serve"]).error(), (2, "CONFIG_MISSING_KEY".to_owned()));
}
