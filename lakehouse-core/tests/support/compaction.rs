//! Our own compaction under a pipeline: it comes between the writer's look and its commit, planned early and landing late.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use fastrand::Rng;
use lakehouse_core::catalog::{Catalog, LoadedTable};
use lakehouse_core::commit::properties::POSITION;
use lakehouse_core::commit::{CONTROL_NAMESPACE, GiveWay, Maintainer, Replaced, Rewrite};
use lakehouse_core::error::Problem;
use lakehouse_core::planted::Planted;
use lakehouse_core::schema::TableName;
use lakehouse_core::storage::Storage;
use maintenance::compact;
use maintenance::plan::{Group, Reason, Targets};
use maintenance::view::View;
use tokio::sync::Mutex;

use super::bank::{self, Load};
use super::between::{Between, Meddler};
use super::world::World;

/// Rewrites of any files of a table, planned at one commit and put in place at a later one.
pub struct Compaction {
    pub maintainer: Maintainer,
    state: Mutex<(Rng, Vec<(LoadedTable, Rewrite)>)>,
    pub landed: AtomicUsize,
    pub overtaken: AtomicUsize,
    pub forwarded: AtomicUsize,
}

impl Compaction {
    pub fn new(catalog: Arc<dyn Catalog>, storage: Storage, seed: u64) -> Self {
        let (give_way, planted) = (GiveWay::default(), Planted::none());
        Self {
            maintainer: Maintainer { catalog, storage, give_way, planted },
            state: Mutex::new((Rng::with_seed(seed ^ 0xC0C0), Vec::new())),
            landed: AtomicUsize::new(0),
            overtaken: AtomicUsize::new(0),
            forwarded: AtomicUsize::new(0),
        }
    }

    /// Plans a rewrite, or puts one in place that was planned earlier, or neither.
    pub async fn act(&self, name: &TableName) -> Result<(), Problem> {
        let mut state = self.state.lock().await;
        let (rng, held) = &mut *state;
        if rng.u8(..3) == 0 {
            held.extend(self.plan(name, rng).await?);
        }
        if !held.is_empty() && rng.u8(..3) > 0 {
            let (table, rewrite) = held.swap_remove(rng.usize(..held.len()));
            match self.maintainer.replace(&table, &rewrite).await? {
                Replaced::Landed { forwarded, .. } => {
                    self.landed.fetch_add(1, Ordering::SeqCst);
                    self.forwarded.fetch_add(forwarded as usize, Ordering::SeqCst);
                }
                Replaced::Overtaken(_) => drop(self.overtaken.fetch_add(1, Ordering::SeqCst)),
            }
        }
        Ok(())
    }

    async fn plan(&self, name: &TableName, rng: &mut Rng) -> Result<Option<(LoadedTable, Rewrite)>, Problem> {
        let storage = &self.maintainer.storage;
        let view = View::of(storage, self.maintainer.load(name, None).await?).await?;
        let mut partitions: Vec<_> = view.partitions().into_values().collect();
        if partitions.is_empty() || view.state.position.is_none() {
            return Ok(None);
        }
        let files = partitions.swap_remove(rng.usize(..partitions.len()));
        let files: Vec<_> = files.into_iter().filter(|_| rng.u8(..4) > 0).collect();
        if files.is_empty() {
            return Ok(None);
        }
        let group = Group { reason: Reason::SmallFiles, files };
        let targets = Targets { file_bytes: [1, 1 << 20][rng.usize(..2)], ..Targets::default() };
        let planted = self.maintainer.planted;
        let rewrite = tokio::task::block_in_place(|| compact::rewrite(storage, &view, &group, &targets, planted))?;
        Ok(Some((view.table, rewrite)))
    }
}

/// Between a worker's look at a table of changes and its commit.
#[async_trait]
impl Meddler for Arc<Compaction> {
    async fn before_commit(&self, base: &LoadedTable) -> Result<(), Problem> {
        match base.name.namespace != CONTROL_NAMESPACE && base.property(POSITION).is_some() {
            true => self.act(&base.name).await,
            false => Ok(()),
        }
    }
}

/// A world whose workers meet it.
pub fn world(seed: u64, load: Load) -> (World, Arc<Compaction>) {
    let mut compaction = None;
    let world = World::through(bank::script(seed, load), |clean, storage| {
        let made = Arc::new(Compaction::new(Arc::clone(&clean), storage, seed));
        compaction = Some(Arc::clone(&made));
        Arc::new(Between { inner: clean, meddler: made })
    });
    (world, compaction.expect("made above"))
}
