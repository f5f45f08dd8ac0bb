//! The log of a history has every change of a range, once and in the order in which the source has made them.

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type};
use lakehouse_core::change_log::{ChangeLog, Tally};
use lakehouse_core::error::Problem;
use lakehouse_core::fold::Range;
use lakehouse_core::planted::Planted;
use lakehouse_core::position::Position;
use lakehouse_core::read::TableReader;
use lakehouse_core::schema::{Key, OPERATION, ORDINAL, POSITION};

use crate::tiny::{COPIED_AT, Lake};

async fn history(lake: &Lake) -> TableReader {
    let history = lake.load("ns.t_history").await;
    TableReader::at(&lake.storage, &history, history.snapshot_id()).await.unwrap()
}

fn range(after: u64, up_to: u64) -> Range {
    Range { after: Position::new(COPIED_AT + after), up_to: Position::new(COPIED_AT + up_to) }
}

fn unwatched(_: usize) -> Result<(), Problem> {
    Ok(())
}

/// The windows of a log.
fn windows(history: &TableReader, range: Range) -> Vec<RecordBatch> {
    let mut log = ChangeLog::of(history, range, &unwatched).unwrap();
    std::iter::from_fn(|| log.next_changes().unwrap()).collect()
}

/// As `position operation id`, the position from the copy's on.
fn told(windows: &[RecordBatch]) -> Vec<String> {
    let mut all = Vec::new();
    for window in windows {
        let operations = window.column_by_name(OPERATION).unwrap().as_string::<i32>();
        let positions = window.column_by_name(POSITION).unwrap().as_primitive::<Int64Type>();
        let ids = window.column_by_name("id").unwrap().as_primitive::<Int64Type>();
        for row in 0..window.num_rows() {
            let id = ids.iter().nth(row).flatten().map(|id| id.to_string()).unwrap_or_default();
            let position = positions.value(row).cast_unsigned() - COPIED_AT;
            all.push(format!("{position} {} {id}", operations.value(row)).trim_end().to_owned());
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_has_every_change_of_its_range_in_order() {
    let script = ["=1d +4e", "=1f -2", "+7g ! +8h"];
    let lake = Lake::of(Key::Columns(vec![0]), "1a 2b 3c", &script, Planted::none()).await;
    let history = history(&lake).await;
    let all = ["10 update 1", "10 insert 4", "20 update 1", "20 delete 2", "30 insert 7", "30 truncate", "30 insert 8"];
    for (after, up_to, expected) in [
        (0, 30, &all[..]),
        (0, 10, &all[..2]),
        (10, 20, &all[2..4]),
        (20, 30, &all[4..]),
        (30, 30, &all[..0]),
        (0, 9, &all[..0]),
    ] {
        assert_eq!(told(&windows(&history, range(after, up_to))), expected, "{after} to {up_to}");
    }
    let tally = Tally { inserted: 3, updated: 2, deleted: 1, truncated: 1, ..Tally::default() };
    assert_eq!(Tally::of(&history, range(0, 30), &unwatched).unwrap(), tally);
    assert_eq!(Tally::of(&history, range(10, 20), &unwatched).unwrap().total(), 2);
    assert!(Tally::of(&history, range(30, 30), &unwatched).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_many_changes_comes_in_windows_and_each_change_once() {
    let inserts: Vec<String> = (100..700).map(|id| format!("+{id}x")).collect();
    let lake = Lake::of(Key::Columns(vec![0]), "1a", &[&inserts.join(" "), "-1"], Planted::none()).await;
    let history = history(&lake).await;
    let windows = windows(&history, range(0, 20));
    assert!(windows.len() > 1, "all at once");
    let mut expected: Vec<String> = (100..700).map(|id| format!("10 insert {id}")).collect();
    expected.push("20 delete 1".to_owned());
    assert_eq!(told(&windows), expected);
    let ordinals = windows
        .iter()
        .flat_map(|window| window.column_by_name(ORDINAL).unwrap().as_primitive::<Int32Type>().values().to_vec());
    assert!(ordinals.take(600).is_sorted());
    let mut tally = Tally::default();
    windows.iter().for_each(|window| tally.add(window).unwrap());
    assert_eq!(tally, Tally { inserted: 600, deleted: 1, ..Tally::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_may_end_it() {
    let lake = Lake::of(Key::Columns(vec![0]), "1a", &["+2b +3c +4d"], Planted::none()).await;
    let history = history(&lake).await;
    let at_most = |most: usize| {
        move |found: usize| match found > most {
            true => Err(Problem::retry("INTERRUPTED", "", format!("{found} changes"))),
            false => Ok(()),
        }
    };
    assert!(ChangeLog::of(&history, range(0, 10), &at_most(3)).is_ok());
    let refused = ChangeLog::of(&history, range(0, 10), &at_most(2)).err().map(|problem| problem.message);
    assert_eq!(refused.as_deref(), Some("3 changes"));
    assert!(Tally::of(&history, range(0, 10), &at_most(2)).is_err());
}
