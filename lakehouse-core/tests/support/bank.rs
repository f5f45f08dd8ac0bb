//! A seeded load: transfers between two tables and within one, and a table in which everything happens.

use fastrand::Rng;

use super::script::{Cell, Database, Identity, Row, Script, Table, Writer, int, plain, text};

pub const LEFT: usize = 0;
pub const RIGHT: usize = 1;
pub const THINGS: usize = 2;
pub const PURSE: usize = 3;
const ACCOUNTS: i64 = 3;
const DEPOSIT: i64 = 1_000;

/// What all accounts of `left` and `right` come to, and of `purse`.
pub const BANK: i64 = 2 * ACCOUNTS * DEPOSIT;
pub const PURSES: i64 = ACCOUNTS * DEPOSIT;

/// Sizes of a load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Transactions behind the consistent point.
    pub transactions: usize,
    /// Also the tables behind the first three.
    pub wide: bool,
}

/// The same seed makes the same script.
pub fn script(seed: u64, load: Load) -> Script {
    let mut rng = Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5EED);
    let mut tables = vec![
        Table::new("public.left", Identity::Key).with_history(),
        Table::new("public.right", Identity::Key),
        Table::new("public.things", Identity::Key).with_history(),
    ];
    if seed % 3 == 1 {
        tables[THINGS].partition = vec!["bucket(2, id)"];
    }
    if load.wide {
        tables.push(Table::new("public.purse", Identity::KeyFull));
        tables.push(Table::new("public.bag", Identity::WholeRow).with_history());
        tables.push(Table::new("public.log", Identity::Nothing));
    }
    let wide = load.wide;
    let mut database = Database::new(tables);
    database.transaction(|tx| {
        for id in 0..ACCOUNTS {
            tx.insert(LEFT, plain(id, &format!("left account {id}"), DEPOSIT));
            tx.insert(RIGHT, plain(id, &format!("right account {id}"), DEPOSIT));
            if wide {
                tx.insert(PURSE, plain(id, &format!("purse {id}"), DEPOSIT));
            }
        }
        tx.insert(THINGS, plain(1, "copied", 1));
        tx.insert(THINGS, plain(2, "copied too", 2));
    });
    database.copy_here();
    for _ in 0..load.transactions {
        let large = rng.u8(..4) == 0;
        database.transaction(|tx| {
            for _ in 0..if large { 8 } else { rng.usize(1..3) } {
                one_act(tx, &mut rng, wide);
            }
        });
        if rng.u8(..5) == 0 {
            database.keepalive();
        }
        if rng.u8(..8) == 0 {
            database.add_column(THINGS);
        }
    }
    database.done()
}

fn one_act(tx: &mut Writer<'_>, rng: &mut Rng, wide: bool) {
    match rng.u8(..if wide { 9 } else { 6 }) {
        0 | 1 => transfer(tx, rng, LEFT, RIGHT),
        2..=5 => thing(tx, rng),
        6 => transfer(tx, rng, PURSE, PURSE),
        7 => bag(tx, rng, 4),
        _ => tx.insert(5, plain(rng.i64(0..100), "logged", rng.i64(0..100))),
    }
}

/// Two rows, two tables or one; the note is not sent.
fn transfer(tx: &mut Writer<'_>, rng: &mut Rng, from: usize, to: usize) {
    let amount = rng.i64(1..50);
    tx.add(from, rng.i64(0..ACCOUNTS), -amount, &[1]);
    tx.add(to, rng.i64(0..ACCOUNTS), amount, &[1]);
}

/// Inserts, updates, key changes, deletes, re-inserts and, rarely, a truncate.
fn thing(tx: &mut Writer<'_>, rng: &mut Rng) {
    let (id, value) = (rng.i64(0..6), rng.i64(0..1_000));
    let ids: Vec<i64> = tx.rows(THINGS).iter().filter_map(id_of).collect();
    let note = format!("note {value}");
    if rng.u8(..20) == 0 {
        return tx.truncate(THINGS);
    }
    if !ids.contains(&id) {
        tx.insert(THINGS, plain(id, &note, value));
        return;
    }
    let free = (0..).find(|id| !ids.contains(id)).expect("few things");
    match rng.u8(..6) {
        0 => tx.delete(THINGS, id),
        1 => {
            tx.delete(THINGS, id);
            tx.insert(THINGS, plain(id, &note, value));
        }
        2 => tx.update(THINGS, id, |row| row[0] = int(free), &[1]),
        3 => tx.update(THINGS, id, |row| *row.last_mut().expect("rows have columns") = int(value), &[1]),
        4 => tx.update(THINGS, id, |row| row[1] = text(&note), &[]),
        _ => tx.update(THINGS, id, |row| row[2] = int(value), &[1]),
    }
}

/// Few distinct rows, so that equal ones stand there several times.
fn bag(tx: &mut Writer<'_>, rng: &mut Rng, table: usize) {
    let row = plain(rng.i64(0..2), "equal", rng.i64(0..2));
    let standing = tx.rows(table).contains(&row);
    match rng.u8(..4) {
        0 | 1 => tx.insert(table, row),
        2 if standing => tx.delete_row(table, &row),
        3 if standing => tx.update_row(table, &row, plain(rng.i64(0..2), "equal", rng.i64(0..2))),
        _ => tx.insert(table, row),
    }
}

fn id_of(row: &Row) -> Option<i64> {
    match row[0] {
        Some(Cell::Int(id)) => Some(id),
        _ => None,
    }
}

/// What the amounts of some rows come to.
pub fn sum(rows: &[Row]) -> i64 {
    let amount = |row: &Row| match row.get(2) {
        Some(Some(Cell::Int(amount))) => *amount,
        _ => 0,
    };
    rows.iter().map(amount).sum()
}
