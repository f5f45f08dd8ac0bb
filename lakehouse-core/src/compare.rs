//! The engine of `verify`: the rows of a source and the rows of its mirror, compared in bounded memory.
//!
//! The first pass adds every row to one of 65,536 buckets by the hash of its key: rows of the source count up, rows of the
//! mirror count down, and a bucket that ends at nothing holds equal rows. Further passes read again and look only at rows
//! of buckets that differ, as many buckets at a time as memory allows. Not here: where rows come from, and at which
//! position both sides stand.

mod row_hash;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_schema::SchemaRef as ArrowSchemaRef;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt, TryStreamExt, unfold};
use serde::Serialize;

use crate::error::Problem;
use crate::key_index::KeyHash;
use crate::read::{Projection, TableReader};

pub use row_hash::{RowHasher, RowHashes};

const BUCKETS: usize = 1 << 16;
/// Keys that a comparison tells as samples.
const SAMPLES: usize = 20;
/// Keys that differ and are told by their hashes, for whoever looks at them again.
const KEYS: usize = 100_000;
/// Batches that a reader may be ahead.
const BATCHES_AHEAD: usize = 4;

/// Whose row it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Mirror,
}

/// What bounds the passes behind the first.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rows, of both sides together, that one pass may hold; about 100 bytes each.
    pub rows_at_once: u64,
    /// Passes over both sides; buckets that are left then are told by their counts alone.
    pub passes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { rows_at_once: 2_000_000, passes: 16 }
    }
}

/// How two tables differ. Counts are rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TableComparison {
    pub source_rows: u64,
    pub mirror_rows: u64,
    pub only_in_source: u64,
    pub only_in_mirror: u64,
    /// Rows with a key on both sides and other contents.
    pub differing: u64,
    /// Up to 20 keys that differ.
    pub samples: Vec<Sample>,
    /// Keys that differ; not all of them where they are very many.
    #[serde(skip)]
    pub keys: Vec<KeyHash>,
    /// Rows of buckets that differ and were not looked at one by one ([`Limits::passes`]): with any, the three counts
    /// above are lower bounds.
    pub not_examined: u64,
}

/// One key that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sample {
    pub difference: Difference,
    /// The key's hash in hexadecimal, or its values where they were asked for.
    pub key: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    OnlyInSource,
    OnlyInMirror,
    Differing,
}

impl TableComparison {
    pub fn is_equal(&self) -> bool {
        self.source_rows == self.mirror_rows && !self.has_differences()
    }

    fn has_differences(&self) -> bool {
        self.only_in_source + self.only_in_mirror + self.differing + self.not_examined > 0
    }

    /// All keys that differ, unless they are too many to be told. Of a table whose keys stand once on each side.
    pub fn all_keys(&self) -> Option<HashSet<KeyHash>> {
        let differing = self.only_in_source + self.only_in_mirror + self.differing;
        let all = self.not_examined == 0 && self.keys.len() as u64 == differing;
        all.then(|| self.keys.iter().copied().collect())
    }

    /// The same rows, and no differences.
    #[must_use]
    pub fn without_differences(&self) -> Self {
        Self { source_rows: self.source_rows, mirror_rows: self.mirror_rows, ..Self::default() }
    }

    /// Adds what another comparison says of keys that this one left out; the numbers of rows stay.
    pub fn absorb(&mut self, again: TableComparison) {
        let room = KEYS.saturating_sub(self.keys.len());
        self.keys.extend(again.keys.into_iter().take(room));
        self.only_in_source += again.only_in_source;
        self.only_in_mirror += again.only_in_mirror;
        self.differing += again.differing;
        self.not_examined += again.not_examined;
        self.samples.extend(again.samples);
        self.samples.truncate(SAMPLES);
    }
}

pub type RowStream = BoxStream<'static, Result<RecordBatch, Problem>>;

/// Opens one side from its beginning; called once per pass and side, and yields the same rows each time.
pub type OpenRows<'a> = dyn Fn(Side) -> BoxFuture<'a, Result<RowStream, Problem>> + Send + Sync + 'a;

/// All passes of one comparison. With `show_keys` the samples carry the values of their keys.
pub async fn compare(
    mut comparison: Comparison,
    open: &OpenRows<'_>,
    limits: Limits,
    show_keys: bool,
) -> Result<TableComparison, Problem> {
    for side in [Side::Source, Side::Mirror] {
        let mut rows = open(side).await?;
        while let Some(batch) = rows.try_next().await? {
            comparison.add(side, &batch)?;
        }
    }
    for buckets in comparison.passes(limits) {
        let mut examination = comparison.examine(&buckets);
        for side in [Side::Source, Side::Mirror] {
            let mut rows = open(side).await?;
            while let Some(batch) = rows.try_next().await? {
                examination.add(side, &batch)?;
            }
        }
        let examined = examination.finish();
        comparison.note(&buckets, examined);
    }
    if show_keys && !comparison.samples.is_empty() {
        let mut shown = HashMap::new();
        for side in [Side::Source, Side::Mirror] {
            let mut rows = open(side).await?;
            while let Some(batch) = rows.try_next().await? {
                comparison.show(&batch, &mut shown)?;
            }
        }
        return Ok(comparison.finish_with(&shown));
    }
    Ok(comparison.finish())
}

/// The live rows of a table as a stream: files are read on a thread for blocking work, a few batches ahead.
pub fn table_rows(reader: Arc<TableReader>, columns: Projection) -> RowStream {
    let (sender, receiver) = tokio::sync::mpsc::channel(BATCHES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let send = |batch| sender.blocking_send(batch).is_ok();
        for path in reader.files() {
            let going_on = match reader.read(path, &columns) {
                Ok(mut rows) => rows.all(&send),
                Err(problem) => send(Err(problem)),
            };
            if !going_on {
                return;
            }
        }
    });
    unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|batch| (batch, receiver)) }).boxed()
}

/// Which keys count.
#[derive(Clone, Debug)]
enum Scope {
    All,
    Except(Arc<HashSet<KeyHash>>),
    Only(Arc<HashSet<KeyHash>>),
}

impl Scope {
    fn holds(&self, key: KeyHash) -> bool {
        match self {
            Scope::All => true,
            Scope::Except(keys) => !keys.contains(&key),
            Scope::Only(keys) => keys.contains(&key),
        }
    }
}

/// One table under comparison: the sums of the first pass, and what later passes have found.
#[derive(Debug)]
pub struct Comparison {
    hasher: Arc<RowHasher>,
    scope: Scope,
    buckets: Vec<Bucket>,
    result: TableComparison,
    samples: Vec<(Difference, KeyHash)>,
    examined: HashSet<u16>,
}

/// Rows of the source minus rows of the mirror. Sums of 128-bit hashes wrap: two different sets of rows have the same sum
/// with a probability of 2^-128.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    source: u64,
    mirror: u64,
    keys: u128,
    rows: u128,
}

impl Bucket {
    fn is_equal(&self) -> bool {
        self.source == self.mirror && self.keys == 0 && self.rows == 0
    }

    fn add(&mut self, side: Side, key: KeyHash, row: u128) {
        match side {
            Side::Source => {
                self.source += 1;
                self.keys = self.keys.wrapping_add(key.0);
                self.rows = self.rows.wrapping_add(row);
            }
            Side::Mirror => {
                self.mirror += 1;
                self.keys = self.keys.wrapping_sub(key.0);
                self.rows = self.rows.wrapping_sub(row);
            }
        }
    }
}

pub(crate) fn bucket_of(key: KeyHash) -> u16 {
    u16::try_from(key.0 >> 112).expect("the upper 16 of 128 bits")
}

impl Comparison {
    /// Compares the columns of `schema`, found by name on both sides; `key` names those that tell rows apart. Without a
    /// key whole rows are compared, with multiplicity.
    pub fn new(schema: ArrowSchemaRef, key: &[&str]) -> Result<Self, Problem> {
        Ok(Self {
            hasher: Arc::new(RowHasher::new(schema, key)?),
            scope: Scope::All,
            buckets: vec![Bucket::default(); BUCKETS],
            result: TableComparison::default(),
            samples: Vec::new(),
            examined: HashSet::new(),
        })
    }

    /// Hashes rows like this comparison does.
    pub fn hasher(&self) -> &Arc<RowHasher> {
        &self.hasher
    }

    /// Rows with these keys are counted but not compared: they changed meanwhile and are compared again on their own.
    /// May be called before the first pass or between passes.
    pub fn leave_out(&mut self, keys: HashSet<KeyHash>) {
        self.scope = Scope::Except(Arc::new(keys));
    }

    /// Only rows with these keys are compared and counted.
    pub fn restrict_to(&mut self, keys: HashSet<KeyHash>) {
        self.scope = Scope::Only(Arc::new(keys));
    }

    /// First pass: adds rows of one side, in any order.
    pub fn add(&mut self, side: Side, batch: &RecordBatch) -> Result<(), Problem> {
        let RowHashes { keys, rows } = self.hasher.hash(batch)?;
        let mut counted = 0;
        for (key, row) in keys.into_iter().zip(rows) {
            let holds = self.scope.holds(key);
            if holds {
                self.buckets[usize::from(bucket_of(key))].add(side, key, row);
            }
            counted += u64::from(holds || matches!(self.scope, Scope::Except(_)));
        }
        match side {
            Side::Source => self.result.source_rows += counted,
            Side::Mirror => self.result.mirror_rows += counted,
        }
        Ok(())
    }

    /// Buckets whose rows are not the same on both sides, ascending.
    pub fn differing_buckets(&self) -> Vec<u16> {
        let differing = self.buckets.iter().zip(0..).filter(|(bucket, _)| !bucket.is_equal());
        differing.map(|(_, number)| number).collect()
    }

    /// The differing buckets in groups, one per pass: each within the limit of rows, but never empty.
    pub fn passes(&self, limits: Limits) -> Vec<HashSet<u16>> {
        let mut passes: Vec<HashSet<u16>> = Vec::new();
        let mut room = 0;
        for number in self.differing_buckets() {
            let bucket = &self.buckets[usize::from(number)];
            let rows = bucket.source + bucket.mirror;
            let last_pass = passes.len() == limits.passes;
            match passes.last_mut().filter(|_| rows <= room) {
                Some(pass) => {
                    pass.insert(number);
                    room -= rows;
                }
                None if last_pass => break,
                None => {
                    passes.push(HashSet::from([number]));
                    room = limits.rows_at_once.saturating_sub(rows);
                }
            }
        }
        passes
    }

    /// Begins a pass that looks at the rows of some buckets.
    pub fn examine(&self, buckets: &HashSet<u16>) -> Examination {
        let mut wanted = vec![false; BUCKETS];
        buckets.iter().for_each(|&bucket| wanted[usize::from(bucket)] = true);
        Examination { hasher: Arc::clone(&self.hasher), scope: self.scope.clone(), wanted, keys: HashMap::new() }
    }

    /// Takes over what a pass over `buckets` has found.
    pub fn note(&mut self, buckets: &HashSet<u16>, examined: Examined) {
        self.examined.extend(buckets);
        self.result.only_in_source += examined.only_in_source;
        self.result.only_in_mirror += examined.only_in_mirror;
        self.result.differing += examined.differing;
        self.samples.extend(examined.samples);
        self.samples.truncate(SAMPLES);
        let room = KEYS.saturating_sub(self.result.keys.len());
        self.result.keys.extend(examined.keys.into_iter().take(room));
    }

    /// The values of sample keys that stand in a batch.
    fn show(&self, batch: &RecordBatch, shown: &mut HashMap<KeyHash, String>) -> Result<(), Problem> {
        let wanted: HashSet<KeyHash> = self.samples.iter().map(|(_, key)| *key).collect();
        let RowHashes { keys, .. } = self.hasher.hash(batch)?;
        for (row, key) in keys.into_iter().enumerate() {
            if wanted.contains(&key) && !shown.contains_key(&key) {
                shown.insert(key, self.hasher.key_text(batch, row)?);
            }
        }
        Ok(())
    }

    /// What was found, samples as digests.
    pub fn finish(self) -> TableComparison {
        self.finish_with(&HashMap::new())
    }

    fn finish_with(mut self, shown: &HashMap<KeyHash, String>) -> TableComparison {
        for number in self.differing_buckets() {
            if self.examined.contains(&number) {
                continue;
            }
            let Bucket { source, mirror, .. } = self.buckets[usize::from(number)];
            self.result.not_examined += source + mirror;
            self.result.only_in_source += source.saturating_sub(mirror);
            self.result.only_in_mirror += mirror.saturating_sub(source);
            self.result.differing += u64::from(source == mirror);
        }
        let text = |key: &KeyHash| shown.get(key).cloned().unwrap_or_else(|| format!("{:032x}", key.0));
        let samples = self.samples.iter().map(|(difference, key)| Sample { difference: *difference, key: text(key) });
        self.result.samples = samples.collect();
        self.result
    }
}

/// A pass over both sides that looks at the rows of some buckets, key by key.
#[derive(Debug)]
pub struct Examination {
    hasher: Arc<RowHasher>,
    scope: Scope,
    wanted: Vec<bool>,
    keys: HashMap<KeyHash, Standing>,
}

/// The rows of one key: how many, and the sums of their hashes.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    source: u32,
    mirror: u32,
    source_rows: u128,
    mirror_rows: u128,
}

/// What one pass has found.
#[derive(Debug, Default)]
pub struct Examined {
    only_in_source: u64,
    only_in_mirror: u64,
    differing: u64,
    samples: Vec<(Difference, KeyHash)>,
    keys: Vec<KeyHash>,
}

impl Examination {
    pub fn add(&mut self, side: Side, batch: &RecordBatch) -> Result<(), Problem> {
        let RowHashes { keys, rows } = self.hasher.hash(batch)?;
        for (key, row) in keys.into_iter().zip(rows) {
            if !self.wanted[usize::from(bucket_of(key))] || !self.scope.holds(key) {
                continue;
            }
            let standing = self.keys.entry(key).or_default();
            let (count, sum) = match side {
                Side::Source => (&mut standing.source, &mut standing.source_rows),
                Side::Mirror => (&mut standing.mirror, &mut standing.mirror_rows),
            };
            *count = count.saturating_add(1);
            *sum = sum.wrapping_add(row);
        }
        Ok(())
    }

    pub fn finish(self) -> Examined {
        let mut found = Examined::default();
        let mut keys: Vec<(KeyHash, Standing)> = self.keys.into_iter().collect();
        keys.sort_unstable_by_key(|(key, _)| *key);
        for (key, standing) in keys {
            for (difference, rows) in standing.differences() {
                match difference {
                    Difference::OnlyInSource => found.only_in_source += rows,
                    Difference::OnlyInMirror => found.only_in_mirror += rows,
                    Difference::Differing => found.differing += rows,
                }
                if found.samples.len() < SAMPLES {
                    found.samples.push((difference, key));
                }
                if found.keys.len() < KEYS && found.keys.last() != Some(&key) {
                    found.keys.push(key);
                }
            }
        }
        found
    }
}

impl Standing {
    /// A key that stands more often on one side has rows too many there; the rest is compared by content.
    fn differences(self) -> impl Iterator<Item = (Difference, u64)> {
        let (source, mirror) = (u64::from(self.source), u64::from(self.mirror));
        // Equal rows n times on one side and m times on the other: their sums are in the same ratio.
        let same = self.source_rows.wrapping_mul(mirror.into()) == self.mirror_rows.wrapping_mul(source.into());
        let differing = if same { 0 } else { source.min(mirror) };
        let all = [
            (Difference::OnlyInSource, source.saturating_sub(mirror)),
            (Difference::OnlyInMirror, mirror.saturating_sub(source)),
            (Difference::Differing, differing),
        ];
        all.into_iter().filter(|(_, rows)| *rows > 0)
    }
}

impl RowHasher {
    /// The values of one row's key, `a=1, b=x`; of a table without a key, all its values.
    fn key_text(&self, batch: &RecordBatch, row: usize) -> Result<String, Problem> {
        let mut parts = Vec::new();
        for (name, column) in self.key_columns(batch)? {
            let failed = |error: arrow_schema::ArrowError| {
                Problem::halt(
                    "COLUMN_TYPE",
                    &name,
                    format!("a key cannot be shown: {error}"),
                    "ask for digests instead",
                )
            };
            let options = FormatOptions::default().with_null("NULL");
            let formatter = ArrayFormatter::try_new(&column, &options).map_err(failed)?;
            parts.push(format!("{name}={}", formatter.value(row)));
        }
        Ok(parts.join(", "))
    }
}

#[cfg(test)]
mod tests;
