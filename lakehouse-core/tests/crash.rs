//! A crash at any call of the catalog, before and after its effect, loses nothing and repeats nothing; nor do lost,
//! wrong and late answers, nor workers that sleep while another one takes over.

use std::future::Future;

use crate::support::bank::{self, Load};
use crate::support::catalog::{Call, Fault, Planned, Step};
use crate::support::check::Report;
use crate::support::faults::{duel, play, random_plans};
use crate::support::world::World;
use crate::support::{Violation, block_on};
use futures::{StreamExt, TryStreamExt, stream};
use lakehouse_core::planted::Planted;
use testkit::tier;

/// Histories at the same time: they wait for files and answers more than they compute.
const AT_ONCE: usize = 4;

/// Runs all histories and adds up what they have looked at. The first violation ends it, with its story.
async fn all<F>(histories: impl Iterator<Item = (String, F)>) -> (usize, Report)
where
    F: Future<Output = Result<Report, Violation>> + Send + 'static,
{
    let played = histories.map(|(story, history)| async move {
        let report = tokio::spawn(history).await.expect("no panic");
        report.map_err(|violation| format!("{story}: {violation}"))
    });
    let reports: Result<Vec<Report>, String> = stream::iter(played).buffer_unordered(AT_ONCE).try_collect().await;
    let reports = reports.unwrap_or_else(|story| panic!("{story}"));
    let sum = |sum: Report, one: &Report| Report {
        snapshots: sum.snapshots + one.snapshots,
        cuts: sum.cuts + one.cuts,
        fired: sum.fired + one.fired,
    };
    (reports.len(), reports.iter().fold(Report::default(), sum))
}

/// Every call that a life without faults makes.
async fn steps(seed: u64, load: Load) -> Vec<(Step, Call)> {
    let world = World::new(bank::script(seed, load));
    let lived = async {
        world.live(seed, &[]).await?;
        world.end().await
    };
    lived.await.unwrap_or_else(|violation| panic!("seed {seed} without a fault: {violation}"));
    world.ground.steps()
}

fn one_fault(seed: u64, load: Load, plan: Planned) -> (String, impl Future<Output = Result<Report, Violation>> + Send) {
    let story = format!("seed {seed}, {plan:?}");
    (story, async move { play(seed, load, &[vec![plan]], Planted::none()).await })
}

#[test]
fn a_crash_anywhere_loses_and_repeats_nothing() {
    let seeds = 0..tier::size("LAKEHOUSE_SEEDS", 2, 200);
    let (mut runs, mut seen) = (0, Report::default());
    block_on(async {
        for seed in seeds {
            let load = Load { transactions: 5, wide: seed % 2 == 1 };
            // A load has no effect: after it is as before the next call.
            let crashes = |(step, call): (Step, Call)| {
                let faults = if call == Call::Load {
                    &[Fault::CrashBefore][..]
                } else {
                    &[Fault::CrashBefore, Fault::CrashAfter]
                };
                let plan = |&fault| one_fault(seed, load, Planned { step: step.clone(), fault });
                faults.iter().map(plan).collect::<Vec<_>>()
            };
            let (count, report) = all(steps(seed, load).await.into_iter().flat_map(crashes)).await;
            runs += count;
            seen.fired += report.fired;
            seen.snapshots += report.snapshots;
            seen.cuts += report.cuts;
        }
    });
    println!("{runs} crash histories: {} snapshots and {} cuts compared", seen.snapshots, seen.cuts);
    // How many batches there are depends, where cuts come at once, on how long the one before takes.
    assert!(seen.fired * 10 >= runs * 9, "crash points are reached");
}

#[test]
fn a_lost_or_wrong_or_late_answer_anywhere_loses_and_repeats_nothing() {
    let seeds = 0..tier::size("LAKEHOUSE_SEEDS", 1, 40);
    block_on(async {
        for seed in seeds {
            let load = Load { transactions: 4, wide: false };
            let faults = [Fault::LostBefore, Fault::LostAfter, Fault::Rejected, Fault::Delayed(1), Fault::Delayed(4)];
            let commits = steps(seed, load).await.into_iter().filter(|(_, call)| *call != Call::Load);
            let plans = commits.flat_map(|(step, _)| faults.map(|fault| Planned { step: step.clone(), fault }));
            let (runs, report) = all(plans.map(|plan| one_fault(seed, load, plan))).await;
            println!("seed {seed}: {runs} histories, {} snapshots and {} cuts compared", report.snapshots, report.cuts);
            assert!(report.fired * 10 >= runs * 9, "faults are reached");
        }
    });
}

#[test]
fn many_faults_at_random_lose_and_repeat_nothing() {
    let seeds = 1_000..1_000 + tier::size("LAKEHOUSE_SEEDS", 40, 20_000);
    block_on(async {
        let histories = seeds.map(|seed| {
            let load = Load { transactions: 6, wide: seed % 2 == 0 };
            let plans = random_plans(seed, &bank::script(seed, load));
            let story = format!("seed {seed}, {plans:?}");
            (story, async move { play(seed, load, &plans, Planted::none()).await })
        });
        let (runs, report) = all(histories).await;
        println!("{runs} histories with {} faults", report.fired);
        assert!(report.fired > runs, "the faults are reached");
    });
}

#[test]
fn a_worker_that_wakes_up_behind_its_successor_changes_nothing() {
    let seeds = 0..tier::size("LAKEHOUSE_SEEDS", 40, 20_000);
    block_on(async {
        let histories = seeds.map(|seed| (format!("seed {seed}"), duel(seed, Planted::none())));
        let (runs, report) = all(histories).await;
        println!("{runs} duels, {} times a worker slept", report.fired);
        assert!(report.fired > runs / 2, "workers do fall asleep");
    });
}
