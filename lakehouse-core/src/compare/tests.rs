use arrow_array::builder::{MapBuilder, StringBuilder};
use arrow_array::types::Int32Type;
use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float32Array,
    Float64Array, Int32Array, Int64Array, ListArray, StringArray, StructArray, Time64MicrosecondArray,
    TimestampMicrosecondArray,
};
use arrow_schema::{DataType, Field, Schema};

use super::*;

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap()
}

/// Rows `id value`.
fn rows(rows: &[(i64, &str)]) -> RecordBatch {
    let ids = Int64Array::from_iter_values(rows.iter().map(|(id, _)| *id));
    let values = StringArray::from_iter_values(rows.iter().map(|(_, value)| value));
    batch(vec![("id", Arc::new(ids)), ("v", Arc::new(values))])
}

/// Both sides in pieces of any size, as a factory.
fn open(source: Vec<RecordBatch>, mirror: Vec<RecordBatch>) -> Box<OpenRows<'static>> {
    Box::new(move |side| {
        let batches = if side == Side::Source { source.clone() } else { mirror.clone() };
        Box::pin(async move { Ok(futures::stream::iter(batches.into_iter().map(Ok)).boxed()) })
    })
}

fn run(key: &[&str], source: Vec<RecordBatch>, mirror: Vec<RecordBatch>, limits: Limits) -> TableComparison {
    let comparison = Comparison::new(source[0].schema(), key).unwrap();
    futures::executor::block_on(compare(comparison, &open(source, mirror), limits, true)).unwrap()
}

fn check(key: &[&str], source: &[(i64, &str)], mirror: &[(i64, &str)], expected: &str) {
    let result = run(key, vec![rows(source)], vec![rows(mirror)], Limits::default());
    let counts = [result.only_in_source, result.only_in_mirror, result.differing];
    let mut samples: Vec<String> = result.samples.iter().map(|s| format!("{:?}({})", s.difference, s.key)).collect();
    samples.sort();
    assert_eq!(format!("{counts:?} {}", samples.join(" ")).trim(), expected);
    assert_eq!(result.is_equal(), counts == [0, 0, 0]);
    assert_eq!(result.source_rows, source.len() as u64);
}

#[test]
fn each_kind_of_difference_is_told_with_its_key() {
    check(&["id"], &[(1, "a"), (2, "b")], &[(2, "b"), (1, "a")], "[0, 0, 0]");
    check(&["id"], &[(1, "a"), (2, "b")], &[(1, "a")], "[1, 0, 0] OnlyInSource(id=2)");
    check(&["id"], &[(1, "a")], &[(1, "a"), (2, "b")], "[0, 1, 0] OnlyInMirror(id=2)");
    check(&["id"], &[(1, "a"), (2, "b")], &[(1, "a"), (2, "B")], "[0, 0, 1] Differing(id=2)");
    check(&["id"], &[(1, "a")], &[(1, "a"), (1, "a")], "[0, 1, 0] OnlyInMirror(id=1)");
    check(&["id"], &[(1, "a")], &[(1, "a"), (1, "b")], "[0, 1, 1] Differing(id=1) OnlyInMirror(id=1)");
}

#[test]
fn rows_that_swap_their_values_are_different() {
    check(&["id"], &[(1, "a"), (2, "b")], &[(1, "b"), (2, "a")], "[0, 0, 2] Differing(id=1) Differing(id=2)");
}

#[test]
fn without_a_key_rows_are_compared_with_multiplicity() {
    check(&[], &[(1, "a"), (1, "a"), (2, "b")], &[(2, "b"), (1, "a"), (1, "a")], "[0, 0, 0]");
    check(
        &[],
        &[(1, "a"), (1, "a")],
        &[(1, "a"), (1, "b")],
        "[1, 1, 0] OnlyInMirror(id=1, v=b) OnlyInSource(id=1, v=a)",
    );
}

#[test]
fn passes_are_bounded_and_miss_nothing() {
    let number = |n: i64| (n, if n % 3 == 0 { "x" } else { "y" });
    let source: Vec<(i64, &str)> = (0..3_000).map(number).collect();
    let mirror: Vec<(i64, &str)> = (300..3_300).map(|n| (n, "x")).collect();
    let (source, mirror) = (vec![rows(&source[..1_000]), rows(&source[1_000..])], vec![rows(&mirror)]);
    let limits = Limits { rows_at_once: 500, passes: 100 };
    let mut comparison = Comparison::new(source[0].schema(), &["id"]).unwrap();
    source.iter().for_each(|batch| comparison.add(Side::Source, batch).unwrap());
    mirror.iter().for_each(|batch| comparison.add(Side::Mirror, batch).unwrap());
    assert!((8..100).contains(&comparison.passes(limits).len()));

    let whole = run(&["id"], source.clone(), mirror.clone(), limits);
    assert_eq!([whole.only_in_source, whole.only_in_mirror, whole.differing, whole.not_examined], [300, 300, 1_800, 0]);
    assert_eq!(whole.samples.len(), 20);
    // Fewer passes than it takes: lower bounds, and never equal.
    let cut = run(&["id"], source, mirror, Limits { rows_at_once: 500, passes: 2 });
    assert!(cut.not_examined > 0 && cut.only_in_source + cut.only_in_mirror + cut.differing > 0 && !cut.is_equal());
    assert!(cut.only_in_source <= 300 && cut.differing <= 1_800);
}

#[test]
fn keys_that_changed_meanwhile_are_left_out_and_compared_again() {
    let (source, mirror) =
        (vec![rows(&[(1, "a"), (2, "new"), (3, "c")])], vec![rows(&[(1, "a"), (2, "old"), (3, "?")])]);
    let changed = |comparison: &Comparison| -> HashSet<KeyHash> {
        comparison.hasher().keys(&rows(&[(2, "")])).unwrap().into_iter().collect()
    };
    let mut first = Comparison::new(source[0].schema(), &["id"]).unwrap();
    first.leave_out(changed(&first));
    let both = open(source.clone(), mirror);
    let mut result = futures::executor::block_on(compare(first, &both, Limits::default(), false)).unwrap();
    assert_eq!([result.source_rows, result.mirror_rows, result.differing], [3, 3, 1]);

    let again = |mirror: &[(i64, &str)]| {
        let mut again = Comparison::new(source[0].schema(), &["id"]).unwrap();
        again.restrict_to(changed(&again));
        let both = open(source.clone(), vec![rows(mirror)]);
        futures::executor::block_on(compare(again, &both, Limits::default(), false)).unwrap()
    };
    assert!(again(&[(2, "new"), (3, "still other")]).is_equal());
    result.absorb(again(&[(2, "old")]));
    assert_eq!([result.source_rows, result.differing], [3, 2]);
    assert_eq!(result.samples[1].key.len(), 32, "a digest, not a value");
}

fn hash_one(column: ArrayRef) -> Vec<u128> {
    let batch = batch(vec![("c", column)]);
    RowHasher::new(batch.schema(), &[]).unwrap().hash(&batch).unwrap().rows
}

#[test]
fn floats_count_by_their_bits_but_for_nan() {
    let other_nan = f64::from_bits(f64::NAN.to_bits() ^ 1 | 1 << 63);
    let hashes = hash_one(Arc::new(Float64Array::from(vec![f64::NAN, other_nan, 0.0, -0.0, f64::INFINITY])));
    assert_eq!(hashes[0], hashes[1]);
    assert_eq!(HashSet::<u128>::from_iter(hashes[1..].iter().copied()).len(), 4);
    let key = |value: f64| {
        let batch = batch(vec![("c", Arc::new(Float64Array::from(vec![value])) as ArrayRef)]);
        RowHasher::new(batch.schema(), &["c"]).unwrap().hash(&batch).unwrap().keys
    };
    assert_eq!(key(f64::NAN), key(other_nan));
    let narrow = hash_one(Arc::new(Float32Array::from(vec![f32::NAN, -f32::NAN, 1.0])));
    assert!(narrow[0] == narrow[1] && narrow[1] != narrow[2]);
}

fn map(rows: &[&[(&str, Option<&str>)]]) -> ArrayRef {
    let mut builder = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    for row in rows {
        for (key, value) in *row {
            builder.keys().append_value(key);
            builder.values().append_option(*value);
        }
        builder.append(true).unwrap();
    }
    Arc::new(builder.finish())
}

#[test]
fn the_entries_of_a_map_have_no_order() {
    let hashes = hash_one(map(&[
        &[("a", Some("1")), ("b", None)],
        &[("b", None), ("a", Some("1"))],
        &[("a", Some("1")), ("b", Some(""))],
        &[("a", Some("1"))],
        &[],
    ]));
    assert_eq!(hashes[0], hashes[1]);
    assert_eq!(HashSet::<u128>::from_iter(hashes).len(), 4);
}

#[test]
fn null_and_empty_and_nested_values_do_not_run_together() {
    let text = hash_one(Arc::new(StringArray::from(vec![None, Some(""), Some("NULL")])));
    assert_eq!(HashSet::<u128>::from_iter(text).len(), 3);
    let list =
        |row: Vec<Option<Vec<Option<i32>>>>| hash_one(Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(row)));
    let hashes = list(vec![None, Some(vec![]), Some(vec![None]), Some(vec![Some(0)]), Some(vec![Some(0), None])]);
    assert_eq!(HashSet::<u128>::from_iter(hashes).len(), 5);
    let parts = |a: &str, b: &str| {
        let (a, b): (ArrayRef, ArrayRef) = (Arc::new(StringArray::from(vec![a])), Arc::new(StringArray::from(vec![b])));
        let batch = batch(vec![("a", a), ("b", b)]);
        RowHasher::new(batch.schema(), &[]).unwrap().hash(&batch).unwrap().rows
    };
    assert_ne!(parts("ab", "c"), parts("a", "bc"));
}

/// One column of each type of the type map, three rows, the last NULL.
fn every_type() -> Vec<(&'static str, ArrayRef)> {
    let inner = Fields::from(vec![Field::new("x", DataType::Float64, true), Field::new("y", DataType::Float64, true)]);
    let point = |values: Vec<Option<f64>>| Arc::new(Float64Array::from(values)) as ArrayRef;
    let columns = vec![point(vec![Some(1.0), None, None]), point(vec![Some(2.0), Some(3.0), None])];
    let uuid =
        FixedSizeBinaryArray::try_from_sparse_iter_with_size([Some([1u8; 16]), Some([2; 16]), None].into_iter(), 16);
    vec![
        ("boolean", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]))),
        ("int", Arc::new(Int32Array::from(vec![Some(1), Some(-1), None]))),
        ("long", Arc::new(Int64Array::from(vec![Some(1), Some(i64::MIN), None]))),
        ("float", Arc::new(Float32Array::from(vec![Some(1.5), Some(-0.0), None]))),
        ("double", Arc::new(Float64Array::from(vec![Some(1.5), Some(f64::NAN), None]))),
        (
            "decimal",
            Arc::new(Decimal128Array::from(vec![Some(1), Some(-1), None]).with_precision_and_scale(9, 2).unwrap()),
        ),
        ("date", Arc::new(Date32Array::from(vec![Some(1), Some(-1), None]))),
        ("time", Arc::new(Time64MicrosecondArray::from(vec![Some(1), Some(2), None]))),
        ("timestamp", Arc::new(TimestampMicrosecondArray::from(vec![Some(1), Some(-2), None]))),
        (
            "timestamptz",
            Arc::new(TimestampMicrosecondArray::from(vec![Some(1), Some(-2), None]).with_timezone("+00:00")),
        ),
        ("string", Arc::new(StringArray::from(vec![Some("a"), Some(""), None]))),
        ("binary", Arc::new(BinaryArray::from(vec![Some(&b"a"[..]), Some(&b""[..]), None]))),
        ("uuid", Arc::new(uuid.unwrap())),
        (
            "list",
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1)]), Some(vec![]), None])),
        ),
        ("struct", Arc::new(StructArray::new(inner, columns, Some(vec![true, true, false].into())))),
        ("map", map(&[&[("a", None)], &[], &[("b", None)]])),
    ]
}

use arrow_schema::Fields;

#[test]
fn every_type_is_compared_wherever_its_rows_stand_in_an_array() {
    for (name, column) in every_type() {
        let whole = hash_one(Arc::clone(&column));
        assert_eq!(HashSet::<u128>::from_iter(whole.iter().copied()).len(), 3, "{name}");
        for row in 0..3 {
            assert_eq!(hash_one(column.slice(row, 1)), whole[row..=row], "{name}");
        }
    }
    let all = batch(every_type());
    let turned = all.project(&(0..all.num_columns()).rev().collect::<Vec<_>>()).unwrap();
    assert!(run(&["uuid", "int"], vec![all.clone()], vec![turned], Limits::default()).is_equal());
    let pieces = vec![all.slice(2, 1), all.slice(0, 2)];
    assert!(run(&[], vec![all], pieces, Limits::default()).is_equal());
}

#[test]
fn a_column_that_is_missing_is_an_error_and_not_a_difference() {
    let schema =
        Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false), Field::new("gone", DataType::Utf8, true)]));
    let mut comparison = Comparison::new(schema, &["id"]).unwrap();
    assert_eq!(comparison.add(Side::Mirror, &rows(&[(1, "a")])).unwrap_err().code, "COLUMN_UNKNOWN");
}
