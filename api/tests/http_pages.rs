//! Lists over HTTP, page by page while the lake changes behind every page: what is there all along is seen once, whatever comes
//! and goes. The list of operations is in `operate_http.rs`, which has some.

use std::collections::BTreeSet;
use std::sync::Arc;

use iceberg::spec::{NestedField, PrimitiveType, Schema, SnapshotReference, SnapshotRetention, Type};
use iceberg::{TableCreation, TableUpdate};
use lakehouse_core::catalog::{Catalog, Swap};
use lakehouse_core::schema::TableName;
use serde_json::{Value, json};

use crate::http::{Service, anonymous, catalog, entries, problem, text, tokens};
use crate::support::changing::Changing;
use crate::support::{Installation, lake};

const ANONYMOUS: &str = "[api]\nallow_anonymous = true\n";

/// The names of all items of a list, in its order; `between` is called behind each page but the last, with its number.
async fn walk(
    service: &Service,
    target: &str,
    [list, name]: [&str; 2],
    size: usize,
    mut between: impl AsyncFnMut(usize),
) -> Vec<String> {
    let mut all = Vec::new();
    let mut more = String::new();
    for number in 0.. {
        assert!(number < 100, "{target} does not end: {all:?}");
        let page = service.ask(&format!("{target}?page_size={size}{more}")).await;
        let items = page[list].as_array().expect("items");
        assert!(items.len() <= size, "{page}");
        all.extend(items.iter().map(|item| item[name].as_str().expect("a name").to_owned()));
        let Some(token) = page["next_page_token"].as_str() else { break };
        more = format!("&page_token={token}");
        between(number).await;
    }
    all
}

/// Every one of `stayed` once, no name twice, and at least two pages of it.
fn check(found: &[String], stayed: &[String], size: usize) {
    let seen: BTreeSet<&String> = found.iter().collect();
    assert_eq!(seen.len(), found.len(), "doubled: {found:?}");
    let missing: Vec<_> = stayed.iter().filter(|name| !seen.contains(name)).collect();
    assert!(missing.is_empty(), "missing {missing:?} of {found:?}");
    assert!(found.len() > size, "one page: {found:?}");
}

async fn change(installation: &Installation, updates: Vec<TableUpdate>) {
    let catalog = catalog(installation);
    let table = catalog.load(&TableName::new("app", "orders"), None).await.expect("a catalog").expect("a table");
    let changed = catalog.commit(&table, updates).await;
    assert!(matches!(changed, Ok(Swap::Landed(_))), "{changed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_and_history_are_seen_once_while_commits_land_and_snapshots_expire() {
    let mut changing = Changing::start(ANONYMOUS, 11).await;
    for _ in 0..12 {
        changing.step().await;
    }
    let service = Service::start(&changing.installation).await;
    for (list, target) in
        [("snapshots", "/v1/tables/app/orders/snapshots"), ("history", "/v1/tables/app/orders/history")]
    {
        let all = service.ask(target).await;
        let all: Vec<String> = all[list]
            .as_array()
            .expect("items")
            .iter()
            .map(|one| one["snapshot_id"].as_str().expect("an id").to_owned())
            .collect();
        assert_eq!(all, walk(&service, target, [list, "snapshot_id"], 2, async |_| ()).await, "{list}");
        let found = walk(&service, target, [list, "snapshot_id"], 2, async |number| {
            if number < 2 {
                changing.step().await;
            }
        })
        .await;
        check(&found, &all, 2);
    }

    // Two go: one that was seen already, and one that was not. No commit of the pipeline stands on them any more.
    let target = "/v1/tables/app/orders/snapshots";
    let all = walk(&service, target, ["snapshots", "snapshot_id"], 1_000, async |_| ()).await;
    let installation = &changing.installation;
    let found = walk(&service, target, ["snapshots", "snapshot_id"], 2, async |number| {
        if number == 1 {
            let gone = [&all[0], &all[5]].map(|id| id.parse().expect("a number"));
            change(installation, vec![TableUpdate::RemoveSnapshots { snapshot_ids: gone.to_vec() }]).await;
        }
    })
    .await;
    let stayed: Vec<String> = all.iter().filter(|id| **id != all[5]).cloned().collect();
    assert_eq!(found, stayed);
}

#[tokio::test(flavor = "multi_thread")]
async fn references_are_seen_once_while_tags_come_go_and_move() {
    let installation = anonymous().await;
    let service = Service::start(&installation).await;
    let target = "/v1/tables/app/orders";
    let snapshots = service.ask(&format!("{target}/snapshots")).await;
    let id = |number: usize| -> i64 {
        snapshots["snapshots"][number]["snapshot_id"].as_str().expect("an id").parse().expect("a number")
    };
    let tag = |name: &str, snapshot: i64| TableUpdate::SetSnapshotRef {
        ref_name: name.to_owned(),
        reference: SnapshotReference::new(snapshot, SnapshotRetention::Tag { max_ref_age_ms: None }),
    };
    let names: Vec<String> = (0..9).map(|number| format!("t{number}")).collect();
    change(&installation, names.iter().map(|name| tag(name, id(0))).collect()).await;
    let removed = |name: &str| TableUpdate::RemoveSnapshotRef { ref_name: name.to_owned() };
    let target = format!("{target}/refs");
    let found = walk(&service, &target, ["refs", "name"], 3, async |number| match number {
        // Before the page's end and behind it.
        0 => change(&installation, vec![tag("a", id(1)), tag("t45", id(1)), tag("t0", id(1)), tag("t5", id(1))]).await,
        1 => change(&installation, vec![removed("t1"), removed("t8")]).await,
        _ => {}
    })
    .await;
    let stayed: Vec<String> = names.iter().filter(|name| *name != "t8").cloned().chain(["main".to_owned()]).collect();
    check(&found, &stayed, 3);
    assert!(found.contains(&"t45".to_owned()) && !found.contains(&"a".to_owned()), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_pipelines_are_seen_once_while_tables_come_and_go() {
    let pipeline = |name: &str| {
        format!(
            "[pipelines.{name}.postgres]\nhost = \"127.0.0.1\"\nport = 1\ndatabase = \"d\"\nuser = \"u\"\ntls = \"disable\"\n"
        )
    };
    let config = format!("{}{}{ANONYMOUS}", pipeline("aside"), pipeline("later"));
    let installation = lake::installation_with(&config, &[]).await;
    let service = Service::start(&installation).await;
    let names = walk(&service, "/v1/pipelines", ["pipelines", "name"], 1, async |_| ()).await;
    assert_eq!(names, ["app", "aside", "later"]);

    let catalog = catalog(&installation);
    let create = async |namespace: &str, name: &str| {
        let id = NestedField::optional(1, "id", Type::Primitive(PrimitiveType::Long));
        let schema = Schema::builder().with_fields([Arc::new(id)]).build().expect("a schema");
        let creation = TableCreation::builder().name(name.to_owned()).schema(schema).build();
        catalog.create(&TableName::new(namespace, name), creation).await.expect("a table");
    };
    create("app", "m").await;
    let before = walk(&service, "/v1/tables", ["tables", "table"], 1_000, async |_| ()).await;
    assert_eq!(before, ["app.m", "app.orders", "app.orders_history"]);
    let found = walk(&service, "/v1/tables", ["tables", "table"], 1, async |number| {
        if number == 0 {
            create("app", "a").await;
            create("app", "n").await;
            create("zoo", "z").await;
        }
    })
    .await;
    assert_eq!(found, ["app.m", "app.n", "app.orders", "app.orders_history", "zoo.z"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_has_its_bounds_and_its_token_is_for_its_list_alone() {
    let installation = anonymous().await;
    let service = Service::start(&installation).await;
    let first = service.ask("/v1/tables?page_size=1").await;
    let token = first["next_page_token"].as_str().expect("a token");
    let mut changed = token.to_owned();
    let last = changed.pop();
    changed.push(if last == Some('A') { 'B' } else { 'A' });
    for (target, code) in [
        ("/v1/tables?page_size=0".to_owned(), "REQUEST_INVALID"),
        ("/v1/tables?page_size=1001".to_owned(), "REQUEST_INVALID"),
        ("/v1/tables?page_size=x".to_owned(), "REQUEST_INVALID"),
        ("/v1/tables?page=2".to_owned(), "REQUEST_INVALID"),
        ("/v1/tables?page_token=".to_owned(), "PAGE_TOKEN_INVALID"),
        (format!("/v1/tables?page_token={changed}"), "PAGE_TOKEN_INVALID"),
        (format!("/v1/pipelines?page_token={token}"), "PAGE_TOKEN_INVALID"),
        (format!("/v1/operations?page_token={token}"), "PAGE_TOKEN_INVALID"),
        (format!("/v1/tables/app/orders/refs?page_token={token}"), "PAGE_TOKEN_INVALID"),
        (format!("/v1/tables/app/orders/history?page_token={token}"), "PAGE_TOKEN_INVALID"),
        (format!("/v1/tables/app/orders/snapshots?page_token={token}"), "PAGE_TOKEN_INVALID"),
    ] {
        let answer = service.get(&target, &[]).await;
        assert_eq!(problem(&answer), (400, code.to_owned()), "{target}");
    }
    // A page is a whole answer: it has a tag of its own.
    let target = format!("/v1/tables?page_size=1&page_token={token}");
    let page = service.get(&target, &[]).await;
    let tag = page.header("etag").expect("a tag").to_owned();
    assert_eq!(service.get(&target, &[("if-none-match", &tag)]).await.status(), 304);
    let document: Value = serde_json::from_slice(&page.content()).expect("JSON");
    assert_eq!(
        (&document["tables"][0]["table"], &document["next_page_token"]),
        (&json!("app.orders_history"), &Value::Null)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_with_one_key_take_each_others_tokens() {
    let secret = "a secret of more than 32 characters";
    let config = format!("{ANONYMOUS}page_key = {{ env = \"PAGE_KEY\" }}\n");
    let shared = lake::installation_with(&config, &[]).await.variable("PAGE_KEY", secret);
    let own = anonymous().await;
    for (installation, expected) in [(&shared, 200), (&own, 400)] {
        let one = Service::start(installation).await;
        let first = one.ask("/v1/tables?page_size=1").await;
        let target = format!("/v1/tables?page_token={}", first["next_page_token"].as_str().expect("a token"));
        let other = Service::start(installation).await;
        let answer = other.get(&target, &[]).await;
        assert_eq!(answer.status(), expected, "{}", text(&answer));
        // And after a restart.
        drop(one);
        assert_eq!(Service::start(installation).await.get(&target, &[]).await.status(), expected);
    }
    let short = lake::installation_with(&config, &[]).await.variable("PAGE_KEY", "guessable");
    let refused = short.json(&["serve"]);
    assert_eq!(refused.error(), (2, "CONFIG_VALUE".to_owned()));
    assert!(!refused.text().contains("guessable"), "{refused:?}");
    let missing = lake::installation_with(&config, &[]).await;
    assert_eq!(missing.json(&["serve"]).error(), (1, "SECRET_UNREADABLE".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_trail_is_seen_once_from_its_newest_entry_on_while_it_grows() {
    let config = format!("[audit]\nfile = \"audit.jsonl\"\n{}", tokens());
    let installation = lake::installation_with(&config, &[]).await;
    let service = Service::start(&installation).await;
    let admin = [("authorization", "Bearer admin-token")];
    let read = async || {
        let rows = service.get("/v1/tables/app/orders/rows", &admin).await;
        assert_eq!(rows.status(), 200, "{}", text(&rows));
    };
    let page = async |more: &str| {
        let answer = service.get(&format!("/v1/audit?page_size=3{more}"), &admin).await;
        assert_eq!(answer.status(), 200, "{}", text(&answer));
        serde_json::from_slice::<Value>(&answer.content()).expect("JSON")
    };
    // An empty trail, and then two entries of each read.
    assert_eq!(page("").await, json!({"kept": true, "entries": []}));
    for _ in 0..4 {
        read().await;
    }
    let (written, _) = entries(&installation);
    assert_eq!(written.len(), 8);
    let (mut found, mut more) = (Vec::new(), String::new());
    for number in 0.. {
        assert!(number < 10, "{found:?}");
        let answer = page(&more).await;
        found.extend(answer["entries"].as_array().expect("entries").clone());
        let Some(token) = answer["next_page_token"].as_str() else { break };
        more = format!("&page_token={token}");
        read().await;
    }
    assert_eq!(found.len(), written.len());
    for (shown, line) in found.iter().zip(written.iter().rev()) {
        let keys: Vec<&String> = shown.as_object().expect("an entry").keys().collect();
        assert_eq!(keys.len(), 11, "{keys:?}");
        keys.into_iter().for_each(|key| assert_eq!(shown[key], line[key], "{key}"));
    }
    // A token of another list, and of a file that was moved away: the next entry begins a new one.
    let list = service.get("/v1/tables/app/orders/snapshots?page_size=1", &admin).await;
    let list: Value = serde_json::from_slice(&list.content()).expect("JSON");
    let other = format!("&page_token={}", list["next_page_token"].as_str().expect("more snapshots"));
    let file = installation.path().join("audit.jsonl");
    std::fs::rename(&file, installation.path().join("old.jsonl")).expect("moved away");
    read().await;
    for token in [&other, &more] {
        let refused = service.get(&format!("/v1/audit?page_size=3{token}"), &admin).await;
        assert_eq!(problem(&refused), (400, "PAGE_TOKEN_INVALID".to_owned()));
    }
    // What was not written is not shown.
    let changed = std::fs::read_to_string(&file).expect("a trail").replacen("admin", "nimda", 1);
    std::fs::write(&file, changed).expect("tampered with");
    let damaged = service.get("/v1/audit", &admin).await;
    assert_eq!(problem(&damaged), (503, "AUDIT_DAMAGED".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_trail_there_are_no_entries() {
    let installation = lake::installation_with(&tokens(), &[]).await;
    let service = Service::start(&installation).await;
    let answer = service.get("/v1/audit", &[("authorization", "Bearer admin-token")]).await;
    assert_eq!(answer.status(), 200, "{}", text(&answer));
    let answer: Value = serde_json::from_slice(&answer.content()).expect("JSON");
    assert_eq!(answer, json!({"kept": false, "entries": []}));
}
