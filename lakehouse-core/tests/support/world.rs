//! One lake, one scripted source, and incarnations of a worker that die and come back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use lakehouse_core::catalog::{Catalog, SqliteCatalog};
use lakehouse_core::commit::{Control, GiveWay};
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::lakehouse::{Environment, Lakehouse, OWNER_INTERVAL, ROLLBACK_TAGS};
use lakehouse_core::pipeline::{Limits, run};
use lakehouse_core::planted::{Bug, Planted};
use lakehouse_core::position::Position;
use lakehouse_core::storage::Storage;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::Violation;
use super::catalog::{FaultyCatalog, Gate, Ground, Planned};
use super::check::{Report, check};
use super::script::Script;
use super::source::{Chunking, ScriptedSource, Slot, columns};

pub const PIPELINE: &str = "pipe";
pub const SOURCE: &str = "postgres system 7 slot 1";
/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3_600);

/// Everything that outlives an incarnation.
pub struct World {
    folder: TempDir,
    pub storage: Storage,
    /// What really stands there.
    pub catalog: Arc<dyn Catalog>,
    /// How workers reach it.
    through: Arc<dyn Catalog>,
    pub ground: Arc<Ground>,
    pub slot: Arc<Slot>,
    pub script: Arc<Script>,
    pub planted: Planted,
    pub owner_interval: Duration,
    pub give_way: GiveWay,
}

/// What one incarnation is like.
#[derive(Clone, Debug)]
pub struct Worker {
    pub number: usize,
    /// Name of its local state; two workers at the same time have two.
    pub local: &'static str,
    /// Memory of a batch, in bytes: 1 makes every chunk a part of its own.
    pub bytes: usize,
    pub chunking: Chunking,
    /// The server sends from here, if that is before the cut.
    pub redelivers_from: Option<Position>,
    /// Cuts without changes come at once.
    pub idles: bool,
    pub faults: Vec<Planned>,
    pub seed: u64,
}

impl Worker {
    pub fn plain(number: usize) -> Self {
        Self {
            number,
            local: "local",
            bytes: usize::MAX,
            chunking: Chunking { group: 1, rows: 100 },
            redelivers_from: None,
            idles: false,
            faults: vec![],
            seed: number as u64,
        }
    }

    /// Batches of any size, chunks of any shape, and a server that may have forgotten what was acknowledged.
    pub fn random(number: usize, script: &Script, rng: &mut Rng) -> Self {
        let boundaries: Vec<Position> =
            script.boundaries().into_iter().filter(|&p| p >= script.consistent_point).collect();
        Self {
            bytes: [1, 1_500, 4_000, usize::MAX][rng.usize(..4)],
            chunking: Chunking::random(rng),
            redelivers_from: rng.bool().then(|| boundaries[rng.usize(..boundaries.len())]),
            idles: rng.bool(),
            seed: rng.u64(..),
            ..Self::plain(number)
        }
    }

    pub fn with(mut self, faults: impl IntoIterator<Item = Planned>) -> Self {
        self.faults.extend(faults);
        self
    }
}

impl World {
    pub fn new(script: Script) -> Self {
        Self::planted(script, Planted::none())
    }

    pub fn planted(script: Script, planted: Planted) -> Self {
        let folder = temporary_folder();
        let storage = Storage::local();
        let catalog =
            SqliteCatalog::open(&folder.path().join("catalog.db"), &folder.path().join("lake"), storage.clone());
        let catalog: Arc<dyn Catalog> = Arc::new(catalog.expect("an empty folder takes a catalog"));
        Self { folder, ..Self::on(Arc::clone(&catalog), catalog, storage, script, planted) }
    }

    /// On a catalog of its own, that workers reach through what is made of it.
    pub fn through(script: Script, made: impl FnOnce(Arc<dyn Catalog>, Storage) -> Arc<dyn Catalog>) -> Self {
        let world = Self::new(script);
        let through = made(Arc::clone(&world.catalog), world.storage.clone());
        Self { through, ..world }
    }

    /// On a catalog that is there: workers reach it `through` something.
    pub fn on(
        catalog: Arc<dyn Catalog>,
        through: Arc<dyn Catalog>,
        storage: Storage,
        script: Script,
        planted: Planted,
    ) -> Self {
        let ground = Arc::new(Ground::default());
        let slot = Slot::new(Arc::clone(&ground), script.consistent_point);
        let folder = temporary_folder();
        Self {
            folder,
            storage,
            catalog,
            through,
            ground,
            slot,
            script: Arc::new(script),
            planted,
            owner_interval: OWNER_INTERVAL,
            give_way: GiveWay::default(),
        }
    }

    pub fn local_state(&self, local: &str) -> PathBuf {
        self.folder.path().join(local)
    }

    pub fn faulty(&self, worker: &Worker, gate: &Arc<Gate>) -> Arc<FaultyCatalog> {
        let (inner, ground) = (Arc::clone(&self.through), Arc::clone(&self.ground));
        FaultyCatalog::new(inner, ground, worker.number, worker.faults.clone(), Arc::clone(gate))
    }

    /// Control table, GO, copy: everything before the first change.
    pub async fn start(&self, catalog: Arc<dyn Catalog>, local: &str) -> Result<Lakehouse, Problem> {
        // The slot first: read behind the cut, it could be ahead of it through another worker's work in between.
        let acknowledged = self.slot.acknowledged();
        let control = Control::open(Arc::clone(&catalog), self.storage.clone(), PIPELINE).await?;
        let cut = control.state().cut.as_ref().map_or(acknowledged, |cut| cut.position);
        if acknowledged > cut && !self.planted.is(Bug::NoGapCheck) {
            let message = format!("the slot stands at {acknowledged}, the cut at {cut}");
            return Err(Problem::halt("GAP", PIPELINE, message, "none, this is a test"));
        }
        let environment = Environment {
            catalog,
            storage: self.storage.clone(),
            local_state: self.local_state(local),
            sync_local_state: false,
            tables_at_once: 1,
            owner_interval: self.owner_interval,
            rollback_tags: ROLLBACK_TAGS,
            give_way: self.give_way.clone(),
            planted: self.planted,
        };
        let script = &self.script;
        // The copy's tables, or what has become of them meanwhile: the source is ahead of its stream.
        let described = match control.state().cut {
            None => script.consistent_point,
            Some(_) => script.end(),
        };
        let width = |table: usize| script.width(table, described);
        let schemas = script.tables.iter().enumerate().map(|(n, table)| table.schema(width(n))).collect();
        let mut lakehouse =
            Lakehouse::go(environment, control, SOURCE.into(), script.consistent_point, schemas).await?;
        for schema in lakehouse.tables_to_copy() {
            let table = &script.tables[script.table(&schema.source)];
            let rows = script.rows_at(script.table(&schema.source), script.consistent_point);
            let mut copy = lakehouse.begin_copy(&schema.source).await?;
            for rows in rows.chunks(2) {
                let mut writer = copy.target().writer()?;
                writer.write(&schema, &columns(table, rows, schema.columns.len()))?;
                copy.commit_chunk(writer.finish()?).await?;
            }
            lakehouse.finish_copy(copy, script.consistent_point).await?;
        }
        Ok(lakehouse)
    }

    /// One life of a worker, to the end of the script or to its death.
    pub async fn incarnation(&self, worker: &Worker, gate: &Arc<Gate>) -> Result<(), Problem> {
        let catalog = self.faulty(worker, gate);
        let lakehouse = self.start(catalog, worker.local).await?;
        let mut source = self.source(worker, lakehouse.resume_position());
        run(&mut source, lakehouse, self.limits(worker), CancellationToken::new()).await
    }

    pub fn limits(&self, worker: &Worker) -> Limits {
        let idle_interval = if worker.idles { Duration::ZERO } else { NEVER };
        Limits { interval: NEVER, bytes: worker.bytes, idle_interval, planted: self.planted }
    }

    /// The stream from the cut on, or from further back.
    pub fn source(&self, worker: &Worker, resume: Position) -> ScriptedSource {
        let from = worker.redelivers_from.map_or(resume, |from| from.min(resume));
        let mut rng = Rng::with_seed(worker.seed);
        ScriptedSource::open(&self.script, &self.slot, from, &worker.chunking, &mut rng)
    }

    /// Lives of a worker until the script has ended; each of `plans` is what happens to one of them.
    pub async fn live(&self, seed: u64, plans: &[Vec<Planned>]) -> Result<usize, Violation> {
        let mut rng = Rng::with_seed(seed);
        let gate = Arc::default();
        for life in 0..plans.len() + 12 {
            let mut worker = Worker::random(life, &self.script, &mut rng);
            worker.faults = plans.get(life).cloned().unwrap_or_default();
            match self.incarnation(&worker, &gate).await {
                Ok(()) => return Ok(life + 1),
                Err(problem) if problem.reaction == Reaction::Retry => {}
                Err(problem) => return Err(halted(&problem)),
            }
            self.disturb_local_state(&mut rng);
        }
        Err(Violation::new("liveness", "the script does not come to its end"))
    }

    /// Whoever is still on the way arrives; then every check.
    pub async fn end(&self) -> Result<Report, Violation> {
        let catalog = self.faulty(&Worker::plain(usize::MAX), &Arc::default());
        catalog.deliver_all().await.map_err(|problem| unreadable(&problem))?;
        check(self).await
    }

    /// Local state may be deleted or damaged at any time between two lives.
    fn disturb_local_state(&self, rng: &mut Rng) {
        let folder = self.local_state("local");
        match rng.u8(..8) {
            0 => delete_folder(&folder),
            1 => damage_a_file(&folder, rng),
            _ => {}
        }
    }
}

pub fn delete_folder(folder: &Path) {
    if folder.exists() {
        std::fs::remove_dir_all(folder).expect("a test's folder can be deleted");
    }
}

/// Flips a byte of some file, or cuts it.
pub fn damage_a_file(folder: &Path, rng: &mut Rng) {
    let mut files = Vec::new();
    collect_files(folder, &mut files);
    files.retain(|file| std::fs::metadata(file).is_ok_and(|metadata| metadata.len() > 0));
    files.sort();
    if files.is_empty() {
        return;
    }
    let file = &files[rng.usize(..files.len())];
    let mut bytes = std::fs::read(file).expect("a test's file can be read");
    let place = rng.usize(..bytes.len());
    if rng.bool() {
        bytes[place] ^= 0x40;
    } else {
        bytes.truncate(place);
    }
    std::fs::write(file, bytes).expect("a test's file can be written");
}

fn collect_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path().is_dir() {
            true => collect_files(&entry.path(), files),
            false => files.push(entry.path()),
        }
    }
}

pub fn halted(problem: &Problem) -> Violation {
    Violation::new("halt", format!("{} {}: {}", problem.code, problem.subject, problem.message))
}

pub fn unreadable(problem: &Problem) -> Violation {
    Violation::new("unreadable", format!("{} {}: {}", problem.code, problem.subject, problem.message))
}

/// In memory where there is such a folder: every commit waits for its files to be durable.
pub fn temporary_folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let folder = tempfile::Builder::new().prefix("lakehouse-test-").tempdir_in(memory);
    folder.or_else(|_| tempfile::tempdir()).expect("a temporary folder")
}
