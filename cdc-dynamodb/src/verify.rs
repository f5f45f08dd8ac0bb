//! `verify`: the table's items against the mirror's rows.
//!
//! A table cannot be read as of a moment. So it is scanned once, into a file, between two cuts that have read the stream to
//! its tip; keys that changed between those cuts, as the history knows them, are left out and looked at again one by one,
//! in the same way, until each has been seen at rest. A key that was not compared is never called equal.
//!
//! Nor is one called different for what may still be on its way. What a cut says of time is as good as the last listings of
//! shards (`tips.rs`), and two machines' clocks. So whatever differs is looked at once more, as much later as a listing may
//! lag, and counts if it differs then.
//!
//! An item that its columns' policies send to the quarantine has no row on either side. It is counted by itself, and its key
//! must stand in the quarantine, whose rows never go: one that does not is missing in the lake.

use std::collections::{HashMap, HashSet};
use std::io::{BufReader, BufWriter};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array as _, RecordBatch};
use arrow_cast::display::array_value_to_string;
use arrow_ipc::reader::FileReader;
use arrow_ipc::writer::FileWriter;
use arrow_schema::{Field, Schema as ArrowSchema, SchemaRef as ArrowSchemaRef};
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes};
use futures::future::BoxFuture;
use futures::{StreamExt as _, TryStreamExt as _};
use lakehouse_core::aws::pause;
use lakehouse_core::commit::Cut;
use lakehouse_core::compare::{Comparison, Limits, RowStream, Side, TableComparison, compare, table_rows};
use lakehouse_core::error::Problem;
use lakehouse_core::fold::{Fold, Range};
use lakehouse_core::key_index::KeyHash;
use lakehouse_core::lakehouse::Environment;
use lakehouse_core::position::Position;
use lakehouse_core::read::{Projection, TableReader};
use lakehouse_core::schema::{KEY, Key};
use lakehouse_core::verify::{
    TableVerdict, VerifyOptions, VerifyReport, against_history, load, project, stream_of, wait_for_cut,
};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::budget::Budget;
use crate::client::{Clients, Trouble, problem, trouble};
use crate::config::DynamodbSource;
use crate::copy::{Part, RawItem, scan};
use crate::infer;
use crate::items::{ItemError, ItemSchema, KeyType};
use crate::table::SourceTable;
use crate::value::Item;

/// Looks at keys that keep changing before `verify` gives up on them.
const LOOKS: usize = 8;
/// Items of one BatchGetItem.
const KEYS_AT_ONCE: usize = 100;
/// Rows of a batch in the file.
const ROWS_AT_ONCE: usize = 8_192;
/// Attempts of one call.
const ATTEMPTS: u32 = 20;
/// Tables that are compared at the same time.
const TABLES_AT_ONCE: usize = 4;

/// Compares; reads both sides and writes nothing to either.
pub async fn verify(
    source: &DynamodbSource,
    environment: Environment,
    options: VerifyOptions,
) -> Result<VerifyReport, Problem> {
    if let Some(position) = options.cut {
        return against_history(&environment, &source.pipeline, &options, position).await;
    }
    let clients = Clients::connect(source).await;
    let mut tables = Vec::new();
    for name in &source.tables {
        let table = SourceTable::describe(&clients, name).await?;
        let items = infer::items(source, &clients, &table, environment.catalog.as_ref()).await?;
        if options.wants(&items.table().mirror) {
            tables.push(Verified {
                source,
                environment: &environment,
                clients: &clients,
                table,
                items,
                options: &options,
            });
        }
    }
    // Most of the time is spent waiting for a cut, which is the same for all.
    // Gathered first: nobody could send a stream that still has to call `compare` to another thread.
    let comparisons: Vec<_> = tables.iter().map(Verified::compare).collect();
    let found: Vec<Found> = futures::stream::iter(comparisons).buffered(TABLES_AT_ONCE).try_collect().await?;
    let reached = found.iter().map(|found| found.position).max().unwrap_or(Position::START);
    let verdict = |(table, found): (&Verified<'_>, Found)| TableVerdict {
        quarantined: table.items.table().quarantine.map(|_| found.quarantined),
        ..TableVerdict::new(table.items.table().mirror.to_string(), found.comparison)
    };
    let verdicts = tables.iter().zip(found).map(verdict).collect();
    Ok(VerifyReport::new(reached, "source", verdicts))
}

/// One table being compared.
struct Verified<'a> {
    source: &'a DynamodbSource,
    environment: &'a Environment,
    clients: &'a Clients,
    table: SourceTable,
    items: ItemSchema,
    options: &'a VerifyOptions,
}

/// What the comparison of a table comes to.
struct Found {
    comparison: TableComparison,
    position: Position,
    /// Items of the source that are in the quarantine and nowhere else, as they were looked at last.
    quarantined: u64,
}

/// The mirror at a cut, and which keys have changed since an earlier one.
struct MirrorState {
    cut: Cut,
    reader: Arc<TableReader>,
    /// `None` without a history.
    changed: Option<HashSet<KeyHash>>,
}

/// Rows of the source in a file of their own, which goes with them.
struct Rows {
    file: NamedTempFile,
    /// Keys, as JSON, of items that are for the quarantine.
    quarantined: HashSet<String>,
}

/// Which keys of two states are compared.
enum Scope {
    Except(HashSet<KeyHash>),
    Only(HashSet<KeyHash>),
}

/// What was seen of a table last.
struct Look {
    rows: Rows,
    state: MirrorState,
    /// As the service wants them, of keys that were ever to be looked at again.
    keys: HashMap<KeyHash, RawItem>,
}

impl Verified<'_> {
    async fn compare(&self) -> Result<Found, Problem> {
        let mut quarantined = HashSet::new();
        let (mut comparison, position) = self.compare_all(&mut quarantined).await?;
        let missing = self.not_in_quarantine(&quarantined).await?;
        comparison.only_in_source += missing;
        comparison.source_rows += missing;
        Ok(Found { comparison, position, quarantined: quarantined.len() as u64 - missing })
    }

    /// How many of these keys do not stand in the quarantine; looked at a second time where some do not.
    async fn not_in_quarantine(&self, keys: &HashSet<String>) -> Result<u64, Problem> {
        let mut missing = self.missing_in_quarantine(keys.clone()).await?;
        if !missing.is_empty() {
            sleep(self.source.pace.listing_lag).await;
            self.cut_from_now().await?;
            missing = self.missing_in_quarantine(missing).await?;
        }
        Ok(missing.len() as u64)
    }

    async fn missing_in_quarantine(&self, mut keys: HashSet<String>) -> Result<HashSet<String>, Problem> {
        if keys.is_empty() {
            return Ok(keys);
        }
        let name = self.items.table().mirror.quarantine();
        let Some(table) = self.environment.catalog.load(&name, None).await? else { return Ok(keys) };
        let reader = TableReader::at(&self.environment.storage, &table, table.snapshot_id()).await?;
        let unreadable = move || {
            let remedy = "give the table back the columns that it was created with";
            Problem::halt("VERIFY", name.to_string(), "the quarantine has no readable keys", remedy)
        };
        let field = reader.schema.field_by_name(KEY).map(|field| field.id).ok_or_else(&unreadable)?;
        let columns = Projection::of(&reader.schema, &[field])?;
        let read = move || {
            for path in reader.files() {
                for batch in reader.read(path, &columns)? {
                    let batch = batch?;
                    let found = batch.column(0).as_string_opt::<i32>().ok_or_else(&unreadable)?;
                    for key in found.iter().flatten() {
                        keys.remove(key);
                    }
                }
            }
            Ok(keys)
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|_| Err(self.interrupted()))
    }

    /// All rows; `quarantined` takes the keys of items that have none.
    async fn compare_all(&self, quarantined: &mut HashSet<String>) -> Result<(TableComparison, Position), Problem> {
        let before = self.cut_from_now().await?;
        let mut rows = self.scanned().await?;
        quarantined.extend(rows.quarantined.drain());
        let mut state = self.state_since(&before).await?;
        let changed = state.changed.take();
        let scope = Scope::Except(changed.clone().unwrap_or_default());
        let whole = self.compare_rows(&rows, &state, scope).await?;
        let differing = whole.all_keys();
        let (mut found, moving) = match (changed, &differing) {
            (Some(changed), _) => (whole, changed),
            // Without a history all that differs may only have changed.
            (None, Some(differing)) => (whole.without_differences(), differing.clone()),
            (None, None) => return Ok((whole, state.cut.position)),
        };
        let wanted = moving.iter().chain(differing.iter().flatten()).copied().collect();
        let keys = self.keys(&rows, &state, &wanted).await?;
        let mut look = Look { rows, state, keys };
        found.absorb(self.look_until_at_rest(&mut look, moving, quarantined).await?);
        if let Some(doubtful) = found.all_keys().filter(|keys| !keys.is_empty()) {
            sleep(self.source.pace.listing_lag).await;
            found = found.without_differences();
            found.absorb(self.look_until_at_rest(&mut look, doubtful, quarantined).await?);
        }
        // The scan and the mirror were counted at two moments: what the source has follows from what differs.
        found.source_rows = (found.mirror_rows + found.only_in_source).saturating_sub(found.only_in_mirror);
        Ok((found, look.state.cut.position))
    }

    /// Looks at keys one by one until each has been seen at rest, and says what differs then.
    async fn look_until_at_rest(
        &self,
        look: &mut Look,
        mut moving: HashSet<KeyHash>,
        quarantined: &mut HashSet<String>,
    ) -> Result<TableComparison, Problem> {
        let mut found = TableComparison::default();
        for _ in 0..LOOKS {
            if moving.is_empty() {
                break;
            }
            if moving.iter().any(|key| !look.keys.contains_key(key)) {
                let more = self.keys(&look.rows, &look.state, &moving).await?;
                look.keys.extend(more);
            }
            let wanted: Vec<RawItem> = moving.iter().filter_map(|key| look.keys.get(key)).cloned().collect();
            look.rows = self.fetched(&wanted).await?;
            quarantined.extend(look.rows.quarantined.drain());
            look.state = self.state_since(&look.state.cut).await?;
            let again = match look.state.changed.take() {
                Some(changed) => changed,
                None => {
                    let later = self.fetched(&wanted).await?;
                    self.changed_between(&look.rows, &later, &look.state).await?.unwrap_or_else(|| moving.clone())
                }
            };
            let settled = moving.difference(&again).copied().collect();
            found.absorb(self.compare_rows(&look.rows, &look.state, Scope::Only(settled)).await?);
            moving.retain(|key| again.contains(key));
        }
        if moving.is_empty() {
            return Ok(found);
        }
        let message = format!("{} keys have changed each time they were looked at", moving.len());
        let remedy = "run it again when the table is quieter; all other keys were compared";
        Err(Problem::halt("VERIFY_MOVING", &self.table.name, message, remedy))
    }

    /// A cut that has seen every open shard at its tip after this call (protocol C9).
    async fn cut_from_now(&self) -> Result<Cut, Problem> {
        let now = chrono::Utc::now().timestamp_millis();
        let what = "the present end of the stream";
        wait_for_cut(self.environment, &self.source.pipeline, what, |cut| {
            cut.read_until.is_some_and(|until| until >= now)
        })
        .await
    }

    async fn state_since(&self, before: &Cut) -> Result<MirrorState, Problem> {
        let cut = self.cut_from_now().await?;
        let name = &self.items.table().mirror;
        let mirror = load(self.environment, name).await?;
        let snapshot = cut.tables.get(&name.to_string()).and_then(|id| id.parse().ok());
        let snapshot = snapshot.ok_or_else(|| {
            let remedy = "see `lakehouse status` for why";
            Problem::halt("VERIFY_BEHIND", name.to_string(), "the table is not in the newest cut", remedy)
        })?;
        let storage = &self.environment.storage;
        let reader = Arc::new(TableReader::at(storage, &mirror, Some(snapshot)).await?);
        let changed = match self.environment.catalog.load(&name.history(), None).await? {
            Some(history) if self.items.table().history => {
                let history = TableReader::at(storage, &history, history.snapshot_id()).await?;
                let range = Range { after: before.position, up_to: cut.position };
                let schema = Arc::clone(&reader.schema);
                let fold = move || Fold::read(&history, &schema, range, None).map(|fold| fold.changed_keys());
                let interrupted = |_| Err(Problem::retry("INTERRUPTED", &self.table.name, "reading was interrupted"));
                Some(tokio::task::spawn_blocking(fold).await.unwrap_or_else(interrupted)?)
            }
            _ => None,
        };
        Ok(MirrorState { cut, reader, changed })
    }

    async fn compare_rows(&self, rows: &Rows, state: &MirrorState, scope: Scope) -> Result<TableComparison, Problem> {
        let columns = self.columns(&state.reader)?;
        let mut comparison = Comparison::new(Arc::clone(&columns.arrow), &self.key_names())?;
        match scope {
            Scope::Except(keys) => comparison.leave_out(keys),
            Scope::Only(keys) => comparison.restrict_to(keys),
        }
        let open = |side: Side| -> BoxFuture<'_, Result<RowStream, Problem>> {
            let columns = columns.clone();
            Box::pin(async move {
                match side {
                    Side::Mirror => Ok(table_rows(Arc::clone(&state.reader), columns)),
                    Side::Source => rows.read(columns.arrow),
                }
            })
        };
        compare(comparison, &open, Limits::default(), self.options.show_keys).await
    }

    /// Keys whose items are not the same in both, unless they are too many to be told.
    async fn changed_between(
        &self,
        rows: &Rows,
        later: &Rows,
        state: &MirrorState,
    ) -> Result<Option<HashSet<KeyHash>>, Problem> {
        let columns = self.columns(&state.reader)?.arrow;
        let comparison = Comparison::new(Arc::clone(&columns), &self.key_names())?;
        let open = |side: Side| -> BoxFuture<'_, Result<RowStream, Problem>> {
            let columns = Arc::clone(&columns);
            let rows = if side == Side::Source { rows } else { later };
            Box::pin(async move { rows.read(columns) })
        };
        Ok(compare(comparison, &open, Limits::default(), false).await?.all_keys())
    }

    fn columns(&self, mirror: &TableReader) -> Result<Projection, Problem> {
        let known = |name: &str| self.items.table().columns.iter().any(|column| column.name == name);
        let fields = mirror.schema.as_struct().fields().iter().filter(|field| known(&field.name));
        Projection::of(&mirror.schema, &fields.map(|field| field.id).collect::<Vec<_>>())
    }

    fn key_names(&self) -> Vec<&str> {
        let schema = self.items.table();
        match &schema.key {
            Key::Columns(key) => key.iter().map(|&column| schema.columns[column].name.as_str()).collect(),
            Key::WholeRow | Key::None => Vec::new(),
        }
    }

    /// The whole table, scanned once.
    async fn scanned(&self) -> Result<Rows, Problem> {
        let (sender, receiver) = mpsc::channel(2);
        let writing = self.write(receiver);
        scan(self.clients, &self.table.name, Part::whole(), &Budget::default(), sender, || false).await?;
        writing.await.unwrap_or_else(|_| Err(self.interrupted()))
    }

    /// The items with these keys, as they are now.
    async fn fetched(&self, keys: &[RawItem]) -> Result<Rows, Problem> {
        let (sender, receiver) = mpsc::channel(2);
        let writing = self.write(receiver);
        for some in keys.chunks(KEYS_AT_ONCE) {
            let mut wanted = some.to_vec();
            let mut attempt = 0;
            while !wanted.is_empty() {
                let keys = KeysAndAttributes::builder().set_keys(Some(wanted.clone())).consistent_read(true).build();
                let keys = keys.map_err(|error| {
                    problem("dynamodb:BatchGetItem", &self.table.name, Trouble::Other(error.to_string()))
                })?;
                let call = self.clients.tables.batch_get_item().request_items(&self.table.name, keys);
                let answer = match call.send().await {
                    Ok(answer) => answer,
                    Err(error) => match trouble(&error) {
                        Trouble::Passing(_) if attempt < ATTEMPTS => {
                            sleep(pause(attempt)).await;
                            attempt += 1;
                            continue;
                        }
                        other => return Err(problem("dynamodb:BatchGetItem", &self.table.name, other)),
                    },
                };
                let mut items = answer.responses.unwrap_or_default();
                let items = items.remove(&self.table.name).unwrap_or_default();
                if sender.send(items).await.is_err() {
                    break;
                }
                let mut rest = answer.unprocessed_keys.unwrap_or_default();
                wanted = rest.remove(&self.table.name).map(|keys| keys.keys).unwrap_or_default();
                if !wanted.is_empty() {
                    sleep(pause(attempt)).await;
                    attempt += 1;
                }
            }
        }
        drop(sender);
        writing.await.unwrap_or_else(|_| Err(self.interrupted()))
    }

    /// Maps items and writes them to a file, on a thread for blocking work.
    fn write(&self, mut pages: mpsc::Receiver<Vec<RawItem>>) -> tokio::task::JoinHandle<Result<Rows, Problem>> {
        let (items, folder) = (self.items.clone(), self.environment.local_state.clone());
        tokio::task::spawn_blocking(move || {
            let failed = |why: &dyn std::fmt::Display| {
                let remedy = "make room under `local_state`, and let the service's user write there";
                Problem::halt("VERIFY", folder.display().to_string(), format!("rows cannot be kept: {why}"), remedy)
            };
            std::fs::create_dir_all(&folder).map_err(|why| failed(&why))?;
            let file = NamedTempFile::new_in(&folder).map_err(|why| failed(&why))?;
            let fields = items.table().columns.iter();
            let fields = fields.map(|column| Field::new(&column.name, column.data_type.clone(), true));
            let schema = Arc::new(ArrowSchema::new(fields.collect::<Vec<_>>()));
            let out = BufWriter::new(file.reopen().map_err(|why| failed(&why))?);
            let mut writer = FileWriter::try_new(out, &schema).map_err(|why| failed(&why))?;
            let (mut rows, mut quarantined) = (items.builder(), HashSet::new());
            let mut open = true;
            while open {
                match pages.blocking_recv() {
                    Some(page) => {
                        for item in page {
                            let item = Item::try_from(item).map_err(|why| {
                                let message = format!("an item cannot be read: {why}");
                                Problem::halt("ROW_UNREADABLE", &items.table().source, message, "report this")
                            })?;
                            match rows.append(&item, None) {
                                Ok(()) => {}
                                Err(ItemError::Quarantine { .. }) => {
                                    quarantined.insert(items.key_of(&item).canonical());
                                }
                                Err(why) => return Err(why.problem(&items.table().source)),
                            }
                        }
                    }
                    None => open = false,
                }
                if rows.len() >= ROWS_AT_ONCE || (!open && !rows.is_empty()) {
                    let batch =
                        RecordBatch::try_new(Arc::clone(&schema), rows.finish().columns).map_err(|why| failed(&why))?;
                    writer.write(&batch).map_err(|why| failed(&why))?;
                }
            }
            writer.finish().map_err(|why| failed(&why))?;
            Ok(Rows { file, quarantined })
        })
    }

    /// The keys of rows on either side whose hashes are wanted.
    async fn keys(
        &self,
        rows: &Rows,
        state: &MirrorState,
        wanted: &HashSet<KeyHash>,
    ) -> Result<HashMap<KeyHash, RawItem>, Problem> {
        if wanted.is_empty() {
            return Ok(HashMap::new());
        }
        let columns = self.columns(&state.reader)?;
        let names = self.key_names();
        let comparison = Comparison::new(Arc::clone(&columns.arrow), &names)?;
        let mut found: HashMap<KeyHash, RawItem> = HashMap::new();
        let sides = [rows.read(Arc::clone(&columns.arrow))?, table_rows(Arc::clone(&state.reader), columns)];
        for mut side in sides {
            while let Some(batch) = side.try_next().await? {
                let hashes = comparison.hasher().keys(&batch)?;
                for (row, hash) in hashes.into_iter().enumerate().filter(|(_, hash)| wanted.contains(hash)) {
                    if let std::collections::hash_map::Entry::Vacant(place) = found.entry(hash) {
                        place.insert(self.key_of(&batch, row, &names)?);
                    }
                }
            }
        }
        Ok(found)
    }

    /// A row's key as the service wants it.
    fn key_of(&self, batch: &RecordBatch, row: usize, names: &[&str]) -> Result<RawItem, Problem> {
        let unreadable =
            || Problem::halt("VERIFY", &self.table.name, "a key of the mirror cannot be read", "report this");
        let mut key = RawItem::new();
        for (attribute, name) in self.table.key.iter().zip(names) {
            let column = batch.column_by_name(name).filter(|column| column.is_valid(row)).ok_or_else(unreadable)?;
            let value = match attribute.key_type {
                KeyType::B => {
                    let bytes = column.as_binary_opt::<i32>().ok_or_else(unreadable)?.value(row);
                    AttributeValue::B(Blob::new(bytes))
                }
                kind => {
                    let text = array_value_to_string(column, row).map_err(|_| unreadable())?;
                    if kind == KeyType::N { AttributeValue::N(text) } else { AttributeValue::S(text) }
                }
            };
            key.insert(attribute.name.clone(), value);
        }
        Ok(key)
    }

    fn interrupted(&self) -> Problem {
        Problem::retry("INTERRUPTED", &self.table.name, "reading was interrupted")
    }
}

impl Rows {
    /// All rows with the columns of `schema`.
    fn read(&self, schema: ArrowSchemaRef) -> Result<RowStream, Problem> {
        let failed = |why: &dyn std::fmt::Display| {
            Problem::halt("VERIFY", "verify", format!("kept rows cannot be read: {why}"), "run it again; report this")
        };
        let file = self.file.reopen().map_err(|why| failed(&why))?;
        let reader = FileReader::try_new(BufReader::new(file), None).map_err(|why| failed(&why))?;
        let (sender, receiver) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            for batch in reader {
                let batch = batch.map_err(|why| failed(&why)).and_then(|batch| project(&batch, &schema));
                if sender.blocking_send(batch).is_err() {
                    return;
                }
            }
        });
        Ok(stream_of(receiver))
    }
}
