//! One incarnation of one pipeline at work: its tables, its control table, and the two steps between a batch and the
//! proof that it is durable. Tables that a rollback holds are in `lakehouse/hold.rs`.

mod hold;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use iceberg::TableCreation;
use iceberg::spec::{Schema, UnboundPartitionSpec};
use tracing::{error, info};

use crate::batch::{Batch, HaltedTable};
use crate::catalog::{Catalog, LoadedTable};
use crate::change::ChangeChunk;
use crate::commit::properties::{self, CopyProgress, TableState};
use crate::commit::{
    Advance, Committer, Control, Counts, Cut, DurablePosition, FileChange, GiveWay, LakeTable, LeftTable, Maintainer,
    QuarantineReplay, RESYNC_REQUESTED, TableCommit,
};
use crate::copy::{TableCopy, index_folder};
use crate::error::{Problem, Reaction};
use crate::fold::history_begins;
use crate::foreign::check_foreign;
use crate::history::History;
use crate::lanes::TableLanes;
use crate::mirror::Mirror;
use crate::owner_watch::OwnerWatch;
use crate::planted::{Bug, Planted};
use crate::position::{Boundary, Position};
use crate::quarantine::{KeyColumns, Quarantine, QuarantineLimit, StandingRow, standing};
use crate::rollback;
use crate::schema::{TableName, TableSchema};
use crate::storage::Storage;

/// What [`Environment::tables_at_once`] is, unless a test wants its commits one by one.
pub const TABLES_AT_ONCE: usize = 4;
/// What [`Environment::owner_interval`] is.
pub const OWNER_INTERVAL: Duration = Duration::from_secs(600);
/// What [`Environment::rollback_tags`] is where nothing is said.
pub const ROLLBACK_TAGS: Duration = Duration::from_secs(7 * 24 * 3_600);

/// What a pipeline needs beside its tables.
#[derive(Clone)]
pub struct Environment {
    pub catalog: Arc<dyn Catalog>,
    pub storage: Storage,
    /// Key indexes and spools; may be deleted at any time.
    pub local_state: PathBuf,
    /// Key indexes survive a loss of power, not only of the process.
    pub sync_local_state: bool,
    /// Tables written, or committed, at the same time.
    pub tables_at_once: usize,
    /// How often each table is asked who owns its maintenance; [`OWNER_INTERVAL`], unless a test cannot wait.
    pub owner_interval: Duration,
    /// For so long a table keeps the tags of a rollback that holds it no more (protocol E6).
    pub rollback_tags: Duration,
    /// Where maintenance in this process asks to go first.
    pub give_way: GiveWay,
    pub planted: Planted,
}

/// One incarnation of a pipeline's worker, after GO (protocol D).
pub struct Lakehouse {
    environment: Environment,
    control: Control,
    committer: Committer,
    /// By name at the source.
    tables: BTreeMap<String, CapturedTable>,
    left: BTreeMap<String, LeftTable>,
    owners: OwnerWatch,
}

struct CapturedTable {
    schema: Arc<TableSchema>,
    mirror: Option<Mirror>,
    history: Option<History>,
    quarantine: Option<Quarantine>,
}

/// A copy that has been begun, as its last chunk left it.
#[derive(Clone, Debug)]
pub struct UnfinishedCopy {
    /// Where it goes on, in the source's own words.
    pub resume: String,
    /// Where the lanes of the table's log are followed from: noted before its first chunk.
    pub lanes: Arc<TableLanes>,
}

/// What `write` has made of a batch.
pub enum Written {
    /// A part of a transaction larger than memory: its files are there, the batch is still open.
    Part,
    Batch(WrittenBatch),
}

/// A closed batch whose files are written and that nothing knows yet. Only [`Lakehouse::write`] makes one.
pub struct WrittenBatch {
    to: Boundary,
}

impl Lakehouse {
    /// GO: takes the pipeline over, then reads its tables, creating those that are missing (protocol D, start-up).
    /// `first` is the cut of a pipeline that has none: its source's consistent point and no tables.
    pub async fn go(
        environment: Environment,
        mut control: Control,
        source: String,
        first: impl Into<Boundary>,
        schemas: Vec<Arc<TableSchema>>,
    ) -> Result<Self, Problem> {
        let first = first.into();
        let first = Cut {
            source: source.clone(),
            position: first.position,
            read_until: first.lanes.read_until(),
            lanes: first.lanes,
            epoch: 0,
            committed_at: chrono::Utc::now().timestamp_millis(),
            tables: BTreeMap::new(),
            left: BTreeMap::new(),
        };
        check_sources(environment.catalog.as_ref(), &control, &source, &schemas).await?;
        let storage = environment.storage.with_spool(&environment.local_state.join("spool"))?;
        let environment = Environment { storage, ..environment };
        stand_aside(&environment, &mut control).await?;
        let epoch = control.raise_epoch(Some(first)).await?;
        let committer = Committer {
            catalog: Arc::clone(&environment.catalog),
            storage: environment.storage.clone(),
            source,
            epoch,
            give_way: environment.give_way.clone(),
            planted: environment.planted,
        };
        let left = control.state().cut.as_ref().map(|cut| cut.left.clone()).unwrap_or_default();
        let mut owners = OwnerWatch::every(environment.owner_interval);
        owners.add(control.table().name.clone(), Instant::now());
        let mut lakehouse = Self { environment, control, committer, tables: BTreeMap::new(), left, owners };
        for schema in schemas {
            lakehouse.open_table(schema).await?;
        }
        lakehouse.begin_beside_mirrors().await?;
        lakehouse.protect();
        lakehouse.release_held().await?;
        lakehouse.complete_cut().await?;
        Ok(lakehouse)
    }

    async fn open_table(&mut self, schema: Arc<TableSchema>) -> Result<(), Problem> {
        let mut captured = CapturedTable { schema: Arc::clone(&schema), mirror: None, history: None, quarantine: None };
        if schema.has_mirror() {
            let iceberg = schema.mirror_schema()?;
            let spec = schema.partition_spec(&iceberg)?;
            let loaded = self.load_or_create(&schema.mirror, &schema, iceberg.clone(), spec).await?;
            check_source(&loaded, &self.committer.source)?;
            if !self.is_held(&schema.source) {
                let opened = self.open_mirror(loaded, &schema, &iceberg).await;
                captured.mirror = self.opened_or_left(&schema.source, opened)?;
            }
        } else if self.environment.catalog.load(&schema.mirror, None).await?.is_some() {
            let lost = schema_changed(&schema, "the key is gone".to_owned());
            self.leave(&schema.source, self.resume_position(), lost.code, lost.message);
        }
        if schema.history || !schema.has_mirror() {
            let iceberg = schema.history_schema()?;
            let spec = schema.history_partition_spec(&iceberg)?;
            let loaded = self.load_or_create(&schema.mirror.history(), &schema, iceberg.clone(), spec).await?;
            check_source(&loaded, &self.committer.source)?;
            let opened = self.open_history(loaded, &schema, &iceberg).await;
            captured.history = self.opened_or_left(&schema.source, opened)?;
        }
        if let Some(limit) = schema.quarantine {
            let opened = self.open_quarantine(&schema, limit).await;
            captured.quarantine = self.opened_or_left(&schema.source, opened)?;
        }
        self.tables.insert(schema.source.clone(), captured);
        Ok(())
    }

    /// A table that cannot be opened leaves the cut; the others go on (protocol C8, F6).
    fn opened_or_left<T>(&mut self, source: &str, opened: Result<T, Problem>) -> Result<Option<T>, Problem> {
        match opened {
            Err(problem) if problem.reaction == Reaction::HaltTable => {
                self.leave(source, self.resume_position(), problem.code, problem.message);
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    async fn open_history(
        &self,
        loaded: LoadedTable,
        schema: &TableSchema,
        wanted: &Schema,
    ) -> Result<History, Problem> {
        check_shape(&loaded, schema, wanted)?;
        let storage = &self.environment.storage;
        check_foreign(storage, &loaded).await?;
        History::open(storage, LakeTable::open(storage, loaded).await?)
    }

    /// Creates it where there is none: only where a column's policy says so.
    async fn open_quarantine(&mut self, schema: &TableSchema, limit: QuarantineLimit) -> Result<Quarantine, Problem> {
        let iceberg = schema.quarantine_schema()?;
        let spec = schema.quarantine_partition_spec(&iceberg)?;
        let loaded = self.load_or_create(&schema.mirror.quarantine(), schema, iceberg.clone(), spec).await?;
        check_source(&loaded, &self.committer.source)?;
        check_shape(&loaded, schema, &iceberg)?;
        let Environment { storage, planted, .. } = &self.environment;
        check_foreign(storage, &loaded).await?;
        Quarantine::open(storage, LakeTable::open(storage, loaded).await?, limit, *planted)
    }

    async fn open_mirror(&self, loaded: LoadedTable, schema: &TableSchema, wanted: &Schema) -> Result<Mirror, Problem> {
        check_shape(&loaded, schema, wanted)?;
        check_foreign(&self.environment.storage, &loaded).await?;
        let mut mirror = self.mirror_of(loaded, schema).await?;
        if mirror.table.expected().is_some() {
            mirror.move_index().await?;
        }
        Ok(mirror)
    }

    async fn load_or_create(
        &mut self,
        name: &TableName,
        schema: &TableSchema,
        iceberg: Schema,
        spec: UnboundPartitionSpec,
    ) -> Result<LoadedTable, Problem> {
        let catalog = &self.environment.catalog;
        self.owners.add(name.clone(), Instant::now());
        if let Some(loaded) = catalog.load(name, None).await? {
            catalog.check_owner(name).await?;
            return Ok(loaded);
        }
        catalog.check_name(name)?;
        let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let renamed: BTreeMap<&str, &str> = schema.renamed_columns().collect();
        let renamed = serde_json::to_string(&renamed).expect("names are plain data");
        let properties = HashMap::from([
            text(properties::COLUMNS, &renamed),
            text(properties::SOURCE_TABLE, &schema.source),
            text(properties::SOURCE, &self.committer.source),
            text(properties::FORMAT, &properties::FORMAT_VERSION.to_string()),
            text("write.metadata.previous-versions-max", "10"),
            text("write.parquet.compression-codec", "zstd"),
        ]);
        let creation = TableCreation::builder()
            .name(name.name.clone())
            .schema(iceberg)
            .partition_spec(spec)
            .properties(properties)
            .build();
        info!(table = %name, "table is created");
        catalog.create(name, creation).await
    }

    /// The source's position from which changes are needed: the cut's (protocol C4).
    pub fn resume_position(&self) -> Position {
        self.control.state().cut.as_ref().map_or(Position::START, |cut| cut.position)
    }

    /// The cut from which changes are needed, with its lanes.
    pub fn resume_boundary(&self) -> Boundary {
        self.control.state().cut.as_ref().map(Cut::boundary).unwrap_or_default()
    }

    /// From where the lanes of a table's log are needed: from the cut where it names the table, else from where the table's
    /// own copy began. `None` for a table that has left the cut or is not copied.
    pub fn resume_lanes(&self, source: &str) -> Option<Arc<TableLanes>> {
        let captured = self.tables.get(source).filter(|_| !self.is_out(source))?;
        let own = captured.lake_tables().next().filter(|own| own.expected().is_some())?;
        let cut = self.control.state().cut.as_ref()?;
        let named = captured.lake_tables().all(|table| cut.tables.contains_key(&table.name().to_string()));
        let of_cut = cut.lanes.of(source).filter(|_| named);
        of_cut.or(own.state.lanes.as_ref()).cloned()
    }

    /// The highest position of the cut and of any table. Who numbers boundaries counts on from here: a table that stands
    /// ahead of the cut holds a boundary that will not come again.
    pub fn highest_position(&self) -> Position {
        let tables = self.tables.values().flat_map(CapturedTable::lake_tables).filter_map(LakeTable::expected);
        tables.max().unwrap_or_default().max(self.resume_position())
    }

    /// Whether anybody has changed the pipeline's control table: a worker that took over, or an operator.
    pub async fn look_at_control(&self) -> Result<(), Problem> {
        self.control.look().await
    }

    /// What a person wants applied of a table's quarantine; `None` also where a later copy has made that void. Whether it is
    /// done is for the table's lanes to say.
    pub fn replay_requested(&self, source: &str) -> Option<&QuarantineReplay> {
        let request = self.control.state().replays.get(source)?;
        let history = self.tables.get(source)?.history.as_ref()?;
        let begins = history_begins(&history.table.loaded).ok()??;
        (begins <= request.position).then_some(request)
    }

    /// Rows of a table's quarantine that nothing has replaced; see [`StandingRow`]. What is in the history from `lane` does
    /// not count as newer: it is what an interrupted replay has left there.
    pub async fn standing_in_quarantine(
        &self,
        source: &str,
        lane: &str,
        key_columns: &KeyColumns<'_>,
    ) -> Result<Vec<StandingRow>, Problem> {
        let Some(captured) = self.tables.get(source) else { return Ok(Vec::new()) };
        let (Environment { catalog, storage, .. }, schema) = (&self.environment, &captured.schema);
        let quarantine = catalog.load(&schema.mirror.quarantine(), None).await?;
        let (Some(quarantine), Some(history)) = (quarantine, &captured.history) else { return Ok(Vec::new()) };
        check_source(&quarantine, &self.committer.source)?;
        standing(storage, &quarantine, &history.table.loaded, schema, lane, key_columns).await
    }

    pub fn epoch(&self) -> u64 {
        self.committer.epoch
    }

    /// Columns that a captured table has in the lake, by their names there.
    pub fn columns(&self, source: &str) -> HashSet<String> {
        let tables = self.tables.get(source).into_iter().flat_map(CapturedTable::lake_tables);
        let names = |table: &LakeTable| -> Vec<String> {
            table.schema().as_struct().fields().iter().map(|field| field.name.clone()).collect()
        };
        tables.flat_map(names).collect()
    }

    /// Tables whose copy is not done, and those that are to be copied anew.
    pub fn tables_to_copy(&self) -> Vec<Arc<TableSchema>> {
        let wanted = |(source, captured): &(&String, &CapturedTable)| match self.left.get(*source) {
            Some(left) => left.code == RESYNC_REQUESTED,
            None => captured.mirror.as_ref().is_some_and(|mirror| mirror.table.expected().is_none()),
        };
        self.tables.iter().filter(wanted).map(|(_, captured)| Arc::clone(&captured.schema)).collect()
    }

    /// Why a table has left the cut, if it has.
    pub fn left(&self, source: &str) -> Option<&LeftTable> {
        self.left.get(source)
    }

    /// A table that has left the cut is to be copied anew.
    pub fn resync(&mut self, source: &str) {
        if let Some(left) = self.left.get_mut(source) {
            info!(table = source, code = left.code, reason = left.reason, "table is copied anew");
            left.code = RESYNC_REQUESTED.to_owned();
        }
    }

    /// Hands a table out to be copied; one that has left the cut aside, so that it stays readable as it stands. It comes
    /// back by [`Lakehouse::finish_copy`], or goes by [`Lakehouse::give_up_copy`].
    pub async fn begin_copy(&mut self, source: &str) -> Result<TableCopy, Problem> {
        let captured = self.tables.get_mut(source).expect("only a captured table is asked for");
        let schema = Arc::clone(&captured.schema);
        if schema.history && captured.history.is_none() {
            return Err(resync_impossible(&schema, "its history cannot be opened, and would not go on with it"));
        }
        let mirror = match captured.mirror.take() {
            Some(mirror) => mirror,
            None => self.reopen_mirror(&schema).await?,
        };
        let captured = self.tables.get_mut(source).expect("only a captured table is asked for");
        let quarantine = match (captured.quarantine.take(), schema.quarantine) {
            (None, Some(limit)) => Some(self.open_quarantine(&schema, limit).await?),
            (opened, _) => opened,
        };
        match self.left.contains_key(source) {
            true => TableCopy::begin_aside(
                mirror,
                quarantine,
                schema,
                self.committer.clone(),
                self.environment.rollback_tags,
            ),
            false => TableCopy::begin(mirror, quarantine, schema, self.committer.clone()),
        }
    }

    /// A first copy that an earlier incarnation has begun and that can be gone on with.
    pub fn unfinished_copy(&self, source: &str) -> Option<UnfinishedCopy> {
        let captured = self.tables.get(source).filter(|_| !self.left.contains_key(source))?;
        let state = &captured.mirror.as_ref()?.table.state;
        let progress = state.copy.as_ref().filter(|copy| !copy.done && state.position.is_none())?;
        if captured.quarantine.as_ref().is_some_and(|quarantine| quarantine.is_ahead_of(progress)) {
            return None;
        }
        let (resume, lanes) = (progress.resume.clone()?, state.lanes.clone()?);
        Some(UnfinishedCopy { resume, lanes })
    }

    /// Hands such a table out: what is there stays. See [`Lakehouse::begin_copy`].
    pub fn resume_copy(&mut self, source: &str) -> Result<TableCopy, Problem> {
        let captured = self.tables.get_mut(source).expect("only a captured table is asked for");
        let mirror = captured.mirror.take().expect("an unfinished copy has a mirror");
        let quarantine = captured.quarantine.take();
        TableCopy::resume(mirror, quarantine, Arc::clone(&captured.schema), self.committer.clone())
    }

    /// A table whose rows cannot be taken: a first copy stops as a whole, because nothing streams yet; a table that was to
    /// be copied anew stays outside the cut, and the others go on.
    pub fn give_up_copy(&mut self, source: &str, problem: Problem) -> Result<(), Problem> {
        match (problem.reaction, self.left.get_mut(source)) {
            (Reaction::HaltTable, None) => Err(Problem { reaction: Reaction::Halt, ..problem }),
            (Reaction::HaltTable, Some(left)) => {
                error!(table = source, code = problem.code, reason = problem.message, "table cannot be copied anew");
                (left.code, left.reason) = (problem.code.to_owned(), problem.message);
                Ok(())
            }
            _ => Err(problem),
        }
    }

    pub async fn finish_copy(&mut self, copy: TableCopy, consistent_point: impl Into<Boundary>) -> Result<(), Problem> {
        let (source, resync) = (copy.target().schema().source.clone(), copy.is_resync());
        let reached = consistent_point.into();
        let (mirror, quarantine) = copy.finish(reached.clone()).await?;
        let captured = self.tables.get_mut(&source).expect("begin_copy left it here");
        (captured.mirror, captured.quarantine) = (Some(mirror), quarantine);
        if resync {
            return self.put_in_place(&source, reached).await;
        }
        self.begin_beside_mirrors().await?;
        self.protect();
        self.complete_cut().await
    }

    /// A mirror whose rows do not count any more, only its shape.
    async fn reopen_mirror(&self, schema: &TableSchema) -> Result<Mirror, Problem> {
        if !schema.has_mirror() {
            return Err(resync_impossible(schema, "it has no key, so it has a history only"));
        }
        let wanted = schema.mirror_schema()?;
        let loaded = self.environment.catalog.load(&schema.mirror, None).await?;
        let loaded = loaded.ok_or_else(|| Problem::retry("TABLE_MISSING", &schema.source, "the table is gone"))?;
        check_shape(&loaded, schema, &wanted)?;
        self.mirror_of(loaded, schema).await
    }

    /// With its key index as that was left.
    async fn mirror_of(&self, loaded: LoadedTable, schema: &TableSchema) -> Result<Mirror, Problem> {
        let Environment { storage, local_state, sync_local_state, planted, .. } = &self.environment;
        let table = LakeTable::open(storage, loaded).await?;
        let folder = index_folder(local_state, &schema.mirror);
        Mirror::open(storage, table, schema, &folder, *sync_local_state, *planted)
    }

    /// After a resync: history and quarantine begin anew where the mirror does, and the table is in the cut again once that
    /// has come as far. What happened in between is in no history.
    async fn put_in_place(&mut self, source: &str, reached: Boundary) -> Result<(), Problem> {
        let captured = self.tables.get_mut(source).expect("it has just come back");
        for table in captured.tables_beside_mut() {
            let lanes = reached.lanes.of(source).cloned();
            self.committer.commit(table, beginning(reached.position, lanes)).await?;
        }
        self.left.remove(source);
        self.protect();
        // Where this source alone numbers boundaries, nothing can lie between the last one and this.
        match reached.lanes.is_empty() {
            true => Ok(()),
            false => self.write_cut(reached).await.map(drop),
        }
    }

    /// Writes the cut anew once every table is copied, if it does not name them all: a source where nothing happens any
    /// more would never give a reason for the next one.
    async fn complete_cut(&mut self) -> Result<(), Problem> {
        match self.incomplete_cut() {
            Some(boundary) => self.write_cut(boundary).await.map(drop),
            None => Ok(()),
        }
    }

    /// Where the cut stands, if all tables are copied and it does not name each of them.
    fn incomplete_cut(&self) -> Option<Boundary> {
        let cut = self.control.state().cut.as_ref()?;
        let mut named = true;
        for (source, captured) in &self.tables {
            for table in captured.expected_tables().filter(|_| !self.left.contains_key(source)) {
                let table = table.filter(|table| table.expected().is_some())?;
                named &= cut.tables.contains_key(&table.name().to_string());
            }
        }
        (!named).then(|| cut.boundary())
    }

    /// A table leaves the cut where it stands; the others go on (protocol C8).
    pub fn leave(&mut self, source: &str, position: Position, code: &str, reason: String) {
        error!(table = source, code, reason, position = %position, "table is halted and leaves the cut");
        let left = LeftTable::new(position, code, reason);
        // Its history went on while a rollback held it, and does not any more.
        self.left.retain(|known, left| known != source || !left.is_held());
        self.left.entry(source.to_owned()).or_insert(left);
    }

    /// Writes the cut anew if tables have left it that it does not say so of: a source that is silent would never give a
    /// reason for the next one.
    pub async fn mark_left(&mut self) -> Result<(), Problem> {
        match &self.control.state().cut {
            Some(cut) if cut.left != self.left => self.write_cut(cut.boundary()).await.map(drop),
            _ => Ok(()),
        }
    }

    /// A table that has left for this code comes back where it stands, for a source that brings what it has missed; why it
    /// had left.
    pub fn rejoin(&mut self, source: &str, code: &str) -> Option<String> {
        let left = self.left.get(source).filter(|left| left.code == code)?.reason.clone();
        self.left.remove(source);
        Some(left)
    }

    /// A history and a quarantine begin where their mirror's copy ends; without a mirror, where the pipeline does.
    async fn begin_beside_mirrors(&mut self) -> Result<(), Problem> {
        let start = self.resume_boundary();
        for captured in self.tables.values_mut() {
            let begin = match &captured.mirror {
                Some(mirror) => mirror.table.expected().map(|position| (position, mirror.table.state.lanes.clone())),
                None if captured.schema.has_mirror() => None,
                None => Some((start.position, start.lanes.of(&captured.schema.source).cloned())),
            };
            let Some((begin, lanes)) = begin else { continue };
            for table in captured.tables_beside_mut().filter(|table| table.expected().is_none()) {
                self.committer.commit(table, beginning(begin, lanes.clone())).await?;
            }
        }
        Ok(())
    }

    /// Writes the files of a batch, or of a part of one. What a table has is skipped (protocol A2).
    pub async fn write(&mut self, batch: Batch) -> Result<Written, Problem> {
        let boundary = batch.boundary().cloned();
        for HaltedTable { table, position, code, reason } in batch.halted {
            let position = self.tables.get(&table).and_then(CapturedTable::expected).unwrap_or(position);
            self.leave(&table, position, code, reason);
        }
        let mut work = Vec::new();
        for (source, chunks) in batch.tables {
            self.note_missed(&source);
            if self.is_out(&source) {
                continue;
            }
            if let Some(captured) = self.tables.remove(&source) {
                work.push((source, captured, chunks));
            }
        }
        let no_skip = self.environment.planted.is(Bug::NoSkip);
        let written = stream::iter(work).map(|(source, mut captured, chunks)| async move {
            let task = tokio::task::spawn_blocking(move || {
                let result = captured.write_part(chunks, no_skip);
                (source, captured, result)
            });
            task.await.map_err(|_| Problem::retry("INTERRUPTED", "", "writing was interrupted"))
        });
        let written: Vec<_> = written.buffer_unordered(self.environment.tables_at_once).try_collect().await?;
        self.take_back(written)?;
        Ok(match boundary {
            Some(to) => Written::Batch(WrittenBatch { to }),
            None => Written::Part,
        })
    }

    fn take_back(&mut self, done: Vec<(String, CapturedTable, Result<(), Problem>)>) -> Result<(), Problem> {
        let mut failure = None;
        for (source, mut captured, result) in done {
            let position = captured.expected().unwrap_or(self.resume_position());
            if let (Err(problem), Some(mirror)) = (&result, &mut captured.mirror)
                && problem.code == "INDEX_DAMAGED"
            {
                mirror.distrust_index();
            }
            self.tables.insert(source.clone(), captured);
            match result {
                Ok(()) => {}
                Err(problem) if problem.reaction == Reaction::HaltTable => {
                    self.leave(&source, position, problem.code, problem.message);
                }
                Err(problem) => failure = Some(problem),
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Commits every table of the batch, then the cut (protocol B3, C1). `None`: some table stands ahead of the boundary,
    /// so there is no cut yet and nothing to acknowledge (protocol A3).
    pub async fn commit(&mut self, written: WrittenBatch) -> Result<Option<DurablePosition>, Problem> {
        let WrittenBatch { to } = written;
        let tables = std::mem::take(&mut self.tables);
        let (committer, reached) = (&self.committer, &to);
        let (idle, busy): (Vec<_>, Vec<_>) = tables.into_iter().partition(|(source, _)| self.is_out(source));
        let done = stream::iter(busy).map(|(source, mut captured)| async move {
            let result = captured.commit(committer, reached).await;
            (source, captured, result)
        });
        let done: Vec<_> = done.buffer_unordered(self.environment.tables_at_once).collect().await;
        self.tables.extend(idle);
        self.take_back(done)?;
        let durable = self.write_cut(to).await?;
        self.owners.look(self.environment.catalog.as_ref(), Instant::now()).await;
        Ok(durable)
    }

    async fn write_cut(&mut self, to: Boundary) -> Result<Option<DurablePosition>, Problem> {
        // A source that has forgotten what was acknowledged sends it again; the cut does not go back with it.
        if to.position < self.resume_position() {
            return Ok(None);
        }
        let mut tables = BTreeMap::new();
        for (source, captured) in &self.tables {
            if self.is_out(source) {
                continue;
            }
            for table in captured.lake_tables() {
                let Some(expected) = table.expected() else { continue };
                let (ours, theirs) = (to.lanes.of(source), table.state.lanes.as_ref());
                let covered = theirs.is_none_or(|theirs| ours.is_some_and(|ours| ours.cover(theirs)));
                if expected > to.position || !covered {
                    return Ok(None);
                }
                let id = table.loaded.snapshot_id().expect("a table with a position has a snapshot");
                tables.insert(table.name().to_string(), id.to_string());
            }
        }
        let cut = Cut {
            source: self.committer.source.clone(),
            position: to.position,
            read_until: to.lanes.read_until(),
            lanes: to.lanes,
            epoch: self.committer.epoch,
            committed_at: chrono::Utc::now().timestamp_millis(),
            tables,
            left: self.left.clone(),
        };
        let durable = self.control.write_cut(cut).await?;
        self.protect();
        Ok(Some(durable))
    }

    /// Snapshots that the latest cut names stay (protocol C6).
    fn protect(&mut self) {
        let Some(cut) = &self.control.state().cut else { return };
        for captured in self.tables.values_mut() {
            for table in captured.lake_tables_mut() {
                let named = cut.tables.get(&table.name().to_string()).and_then(|id| id.parse().ok());
                table.protected = named.into_iter().collect();
            }
        }
    }
}

/// Protocol D, before anything is written: an open rollback is brought to its end first (E7), and a paused pipeline stands
/// still.
async fn stand_aside(environment: &Environment, control: &mut Control) -> Result<(), Problem> {
    let Environment { catalog, storage, give_way, planted, .. } = environment.clone();
    rollback::run(control, &Maintainer { catalog, storage, give_way, planted }).await?;
    match &control.state().paused {
        None => Ok(()),
        Some(why) => Err(Problem::retry("PAUSED", &control.table().name.name, format!("it is paused: {why}"))),
    }
}

/// The first commit of a history or a quarantine, without changes.
fn beginning(position: Position, lanes: Option<Arc<TableLanes>>) -> TableCommit {
    let progress = CopyProgress { attempt: position.to_string(), chunks: 0, done: true, resume: None };
    let advance = Advance::Copy { progress, position: Some(position) };
    TableCommit { lanes, ..TableCommit::new(FileChange::default(), advance, Counts::default()) }
}

/// Protocol D, before anything is written: all that is there belongs to this source, in a format that is known here.
async fn check_sources(
    catalog: &dyn Catalog,
    control: &Control,
    source: &str,
    schemas: &[Arc<TableSchema>],
) -> Result<(), Problem> {
    if let Some(cut) = control.state().cut.as_ref().filter(|cut| cut.source != source) {
        return Err(other_source(&control.table().name, &cut.source, source));
    }
    for schema in schemas {
        let mirror = schema.has_mirror().then(|| schema.mirror.clone());
        let history = (schema.history || !schema.has_mirror()).then(|| schema.mirror.history());
        let quarantine = schema.quarantine.map(|_| schema.mirror.quarantine());
        for name in mirror.into_iter().chain(history).chain(quarantine) {
            if let Some(loaded) = catalog.load(&name, None).await? {
                check_source(&loaded, source)?;
            }
        }
    }
    Ok(())
}

/// A table that holds another source's rows is not touched (protocol D, IDENTITY).
fn check_source(loaded: &LoadedTable, source: &str) -> Result<(), Problem> {
    match TableState::of(loaded)?.source {
        Some(other) if other != source => Err(other_source(&loaded.name, &other, source)),
        _ => Ok(()),
    }
}

/// A table whose columns or key changed at the source while nobody looked leaves the cut: no change said so.
fn check_shape(loaded: &LoadedTable, schema: &TableSchema, wanted: &Schema) -> Result<(), Problem> {
    let conflict = schema.conflict_with(loaded.metadata.current_schema(), wanted);
    conflict.map_or(Ok(()), |conflict| Err(schema_changed(schema, conflict)))
}

fn schema_changed(schema: &TableSchema, reason: String) -> Problem {
    Problem::halt_table("SCHEMA_CHANGED", &schema.source, reason, "resync the table")
}

fn resync_impossible(schema: &TableSchema, why: &str) -> Problem {
    let remedy = "copy it under another name: a pipeline of its own, or `name` in the table's configuration";
    Problem::halt_table("RESYNC_IMPOSSIBLE", &schema.source, format!("the table cannot be copied anew: {why}"), remedy)
}

fn other_source(table: &TableName, found: &str, ours: &str) -> Problem {
    let message = format!("the table holds rows of another source: {found}, not {ours}");
    let remedy = "point the pipeline at its own source, or give it another namespace";
    Problem::halt("IDENTITY", table.to_string(), message, remedy)
}

impl CapturedTable {
    /// The lowest position of its tables.
    fn expected(&self) -> Option<Position> {
        self.lake_tables().map(|table| table.expected()).min().flatten()
    }

    /// The tables that it has when it is whole; `None` for a mirror that is being copied.
    fn expected_tables(&self) -> impl Iterator<Item = Option<&LakeTable>> {
        let mirror = self.schema.has_mirror().then(|| self.mirror.as_ref().map(|mirror| &mirror.table));
        let history = self.history.as_ref().map(|history| Some(&history.table));
        let quarantine = self.quarantine.as_ref().map(|quarantine| Some(&quarantine.table));
        mirror.into_iter().chain(history).chain(quarantine)
    }

    fn lake_tables(&self) -> impl Iterator<Item = &LakeTable> {
        let history = self.history.as_ref().map(|history| &history.table);
        let quarantine = self.quarantine.as_ref().map(|quarantine| &quarantine.table);
        self.mirror.as_ref().map(|mirror| &mirror.table).into_iter().chain(history).chain(quarantine)
    }

    fn lake_tables_mut(&mut self) -> impl Iterator<Item = &mut LakeTable> {
        let history = self.history.as_mut().map(|history| &mut history.table);
        let quarantine = self.quarantine.as_mut().map(|quarantine| &mut quarantine.table);
        self.mirror.as_mut().map(|mirror| &mut mirror.table).into_iter().chain(history).chain(quarantine)
    }

    /// All but the mirror.
    fn tables_beside_mut(&mut self) -> impl Iterator<Item = &mut LakeTable> {
        let history = self.history.as_mut().map(|history| &mut history.table);
        history.into_iter().chain(self.quarantine.as_mut().map(|quarantine| &mut quarantine.table))
    }

    /// First what is for the quarantine. Then mirror and history in parallel, behind the values that only the mirror can
    /// fill in.
    fn write_part(&mut self, chunks: Vec<ChangeChunk>, no_skip: bool) -> Result<(), Problem> {
        let new = |chunks: &[ChangeChunk], reached: &TableState| -> Vec<ChangeChunk> {
            let chunks = chunks.iter().cloned();
            match no_skip {
                true => chunks.collect(),
                false => chunks.filter_map(|chunk| chunk.after(reached)).collect(),
            }
        };
        match &mut self.quarantine {
            Some(quarantine) => quarantine.write_part(&new(&chunks, &quarantine.table.state))?,
            None if chunks.iter().any(|chunk| !chunk.quarantined.is_empty()) => {
                let message = "changes came for a quarantine that the table has not";
                let remedy = "resync the table; report this";
                return Err(Problem::halt_table("ROW_INVALID", &self.schema.source, message, remedy));
            }
            None => {}
        }
        let Some(mirror) = &mut self.mirror else {
            let Some(history) = &mut self.history else {
                return Ok(());
            };
            // Held: what the source has left out stands in no row that we could trust.
            if self.schema.has_mirror() && chunks.iter().any(|chunk| !chunk.unchanged.is_empty()) {
                let message = "an update left out an unchanged value while a rollback held the mirror that has it";
                let remedy = "resync the table, or set REPLICA IDENTITY FULL at the source before a rollback";
                return Err(Problem::halt_table("UNCHANGED_UNRESOLVED", &self.schema.source, message, remedy));
            }
            return history.write_part(&new(&chunks, &history.table.state));
        };
        // A history and a quarantine are committed before their mirror, so they are never behind: they need no value that
        // the mirror lacks.
        let mut chunks = new(&chunks, &mirror.table.state);
        mirror.prepare(&mut chunks)?;
        let Some(history) = &mut self.history else {
            return mirror.write_part(&chunks);
        };
        let ahead = history.table.state.clone();
        std::thread::scope(|scope| {
            let beside = scope.spawn(|| history.write_part(&new(&chunks, &ahead)));
            let mirrored = mirror.write_part(&chunks);
            let recorded = beside.join().unwrap_or_else(|_| Err(Problem::retry("INTERRUPTED", "", "writing panicked")));
            mirrored.and(recorded)
        })
    }

    async fn commit(&mut self, committer: &Committer, to: &Boundary) -> Result<(), Problem> {
        let reached = to.lanes.of(&self.schema.source);
        // A table that stands ahead of the cut keeps what it has read beyond this batch.
        let lanes = |table: &LakeTable| -> Option<Arc<TableLanes>> {
            match (reached, &table.state.lanes) {
                (Some(reached), Some(own)) if !reached.cover(own) => Some(Arc::new(reached.join(own))),
                _ => reached.cloned(),
            }
        };
        // First of all where the row stands that the others go without (Q2).
        if let Some(quarantine) = &mut self.quarantine
            && let Some(commit) = quarantine.finish(to.position)?
        {
            let commit = TableCommit { lanes: lanes(&quarantine.table), ..commit };
            committer.commit(&mut quarantine.table, commit).await?;
        }
        if let Some(history) = &mut self.history
            && let Some(commit) = history.finish(to.position)
        {
            let commit = TableCommit { lanes: lanes(&history.table), ..commit };
            committer.commit(&mut history.table, commit).await?;
        }
        let Some(mirror) = &mut self.mirror else { return Ok(()) };
        if let Some(commit) = tokio::task::block_in_place(|| mirror.finish(to.position))? {
            let commit = TableCommit { lanes: lanes(&mirror.table), ..commit };
            let change = commit.change.clone();
            let landed = committer.commit(&mut mirror.table, commit).await?;
            tokio::task::block_in_place(|| mirror.landed(&landed, &change))?;
        }
        Ok(())
    }
}
