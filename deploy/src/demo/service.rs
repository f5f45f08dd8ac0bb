//! The `lakehouse` binary as the demo uses it: one process that replicates, and verbs that are asked with `--json`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, Command};

use super::Failed;

/// How long the service may take to stop; its own bound is 25 s.
const LONGEST_STOP: Duration = Duration::from_secs(40);
/// Lines of the log that are shown when it has ended by itself.
const LAST_LINES: usize = 20;

/// The binary and its configuration.
#[derive(Debug)]
pub(crate) struct Lakehouse {
    binary: PathBuf,
    folder: PathBuf,
    environment: Vec<(&'static str, String)>,
}

/// The process that replicates. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Service {
    child: Child,
    log: PathBuf,
}

/// What `status` says of the demo's pipeline.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    pub(crate) state: String,
    pub(crate) code: Option<String>,
    pub(crate) lag_seconds: Option<f64>,
    pub(crate) lag_bytes: Option<u64>,
    pub(crate) cut: Option<String>,
    pub(crate) tables: Vec<TableStatus>,
}

#[derive(Clone, Debug)]
pub(crate) struct TableStatus {
    /// `namespace.table`.
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) rows: u64,
    pub(crate) snapshot: String,
}

/// One line of `snapshots`.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    pub(crate) committed_at: String,
    pub(crate) kind: String,
    /// The position that the table had before it; only of one that moved it.
    pub(crate) from: Option<String>,
    pub(crate) inserted: u64,
    pub(crate) updated: u64,
    pub(crate) deleted: u64,
}

impl Lakehouse {
    /// Configured by `lakehouse.toml` in `folder`, and by variables as any AWS program is.
    pub(crate) fn new(folder: &Path, environment: &[(&'static str, String)]) -> Result<Self, Failed> {
        let binary = std::env::var_os("LAKEHOUSE_BIN").map(PathBuf::from);
        match binary.filter(|binary| binary.exists()) {
            Some(binary) => Ok(Self { binary, folder: folder.to_owned(), environment: environment.to_vec() }),
            None => Err(Failed::new("no lakehouse binary: start deploy/demo, which builds it and sets LAKEHOUSE_BIN")),
        }
    }

    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.join("lakehouse.toml")
    }

    /// Starts `lakehouse run`; its log goes to a file.
    pub(crate) fn start(&self) -> Result<Service, Failed> {
        let log = self.folder.join("lakehouse.log");
        let file = File::create(&log)?;
        let child = self.command(&["run"]).stdout(Stdio::null()).stderr(file).spawn()?;
        Ok(Service { child, log })
    }

    /// A verb's exit code and its one JSON document.
    pub(crate) async fn ask(&self, arguments: &[&str]) -> Result<(Option<i32>, Value), Failed> {
        let output = self.command(&["--json"]).args(arguments).output().await?;
        let answer: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        match answer {
            Some(answer) => Ok((output.status.code(), answer)),
            None => {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(Failed::new(format!("lakehouse {} gave no answer: {said}", arguments.join(" "))))
            }
        }
    }

    /// As [`Lakehouse::ask`], of a verb that must succeed.
    pub(crate) async fn must(&self, arguments: &[&str]) -> Result<Value, Failed> {
        match self.ask(arguments).await? {
            (Some(0), answer) => Ok(answer),
            (exit, answer) => Err(Failed::of_verb(arguments[0], exit, &answer)),
        }
    }

    /// Of the pipeline that the story follows.
    pub(crate) async fn status(&self) -> Result<Status, Failed> {
        self.status_of(super::PIPELINE).await
    }

    pub(crate) async fn status_of(&self, pipeline: &str) -> Result<Status, Failed> {
        let answer = self.must(&["status", "--pipeline", pipeline]).await?;
        let pipeline = &answer["pipelines"][0];
        let table = |table: &Value| TableStatus {
            name: text(&table["table"]),
            state: text(&table["state"]),
            rows: table["rows"].as_u64().unwrap_or(0),
            snapshot: text(&table["snapshot_id"]),
        };
        Ok(Status {
            state: text(&pipeline["state"]),
            code: pipeline["code"].as_str().map(str::to_owned),
            lag_seconds: pipeline["lag_seconds"].as_f64(),
            lag_bytes: pipeline["lag_bytes"].as_u64(),
            cut: pipeline["cut"]["position"].as_str().map(str::to_owned),
            tables: pipeline["tables"].as_array().into_iter().flatten().map(table).collect(),
        })
    }

    pub(crate) async fn snapshots(&self, table: &str) -> Result<Vec<Snapshot>, Failed> {
        let answer = self.must(&["snapshots", table]).await?;
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let snapshot = |snapshot: &Value| Snapshot {
            id: text(&snapshot["snapshot_id"]),
            committed_at: text(&snapshot["committed_at"]),
            kind: text(&snapshot["kind"]),
            from: snapshot["from"].as_str().map(str::to_owned),
            inserted: number(&snapshot["inserted"]),
            updated: number(&snapshot["updated"]),
            deleted: number(&snapshot["deleted"]),
        };
        Ok(answer["snapshots"].as_array().into_iter().flatten().map(snapshot).collect())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            // The demo's own variables, overrides meant for another installation, and somebody's real keys.
            if text.starts_with("LAKEHOUSE_") || text.starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        command.arg("--config").arg(self.config()).args(arguments).current_dir(&self.folder);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }
}

impl Service {
    /// # Errors
    /// It has ended, with the end of its log.
    pub(crate) fn check(&mut self) -> Result<(), Failed> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(());
        };
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        Err(Failed { exit: 4, message: format!("the service has ended ({status}), the end of its log:\n{last}") })
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// SIGTERM, and SIGKILL if that is not enough.
    pub(crate) async fn stop(mut self) {
        if let (Ok(None), Some(id)) = (self.child.try_wait(), self.child.id()) {
            let _ = Command::new("kill").args(["-TERM", &id.to_string()]).status().await;
            let _ = tokio::time::timeout(LONGEST_STOP, self.child.wait()).await;
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}
