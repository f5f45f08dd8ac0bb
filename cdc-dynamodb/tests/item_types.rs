//! Every type that a column can be declared with, and everything that stays in `_rest`, arrives equal by copy and by
//! stream, as four independent readers see it, and in the long tier Spark and Trino too.
//!
//! What must be in the lake is written down beside each value, by hand. Items come in five groups: copied (ids from 0),
//! inserted behind the copy (1000), copied as keys alone and filled later (2000), copied and deleted (3000), copied and
//! emptied (4000), so that new images, old images and images of deletes all carry every value.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;

use crate::support::{Lake, PIPELINE, Running};
use arrow_array::cast::AsArray;
use arrow_array::types::Decimal128Type;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType as Role, ScalarAttributeType,
    StreamSpecification, StreamViewType,
};
use aws_smithy_types::base64;
use serde_json::{Value, json};
use testkit::canonical;
use testkit::dynamodb::{self, DynamoDb, Habits, KeyType, View};
use testkit::emulators::Ministack;
use testkit::oracle;
use testkit::readers::{Engine, Judge};

const COPIED: usize = 0;
const INSERTED: usize = 1000;
const FILLED: usize = 2000;
const DELETED: usize = 3000;
const EMPTIED: usize = 4000;
/// An item without attributes that is written behind the copied ones where a stream without records cannot be followed: the
/// emulator's shard has no first number until it has a record, the service's has.
const FIRST: usize = 9000;

const NINES: &str = "99999999999999999999999999999999999999";

/// A value as DynamoDB has it, what its column has, and what `_rest` has of it.
#[derive(Clone, Debug)]
struct Case {
    value: Value,
    cell: Value,
    rest: Option<String>,
    /// Servers that are not the service refuse or change it.
    exotic: bool,
}

/// An attribute, the type that its column is declared with, if it is, and its values.
#[derive(Clone, Debug)]
struct Attribute {
    name: String,
    declared: Option<&'static str>,
    cases: Vec<Case>,
}

/// A table of one key `id`, a number.
struct Table {
    name: &'static str,
    attributes: Vec<Attribute>,
    /// Whether it has the item [`FIRST`].
    first: bool,
}

fn fits(value: Value, cell: Value) -> Case {
    Case { value, cell, rest: None, exotic: false }
}

fn stays(value: Value, rest: &str) -> Case {
    Case { value, cell: Value::Null, rest: Some(rest.to_owned()), exotic: false }
}

fn parts(value: Value, cell: Value, rest: &str) -> Case {
    Case { value, cell, rest: Some(rest.to_owned()), exotic: false }
}

fn exotic(case: Case) -> Case {
    Case { exotic: true, ..case }
}

fn s(text: &str) -> Value {
    json!({"S": text})
}

fn n(text: &str) -> Value {
    json!({"N": text})
}

fn nothing() -> Value {
    json!({"NULL": true})
}

/// NULL is kept apart from a missing attribute.
fn of_null() -> Case {
    stays(nothing(), "null")
}

/// So many lists around a text, and its canonical JSON.
fn nested(levels: usize) -> (Value, String) {
    let (mut value, mut text) = (s("deep"), "\"deep\"".to_owned());
    for _ in 1..levels {
        value = json!({"L": [value]});
        text = format!("[{text}]");
    }
    (value, text)
}

fn scalars() -> Vec<(&'static str, Vec<Case>)> {
    let long_text = "長い".repeat(5_000);
    vec![
        (
            "string",
            vec![
                fits(s(""), json!("")),
                fits(s("富士 🗻 é"), json!("富士 🗻 é")),
                fits(s("a\"b\\c\n\r\t\u{1}\u{1f}\u{7f}\u{2028}"), json!("a\"b\\c\n\r\t\u{1}\u{1f}\u{7f}\u{2028}")),
                fits(s(&long_text), json!(long_text)),
                stays(n("1"), "1"),
                stays(json!({"BOOL": true}), "true"),
                of_null(),
            ],
        ),
        (
            "number",
            vec![
                fits(n("0"), json!("0")),
                fits(n("-0"), json!("0")),
                fits(n("1.0"), json!("1")),
                fits(n("1e2"), json!("100")),
                fits(n(NINES), json!(NINES)),
                fits(
                    n("-0.00000000000000000000000000000000000001"),
                    json!("-0.00000000000000000000000000000000000001"),
                ),
                fits(n("1E-130"), json!("1E-130")),
                fits(n("-1E-130"), json!("-1E-130")),
                fits(
                    n("9.9999999999999999999999999999999999999E125"),
                    json!("99999999999999999999999999999999999999E88"),
                ),
                fits(n("9.99E125"), json!("999E123")),
                fits(n("0.1234567890123456789012345678901234567"), json!("0.1234567890123456789012345678901234567")),
                stays(s("1"), "\"1\""),
                of_null(),
            ],
        ),
        (
            "int",
            vec![
                fits(n("2147483647"), json!("2147483647")),
                fits(n("-2147483648"), json!("-2147483648")),
                fits(n("1.0"), json!("1")),
                fits(n("1e3"), json!("1000")),
                stays(n("2147483648"), "2147483648"),
                stays(n("1.5"), "1.5"),
                stays(s("1"), "\"1\""),
                of_null(),
            ],
        ),
        (
            "long",
            vec![
                fits(n("9223372036854775807"), json!("9223372036854775807")),
                fits(n("-9223372036854775808"), json!("-9223372036854775808")),
                stays(n("9223372036854775808"), "9223372036854775808"),
                stays(n("1E-130"), "1E-130"),
                of_null(),
            ],
        ),
        (
            "decimal(38,0)",
            vec![
                fits(n(NINES), json!(NINES)),
                fits(n(&format!("-{NINES}")), json!(format!("-{NINES}"))),
                fits(n("1E37"), json!("10000000000000000000000000000000000000")),
                stays(n("1E38"), "1E38"),
                stays(n("0.5"), "0.5"),
                of_null(),
            ],
        ),
        (
            "decimal(38,38)",
            vec![
                fits(n(&format!("0.{NINES}")), json!(format!("0.{NINES}"))),
                fits(n("-1E-38"), json!("-0.00000000000000000000000000000000000001")),
                fits(n("0"), json!(format!("0.{}", "0".repeat(38)))),
                stays(n("1E-39"), "1E-39"),
                stays(n("1"), "1"),
            ],
        ),
        (
            "decimal(10,2)",
            vec![
                fits(n("12.5"), json!("12.50")),
                fits(n("-0"), json!("0.00")),
                fits(n("99999999.99"), json!("99999999.99")),
                stays(n("100000000"), "100000000"),
                stays(n("12.345"), "12.345"),
                of_null(),
            ],
        ),
        (
            "double",
            vec![
                fits(n("0.1"), json!("0.1")),
                fits(n("1E-130"), json!("1e-130")),
                fits(n("-9.99E125"), json!("-9.99e+125")),
                fits(n("12345678901234567890123456789012345678"), json!("1.2345678901234568e+37")),
                fits(n("0"), json!("0.0")),
                stays(s("NaN"), "\"NaN\""),
                of_null(),
            ],
        ),
        (
            "boolean",
            vec![
                fits(json!({"BOOL": true}), json!("true")),
                fits(json!({"BOOL": false}), json!("false")),
                stays(s("true"), "\"true\""),
                stays(n("1"), "1"),
                of_null(),
            ],
        ),
        (
            "binary",
            vec![
                fits(json!({"B": ""}), json!("")),
                fits(json!({"B": "AP8="}), json!("00ff")),
                fits(json!({"B": "AAECAwQFBgcICQoLDA0ODw=="}), json!("000102030405060708090a0b0c0d0e0f")),
                stays(s("AP8="), "\"AP8=\""),
                of_null(),
            ],
        ),
    ]
}

fn moments() -> Vec<(&'static str, Vec<Case>)> {
    vec![
        (
            "date",
            vec![
                fits(s("2026-11-21"), json!("2026-11-21")),
                fits(s("1970-01-01"), json!("1970-01-01")),
                fits(s("2000-02-29"), json!("2000-02-29")),
                stays(s("2026-02-29"), "\"2026-02-29\""),
                stays(s("2026-2-3"), "\"2026-2-3\""),
                stays(s(""), "\"\""),
                stays(n("20261121"), "20261121"),
                of_null(),
            ],
        ),
        (
            "timestamp",
            vec![
                fits(s("2026-11-21T09:00:00.123456"), json!("2026-11-21T09:00:00.123456")),
                fits(s("2026-11-21 09:00:00"), json!("2026-11-21T09:00:00.000000")),
                fits(s("1969-12-31T23:59:59.999999"), json!("1969-12-31T23:59:59.999999")),
                stays(s("2026-11-21T09:00:00.1234567"), "\"2026-11-21T09:00:00.1234567\""),
                stays(s("2026-11-21T09:00:00Z"), "\"2026-11-21T09:00:00Z\""),
                stays(s("2026-11-21"), "\"2026-11-21\""),
                of_null(),
            ],
        ),
        (
            "timestamptz",
            vec![
                fits(s("2026-11-21T09:00:00+09:00"), json!("2026-11-21T00:00:00.000000Z")),
                fits(s("2026-11-21T09:00:00.5Z"), json!("2026-11-21T09:00:00.500000Z")),
                fits(s("1969-12-31T23:59:59.999999-00:00"), json!("1969-12-31T23:59:59.999999Z")),
                stays(s("2016-12-31T23:59:60Z"), "\"2016-12-31T23:59:60Z\""),
                stays(s("2026-11-21T09:00:00"), "\"2026-11-21T09:00:00\""),
                stays(n("1795165200"), "1795165200"),
            ],
        ),
        (
            "timestamptz(seconds)",
            vec![
                fits(n("1795165200"), json!("2026-11-20T09:00:00.000000Z")),
                fits(n("1795165200.5"), json!("2026-11-20T09:00:00.500000Z")),
                fits(n("-0.000001"), json!("1969-12-31T23:59:59.999999Z")),
                stays(n("1795165200.0000001"), "1795165200.0000001"),
                stays(n("1E30"), "1E30"),
                stays(s("1795165200"), "\"1795165200\""),
            ],
        ),
        (
            "timestamptz(milliseconds)",
            vec![
                fits(n("1795165200123"), json!("2026-11-20T09:00:00.123000Z")),
                fits(n("1795165200123.456"), json!("2026-11-20T09:00:00.123456Z")),
                stays(n("0.0001"), "0.0001"),
            ],
        ),
        (
            "timestamptz(microseconds)",
            vec![
                fits(n("1795165200123456"), json!("2026-11-20T09:00:00.123456Z")),
                fits(n("0"), json!("1970-01-01T00:00:00.000000Z")),
                stays(n("0.5"), "0.5"),
            ],
        ),
        (
            "uuid",
            vec![
                fits(s("00112233-4455-6677-8899-AABBCCDDEEFF"), json!("00112233-4455-6677-8899-aabbccddeeff")),
                fits(s("ffffffff-ffff-ffff-ffff-ffffffffffff"), json!("ffffffff-ffff-ffff-ffff-ffffffffffff")),
                stays(s("00112233445566778899aabbccddeeff"), "\"00112233445566778899aabbccddeeff\""),
                stays(s(""), "\"\""),
                of_null(),
            ],
        ),
    ]
}

fn collections() -> Vec<(&'static str, Vec<Case>)> {
    vec![
        (
            "list<string>",
            vec![
                fits(json!({"L": [s("a"), nothing(), s("")]}), json!(["a", null, ""])),
                fits(json!({"L": []}), json!([])),
                stays(json!({"L": [s("a"), n("1")]}), r#"["a",1]"#),
                stays(json!({"SS": ["a"]}), r#"{"$SS":["a"]}"#),
                of_null(),
            ],
        ),
        (
            "list<number>",
            vec![
                fits(json!({"L": [n("1E-130"), n("1.0"), n(NINES)]}), json!(["1E-130", "1", NINES])),
                stays(json!({"NS": ["1"]}), r#"{"$NS":[1]}"#),
            ],
        ),
        (
            "list<list<long>>",
            vec![
                fits(
                    json!({"L": [{"L": [n("1"), n("2")]}, {"L": []}, {"L": [n("3")]}]}),
                    json!([["1", "2"], [], ["3"]]),
                ),
                stays(json!({"L": [{"L": [n("1.5")]}]}), "[[1.5]]"),
            ],
        ),
        (
            "set<string>",
            vec![
                fits(json!({"SS": ["b", "a", "é", "B"]}), json!(["B", "a", "b", "é"])),
                exotic(fits(json!({"SS": ["b", ""]}), json!(["", "b"]))),
                stays(json!({"L": [s("a")]}), r#"["a"]"#),
                of_null(),
            ],
        ),
        (
            "set<number>",
            vec![
                fits(json!({"NS": ["10", "9", "-1.50", "1E2", "1E-130"]}), json!(["-1.5", "1E-130", "9", "10", "100"])),
                stays(json!({"SS": ["1"]}), r#"{"$SS":["1"]}"#),
            ],
        ),
        (
            "set<decimal(38,2)>",
            vec![
                fits(json!({"NS": ["10", "-1.5"]}), json!(["-1.50", "10.00"])),
                stays(json!({"NS": ["10", "0.001"]}), r#"{"$NS":[0.001,10]}"#),
            ],
        ),
        (
            "set<binary>",
            vec![
                fits(json!({"BS": ["/w==", "AA=="]}), json!(["00", "ff"])),
                stays(json!({"L": [{"B": "AA=="}]}), r#"[{"$B":"AA=="}]"#),
            ],
        ),
        (
            "map<string,string>",
            vec![
                fits(
                    json!({"M": {"b": s("1"), "a": nothing(), "é.x": s("")}}),
                    json!([["a", null], ["b", "1"], ["é.x", ""]]),
                ),
                fits(json!({"M": {}}), json!([])),
                exotic(fits(json!({"M": {"": s("nameless")}}), json!([["", "nameless"]]))),
                stays(json!({"M": {"a": n("1")}}), r#"{"a":1}"#),
                of_null(),
            ],
        ),
        (
            "map<string,list<long>>",
            vec![
                fits(
                    json!({"M": {"a": {"L": [n("1"), n("2")]}, "b": {"L": []}}}),
                    json!([["a", ["1", "2"]], ["b", []]]),
                ),
                stays(json!({"M": {"a": {"NS": ["1"]}}}), r#"{"a":{"$NS":[1]}}"#),
            ],
        ),
        (
            "struct<theme: string, Font Size: int, inner: struct<level: long, tags: set<string>>>",
            vec![
                fits(
                    json!({"M": {"theme": s("dark"), "Font Size": n("12"),
                        "inner": {"M": {"level": n("7"), "tags": {"SS": ["y", "x"]}}}}}),
                    json!(["dark", "12", ["7", ["x", "y"]]]),
                ),
                parts(
                    json!({"M": {"theme": nothing(), "Font Size": n("1.5"), "beta": {"BOOL": true}}}),
                    json!([null, null, null]),
                    r#"{"Font Size":1.5,"beta":true,"theme":null}"#,
                ),
                parts(
                    json!({"M": {"theme": s("light"), "inner": {"M": {"level": s("7"), "more": {"L": []}}}}}),
                    json!(["light", null, [null, null]]),
                    r#"{"inner":{"level":"7","more":[]}}"#,
                ),
                fits(json!({"M": {}}), json!([null, null, null])),
                stays(s("dark"), "\"dark\""),
                of_null(),
            ],
        ),
        (
            "list<struct<a: long>>",
            vec![
                fits(json!({"L": [{"M": {"a": n("1")}}, {"M": {"a": n("2")}}]}), json!([["1"], ["2"]])),
                stays(json!({"L": [{"M": {"a": n("1"), "b": n("2")}}]}), r#"[{"a":1,"b":2}]"#),
            ],
        ),
        (
            "json",
            vec![
                fits(s("text"), json!("\"text\"")),
                fits(json!({"M": {"b": n("1.50"), "a": nothing()}}), json!(r#"{"a":null,"b":1.5}"#)),
                fits(json!({"SS": ["b", "a"]}), json!(r#"{"$SS":["a","b"]}"#)),
                of_null(),
            ],
        ),
    ]
}

/// What nobody has declared: all of it stands in `_rest`.
fn undeclared() -> Vec<Case> {
    let (deepest, deepest_text) = nested(32);
    vec![
        stays(s("富士 \"🗻\"\n\u{0}"), "\"富士 \\\"🗻\\\"\\n\\u0000\""),
        stays(s(""), "\"\""),
        stays(n(NINES), NINES),
        stays(n(&format!("-{NINES}")), &format!("-{NINES}")),
        stays(n("1E-130"), "1E-130"),
        stays(n("9.99E125"), "999E123"),
        stays(n("-0"), "0"),
        stays(n("1.50"), "1.5"),
        stays(json!({"BOOL": false}), "false"),
        of_null(),
        stays(json!({"B": ""}), r#"{"$B":""}"#),
        stays(json!({"B": "AP8="}), r#"{"$B":"AP8="}"#),
        stays(json!({"L": []}), "[]"),
        stays(json!({"M": {}}), "{}"),
        stays(json!({"SS": ["b", "a"]}), r#"{"$SS":["a","b"]}"#),
        exotic(stays(json!({"SS": [""]}), r#"{"$SS":[""]}"#)),
        stays(json!({"NS": ["10", "9.50", "1E-130"]}), r#"{"$NS":[1E-130,9.5,10]}"#),
        stays(json!({"BS": ["/w==", "AA=="]}), r#"{"$BS":["AA==","/w=="]}"#),
        exotic(stays(json!({"BS": [""]}), r#"{"$BS":[""]}"#)),
        stays(json!({"M": {"$B": s("AP8="), "z": n("1")}}), r#"{"$M":{"$B":"AP8=","z":1}}"#),
        exotic(stays(json!({"M": {"": s("nameless")}}), r#"{"":"nameless"}"#)),
        stays(
            json!({"M": {"é.1": {"L": [{"M": {"b": nothing(), "a": {"BOOL": true}}}, n("0.10")]}, "A": s("x")}}),
            r#"{"A":"x","é.1":[{"a":true,"b":null},0.1]}"#,
        ),
        stays(deepest, &deepest_text),
    ]
}

fn tables(emulated: bool) -> Vec<Table> {
    let declared = |columns: Vec<(&'static str, Vec<Case>)>| {
        let attribute = |(number, (declared, cases)): (usize, (&'static str, Vec<Case>))| Attribute {
            name: format!("c{number:02}"),
            declared: Some(declared),
            cases,
        };
        columns.into_iter().enumerate().map(attribute).collect::<Vec<_>>()
    };
    // A name that no column could have.
    let rest = Attribute { name: "$v. é\"".to_owned(), declared: None, cases: undeclared() };
    let mut tables = vec![
        Table { name: "scalars", attributes: declared(scalars()), first: emulated },
        Table { name: "moments", attributes: declared(moments()), first: emulated },
        Table { name: "collections", attributes: declared(collections()), first: emulated },
        Table { name: "undeclared", attributes: vec![rest], first: emulated },
    ];
    for attribute in tables.iter_mut().flat_map(|table| &mut table.attributes) {
        attribute.cases.retain(|case| !(emulated && case.exotic));
    }
    tables
}

impl Table {
    /// One item for each value of the attribute with most of them, and one without any.
    fn rows(&self) -> usize {
        self.attributes.iter().map(|attribute| attribute.cases.len()).max().unwrap_or(0) + 1
    }

    fn cases(&self, row: usize) -> impl Iterator<Item = (&Attribute, &Case)> {
        self.attributes.iter().filter_map(move |attribute| Some((attribute, attribute.cases.get(row)?)))
    }

    fn item(&self, first: usize, row: usize) -> HashMap<String, AttributeValue> {
        let mut item = key(first + row);
        item.extend(self.cases(row).map(|(attribute, case)| (attribute.name.clone(), value(&case.value))));
        item
    }

    /// The columns' values, `_rest` last.
    fn cells(&self, row: Option<usize>) -> Vec<Value> {
        let declared = self.attributes.iter().filter(|attribute| attribute.declared.is_some());
        let case = |attribute: &Attribute| row.and_then(|row| attribute.cases.get(row).cloned());
        let mut cells: Vec<Value> =
            declared.map(|attribute| case(attribute).map_or(Value::Null, |case| case.cell)).collect();
        let mut rest = String::new();
        for (attribute, case) in row.into_iter().flat_map(|row| self.cases(row)) {
            if let Some(text) = &case.rest {
                let sign = if rest.is_empty() { '{' } else { ',' };
                write!(rest, "{sign}{}:{text}", json!(attribute.name)).expect("a string takes all");
            }
        }
        cells.push(if rest.is_empty() { Value::Null } else { json!(rest + "}") });
        cells
    }

    fn columns(&self) -> Vec<&str> {
        let declared = self.attributes.iter().filter(|attribute| attribute.declared.is_some());
        declared.map(|attribute| attribute.name.as_str()).chain(["_rest"]).collect()
    }

    /// What must be in the mirror, by id: the columns, and `_rest`.
    fn mirror(&self) -> BTreeMap<usize, Vec<Value>> {
        let full =
            [COPIED, INSERTED, FILLED].into_iter().flat_map(|first| (0..self.rows()).map(move |row| (first, row)));
        let full = full.map(|(first, row)| (first + row, self.cells(Some(row))));
        let emptied = (0..self.rows()).map(|row| (EMPTIED + row, self.cells(None)));
        full.chain(emptied).chain(self.first.then(|| (FIRST, self.cells(None)))).collect()
    }

    /// What must be in the history, by id: the columns, `_rest` and the old image.
    fn history(&self) -> BTreeMap<usize, Vec<Value>> {
        let image = |id: usize, row: Option<usize>| {
            Value::Array(std::iter::once(json!(id.to_string())).chain(self.cells(row)).collect())
        };
        let mut all = BTreeMap::new();
        all.extend(self.first.then(|| (FIRST, [self.cells(None), vec![Value::Null]].concat())));
        for row in 0..self.rows() {
            let mut add = |id: usize, cells: Option<usize>, before: Value| {
                all.insert(id, [self.cells(cells), vec![before]].concat());
            };
            add(INSERTED + row, Some(row), Value::Null);
            add(DELETED + row, Some(row), Value::Null);
            // What has no attributes is not changed by losing them.
            if self.cases(row).next().is_some() {
                add(FILLED + row, Some(row), image(FILLED + row, None));
                add(EMPTIED + row, None, image(EMPTIED + row, Some(row)));
            }
        }
        all
    }
}

fn key(id: usize) -> HashMap<String, AttributeValue> {
    HashMap::from([("id".to_owned(), AttributeValue::N(id.to_string()))])
}

/// DynamoDB JSON as Amazon's client wants it.
fn value(value: &Value) -> AttributeValue {
    let (kind, inner) = value.as_object().and_then(|one| one.iter().next()).expect("a value under its type");
    let text = |inner: &Value| inner.as_str().expect("a text").to_owned();
    let blob = |inner: &Value| Blob::new(base64::decode(text(inner)).expect("base64"));
    let members = || inner.as_array().expect("members").iter();
    match kind.as_str() {
        "S" => AttributeValue::S(text(inner)),
        "N" => AttributeValue::N(text(inner)),
        "B" => AttributeValue::B(blob(inner)),
        "BOOL" => AttributeValue::Bool(inner == true),
        "NULL" => AttributeValue::Null(true),
        "L" => AttributeValue::L(members().map(self::value).collect()),
        "SS" => AttributeValue::Ss(members().map(text).collect()),
        "NS" => AttributeValue::Ns(members().map(text).collect()),
        "BS" => AttributeValue::Bs(members().map(blob).collect()),
        "M" => {
            let members = inner.as_object().expect("members").iter();
            AttributeValue::M(members.map(|(name, member)| (name.clone(), self::value(member))).collect())
        }
        other => panic!("no type {other}"),
    }
}

/// Where items are written, and what keeps it running.
struct Server {
    endpoint: String,
    client: Client,
    simulator: Option<DynamoDb>,
    _process: Box<dyn Any>,
}

impl Server {
    fn simulated() -> Self {
        let simulator = DynamoDb::start_now(Habits::default(), 3);
        let endpoint = simulator.endpoint();
        Self { client: dynamodb::client(&endpoint), endpoint, simulator: Some(simulator), _process: Box::new(()) }
    }

    async fn emulated() -> Self {
        let process = Ministack::start().await;
        let endpoint = process.endpoint();
        Self { client: dynamodb::client(&endpoint), endpoint, simulator: None, _process: Box::new(process) }
    }

    async fn create_table(&self, table: &str, keys: &[(&str, KeyType)]) {
        if let Some(simulator) = &self.simulator {
            return simulator.create_table(table, keys);
        }
        let mut call = self.client.create_table().table_name(table).billing_mode(BillingMode::PayPerRequest);
        for ((name, kind), role) in keys.iter().zip([Role::Hash, Role::Range]) {
            let kind = match kind {
                KeyType::S => ScalarAttributeType::S,
                KeyType::N => ScalarAttributeType::N,
                KeyType::B => ScalarAttributeType::B,
            };
            let definition = AttributeDefinition::builder().attribute_name(*name).attribute_type(kind).build();
            let element = KeySchemaElement::builder().attribute_name(*name).key_type(role).build();
            call = call.attribute_definitions(definition.expect("a definition")).key_schema(element.expect("a key"));
        }
        call.send().await.unwrap_or_else(|error| panic!("{table}: {error:?}"));
    }

    /// From here on changes are recorded.
    async fn enable_stream(&self, table: &str) {
        if let Some(simulator) = &self.simulator {
            simulator.enable_stream(table, View::NewAndOldImages, 2);
            return;
        }
        let stream =
            StreamSpecification::builder().stream_enabled(true).stream_view_type(StreamViewType::NewAndOldImages);
        let call = self.client.update_table().table_name(table);
        let call = call.stream_specification(stream.build().expect("a stream"));
        call.send().await.unwrap_or_else(|error| panic!("{table}: {error:?}"));
    }

    async fn put(&self, table: &str, item: HashMap<String, AttributeValue>) {
        let put = self.client.put_item().table_name(table).set_item(Some(item.clone())).send().await;
        put.unwrap_or_else(|error| panic!("{table}: {item:?}: {error:?}"));
    }

    async fn delete(&self, table: &str, key: HashMap<String, AttributeValue>) {
        let deleted = self.client.delete_item().table_name(table).set_key(Some(key)).send().await;
        deleted.unwrap_or_else(|error| panic!("{table}: {error:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_equal_from_the_simulator() {
    every_type_arrives_equal(Server::simulated()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_equal_from_an_emulator() {
    every_type_arrives_equal(Server::emulated().await).await;
}

async fn every_type_arrives_equal(server: Server) {
    let tables = tables(server.simulator.is_none());
    for table in &tables {
        server.create_table(table.name, &[("id", KeyType::N)]).await;
        for row in 0..table.rows() {
            for first in [COPIED, DELETED, EMPTIED] {
                server.put(table.name, table.item(first, row)).await;
            }
            server.put(table.name, key(FILLED + row)).await;
        }
        server.enable_stream(table.name).await;
        if table.first {
            server.put(table.name, key(FIRST)).await;
        }
    }
    let mut lake = Lake::at(&server.endpoint, &tables.iter().map(|table| table.name).collect::<Vec<_>>());
    for table in &tables {
        for attribute in &table.attributes {
            if let Some(declared) = attribute.declared {
                lake.options(table.name).columns.insert(attribute.name.clone(), declared.to_owned());
            }
        }
    }
    let mut running = lake.start();
    for table in &tables {
        let copied = [COPIED, FILLED, DELETED, EMPTIED];
        let copied = copied.into_iter().flat_map(|first| (0..table.rows()).map(move |row| first + row));
        let copied = copied.chain(table.first.then_some(FIRST)).collect();
        has(&lake, &mut running, table.name, &copied).await;
    }
    for table in &tables {
        for row in 0..table.rows() {
            server.put(table.name, table.item(INSERTED, row)).await;
            server.put(table.name, table.item(FILLED, row)).await;
            server.delete(table.name, key(DELETED + row)).await;
            server.put(table.name, key(EMPTIED + row)).await;
        }
    }
    for table in &tables {
        let history = table.history();
        has(&lake, &mut running, &format!("{}_history", table.name), &history.into_keys().collect()).await;
        has(&lake, &mut running, table.name, &table.mirror().into_keys().collect()).await;
    }
    running.stop().await;

    let cases: usize = tables.iter().flat_map(|table| &table.attributes).map(|attribute| attribute.cases.len()).sum();
    println!("{cases} values, each copied, inserted, filled in, deleted and emptied");
    assert!(cases > 130, "the values were lost: {cases}");
    let mut wrong = Vec::new();
    for engine in Engine::at_hand() {
        let mut judge = Judge::start(engine).await;
        for table in &tables {
            wrong.extend(compare(&mut judge, &lake, table).await);
        }
        assert_sees_a_difference(&mut judge, &lake, &tables[0]).await;
    }
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}

/// Waits until a table of the lake has these ids, each once.
async fn has(lake: &Lake, running: &mut Running, table: &str, wanted: &BTreeSet<usize>) {
    lake.until(&format!("{table} has all rows"), running, async || {
        let mut ids = BTreeSet::new();
        let mut rows = 0;
        for batch in lake.batches(table).await {
            let column = batch.column_by_name("id").expect("a key").clone();
            rows += batch.num_rows();
            ids.extend(
                column.as_primitive::<Decimal128Type>().values().iter().filter_map(|id| usize::try_from(*id).ok()),
            );
        }
        let missing: Vec<_> = wanted.difference(&ids).take(5).collect();
        (ids == *wanted && rows == ids.len(), format!("{rows} rows, {} wanted, missing {missing:?}", wanted.len()))
    })
    .await;
}

/// The differences that one reader finds in a table's mirror and history.
async fn compare(judge: &mut Judge, lake: &Lake, table: &Table) -> Vec<String> {
    let mut wrong = Vec::new();
    let columns = table.columns();
    let with_before: Vec<&str> = columns.iter().copied().chain(["_cdc_before"]).collect();
    let history = format!("{}_history", table.name);
    for (name, columns, rows) in [(table.name, &columns, table.mirror()), (&history, &with_before, table.history())] {
        let metadata = judge.metadata(&lake.database(), &format!("{PIPELINE}.{name}")).await;
        let all: Vec<usize> = (0..columns.len()).collect();
        if differs(judge, &metadata, columns, &rows, &all).await.is_none() {
            continue;
        }
        for place in all {
            if let Some(difference) = differs(judge, &metadata, columns, &rows, &[place]).await {
                let declared = table.attributes.iter().find(|attribute| attribute.name == columns[place]);
                let declared = declared.and_then(|attribute| attribute.declared).unwrap_or(columns[place]);
                wrong.push(format!("{:?}, {name}, {declared}: {difference}", judge.engine()));
            }
        }
    }
    wrong
}

/// The judge is no rubber stamp: one changed letter of one value is seen.
async fn assert_sees_a_difference(judge: &mut Judge, lake: &Lake, table: &Table) {
    let metadata = judge.metadata(&lake.database(), &format!("{PIPELINE}.{}", table.name)).await;
    let mut rows = table.mirror();
    rows.get_mut(&INSERTED).expect("a row")[0] = json!("another");
    let difference = differs(judge, &metadata, &table.columns(), &rows, &[0]).await;
    assert!(difference.is_some_and(|text| text.contains("another")), "{:?}", judge.engine());
}

async fn differs(
    judge: &mut Judge,
    metadata: &str,
    columns: &[&str],
    rows: &BTreeMap<usize, Vec<Value>>,
    places: &[usize],
) -> Option<String> {
    let columns: Vec<&str> = std::iter::once("id").chain(places.iter().map(|&place| columns[place])).collect();
    let line = |(id, values): (&usize, &Vec<Value>)| {
        let id = Value::String(id.to_string());
        canonical::line(std::iter::once(id).chain(places.iter().map(|&place| values[place].clone())).collect())
    };
    let lines: Vec<String> = rows.iter().map(line).collect();
    match judge.ask(json!({"do": "rows", "metadata": metadata, "columns": columns})).await {
        Ok(found) => oracle::difference(&judge.folded(&lines), &found).map(|text| text.chars().take(2_000).collect()),
        Err(error) => Some(error),
    }
}

/// A table by its key, how the key's columns are declared, and keys with what the lake must have.
struct Keyed {
    name: &'static str,
    keys: &'static [(&'static str, KeyType)],
    declared: &'static [(&'static str, &'static str)],
    rows: Vec<(Vec<Value>, Vec<Value>)>,
}

/// Keys of all types are the columns that identify a row: equal spellings are one key, different values never are.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_type_identify_their_rows() {
    let text = |texts: &[&str]| texts.iter().map(|text| json!(text)).collect::<Vec<_>>();
    let all = [
        Keyed {
            name: "by_number",
            keys: &[("k", KeyType::N)],
            declared: &[("k", "number")],
            rows: [(NINES, NINES), ("1E-130", "1E-130"), ("9.99E125", "999E123"), ("-0", "0"), ("1.50", "1.5")]
                .map(|(number, cell)| (vec![n(number)], text(&[cell])))
                .to_vec(),
        },
        Keyed {
            name: "by_decimal",
            keys: &[("k", KeyType::N), ("r", KeyType::N)],
            declared: &[("r", "decimal(38,2)")],
            rows: vec![
                (vec![n(NINES), n("-1.5")], text(&[NINES, "-1.50"])),
                (vec![n("1e2"), n("1")], text(&["100", "1.00"])),
                (vec![n("1e2"), n("1.01")], text(&["100", "1.01"])),
            ],
        },
        Keyed {
            name: "by_bytes_and_text",
            keys: &[("k", KeyType::B), ("r", KeyType::S)],
            declared: &[],
            rows: vec![
                (vec![json!({"B": "AA=="}), s("富士")], text(&["00", "富士"])),
                (vec![json!({"B": "AAA="}), s("富士")], text(&["0000", "富士"])),
                (vec![json!({"B": "/w=="}), s("\"\u{1}")], text(&["ff", "\"\u{1}"])),
            ],
        },
    ];
    let server = Server::simulated();
    let mut lake = Lake::at(&server.endpoint, &all.each_ref().map(|keyed| keyed.name));
    for keyed in &all {
        server.create_table(keyed.name, keyed.keys).await;
        server.enable_stream(keyed.name).await;
        for (attribute, declared) in keyed.declared {
            lake.options(keyed.name).columns.insert((*attribute).to_owned(), (*declared).to_owned());
        }
        // One comes by the copy and is written again below, in another spelling where it has one.
        server.put(keyed.name, keyed.item(0, "copied")).await;
    }
    let mut running = lake.start();
    let rows_of = async |table: &str| lake.batches(table).await.iter().map(|batch| batch.num_rows()).sum::<usize>();
    for keyed in &all {
        lake.until("the copy is done", &mut running, async || (rows_of(keyed.name).await == 1, String::new())).await;
        for row in (0..keyed.rows.len()).chain([0]) {
            server.put(keyed.name, keyed.item(row, "streamed")).await;
        }
    }
    let by_number = HashMap::from([("k".to_owned(), AttributeValue::N("0.10E1".to_owned()))]);
    server.put("by_number", by_number.clone()).await;
    server.delete("by_number", HashMap::from([("k".to_owned(), AttributeValue::N("1".to_owned()))])).await;
    for keyed in &all {
        lake.until("all changes are there", &mut running, async || {
            let history = rows_of(&format!("{}_history", keyed.name)).await;
            // The copied one twice: its first value and its second; and what was written and deleted.
            let wanted = keyed.rows.len() + 1 + if keyed.name == "by_number" { 2 } else { 0 };
            (history >= wanted && rows_of(keyed.name).await == keyed.rows.len(), format!("{history} of {wanted}"))
        })
        .await;
    }
    running.stop().await;
    for engine in Engine::at_hand() {
        let mut judge = Judge::start(engine).await;
        for keyed in &all {
            let metadata = judge.metadata(&lake.database(), &format!("{PIPELINE}.{}", keyed.name)).await;
            let columns: Vec<&str> = keyed.keys.iter().map(|(name, _)| *name).chain(["_rest"]).collect();
            let line = |(_, cells): &(Vec<Value>, Vec<Value>)| {
                canonical::line(cells.iter().cloned().chain([json!(r#"{"v":"streamed"}"#)]).collect())
            };
            let lines: Vec<String> = keyed.rows.iter().map(line).collect();
            judge.assert_rows(&metadata, None, &columns, &lines).await;
        }
    }
}

impl Keyed {
    fn item(&self, row: usize, v: &str) -> HashMap<String, AttributeValue> {
        let key = self.keys.iter().zip(&self.rows[row].0).map(|((name, _), key)| ((*name).to_owned(), value(key)));
        key.chain([("v".to_owned(), AttributeValue::S(v.to_owned()))]).collect()
    }
}

/// What no server takes never reaches us: more digits than 38, empty sets and keys, deeper nesting.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_service_refuses_is_refused_by_both_servers() {
    let (too_deep, _) = nested(40);
    for server in [Server::simulated(), Server::emulated().await] {
        server.create_table("refusals", &[("id", KeyType::N)]).await;
        for refused in [n(&"9".repeat(39)), n("1E126"), n("1E-131"), json!({"SS": []}), too_deep.clone()] {
            // Nesting is not checked by the emulator.
            if server.simulator.is_none() && refused == too_deep {
                continue;
            }
            let mut item = key(1);
            item.insert("v".to_owned(), value(&refused));
            let put = server.client.put_item().table_name("refusals").set_item(Some(item)).send().await;
            let code = put.err().and_then(|error| error.code().map(str::to_owned));
            assert_eq!(code.as_deref(), Some("ValidationException"), "{refused} at {}", server.endpoint);
        }
    }
}
