//! The bank while the pipeline is cut off and its server crashes, and both come back: no snapshot, no cut and no link between positions is wrong.
//!
//! A worker that is cut off here leaves its commit under way, so each new one, on another machine, also meets a zombie.

use std::collections::HashMap;
use std::time::Duration;

use crate::support::{Lake, PIPELINE, rows_at};
use cdc_postgres::verify;
use lakehouse_core::catalog::{Catalog, LoadedTable};
use lakehouse_core::commit::properties::{FROM, KIND, TO};
use lakehouse_core::commit::{ControlState, recorded_cuts};
use lakehouse_core::position::Position;
use lakehouse_core::verify::VerifyOptions;
use testkit::bank::Bank;
use testkit::postgres::{Cluster, Options};
use testkit::tier;

const ACCOUNTS: u64 = 40;
const WRITERS: u64 = 4;
const KILLS: usize = 10;
const DEADLINE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_snapshot_and_every_cut_of_a_bank_balances_over_restarts() {
    let seed = tier::seed();
    println!("restarts: LAKEHOUSE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::start(Options::default()).await;
    let bank = Bank::open(&cluster, "postgres", ACCOUNTS).await;
    let lake = Lake::new(&cluster);
    // The copy is made under load, too.
    let load = bank.start(WRITERS, Duration::from_millis(3));
    let mut running = lake.start_resuming("state");
    lake.caught_up(&cluster, &mut running).await;
    for kill in 0..KILLS {
        follows(&lake, 4).await;
        tokio::time::sleep(Duration::from_millis(random.u64(0..300))).await;
        if kill % 4 == 1 {
            // The server forgets what was acknowledged last, and sends it again.
            cluster.stop_immediate().await;
            cluster.restart().await;
            follows(&lake, 1).await;
        }
        running.abort().await;
        // On another machine: the one that was cut off still holds its key indexes.
        running = lake.start_resuming(&format!("state-{kill}"));
    }
    lake.caught_up(&cluster, &mut running).await;
    let done = load.stop().await;
    println!("{done:?}");
    lake.caught_up(&cluster, &mut running).await;
    let report = verify(&lake.source, lake.environment(), VerifyOptions::default()).await.expect("a verdict");
    assert_eq!((report.verdict, report.against), ("equal", "source"), "{report:?}");
    running.stop().await;

    let snapshots = check_snapshots(&lake, &bank).await;
    let cuts = check_cuts(&lake, &bank).await;
    println!("{snapshots} snapshots and {cuts} cuts balance");
    assert!(done.committed > 200 && snapshots > KILLS && cuts > KILLS, "too little happened: {done:?}");
    for table in ["account", "account_history", "ledger", "ledger_history"] {
        check_chain(&lake, table).await;
    }
    for cut in some_cuts(&lake).await {
        let options = VerifyOptions { cut: Some(cut), ..VerifyOptions::default() };
        let report = verify(&lake.source, lake.environment(), options).await.expect("a verdict");
        assert_eq!((report.verdict, report.against), ("equal", "history"), "at {cut}: {report:?}");
    }
}

/// Waits until this many cuts more have moved on.
async fn follows(lake: &Lake, cuts: usize) {
    let mut last = lake.cut().await.map(|cut| cut.position);
    let mut seen = 0;
    let wait = async {
        while seen < cuts {
            let now = lake.cut().await.map(|cut| cut.position);
            seen += usize::from(now > last);
            last = now;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("cuts within the deadline");
}

/// At every snapshot behind the copy the balances add up.
async fn check_snapshots(lake: &Lake, bank: &Bank) -> usize {
    let (table, ids) = lake.snapshots("account").await;
    let mut checked = 0;
    for id in ids.into_iter().filter(|&id| summary(&table, id).contains_key(TO)) {
        let accounts = lines(&table, id, 0..2).await;
        bank.check_snapshot(&accounts).unwrap_or_else(|wrong| panic!("snapshot {id}: {wrong}"));
        checked += 1;
    }
    checked
}

/// At every cut the balances are what the ledger says.
async fn check_cuts(lake: &Lake, bank: &Bank) -> usize {
    let (_, control) = ControlState::read(&lake.catalog(), PIPELINE).await.expect("catalog").expect("a control table");
    let (accounts, ledger) = (lake.table("account").await, lake.table("ledger").await);
    let mut checked = 0;
    for cut in recorded_cuts(&control) {
        let id = |table: &str| Some(cut.tables.get(&format!("{PIPELINE}.{table}"))?.parse::<i64>().expect("an id"));
        let (Some(account_id), Some(ledger_id)) = (id("account"), id("ledger")) else {
            assert_eq!(checked, 0, "a table has left the cut at {}", cut.position);
            continue;
        };
        let accounts = lines(&accounts, account_id, 0..2).await;
        let ledger = lines(&ledger, ledger_id, 1..4).await;
        bank.check_cut(&accounts, &ledger).unwrap_or_else(|wrong| panic!("cut at {}: {wrong}", cut.position));
        checked += 1;
    }
    checked
}

/// Each snapshot begins where the one before it ended.
async fn check_chain(lake: &Lake, name: &str) {
    let (table, ids) = lake.snapshots(name).await;
    let mut reached: Option<Position> = None;
    for id in ids {
        let summary = summary(&table, id);
        let position = |key| summary.get(key).map(|text| text.parse::<Position>().expect("a position"));
        if summary[KIND] == "change" {
            assert_eq!(position(FROM), reached, "{name}, snapshot {id} does not join");
            assert!(position(TO) > reached, "{name}, snapshot {id} does not move on");
        }
        reached = position(TO).or(reached);
    }
    let own = table.property("cdc.position").map(|text| text.parse::<Position>().expect("a position"));
    assert_eq!(own, reached, "{name} stands where its last snapshot ends");
}

async fn some_cuts(lake: &Lake) -> Vec<Position> {
    let catalog = lake.catalog();
    let (_, control) = ControlState::read(&catalog as &dyn Catalog, PIPELINE).await.expect("catalog").expect("control");
    let cuts = recorded_cuts(&control);
    let whole = cuts.iter().filter(|cut| cut.tables.len() == 4).map(|cut| cut.position);
    let whole: Vec<Position> = whole.collect();
    whole.iter().copied().step_by(whole.len().div_ceil(4)).collect()
}

fn summary(table: &LoadedTable, id: i64) -> &HashMap<String, String> {
    let snapshot = table.metadata.snapshot_by_id(id).unwrap_or_else(|| panic!("snapshot {id} is kept"));
    &snapshot.summary().additional_properties
}

/// Some columns of all rows as the bank wants them.
async fn lines(table: &LoadedTable, snapshot: i64, columns: std::ops::Range<usize>) -> Vec<String> {
    let line = |row: &String| {
        let values: Vec<&str> = row.split('|').collect();
        serde_json::to_string(&values[columns.clone()]).expect("text")
    };
    rows_at(table, Some(snapshot)).await.iter().map(line).collect()
}
