//! Points of a table's past, as people and programs name them.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use iceberg::spec::SnapshotRef;
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::{named_snapshots, properties, recorded_cuts};
use lakehouse_core::position::Position;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{Lake, as_of, by_cut, by_id, by_tag, expired, newest, summary_text, table_state};
use crate::answer;
use crate::config::Config;
use crate::failure::Failure;

/// A point, not yet looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    Newest,
    Snapshot(i64),
    AsOf(DateTime<Utc>),
    Tag(String),
    Cut(Position),
}

/// In one word: a snapshot's id, a time as RFC 3339 has it, a cut's position, or the name of a tag (`main` is the newest).
impl FromStr for Point {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if let Ok(id) = text.parse() {
            Self::Snapshot(id)
        } else if let Ok(time) = DateTime::parse_from_rfc3339(text) {
            Self::AsOf(time.to_utc())
        } else if let Ok(position) = text.parse() {
            Self::Cut(position)
        } else {
            Self::Tag(text.to_owned())
        })
    }
}

/// A snapshot that was asked for, and what to tell about it.
pub(crate) struct Chosen {
    pub(crate) snapshot: Option<SnapshotRef>,
    /// The cut it belongs to, if one was asked for, and whether it is exactly that one.
    pub(crate) cut: Option<(Position, bool)>,
}

impl Chosen {
    /// Whether the rows agree with those of the pipeline's other tables at the same cut, or are this table's alone.
    pub(crate) fn consistency(&self) -> &'static str {
        if self.cut.is_some() { "cut" } else { "per_table" }
    }

    /// What an answer with rows says before them.
    pub(crate) fn head(&self, table: &LoadedTable) -> Map<String, Value> {
        let mut head = Map::new();
        head.insert("table".to_owned(), json!(table.name.to_string()));
        head.insert("consistency".to_owned(), json!(self.consistency()));
        let snapshot = self.snapshot.as_ref();
        head.insert("snapshot_id".to_owned(), json!(snapshot.map(|snapshot| snapshot.snapshot_id().to_string())));
        head.insert("committed_at".to_owned(), json!(snapshot.map(|snapshot| answer::time(snapshot.timestamp_ms()))));
        if let Some((position, exact)) = self.cut {
            head.insert("cut".to_owned(), json!({"position": position, "exact": exact}));
        }
        head
    }
}

impl Lake {
    /// The snapshot at a point of a table's past.
    ///
    /// # Errors
    /// `SNAPSHOT_UNKNOWN`, `SNAPSHOT_EXPIRED`, `TAG_UNKNOWN` and `CUT_UNKNOWN`, with what is nearest.
    pub(crate) async fn find(&self, config: &Config, table: &LoadedTable, point: &Point) -> Result<Chosen, Failure> {
        match point {
            Point::Newest => Ok(newest(table)),
            Point::Snapshot(id) => match by_id(table, *id) {
                Err(failure)
                    if failure.problem.code == "SNAPSHOT_UNKNOWN" && self.has_cut(config, table, *id).await =>
                {
                    Err(expired(table, format!("snapshot {id} has expired"), &[]))
                }
                found => found,
            },
            Point::AsOf(time) => as_of(table, *time),
            Point::Tag(tag) => by_tag(table, tag),
            Point::Cut(position) => by_cut(table, &self.control_of(config, table).await?, *position),
        }
    }

    /// Whether a cut names the snapshot, which the table itself may have forgotten.
    async fn has_cut(&self, config: &Config, table: &LoadedTable, id: i64) -> bool {
        let (name, id) = (table.name.to_string(), id.to_string());
        let control = self.control_of(config, table).await;
        control.is_ok_and(|control| recorded_cuts(&control).iter().any(|cut| cut.tables.get(&name) == Some(&id)))
    }

    /// The id of the snapshot at a point.
    ///
    /// # Errors
    /// As [`Lake::find`]; `SNAPSHOT_UNKNOWN` for the newest of a table without commits.
    pub(crate) async fn find_id(&self, config: &Config, table: &LoadedTable, point: &Point) -> Result<i64, Failure> {
        let chosen = self.find(config, table, point).await?;
        chosen.snapshot.map(|snapshot| snapshot.snapshot_id()).ok_or_else(|| {
            let remedy = "wait for its first commit";
            Failure::failed("SNAPSHOT_UNKNOWN", table.name.to_string(), "the table has no snapshot yet", remedy)
        })
    }

    /// The control table of the pipeline whose cuts hold the table.
    async fn control_of(&self, config: &Config, table: &LoadedTable) -> Result<LoadedTable, Failure> {
        self.pipeline_of(config, table).await?.map(|(_, control)| control).ok_or_else(|| {
            let message = "no pipeline in the configuration has its cuts";
            let remedy = "name a snapshot, a time or a tag instead, or configure the table's pipeline";
            Failure::failed("CUT_UNKNOWN", table.name.to_string(), message, remedy)
        })
    }

    /// The pipeline that has the table, by the cuts that it writes, and its control table.
    pub(crate) async fn pipeline_of<'a>(
        &self,
        config: &'a Config,
        table: &LoadedTable,
    ) -> Result<Option<(&'a str, LoadedTable)>, Failure> {
        let source = table_state(table)?.source;
        for (name, pipeline) in &config.pipelines {
            if pipeline.namespace == table.name.namespace
                && let Some((control, found)) = self.control(name).await?
                && control.cut.is_some_and(|cut| Some(cut.source) == source)
            {
                return Ok(Some((name.as_str(), found)));
            }
        }
        Ok(None)
    }
}

/// What is still there around a point that is not.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Neighbours {
    older: Option<Neighbour>,
    newer: Option<Neighbour>,
    /// The nearest one with a tag.
    tag: Option<Neighbour>,
}

/// A snapshot that is kept.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Neighbour {
    snapshot_id: String,
    committed_at: String,
    tags: Vec<String>,
}

impl Neighbours {
    /// Around a point that is not there: of a snapshot's id, the time of the one that was built on it; of a cut, that of the
    /// newest snapshot up to its position; of what has no time of its own, the oldest that is kept.
    pub(crate) fn of(table: &LoadedTable, point: &Point) -> Self {
        let time = match point {
            Point::AsOf(time) => time.timestamp_millis(),
            Point::Snapshot(id) => {
                let mut snapshots = table.metadata.snapshots();
                let child = snapshots.find(|snapshot| snapshot.parent_snapshot_id() == Some(*id));
                child.map_or(i64::MIN, |child| child.timestamp_ms() - 1)
            }
            Point::Cut(position) => {
                let ends = |snapshot: &SnapshotRef| summary_text(snapshot, properties::TO)?.parse::<Position>().ok();
                let before = |snapshot: &&SnapshotRef| ends(snapshot).is_some_and(|end| end <= *position);
                let times = table.metadata.snapshots().filter(before).map(|snapshot| snapshot.timestamp_ms());
                times.max().unwrap_or(i64::MIN)
            }
            Point::Newest | Point::Tag(_) => i64::MIN,
        };
        let mut names = named_snapshots(table);
        names.values_mut().for_each(|names| names.retain(|name| name != "main"));
        let at = |snapshot: &SnapshotRef| snapshot.timestamp_ms();
        let age = |snapshot: &&SnapshotRef| (snapshot.timestamp_ms(), snapshot.sequence_number());
        let neighbour = |snapshot: &SnapshotRef| Neighbour {
            snapshot_id: snapshot.snapshot_id().to_string(),
            committed_at: answer::time(snapshot.timestamp_ms()),
            tags: names.get(&snapshot.snapshot_id()).cloned().unwrap_or_default(),
        };
        let snapshots = || table.metadata.snapshots();
        let tagged =
            |snapshot: &&SnapshotRef| names.get(&snapshot.snapshot_id()).is_some_and(|names| !names.is_empty());
        Self {
            older: snapshots().filter(|snapshot| at(snapshot) <= time).max_by_key(age).map(neighbour),
            newer: snapshots().filter(|snapshot| at(snapshot) > time).min_by_key(age).map(neighbour),
            tag: snapshots().filter(tagged).min_by_key(|snapshot| at(snapshot).abs_diff(time)).map(neighbour),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_names_a_point() {
        for (text, point) in [
            ("4212388120184501234", Point::Snapshot(4_212_388_120_184_501_234)),
            ("0/12C", Point::Cut(Position::new(0x12C))),
            ("1970-01-01T00:00:01Z", Point::AsOf(DateTime::from_timestamp(1, 0).unwrap())),
            ("daily/2026-11-21", Point::Tag("daily/2026-11-21".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(point), "{text}");
        }
    }
}
