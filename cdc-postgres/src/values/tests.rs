//! Tests over all types at once: what each stores for the edge values of section 4 in both forms, and that no bytes
//! whatever make any of them panic. The details of one form are tested beside its decoder.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, Time64MicrosecondType,
    TimestampMicrosecondType,
};
use arrow_array::{Array, ArrayRef};

use super::numeric::tests::send as send_numeric;
use super::*;

fn base(oid: u32, name: &str) -> PgType {
    PgType { oid, typmod: -1, name: name.to_owned(), kind: PgKind::Base }
}

fn numeric(precision: i32, scale: i32) -> PgType {
    PgType { typmod: (precision << 16) + scale + 4, ..base(1700, "numeric") }
}

fn array_of(element: PgType) -> PgType {
    PgType { oid: 99_999, typmod: -1, name: format!("{}[]", element.name), kind: PgKind::Array(Box::new(element)) }
}

fn options() -> TypeOptions {
    TypeOptions { money_fraction_digits: Some(2), ..TypeOptions::default() }
}

fn column(pg: &PgType) -> ColumnType {
    ColumnType::of(pg, &options())
}

/// A value in both forms; `overflow` if its mapped type cannot hold it.
struct Sample {
    text: Vec<u8>,
    binary: Vec<u8>,
    overflow: bool,
}

fn fits(text: &str, binary: impl AsRef<[u8]>) -> Sample {
    Sample { text: text.into(), binary: binary.as_ref().to_vec(), overflow: false }
}

fn overflows(text: &str, binary: impl AsRef<[u8]>) -> Sample {
    Sample { overflow: true, ..fits(text, binary) }
}

/// Types whose binary form, after the cast, is their text.
fn same(texts: &[&str]) -> Vec<Sample> {
    texts.iter().map(|text| fits(text, text)).collect()
}

fn numerics(values: &[(&str, bool)]) -> Vec<Sample> {
    let sample = |&(text, overflow): &(&str, bool)| Sample { overflow, ..fits(text, send_numeric(text)) };
    values.iter().map(sample).collect()
}

fn lists(fitting: &[&str], overflowing: &[&str]) -> Vec<Sample> {
    let mut samples = same(fitting);
    samples.extend(overflowing.iter().map(|text| overflows(text, text)));
    samples
}

fn every_type() -> Vec<(PgType, Vec<Sample>)> {
    let domain = |of: PgType| PgType { kind: PgKind::Domain(Box::new(of)), ..base(50_000, "domain") };
    let kind = |kind: PgKind| PgType { kind, ..base(50_001, "other") };
    let huge = "9".repeat(1_000);
    let day = 86_400_000_000i64;
    vec![
        (base(16, "boolean"), vec![fits("t", [1]), fits("f", [0])]),
        (base(21, "smallint"), vec![fits("-32768", [0x80, 0]), fits("32767", [0x7f, 0xff])]),
        (base(23, "integer"), vec![fits("-2147483648", [0x80, 0, 0, 0]), fits("0", [0; 4])]),
        (base(20, "bigint"), vec![fits("9223372036854775807", i64::MAX.to_be_bytes()), fits("-1", [0xff; 8])]),
        (base(26, "oid"), vec![fits("4294967295", [0xff; 4])]),
        (base(28, "xid"), vec![fits("3", [0, 0, 0, 3])]),
        (
            base(700, "real"),
            vec![fits("-0", (-0f32).to_be_bytes()), fits("NaN", f32::NAN.to_be_bytes()), fits("1e-45", [0, 0, 0, 1])],
        ),
        (
            base(701, "double precision"),
            vec![
                fits("-0", (-0f64).to_be_bytes()),
                fits("-Infinity", f64::NEG_INFINITY.to_be_bytes()),
                fits("0.1", 0.1f64.to_be_bytes()),
            ],
        ),
        (numeric(10, 2), numerics(&[("12345.67", false), ("-0.01", false), ("NaN", true), ("0.001", true)])),
        (numeric(38, 0), numerics(&[("99999999999999999999999999999999999999", false), (&huge, true)])),
        (
            base(1700, "numeric"),
            numerics(&[("NaN", false), ("Infinity", false), ("-1.50", false), ("0.00000001", false), (&huge, false)]),
        ),
        (base(790, "money"), vec![fits("-$1,234.50", (-123_450i64).to_be_bytes()), fits("$0.01", 1i64.to_be_bytes())]),
        (
            base(1082, "date"),
            vec![
                fits("2000-01-01", [0; 4]),
                fits("0044-03-15 BC", (-746_117i32).to_be_bytes()),
                fits("5874897-12-31", 2_145_031_948i32.to_be_bytes()),
                overflows("infinity", i32::MAX.to_be_bytes()),
                overflows("-infinity", i32::MIN.to_be_bytes()),
            ],
        ),
        (
            base(1114, "timestamp without time zone"),
            vec![
                fits("2000-01-01 00:00:00.000001", 1i64.to_be_bytes()),
                overflows("294276-12-31 23:59:59.999999", 9_223_371_331_199_999_999i64.to_be_bytes()),
                overflows("-infinity", i64::MIN.to_be_bytes()),
            ],
        ),
        (
            base(1184, "timestamp with time zone"),
            vec![
                fits("1999-12-31 23:59:59.5+00", (-500_000i64).to_be_bytes()),
                overflows("294276-12-31 23:59:59.999999+00", 9_223_371_331_199_999_999i64.to_be_bytes()),
                overflows("infinity", i64::MAX.to_be_bytes()),
            ],
        ),
        (
            base(1083, "time without time zone"),
            vec![fits("23:59:59.999999", (day - 1).to_be_bytes()), overflows("24:00:00", day.to_be_bytes())],
        ),
        (
            base(2950, "uuid"),
            vec![fits("00112233-4455-6677-8899-aabbccddeeff", {
                0x00112233_4455_6677_8899_aabbccddeeffu128.to_be_bytes()
            })],
        ),
        (base(17, "bytea"), vec![fits("\\x00ff10", [0, 0xff, 0x10]), fits("\\x", [])]),
        (base(30_000, "geometry(Point,4326)"), vec![fits("0101000020E6100000", [1, 1, 0, 0, 0x20, 0xe6, 0x10, 0, 0])]),
        (base(25, "text"), same(&["", "žluťoučký", "a\tb\n", "NULL"])),
        (base(1042, "character(5)"), same(&["ab   "])),
        (
            base(18, "\"char\""),
            vec![fits("x", "x"), fits("", [0]), { Sample { text: vec![0xc3], binary: vec![0xc3], overflow: false } }],
        ),
        (base(114, "json"), same(&["{\"a\" :1}"])),
        (base(3802, "jsonb"), vec![fits("{\"a\": 1}", b"\x01{\"a\": 1}")]),
        (
            base(869, "inet"),
            vec![fits("10.0.0.1", [2, 32, 0, 4, 10, 0, 0, 1]), fits("10.0.0.1/8", [2, 8, 0, 4, 10, 0, 0, 1])],
        ),
        (base(650, "cidr"), vec![fits("10.0.0.0/8", [2, 8, 1, 4, 10, 0, 0, 0])]),
        (base(829, "macaddr"), vec![fits("08:00:2b:01:02:03", [8, 0, 0x2b, 1, 2, 3])]),
        (base(1562, "bit varying"), vec![fits("00101", [0, 0, 0, 5, 0b0010_1000]), fits("", [0; 4])]),
        (base(3220, "pg_lsn"), vec![fits("16/B374D848", [0, 0, 0, 0x16, 0xB3, 0x74, 0xD8, 0x48])]),
        (base(5069, "xid8"), vec![fits("18446744073709551615", [0xff; 8])]),
        (base(1186, "interval"), same(&["P1Y2M3DT4H5M6.7S", "PT0S"])),
        (base(600, "point"), vec![fits("(1.5,-0)", [1.5f64.to_be_bytes(), (-0f64).to_be_bytes()].concat())]),
        (
            base(30_001, "hstore"),
            vec![fits("\"a\"=>NULL", [&[0, 0, 0, 1, 0, 0, 0, 1][..], b"a", &[0xff; 4]].concat()), { fits("", [0; 4]) }],
        ),
        (
            base(30_002, "vector(2)"),
            vec![fits("[1,-0.5]", [&[0, 2, 0, 0][..], &[0x3f, 0x80, 0, 0, 0xbf, 0, 0, 0]].concat())],
        ),
        (base(30_003, "halfvec(2)"), vec![fits("[1,-2.5]", [0, 2, 0, 0, 0x3c, 0, 0xc1, 0])]),
        (base(30_004, "semver"), same(&["1.2.3"])),
        (kind(PgKind::Enum), same(&["sad"])),
        (kind(PgKind::Composite), same(&["(1,\"a b\",)"])),
        (kind(PgKind::Range), same(&["[1,10)", "empty", "(,)"])),
        (kind(PgKind::Multirange), same(&["{[1,3),[5,9)}"])),
        (domain(domain(numeric(4, 1))), numerics(&[("999.9", false), ("NaN", true)])),
        (array_of(base(23, "integer")), lists(&["{}", "{1,NULL,-3}"], &["{{1,2},{3,4}}", "[0:1]={1,2}"])),
        (array_of(base(25, "text")), lists(&[r#"{a,"b,c","\"q\\","NULL",NULL,""}"#], &["{{a}}"])),
        (array_of(base(1082, "date")), lists(&["{2024-01-31,NULL}"], &["{2024-01-31,infinity}"])),
        (array_of(base(1114, "timestamp without time zone")), lists(&[r#"{"2024-01-31 00:00:00"}"#], &["{-infinity}"])),
        (array_of(numeric(4, 1)), lists(&["{1.0,NULL}"], &["{1.0,NaN}"])),
        (array_of(base(17, "bytea")), lists(&[r#"{"\\x00ff"}"#], &[])),
        (array_of(base(30_001, "hstore")), lists(&[r#"{"\"a\"=>\"1\", \"b\"=>NULL",NULL}"#], &[])),
        (array_of(base(603, "box")), lists(&["{(1,1),(0,0);(2,2),(1,1)}"], &[])),
        (array_of(base(30_002, "vector")), lists(&[r#"{"[1,2]",NULL}"#], &[])),
        (array_of(base(600, "point")), lists(&[r#"{"(1,2)"}"#], &[])),
        (
            array_of(domain(array_of(base(25, "text")))),
            lists(&[r#"{"{a,\"b,c\"}",NULL,"{}"}"#], &[r#"{"{a}","{{b}}"}"#]),
        ),
    ]
}

/// All samples in one column, from text or from binary, with a NULL at the end.
fn build(t: &ColumnType, samples: &[Sample], append: fn(&mut ColumnBuilder, &Sample) -> Appended) -> ArrayRef {
    let mut builder = ColumnBuilder::new(t, 4);
    for sample in samples {
        let expected = match sample.overflow {
            true => Appended::Overflow(String::from_utf8(sample.text.clone()).unwrap()),
            false => Appended::Stored,
        };
        assert_eq!(append(&mut builder, sample), expected);
    }
    builder.append_null();
    assert_eq!(builder.len(), samples.len() + 1);
    let array = builder.finish();
    assert!(builder.is_empty(), "finish leaves an empty builder");
    assert_eq!(builder.finish().len(), 0);
    array
}

#[test]
fn text_and_binary_of_each_type_store_the_same() {
    for (pg, samples) in every_type() {
        let t = column(&pg);
        let text = build(&t, &samples, |builder, sample| builder.append_text(&sample.text).unwrap());
        let binary = build(&t, &samples, |builder, sample| builder.append_binary(&sample.binary).unwrap());
        assert_eq!(&text, &binary, "{}", pg.name);
        assert_eq!(text.data_type(), t.data_type(), "{}", pg.name);
        text.to_data().validate_full().unwrap();
        for (row, sample) in samples.iter().enumerate() {
            assert_eq!(text.is_null(row), sample.overflow, "{} {}", pg.name, String::from_utf8_lossy(&sample.text));
        }
        assert!(text.is_null(samples.len()));
    }
}

fn one(pg: &PgType, text: &str) -> ArrayRef {
    let mut builder = ColumnBuilder::new(&column(pg), 1);
    assert_eq!(builder.append_text(text.as_bytes()), Ok(Appended::Stored), "{text}");
    builder.finish()
}

#[test]
fn stored_values_are_the_values() {
    assert!(one(&base(16, "boolean"), "t").as_boolean().value(0));
    assert_eq!(one(&base(21, "smallint"), "-7").as_primitive::<Int32Type>().value(0), -7);
    assert_eq!(one(&base(26, "oid"), "4294967295").as_primitive::<Int64Type>().value(0), 4_294_967_295);
    assert_eq!(one(&base(700, "real"), "0.1").as_primitive::<Float32Type>().value(0), 0.1);
    assert_eq!(one(&base(701, "double precision"), "0.1").as_primitive::<Float64Type>().value(0), 0.1);
    assert_eq!(one(&numeric(10, 2), "-1.5").as_primitive::<Decimal128Type>().value(0), -150);
    assert_eq!(one(&base(790, "money"), "($1,000.01)").as_primitive::<Decimal128Type>().value(0), -100_001);
    assert_eq!(one(&base(1082, "date"), "1970-01-02").as_primitive::<Date32Type>().value(0), 1);
    let instant = one(&base(1184, "timestamp with time zone"), "1970-01-01 00:00:01+00");
    assert_eq!(instant.as_primitive::<TimestampMicrosecondType>().value(0), 1_000_000);
    let time = one(&base(1083, "time without time zone"), "00:00:01");
    assert_eq!(time.as_primitive::<Time64MicrosecondType>().value(0), 1_000_000);
    assert_eq!(one(&base(17, "bytea"), "\\x0102").as_binary::<i32>().value(0), [1, 2]);
    assert_eq!(one(&base(1042, "character(5)"), "ab   ").as_string::<i32>().value(0), "ab   ");

    let list = one(&array_of(base(23, "integer")), "{1,NULL,3}");
    let elements = list.as_list::<i32>().value(0);
    assert_eq!(elements.as_primitive::<Int32Type>().iter().collect::<Vec<_>>(), [Some(1), None, Some(3)]);

    let map = one(&base(30_001, "hstore"), "\"a\"=>\"1\", \"b\"=>NULL");
    let pairs = map.as_map().value(0);
    assert_eq!(pairs.column(0).as_string::<i32>().iter().collect::<Vec<_>>(), [Some("a"), Some("b")]);
    assert_eq!(pairs.column(1).as_string::<i32>().iter().collect::<Vec<_>>(), [Some("1"), None]);

    let point = one(&base(600, "point"), "(1,-2)");
    assert_eq!(point.as_struct().column(1).as_primitive::<Float64Type>().value(0), -2.0);
}

#[test]
fn a_bad_element_leaves_nothing_of_its_array_behind() {
    let mut builder = ColumnBuilder::new(&column(&array_of(base(1082, "date"))), 4);
    assert_eq!(builder.append_text(b"{2024-01-01}"), Ok(Appended::Stored));
    assert!(builder.append_text(b"{2024-01-02,2024-13-01}").is_err());
    assert!(builder.append_text(b"{2024-01-02,").is_err());
    assert!(matches!(builder.append_text(b"{2024-01-02,infinity}"), Ok(Appended::Overflow(_))));
    assert_eq!(builder.append_text(b"{2024-01-03}"), Ok(Appended::Stored));
    let array = builder.finish();
    assert_eq!(array.len(), 3);
    assert_eq!(array.as_list::<i32>().values().len(), 2);
}

#[test]
fn held_bytes_grow_with_the_values() {
    for (pg, samples) in every_type() {
        let mut builder = ColumnBuilder::new(&column(&pg), 0);
        let empty = builder.bytes();
        for sample in samples.iter().cycle().take(64) {
            let _ = builder.append_text(&sample.text).unwrap();
        }
        assert!(builder.bytes() > empty, "{}", pg.name);
    }
}

#[test]
fn errors_never_show_the_value() {
    for (pg, _) in every_type() {
        let mut builder = ColumnBuilder::new(&column(&pg), 0);
        if let Err(e) = builder.append_text(b"s3cret\xff") {
            assert!(!format!("{e} {e:?}").contains("s3cret"));
            assert!(builder.is_empty());
        }
    }
}

/// Random bytes, or a valid value with some bytes changed, removed or repeated.
fn fuzz_bytes(rng: &mut fastrand::Rng, samples: &[Sample], binary: bool) -> Vec<u8> {
    let sample = &samples[rng.usize(..samples.len())];
    let mut bytes = if binary { sample.binary.clone() } else { sample.text.clone() };
    match rng.u8(..8) {
        0 => bytes = (0..rng.usize(..40)).map(|_| rng.u8(..)).collect(),
        1 => bytes.truncate(rng.usize(..=bytes.len())),
        2 => bytes.extend_from_within(rng.usize(..=bytes.len())..),
        3 => bytes.insert(rng.usize(..=bytes.len()), b"{}\"\\,-.0:"[rng.usize(..9)]),
        _ => {
            for _ in 0..rng.usize(1..4) {
                if let Some(at) = (!bytes.is_empty()).then(|| rng.usize(..bytes.len())) {
                    bytes[at] = if rng.bool() { rng.u8(..) } else { bytes[rng.usize(..bytes.len())] };
                }
            }
        }
    }
    bytes
}

#[test]
fn no_bytes_make_a_builder_panic_or_lose_count() {
    let types = every_type();
    let seed = 6;
    let mut rng = fastrand::Rng::with_seed(seed);
    let rounds = 1_000_000 / types.len();
    for (pg, samples) in &types {
        let t = column(pg);
        let mut builder = ColumnBuilder::new(&t, 0);
        for round in 0..rounds {
            let binary = rng.bool();
            let bytes = fuzz_bytes(&mut rng, samples, binary);
            let before = builder.len();
            let appended = if binary { builder.append_binary(&bytes) } else { builder.append_text(&bytes) };
            let grown = usize::from(appended.is_ok());
            assert_eq!(builder.len(), before + grown, "{} seed {seed} round {round}", pg.name);
            if round % 1_000 == 999 {
                let array = builder.finish();
                assert_eq!(array.len(), before + grown);
                array.to_data().validate_full().unwrap();
            }
        }
    }
}
