//! The roles that run until they are stopped. For each pipeline one supervised worker: an incarnation runs, and what
//! ended it says whether another one resumes from the cut.
//!
//! The one retry loop of the process is [`supervise`]; it looks at nothing but the reaction.

pub(crate) mod maintain;
mod serve;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use lakehouse_core::commit::{FOREIGN_COMMIT, is_overtaken};
use lakehouse_core::error::{Problem, Reaction};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::{Config, PipelineConfig};
use crate::failure::{Exit, Failure};
use crate::http::Server;
use crate::lake::Lake;
use crate::progress;
use crate::upkeep::{Metrics, Upkeep};
use crate::worker_state::{Phase, WorkerState};
pub(crate) use serve::serve;

/// How long the work under way may take once a stop was asked for; with what the runtime then waits, 25 s (P-6).
const GRACE: Duration = Duration::from_secs(24);
/// First pause before an incarnation resumes; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause (R25).
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest one where somebody else has taken over: mostly an operator, who waits for the pipeline to go on.
const LONGEST_FENCED_PAUSE: Duration = Duration::from_secs(4);
/// An incarnation that lasted this long was well: the next pause is short again.
const HEALTHY: Duration = Duration::from_secs(60);

/// What one process does beside replicating.
#[derive(Clone, Copy)]
struct Beside {
    maintains: bool,
    serves: bool,
}

/// Every role that the configuration names.
pub(crate) async fn run(config: &Config) -> Result<Exit, Failure> {
    let beside = Beside { maintains: config.maintenance.is_wanted(), serves: config.api.is_some() };
    work(config, &[], beside).await
}

/// Replicates the named pipelines, or all, until a signal, or until none is left.
pub(crate) async fn replicate(config: &Config, wanted: &[String]) -> Result<Exit, Failure> {
    work(config, wanted, Beside { maintains: false, serves: false }).await
}

/// Pipelines, and beside them what else is asked for. It ends with the last pipeline.
async fn work(config: &Config, wanted: &[String], beside: Beside) -> Result<Exit, Failure> {
    let pipelines = config.choose(wanted)?;
    for (name, pipeline) in &pipelines {
        // What can be wrong with a source without asking it stops the start, not a pipeline later.
        pipeline.source(name)?;
    }
    let lake = Lake::create(config).await?;
    let metrics = Metrics::default();
    // An address that cannot be had stops the start, too.
    let server = match config.api.as_ref().filter(|_| beside.serves) {
        Some(api) => Some(Server::bind(config, api, lake.clone(), metrics.clone()).await?),
        None => None,
    };
    let stop = CancellationToken::new();
    let hurry = watch_signals(stop.clone())?;
    let upkeep = match beside.maintains {
        true => Some(Upkeep::open(&config.maintenance, lake.clone(), &[]).await?.counting(&metrics)),
        false => None,
    };
    let mut workers = start(&lake, &pipelines, &stop);
    // Told to stop with the pipelines, and at the latest behind the last of them.
    let last = stop.child_token();
    let every = config.maintenance.every;
    let upkeep = upkeep.map(|upkeep| tokio::spawn(maintain::beside(upkeep, every, last.clone())));
    let server = server.map(|server| tokio::spawn(server.serve(last.clone())));
    let halted = wait(&mut workers, &stop, &hurry).await;
    last.cancel();
    for task in [upkeep, server].into_iter().flatten() {
        if let Err(error) = task.await {
            error!(%error, "maintenance or HTTP has died");
        }
    }
    match halted {
        None => Ok(Exit::Done),
        Some(problem) => Err(Failure::halted(problem)),
    }
}

/// The first SIGTERM or SIGINT stops politely; a second one cancels the token that is returned.
fn watch_signals(stop: CancellationToken) -> Result<CancellationToken, Failure> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let hurry = CancellationToken::new();
    let second = hurry.clone();
    tokio::spawn(async move {
        for token in [stop, second] {
            // Either signal will do; both arms may be dropped.
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            info!("told to stop");
            token.cancel();
        }
    });
    Ok(hurry)
}

fn start(
    lake: &Lake,
    pipelines: &BTreeMap<&str, &PipelineConfig>,
    stop: &CancellationToken,
) -> JoinSet<(String, Result<(), Problem>)> {
    let mut workers = JoinSet::new();
    for (&name, &pipeline) in pipelines {
        let worker = Worker {
            name: name.to_owned(),
            config: pipeline.clone(),
            environment: lake.environment(name, pipeline),
            stop: stop.clone(),
        };
        workers.spawn(async move {
            let name = worker.name.clone();
            (name, worker.work().await)
        });
    }
    workers
}

/// Until all workers have ended. The problem of the last one that halted, if any did.
async fn wait(
    workers: &mut JoinSet<(String, Result<(), Problem>)>,
    stop: &CancellationToken,
    hurry: &CancellationToken,
) -> Option<Problem> {
    let mut halted = None;
    let grace = async {
        stop.cancelled().await;
        sleep(GRACE).await;
        warn!("work under way has not ended in time and is abandoned; nothing is lost");
    };
    tokio::pin!(grace);
    loop {
        // Biased: who is in a hurry comes first. Every arm may be dropped.
        tokio::select! {
            biased;
            () = hurry.cancelled() => return halted,
            ended = workers.join_next() => match ended {
                None => return halted,
                Some(Ok((_, Ok(())))) => {}
                Some(Ok((name, Err(problem)))) => {
                    error!(
                        pipeline = name, code = problem.code, subject = problem.subject, reason = problem.message,
                        remedy = problem.remedy, "pipeline is halted"
                    );
                    halted = Some(problem);
                }
                Some(Err(error)) => error!(%error, "a supervisor has died"),
            },
            () = &mut grace => return halted,
        }
    }
}

/// One pipeline's worker over all its incarnations.
struct Worker {
    name: String,
    config: PipelineConfig,
    environment: lakehouse_core::lakehouse::Environment,
    stop: CancellationToken,
}

impl Worker {
    async fn work(self) -> Result<(), Problem> {
        let tell = |phase, problem: Option<&Problem>| {
            WorkerState::new(phase, problem).write(&self.config.local_state, &self.name);
        };
        let ended = supervise(&self.name, &self.stop, || self.incarnation(), tell).await;
        match &ended {
            Ok(()) => tell(Phase::Stopped, None),
            Err(problem) => tell(Phase::Halted, Some(problem)),
        }
        ended
    }

    /// One incarnation, in a task of its own: a broken invariant ends it and not the process.
    async fn incarnation(&self) -> Result<(), Problem> {
        // Built anew each time: the password may have been changed (R4).
        let source = self.config.source(&self.name).map_err(|failure| failure.problem)?;
        let (environment, limits) = (self.environment.clone(), self.config.limits());
        let (observer, stop) = (progress::copy_observer(&self.name), self.stop.clone());
        let mut task = JoinSet::new();
        task.spawn(async move { source.replicate(environment, limits, observer, stop).await });
        let ended = task.join_next().await.expect("one task was spawned");
        ended.unwrap_or_else(|error| {
            let message = format!("the worker broke one of its own rules: {error}");
            Err(Problem::retry("PANIC", &self.name, message))
        })
    }
}

/// Incarnation after incarnation, until one ends by itself, `stop`, or a problem that only a person can solve.
async fn supervise<F: Future<Output = Result<(), Problem>>>(
    name: &str,
    stop: &CancellationToken,
    incarnation: impl Fn() -> F,
    tell: impl Fn(Phase, Option<&Problem>),
) -> Result<(), Problem> {
    let mut pauses = Pauses::default();
    loop {
        tell(Phase::Running, None);
        let begun = Instant::now();
        let Err(problem) = incarnation().await else {
            return Ok(());
        };
        match problem.reaction {
            Reaction::Retry => {}
            Reaction::Halt | Reaction::HaltTable => return Err(problem),
        }
        let wait = jittered(pauses.after(begun.elapsed(), &problem));
        let milliseconds = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        warn!(
            pipeline = name,
            code = problem.code,
            subject = problem.subject,
            reason = problem.message,
            milliseconds,
            "pipeline resumes from its cut after a pause"
        );
        tell(Phase::Retrying, Some(&problem));
        // Biased: a stop is not kept waiting. Both arms may be dropped.
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = sleep(wait) => {}
        }
    }
}

/// How long to wait before the next incarnation: twice as long each time, and short again after a healthy life, or where
/// another engine has come first.
struct Pauses {
    next: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { next: FIRST_PAUSE }
    }
}

impl Pauses {
    /// The pause after an incarnation that lived so long and ended with this problem.
    fn after(&mut self, lived: Duration, problem: &Problem) -> Duration {
        // Another engine that commits once a minute would otherwise make every pause the longest.
        if problem.code == FOREIGN_COMMIT {
            return FIRST_PAUSE;
        }
        let longest = if is_overtaken(problem) { LONGEST_FENCED_PAUSE } else { LONGEST_PAUSE };
        let pause = if lived >= HEALTHY { FIRST_PAUSE } else { self.next.min(longest) };
        self.next = (pause * 2).min(longest);
        pause
    }
}

/// From half of it to all of it, so that workers which failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Incarnations that end at once, as scripted; returns how many there were, too.
    async fn check(script: &[Result<(), Problem>], stop: &CancellationToken) -> (Result<(), Problem>, usize) {
        let left = RefCell::new(script.iter().cloned());
        let incarnation = || async { left.borrow_mut().next().expect("the script is long enough") };
        let ended = supervise("p", stop, incarnation, |_, _| {}).await;
        (ended, script.len() - left.into_inner().len())
    }

    fn passing() -> Result<(), Problem> {
        Err(Problem::retry("SERVER", "p", "gone for a moment"))
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_are_short_again_after_a_healthy_life() {
        let ended = |code| Problem::retry(code, "p", "gone for a moment");
        let mut pauses = Pauses::default();
        let mut expected = FIRST_PAUSE;
        for _ in 0..12 {
            assert_eq!(pauses.after(Duration::ZERO, &ended("SERVER")), expected);
            assert_eq!(pauses.after(Duration::ZERO, &ended(FOREIGN_COMMIT)), FIRST_PAUSE);
            expected = (expected * 2).min(LONGEST_PAUSE);
        }
        assert_eq!(expected, LONGEST_PAUSE);
        assert_eq!(pauses.after(Duration::ZERO, &ended("FENCED")), LONGEST_FENCED_PAUSE);
        assert_eq!(pauses.after(Duration::ZERO, &ended("FENCED")), LONGEST_FENCED_PAUSE);
        assert_eq!(pauses.after(HEALTHY, &ended("SERVER")), FIRST_PAUSE);
        assert_eq!(pauses.after(Duration::ZERO, &ended("SERVER")), FIRST_PAUSE * 2);
        let pause = jittered(LONGEST_PAUSE);
        assert!(pause >= LONGEST_PAUSE / 2 && pause <= LONGEST_PAUSE);
    }

    #[tokio::test]
    async fn a_problem_for_a_person_ends_the_supervision() {
        let halt = Problem::halt("GAP", "p", "the slot has forgotten", "resync");
        let (ended, lives) = check(&[passing(), Err(halt)], &CancellationToken::new()).await;
        assert_eq!((ended.unwrap_err().code, lives), ("GAP", 2));
    }

    #[tokio::test]
    async fn an_incarnation_that_ends_well_has_no_successor() {
        let (ended, lives) = check(&[passing(), Ok(()), passing()], &CancellationToken::new()).await;
        assert!(ended.is_ok());
        assert_eq!(lives, 2);
    }

    #[tokio::test]
    async fn a_stop_ends_the_pause() {
        let stop = CancellationToken::new();
        stop.cancel();
        let (ended, lives) = check(&[passing(), passing()], &stop).await;
        assert!(ended.is_ok());
        assert_eq!(lives, 1);
    }
}
