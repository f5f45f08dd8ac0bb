//! The product under measure: a folder with its configuration and its lake, the real binary as a child, and how far
//! the lake has come, read from its catalog without any of the product's code.
//!
//! Not here: when the clock starts and stops.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, OptionalExtension};
use serde_json::Value;
use tempfile::TempDir;

use crate::Result;
use crate::process::{self, Process};
use crate::server::{Server, parse_position};

pub(crate) const SLOT: &str = "lakehouse_bench";
pub(crate) const PUBLICATION: &str = "lakehouse_bench";
/// Of the pipeline, and the namespace of its tables.
const NAME: &str = "bench";
/// How long work under way may take once a stop was asked for.
const GRACE: Duration = Duration::from_secs(60);
/// Between two looks at the catalog.
const LOOK: Duration = Duration::from_millis(20);

pub(crate) struct Lake {
    folder: TempDir,
    password: String,
    /// Properties by metadata file, of the file that a table had when it was last looked at.
    seen: RefCell<BTreeMap<String, (String, Value)>>,
}

/// What one run of the product cost.
pub(crate) struct Run {
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_rss_bytes: u64,
}

/// Whether the lake equals the source in the end.
pub(crate) enum Verdict {
    Equal,
    Different(String),
    Unknown(String),
}

impl Lake {
    pub(crate) fn new(server: &Server) -> Result<Self> {
        let binary = binary()?;
        if !binary.exists() {
            return Err(format!("no {}: start deploy/bench, which builds it", binary.display()).into());
        }
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("lakehouse.toml"), configuration(server.port()))?;
        Ok(Self { folder, password: server.password().to_owned(), seen: RefCell::default() })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `lakehouse replicate`.
    pub(crate) fn start(&self) -> Result<Process> {
        let mut command = self.command(&["replicate"])?;
        Process::start("lakehouse", &mut command, self.folder().join("lakehouse.log"))
    }

    /// Runs until all of `tables` are copied and changes are streamed, then stops: what is written now is WAL.
    pub(crate) async fn copy_and_stop(&self, server: &Server, tables: &[String], limit: Duration) -> Result<()> {
        let process = self.start()?;
        self.wait_until(&process, limit, || self.is_copied(tables)).await?;
        server.streams(SLOT, &process).await?;
        process.terminate()?;
        process.finish(GRACE).await?;
        Ok(())
    }

    /// The clock is `begun`; it stops when `is_done`. The processor time is the whole process's, its end included.
    pub(crate) async fn measure(
        &self,
        process: Process,
        begun: Instant,
        limit: Duration,
        is_done: impl Fn() -> Result<bool>,
    ) -> Result<Run> {
        self.wait_until(&process, limit, is_done).await?;
        let seconds = begun.elapsed().as_secs_f64();
        let peak_rss_bytes = process.peak_rss_bytes()?;
        process.terminate()?;
        let cpu_seconds = process.finish(GRACE).await?;
        Ok(Run { seconds, cpu_seconds, peak_rss_bytes })
    }

    pub(crate) async fn wait_until(
        &self,
        process: &Process,
        limit: Duration,
        is_done: impl Fn() -> Result<bool>,
    ) -> Result<()> {
        let begun = Instant::now();
        while !is_done()? {
            process.must_run()?;
            if begun.elapsed() > limit {
                return Err(process.failure(&format!("has not done its work within {limit:?}")));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Whether a cut holds everything up to `position`.
    pub(crate) fn holds(&self, position: u64) -> Result<bool> {
        let Some(properties) = self.properties("lakehouse_control", NAME)? else {
            return Ok(false);
        };
        let Some(cut) = properties["cdc.cut"].as_str() else {
            return Ok(false);
        };
        let cut: Value = serde_json::from_str(cut)?;
        let reached = cut["position"].as_str().ok_or("the cut has no position")?;
        Ok(parse_position(reached)? >= position)
    }

    /// Whether the copy of every table has landed: only then a table has a position.
    pub(crate) fn is_copied(&self, tables: &[String]) -> Result<bool> {
        for table in tables {
            match self.properties(NAME, table)? {
                Some(properties) if !properties["cdc.position"].is_null() => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Keeps the lake as it is now, for [`Lake::restore`].
    pub(crate) fn keep(&self) -> Result<()> {
        copy_folder(&self.folder().join("lake"), &self.folder().join("kept"))
    }

    /// Puts the kept lake in the place of the present one: tables name their files by absolute paths.
    pub(crate) fn restore(&self) -> Result<()> {
        self.clear()?;
        copy_folder(&self.folder().join("kept"), &self.folder().join("lake"))
    }

    /// Removes the lake.
    pub(crate) fn clear(&self) -> Result<()> {
        let lake = self.folder().join("lake");
        if lake.exists() {
            fs::remove_dir_all(&lake)?;
        }
        self.seen.borrow_mut().clear();
        Ok(())
    }

    /// Lets the product itself compare its lake with the source; outside of any measurement.
    pub(crate) async fn verify(&self, server: &Server) -> Result<Verdict> {
        let process = self.start()?;
        server.streams(SLOT, &process).await?;
        let mut verify = self.command(&["--json", "verify"])?;
        let answer = verify.stdin(Stdio::null()).output()?;
        process.terminate()?;
        process.finish(GRACE).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        Ok(match answer.status.code() {
            Some(0) => Verdict::Equal,
            Some(5) => Verdict::Different(text(&answer.stdout)),
            _ => Verdict::Unknown(format!("{}{}", text(&answer.stdout), text(&answer.stderr))),
        })
    }

    /// The current metadata file of a mirror.
    pub(crate) fn metadata(&self, table: &str) -> Result<PathBuf> {
        let location = self.location(NAME, table)?.ok_or_else(|| format!("the lake has no table {table}"))?;
        Ok(PathBuf::from(location.strip_prefix("file://").unwrap_or(&location)))
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = process::command(&binary()?);
        command.arg("--config").arg(self.folder().join("lakehouse.toml")).args(arguments);
        command.current_dir(self.folder()).env("BENCH_PASSWORD", &self.password);
        Ok(command)
    }

    /// The table's properties; parsed again only when its metadata file is another one.
    fn properties(&self, namespace: &str, table: &str) -> Result<Option<Value>> {
        let Some(location) = self.location(namespace, table)? else {
            return Ok(None);
        };
        let mut seen = self.seen.borrow_mut();
        if let Some((known, properties)) = seen.get(table)
            && *known == location
        {
            return Ok(Some(properties.clone()));
        }
        let Ok(text) = fs::read_to_string(location.strip_prefix("file://").unwrap_or(&location)) else {
            // Removed since the catalog was read: there is a newer one.
            return Ok(None);
        };
        let metadata: Value = serde_json::from_str(&text)?;
        let properties = metadata["properties"].clone();
        seen.insert(table.to_owned(), (location, properties.clone()));
        Ok(Some(properties))
    }

    fn location(&self, namespace: &str, table: &str) -> Result<Option<String>> {
        let path = self.folder().join("lake/catalog.db");
        if !path.exists() {
            return Ok(None);
        }
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        let exists = "SELECT 1 FROM sqlite_master WHERE name = 'iceberg_tables'";
        if connection.query_row(exists, [], |_| Ok(())).optional()?.is_none() {
            return Ok(None);
        }
        let location = connection.query_row(
            "SELECT metadata_location FROM iceberg_tables WHERE table_namespace = ?1 AND table_name = ?2",
            [namespace, table],
            |row| row.get(0),
        );
        Ok(location.optional()?)
    }
}

/// `LAKEHOUSE_BIN`, or the one that was built beside this program.
fn binary() -> Result<PathBuf> {
    match std::env::var_os("LAKEHOUSE_BIN") {
        Some(path) => Ok(path.into()),
        None => Ok(std::env::current_exe()?.with_file_name("lakehouse")),
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{} cannot be copied", from.display()).into()),
    }
}

/// Defaults but for what the bench is about: histories are kept, and a commit every second.
fn configuration(port: u16) -> String {
    format!(
        r#"[catalog]
kind = "sqlite"
path = "lake/catalog.db"
warehouse = "lake/warehouse"

[pipelines.{NAME}]
namespace = "{NAME}"
commit_interval_seconds = 1
history = true
local_state = "lake/state"

[pipelines.{NAME}.postgres]
host = "127.0.0.1"
port = {port}
database = "postgres"
user = "postgres"
password = {{ env = "BENCH_PASSWORD" }}
tls = "disable"
slot = "{SLOT}"
publication = "{PUBLICATION}"
tables = ["public.*"]
"#
    )
}
