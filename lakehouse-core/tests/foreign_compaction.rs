//! Another engine rewrites files while our commits delete rows from them: the managed job of S3 Tables, and PyIceberg on a
//! REST catalog. Whoever is second plans anew; nothing is lost and nothing comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::bank::{self, Load};
use crate::support::between::{Between, Meddler};
use crate::support::check::{Report, in_order};
use crate::support::renamed::Renamed;
use crate::support::rig::{self, Kind, Rig};
use crate::support::source::Chunking;
use crate::support::world::{Worker, World, halted};
use crate::support::{Violation, block_on};
use async_trait::async_trait;
use fastrand::Rng;
use lakehouse_core::catalog::{Catalog, LoadedTable, ManagedJobs, S3TablesCatalog};
use lakehouse_core::commit::properties::POSITION;
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::foreign::is_ours;
use lakehouse_core::planted::Planted;
use lakehouse_core::schema::TableName;
use lakehouse_core::storage::Storage;
use testkit::emulators::Ministack;
use testkit::objects::Objects;
use testkit::rest_engine::RestEngine;
use testkit::s3_tables::{Compaction, S3Tables, TableId};
use testkit::tier;

/// Pipelines at the same time.
const AT_ONCE: u64 = 4;
/// Transactions of one pipeline's source.
const TRANSACTIONS: usize = 30;
/// Rewrites that land between two commits of ours, at least.
const REWRITES: usize = 8;
/// Of so many commits to mirrors one is overtaken by a rewrite of that mirror.
const OVERTAKEN: usize = 10;
/// Mirrors that change in nearly every transaction.
const TABLES: [&str; 3] = ["left", "right", "things"];

fn commits_wanted() -> u64 {
    tier::size("LAKEHOUSE_COMMITS", 60, 3_000)
}

/// Who rewrites.
enum Rewriter {
    Managed { service: S3Tables, bucket: String },
    PyIceberg(RestEngine),
}

/// How one attempt to rewrite ended.
enum Rewritten {
    Committed,
    Conflict,
    Nothing,
}

impl Rewriter {
    async fn rewrite(&self, namespace: &str, name: &str) -> Rewritten {
        match self {
            Rewriter::Managed { service, bucket } => {
                let (bucket, namespace, name) = (bucket.clone(), namespace.to_owned(), name.to_owned());
                match service.compact(&TableId { bucket, namespace, name }).await {
                    Compaction::Committed { .. } => Rewritten::Committed,
                    Compaction::Conflict => Rewritten::Conflict,
                    Compaction::Failed { why } if is_conflict(&why) => Rewritten::Conflict,
                    Compaction::Nothing => Rewritten::Nothing,
                    other => panic!("{other:?}"),
                }
            }
            Rewriter::PyIceberg(engine) => match engine.rewrite(&format!("{namespace}.{name}")).await {
                Ok(_) => Rewritten::Committed,
                Err(why) if is_conflict(&why) => Rewritten::Conflict,
                // Of a table without rows.
                Err(why) if why.contains("ZeroDivisionError") => Rewritten::Nothing,
                Err(why) => panic!("{why}"),
            },
        }
    }
}

/// PyIceberg's words for a table that has moved: the catalog's no, or its own after a second look.
fn is_conflict(why: &str) -> bool {
    why.contains("CommitFailedException") || why.contains("ValidationException")
}

/// A rewriter that comes first now and then: between our look at a mirror and our commit to it.
struct Overtaking {
    rewriter: Arc<Rewriter>,
    score: Arc<Score>,
    commits: AtomicUsize,
}

#[async_trait]
impl Meddler for Overtaking {
    async fn before_commit(&self, base: &LoadedTable) -> Result<(), Problem> {
        if is_copied_mirror(base) && self.commits.fetch_add(1, Ordering::SeqCst) % OVERTAKEN == OVERTAKEN - 1 {
            self.score.count(&self.rewriter.rewrite(&base.name.namespace, &base.name.name).await);
        }
        Ok(())
    }
}

/// Only a table whose copy is done has deletes to be lost.
fn is_copied_mirror(table: &LoadedTable) -> bool {
    TABLES.contains(&table.name.name.as_str()) && table.property(POSITION).is_some()
}

/// What has happened over all pipelines.
#[derive(Default)]
struct Score {
    ended: AtomicBool,
    rewrites: AtomicUsize,
    conflicts: AtomicUsize,
    lives: AtomicUsize,
}

impl Score {
    /// Rewrites tables of pipelines that run, one after the other, until the end.
    async fn rewrite(&self, rewriter: &Rewriter, clean: &dyn Catalog, running: &AtomicUsize) {
        let mut rng = Rng::with_seed(0xC0);
        while !self.ended.load(Ordering::SeqCst) {
            let first = running.load(Ordering::SeqCst) as u64;
            let namespace = format!("lake_{}", first + rng.u64(..AT_ONCE));
            let name = TableName::new(namespace, TABLES[rng.usize(..TABLES.len())]);
            let table = clean.load(&name, None).await.expect("an answer");
            match table.is_some_and(|table| is_copied_mirror(&table)) {
                true => self.count(&rewriter.rewrite(&name.namespace, &name.name).await),
                false => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn count(&self, rewritten: &Rewritten) {
        match rewritten {
            Rewritten::Committed => drop(self.rewrites.fetch_add(1, Ordering::SeqCst)),
            Rewritten::Conflict => drop(self.conflicts.fetch_add(1, Ordering::SeqCst)),
            Rewritten::Nothing => {}
        }
    }

    /// One pipeline, from the first change to the last; a life ends where another engine's commit is found.
    async fn pipeline(&self, world: &World, seed: u64) -> Result<Report, Violation> {
        let mut rng = Rng::with_seed(seed);
        let mut last = None;
        for life in 0..TRANSACTIONS * 4 {
            let chunking = Chunking { group: 1, rows: 100 };
            let worker = Worker { bytes: 1, chunking, ..Worker::random(life, &world.script, &mut rng) };
            self.lives.fetch_add(1, Ordering::SeqCst);
            match world.incarnation(&worker, &Arc::default()).await {
                Ok(()) => return world.end().await,
                Err(problem) if problem.reaction == Reaction::Retry => last = Some(problem),
                Err(problem) => return Err(halted(&problem)),
            }
        }
        Err(Violation::new("liveness", format!("the script does not come to its end: {last:?}")))
    }
}

/// Pipelines against a rewriter, until enough was committed.
async fn race(kind: Kind, catalog: Arc<dyn Catalog>, storage: Storage, rewriter: Rewriter) {
    let rewriter = Arc::new(rewriter);
    let (score, running) = (Arc::new(Score::default()), Arc::new(AtomicUsize::new(0)));
    let rewriting = tokio::spawn({
        let (score, running, clean) = (Arc::clone(&score), Arc::clone(&running), Arc::clone(&catalog));
        let rewriter = Arc::clone(&rewriter);
        async move { score.rewrite(&rewriter, clean.as_ref(), &running).await }
    });
    let (mut commits, mut snapshots, mut foreign, mut first) = (0, 0, 0, 0);
    while (commits as u64) < commits_wanted() || foreign < REWRITES {
        running.store(first as usize, Ordering::SeqCst);
        let pipelines: Vec<_> = (first..first + AT_ONCE)
            .map(|seed| {
                let renamed = |inner: Arc<dyn Catalog>| -> Arc<dyn Catalog> {
                    Arc::new(Renamed { inner, suffix: seed.to_string() })
                };
                let overtaken = Arc::new(Between {
                    inner: Arc::clone(&catalog),
                    meddler: Overtaking {
                        rewriter: Arc::clone(&rewriter),
                        score: Arc::clone(&score),
                        commits: AtomicUsize::new(0),
                    },
                });
                let mut script = bank::script(seed, Load { transactions: TRANSACTIONS, wide: false });
                // PyIceberg needs a further library to write buckets.
                script.tables[bank::THINGS].partition.clear();
                let world = World::on(
                    renamed(Arc::clone(&catalog)),
                    renamed(overtaken),
                    storage.clone(),
                    script,
                    Planted::none(),
                );
                let score = Arc::clone(&score);
                (
                    seed,
                    tokio::spawn(async move {
                        let report = score.pipeline(&world, seed).await?;
                        let (mut ours, mut theirs) = (0, 0);
                        for table in TABLES {
                            let name = TableName::new("lake", table);
                            let loaded = world.catalog.load(&name, None).await.expect("an answer").expect("the table");
                            let snapshots = in_order(&loaded);
                            let last = snapshots.iter().rposition(is_ours).expect("a commit of ours");
                            let foreign = snapshots[..last].iter().filter(|snapshot| !is_ours(snapshot)).count();
                            (ours, theirs) = (ours + last + 1 - foreign, theirs + foreign);
                        }
                        Ok::<_, Violation>((report, ours, theirs))
                    }),
                )
            })
            .collect();
        for (seed, pipeline) in pipelines {
            let done = pipeline.await.expect("no panic");
            let (report, ours, theirs) = done.unwrap_or_else(|violation| panic!("{kind:?}, seed {seed}: {violation}"));
            commits += ours;
            snapshots += report.snapshots;
            foreign += theirs;
        }
        first += AT_ONCE;
    }
    score.ended.store(true, Ordering::SeqCst);
    rewriting.await.expect("no panic");
    let number = |count: &AtomicUsize| count.load(Ordering::SeqCst);
    println!(
        "{kind:?}: {commits} commits of {} lives, {} rewrites landed ({foreign} between commits), {} came second; {snapshots} snapshots checked",
        number(&score.lives),
        number(&score.rewrites),
        number(&score.conflicts),
    );
}

#[test]
fn managed_compaction_of_s3_tables_loses_and_brings_back_nothing() {
    block_on(async {
        let ministack = Ministack::start().await;
        let service = S3Tables::start(&ministack.objects());
        let bucket = service.create_table_bucket("fuji");
        let config = rig::aws(&service.endpoint(), &service.s3_endpoint());
        let storage = Storage::s3(&config).await;
        // The configuration gives this duty to the service.
        let jobs = ManagedJobs { compaction: true, snapshots: false };
        let catalog = Arc::new(S3TablesCatalog::open(&config, &bucket, storage.clone(), jobs).await);
        race(Kind::Simulator, catalog, storage, Rewriter::Managed { service, bucket }).await;
    });
}

#[test]
fn an_overwrite_by_pyiceberg_loses_and_brings_back_nothing() {
    block_on(async {
        let Some(rig) = Rig::start(Kind::Rest, "an_overwrite_by_pyiceberg_loses_and_brings_back_nothing").await else {
            return;
        };
        let engine = RestEngine::new(&rig.address.uri, "", &Objects::at(&rig.address.s3));
        race(Kind::Rest, Arc::clone(&rig.clean), rig.storage.clone(), Rewriter::PyIceberg(engine)).await;
    });
}
