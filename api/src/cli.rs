//! The command line (`design/interface.md` section 1): verbs, their arguments and their help. What they do is in
//! `verbs/`.

use std::path::PathBuf;

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use lakehouse_core::position::Position;
use lakehouse_core::schema::TableName;

use crate::config::Span;

/// Verbs of later releases: known, and not here.
pub(crate) const LATER: [&str; 24] = [
    "maintain",
    "serve",
    "diff",
    "pause",
    "resume",
    "resync",
    "rollback",
    "undo",
    "replay",
    "accept",
    "abort",
    "adopt",
    "tag",
    "protect",
    "operations",
    "audit",
    "health",
    "doctor",
    "load",
    "deploy",
    "openapi",
    "healthcheck",
    "quarantine",
    "explain-batch",
];

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
    /// Compare the source with the mirror at one position; exit code 5 if they differ.
    Verify(Verify),
    /// Check the structure of tables; exit code 5 if something is wrong.
    Fsck {
        /// Only this table (may be repeated); else all.
        #[arg(long = "table", value_name = "NAMESPACE.TABLE")]
        tables: Vec<TableName>,
    },
    /// Print the completion script of a shell.
    Completions { shell: Shell },
    /// Print the version.
    Version,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Csv,
    Ndjson,
    Arrow,
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

fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    let text = text.trim();
    let zoned = || DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc());
    let plain = || {
        let formats = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"];
        formats.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok()).map(|time| time.and_utc())
    };
    let day = || Some(NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0)?.and_utc());
    zoned().or_else(plain).or_else(day).ok_or_else(|| "write 2026-11-21T09:30:00Z, or a date".to_owned())
}
