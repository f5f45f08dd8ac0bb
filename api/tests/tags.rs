//! Names of snapshots, by the command line and over HTTP: who may give, move and take them away, what is refused, and what
//! is written down.

use crate::http::{Service, entries, problem, text, tokens};
use crate::support::{Installation, lake};
use serde_json::{Value, json};
use testkit::http::Exchange;

/// Snapshots of `app.orders`, oldest first.
fn snapshots(installation: &Installation) -> Vec<(String, Vec<String>)> {
    let told = installation.ask(&["snapshots", "app.orders"]);
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let tags = |one: &Value| one["tags"].as_array().expect("tags").iter().map(text).collect();
    let all = told["snapshots"].as_array().expect("snapshots");
    all.iter().map(|one| (text(&one["snapshot_id"]), tags(one))).collect()
}

fn tags(installation: &Installation) -> Vec<String> {
    let mut tags: Vec<String> = snapshots(installation).into_iter().flat_map(|(_, tags)| tags).collect();
    tags.sort_unstable();
    tags
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_named_read_by_its_name_and_loses_it() {
    let installation = lake::installation_with("[audit]\nfile = \"audit.jsonl\"\n", &[]).await;
    let ids: Vec<String> = snapshots(&installation).into_iter().map(|(id, _)| id).collect();
    let newest = ids.last().expect("snapshots");
    let told = installation.ask(&["tag", "app.orders", "--name", "v1", "--cut", "0/64"]);
    let first = told["snapshot_id"].as_str().expect("an id").to_owned();
    assert_eq!(
        told,
        json!({"table": "app.orders", "tag": "v1", "snapshot_id": first, "previous": null, "removed": false})
    );
    let read = |point: &[&str]| installation.ask(&[&["rows", "app.orders"], point].concat())["rows"].clone();
    assert_eq!(read(&["--tag", "v1"]), read(&["--cut", "0/64"]));
    assert_ne!(read(&["--tag", "v1"]), read(&[]));
    // The newest, where nothing else is said; the same again is no error; another one is, unless it is to move.
    assert_eq!(
        installation.ask(&["protect", "app.orders", "--name", "audit", "--reason=kept"])["snapshot_id"],
        *newest
    );
    assert_eq!(installation.ask(&["tag", "app.orders", "--name", "v1", "--cut", "0/64"])["snapshot_id"], *first);
    let tag = ["tag", "app.orders", "--name", "v1"];
    assert_eq!(installation.json(&tag).error(), (3, "TAG_MOVED".to_owned()));
    assert_eq!(installation.json(&[&tag[..], &["--move"]].concat()).error(), (2, "NOT_CONFIRMED".to_owned()));
    let moved = installation.ask(&[&tag[..], &["--move", "--yes"]].concat());
    assert_eq!((&moved["snapshot_id"], &moved["previous"]), (&json!(newest), &json!(first)));
    assert_eq!(tags(&installation), ["protected/audit", "v1"]);

    let remove = [&tag[..], &["--remove"]].concat();
    assert_eq!(installation.json(&remove).error(), (2, "NOT_CONFIRMED".to_owned()));
    let removed = installation.ask(&[&remove[..], &["--yes"]].concat());
    assert_eq!((&removed["removed"], &removed["snapshot_id"]), (&json!(true), &json!(newest)));
    let unprotect = ["protect", "app.orders", "--name", "audit", "--remove", "--yes"];
    assert_eq!(installation.json(&unprotect).error(), (2, "USAGE".to_owned()), "without a reason");
    installation.ask(&[&unprotect[..], &["--reason=over"]].concat());
    assert!(tags(&installation).is_empty());
    assert_eq!(installation.ask(&["fsck"])["verdict"], "sound");

    let (entries, all) = entries(&installation);
    let intents: Vec<_> = entries.iter().filter(|entry| entry["kind"] == "intent").collect();
    let actions: Vec<_> = intents.iter().map(|entry| entry["action"].as_str().unwrap_or_default()).collect();
    assert_eq!(actions, ["tag", "protect", "tag", "tag", "tag", "untag", "unprotect"], "{all}");
    assert_eq!(intents[0]["detail"], json!({"tag": "v1", "snapshot_id": first, "previous": null}));
    assert_eq!((&intents[6]["subject"], &intents[6]["reason"]), (&json!("app.orders"), &json!("over")));
    let codes = entries.iter().filter(|entry| entry["kind"] == "outcome").map(|e| e["detail"]["code"].clone());
    assert_eq!(json!(codes.collect::<Vec<_>>()), json!([null, null, null, "TAG_MOVED", null, null, null]), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_for_people_are_refused() {
    let installation = lake::installation().await;
    for (arguments, error) in [
        (&["tag", "app.orders", "--name", "main"][..], (2, "TAG_NAME")),
        (&["tag", "app.orders", "--name", "undo/x"], (2, "TAG_NAME")),
        (&["tag", "app.orders", "--name", "daily/2026-11-21"], (2, "TAG_NAME")),
        (&["tag", "app.orders", "--name", "protected/x"], (2, "TAG_NAME")),
        (&["tag", "app.orders", "--name", "0/64"], (2, "TAG_NAME")),
        (&["protect", "app.orders", "--name", "a b", "--reason=x"], (2, "TAG_NAME")),
        (&["tag", "app.orders"], (2, "USAGE")),
        (&["tag", "app.orders", "--name", "x", "--remove", "--cut", "0/64"], (2, "USAGE")),
        (&["tag", "app.orders", "--name", "x", "--remove", "--yes"], (1, "TAG_UNKNOWN")),
        (&["tag", "app.orders", "--name", "x", "--snapshot", "1"], (1, "SNAPSHOT_UNKNOWN")),
        (&["tag", "app.order", "--name", "x"], (1, "TABLE_UNKNOWN")),
        (&["tag", "lakehouse_control.app", "--name", "x"], (1, "TABLE_UNKNOWN")),
    ] {
        let (exit, code) = error;
        assert_eq!(installation.json(arguments).error(), (exit, code.to_owned()), "{arguments:?}");
    }
    assert!(tags(&installation).is_empty());
}

/// One call with a token and one more header.
async fn call(service: &Service, token: &str, method: &str, name: &str, seen: (&str, &str), body: &str) -> Exchange {
    let authorization = format!("Bearer {token}-token");
    let headers = [("authorization", authorization.as_str()), seen];
    let target = format!("/v1/tables/app/orders/tags/{name}");
    let headers = if seen.0.is_empty() { &headers[..1] } else { &headers[..] };
    service.send(method, &target, headers, body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_given_over_http_on_what_was_seen_and_nothing_else() {
    let config = format!("[audit]\nfile = \"audit.jsonl\"\n{}", tokens());
    let installation = lake::installation_with(&config, &[]).await;
    let service = Service::start(&installation).await;
    let (nothing, none) = (("if-none-match", "*"), ("", ""));
    let document = |answer: &Exchange| serde_json::from_slice::<Value>(&answer.content()).expect("JSON");

    for (name, seen, body, status, code) in [
        ("v1", none, r#"{"cut":"0/64"}"#, 428, "PRECONDITION_REQUIRED"),
        ("v1", ("if-match", "\"x\""), r#"{"cut":"0/64"}"#, 412, "TAG_MOVED"),
        ("v1", nothing, "{}", 400, "REQUEST_INVALID"),
        ("v1", nothing, r#"{"cut":"0/64","tag":"x"}"#, 400, "REQUEST_INVALID"),
        ("v1", nothing, r#"{"snapshot_id":"1"}"#, 404, "SNAPSHOT_UNKNOWN"),
        ("main", nothing, r#"{"cut":"0/64"}"#, 400, "TAG_NAME"),
        ("undo%2Fx", nothing, r#"{"cut":"0/64"}"#, 400, "TAG_NAME"),
    ] {
        let answer = call(&service, "operator", "PUT", name, seen, body).await;
        assert_eq!(problem(&answer), (status, code.to_owned()), "{name} {seen:?} {body}");
    }
    assert!(tags(&installation).is_empty());
    assert_eq!(problem(&call(&service, "reader", "GET", "v1", none, "").await), (404, "TAG_UNKNOWN".to_owned()));

    let created = call(&service, "operator", "PUT", "v1", nothing, r#"{"cut":"0/64"}"#).await;
    assert_eq!(created.status(), 201, "{}", text(&created));
    let told = document(&created);
    assert_eq!((&told["table"], &told["tag"], &told["protected"]), (&json!("app.orders"), &json!("v1"), &json!(false)));
    let etag = created.header("etag").expect("a tag").to_owned();
    let shown = call(&service, "reader", "GET", "v1", none, "").await;
    assert_eq!((shown.status(), document(&shown), shown.header("etag")), (200, told.clone(), Some(etag.as_str())));
    assert_eq!(call(&service, "reader", "GET", "v1", ("if-none-match", &etag), "").await.status(), 304);
    // Its answer was lost: the same again is what it was. Another snapshot is not, unless what is there was seen.
    let again = call(&service, "operator", "PUT", "v1", nothing, r#"{"cut":"0/64"}"#).await;
    assert_eq!((again.status(), document(&again)), (200, told.clone()));
    for seen in [nothing, ("if-match", "\"x\""), ("if-match", "*")] {
        let answer = call(&service, "operator", "PUT", "v1", seen, r#"{"cut":"0/C8"}"#).await;
        assert_eq!(problem(&answer), (412, "TAG_MOVED".to_owned()), "{seen:?}");
    }
    let moved = call(&service, "operator", "PUT", "v1", ("if-match", &etag), r#"{"cut":"0/C8"}"#).await;
    assert_eq!(moved.status(), 200, "{}", text(&moved));
    assert_ne!(document(&moved)["snapshot_id"], told["snapshot_id"]);

    let stale = call(&service, "operator", "DELETE", "v1", ("if-match", &etag), "").await;
    assert_eq!(problem(&stale), (412, "TAG_MOVED".to_owned()));
    let etag = moved.header("etag").expect("a tag");
    let removed = call(&service, "operator", "DELETE", "v1", ("if-match", etag), "").await;
    assert_eq!((removed.status(), removed.content().len()), (204, 0));
    let again = call(&service, "operator", "DELETE", "v1", ("if-match", etag), "").await;
    assert_eq!(problem(&again), (404, "TAG_UNKNOWN".to_owned()));

    // A protected one is given by an operator and taken away by an admin, who says why.
    let name = "protected%2Faudit";
    let kept = call(&service, "operator", "PUT", name, nothing, r#"{"cut":"0/64","reason":"the auditors"}"#).await;
    assert_eq!((kept.status(), &document(&kept)["protected"]), (201, &json!(true)), "{}", text(&kept));
    let etag = kept.header("etag").expect("a tag");
    let moved = call(&service, "admin", "PUT", name, ("if-match", etag), r#"{"cut":"0/C8"}"#).await;
    assert_eq!(problem(&moved), (412, "TAG_MOVED".to_owned()), "it never moves");
    for (token, body, status, code) in [
        ("reader", r#"{"reason":"over"}"#, 403, "FORBIDDEN"),
        ("operator", r#"{"reason":"over"}"#, 403, "FORBIDDEN"),
        ("narrow", r#"{"reason":"over"}"#, 403, "FORBIDDEN"),
        ("admin", "", 400, "REQUEST_INVALID"),
    ] {
        let answer = call(&service, token, "DELETE", name, ("if-match", etag), body).await;
        assert_eq!(problem(&answer), (status, code.to_owned()), "{token} {body}");
    }
    assert_eq!(tags(&installation), ["protected/audit"]);
    let removed = call(&service, "admin", "DELETE", name, ("if-match", etag), r#"{"reason":"over"}"#).await;
    assert_eq!(removed.status(), 204, "{}", text(&removed));
    assert!(tags(&installation).is_empty());

    let (entries, all) = entries(&installation);
    let told = |entry: &&Value| entry["kind"] == "intent";
    let intents: Vec<_> = entries.iter().filter(told).map(|e| (e["action"].clone(), e["principal"].clone())).collect();
    let expected = [
        ("tag", "operator"),
        ("tag", "operator"),
        ("untag", "operator"),
        ("protect", "operator"),
        ("protect", "admin"),
        ("unprotect", "admin"),
    ];
    assert_eq!(intents, expected.map(|(action, who)| (json!(action), json!(who))), "{all}");
    let last = entries.last().expect("entries");
    assert_eq!((&last["kind"], &last["detail"]), (&json!("outcome"), &json!({"code": null})), "{all}");
}
