//! What a source says while nobody can take it: kept on disk, in order, and said again. So a log that forgets after a day is
//! read while a copy takes longer (D10); memory stays bounded, and the log's readers do not know.
//!
//! The file outlives its process, until a cut holds all of it: a copy that goes on after a crash, and a spool that is being
//! said again when one comes, need what the log has forgotten meanwhile. Whoever opens it anew says for each table where
//! that stands ([`KeptSpool::follows`]); a table that begins anew begins anew here too ([`Kind::Begin`]). As all local
//! state it may be deleted: then only the log itself is left, and what it lacks is a gap or a copy that begins anew.

mod columns;
mod frames;

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow_schema::ArrowError;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::change::ChangeChunk;
use crate::commit::DurablePosition;
use crate::error::Problem;
use crate::lanes::{Lanes, TableLanes};
use crate::position::{Boundary, Position};
use crate::schema::TableSchema;
use crate::source::{ChangeSource, SourceEvent};
use crate::storage::file_problem;

use columns::{shape, shape_of, to_bytes};
use frames::{Frames, Kind, frame_bytes};

/// Bytes between two boundaries that are kept: each holds all lanes, and a batch may end at any.
const BOUNDARY_BYTES: u64 = 8 << 20;

/// A source whose events wait on disk while something else must be done first.
pub struct Spooled<S> {
    source: S,
    spool: Option<Reading>,
    /// All of it has been said: the file, and the position whose cut ends its life.
    said: Mutex<Option<(PathBuf, Position)>>,
}

/// A spool that an earlier process has left, as far as it is whole.
#[derive(Debug)]
pub struct KeptSpool {
    path: PathBuf,
    /// Where the last boundary in it ends.
    end: u64,
    position: Position,
    tables: BTreeMap<String, KeptTable>,
}

#[derive(Debug)]
struct KeptTable {
    /// What is said of it behind this place counts.
    from: u64,
    /// How far its log had been read there, and at the end.
    begun: TableLanes,
    reached: TableLanes,
    /// Its changes have columns that are not those of its schema any more.
    other_columns: bool,
}

/// Where the log of each table is followed from, in the frame of that name.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Begin {
    lanes: Lanes,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bound {
    position: u64,
    lanes: Lanes,
}

/// How a spool is written.
#[derive(Clone, Copy, Debug)]
pub struct SpoolSettings<'a> {
    pub folder: &'a Path,
    /// After so long a boundary is kept, however little there is before it: what a crash forgets is read again from the log,
    /// which must still have it.
    pub boundary: Duration,
}

/// A spool that grows.
struct Writing {
    path: PathBuf,
    file: File,
    bytes: u64,
    boundary: Duration,
    /// Bytes up to the last boundary in the file, and when it was written.
    bounded: u64,
    bounded_at: Instant,
    /// The last boundary, while it is not worth to be kept.
    pending: Option<Boundary>,
    position: Position,
    known: Known,
}

/// A spool that is said again.
struct Reading {
    path: PathBuf,
    frames: Frames,
    position: Position,
    known: Known,
}

/// What the process knows of the events in the file.
#[derive(Default)]
struct Known {
    /// By the table's name at the source, and by its columns.
    schemas: BTreeMap<(String, String), Arc<TableSchema>>,
    /// Tables that have left, in order.
    halted: VecDeque<SourceEvent>,
    /// Where what an earlier process has written ends.
    kept: u64,
    /// Of that, what counts: from where on, and what the table has read in any case.
    tables: BTreeMap<String, (u64, Arc<TableLanes>)>,
}

impl<S: ChangeSource> Spooled<S> {
    pub fn new(source: S) -> Self {
        Self { source, spool: None, said: Mutex::default() }
    }

    /// First says what is kept, of the tables that go on with it: `own` is what each has read already.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn resume(
        source: S,
        kept: KeptSpool,
        own: BTreeMap<String, Arc<TableLanes>>,
        schemas: &[Arc<TableSchema>],
    ) -> Result<Self, Problem> {
        let KeptSpool { path, end, position, tables } = kept;
        let from = |(table, own): (String, Arc<TableLanes>)| Some((table.clone(), (tables.get(&table)?.from, own)));
        let mut known = Known { kept: end, tables: own.into_iter().filter_map(from).collect(), ..Known::default() };
        schemas.iter().for_each(|schema| known.know(schema));
        let spool = Reading::open(path, position, known)?;
        Ok(Self { spool: Some(spool), ..Self::new(source) })
    }

    /// The source itself, which is ahead of what is kept.
    pub fn source(&mut self) -> &mut S {
        &mut self.source
    }

    /// Does `work`, and keeps what the source says meanwhile behind what is kept already. `begun` is where the logs of tables
    /// are followed from that do not go on with that.
    ///
    /// # Errors
    /// Those of `work`, of the source, and of the disk.
    pub async fn during<T>(
        &mut self,
        settings: SpoolSettings<'_>,
        begun: Lanes,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let mut spool = tokio::task::block_in_place(|| match self.spool.take() {
            Some(kept) => Writing::append_to(kept, settings, begun),
            None => Writing::create(settings, begun),
        })?;
        let mut work = pin!(work);
        let done = loop {
            // Both arms may be dropped: a source's next is cancel-safe.
            tokio::select! {
                biased;
                done = &mut work => break done?,
                event = self.source.next() => tokio::task::block_in_place(|| spool.append(event?))?,
            }
        };
        info!(bytes = spool.bytes, "what the source said meanwhile is taken up");
        self.spool = Some(tokio::task::block_in_place(|| spool.finish())?);
        Ok(done)
    }
}

impl<S: ChangeSource> ChangeSource for Spooled<S> {
    async fn next(&mut self) -> Result<SourceEvent, Problem> {
        if let Some(spool) = &mut self.spool {
            if let Some(event) = tokio::task::block_in_place(|| spool.next())? {
                return Ok(event);
            }
            let said = self.spool.take().map(|spool| (spool.path, spool.position));
            *self.said.get_mut().unwrap_or_else(PoisonError::into_inner) = said;
        }
        self.source.next().await
    }

    fn acknowledge(&self, durable: &DurablePosition) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((path, _)) = said.take_if(|(_, position)| *position <= durable.get()) {
            remove(&path);
        }
        drop(said);
        self.source.acknowledge(durable);
    }
}

/// What stays is found, and found to be of no use, by the next start.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        warn!(file = %path.display(), %error, "the spool of a copy cannot be removed");
    }
}

fn file_in(folder: &Path) -> PathBuf {
    folder.join("changes.spool")
}

impl KeptSpool {
    /// What is there, of these tables; what a crash has torn is cut off. `None` where there is nothing whole.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn open(folder: &Path, schemas: &[Arc<TableSchema>]) -> Result<Option<Self>, Problem> {
        let path = file_in(folder);
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(spool_problem("opened", error.into())),
        };
        let failed = |error: io::Error| spool_problem("read", error.into());
        let mut kept = Self { path, end: 0, position: Position::START, tables: BTreeMap::new() };
        let frames = file.try_clone().and_then(Frames::open).map_err(failed)?;
        if let Some(mut frames) = frames {
            let schemas: BTreeMap<&str, String> =
                schemas.iter().map(|schema| (schema.source.as_str(), shape_of(schema))).collect();
            loop {
                match kept.take(&mut frames, &schemas) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        warn!(bytes = kept.end, %error, "the spool of a copy ends torn, what stands behind its last boundary is cut off");
                        break;
                    }
                    Err(error) => return Err(failed(error)),
                }
            }
        }
        if kept.end == 0 {
            kept.discard();
            return Ok(None);
        }
        file.set_len(kept.end).map_err(failed)?;
        Ok(Some(kept))
    }

    /// Takes in one frame. False at the end of the file; `InvalidData` at the end of what is whole.
    fn take(&mut self, frames: &mut Frames, schemas: &BTreeMap<&str, String>) -> io::Result<bool> {
        let at = frames.at();
        let Some((kind, payload)) = frames.next()? else { return Ok(false) };
        let end = at + frame_bytes(payload);
        match kind {
            Kind::Begin => {
                let Begin { lanes } = serde_json::from_slice(payload).map_err(unknown)?;
                for (table, lanes) in lanes.tables() {
                    let (begun, reached) = (TableLanes::clone(lanes), TableLanes::clone(lanes));
                    let kept = KeptTable { from: at, begun, reached, other_columns: false };
                    self.tables.insert(table.to_owned(), kept);
                }
                // It stands at the file's begin, or behind a boundary.
                self.end = end;
            }
            Kind::Changes => {
                let (shape, _) = shape(payload).map_err(unknown)?;
                if let Some(kept) = self.tables.get_mut(&shape.table) {
                    kept.other_columns |= schemas.get(shape.table.as_str()) != Some(&shape.columns);
                }
            }
            Kind::Boundary => {
                let Bound { position, lanes } = serde_json::from_slice(payload).map_err(unknown)?;
                for (table, lanes) in lanes.tables() {
                    if let Some(kept) = self.tables.get_mut(table) {
                        kept.reached = TableLanes::clone(lanes);
                    }
                }
                (self.position, self.end) = (Position::new(position), end);
            }
            Kind::Halted => {}
        }
        Ok(true)
    }

    /// The position of the last boundary.
    pub fn position(&self) -> Position {
        self.position
    }

    /// From where the log of a table is followed if it goes on with what is kept, having read `own` itself; `None` where
    /// something between the two could be missing.
    pub fn follows(&self, table: &str, own: &TableLanes) -> Option<TableLanes> {
        let kept = self.tables.get(table).filter(|kept| !kept.other_columns && own.cover(&kept.begun))?;
        Some(kept.reached.join(own))
    }

    /// True if these tables, by what each has read itself, have all of it.
    pub fn is_said(&self, own: &BTreeMap<String, Arc<TableLanes>>) -> bool {
        own.iter().all(|(table, own)| self.tables.get(table).is_none_or(|kept| own.cover(&kept.reached)))
    }

    /// Of no use to anybody.
    pub fn discard(self) {
        remove(&self.path);
    }
}

impl Writing {
    fn create(settings: SpoolSettings<'_>, begun: Lanes) -> Result<Self, Problem> {
        let path = file_in(settings.folder);
        let opened = fs::create_dir_all(settings.folder).and_then(|()| {
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
            let bytes = frames::begin(&file)?;
            Ok((file, bytes))
        });
        let (file, bytes) =
            opened.map_err(|error| file_problem(&settings.folder.display().to_string(), "written", &error))?;
        Self::begin(path, file, bytes, Position::START, Known::default(), settings, begun)
    }

    /// Goes on behind what an earlier process has left.
    fn append_to(kept: Reading, settings: SpoolSettings<'_>, begun: Lanes) -> Result<Self, Problem> {
        let Reading { path, position, known, .. } = kept;
        let file = File::options().read(true).append(true).open(&path);
        let file = file.map_err(|error| spool_problem("written", error.into()))?;
        let bytes = known.kept;
        Self::begin(path, file, bytes, position, known, settings, begun)
    }

    fn begin(
        path: PathBuf,
        file: File,
        bytes: u64,
        position: Position,
        known: Known,
        settings: SpoolSettings<'_>,
        begun: Lanes,
    ) -> Result<Self, Problem> {
        let (boundary, bounded_at) = (settings.boundary, Instant::now());
        let mut spool =
            Self { path, file, bytes, boundary, bounded: bytes, bounded_at, pending: None, position, known };
        if !begun.is_empty() || spool.known.kept == 0 {
            let begin = serde_json::to_vec(&Begin { lanes: begun }).expect("lanes are plain data");
            spool.write(Kind::Begin, &begin)?;
            // Before anything is committed that relies on it: what stands before it must not be taken for these tables'.
            spool.file.sync_data().map_err(|error| spool_problem("written", error.into()))?;
        }
        Ok(spool)
    }

    fn write(&mut self, kind: Kind, payload: &[u8]) -> Result<(), Problem> {
        let written = frames::append(&self.file, kind, payload);
        self.bytes += written.map_err(|error| spool_problem("written", error.into()))?;
        Ok(())
    }

    fn append(&mut self, event: SourceEvent) -> Result<(), Problem> {
        let chunk = match event {
            SourceEvent::Changes(chunk) => chunk,
            SourceEvent::Boundary(boundary) => {
                self.pending = Some(boundary);
                return self.bound(self.bounded_at.elapsed() >= self.boundary);
            }
            SourceEvent::TableHalted { .. } | SourceEvent::End => {
                self.bound(true)?;
                self.known.halted.push_back(event);
                return self.write(Kind::Halted, &[]);
            }
        };
        // A boundary with little before it is as good as none once something follows.
        self.bound(self.bytes - self.bounded >= BOUNDARY_BYTES)?;
        self.pending = None;
        self.known.know(&chunk.schema);
        let bytes = to_bytes(&chunk).map_err(|error| spool_problem("written", error))?;
        self.write(Kind::Changes, &bytes)
    }

    /// Writes the last boundary, if it is `due`.
    fn bound(&mut self, due: bool) -> Result<(), Problem> {
        let Some(boundary) = self.pending.take_if(|_| due) else { return Ok(()) };
        let Boundary { position, lanes } = boundary;
        let bound = serde_json::to_vec(&Bound { position: position.offset(), lanes }).expect("lanes are plain data");
        self.write(Kind::Boundary, &bound)?;
        self.file.sync_data().map_err(|error| spool_problem("written", error.into()))?;
        (self.bounded, self.bounded_at, self.position) = (self.bytes, Instant::now(), position);
        Ok(())
    }

    fn finish(mut self) -> Result<Reading, Problem> {
        self.bound(true)?;
        Reading::open(self.path, self.position, self.known)
    }
}

impl Reading {
    fn open(path: PathBuf, position: Position, known: Known) -> Result<Self, Problem> {
        let frames = File::open(&path).and_then(Frames::open);
        let frames = frames.map_err(|error| spool_problem("read", error.into()))?;
        let frames = frames.ok_or_else(|| spool_problem("read", ArrowError::IpcError("it has no begin".to_owned())))?;
        Ok(Self { path, frames, position, known })
    }

    fn next(&mut self) -> Result<Option<SourceEvent>, Problem> {
        let Self { frames, known, .. } = self;
        loop {
            let at = frames.at();
            let frame = frames.next().map_err(|error| spool_problem("read", error.into()))?;
            let Some((kind, payload)) = frame else { return Ok(None) };
            let event = match kind {
                Kind::Begin => None,
                Kind::Changes => {
                    let chunk = known.chunk(at, payload).map_err(|error| spool_problem("read", error))?;
                    chunk.map(SourceEvent::Changes)
                }
                Kind::Boundary => {
                    let bound = serde_json::from_slice(payload).map_err(unknown);
                    let Bound { position, lanes } = bound.map_err(|error| spool_problem("read", error.into()))?;
                    let lanes = known.lanes(at, lanes);
                    Some(SourceEvent::Boundary(Boundary { position: Position::new(position), lanes }))
                }
                // Whoever follows the table after a crash finds out for himself.
                Kind::Halted if at < known.kept => None,
                Kind::Halted => known.halted.pop_front(),
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }
}

impl Known {
    fn know(&mut self, schema: &Arc<TableSchema>) {
        let columns = (schema.source.clone(), shape_of(schema));
        self.schemas.entry(columns).or_insert_with(|| Arc::clone(schema));
    }

    /// Whether what is said of a table at this place counts.
    fn counts(&self, at: u64, table: &str) -> bool {
        at >= self.kept || self.tables.get(table).is_some_and(|(from, _)| at >= *from)
    }

    fn chunk(&self, at: u64, payload: &[u8]) -> Result<Option<ChangeChunk>, ArrowError> {
        let (shape, columns) = shape(payload)?;
        if !self.counts(at, &shape.table) {
            return Ok(None);
        }
        let schema = self.schemas.get(&(shape.table.clone(), shape.columns.clone()));
        let unknown = || ArrowError::IpcError("changes of a table with other columns".to_owned());
        let schema = Arc::clone(schema.ok_or_else(unknown)?);
        shape.chunk(columns, schema).map(Some)
    }

    /// What a boundary says of tables whose changes before it count. What such a table has read itself has been read there
    /// too: a cut does not go back.
    fn lanes(&self, at: u64, lanes: Lanes) -> Lanes {
        if at >= self.kept {
            return lanes;
        }
        let read = |(table, lanes): (&str, &Arc<TableLanes>)| {
            let (from, own) = self.tables.get(table)?;
            (at >= *from).then(|| (table.to_owned(), Arc::new(lanes.join(own))))
        };
        lanes.tables().filter_map(read).collect()
    }
}

/// What is whole and says nothing that this binary knows.
fn unknown(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn spool_problem(verb: &str, error: ArrowError) -> Problem {
    match error {
        ArrowError::IoError(_, error) => file_problem("the spool of a copy", verb, &error),
        other => Problem::retry("STORAGE", "the spool of a copy", format!("cannot be {verb}: {other}")),
    }
}

#[cfg(test)]
mod tests;
