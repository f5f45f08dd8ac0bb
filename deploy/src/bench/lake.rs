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
use crate::process::{self, Process, Run};
use crate::server::{Server, parse_position};

pub(crate) const SLOT: &str = "lakehouse_bench";
pub(crate) const PUBLICATION: &str = "lakehouse_bench";
/// Of the pipeline, and the namespace of its tables.
pub(crate) const NAME: &str = "bench";
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

/// Whether the lake equals the source in the end.
pub(crate) enum Verdict {
    Equal,
    Different(String),
    Unknown(String),
}

impl Lake {
    pub(crate) fn new(server: &Server) -> Result<Self> {
        Self::new_with(server, "")
    }

    /// A catalog and no pipeline: somebody else writes its tables.
    pub(crate) fn without_source() -> Result<Self> {
        Self::with(CATALOG)
    }

    /// The same, and whoever can connect to the address reads.
    pub(crate) fn serving(address: &str) -> Result<Self> {
        Self::with(&format!("{CATALOG}\n[api]\nlisten = \"{address}\"\nallow_anonymous = true\n"))
    }

    /// The same as [`Lake::new`], with further sections of the configuration.
    pub(crate) fn new_with(server: &Server, sections: &str) -> Result<Self> {
        let configuration = format!("{}{sections}", configuration(server.port()));
        Ok(Self { password: server.password().to_owned(), ..Self::with(&configuration)? })
    }

    /// With this configuration, whose pipeline and namespace are called `bench`.
    pub(crate) fn with(configuration: &str) -> Result<Self> {
        let binary = binary()?;
        if !binary.exists() {
            return Err(format!("no {}: start deploy/bench, which builds it", binary.display()).into());
        }
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("lakehouse.toml"), configuration)?;
        Ok(Self { folder, password: String::new(), seen: RefCell::default() })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `lakehouse replicate`.
    pub(crate) fn start(&self) -> Result<Process> {
        self.start_verb(&["replicate"])
    }

    /// Any verb that is to be measured.
    pub(crate) fn start_verb(&self, arguments: &[&str]) -> Result<Process> {
        let mut command = self.command(arguments)?;
        Process::start("lakehouse", &mut command, self.folder().join("lakehouse.log"))
    }

    /// Runs until all of `tables` are copied and changes are streamed, then stops: what is written now is WAL.
    pub(crate) async fn copy_and_stop(&self, server: &Server, tables: &[String], limit: Duration) -> Result<()> {
        let process = self.start()?;
        self.wait_until(&process, limit, || self.is_copied(tables)).await?;
        server.streams(SLOT, &process).await?;
        self.stop(process).await
    }

    pub(crate) async fn stop(&self, process: Process) -> Result<()> {
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

    /// The newest cut.
    fn cut(&self) -> Result<Option<Value>> {
        let properties = self.properties("lakehouse_control", NAME)?.unwrap_or_default();
        Ok(properties["cdc.cut"].as_str().map(serde_json::from_str).transpose()?)
    }

    /// Whether a cut holds, of each table by its source's name, each shard up to this sequence number.
    pub(crate) fn holds_lanes(&self, ends: &[(String, Vec<(String, String)>)]) -> Result<bool> {
        let properties = self.properties("lakehouse_control", NAME)?.unwrap_or_default();
        let Some(lanes) = properties["cdc.lanes"].as_str() else { return Ok(false) };
        let lanes: Value = serde_json::from_str(lanes)?;
        let at = |table: &str, shard: &str| lanes[table]["lanes"][shard]["at"].as_str().unwrap_or_default().to_owned();
        Ok(ends.iter().all(|(table, shards)| shards.iter().all(|(shard, end)| at(table, shard) == *end)))
    }

    /// Whether a cut holds everything up to `position`.
    pub(crate) fn holds(&self, position: u64) -> Result<bool> {
        let Some(cut) = self.cut()? else { return Ok(false) };
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

    /// What the product answers to a verb, as JSON.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let answer = self.command(&[&["--json"], arguments].concat())?.stdin(Stdio::null()).output()?;
        match answer.status.success() {
            true => Ok(serde_json::from_slice(&answer.stdout)?),
            false => Err(format!("{arguments:?}: {}", String::from_utf8_lossy(&answer.stderr)).into()),
        }
    }

    /// Lets the product itself compare its lake with the source; outside of any measurement.
    pub(crate) async fn verify(&self, server: &Server) -> Result<Verdict> {
        let process = self.start()?;
        server.streams(SLOT, &process).await?;
        self.verdict(process).await
    }

    /// The same, of a source that needs nothing first.
    pub(crate) async fn verify_running(&self) -> Result<Verdict> {
        self.verdict(self.start()?).await
    }

    async fn verdict(&self, process: Process) -> Result<Verdict> {
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
        // For servers that take any.
        command.env("AWS_ACCESS_KEY_ID", "bench").env("AWS_SECRET_ACCESS_KEY", "bench");
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

const CATALOG: &str = r#"[catalog]
kind = "sqlite"
path = "lake/catalog.db"
warehouse = "lake/warehouse"
"#;

/// Defaults but for what the bench is about: histories are kept, and a commit every second.
fn configuration(port: u16) -> String {
    format!(
        r#"{CATALOG}
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
