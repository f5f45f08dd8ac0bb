//! What a lake holds, read by DuckDB and from the metadata files alone: nothing here is the product's code.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;
use testkit::readers::{Engine, Judge};

use super::{PIPELINE, Site};

/// A cut as the control table records it.
#[derive(Clone, Debug)]
pub(crate) struct RecordedCut {
    pub(crate) position: u64,
    /// Snapshot ids by `namespace.table`.
    pub(crate) tables: BTreeMap<String, i64>,
}

/// One snapshot's range of positions, as its summary says it.
#[derive(Clone, Debug)]
pub(crate) struct Ranged {
    pub(crate) snapshot: i64,
    pub(crate) kind: String,
    pub(crate) from: Option<u64>,
    pub(crate) to: Option<u64>,
}

/// DuckDB on a site's lake.
pub(crate) struct Books {
    judge: Judge,
}

impl Books {
    pub(crate) async fn open() -> Self {
        Self { judge: Judge::start(Engine::DuckDb).await }
    }

    /// The answer of a query that sees the table, at a snapshot or now, as `t`.
    pub(crate) async fn sql(&mut self, site: &Site, table: &str, snapshot: Option<i64>, query: &str) -> Vec<String> {
        let metadata = self.judge.metadata(&site.database(), table).await;
        self.judge.sql(&metadata, snapshot, query).await
    }

    /// All rows of some columns, sorted.
    pub(crate) async fn rows(&mut self, site: &Site, table: &str, columns: &[&str]) -> Vec<String> {
        let metadata = self.judge.metadata(&site.database(), table).await;
        self.judge.rows(&metadata, None, columns).await
    }

    /// Every cut that is kept, oldest first.
    pub(crate) async fn cuts(&mut self, site: &Site) -> Vec<RecordedCut> {
        let snapshots = self.snapshots(site, &format!("lakehouse_control.{PIPELINE}")).await;
        snapshots.iter().filter_map(recorded_cut).collect()
    }

    /// Every snapshot of a table, in the order in which they were committed.
    pub(crate) async fn ranges(&mut self, site: &Site, table: &str) -> Vec<Ranged> {
        self.snapshots(site, table).await.iter().map(ranged).collect()
    }

    /// The metadata file's snapshots of a table, in the order in which they were committed.
    pub(crate) async fn snapshots(&mut self, site: &Site, table: &str) -> Vec<Value> {
        snapshots_of(&self.metadata(site, table).await)
    }

    /// The metadata file of a table.
    pub(crate) async fn metadata(&mut self, site: &Site, table: &str) -> Value {
        let metadata = self.judge.metadata(&site.database(), table).await;
        // Spark says file:/path where others say file:///path.
        let path = metadata.strip_prefix("file:").unwrap_or(&metadata);
        let path = path.strip_prefix("//").unwrap_or(path);
        let text = fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

/// A table's snapshots, in the order in which they were committed.
pub(crate) fn snapshots_of(metadata: &Value) -> Vec<Value> {
    let mut snapshots = metadata["snapshots"].as_array().cloned().unwrap_or_default();
    snapshots.sort_by_key(|snapshot| snapshot["sequence-number"].as_i64());
    snapshots
}

/// The cut that a snapshot of the control table records, if it does.
pub(crate) fn recorded_cut(snapshot: &Value) -> Option<RecordedCut> {
    let cut: Value = serde_json::from_str(snapshot["summary"]["cdc.cut"].as_str()?).expect("a cut");
    let id = |(table, id): (&String, &Value)| (table.clone(), id.as_str().expect("an id").parse().expect("a number"));
    let tables = cut["tables"].as_object().expect("tables").iter().map(id).collect();
    Some(RecordedCut { position: position(&cut["position"]).expect("a position"), tables })
}

/// What a snapshot says of itself.
pub(crate) fn ranged(snapshot: &Value) -> Ranged {
    let summary = &snapshot["summary"];
    Ranged {
        snapshot: snapshot["snapshot-id"].as_i64().expect("an id"),
        kind: summary["cdc.kind"].as_str().unwrap_or("foreign").to_owned(),
        from: position(&summary["cdc.from"]),
        to: position(&summary["cdc.to"]),
    }
}

/// An LSN, `0/16B3748`.
pub(crate) fn position(value: &Value) -> Option<u64> {
    let (high, low) = value.as_str()?.split_once('/')?;
    Some(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?)
}

/// Ranges of changes join: each begins where the one before ended, and none is empty. The first begins at the copy's.
pub(crate) fn assert_joined(table: &str, ranges: &[Ranged]) {
    let mut end = None;
    for range in ranges {
        let Ranged { kind, from, to, .. } = range;
        match kind.as_str() {
            "copy" => end = to.or(end),
            "change" => {
                assert!(from.is_some() && from < to, "{table}: {range:?}");
                assert!(end.is_none() || *from == end, "{table}: {range:?} does not join {end:?}");
                end = *to;
            }
            _ => {}
        }
    }
}
