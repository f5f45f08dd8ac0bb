//! Commit answers lost, late, doubled or made up on every catalog that has a network: no row is lost, none is
//! there twice, every snapshot and every cut shows one moment of the source. Between a worker and its catalog stands a
//! proxy; what a late request does is up to the real server's tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::bank::{self, Load};
use crate::support::check::Report;
use crate::support::faults::random_plans;
use crate::support::renamed::Renamed;
use crate::support::rig::{Kind, Rig};
use crate::support::world::World;
use crate::support::{Violation, block_on};
use lakehouse_core::catalog::Catalog;
use lakehouse_core::planted::Planted;
use testkit::fault_proxy::{Canned, Fault, Hits, Landing, When};
use testkit::tier;

/// Histories at the same time: they wait for answers more than they compute.
const AT_ONCE: u64 = 6;

/// Faults on the way to the pointer and back.
fn break_answers(rig: &Rig, seed: u64) -> Vec<Hits> {
    let made_up = match rig.kind {
        Kind::Rest => Canned::iceberg(500, "CommitStateUnknownException"),
        _ => Canned::json(500, "InternalServerErrorException"),
    };
    let faults = [
        (0.10, Fault::LoseAnswer),
        (0.05, Fault::LoseRequest),
        (0.10, Fault::LandLate(Landing::WhenTold)),
        (0.08, Fault::SendTwice),
        (0.04, Fault::RefuseAfter(made_up.clone())),
        (0.03, Fault::Refuse(made_up)),
        (0.02, Fault::Truncate),
        (0.02, Fault::RefuseAfter(Canned::html(502))),
    ];
    let broken = faults.into_iter().enumerate().map(|(number, (probability, fault))| {
        rig.break_swaps(When::Chance { probability, seed: seed + number as u64 }, fault)
    });
    broken.collect()
}

/// One history: lives of a worker with crashes at random calls, through the broken network, to the end and the checks.
async fn history(rig: &Rig, seed: u64) -> Result<Report, Violation> {
    let renamed = |inner: &Arc<dyn Catalog>| -> Arc<dyn Catalog> {
        Arc::new(Renamed { inner: Arc::clone(inner), suffix: format!("{seed}") })
    };
    let script = bank::script(seed, Load { transactions: 6, wide: seed.is_multiple_of(2) });
    let mut plans = random_plans(seed, &script);
    plans.truncate(usize::from(seed.is_multiple_of(3)));
    let world = World::on(renamed(&rig.clean), renamed(&rig.catalog), rig.storage.clone(), script, Planted::none());
    world.live(seed, &plans).await?;
    // Whatever is still on its way arrives before anybody looks.
    rig.network().land().await;
    world.end().await
}

fn survives(kind: Kind, test: &str) {
    let wanted = tier::size("LAKEHOUSE_FAULTS", 60, 5_000);
    block_on(async {
        let Some(rig) = Rig::start(kind, test).await else { return };
        let (rig, done) = (Arc::new(rig), Arc::new(AtomicBool::new(false)));
        let seed = 0x5EED;
        let broken = break_answers(&rig, seed);
        let arriving = tokio::spawn({
            let (rig, done) = (Arc::clone(&rig), Arc::clone(&done));
            async move {
                while !done.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(10..400))).await;
                    rig.network().land().await;
                }
            }
        });
        let hits = || broken.iter().map(Hits::count).sum::<usize>();
        let (mut histories, mut snapshots, mut cuts) = (0, 0, 0);
        while (hits() as u64) < wanted {
            let seeds = histories..histories + AT_ONCE;
            let running: Vec<_> = seeds
                .map(|seed| {
                    let rig = Arc::clone(&rig);
                    (seed, tokio::spawn(async move { history(&rig, seed).await }))
                })
                .collect();
            for (seed, history) in running {
                let report = history.await.expect("no panic");
                let report = report.unwrap_or_else(|violation| panic!("{kind:?}, seed {seed}: {violation}"));
                snapshots += report.snapshots;
                cuts += report.cuts;
            }
            histories += AT_ONCE;
        }
        done.store(true, Ordering::SeqCst);
        arriving.await.expect("no panic");
        let each: Vec<usize> = broken.iter().map(Hits::count).collect();
        println!(
            "{kind:?}: {} broken answers {each:?} in {histories} histories, {snapshots} snapshots and {cuts} cuts",
            hits()
        );
    });
}

#[test]
fn broken_answers_lose_and_repeat_nothing_on_s3_tables() {
    survives(Kind::Simulator, "broken_answers_lose_and_repeat_nothing_on_s3_tables");
}

#[test]
fn broken_answers_lose_and_repeat_nothing_on_rest() {
    survives(Kind::Rest, "broken_answers_lose_and_repeat_nothing_on_rest");
}
