//! What becomes of items: of every type and edge value by example, of random items against random declarations by
//! putting them together again.

use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Decimal128Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef};
use fastrand::Rng;
use lakehouse_core::quarantine::QuarantineLimit;
use lakehouse_core::schema::arrow_schema;

use super::types::InvalidType;
use super::*;
use crate::number::Number;
use crate::value::tests::{item, number, random_item, random_number, random_text, random_value};
use crate::value::{Item, Value};

fn declared(attribute: &str, column_type: &str) -> DeclaredColumn {
    let column_type = column_type.parse().unwrap_or_else(|error| panic!("{column_type}: {error}"));
    DeclaredColumn { attribute: attribute.into(), name: None, column_type, mismatch: Mismatch::Rest }
}

fn table(declared: Vec<DeclaredColumn>) -> ItemTable {
    ItemTable {
        source: "profiles".into(),
        mirror: TableName::new("app", "profiles"),
        key: vec![KeyAttribute { name: "id".into(), key_type: KeyType::S }],
        expected_key: None,
        declared,
        partition: vec![],
        history: true,
        old_images: true,
        quarantine_limit: QuarantineLimit::default(),
    }
}

/// The column `v`, declared so, and `_rest`, of items with these values.
fn rows(column_type: &str, values: &[&str]) -> (ArrayRef, Vec<Option<String>>, u64) {
    let schema = table(vec![declared("v", column_type)]).schema().unwrap();
    let mut builder = schema.builder();
    for value in values {
        let value = if value.is_empty() { String::new() } else { format!(r#","v":{value}"#) };
        builder.append(&item(&format!(r#"{{"id":{{"S":"a"}}{value}}}"#)), None).unwrap();
    }
    let mismatches = builder.take_mismatches().map(|(_, count)| count).sum();
    let rows = builder.finish();
    assert!(rows.before.is_none());
    for (column, array) in schema.table().columns.iter().zip(&rows.columns) {
        assert_eq!(column.data_type, *array.data_type());
        assert_eq!(array.len(), values.len());
    }
    let rest = rows.columns[2].as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect();
    (rows.columns[1].clone(), rest, mismatches)
}

/// What stands in the column, as a text, or in `_rest`.
fn stored(column_type: &str, value: &str) -> Result<String, String> {
    let (column, rest, mismatches) = rows(column_type, &[value]);
    assert_eq!(column.is_null(0), rest[0].is_some(), "{column_type} {value}: in one of the two");
    assert_eq!(mismatches, u64::from(column.is_null(0)), "{column_type} {value}");
    match rest[0].clone() {
        Some(rest) => Err(rest),
        None => Ok(text_of(&column)),
    }
}

fn text_of(column: &ArrayRef) -> String {
    match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(0).to_owned(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(0).to_string(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(0).to_string(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(0).to_string(),
        DataType::Decimal128(..) => column.as_primitive::<Decimal128Type>().value(0).to_string(),
        DataType::Boolean => column.as_boolean().value(0).to_string(),
        DataType::Date32 => column.as_primitive::<Date32Type>().value(0).to_string(),
        DataType::Timestamp(..) => column.as_primitive::<TimestampMicrosecondType>().value(0).to_string(),
        DataType::Binary => format!("{:?}", column.as_binary::<i32>().value(0)),
        DataType::FixedSizeBinary(_) => format!("{:02x?}", column.as_fixed_size_binary().value(0)),
        other => panic!("{other}"),
    }
}

#[test]
fn a_value_of_its_columns_type_is_stored() {
    let nines = "9".repeat(38);
    let (nines_n, tiny) = (format!(r#"{{"N":"{nines}"}}"#), format!("0.{}1", "0".repeat(37)));
    for (column_type, value, expected) in [
        ("string", r#"{"S":""}"#, ""),
        ("string", r#"{"S":"日本 😀"}"#, "日本 😀"),
        ("number", r#"{"N":"1E-130"}"#, "1E-130"),
        ("number", r#"{"N":"9.99E125"}"#, "999E123"),
        ("number", &nines_n, &nines),
        ("number", r#"{"N":"-0"}"#, "0"),
        ("int", r#"{"N":"-2147483648"}"#, "-2147483648"),
        ("long", r#"{"N":"9223372036854775807"}"#, "9223372036854775807"),
        ("long", r#"{"N":"12E1"}"#, "120"),
        ("decimal(38,0)", &nines_n, &nines),
        ("decimal(38,38)", &format!(r#"{{"N":"{tiny}"}}"#), "1"),
        ("decimal(5,2)", r#"{"N":"-999.99"}"#, "-99999"),
        ("double", r#"{"N":"0.1"}"#, "0.1"),
        ("double", r#"{"N":"1E-130"}"#, &1e-130f64.to_string()),
        ("boolean", r#"{"BOOL":false}"#, "false"),
        ("binary", r#"{"B":""}"#, "[]"),
        ("binary", r#"{"B":"AP8="}"#, "[0, 255]"),
        ("date", r#"{"S":"1970-01-02"}"#, "1"),
        ("date", r#"{"S":"0001-01-01"}"#, "-719162"),
        ("timestamp", r#"{"S":"1970-01-01T00:00:01.5"}"#, "1500000"),
        ("timestamp", r#"{"S":"1969-12-31 23:59:59.999999"}"#, "-1"),
        ("timestamptz", r#"{"S":"1970-01-01T09:00:00.000001+09:00"}"#, "1"),
        ("timestamptz", r#"{"S":"1970-01-01T00:00:00.123456000Z"}"#, "123456"),
        ("timestamptz(seconds)", r#"{"N":"1.5"}"#, "1500000"),
        ("timestamptz(milliseconds)", r#"{"N":"-1"}"#, "-1000"),
        ("timestamptz(microseconds)", r#"{"N":"7"}"#, "7"),
        (
            "uuid",
            r#"{"S":"00112233-4455-6677-8899-AABBCCDDEEFF"}"#,
            "[00, 11, 22, 33, 44, 55, 66, 77, 88, 99, aa, bb, cc, dd, ee, ff]",
        ),
        ("json", r#"{"L":[{"N":"1.0"},{"SS":["b","a"]}]}"#, r#"[1,{"$SS":["a","b"]}]"#),
        ("json", r#"{"S":"x"}"#, r#""x""#),
    ] {
        assert_eq!(stored(column_type, value).as_deref(), Ok(expected), "{column_type} {value}");
    }
}

#[test]
fn a_value_of_another_type_stands_in_the_rest_and_is_counted() {
    for (column_type, value, rest) in [
        ("string", r#"{"N":"1"}"#, "1"),
        ("number", r#"{"S":"1"}"#, r#""1""#),
        ("int", r#"{"N":"2147483648"}"#, "2147483648"),
        ("long", r#"{"N":"1.5"}"#, "1.5"),
        ("long", r#"{"N":"9223372036854775808"}"#, "9223372036854775808"),
        ("long", r#"{"S":"1"}"#, r#""1""#),
        ("decimal(5,2)", r#"{"N":"1000"}"#, "1000"),
        ("decimal(5,2)", r#"{"N":"0.001"}"#, "0.001"),
        ("decimal(38,10)", r#"{"N":"9.99E125"}"#, "999E123"),
        ("double", r#"{"S":"1"}"#, r#""1""#),
        ("boolean", r#"{"N":"1"}"#, "1"),
        ("binary", r#"{"S":"x"}"#, r#""x""#),
        ("date", r#"{"S":"2026-1-1"}"#, r#""2026-1-1""#),
        ("date", r#"{"S":"2026-02-30"}"#, r#""2026-02-30""#),
        ("date", r#"{"S":""}"#, r#""""#),
        ("timestamp", r#"{"S":"2026-01-01T00:00:00Z"}"#, r#""2026-01-01T00:00:00Z""#),
        ("timestamp", r#"{"S":"2026-01-01T00:00:00.1234567"}"#, r#""2026-01-01T00:00:00.1234567""#),
        ("timestamp", r#"{"S":"2026-01-01T0:00:00"}"#, r#""2026-01-01T0:00:00""#),
        ("timestamp", r#"{"S":"é026-01-01T00:00:00"}"#, r#""é026-01-01T00:00:00""#),
        ("timestamptz", r#"{"S":"2026-01-01T00:00:00"}"#, r#""2026-01-01T00:00:00""#),
        ("timestamptz", r#"{"S":"2026-06-30T23:59:60Z"}"#, r#""2026-06-30T23:59:60Z""#),
        ("timestamptz", r#"{"S":"2026-01-01T00:00:00.0000000000001Z"}"#, r#""2026-01-01T00:00:00.0000000000001Z""#),
        ("timestamptz", r#"{"N":"1"}"#, "1"),
        ("timestamptz(seconds)", r#"{"N":"0.0000001"}"#, "0.0000001"),
        ("timestamptz(seconds)", r#"{"N":"1E30"}"#, "1E30"),
        ("timestamptz(seconds)", r#"{"S":"1"}"#, r#""1""#),
        ("uuid", r#"{"S":"00112233445566778899aabbccddeeff"}"#, r#""00112233445566778899aabbccddeeff""#),
        ("uuid", r#"{"S":"x"}"#, r#""x""#),
        ("list<string>", r#"{"L":[{"S":"a"},{"N":"1"}]}"#, r#"["a",1]"#),
        ("list<string>", r#"{"SS":["a"]}"#, r#"{"$SS":["a"]}"#),
        ("set<string>", r#"{"L":[{"S":"a"}]}"#, r#"["a"]"#),
        ("set<long>", r#"{"NS":["1","1.5"]}"#, r#"{"$NS":[1,1.5]}"#),
        ("map<string,string>", r#"{"M":{"a":{"N":"1"}}}"#, r#"{"a":1}"#),
        ("struct<a: long>", r#"{"S":"x"}"#, r#""x""#),
        ("list<struct<a: long>>", r#"{"L":[{"M":{"a":{"N":"1"},"b":{"N":"2"}}}]}"#, r#"[{"a":1,"b":2}]"#),
    ] {
        assert_eq!(stored(column_type, value), Err(format!(r#"{{"v":{rest}}}"#)), "{column_type} {value}");
    }
}

#[test]
fn missing_and_null_stay_apart() {
    for column_type in ["string", "long", "json", "list<long>", "struct<a: long>", "map<string,long>"] {
        let (column, rest, mismatches) = rows(column_type, &["", r#"{"NULL":true}"#]);
        assert_eq!(column.null_count(), 2, "{column_type}");
        assert_eq!(rest, [None, Some(r#"{"v":null}"#.to_owned())]);
        assert_eq!(mismatches, 0, "a NULL is no wrong type");
    }
}

#[test]
fn lists_sets_maps_and_structs_keep_their_members() {
    let (column, rest, _) = rows("list<long>", &[r#"{"L":[{"N":"1"},{"NULL":true}]}"#, r#"{"L":[]}"#]);
    let list = column.as_list::<i32>();
    assert_eq!(list.value(0).as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(1), None]);
    assert!(list.is_valid(1) && list.value(1).is_empty() && rest == [None, None]);

    let (column, _, _) = rows("set<decimal(4,1)>", &[r#"{"NS":["10","-1.5","9"]}"#]);
    let set = column.as_list::<i32>().value(0);
    assert_eq!(set.as_primitive::<Decimal128Type>().values()[..], [-15, 90, 100]);

    let (column, _, _) = rows("set<binary>", &[r#"{"BS":["Zg==",""]}"#]);
    assert_eq!(
        column.as_list::<i32>().value(0).as_binary::<i32>().iter().flatten().collect::<Vec<_>>(),
        [&b""[..], b"f"]
    );

    let (column, _, _) = rows("map<string,string>", &[r#"{"M":{"b":{"S":""},"":{"NULL":true}}}"#]);
    let map = column.as_map().value(0);
    assert_eq!(map.column(0).as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["", "b"]);
    assert_eq!(map.column(1).as_string::<i32>().iter().collect::<Vec<_>>(), [None, Some("")]);
}

#[test]
fn a_struct_leaves_what_it_does_not_declare_in_the_rest() {
    let (column, rest, mismatches) = rows(
        "struct<theme: string, inner: struct<n: long>>",
        &[
            r#"{"M":{"theme":{"S":"dark"},"$x":{"N":"1"},"inner":{"M":{"n":{"N":"2"},"z":{"NULL":true}}}}}"#,
            r#"{"M":{"theme":{"N":"5"}}}"#,
            r#"{"M":{}}"#,
        ],
    );
    let structs = column.as_struct();
    assert_eq!(structs.null_count(), 0);
    assert_eq!(structs.column(0).as_string::<i32>().iter().collect::<Vec<_>>(), [Some("dark"), None, None]);
    assert_eq!(structs.column(1).as_struct().column(0).as_primitive::<Int64Type>().value(0), 2);
    let rest: Vec<Option<&str>> = rest.iter().map(Option::as_deref).collect();
    assert_eq!(rest, [Some(r#"{"v":{"$M":{"$x":1,"inner":{"z":null}}}}"#), Some(r#"{"v":{"theme":5}}"#), None]);
    assert_eq!(mismatches, 1);
}

#[test]
fn undeclared_attributes_stand_in_the_rest_by_name() {
    let schema = table(vec![declared("b", "long")]).schema().unwrap();
    let mut builder = schema.builder();
    let large = "x".repeat(400 << 10);
    let full =
        format!(r#"{{"id":{{"S":"1"}},"b":{{"N":"2"}},"c":{{"S":"{large}"}},"a":{{"BOOL":true}},"":{{"B":""}}}}"#);
    builder.append(&item(&full), None).unwrap();
    let rows = builder.finish();
    let expected = format!(r#"{{"":{{"$B":""}},"a":true,"c":"{large}"}}"#);
    assert_eq!(rows.columns[2].as_string::<i32>().value(0), expected);
    assert!(builder.is_empty());
}

#[test]
fn policies_refuse_an_item_and_leave_the_builder_as_it_was() {
    let mut declarations = vec![declared("a", "long"), declared("b", "struct<n: long>"), declared("c", "long")];
    declarations[0].mismatch = Mismatch::Fail;
    declarations[1].mismatch = Mismatch::Quarantine;
    let schema = table(declarations).schema().unwrap();
    let mut builder = schema.builder();
    let try_append = |builder: &mut ItemBuilder, attributes: &str| {
        let item = item(&format!(r#"{{"id":{{"S":"1"}},{attributes}}}"#));
        builder.append(&item, None)
    };
    try_append(&mut builder, r#""a":{"N":"1"},"b":{"M":{"other":{"S":"x"}}}"#).unwrap();
    let failed = try_append(&mut builder, r#""a":{"S":"secret"}"#).unwrap_err();
    assert!(matches!(&failed, ItemError::Mismatch { attribute, .. } if attribute == "a"));
    let problem = failed.problem("profiles");
    assert_eq!((problem.code, problem.reaction), ("VALUE_MISMATCH", lakehouse_core::error::Reaction::HaltTable));
    assert!(!format!("{problem:?}").contains("secret"));
    let quarantined = try_append(&mut builder, r#""b":{"M":{"n":{"S":"x"}}}"#).unwrap_err();
    assert!(matches!(quarantined, ItemError::Quarantine { .. }));
    try_append(&mut builder, r#""c":{"S":"x"}"#).unwrap();
    assert_eq!(builder.len(), 2);
    assert_eq!(builder.take_mismatches().collect::<Vec<_>>(), [("id", 0), ("a", 0), ("b", 0), ("c", 1)]);
    let rows = builder.finish();
    assert!(rows.columns.iter().all(|column| column.len() == 2));
}

#[test]
fn deletes_and_old_images_are_not_judged() {
    let mut declarations = vec![declared("a", "long")];
    declarations[0].mismatch = Mismatch::Fail;
    let schema = table(declarations).schema().unwrap();
    let mut builder = schema.builder();
    let good = item(r#"{"id":{"S":"1"},"a":{"N":"1"}}"#);
    let bad = item(r#"{"id":{"S":"1"},"a":{"S":"x"}}"#);
    builder.append(&good, None).unwrap();
    builder.append(&good, Some(&bad)).unwrap();
    builder.append_deleted(&bad).unwrap();
    builder.append_deleted(&item(r#"{"id":{"S":"2"}}"#)).unwrap();
    assert_eq!(builder.take_mismatches().map(|(_, count)| count).sum::<u64>(), 0);
    let rows = builder.finish();
    let before = rows.before.unwrap();
    assert_eq!(before.known.iter().flatten().collect::<Vec<_>>(), [false, true, false, false]);
    assert_eq!(before.columns.len(), schema.table().before_columns.len());
    assert_eq!(before.columns[2].as_string::<i32>().iter().collect::<Vec<_>>()[1], Some(r#"{"a":"x"}"#));
    assert!(before.columns.iter().all(|column| column.len() == 4));
    assert_eq!(rows.columns[0].as_string::<i32>().value(3), "2");
    builder.append(&good, None).unwrap();
    assert!(builder.finish().before.is_none(), "old images of one chunk are not those of the next");
}

#[test]
fn without_old_images_only_keys_stand_before() {
    let schema = ItemTable { old_images: false, ..table(vec![declared("a", "long")]) }.schema().unwrap();
    assert_eq!(schema.table().before_columns, [0]);
    let mut builder = schema.builder();
    let one = item(r#"{"id":{"S":"1"},"a":{"N":"1"}}"#);
    builder.append(&one, Some(&one)).unwrap();
    assert_eq!(builder.finish().before.unwrap().columns.len(), 1);
}

#[test]
fn a_key_that_its_column_cannot_hold_halts_the_table() {
    let numbered = |declared| ItemTable {
        key: vec![
            KeyAttribute { name: "id".into(), key_type: KeyType::N },
            KeyAttribute { name: "at".into(), key_type: KeyType::B },
        ],
        ..table(declared)
    };
    let schema = numbered(vec![]).schema().unwrap();
    assert_eq!(schema.table().columns[0].data_type, DataType::Decimal128(38, 0));
    assert_eq!(schema.table().columns[1].data_type, DataType::Binary);
    let mut builder = schema.builder();
    for spelling in ["1", "1.0", "1E0"] {
        builder.append(&item(&format!(r#"{{"id":{{"N":"{spelling}"}},"at":{{"B":"Zg=="}}}}"#)), None).unwrap();
    }
    let fraction = item(r#"{"id":{"N":"1.5"},"at":{"B":"Zg=="}}"#);
    let error = builder.append(&fraction, None).unwrap_err();
    assert_eq!(error.problem("t").code, "KEY_UNMAPPABLE");
    assert_eq!(builder.append_deleted(&fraction).unwrap_err(), error);
    let missing = builder.append(&item(r#"{"id":{"N":"1"}}"#), None).unwrap_err();
    assert_eq!(missing, ItemError::KeyMissing { attribute: "at".into() });
    let keys = builder.finish().columns[0].clone();
    assert_eq!(keys.as_primitive::<Decimal128Type>().values()[..], [1, 1, 1]);

    let schema = numbered(vec![declared("id", "string")]).schema().unwrap();
    let mut builder = schema.builder();
    builder.append(&fraction, None).unwrap();
    assert_eq!(builder.finish().columns[0].as_string::<i32>().value(0), "1.5");
}

#[test]
fn keys_are_declared_as_what_keeps_them_apart() {
    let code = |key_type, column_type| {
        let key = vec![KeyAttribute { name: "id".into(), key_type }];
        ItemTable { key, ..table(vec![declared("id", column_type)]) }.schema().err().map(|problem| problem.code)
    };
    for column_type in ["string", "number", "long", "int", "decimal(20,2)"] {
        assert_eq!(code(KeyType::N, column_type), None, "{column_type}");
    }
    for column_type in ["double", "timestamptz(seconds)", "json", "list<long>"] {
        assert_eq!(code(KeyType::N, column_type), Some("CONFIG_KEY"), "{column_type}");
    }
    for column_type in ["uuid", "date", "timestamptz", "binary", "number"] {
        assert_eq!(code(KeyType::S, column_type), Some("CONFIG_KEY"), "{column_type}");
    }
    assert_eq!(code(KeyType::B, "binary"), None);
    let expecting = |key: &[&str]| {
        let expected_key = Some(key.iter().map(|name| (*name).to_owned()).collect());
        ItemTable { expected_key, ..table(vec![]) }.schema().err().map(|problem| problem.code)
    };
    assert_eq!(expecting(&["id"]), None);
    assert_eq!(expecting(&["email"]), Some("CONFIG_KEY"));
    assert_eq!(expecting(&["id", "at"]), Some("CONFIG_KEY"));
}

#[test]
fn the_schema_is_one_that_the_lake_takes() {
    let mut renamed = declared("tags.v1", "set<string>");
    renamed.name = Some("Tags".into());
    let schema = table(vec![
        declared("Level", "long"),
        declared("id", "string"),
        renamed,
        declared("prefs", "struct<Theme: string, at: timestamptz(seconds), l: list<struct<x: double>>>"),
        declared("m", "map<string,decimal(10,2)>"),
        declared("u", "uuid"),
    ]);
    let schema = schema.schema().unwrap();
    let names: Vec<&str> = schema.table().columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["id", "level", "tags", "prefs", "m", "u", "_rest"]);
    let mirror = schema.table().mirror_schema().unwrap();
    assert_eq!(mirror.identifier_field_ids().collect::<Vec<_>>(), [mirror.field_by_name("id").unwrap().id]);
    assert!(mirror.field_by_name("id").unwrap().required);
    assert!(mirror.field_by_name("prefs.theme").is_some());
    arrow_schema(&mirror).unwrap();
    arrow_schema(&schema.table().history_schema().unwrap()).unwrap();
    let collision = table(vec![declared("Level", "long"), declared("level", "long")]).schema().unwrap_err();
    assert_eq!(collision.code, "NAME_COLLISION");
}

#[test]
fn types_read_as_they_are_written() {
    for text in [
        "string",
        "number",
        "int",
        "long",
        "double",
        "boolean",
        "binary",
        "date",
        "timestamp",
        "timestamptz",
        "timestamptz(seconds)",
        "timestamptz(milliseconds)",
        "timestamptz(microseconds)",
        "uuid",
        "json",
        "decimal(38,0)",
        "decimal(12,2)",
        "list<string>",
        "set<decimal(3,1)>",
        "map<string,list<long>>",
        "struct<a: long, b: struct<c: decimal(5,2), d: map<string,string>>>",
    ] {
        assert_eq!(text.parse::<ColumnType>().map(|parsed| parsed.to_string()).as_deref(), Ok(text));
    }
    assert_eq!(" LIST < Decimal( 9 ) > ".parse::<ColumnType>().unwrap().to_string(), "list<decimal(9,0)>");
    for text in [
        "",
        "strin",
        "decimal(0,0)",
        "decimal(39,0)",
        "decimal(5,6)",
        "decimal(a)",
        "list<>",
        "list<string",
        "list",
        "set<json>",
        "set<set<string>>",
        "map<long,string>",
        "map<string>",
        "struct<>",
        "struct<a>",
        "struct<a: x>",
        "struct<a: long, A: long>",
        "timestamptz(hours)",
        "é(",
        "struct<a: list<string, b: long>>",
    ] {
        assert!(text.parse::<ColumnType>().is_err(), "{text}");
    }
    let deep = format!("{}long{}", "list<".repeat(100), ">".repeat(100));
    assert_eq!(deep.parse::<ColumnType>(), Err(InvalidType::Depth));
}

#[test]
fn a_full_builder_says_so_and_takes_the_item_afterwards() {
    let schema = table(vec![]).schema().unwrap();
    let mut builder = schema.builder();
    let item = item(&format!(r#"{{"id":{{"S":"1"}},"v":{{"S":"{}"}}}}"#, "x".repeat(390 << 10)));
    let full = loop {
        match builder.append(&item, None) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(full, ItemError::Full);
    assert!(builder.bytes() > 200 << 20);
    builder.finish();
    builder.append(&item, None).unwrap();
}

// Types that lose nothing: what is stored with the rest is the item again.

const SCALARS: [&str; 7] = ["string", "number", "int", "long", "decimal(38,5)", "boolean", "binary"];

fn random_type(rng: &mut Rng, depth: usize) -> ColumnType {
    let scalar = |rng: &mut Rng| -> ColumnType { rng.choice(SCALARS).unwrap().parse().unwrap() };
    match rng.u32(0..if depth == 0 { 6 } else { 10 }) {
        0..=4 => scalar(rng),
        5 => ColumnType::Json,
        6 => ColumnType::List(Box::new(random_type(rng, depth - 1))),
        7 => ColumnType::Set(Box::new(loop {
            let element = scalar(rng);
            if element != ColumnType::Boolean {
                break element;
            }
        })),
        8 => ColumnType::Map(Box::new(random_type(rng, depth - 1))),
        _ => {
            let members = ["a", "$b", "ä"].into_iter().take(rng.usize(1..=3));
            ColumnType::Struct(members.map(|name| (name.to_owned(), random_type(rng, depth - 1))).collect())
        }
    }
}

/// A value that is probably of the type.
fn value_of(rng: &mut Rng, column_type: &ColumnType) -> Value {
    if rng.u32(0..8) == 0 {
        return random_value(rng, 2);
    }
    let count = rng.usize(1..4);
    match column_type {
        ColumnType::String => Value::S(random_text(rng)),
        ColumnType::Number => Value::N(random_number(rng)),
        ColumnType::Int => Value::N(number(&rng.i32(..).to_string())),
        ColumnType::Long => Value::N(number(&rng.i64(..).to_string())),
        ColumnType::Decimal { .. } => Value::N(number(&format!("{}E-{}", rng.i64(..), rng.u32(0..6)))),
        ColumnType::Boolean => Value::Bool(rng.bool()),
        ColumnType::Binary => Value::B(vec![rng.u8(..); count]),
        ColumnType::List(element) => Value::L((0..count).map(|_| value_of(rng, element)).collect()),
        ColumnType::Set(element) => match value_of(rng, element) {
            Value::S(member) => Value::Ss(vec![member]),
            Value::N(member) => Value::Ns(vec![member]),
            Value::B(member) => Value::Bs(vec![member]),
            other => other,
        },
        ColumnType::Map(element) => {
            let members = ["k", "$", ""].into_iter().take(count).map(|name| (name.to_owned(), value_of(rng, element)));
            Value::M(Item::new(members.collect()).unwrap())
        }
        ColumnType::Struct(fields) => {
            let mut members = Vec::new();
            for (name, field) in fields {
                if rng.u32(0..4) > 0 {
                    members.push((name.clone(), value_of(rng, field)));
                }
            }
            if rng.bool() {
                members.push(("other".into(), random_value(rng, 1)));
            }
            Value::M(Item::new(members).unwrap())
        }
        _ => random_value(rng, 2),
    }
}

/// What an array has at a place; `None` is NULL.
fn read(column_type: &ColumnType, array: &ArrayRef, row: usize) -> Option<Value> {
    if array.is_null(row) {
        return None;
    }
    let numeric = |unscaled: i128, scale: u8| Value::N(number(&format!("{unscaled}E-{scale}")));
    let members = |element: &ColumnType, array: ArrayRef| -> Vec<Value> {
        (0..array.len()).map(|place| read(element, &array, place).unwrap_or(Value::Null)).collect()
    };
    Some(match column_type {
        ColumnType::String => Value::S(array.as_string::<i32>().value(row).to_owned()),
        ColumnType::Number => Value::N(number(array.as_string::<i32>().value(row))),
        ColumnType::Int => numeric(array.as_primitive::<Int32Type>().value(row).into(), 0),
        ColumnType::Long => numeric(array.as_primitive::<Int64Type>().value(row).into(), 0),
        ColumnType::Decimal { scale, .. } => numeric(array.as_primitive::<Decimal128Type>().value(row), *scale),
        ColumnType::Boolean => Value::Bool(array.as_boolean().value(row)),
        ColumnType::Binary => Value::B(array.as_binary::<i32>().value(row).to_owned()),
        ColumnType::Json => {
            let text = format!(r#"{{"v":{}}}"#, array.as_string::<i32>().value(row));
            Item::from_canonical(&text).unwrap().get("v").unwrap().clone()
        }
        ColumnType::List(element) => Value::L(members(element, array.as_list::<i32>().value(row))),
        ColumnType::Set(element) => {
            let members = members(element, array.as_list::<i32>().value(row));
            let numbers: Vec<Number> =
                members.iter().filter_map(|m| if let Value::N(n) = m { Some(n.clone()) } else { None }).collect();
            match **element {
                ColumnType::String => Value::Ss(
                    members.into_iter().filter_map(|m| if let Value::S(s) = m { Some(s) } else { None }).collect(),
                ),
                ColumnType::Binary => Value::Bs(
                    members.into_iter().filter_map(|m| if let Value::B(b) = m { Some(b) } else { None }).collect(),
                ),
                _ => Value::Ns(numbers),
            }
        }
        ColumnType::Map(element) => {
            let entries = array.as_map().value(row);
            let names = entries.column(0).as_string::<i32>().iter().flatten().map(str::to_owned);
            Value::M(Item::new(names.zip(members(element, entries.column(1).clone())).collect()).unwrap())
        }
        ColumnType::Struct(fields) => {
            let structs = array.as_struct();
            let members = fields.iter().zip(structs.columns());
            let members = members.filter_map(|((name, field), array)| Some((name.clone(), read(field, array, row)?)));
            Value::M(Item::new(members.collect()).unwrap())
        }
        other => panic!("{other}"),
    })
}

/// What a column holds and what the rest has for it, together.
fn together(held: Option<Value>, left: Option<&Value>) -> Option<Value> {
    match (held, left) {
        (Some(Value::M(held)), Some(Value::M(left))) => {
            let mut names: Vec<&str> = held.iter().chain(left.iter()).map(|(name, _)| name).collect();
            names.sort_unstable();
            names.dedup();
            let member = |name: &str| Some((name.to_owned(), together(held.get(name).cloned(), left.get(name))?));
            Some(Value::M(Item::new(names.into_iter().filter_map(member).collect()).unwrap()))
        }
        (None, left) => left.cloned(),
        (held, None) => held,
        (Some(_), Some(_)) => panic!("both hold it"),
    }
}

fn check_nothing_is_lost(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let declarations: Vec<DeclaredColumn> = ["a", "$b", "Ö", "", "z.z"]
        .into_iter()
        .take(rng.usize(0..=5))
        .enumerate()
        .map(|(place, attribute)| DeclaredColumn {
            attribute: attribute.into(),
            name: Some(format!("c{place}")),
            column_type: random_type(&mut rng, 3),
            mismatch: Mismatch::Rest,
        })
        .collect();
    let seen = format!("seed {seed}: {declarations:?}");
    let schema = table(declarations.clone()).schema().unwrap();
    let mut builder = schema.builder();
    let items: Vec<Item> = (0..20)
        .map(|_| {
            let mut attributes = vec![("id".to_owned(), Value::S("key".into()))];
            for declared in &declarations {
                if rng.u32(0..4) > 0 {
                    attributes.push((declared.attribute.clone(), value_of(&mut rng, &declared.column_type)));
                }
            }
            for (name, value) in random_item(&mut rng, 2).iter() {
                if attributes.iter().all(|(known, _)| known != name) && declarations.iter().all(|d| d.attribute != name)
                {
                    attributes.push((name.to_owned(), value.clone()));
                }
            }
            Item::new(attributes).unwrap()
        })
        .collect();
    for (place, item) in items.iter().enumerate() {
        builder.append(item, Some(&items[place / 2])).unwrap();
    }
    let rows = builder.finish();
    let before = rows.before.unwrap();
    for (place, item) in items.iter().enumerate() {
        for (columns, item) in [(&rows.columns, item), (&before.columns, &items[place / 2])] {
            let rest = columns.last().unwrap().as_string::<i32>();
            let rest = match rest.is_valid(place) {
                true => Item::from_canonical(rest.value(place)).unwrap(),
                false => Item::default(),
            };
            assert!(!rest.is_empty() || columns.last().unwrap().is_null(place), "{seen}");
            let mut attributes = vec![("id".to_owned(), Value::S(columns[0].as_string::<i32>().value(place).into()))];
            for (number, declared) in declarations.iter().enumerate() {
                let held = read(&declared.column_type, &columns[number + 1], place);
                let whole = together(held, rest.get(&declared.attribute));
                attributes.extend(whole.map(|value| (declared.attribute.clone(), value)));
            }
            let undeclared = rest.iter().filter(|(name, _)| declarations.iter().all(|d| d.attribute != *name));
            attributes.extend(undeclared.map(|(name, value)| (name.to_owned(), value.clone())));
            let again = Item::new(attributes).unwrap();
            assert_eq!(again.canonical(), item.canonical(), "{seen}");
            assert_eq!(again, *item, "{seen}");
        }
    }
}

#[test]
fn columns_and_rest_together_are_the_item() {
    (0..400).for_each(check_nothing_is_lost);
}
