//! Rows over HTTP are those that an independent reader finds, at any point of the past, for any filter, selection and order;
//! of several tables they agree at one cut; and of a point that is not there the answer says what is around it.
//!
//! Who may read what, formats and their bounds are in `http.rs`; reads that mean harm in `http_hostile.rs`.

use std::collections::BTreeSet;

use fastrand::Rng;
use iceberg::TableUpdate;
use lakehouse_core::catalog::{Catalog, Swap};
use lakehouse_core::position::Position;
use lakehouse_core::schema::TableName;
use serde_json::{Value, json};
use testkit::canonical;
use testkit::http::Exchange;
use testkit::oracle::difference;
use testkit::readers::{Engine, Judge};
use testkit::tier;

use crate::http::{Service, anonymous, catalog, problem, text};
use crate::support::changing::{Changing, Columns, Kind, TABLES, TEXTS};
use crate::support::lake;

const NDJSON: [(&str, &str); 1] = [("accept", "application/x-ndjson")];
const ANONYMOUS: &str = "[api]\nallow_anonymous = true\n";
/// Batches behind the copy; each is a snapshot of some of the tables.
const BATCHES: usize = 24;

/// What is asked of a table, for HTTP and for DuckDB.
struct Question {
    columns: Vec<(&'static str, Kind)>,
    /// As a tree and as SQL.
    filter: Option<(Value, String)>,
    /// Column, and whether it descends.
    order: Vec<(&'static str, bool)>,
    limit: Option<u64>,
}

impl Question {
    fn random(table: Columns, rng: &mut Rng) -> Self {
        let amount = rng.usize(1..=table.len());
        let mut columns = rng.choose_multiple(table.iter().copied(), amount);
        rng.shuffle(&mut columns);
        let filter = (rng.u8(..4) > 0).then(|| condition(table, 3, rng));
        // By the key at last, so that there is one order only.
        let limit = rng.bool().then(|| rng.u64(1..30));
        let mut order: Vec<(&str, bool)> = Vec::new();
        if limit.is_some() {
            let amount = rng.usize(..3);
            let others = table.iter().filter(|(_, kind)| *kind != Kind::Key).map(|(name, _)| *name);
            order.extend(rng.choose_multiple(others, amount).into_iter().map(|name| (name, false)));
            order.push(("id", false));
            order.iter_mut().for_each(|(_, descending)| *descending = rng.bool());
        }
        Self { columns, filter, order, limit }
    }

    fn names(&self) -> Vec<&'static str> {
        self.columns.iter().map(|(name, _)| *name).collect()
    }

    /// In an address or in a body, which mean the same.
    async fn ask(&self, service: &Service, table: &str, snapshot: &str, in_body: bool) -> Exchange {
        if in_body {
            let order = self.order.iter().map(|(name, descending)| json!({"column": name, "descending": descending}));
            let mut body = json!({"snapshot_id": snapshot, "select": self.names(), "limit": self.limit});
            body["order"] = order.collect();
            if let Some((tree, _)) = &self.filter {
                body["filter"] = tree.clone();
            }
            let target = format!("/v1/tables/app/{table}/rows:query");
            return service.send("POST", &target, &NDJSON, &body.to_string()).await;
        }
        let mut target =
            format!("/v1/tables/app/{table}/rows?snapshot_id={snapshot}&select={}", self.names().join(","));
        if let Some((tree, _)) = &self.filter {
            target += &format!("&filter={}", encoded(&tree.to_string()));
        }
        if !self.order.is_empty() {
            let word = |(name, descending): &(&str, bool)| format!("{name}{}", if *descending { ":desc" } else { "" });
            target += &format!("&order={}", self.order.iter().map(word).collect::<Vec<_>>().join(","));
        }
        target += &self.limit.map(|limit| format!("&limit={limit}")).unwrap_or_default();
        service.get(&target, &NDJSON).await
    }

    fn sql(&self) -> String {
        let column = |(name, kind): &(&str, Kind)| match kind {
            Kind::Uuid => format!("CAST(\"{name}\" AS VARCHAR) AS \"{name}\""),
            _ => format!("\"{name}\""),
        };
        let columns: Vec<String> = self.columns.iter().map(column).collect();
        let mut sql = format!("SELECT {} FROM t", columns.join(", "));
        if let Some((_, condition)) = &self.filter {
            sql += &format!(" WHERE {condition}");
        }
        if !self.order.is_empty() {
            let by = |(name, descending): &(&str, bool)| match descending {
                true => format!("t.\"{name}\" DESC NULLS FIRST"),
                false => format!("t.\"{name}\" ASC NULLS LAST"),
            };
            sql += &format!(" ORDER BY {}", self.order.iter().map(by).collect::<Vec<_>>().join(", "));
        }
        sql + &self.limit.map(|limit| format!(" LIMIT {limit}")).unwrap_or_default()
    }

    /// The rows of an answer as canonical lines, in their order, or sorted where they have none.
    fn lines(&self, answer: &Exchange) -> Vec<String> {
        let mut lines = rows(answer);
        let row = |row: Value| canonical::line(self.names().into_iter().map(|name| as_text(&row[name])).collect());
        let lines: Vec<String> = lines.drain(..).map(row).collect();
        self.ordered(lines)
    }

    fn ordered(&self, mut lines: Vec<String>) -> Vec<String> {
        if self.order.is_empty() {
            lines.sort_unstable();
        }
        lines
    }
}

/// The rows of a whole answer in lines.
fn rows(answer: &Exchange) -> Vec<Value> {
    assert_eq!(answer.status(), 200, "{}", text(answer));
    let mut rows: Vec<Value> =
        text(answer).lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect();
    let end = rows.pop().expect("a last line");
    assert_eq!((&end["_status"], &end["rows"]), (&json!("complete"), &json!(rows.len())), "{end}");
    assert_eq!(end["consistency"].as_str(), answer.header("consistency"));
    rows
}

/// Canonical text has numbers and truth values as strings.
fn as_text(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.to_string()),
        Value::Bool(truth) => json!(truth.to_string()),
        other => other.clone(),
    }
}

fn encoded(text: &str) -> String {
    let kept = |byte: u8| byte.is_ascii_alphanumeric();
    text.bytes().map(|byte| if kept(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A condition as a tree and as SQL.
fn condition(table: Columns, depth: u8, rng: &mut Rng) -> (Value, String) {
    match rng.u8(..if depth == 0 { 4 } else { 8 }) {
        5 | 6 => {
            let (word, operator) = if rng.bool() { ("and", " AND ") } else { ("or", " OR ") };
            let parts: Vec<(Value, String)> = (0..rng.usize(1..4)).map(|_| condition(table, depth - 1, rng)).collect();
            let (trees, texts): (Vec<Value>, Vec<String>) = parts.into_iter().unzip();
            (json!({word: trees}), format!("({})", texts.join(operator)))
        }
        7 => {
            let (tree, text) = condition(table, depth - 1, rng);
            (json!({"not": tree}), format!("(NOT {text})"))
        }
        _ => leaf(table, rng),
    }
}

fn leaf(table: Columns, rng: &mut Rng) -> (Value, String) {
    let (column, kind) = table[rng.usize(..table.len())];
    let value = literal(kind, rng).filter(|_| rng.u8(..6) > 0);
    let Some((value, sql)) = value else {
        return match rng.bool() {
            true => (json!({"is_null": {"column": column}}), format!("(\"{column}\" IS NULL)")),
            false => (json!({"is_not_null": {"column": column}}), format!("(\"{column}\" IS NOT NULL)")),
        };
    };
    if kind == Kind::Text && rng.u8(..3) == 0 {
        let pattern = ["a%", "%b%", "_", "%", "%'B%", "ün_"][rng.usize(..6)];
        let sql = format!("(\"{column}\" LIKE '{}')", pattern.replace('\'', "''"));
        return (json!({"like": {"column": column, "value": pattern}}), sql);
    }
    if rng.u8(..5) == 0 {
        let (other, other_sql) = literal(kind, rng).expect("it has had one");
        return (
            json!({"in": {"column": column, "values": [value, other]}}),
            format!("(\"{column}\" IN ({sql}, {other_sql}))"),
        );
    }
    let operators = [("eq", "="), ("ne", "<>"), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">=")];
    let (word, operator) = operators[rng.usize(..if kind == Kind::Truth { 2 } else { 6 })];
    (json!({word: {"column": column, "value": value}}), format!("(\"{column}\" {operator} {sql})"))
}

/// A value to compare a column with, in JSON and in SQL; of some kinds nobody compares values.
fn literal(kind: Kind, rng: &mut Rng) -> Option<(Value, String)> {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let number = |number: i64, rng: &mut Rng| {
        (if rng.bool() { json!(number) } else { json!(number.to_string()) }, number.to_string())
    };
    Some(match kind {
        Kind::Key => {
            let key = rng.i64(0..150);
            number(key, rng)
        }
        Kind::Long => {
            let long = rng.i64(-5..5);
            number(long, rng)
        }
        Kind::Part => {
            let part = format!("p{}", rng.u8(..4));
            (json!(part), quoted(&part))
        }
        Kind::Text => {
            let text = TEXTS[rng.usize(..TEXTS.len())];
            (json!(text), quoted(text))
        }
        Kind::Decimal => {
            let cents = rng.i32(-500..500);
            let sign = if cents < 0 { "-" } else { "" };
            let decimal = format!("{sign}{}.{:02}", cents.abs() / 100, cents.abs() % 100);
            (json!(decimal), decimal)
        }
        Kind::Uuid => {
            let pair = format!("{:02x}", rng.u8(..20));
            let uuid = [4, 2, 2, 2, 6].map(|pairs| pair.repeat(pairs)).join("-");
            (json!(uuid), quoted(&uuid))
        }
        Kind::Instant => {
            let instant = format!("1970-01-01T00:00:{:02}Z", rng.u8(..60));
            (json!(instant), format!("TIMESTAMPTZ '{instant}'"))
        }
        Kind::Truth => {
            let truth = rng.bool();
            (json!(truth), truth.to_string())
        }
        Kind::Double => {
            let double = f64::from(rng.i32(-10..10)) * 0.5;
            (json!(double), format!("{double:?}"))
        }
        Kind::Day => {
            let day = format!("1970-01-{:02}", rng.u8(1..29));
            (json!(day), format!("DATE '{day}'"))
        }
        Kind::Clock | Kind::Bytes => return None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_duckdbs_at_random_snapshots_for_random_questions() {
    let seed = tier::seed();
    println!("LAKEHOUSE_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let mut changing = Changing::start(ANONYMOUS, rng.u64(..)).await;
    for _ in 0..BATCHES {
        changing.step().await;
    }
    let service = Service::start(&changing.installation).await;
    let mut judge = Judge::start(Engine::DuckDb).await;
    let database = changing.installation.path().join("lake/catalog.db");
    let mut tables = Vec::new();
    for (table, columns) in TABLES {
        let listed = service.ask(&format!("/v1/tables/app/{table}/snapshots")).await;
        let ids = listed["snapshots"].as_array().expect("snapshots").iter().map(|one| one["snapshot_id"].clone());
        let metadata = judge.metadata(&database, &format!("app.{table}")).await;
        tables.push((table, columns, ids.collect::<Vec<_>>(), metadata));
    }
    let mut shown = 0;
    for _ in 0..tier::size("LAKEHOUSE_HTTP_ROWS", 50, 2_000) {
        let (table, columns, ids, metadata) = &tables[rng.usize(..tables.len())];
        let snapshot = ids[rng.usize(..ids.len())].as_str().expect("an id");
        for in_body in [false, true] {
            let question = Question::random(columns, &mut rng);
            let sql = question.sql();
            let answer = question.ask(&service, table, snapshot, in_body).await;
            assert_eq!(answer.header("snapshot-id"), Some(snapshot), "{}", text(&answer));
            let found = question.lines(&answer);
            let expected = judge.sql(metadata, Some(snapshot.parse().expect("a number")), &sql).await;
            let difference = difference(&question.ordered(expected), &found);
            assert!(
                difference.is_none(),
                "seed {seed}, {table} at {snapshot}: {sql}\n{}",
                difference.unwrap_or_default()
            );
            shown += found.len();
        }
    }
    assert!(shown > 100, "seed {seed}: the questions ask for nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_tables_agree_at_one_cut_while_their_pipeline_goes_on() {
    let mut changing = Changing::start(ANONYMOUS, tier::seed()).await;
    let service = Service::start(&changing.installation).await;
    let cuts = changing.cuts.clone();
    let writing = async {
        for _ in 0..10 {
            changing.step().await;
        }
    };
    let reading = async {
        let mut seen = BTreeSet::new();
        for _ in 0..10 {
            // The newest cut, by its position; then each table at it.
            let pipeline = service.ask("/v1/pipelines/app").await;
            let cut = pipeline["cut"]["position"].as_str().expect("a cut").to_owned();
            let position: Position = cut.parse().expect("a position");
            let expected = cuts.lock().expect("not poisoned")[&position.offset()].clone();
            for ((table, _), expected) in TABLES.into_iter().zip(expected) {
                let body = json!({"cut": cut, "select": ["id"]}).to_string();
                let target = format!("/v1/tables/app/{table}/rows:query");
                let answer = service.send("POST", &target, &NDJSON, &body).await;
                assert_eq!((answer.header("consistency"), answer.header("cut")), (Some("cut"), Some(cut.as_str())));
                let keys = rows(&answer).into_iter().map(|row| row["id"].as_i64().expect("a key")).collect();
                assert_eq!(expected, keys, "{table} at {cut}");
            }
            seen.insert(cut);
        }
        seen
    };
    let ((), seen) = tokio::join!(writing, reading);
    assert!(!seen.is_empty());
    // Newest snapshots are each table's own, and say so.
    let newest = service.ask("/v1/tables/app/orders/rows?limit=1").await;
    assert_eq!(newest["consistency"], "per_table");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_in_a_body_is_refused_as_one_in_an_address_is() {
    let installation = anonymous().await;
    let service = Service::start(&installation).await;
    let target = "/v1/tables/app/orders/rows:query";
    for (body, status, code) in [
        (json!({"snapshot": "1"}), 400, "REQUEST_INVALID"),
        (json!({"where": "id = 1"}), 400, "REQUEST_INVALID"),
        (json!({"snapshot_id": "1", "tag": "main"}), 400, "REQUEST_INVALID"),
        (json!({"snapshot_id": "1"}), 404, "SNAPSHOT_UNKNOWN"),
        (json!({"as_of": "yesterday"}), 400, "REQUEST_INVALID"),
        (json!({"tag": "mian"}), 404, "TAG_UNKNOWN"),
        (json!({"cut": "0/1"}), 404, "CUT_UNKNOWN"),
        (json!({"select": "id"}), 400, "REQUEST_INVALID"),
        (json!({"select": []}), 400, "REQUEST_INVALID"),
        (json!({"select": ["id", "id"]}), 400, "REQUEST_INVALID"),
        (json!({"select": ["nmae"]}), 400, "COLUMN_UNKNOWN"),
        (json!({"filter": "id = 1"}), 400, "FILTER_INVALID"),
        (json!({"filter": {"eq": {"column": "nmae", "value": 1}}}), 400, "FILTER_INVALID"),
        (json!({"filter": {"eq": {"column": "id", "value": "x"}}}), 400, "FILTER_INVALID"),
        (json!({"filter": {"eq": {"column": "id", "value": 1, "or": 2}}}), 400, "FILTER_INVALID"),
        (json!({"order": [{"column": "nmae"}]}), 400, "COLUMN_UNKNOWN"),
        (json!({"order": ["id"]}), 400, "REQUEST_INVALID"),
        (json!({"order": [{"column": "id", "nulls": "first"}]}), 400, "REQUEST_INVALID"),
        (json!({"order": [{"column": "id"}], "limit": 10_001}), 400, "ROWS_LIMIT"),
        (json!({"limit": 10_001}), 400, "ROWS_LIMIT"),
        (json!({"limit": -1}), 400, "REQUEST_INVALID"),
        (json!([]), 400, "REQUEST_INVALID"),
    ] {
        let answer = service.send("POST", target, &[], &body.to_string()).await;
        assert_eq!(problem(&answer), (status, code.to_owned()), "{body}");
    }
    let long = json!({"order": [{"column": "id"}], "limit": 10_001}).to_string();
    let csv = service.send("POST", target, &[("accept", "text/csv")], &long).await;
    assert_eq!(problem(&csv), (400, "ROWS_LIMIT".to_owned()), "also where rows without an order have no bound");
    let looked = service.get(target, &[]).await;
    assert_eq!(problem(&looked), (405, "METHOD_UNKNOWN".to_owned()));
    let whole = service.send("POST", target, &[], "").await;
    assert_eq!(whole.content(), service.get("/v1/tables/app/orders/rows", &[]).await.content());
    assert_eq!(whole.header("etag"), None);

    let ordered = service.ask("/v1/tables/app/orders/rows?select=id&order=amount:desc,id&limit=3").await;
    assert_eq!(ordered["rows"], json!([{"id": 5}, {"id": 1}, {"id": 4}]), "NULL is the highest");
    let ordered = service.ask("/v1/tables/app/orders/rows?select=name,id&order=name").await;
    assert_eq!(ordered["rows"][3], json!({"name": null, "id": 4}));
}

/// What an answer to a point that is not there says is around it.
fn nearest(answer: &Exchange, status: u16, code: &str) -> Value {
    assert_eq!(problem(answer), (status, code.to_owned()), "{}", text(answer));
    serde_json::from_slice::<Value>(&answer.content()).expect("JSON")["nearest"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_point_that_is_not_there_is_answered_with_what_is_around_it() {
    let mut changing = Changing::start(ANONYMOUS, 7).await;
    // Until the table has enough of a past.
    let mut positions = Vec::new();
    let ids = loop {
        changing.step().await;
        positions.push(changing.position());
        let told = changing.installation.ask(&["snapshots", "app.orders"]);
        let ids: Vec<String> = told["snapshots"]
            .as_array()
            .expect("snapshots")
            .iter()
            .map(|one| one["snapshot_id"].as_str().expect("an id").to_owned())
            .collect();
        if ids.len() >= 6 && positions.len() >= 6 {
            break ids;
        }
    };
    let service = Service::start(&changing.installation).await;
    let target = "/v1/tables/app/orders";
    // Before the beginning of all.
    let early = service.get(&format!("{target}/rows?as_of=2000-01-01"), &[]).await;
    let around = nearest(&early, 404, "SNAPSHOT_UNKNOWN");
    assert_eq!((&around["older"], &around["newer"]["snapshot_id"]), (&Value::Null, &json!(ids[0])));
    let early = service.get(&format!("{target}/rows?cut=0/1"), &[]).await;
    let around = nearest(&early, 404, "CUT_UNKNOWN");
    assert_eq!((&around["older"], &around["newer"]["snapshot_id"]), (&Value::Null, &json!(ids[0])));
    // What never was has nothing around it, but a name or number that is like it.
    for (query, code) in [("tag=mian", "TAG_UNKNOWN"), ("snapshot_id=1", "SNAPSHOT_UNKNOWN")] {
        let answer = service.get(&format!("{target}/rows?{query}"), &[]).await;
        assert_eq!(nearest(&answer, 404, code), Value::Null, "{query}");
        assert!(text(&answer).contains("the nearest one"), "{}", text(&answer));
    }
    // A time or position beyond the newest is the newest.
    for query in ["as_of=2999-01-01", "cut=FFFFFFFF/0"] {
        let answer = service.get(&format!("{target}/rows?{query}"), &[]).await;
        assert_eq!((answer.status(), answer.header("snapshot-id")), (200, ids.last().map(String::as_str)), "{query}");
    }

    // All but the newest snapshot expires, and so whatever was built on the first one.
    let first = service.get(&format!("{target}/rows?cut={}&limit=0", positions[0]), &[]).await;
    let first = first.header("snapshot-id").expect("a snapshot").to_owned();
    let catalog = catalog(&changing.installation);
    let table = catalog.load(&TableName::new("app", "orders"), None).await.expect("a catalog").expect("a table");
    let (newest, removed) = ids.split_last().expect("snapshots");
    let removed: Vec<i64> = removed.iter().map(|id| id.parse().expect("a number")).collect();
    let expired = catalog.commit(&table, vec![TableUpdate::RemoveSnapshots { snapshot_ids: removed }]).await;
    assert!(matches!(expired, Ok(Swap::Landed(_))), "{expired:?}");
    // The first is known by its cut alone, the second by its child.
    for query in [
        format!("snapshot_id={first}"),
        format!("snapshot_id={}", ids[ids.len() - 2]),
        "as_of=2000-01-01".to_owned(),
        format!("cut={}", positions[0]),
    ] {
        let answer = service.get(&format!("{target}/rows?{query}"), &[]).await;
        let around = nearest(&answer, 410, "SNAPSHOT_EXPIRED");
        assert_eq!(around["newer"]["snapshot_id"], json!(newest), "{query}: {around}");
        let point = query.split_once('=').expect("a point").1;
        let diff = service.get(&format!("{target}/diff?from={point}&to=main"), &[]).await;
        if !query.starts_with("as_of") {
            assert_eq!(nearest(&diff, 410, "SNAPSHOT_EXPIRED")["newer"]["snapshot_id"], json!(newest), "{query}");
        }
        let diff = service.get(&format!("{target}/diff?from=main&to=2000-01-01T00:00:00Z"), &[]).await;
        assert_eq!(nearest(&diff, 410, "SNAPSHOT_EXPIRED")["newer"]["snapshot_id"], json!(newest));
    }
    let kept = service.get(&format!("{target}/rows?snapshot_id={newest}"), &[]).await;
    assert_eq!(kept.status(), 200);
    // The control table, too, forgets its oldest cuts; that there were some is known.
    let control = catalog.load(&TableName::new("lakehouse_control", "app"), None).await.expect("a catalog");
    let control = control.expect("a control table");
    let head = control.snapshot_id();
    let removed = control.metadata.snapshots().map(|snapshot| snapshot.snapshot_id());
    let removed: Vec<i64> = removed.filter(|id| Some(*id) != head).collect();
    let expired = catalog.commit(&control, vec![TableUpdate::RemoveSnapshots { snapshot_ids: removed }]).await;
    assert!(matches!(expired, Ok(Swap::Landed(_))), "{expired:?}");
    let answer = service.get(&format!("{target}/rows?cut={}", positions[0]), &[]).await;
    assert_eq!(nearest(&answer, 410, "SNAPSHOT_EXPIRED")["newer"]["snapshot_id"], json!(newest));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_has_its_bound_in_bytes_and_is_cut_off_visibly() {
    // Rows of 1 MiB: the first batch has sixteen of them.
    let wide: Vec<String> = (10..74).map(|id| id.to_string().repeat(1 << 19)).collect();
    let rows: Vec<lake::Row<'_>> = (10..).zip(&wide).map(|(id, text)| (id, Some(text.as_str()), None)).collect();
    let installation = lake::installation_with(&format!("{ANONYMOUS}max_bytes = \"1MiB\"\n"), &rows).await;
    let service = Service::start(&installation).await;
    let target = "/v1/tables/app/orders/rows";
    let cut = service.get(target, &NDJSON).await;
    let end: Value = serde_json::from_str(text(&cut).lines().last().expect("a last line")).expect("JSON");
    assert_eq!(end, json!({"_status": "failed", "code": "ROWS_LIMIT"}));
    let small = service.get(&format!("{target}?select=id"), &NDJSON).await;
    assert_eq!(self::rows(&small).len(), 68);
}
