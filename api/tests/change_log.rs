//! The log between two points of a table's past: the history's changes and no others, alike from the command line and over
//! HTTP, whole or refused.

use serde_json::{Value, json};
use testkit::http::Exchange;

use crate::http::{Service, anonymous, problem, text};
use crate::support::lake;

const LOG: &str = "/v1/tables/app/orders/diff?mode=log";

fn document(answer: &Exchange) -> Value {
    assert_eq!(answer.status(), 200, "{}", text(answer));
    serde_json::from_slice(&answer.content()).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_tells_every_change_in_order_with_what_was_kept_of_it() {
    let installation = anonymous().await;
    let service = Service::start(&installation).await;
    let told = installation.json(&["diff", "app.orders", "0/64", "main", "--mode", "log"]);
    let answer = service.get(&format!("{LOG}&from=0/64&to=main"), &[]).await;
    assert_eq!(answer.content(), told.stdout);
    let log = document(&answer);
    let net = service.ask("/v1/tables/app/orders/diff?from=0/64&to=main").await;
    assert_eq!((&log["mode"], &log["from"], &log["to"]), (&json!("log"), &net["from"], &net["to"]));
    let change = |change: &Value| {
        let row = if change["after"].is_null() { &change["before"] } else { &change["after"] };
        let at = (change["position"].clone(), change["ordinal"].clone(), change["transaction_id"].clone());
        assert!(change["committed_at"].as_str().is_some_and(|at| at.starts_with("2023-11-14T22:13:20")), "{change}");
        json!([change["change"], at.0, at.1, at.2, row["id"], row["name"]])
    };
    let changes: Vec<Value> = log["changes"].as_array().expect("changes").iter().map(change).collect();
    let expected = json!([
        ["updated", "0/C8", 0, "7", 2, "Bea"],
        ["deleted", "0/C8", 1, "7", 3, null],
        ["inserted", "0/C8", 2, "7", 4, null],
        ["inserted", "0/12C", 0, "7", 5, "Eve"],
    ]);
    assert_eq!(json!(changes), expected);
    assert!(log["changes"][1]["after"].is_null() && log["changes"][2]["before"].is_null());
    let counts = json!({
        "table": "app.orders", "from": log["from"], "to": log["to"], "mode": "log",
        "inserted": 2, "updated": 1, "deleted": 1, "expired": 0, "truncated": 0, "quarantined": 0,
    });
    assert_eq!(service.ask(&format!("{LOG}&from=0/64&to=main&counts=true")).await, counts);
    assert_eq!(installation.ask(&["diff", "app.orders", "0/64", "main", "--mode=log", "--counts"]), counts);
    let line = installation.run(&["diff", "app.orders", "0/64", "main", "--mode=log", "--counts"]);
    assert_eq!(line.text(), "2 inserted, 1 updated, 1 deleted, 0 expired, 0 truncated, 0 quarantined\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_log_are_those_of_the_history() {
    let installation = anonymous().await;
    let service = Service::start(&installation).await;
    let lines = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let history = installation.run(&["rows", "app.orders_history", "--format", "csv"]);
    let told = installation.run(&["diff", "app.orders", "0/64", "main", "--mode", "log", "--format", "csv"]);
    assert_eq!(lines(told.text()), lines(history.text()));
    let csv = service.get(&format!("{LOG}&from=0/64&to=main"), &[("accept", "text/csv")]).await;
    assert_eq!(csv.content(), told.stdout);
    let arrow = [("accept", "application/vnd.apache.arrow.stream")];
    let arrow = service.get(&format!("{LOG}&from=0/64&to=main"), &arrow).await;
    let stream = installation.run(&["diff", "app.orders", "0/64", "main", "--mode", "log", "--format", "arrow"]);
    assert_eq!(arrow.content(), stream.stdout);
    let ndjson = service.get(&format!("{LOG}&from=0/C8&to=main"), &[("accept", "application/x-ndjson")]).await;
    let ndjson: Vec<Value> = text(&ndjson).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((ndjson.len(), &ndjson[0]["_cdc_operation"], &ndjson[0]["id"]), (2, &json!("insert"), &json!(5)));
    assert_eq!((&ndjson[1]["_status"], &ndjson[1]["inserted"]), (&json!("complete"), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_begins_behind_its_first_point_and_ends_with_its_last() {
    let installation = anonymous().await;
    for (from, to, changes, code) in [("0/64", "0/C8", 3, 5), ("0/C8", "main", 1, 5), ("main", "main", 0, 0)] {
        let log = installation.ask(&["diff", "app.orders", from, to, "--mode=log"]);
        assert_eq!(log["changes"].as_array().map(Vec::len), Some(changes), "{from} {to}");
        let counted = ["diff", "app.orders", from, to, "--mode=log", "--counts", "--exit-code"];
        assert_eq!(installation.run(&counted).code, code, "{from} {to}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_history_cannot_tell_is_refused_with_the_reason() {
    let installation = anonymous().await;
    let service = Service::start(&installation).await;
    let without = "/v1/tables/app/orders_history/diff?from=main&to=main&mode=log";
    for (target, status, code) in [
        (&format!("{LOG}&from=main&to=0/64"), 400, "LOG_BACKWARD"),
        (&format!("{LOG}&from=main&to=mian"), 404, "TAG_UNKNOWN"),
        (&"/v1/tables/app/orders/diff?from=main&to=main&mode=gross".to_owned(), 400, "REQUEST_INVALID"),
        (&without.to_owned(), 410, "HISTORY_INCOMPLETE"),
    ] {
        assert_eq!(problem(&service.get(target, &[]).await), (status, code.to_owned()), "{target}");
    }
    let backward = installation.json(&["diff", "app.orders", "main", "0/64", "--mode", "log"]);
    assert_eq!(backward.error(), (2, "LOG_BACKWARD".to_owned()));
    let none = installation.json(&["diff", "app.orders_history", "main", "main", "--mode", "log"]);
    assert_eq!(none.error(), (1, "HISTORY_INCOMPLETE".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_has_the_bounds_of_an_answer_and_a_tag_of_its_own() {
    let small = lake::installation_with("[api]\nallow_anonymous = true\nmax_rows = 3\n", &[]).await;
    let service = Service::start(&small).await;
    for accept in ["application/json", "text/csv", "application/x-ndjson", "application/vnd.apache.arrow.stream"] {
        let headers = [("accept", accept)];
        let refused = service.get(&format!("{LOG}&from=0/64&to=main"), &headers).await;
        assert_eq!(problem(&refused), (400, "ROWS_LIMIT".to_owned()), "{accept}");
        let few = service.get(&format!("{LOG}&from=0/64&to=0/C8"), &headers).await;
        assert_eq!(few.status(), 200, "{accept}");
        let tag = few.header("etag").expect("a tag");
        let again = service.get(&format!("{LOG}&from=0/64&to=0/C8"), &[("if-none-match", tag), headers[0]]).await;
        assert_eq!(again.status(), 304, "{accept}");
        let net = service.get("/v1/tables/app/orders/diff?from=0/64&to=0/C8", &headers).await;
        assert_ne!(net.header("etag"), Some(tag), "{accept}");
    }
    let counts = service.get(&format!("{LOG}&from=0/64&to=main&counts=true"), &[]).await;
    assert_eq!(document(&counts)["inserted"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_for_who_may_read_the_history() {
    let token = "24fd4bd1faba5000f7381c1a788fa9b48d0d17280fc3e3dda83e4193184c8158";
    for (tables, status) in [("\"app.orders\"", 403), ("\"app.orders\", \"app.orders_history\"", 200)] {
        let config = format!("[api.auth.tokens.one]\nsha256 = \"{token}\"\nrole = \"reader\"\ntables = [{tables}]\n");
        let installation = lake::installation_with(&config, &[]).await;
        let service = Service::start(&installation).await;
        let headers = [("authorization", "Bearer narrow-token")];
        let net = service.get("/v1/tables/app/orders/diff?from=0/64&to=main", &headers).await;
        assert_eq!(net.status(), 200, "{tables}");
        let log = service.get(&format!("{LOG}&from=0/64&to=main"), &headers).await;
        assert_eq!(log.status(), status, "{tables}");
    }
}
