//! A catalog that fails on purpose, at a named call of a named table, around any real one; and the ground truth of what
//! has landed in it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use iceberg::{TableCreation, TableUpdate};
use lakehouse_core::catalog::{Catalog, LoadedTable, Swap};
use lakehouse_core::commit::properties::TableState;
use lakehouse_core::commit::{CONTROL_NAMESPACE, ControlState};
use lakehouse_core::error::Problem;
use lakehouse_core::position::Position;
use lakehouse_core::schema::TableName;
use tokio::sync::Semaphore;

/// The n-th call about one table by one incarnation, from 0. Calls about one table come in a fixed order, so a step
/// means the same in every run of a seed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    pub table: String,
    pub call: usize,
}

impl Step {
    pub fn new(table: &str, call: usize) -> Self {
        Self { table: table.to_owned(), call }
    }
}

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Load,
    Create,
    Commit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The incarnation ends; nothing happened.
    CrashBefore,
    /// The incarnation ends; the call had its effect.
    CrashAfter,
    /// No answer, and no effect.
    LostBefore,
    /// No answer, but the effect.
    LostAfter,
    /// "No" although nothing has moved.
    Rejected,
    /// No answer; the request arrives after this many further calls, with its old token.
    Delayed(usize),
    /// Waits at the [`Gate`] before the call has its effect.
    PauseBefore,
    /// Waits at the gate after it.
    PauseAfter,
}

#[derive(Clone, Debug)]
pub struct Planned {
    pub step: Step,
    pub fault: Fault,
}

/// Where a paused incarnation waits until the test lets it go on.
pub struct Gate {
    reached: Semaphore,
    open: Semaphore,
}

impl Default for Gate {
    fn default() -> Self {
        Self { reached: Semaphore::new(0), open: Semaphore::new(0) }
    }
}

impl Gate {
    async fn pass(&self) {
        self.reached.add_permits(1);
        self.open.acquire().await.expect("the gate is never closed").forget();
    }

    /// Returns when an incarnation stands at the gate.
    pub async fn reached(&self) {
        self.reached.acquire().await.expect("the gate is never closed").forget();
    }

    pub fn open(&self) {
        self.open.add_permits(1);
    }
}

/// One swap that the catalog has accepted.
#[derive(Clone, Debug)]
pub struct Landing {
    pub worker: usize,
    pub table: String,
    pub snapshot: Option<i64>,
    pub epoch: u64,
    /// Of a control table.
    pub control: Option<ControlState>,
}

struct Delayed {
    worker: usize,
    due: usize,
    base: LoadedTable,
    updates: Vec<TableUpdate>,
}

/// What really happened, whoever has heard of it.
#[derive(Default)]
pub struct Ground {
    state: Mutex<Truth>,
}

#[derive(Default)]
struct Truth {
    landings: Vec<Landing>,
    steps: Vec<(Step, Call)>,
    /// Tables with a commit whose answer a real network has lost.
    unanswered: HashSet<String>,
    delayed: Vec<Delayed>,
    calls: usize,
    fired: usize,
}

impl Ground {
    fn truth(&self) -> MutexGuard<'_, Truth> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn landings(&self) -> Vec<Landing> {
        self.truth().landings.clone()
    }

    /// All calls that were made, in order.
    pub fn steps(&self) -> Vec<(Step, Call)> {
        self.truth().steps.clone()
    }

    /// Faults that were reached.
    pub fn fired(&self) -> usize {
        self.truth().fired
    }

    /// The position of the last cut that has landed.
    pub fn cut(&self) -> Position {
        let truth = self.truth();
        let cuts = truth.landings.iter().rev().filter_map(|landing| landing.control.as_ref()?.cut.as_ref());
        cuts.map(|cut| cut.position).next().unwrap_or(Position::START)
    }

    fn unanswered(&self, table: &TableName) {
        self.truth().unanswered.insert(table.to_string());
    }

    /// True for a state that can only be a commit whose answer was lost.
    fn is_news(&self, table: &LoadedTable) -> bool {
        let (name, snapshot) = (table.name.to_string(), table.snapshot_id());
        let known = |landing: &Landing| landing.table == name && landing.snapshot == snapshot;
        let truth = self.truth();
        snapshot.is_some() && truth.unanswered.contains(&name) && !truth.landings.iter().any(known)
    }

    fn landed(&self, worker: usize, table: &LoadedTable) {
        let control = table.name.namespace == CONTROL_NAMESPACE;
        let state = TableState::of(table).unwrap_or_default();
        self.truth().landings.push(Landing {
            worker,
            table: table.name.to_string(),
            snapshot: table.snapshot_id(),
            epoch: state.epoch,
            control: control.then(|| ControlState::of(table).expect("a control table's properties are sound")),
        });
    }

    fn due(&self, all: bool) -> Vec<Delayed> {
        let mut truth = self.truth();
        let calls = truth.calls;
        let (due, later) = std::mem::take(&mut truth.delayed).into_iter().partition(|d| all || d.due <= calls);
        truth.delayed = later;
        due
    }
}

/// The catalog as one incarnation of a worker sees it.
pub struct FaultyCatalog {
    inner: Arc<dyn Catalog>,
    ground: Arc<Ground>,
    worker: usize,
    faults: Vec<Planned>,
    gate: Arc<Gate>,
    counts: Mutex<HashMap<String, usize>>,
    dead: AtomicBool,
}

impl FaultyCatalog {
    pub fn new(
        inner: Arc<dyn Catalog>,
        ground: Arc<Ground>,
        worker: usize,
        faults: Vec<Planned>,
        gate: Arc<Gate>,
    ) -> Arc<Self> {
        let (counts, dead) = (Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { inner, ground, worker, faults, gate, counts, dead })
    }

    /// Requests that are still on their way arrive now, also if their sender is long gone.
    pub async fn deliver_all(&self) -> Result<(), Problem> {
        self.deliver(true).await
    }

    async fn deliver(&self, all: bool) -> Result<(), Problem> {
        for Delayed { worker, base, updates, .. } in self.ground.due(all) {
            if let Swap::Landed(table) = self.inner.commit(&base, updates).await? {
                self.ground.landed(worker, &table);
            }
        }
        Ok(())
    }

    /// Counts the call, and says what is to happen to it.
    async fn enter(&self, table: &TableName, call: Call) -> Result<Option<Fault>, Problem> {
        if self.dead.load(SeqCst) {
            return Err(crashed());
        }
        self.deliver(false).await?;
        let step = {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(table.to_string()).or_default();
            *count += 1;
            Step { table: table.to_string(), call: *count - 1 }
        };
        let fault = self.faults.iter().find(|planned| planned.step == step).map(|planned| planned.fault);
        {
            let mut truth = self.ground.truth();
            truth.calls += 1;
            truth.fired += usize::from(fault.is_some());
            truth.steps.push((step, call));
        }
        match fault {
            Some(Fault::CrashBefore) => Err(self.crash()),
            Some(Fault::PauseBefore) => {
                self.gate.pass().await;
                Ok(None)
            }
            other => Ok(other),
        }
    }

    async fn leave<T>(&self, fault: Option<Fault>, answer: T) -> Result<T, Problem> {
        match fault {
            Some(Fault::CrashAfter) => return Err(self.crash()),
            Some(Fault::PauseAfter) => self.gate.pass().await,
            _ => {}
        }
        // Whoever died meanwhile hears no answer.
        if self.dead.load(SeqCst) { Err(crashed()) } else { Ok(answer) }
    }

    fn crash(&self) -> Problem {
        self.dead.store(true, SeqCst);
        crashed()
    }
}

/// The process is gone: everything it still asks for fails, and whoever restarts it does not look at why.
fn crashed() -> Problem {
    Problem::retry("CRASH", "", "the scripted crash of this incarnation")
}

fn unanswered() -> Problem {
    Problem::retry("CATALOG", "", "the scripted catalog does not answer")
}

#[async_trait]
impl Catalog for FaultyCatalog {
    async fn list(&self, namespace: Option<&str>) -> Result<Vec<TableName>, Problem> {
        self.inner.list(namespace).await
    }

    async fn load(&self, name: &TableName, known: Option<&LoadedTable>) -> Result<Option<LoadedTable>, Problem> {
        let fault = self.enter(name, Call::Load).await?;
        let loaded = self.inner.load(name, known).await?;
        // A commit whose answer was lost on a real network shows itself here first.
        if let Some(table) = loaded.as_ref().filter(|table| self.ground.is_news(table)) {
            self.ground.landed(self.worker, table);
        }
        match fault {
            Some(Fault::LostBefore | Fault::LostAfter | Fault::Rejected | Fault::Delayed(_)) => Err(unanswered()),
            fault => self.leave(fault, loaded).await,
        }
    }

    async fn create(&self, name: &TableName, creation: TableCreation) -> Result<LoadedTable, Problem> {
        let fault = self.enter(name, Call::Create).await?;
        if fault == Some(Fault::LostBefore) {
            return Err(unanswered());
        }
        let created = self.inner.create(name, creation).await?;
        match fault {
            Some(Fault::LostAfter | Fault::Rejected | Fault::Delayed(_)) => Err(unanswered()),
            fault => self.leave(fault, created).await,
        }
    }

    async fn commit(&self, base: &LoadedTable, updates: Vec<TableUpdate>) -> Result<Swap, Problem> {
        let fault = self.enter(&base.name, Call::Commit).await?;
        let lost = || Swap::Unknown("the scripted answer is lost".into());
        match fault {
            Some(Fault::LostBefore) => return Ok(lost()),
            Some(Fault::Rejected) => return Ok(Swap::Rejected),
            Some(Fault::Delayed(calls)) => {
                let mut truth = self.ground.truth();
                let due = truth.calls + calls;
                truth.delayed.push(Delayed { worker: self.worker, due, base: base.clone(), updates });
                return Ok(lost());
            }
            _ => {}
        }
        let swap = self.inner.commit(base, updates).await?;
        match &swap {
            Swap::Landed(table) => self.ground.landed(self.worker, table),
            // Doubled on the way, a landed commit is answered by a rejection.
            Swap::Rejected | Swap::Unknown(_) => self.ground.unanswered(&base.name),
        }
        match fault {
            Some(Fault::LostAfter) => Ok(lost()),
            fault => self.leave(fault, swap).await,
        }
    }

    async fn check_owner(&self, name: &TableName) -> Result<(), Problem> {
        self.inner.check_owner(name).await
    }
}
