//! Histories with faults: at random calls, and with a worker that sleeps while another one takes over.

use std::sync::Arc;

use fastrand::Rng;
use lakehouse_core::commit::CONTROL_NAMESPACE;
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::planted::Planted;

use super::Violation;
use super::bank::{self, Load};
use super::catalog::{Fault, Gate, Planned, Step};
use super::check::Report;
use super::script::Script;
use super::world::{PIPELINE, Worker, World, halted};

/// The table that holds the cuts, as steps name it.
pub fn control() -> String {
    format!("{CONTROL_NAMESPACE}.{PIPELINE}")
}

/// A seed's load, with `plans` for its first lives.
pub async fn play(seed: u64, load: Load, plans: &[Vec<Planned>], planted: Planted) -> Result<Report, Violation> {
    let world = World::planted(bank::script(seed, load), planted);
    world.live(seed, plans).await?;
    world.end().await
}

/// Faults of every kind at random calls of the first lives.
pub fn random_plans(seed: u64, script: &Script) -> Vec<Vec<Planned>> {
    let mut rng = Rng::with_seed(seed ^ 0xFA17);
    (0..rng.usize(1..4)).map(|_| (0..rng.usize(1..4)).map(|_| random_fault(&mut rng, script)).collect()).collect()
}

fn random_fault(rng: &mut Rng, script: &Script) -> Planned {
    let fault = match rng.u8(..7) {
        0 => Fault::CrashBefore,
        1 | 2 => Fault::CrashAfter,
        3 => Fault::LostBefore,
        4 => Fault::LostAfter,
        5 => Fault::Rejected,
        _ => Fault::Delayed(rng.usize(0..30)),
    };
    Planned { step: random_step(rng, script), fault }
}

/// Rather a late call of the tables that change often.
fn random_step(rng: &mut Rng, script: &Script) -> Step {
    let tables = tables(script);
    Step::new(&tables[rng.usize(..tables.len())], rng.usize(1..14))
}

fn tables(script: &Script) -> Vec<String> {
    let mirrors = script.tables.iter().filter(|table| table.has_mirror()).map(|table| table.mirror());
    let histories = script.tables.iter().filter(|table| table.has_history()).map(|table| table.mirror().history());
    mirrors.chain(histories).map(|name| name.to_string()).chain([control()]).collect()
}

/// One worker falls asleep at a call; another takes over and, perhaps, falls asleep too; the first wakes up. In the end
/// all is as if there had been one.
pub async fn duel(seed: u64, planted: Planted) -> Result<Report, Violation> {
    let load = Load { transactions: 5, wide: false };
    let world = Arc::new(World::planted(bank::script(seed, load), planted));
    let mut rng = Rng::with_seed(seed ^ 0xD0E1);
    let mut sleeper = |number, local| {
        let fault = if rng.bool() { Fault::PauseBefore } else { Fault::PauseAfter };
        let step = random_step(&mut rng, &world.script);
        let worker = Worker::random(number, &world.script, &mut rng);
        Worker { local, faults: vec![Planned { step, fault }], ..worker }
    };
    let (first, second) = (sleeper(100, "first"), sleeper(101, "second"));
    overtake(&world, first, second).await?;
    world.live(seed, &[]).await?;
    world.end().await
}

/// Runs `first` until it sleeps, `second` until it sleeps or ends, then wakes both in this order.
pub async fn overtake(world: &Arc<World>, first: Worker, second: Worker) -> Result<(), Violation> {
    let (asleep, gate) = until_asleep(world, first).await?;
    let (second, second_gate) = until_asleep(world, second).await?;
    for (worker, gate) in [(asleep, gate), (second, second_gate)] {
        if let Some(worker) = worker {
            gate.open();
            ended(worker.await.expect("no panic"))?;
        }
    }
    Ok(())
}

type Running = tokio::task::JoinHandle<Result<(), Problem>>;

/// The worker's task, if it sleeps and has not ended.
pub async fn until_asleep(world: &Arc<World>, worker: Worker) -> Result<(Option<Running>, Arc<Gate>), Violation> {
    let gate: Arc<Gate> = Arc::default();
    let mut running = tokio::spawn({
        let (world, gate) = (Arc::clone(world), Arc::clone(&gate));
        async move { world.incarnation(&worker, &gate).await }
    });
    tokio::select! {
        result = &mut running => {
            ended(result.expect("no panic"))?;
            Ok((None, gate))
        }
        () = gate.reached() => Ok((Some(running), gate)),
    }
}

/// A worker may be fenced, never halted.
pub fn ended(result: Result<(), Problem>) -> Result<(), Violation> {
    match result {
        Err(problem) if problem.reaction != Reaction::Retry => Err(halted(&problem)),
        _ => Ok(()),
    }
}
