//! Our own compaction under a pipeline that never stops: its commits come between the writer's look and its commit, are
//! planned early and land late, and the writer goes on without a restart. Rows at every snapshot, histories, cuts and
//! chains are those of the script; the key index ends where the table does.

use crate::support;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::support::bank::{self, Load};
use crate::support::between::Between;
use crate::support::check::Report;
use crate::support::compaction::{Compaction, world};
use crate::support::faults::random_plans;
use crate::support::renamed::Renamed;
use crate::support::rig::{Kind, Rig};
use crate::support::world::{Worker, World, halted};
use crate::support::{Violation, block_on};
use fastrand::Rng;
use futures::{StreamExt, stream};
use lakehouse_core::catalog::Catalog;
use lakehouse_core::error::Reaction;
use lakehouse_core::planted::Planted;
use testkit::tier;

const AT_ONCE: usize = 4;

/// What all histories have come to.
#[derive(Default)]
struct Total {
    histories: usize,
    lives: usize,
    snapshots: usize,
    landed: usize,
    overtaken: usize,
    forwarded: usize,
}

/// One pipeline to the end of its script, with `faults` or without.
async fn history(
    world: World,
    compaction: Arc<Compaction>,
    seed: u64,
    faults: bool,
) -> Result<(Report, usize), Violation> {
    let plans = if faults { random_plans(seed, &world.script) } else { Vec::new() };
    let lives = match faults {
        true => world.live(seed, &plans).await?,
        false => {
            let worker = Worker::random(0, &world.script, &mut Rng::with_seed(seed));
            match world.incarnation(&worker, &Arc::default()).await {
                Ok(()) => 1,
                Err(problem) if problem.reaction == Reaction::Retry => {
                    return Err(Violation::new("no restart", format!("{} {problem}", problem.code)));
                }
                Err(problem) => return Err(halted(&problem)),
            }
        }
    };
    drop(compaction);
    Ok((world.end().await?, lives))
}

async fn all(seeds: std::ops::Range<u64>, faults: bool) -> Total {
    let mut total = Total::default();
    let histories = seeds.map(|seed| async move {
        let (world, compaction) = world(seed, Load { transactions: 14, wide: seed % 3 == 0 });
        let ended = tokio::spawn(history(world, Arc::clone(&compaction), seed, faults)).await.expect("no panic");
        (seed, ended, compaction)
    });
    let mut histories = stream::iter(histories).buffer_unordered(AT_ONCE);
    while let Some((seed, ended, compaction)) = histories.next().await {
        let (report, lives) = ended.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        total.histories += 1;
        total.lives += lives;
        total.snapshots += report.snapshots;
        total.landed += compaction.landed.load(Ordering::SeqCst);
        total.overtaken += compaction.overtaken.load(Ordering::SeqCst);
        total.forwarded += compaction.forwarded.load(Ordering::SeqCst);
    }
    let Total { histories, lives, snapshots, landed, overtaken, forwarded } = total;
    println!(
        "{histories} histories, {lives} lives, {snapshots} snapshots compared, {landed} rewrites landed with {forwarded} \
         deletes forwarded, {overtaken} overtaken"
    );
    assert!(total.landed > total.histories, "compaction lands under the writer");
    total
}

#[test]
fn a_writer_goes_on_through_its_own_compaction_without_a_restart() {
    let seeds = 0..tier::size("LAKEHOUSE_SEEDS", 30, 3_000);
    let total = block_on(all(seeds, false));
    assert_eq!(total.lives, total.histories, "one life each");
    assert!(total.forwarded > 0, "deletes are forwarded");
}

#[test]
fn compaction_and_crashes_in_any_order_lose_and_repeat_nothing() {
    let seeds = 10_000..10_000 + tier::size("LAKEHOUSE_SEEDS", 20, 3_000);
    block_on(all(seeds, true));
}

#[test]
fn compaction_is_followed_on_s3_tables_and_rest_catalogs_too() {
    const TEST: &str = "compaction_is_followed_on_s3_tables_and_rest_catalogs_too";
    block_on(async {
        for kind in [Kind::Simulator, Kind::Rest] {
            let Some(rig) = Rig::start(kind, TEST).await else { continue };
            let (mut landed, mut snapshots) = (0, 0);
            for seed in 0..tier::size("LAKEHOUSE_SEEDS", 2, 40) {
                let renamed = |inner: Arc<dyn Catalog>| -> Arc<dyn Catalog> {
                    Arc::new(Renamed { inner, suffix: seed.to_string() })
                };
                let folder = support::world::temporary_folder();
                let storage = rig.storage.with_spool(&folder.path().join("spool")).expect("a spool");
                let clean = renamed(Arc::clone(&rig.clean));
                let compaction = Arc::new(Compaction::new(Arc::clone(&clean), storage, seed));
                let through = Arc::new(Between { inner: Arc::clone(&clean), meddler: Arc::clone(&compaction) });
                let script = bank::script(seed, Load { transactions: 10, wide: false });
                let world = World::on(clean, through, rig.storage.clone(), script, Planted::none());
                let ended = history(world, Arc::clone(&compaction), seed, false).await;
                let (report, _) = ended.unwrap_or_else(|violation| panic!("{kind:?}, seed {seed}: {violation}"));
                landed += compaction.landed.load(Ordering::SeqCst);
                snapshots += report.snapshots;
            }
            println!("{kind:?}: {landed} rewrites landed, {snapshots} snapshots compared");
            assert!(landed > 0, "{kind:?}: compaction lands");
        }
    });
}
