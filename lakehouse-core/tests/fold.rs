//! An older state and the history since give the state that the mirror has.

use std::collections::HashSet;
use std::sync::Arc;

use crate::tiny::{COPIED_AT, Lake};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use lakehouse_core::commit::properties;
use lakehouse_core::compare::{Comparison, Limits, RowHasher, Side, compare, table_rows};
use lakehouse_core::fold::{Fold, Range, history_begins};
use lakehouse_core::key_index::KeyHash;
use lakehouse_core::planted::Planted;
use lakehouse_core::position::Position;
use lakehouse_core::read::{Projection, TableReader};
use lakehouse_core::schema::Key;

/// The mirror right at a position that a snapshot of ours has.
async fn mirror_at(lake: &Lake, position: Position) -> TableReader {
    let table = lake.load("ns.t").await;
    let stands = |snapshot: &&iceberg::spec::SnapshotRef| {
        snapshot.summary().additional_properties.get(properties::TO) == Some(&position.to_string())
    };
    let snapshot = table.metadata.snapshots().find(stands).map(|snapshot| snapshot.snapshot_id());
    assert!(snapshot.is_some(), "no snapshot at {position}");
    TableReader::at(&lake.storage, &table, snapshot).await.unwrap()
}

/// All rows as `1a`, sorted.
fn told(batches: &[RecordBatch]) -> String {
    let mut rows = Vec::new();
    for batch in batches {
        let ids = batch.column_by_name("id").unwrap().as_any().downcast_ref::<Int64Array>().unwrap();
        let names = batch.column_by_name("name").unwrap().as_any().downcast_ref::<StringArray>().unwrap();
        rows.extend(ids.iter().zip(names).map(|(id, name)| format!("{}{}", id.unwrap(), name.unwrap_or_default())));
    }
    rows.sort();
    rows.join(" ")
}

fn rows_of(reader: &TableReader) -> String {
    let columns = Projection::all(&reader.schema).unwrap();
    let batches = reader.files().into_iter().flat_map(|path| reader.read(path, &columns).unwrap());
    told(&batches.map(Result::unwrap).collect::<Vec<_>>())
}

async fn folded(lake: &Lake, range: Range, keys: Option<&HashSet<KeyHash>>) -> String {
    let base = mirror_at(lake, range.after).await;
    let history = lake.load("ns.t_history").await;
    assert_eq!(history_begins(&history).unwrap(), Some(Position::new(COPIED_AT)));
    let history = TableReader::at(&lake.storage, &history, history.snapshot_id()).await.unwrap();
    let mut batches = Vec::new();
    let fold = Fold::read(&history, &base.schema, range, keys).unwrap();
    fold.state(&base, &history, keys, |batch| {
        batches.push(batch);
        Ok(())
    })
    .unwrap();
    told(&batches)
}

/// Every earlier state, folded to every later one, is that one; the last is `expected`.
async fn check(key: Key, rows: &str, transactions: &[&str], expected: &str) {
    let lake = Lake::of(key, rows, transactions, Planted::none()).await;
    let positions: Vec<Position> = (0..=transactions.len() as u64).map(|n| Position::new(COPIED_AT + 10 * n)).collect();
    for (number, &after) in positions.iter().enumerate() {
        for &up_to in &positions[number..] {
            let found = rows_of(&mirror_at(&lake, up_to).await);
            assert_eq!(folded(&lake, Range { after, up_to }, None).await, found, "{transactions:?} {after} to {up_to}");
        }
    }
    assert_eq!(rows_of(&mirror_at(&lake, *positions.last().unwrap()).await), expected, "{transactions:?}");
}

fn by_id() -> Key {
    Key::Columns(vec![0])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_change_of_each_key_decides() {
    check(by_id(), "1a 2b 3c", &["=1d +4e", "=1f -2", "+2g =4h =4i"], "1f 2g 3c 4i").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_leaves_its_old_place() {
    check(by_id(), "1a 2b", &["=1>5x", "=2>1y", "=5>2z =1>5w"], "2z 5w").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_takes_everything_before_it() {
    check(by_id(), "1a 2b", &["+3c", "+4d ! +5e", "=5f +1g"], "1g 5f").await;
    check(by_id(), "1a 2b", &["!"], "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_key_are_counted() {
    let script = ["+1a +1a +2b", "-1a =2b>2c", "-1a +9z =9z>9z", "-2b", "! +7q +7q"];
    check(Key::WholeRow, "1a 2b 2b", &script[..4], "1a 2b 2c 9z").await;
    check(Key::WholeRow, "1a 2b 2b", &script, "7q 7q").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fold_can_be_limited_to_some_keys() {
    let lake = Lake::of(by_id(), "1a 2b 3c", &["=1d +4e -2"], Planted::none()).await;
    let range = Range { after: Position::new(COPIED_AT), up_to: Position::new(COPIED_AT + 10) };
    let schema = Projection::all(&mirror_at(&lake, range.after).await.schema).unwrap().arrow;
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    let batch = RecordBatch::try_from_iter([("id", ids)]).unwrap();
    let keys = RowHasher::new(schema, &["id"]).unwrap().keys(&batch).unwrap().into_iter().collect();
    assert_eq!(folded(&lake, range, Some(&keys)).await, "1d 3c");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_snapshots_of_a_table_compare_as_their_rows_do() {
    let lake = Lake::of(by_id(), "1a 2b 3c", &["=1d +4e -2"], Planted::none()).await;
    let (old, new) =
        (mirror_at(&lake, Position::new(COPIED_AT)).await, mirror_at(&lake, Position::new(COPIED_AT + 10)).await);
    let columns = Projection::all(&old.schema).unwrap();
    let (old, new) = (Arc::new(old), Arc::new(new));
    let compared = |source: &Arc<TableReader>, mirror: &Arc<TableReader>| {
        let (source, mirror, columns) = (Arc::clone(source), Arc::clone(mirror), columns.clone());
        async move {
            let comparison = Comparison::new(Arc::clone(&columns.arrow), &["id"]).unwrap();
            let open = |side: Side| -> futures::future::BoxFuture<'_, _> {
                let reader = if side == Side::Source { Arc::clone(&source) } else { Arc::clone(&mirror) };
                let columns = columns.clone();
                Box::pin(async move { Ok(table_rows(reader, columns)) })
            };
            compare(comparison, &open, Limits::default(), false).await.unwrap()
        }
    };
    assert!(compared(&new, &new).await.is_equal());
    let found = compared(&old, &new).await;
    assert_eq!([found.only_in_source, found.only_in_mirror, found.differing], [1, 1, 1]);
    assert_eq!((found.source_rows, found.mirror_rows, found.samples.len()), (3, 3, 3));
}
