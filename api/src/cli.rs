//! The command line (`design/interface.md` section 1): verbs, their arguments and their help. What they do is in
//! `verbs/`.

use std::path::PathBuf;

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use lakehouse_core::position::Position;
use lakehouse_core::schema::TableName;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::config::Span;
use crate::lake::Point;

/// Verbs of later releases: known, and not here.
pub(crate) const LATER: [&str; 6] = ["adopt", "doctor", "load", "deploy", "healthcheck", "explain-batch"];

/// Copies PostgreSQL into Apache Iceberg tables: exactly once, seconds behind, every commit a point to read at.
#[derive(Debug, Parser)]
#[command(name = "lakehouse", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// The configuration file.
    #[arg(long, global = true, env = "LAKEHOUSE_CONFIG", default_value = "lakehouse.toml", value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Answer with one JSON document.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Override a key of the configuration, such as pipelines.app.commit_interval_seconds=1.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run every role that the configuration names, until it is stopped.
    Run,
    /// Replicate, until it is stopped.
    Replicate {
        /// Only this pipeline (may be repeated); else all.
        #[arg(long = "pipeline", value_name = "P")]
        pipelines: Vec<String>,
    },
    /// Keep tables fast and small: compact, expire, clean; until it is stopped, or once.
    Maintain(Maintain),
    /// Answer over HTTP, until it is stopped.
    Serve,
    /// Check configuration, connections, rights and names; print the exact missing statements; write nothing.
    Validate {
        /// Only this pipeline (may be repeated); else all.
        #[arg(long = "pipeline", value_name = "P")]
        pipelines: Vec<String>,
    },
    /// Show pipelines and their tables: state, position, lag, rows.
    Status {
        /// Only this pipeline (may be repeated); else all.
        #[arg(long = "pipeline", value_name = "P")]
        pipelines: Vec<String>,
    },
    /// Wait until the lake holds a position of the source in all tables of a pipeline.
    Wait(Wait),
    /// List the tables of the lake.
    Tables,
    /// List the snapshots of a table, oldest first.
    Snapshots {
        /// namespace.table
        table: TableName,
    },
    /// Print rows of a table, now or in the past.
    Rows(Rows),
    /// Print what differs between two points of a table's past, row by row.
    Diff(Diff),
    /// Compare the source with the mirror at one position; exit code 5 if they differ.
    Verify(Verify),
    /// Check the structure of tables; exit code 5 if something is wrong.
    Fsck {
        /// Only this table (may be repeated); else all.
        #[arg(long = "table", value_name = "NAMESPACE.TABLE")]
        tables: Vec<TableName>,
    },
    /// Show how well tables can be read, and what their upkeep owes them.
    Health {
        /// Only this table, with every measure; namespace.table
        table: Option<TableName>,
        /// Look also for files of the table that no snapshot needs: lists its folder, reads all its manifests
        #[arg(long, requires = "table")]
        unreferenced: bool,
    },
    /// List what stands in a table's quarantine and why, the newest first; or apply what can be mapped by now.
    Quarantine(Quarantine),
    /// Copy tables anew from their source, beside what stands there, and put them in its place.
    Resync(Resync),
    /// Make the rows of an older snapshot current again, by a new one; the tables are held until you choose a way out.
    Rollback(Rollback),
    /// Bring back the rows from before a rollback, with all changes since.
    Undo(OfOperation),
    /// Give up a rollback that has not come to its end.
    Abort(OfOperation),
    /// Go on from a rollback's target with all changes since, but those left out.
    Replay(Replay),
    /// Go on from a rollback's rows with the changes since it; the tables diverge from their source.
    Accept(OfOperation),
    /// Give a snapshot a name, by which it is read and does not expire; or take the name away.
    Tag(Tag),
    /// The same with a name that stays: to take it away needs a reason, and over HTTP the role admin.
    Protect(Protect),
    /// List the rollbacks of a pipeline.
    Operations(Operations),
    /// Let a pipeline stand still.
    Pause(Pause),
    /// Let a paused pipeline go on.
    Resume(Resume),
    /// Look at the audit trail: what operators have done, who was refused, which rows were read over HTTP.
    #[command(subcommand, disable_help_subcommand = true)]
    Audit(Audit),
    /// Print the OpenAPI document of the HTTP service; it needs no configuration.
    Openapi,
    /// Print the completion script of a shell.
    Completions { shell: Shell },
    /// Print the version.
    Version,
}

#[derive(Debug, Args)]
pub(crate) struct Maintain {
    /// Do what is due, and end.
    #[arg(long)]
    pub(crate) once: bool,
    /// Only this table (may be repeated); else all.
    #[arg(long = "table", value_name = "NAMESPACE.TABLE")]
    pub(crate) tables: Vec<TableName>,
    /// Only say what would be done: every file, snapshot and tag.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// The pipeline; may be left out if there is only one.
    #[arg(long, value_name = "P")]
    pub(crate) pipeline: Option<String>,
    #[command(flatten)]
    pub(crate) until: Until,
    /// How long to wait, such as 500ms, 60s or 5m.
    #[arg(long, default_value = "60s", value_name = "TIME")]
    pub(crate) timeout: Span,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Until {
    /// Wait for this position (PostgreSQL: an LSN such as 0/16B3748).
    #[arg(long, value_name = "POS")]
    pub(crate) position: Option<Position>,
    /// Wait for the source's end as it stands now.
    #[arg(long)]
    pub(crate) caught_up: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rows {
    /// namespace.table
    pub(crate) table: TableName,
    #[command(flatten)]
    pub(crate) at: At,
    /// Only these columns, in this order.
    #[arg(long, value_delimiter = ',', value_name = "COLUMN,…")]
    pub(crate) select: Vec<String>,
    /// Only rows for which this SQL expression is true, such as "amount > 100 AND state = 'paid'".
    #[arg(long = "where", value_name = "EXPR")]
    pub(crate) filter: Option<String>,
    /// At most this many rows.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// How rows are written; csv, ndjson and arrow (an IPC stream) take any number of rows.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Which state of the table; the newest, if nothing is named.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct At {
    /// As of this snapshot.
    #[arg(long, value_name = "ID")]
    pub(crate) snapshot: Option<i64>,
    /// As of this time (RFC 3339, or a date; without a zone it is UTC).
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) as_of: Option<DateTime<Utc>>,
    /// As of this tag.
    #[arg(long, value_name = "NAME")]
    pub(crate) tag: Option<String>,
    /// As of the newest cut at or before this position: all tables of a pipeline agree there.
    #[arg(long, value_name = "POS")]
    pub(crate) cut: Option<Position>,
}

impl From<&At> for Point {
    fn from(at: &At) -> Self {
        match at {
            At { snapshot: Some(id), .. } => Self::Snapshot(*id),
            At { as_of: Some(time), .. } => Self::AsOf(*time),
            At { tag: Some(tag), .. } => Self::Tag(tag.clone()),
            At { cut: Some(position), .. } => Self::Cut(*position),
            At { .. } => Self::Newest,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Csv,
    Ndjson,
    Arrow,
}

/// What a diff tells of the way between two points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Rows that differ at its ends.
    #[default]
    Net,
    /// Every change between them, in order, from the table's history.
    Log,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// namespace.table
    pub(crate) table: TableName,
    /// From here: a snapshot's id, a time (RFC 3339), a cut's position, or a tag; main is the newest.
    pub(crate) from: Point,
    /// To here: the same.
    pub(crate) to: Point,
    /// Which rows differ, or every change in between, from the table's history.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) mode: Mode,
    /// Only say how many rows differ, or how many changes there are.
    #[arg(long)]
    pub(crate) counts: bool,
    /// End with exit code 5 if there is anything to tell.
    #[arg(long)]
    pub(crate) exit_code: bool,
    /// How rows are written; of an update the row before and right behind it the row after.
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with = "counts")]
    pub(crate) format: Option<Format>,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The pipeline; may be left out if there is only one.
    #[arg(long, value_name = "P")]
    pub(crate) pipeline: Option<String>,
    /// Only this table (may be repeated); else all of the pipeline.
    #[arg(long = "table", value_name = "NAMESPACE.TABLE")]
    pub(crate) tables: Vec<TableName>,
    /// Compare at a past cut, with the history folded to it.
    #[arg(long, value_name = "POS")]
    pub(crate) cut: Option<Position>,
    /// Show keys of rows that differ, not only their digests.
    #[arg(long)]
    pub(crate) show_keys: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Quarantine {
    /// The mirror, as namespace.table.
    #[arg(value_name = "NAMESPACE.TABLE")]
    pub(crate) table: TableName,
    /// At most this many rows, the newest ones.
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) limit: u32,
    /// Show keys, not only their digests.
    #[arg(long)]
    pub(crate) show_keys: bool,
    /// Apply the rows that can be mapped by now and whose keys have not been written since.
    #[arg(long, requires = "reason", conflicts_with_all = ["limit", "show_keys"])]
    pub(crate) replay: bool,
    /// With --replay: the pipeline; may be left out if there is only one.
    #[arg(long, requires = "replay", value_name = "P")]
    pub(crate) pipeline: Option<String>,
    /// With --replay: why; recorded with the request.
    #[arg(long, requires = "replay", value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// With --replay: do not ask.
    #[arg(long, requires = "replay")]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Resync {
    /// The pipeline; may be left out if there is only one.
    #[arg(long, value_name = "P")]
    pub(crate) pipeline: Option<String>,
    /// Mirrors, as namespace.table.
    #[arg(required = true, value_name = "NAMESPACE.TABLE")]
    pub(crate) tables: Vec<TableName>,
    /// Why; recorded with the cut.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
    /// Do not ask.
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// Mirrors, as namespace.table; with --cut or --as-of all of the pipeline, if none is named.
    #[arg(value_name = "NAMESPACE.TABLE")]
    pub(crate) tables: Vec<TableName>,
    /// The pipeline; may be left out if there is only one, or if tables of it are named.
    #[arg(long, value_name = "P")]
    pub(crate) pipeline: Option<String>,
    #[command(flatten)]
    pub(crate) at: At,
    /// Only show what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Why; recorded with the operation.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Do not ask.
    #[arg(long)]
    pub(crate) yes: bool,
}

/// What is done about a rollback.
#[derive(Debug, Args)]
pub(crate) struct OfOperation {
    /// The rollback's id; `lakehouse operations` lists them.
    #[arg(value_name = "OPERATION")]
    pub(crate) operation: String,
    /// The pipeline; may be left out if there is only one.
    #[arg(long, value_name = "P")]
    pub(crate) pipeline: Option<String>,
    /// Why; recorded with the operation.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
    /// Do not ask.
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    #[command(flatten)]
    pub(crate) of: OfOperation,
    /// Only this table of the operation (may be repeated); else all.
    #[arg(long = "table", value_name = "NAMESPACE.TABLE")]
    pub(crate) tables: Vec<TableName>,
    /// Leave out this transaction, by the source's number (may be repeated).
    #[arg(long, value_name = "TRANSACTION")]
    pub(crate) without: Vec<i64>,
    /// Leave out all transactions that end behind the first position, up to the second one.
    #[arg(long, value_name = "POS..POS")]
    pub(crate) without_range: Option<PositionRange>,
}

/// Positions behind `after`, up to `up_to`.
#[derive(Clone, Debug)]
pub(crate) struct PositionRange {
    pub(crate) after: Position,
    pub(crate) up_to: Position,
}

impl PositionRange {
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn new(after: Position, up_to: Position) -> Result<Self, String> {
        if after < up_to { Ok(Self { after, up_to }) } else { Err("the range ends before it begins".to_owned()) }
    }
}

impl std::str::FromStr for PositionRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write two positions with dots between, such as 0/16B3748..0/16B3900".to_owned();
        let (after, up_to) = text.split_once("..").ok_or_else(wrong)?;
        let position = |text: &str| text.parse().map_err(|_| wrong());
        Self::new(position(after)?, position(up_to)?)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// namespace.table
    pub(crate) table: TableName,
    /// The tag: letters, digits, `.`, `_` and `-`, and slashes between them.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) at: At,
    /// It may be at another snapshot, and moves.
    #[arg(long = "move")]
    pub(crate) moves: bool,
    /// Take the tag away; its snapshot may expire then.
    #[arg(long, conflicts_with_all = ["moves", "snapshot", "as_of", "tag", "cut"])]
    pub(crate) remove: bool,
    /// Why; recorded in the audit trail.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Do not ask.
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Protect {
    /// namespace.table
    pub(crate) table: TableName,
    /// The tag is `protected/NAME`.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) at: At,
    /// Take the tag away; its snapshot may expire then.
    #[arg(long, conflicts_with_all = ["snapshot", "as_of", "tag", "cut"])]
    pub(crate) remove: bool,
    /// Why; recorded in the audit trail.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
    /// Do not ask.
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Operations {
    /// Only this one.
    #[arg(value_name = "OPERATION")]
    pub(crate) operation: Option<String>,
    /// The pipeline; may be left out if there is only one.
    #[arg(long, value_name = "P")]
    pub(crate) pipeline: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// The pipeline; may be left out if there is only one.
    #[arg(long, value_name = "P")]
    pub(crate) pipeline: Option<String>,
    /// Why; shown by `status`.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// The pipeline; may be left out if there is only one.
    #[arg(long, value_name = "P")]
    pub(crate) pipeline: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Check that no line was changed, removed, added or moved; exit code 5 if one was.
    Verify(AuditVerify),
}

#[derive(Debug, Args)]
pub(crate) struct AuditVerify {
    /// The trail, or a copy of it; else the configuration's.
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Also: a line has this hash, which an earlier verification printed as the last one.
    #[arg(long, value_name = "HASH", value_parser = parse_hash)]
    pub(crate) expect_head: Option<String>,
    /// Also: there are at least so many entries.
    #[arg(long, value_name = "N")]
    pub(crate) expect_at_least: Option<u64>,
}

/// A SHA-256 as the audit trail writes it.
fn parse_hash(text: &str) -> Result<String, String> {
    let is_hash = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash { Ok(text.to_ascii_lowercase()) } else { Err("write 64 hexadecimal digits".to_owned()) }
}

/// RFC 3339, or a date; without a zone it is UTC.
pub(crate) fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    let text = text.trim();
    let zoned = || DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc());
    let plain = || {
        let formats = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"];
        formats.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok()).map(|time| time.and_utc())
    };
    let day = || Some(NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0)?.and_utc());
    zoned().or_else(plain).or_else(day).ok_or_else(|| "write 2026-11-21T09:30:00Z, or a date".to_owned())
}
