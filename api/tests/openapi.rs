//! The OpenAPI document: one and the same from the command line, from the service and in the repository. A change of it
//! stands in a diff, and says here what it takes from clients.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use crate::http::Service;
use crate::support::{Installation, lake};
use serde_json::{Map, Value, json};
use testkit::http::Exchange;

const RENEW: &str = "lakehouse openapi > api/openapi.json";

/// As the binary prints it, without a configuration.
fn printed() -> String {
    let answer = Installation::new("this is not TOML").run(&["openapi"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    answer.text().to_owned()
}

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(&printed()).expect("JSON"));

/// Codes that an answer of this status may have by the document; `None` where it does not tell.
pub(crate) fn codes(status: u16) -> Option<&'static Vec<Value>> {
    let problem = &DOCUMENT["components"]["schemas"][format!("Problem{status}")];
    problem["allOf"][1]["properties"]["code"]["enum"].as_array()
}

/// Where the document knows the operation, it knows the answer's status and type.
pub(crate) fn check_answer(method: &str, target: &str, answer: &Exchange) {
    let address = target.split('?').next().unwrap_or_default();
    let fits = |path: &str| {
        let (path, address): (Vec<_>, Vec<_>) = (path.split('/').collect(), address.split('/').collect());
        let part = |(known, part): (&&str, &&str)| known == part || known.starts_with('{') && !part.is_empty();
        path.len() == address.len() && path.iter().zip(&address).all(part)
    };
    let item = DOCUMENT["paths"].as_object().expect("addresses").iter().find(|(path, _)| fits(path));
    let Some(operation) = item.and_then(|(_, item)| item.get(method.to_lowercase())) else { return };
    let known = operation["responses"].get(answer.status().to_string());
    let known = known.unwrap_or_else(|| panic!("{method} {target}: {} is not in the document", answer.status()));
    if let (Some(types), Some(own)) = (known["content"].as_object(), answer.header("content-type")) {
        let own = own.split(';').next().unwrap_or_default();
        assert!(types.contains_key(own), "{method} {target}: {own} is not in the document");
    }
}

/// All that the document knows, with method and path.
pub(crate) fn operations() -> impl Iterator<Item = (String, String, &'static Value)> {
    let paths = DOCUMENT["paths"].as_object().expect("addresses").iter();
    paths.flat_map(|(path, item)| {
        let operations = item.as_object().expect("operations").iter();
        operations.map(move |(method, operation)| (method.to_uppercase(), path.clone(), operation))
    })
}

/// The first lines that differ.
fn first_difference(old: &str, new: &str) -> String {
    let number = old.lines().zip(new.lines()).take_while(|(old, new)| old == new).count();
    let line = |text: &str| text.lines().nth(number).unwrap_or("(the end)").trim().to_owned();
    format!("line {}: {} is now {}", number + 1, line(old), line(new))
}

#[test]
fn the_document_is_that_of_the_repository() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../openapi.json");
    let committed =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("api/openapi.json: {error}; make it: {RENEW}"));
    let printed = printed();
    if committed == printed {
        return;
    }
    let parsed = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
    let breaks = breaks(&parsed(&committed), &parsed(&printed));
    panic!(
        "api/openapi.json is not what this binary prints; {}\nWhat clients of it would miss, which needs a /v2: \
         {breaks:#?}\nIf the change is wanted, renew the file: {RENEW}",
        first_difference(&committed, &printed)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_gives_the_same_document_to_everybody() {
    let closed = lake::installation_with("[api]\n", &[]).await;
    let service = Service::start(&closed).await;
    let answer = service.get("/v1/openapi.json", &[]).await;
    assert_eq!((answer.status(), answer.header("content-type")), (200, Some("application/json")));
    assert_eq!(String::from_utf8(answer.content()).expect("text"), printed());
    let tag = answer.header("etag").expect("a tag");
    assert_eq!(service.get("/v1/openapi.json", &[("if-none-match", tag)]).await.status(), 304);
}

/// What a client of the old document would miss in the new one: addresses, methods, answers, fields, values of an
/// enumeration; what has another type, role or bound; and what it does not know that it must send. A field that answers
/// always have from now on is named, too: requests are described in the same way.
fn breaks(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", old, new, &mut found);
    found
}

fn compare(place: &str, old: &Value, new: &Value, found: &mut Vec<String>) {
    let key = place.rsplit('/').next().unwrap_or_default();
    match (key, old, new) {
        (_, Value::Object(old), Value::Object(new)) => compare_keys(place, old, new, found),
        ("enum" | "type", Value::Array(old), Value::Array(new)) => {
            let gone = old.iter().filter(|value| !new.contains(value));
            found.extend(gone.map(|value| format!("{place}: {value} is gone")));
        }
        ("required", Value::Array(old), Value::Array(new)) => {
            let wanted = new.iter().filter(|name| !old.contains(name));
            found.extend(wanted.map(|name| format!("{place}: {name} is wanted")));
        }
        ("parameters", Value::Array(old), Value::Array(new)) => {
            let (old, new) = (by_name(old), by_name(new));
            let wanted = new.iter().filter(|(name, one)| !old.contains_key(*name) && one["required"] == true);
            found.extend(wanted.map(|(name, _)| format!("{place}/{name} is wanted")));
            compare_keys(place, &old, &new, found);
        }
        (_, Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            let both = old.iter().zip(new).enumerate();
            both.for_each(|(number, (old, new))| compare(&format!("{place}/{number}"), old, new, found));
        }
        // A parameter that may be left out now.
        ("required", Value::Bool(true), Value::Bool(false)) => {}
        _ if old == new => {}
        _ => found.push(format!("{place}: {old} is now {new}")),
    }
}

fn compare_keys(place: &str, old: &Map<String, Value>, new: &Map<String, Value>, found: &mut Vec<String>) {
    // What is only for people, where it is not the name of a field.
    let for_people = |key: &str| {
        !place.ends_with("/properties") && ["description", "example", "examples", "info", "summary"].contains(&key)
    };
    for (key, old) in old.iter().filter(|(key, _)| !for_people(key)) {
        let place = format!("{place}/{key}");
        match new.get(key) {
            Some(new) => compare(&place, old, new, found),
            None => found.push(format!("{place} is gone")),
        }
    }
    // A schema that wants nothing has no list.
    if let (None, Some(wanted @ Value::Array(_))) = (old.get("required"), new.get("required")) {
        compare(&format!("{place}/required"), &json!([]), wanted, found);
    }
}

fn by_name(parameters: &[Value]) -> Map<String, Value> {
    let name = |one: &Value| ["in", "name"].map(|key| one[key].as_str().unwrap_or_default()).join(" ");
    parameters.iter().map(|one| (name(one), one.clone())).collect()
}

/// A small document, of which one part is changed.
fn check(place: &str, value: Value, expected: &[&str]) {
    let old = json!({
        "info": {"version": "1"},
        "paths": {
            "x": {
                "get": {
                    "summary": "One",
                    "x-role": "reader",
                    "parameters": [{"name": "id", "in": "query", "required": true}, {"name": "n", "in": "query"}],
                    "responses": {"200": {"description": "It"}},
                },
                "post": {"responses": {"202": {"description": "Begun"}}},
            },
        },
        "T": {
            "properties": {"kind": {"type": "string", "enum": ["a", "b"]}, "summary": {"type": "string"}},
            "required": ["kind"],
        },
        "U": {"properties": {"n": {"type": "integer"}}},
    });
    let mut new = old.clone();
    *new.pointer_mut(place).unwrap_or_else(|| panic!("no {place}")) = value;
    assert_eq!(breaks(&old, &new), expected, "{place}");
}

#[test]
fn what_is_taken_from_clients_is_named() {
    check("/paths", json!({}), &["/paths/x is gone"]);
    check(
        "/paths/x/post",
        Value::Null,
        &["/paths/x/post: {\"responses\":{\"202\":{\"description\":\"Begun\"}}} is now null"],
    );
    check("/paths/x/get/x-role", json!("admin"), &["/paths/x/get/x-role: \"reader\" is now \"admin\""]);
    check("/paths/x/get/responses", json!({}), &["/paths/x/get/responses/200 is gone"]);
    check(
        "/paths/x/get/parameters",
        json!([{"name": "tag", "in": "query", "required": true}, {"name": "n", "in": "query"}]),
        &["/paths/x/get/parameters/query tag is wanted", "/paths/x/get/parameters/query id is gone"],
    );
    check("/T/properties", json!({"kind": {"type": "string", "enum": ["a", "b"]}}), &["/T/properties/summary is gone"]);
    check("/T/properties/kind/enum", json!(["a", "c"]), &["/T/properties/kind/enum: \"b\" is gone"]);
    check("/T/properties/summary/type", json!("null"), &["/T/properties/summary/type: \"string\" is now \"null\""]);
    check("/T/required", json!(["kind", "summary"]), &["/T/required: \"summary\" is wanted"]);
    check(
        "/U",
        json!({"properties": {"n": {"type": "integer"}}, "required": ["n"]}),
        &["/U/required: \"n\" is wanted"],
    );
}

#[test]
fn what_is_added_or_only_for_people_breaks_nothing() {
    check("/info", json!({"version": "2"}), &[]);
    check("/paths/x/get/summary", json!("Another"), &[]);
    check("/paths/x/get/responses/200", json!({"description": "This", "headers": {}}), &[]);
    check(
        "/paths/x/get/parameters",
        json!([
            {"name": "id", "in": "query", "required": false},
            {"name": "m", "in": "query"},
            {"name": "n", "in": "query"},
        ]),
        &[],
    );
    check("/T/properties/kind/enum", json!(["b", "a", "c"]), &[]);
    check("/T/properties/summary", json!({"type": "string", "description": "New"}), &[]);
    check("/T/required", json!([]), &[]);
    check("/U/properties", json!({"n": {"type": "integer"}, "m": {"type": "integer"}}), &[]);
}
