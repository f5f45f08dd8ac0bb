//! The quarantine over HTTP: the list is that of the command line, page by page, for who may read the table and its
//! quarantine; a replay is asked for once, whoever repeats the request. What a replay does is in `app_data.rs`.

use serde_json::{Value, json};
use testkit::http::Exchange;

use crate::http::{Service, entries, problem, text, tokens};
use crate::support::{Installation, lake};

const LIST: &str = "/v1/tables/app/orders/quarantine";
const REPLAY: &str = "/v1/tables/app/orders/quarantine:replay";
const ANONYMOUS: &str = "[api]\nallow_anonymous = true\n";
/// What stands there, the newest last.
const IDS: [i64; 5] = [7, 8, 9, 10, 11];
/// A token for the mirror alone, `narrow-token` under another name.
const OF_THE_MIRROR: &str = r#"
    [api.auth.tokens.mirror]
    sha256 = "24fd4bd1faba5000f7381c1a788fa9b48d0d17280fc3e3dda83e4193184c8158"
    role = "operator"
    tables = ["app.orders"]
"#;

fn document(answer: &Exchange) -> Value {
    serde_json::from_slice(&answer.content()).unwrap_or_else(|error| panic!("{error}: {}", text(answer)))
}

/// The keys of a page, and where the next one begins.
fn keys(page: &Value) -> (Vec<String>, Option<String>) {
    let rows = page["quarantined"].as_array().expect("rows");
    let keys = rows.iter().map(|row| row["key"].as_str().expect("a key").to_owned()).collect();
    (keys, page["next_page_token"].as_str().map(str::to_owned))
}

async fn call(service: &Service, method: &str, target: &str, token: &str, body: &str) -> Exchange {
    service.send(method, target, &[("authorization", &format!("Bearer {token}"))], body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_is_that_of_the_command_line_in_pages_the_newest_first() {
    let installation = lake::with_quarantine(ANONYMOUS, &IDS).await;
    let service = Service::start(&installation).await;
    let listed = service.ask(LIST).await;
    assert_eq!(listed, installation.ask(&["quarantine", "app.orders"]));
    assert_eq!((&listed["rows"], keys(&listed).0.len()), (&json!(5), 5), "{listed}");
    assert!(keys(&listed).0.iter().all(|key| key.len() == 32), "keys are not asked for: {listed}");
    let shown = service.ask(&format!("{LIST}?show_keys=true")).await;
    assert_eq!(shown, installation.ask(&["quarantine", "app.orders", "--show-keys"]));

    let (mut found, mut sizes, mut more) = (Vec::new(), Vec::new(), String::new());
    while sizes.len() < IDS.len() {
        let page = service.ask(&format!("{LIST}?show_keys=true&page_size=2{more}")).await;
        assert_eq!(page["rows"], json!(5), "all that stand there: {page}");
        let (keys, next) = keys(&page);
        sizes.push(keys.len());
        found.extend(keys);
        let Some(token) = next else { break };
        more = format!("&page_token={token}");
    }
    let newest_first: Vec<String> = IDS.iter().rev().map(|id| format!(r#"{{"id":{id}}}"#)).collect();
    assert_eq!((found, sizes), (newest_first, vec![2, 2, 1]));

    let tables = service.ask("/v1/tables?page_size=1").await;
    let foreign = tables["next_page_token"].as_str().expect("a token");
    for (target, expected) in [
        (format!("{LIST}?page_token={foreign}"), (400, "PAGE_TOKEN_INVALID")),
        (format!("{LIST}?page_size=0"), (400, "REQUEST_INVALID")),
        (format!("{LIST}?limit=3"), (400, "REQUEST_INVALID")),
        (format!("{LIST}?show_keys=maybe"), (400, "REQUEST_INVALID")),
        ("/v1/tables/app/orders_history/quarantine".to_owned(), (404, "TABLE_UNKNOWN")),
        ("/v1/tables/app/order/quarantine".to_owned(), (404, "TABLE_UNKNOWN")),
        ("/v1/tables/lakehouse_control/app/quarantine".to_owned(), (404, "TABLE_UNKNOWN")),
    ] {
        let answer = service.get(&target, &[]).await;
        assert_eq!(problem(&answer), (expected.0, expected.1.to_owned()), "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_quarantine_has_an_empty_list_and_nothing_to_replay() {
    let installation = lake::installation_with(&tokens(), &[]).await;
    let service = Service::start(&installation).await;
    let listed = call(&service, "GET", LIST, "reader-token", "").await;
    assert_eq!(document(&listed), installation.ask(&["quarantine", "app.orders"]));
    let replay = call(&service, "POST", REPLAY, "operator-token", r#"{"reason":"test"}"#).await;
    assert_eq!(problem(&replay), (404, "TABLE_UNKNOWN".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_shown_to_who_may_read_the_table_and_its_quarantine_and_every_read_has_an_entry() {
    let config = format!("[audit]\nfile = \"audit.jsonl\"\n{}{OF_THE_MIRROR}", without_narrow());
    let installation = lake::with_quarantine(&config, &IDS).await;
    let service = Service::start(&installation).await;
    let target = format!("{LIST}?show_keys=true&page_size=2");
    assert_eq!(call(&service, "GET", &target, "reader-token", "").await.status(), 200);
    for (method, target) in [("GET", target.as_str()), ("POST", REPLAY)] {
        let refused = call(&service, method, target, "narrow-token", r#"{"reason":"test"}"#).await;
        assert_eq!(problem(&refused), (403, "FORBIDDEN".to_owned()), "{target}");
    }
    let (entries, all) = entries(&installation);
    assert_eq!(
        told(&entries),
        [
            ["read", "quarantine", "reader", "app.orders"],
            ["outcome", "quarantine", "reader", "app.orders"],
            ["refused", "refused", "mirror", "app.orders_quarantine"],
            ["refused", "refused", "mirror", "app.orders_quarantine"],
        ]
    );
    assert_eq!(entries[0]["detail"], json!({"show_keys": true, "limit": 2}));
    assert_eq!(entries[1]["detail"], json!({"rows": 2, "code": null}));
    assert!(!all.contains(r#"{\"id\""#), "a key stands in the trail: {all}");

    let full = format!("[audit]\nfile = \"/dev/full\"\n{ANONYMOUS}");
    let hidden = format!("{ANONYMOUS}rows = false\n");
    for (config, expected) in [(full, (503, "AUDIT_UNWRITABLE")), (hidden, (403, "ROWS_DISABLED"))] {
        let installation = lake::with_quarantine(&config, &IDS).await;
        let answer = Service::start(&installation).await.get(LIST, &[]).await;
        assert_eq!(problem(&answer), (expected.0, expected.1.to_owned()));
    }
}

/// Kind, action, principal and subject of entries.
fn told(entries: &[Value]) -> Vec<[&str; 4]> {
    let keys = ["kind", "action", "principal", "subject"];
    entries.iter().map(|entry| keys.map(|key| entry[key].as_str().unwrap_or("-"))).collect()
}

/// All tokens but the one that is used here under another name.
fn without_narrow() -> String {
    let all = tokens();
    let sections = all.split("[api.auth.tokens.").skip(1).filter(|section| !section.starts_with("narrow]"));
    sections.map(|section| format!("[api.auth.tokens.{section}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_asked_for_once_whoever_repeats_the_request() {
    let config = format!("[audit]\nfile = \"audit.jsonl\"\n{}", tokens());
    let installation = lake::with_quarantine(&config, &IDS).await;
    let service = Service::start(&installation).await;
    let ask = async |token: &str, body: &str| call(&service, "POST", REPLAY, token, body).await;
    for (token, body, expected) in [
        ("operator-token", "{}", (400, "REQUEST_INVALID")),
        ("operator-token", r#"{"reason":" "}"#, (400, "REQUEST_INVALID")),
        ("operator-token", r#"{"reason":"test","limit":1}"#, (400, "REQUEST_INVALID")),
        ("reader-token", r#"{"reason":"test"}"#, (403, "FORBIDDEN")),
    ] {
        let refused = ask(token, body).await;
        assert_eq!(problem(&refused), (expected.0, expected.1.to_owned()), "{token} {body}");
    }
    let first = ask("operator-token", r#"{"reason":"many may be an amount now"}"#).await;
    assert_eq!(first.status(), 202, "{}", text(&first));
    let first = document(&first);
    let id = first["id"].as_str().expect("an id");
    let expected = json!({"pipeline": "app", "table": "app.orders", "quarantine": "app.orders_quarantine", "rows": 5,
                          "requested": true, "id": id});
    assert_eq!(first, expected);
    assert_eq!(document(&ask("admin-token", r#"{"reason":"again"}"#).await), expected);
    assert_eq!(by_the_command_line(&installation), expected);

    let (entries, all) = entries(&installation);
    let asked: Vec<_> = told(&entries).into_iter().filter(|[kind, ..]| *kind != "refused").collect();
    assert_eq!(
        asked[..4],
        [
            ["intent", "quarantine_replay", "operator", "app"],
            ["outcome", "quarantine_replay", "operator", "app"],
            ["intent", "quarantine_replay", "admin", "app"],
            ["outcome", "quarantine_replay", "admin", "app"],
        ]
    );
    assert_eq!(asked.len(), 6, "{all}");
    let intent = entries.iter().find(|entry| entry["kind"] == "intent").expect("an intent");
    assert_eq!(intent["reason"], json!("many may be an amount now"));
    assert_eq!(intent["detail"]["table"], json!("app.orders"));
}

fn by_the_command_line(installation: &Installation) -> Value {
    installation.ask(&["quarantine", "app.orders", "--replay", "--reason", "test", "--yes"])
}
