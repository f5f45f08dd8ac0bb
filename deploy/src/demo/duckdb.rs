//! DuckDB, somebody else's engine, on the demo's lake; through `deploy/readers/query.py`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use super::Failed;

/// DuckDB and the catalog that tells it where tables are.
#[derive(Debug)]
pub(crate) struct DuckDb {
    interpreter: PathBuf,
    /// Arguments of `query.py` that lead to it.
    catalog: Vec<String>,
}

/// A table, now or as of a snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// `namespace.table`.
    pub(crate) name: String,
    pub(crate) snapshot: Option<String>,
}

/// What it said.
#[derive(Debug)]
pub(crate) struct Answer {
    /// What was run, for any DuckDB shell.
    pub(crate) sql: String,
    /// Values as text; NULL is empty.
    pub(crate) rows: Vec<Vec<String>>,
    /// Of the query alone.
    pub(crate) seconds: f64,
}

impl DuckDb {
    pub(crate) fn new(catalog: &[String]) -> Result<Self, Failed> {
        match std::env::var_os("LAKEHOUSE_READERS") {
            Some(interpreter) => Ok(Self { interpreter: interpreter.into(), catalog: catalog.to_owned() }),
            None => Err(Failed::new("no DuckDB: start deploy/demo, which installs it and sets LAKEHOUSE_READERS")),
        }
    }

    /// The command that a person would type for the same answer.
    pub(crate) fn command_line(&self, table: &str, query: &str) -> String {
        format!(
            "{} deploy/readers/query.py {} --table {table} '{query}'",
            self.interpreter.display(),
            self.catalog.join(" ")
        )
    }

    /// Runs one query over `tables`, each under its name without the namespace.
    pub(crate) async fn ask(&self, tables: &[Table], query: &str) -> Result<Answer, Failed> {
        let mut command = Command::new(&self.interpreter);
        // -B: no compiled files beside the sources.
        command.arg("-B").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("readers/query.py"));
        command.args(&self.catalog).arg("--json");
        for table in tables {
            let at = table.snapshot.as_ref().map(|id| format!("@{id}")).unwrap_or_default();
            command.arg("--table").arg(format!("{}{at}", table.name));
        }
        let output = command.arg(query).stdin(Stdio::null()).kill_on_drop(true).output().await?;
        let answer: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        let Some(answer) = answer.filter(|_| output.status.success()) else {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Failed::new(format!("DuckDB could not answer {query}: {}", said.trim_end())));
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let row = |row: &Value| row.as_array().into_iter().flatten().map(text).collect();
        Ok(Answer {
            sql: text(&answer["sql"]),
            rows: answer["rows"].as_array().into_iter().flatten().map(row).collect(),
            seconds: answer["seconds"].as_f64().unwrap_or(0.0),
        })
    }
}
