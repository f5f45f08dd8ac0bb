//! Independent Iceberg readers as judges, and PyIceberg as somebody else's engine on the same catalog.
//!
//! Not here: the engines (`deploy/readers/judge.py`, `catalog.py`) and what they must find (`oracle`).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::canonical::{Fold, folded};
use crate::oracle::difference;

/// How long a judge may think about one question.
const DEADLINE: Duration = Duration::from_secs(300);

/// An engine that shares no code with the product, or (Sail) not the code that wrote the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    DuckDb,
    Chdb,
    Sail,
    PyIceberg,
    /// With Iceberg's own runtime, the reference implementation.
    Spark,
    /// The strictest of Athena's family.
    Trino406,
    Trino483,
}

/// One engine in its own process, started once and asked often.
#[derive(Debug)]
pub struct Judge {
    engine: Engine,
    folds: Vec<Fold>,
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    /// Killed when dropped, and with it a server of its own.
    process: Child,
    /// What it leaves behind, as it is never asked to end.
    _folder: TempDir,
}

impl Engine {
    /// The engines of every run: the judges of end-to-end tests.
    pub const ALL: [Self; 4] = [Self::Sail, Self::DuckDb, Self::Chdb, Self::PyIceberg];
    /// The engines that need Java, for `deploy/test --long`.
    pub const LONG: [Self; 3] = [Self::Spark, Self::Trino406, Self::Trino483];

    /// The engines of every run, and those of the long one that can be had; the others are said to be skipped.
    #[must_use]
    pub fn at_hand() -> Vec<Self> {
        Self::ALL.into_iter().chain(Self::LONG.into_iter().filter(|engine| engine.is_at_hand())).collect()
    }

    /// Whether it runs here; if not, a line says that it is skipped.
    #[must_use]
    pub fn is_at_hand(self) -> bool {
        let Some(variable) = self.home() else { return true };
        let reason = if std::env::var_os("LAKEHOUSE_LONG").is_none() {
            "only in deploy/test --long"
        } else if std::env::var_os(variable).is_none() {
            "deploy/test --long has not found what it needs"
        } else {
            return true;
        };
        println!("SKIP {}: {reason}", self.name());
        false
    }

    /// The variable with the folder of an engine of the long tier.
    fn home(self) -> Option<&'static str> {
        match self {
            Self::Spark => Some("LAKEHOUSE_SPARK"),
            Self::Trino406 => Some("LAKEHOUSE_TRINO_406"),
            Self::Trino483 => Some("LAKEHOUSE_TRINO_483"),
            Self::DuckDb | Self::Chdb | Self::Sail | Self::PyIceberg => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::DuckDb => "duckdb",
            Self::Chdb => "chdb",
            Self::Sail => "sail",
            Self::PyIceberg => "pyiceberg",
            Self::Spark => "spark",
            Self::Trino406 => "trino-406",
            Self::Trino483 => "trino-483",
        }
    }
}

impl Judge {
    /// Starts the engine; about a second, for those of the long tier some ten.
    ///
    /// # Panics
    /// When the readers are not installed or the engine does not start.
    pub async fn start(engine: Engine) -> Self {
        let mut command = python(engine, "judge.py");
        let folder = tempfile::tempdir().expect("a temporary folder");
        command.args(["--engine", engine.name(), "--serve"]).env("TMPDIR", folder.path());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start the judge");
        let input = process.stdin.take().expect("piped");
        let answers = BufReader::new(process.stdout.take().expect("piped")).lines();
        let mut judge = Self { engine, folds: Vec::new(), input, answers, process, _folder: folder };
        let greeting = judge.answer().await;
        judge.folds = Vec::deserialize(&greeting["folds"]).unwrap_or_else(|error| panic!("{greeting}: {error}"));
        judge
    }

    /// The engine that judges.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The rows at a metadata file (path or `file:` URI) and snapshot (`None`: the current one) as canonical lines,
    /// sorted. No columns means all of the snapshot's schema.
    ///
    /// # Panics
    /// When the engine refuses; [`Judge::ask`] returns its error.
    pub async fn rows(&mut self, metadata: &str, snapshot: Option<i64>, columns: &[&str]) -> Vec<String> {
        let columns = if columns.is_empty() { Value::Null } else { json!(columns) };
        let snapshot = snapshot.map(|id| id.to_string());
        self.must(json!({"do": "rows", "metadata": metadata, "snapshot": snapshot, "columns": columns})).await
    }

    /// Compares the engine's rows with expected ones (canonical lines in any order), as far as the engine can tell
    /// them apart.
    ///
    /// # Panics
    /// When they differ, with the first differences.
    pub async fn assert_rows(&mut self, metadata: &str, snapshot: Option<i64>, columns: &[&str], expected: &[String]) {
        let found = self.rows(metadata, snapshot, columns).await;
        if let Some(difference) = difference(&self.folded(expected), &found) {
            panic!("{:?} at {metadata}, snapshot {snapshot:?}: {difference}", self.engine);
        }
    }

    /// Expected lines as this engine would say them, sorted.
    #[must_use]
    pub fn folded(&self, rows: &[String]) -> Vec<String> {
        folded(rows, &self.folds)
    }

    /// How many rows the engine counts. Some answer from metadata without reading data.
    ///
    /// # Panics
    /// As [`Judge::rows`].
    pub async fn count(&mut self, metadata: &str, snapshot: Option<i64>) -> u64 {
        let snapshot = snapshot.map(|id| id.to_string());
        let rows = self.must(json!({"do": "count", "metadata": metadata, "snapshot": snapshot})).await;
        let [count]: [String; 1] =
            serde_json::from_str(&rows.concat()).unwrap_or_else(|error| panic!("{rows:?}: {error}"));
        count.parse().unwrap_or_else(|error| panic!("{count}: {error}"))
    }

    /// The answer of a query that sees the table as `t`, in the engine's order. Not for PyIceberg, which has no SQL.
    ///
    /// # Panics
    /// As [`Judge::rows`].
    pub async fn sql(&mut self, metadata: &str, snapshot: Option<i64>, query: &str) -> Vec<String> {
        let snapshot = snapshot.map(|id| id.to_string());
        self.must(json!({"do": "sql", "metadata": metadata, "snapshot": snapshot, "sql": query})).await
    }

    /// Rewrites the data files of `namespace.table` in the SQLite catalog into as few as possible, as somebody else's
    /// engine. Spark only.
    ///
    /// # Panics
    /// When the engine refuses; [`Judge::ask`] returns its error.
    pub async fn compact(&mut self, database: &Path, table: &str) {
        self.must(json!({"do": "compact", "database": database, "table": table})).await;
    }

    /// The current metadata file of `namespace.table` in the SQLite catalog, read with nobody's library.
    ///
    /// # Panics
    /// When the catalog has no such table.
    pub async fn metadata(&mut self, database: &Path, table: &str) -> String {
        self.must(json!({"do": "locate", "database": database, "table": table})).await.concat()
    }

    /// Asks a question of `judge.py --serve`.
    ///
    /// # Errors
    /// What the engine said instead of rows.
    ///
    /// # Panics
    /// When the engine crashed.
    pub async fn ask(&mut self, question: Value) -> Result<Vec<String>, String> {
        let sent = self.input.write_all(format!("{question}\n").as_bytes()).await;
        sent.unwrap_or_else(|error| panic!("{:?} does not listen: {error}", self.engine));
        let answer = self.answer().await;
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(Vec::deserialize(&answer["rows"]).unwrap_or_else(|error| panic!("{answer}: {error}"))),
        }
    }

    async fn must(&mut self, question: Value) -> Vec<String> {
        let shown = question.to_string();
        self.ask(question).await.unwrap_or_else(|error| panic!("{:?} refused {shown}: {error}", self.engine))
    }

    async fn answer(&mut self) -> Value {
        let line = match tokio::time::timeout(DEADLINE, self.answers.next_line()).await {
            Err(_) => panic!("{:?} gave no answer within {DEADLINE:?}", self.engine),
            Ok(line) => line.expect("read the judge's answer"),
        };
        let Some(line) = line else {
            panic!("{:?} crashed: {:?}", self.engine, self.process.wait().await);
        };
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }
}

/// PyIceberg on the SQLite catalog that the product writes: the commits of somebody else's engine.
#[derive(Debug)]
pub struct ForeignEngine {
    database: PathBuf,
}

impl ForeignEngine {
    /// On the catalog's SQLite file.
    #[must_use]
    pub fn new(database: &Path) -> Self {
        Self { database: database.to_owned() }
    }

    /// Everything the catalog lists; the form stands in `deploy/readers/catalog.py`.
    ///
    /// # Panics
    /// When PyIceberg fails, as for every verb.
    pub async fn list(&self) -> Value {
        self.run(&["list"], "").await
    }

    /// Deletes rows by an overwrite commit; `filter` is PyIceberg's, such as `id > 3`.
    pub async fn delete(&self, table: &str, filter: &str) -> Value {
        self.run(&["delete", "--table", table, "--where", filter], "").await
    }

    /// Rewrites all live rows into new files, in one commit.
    pub async fn rewrite(&self, table: &str) -> Value {
        self.run(&["rewrite", "--table", table], "").await
    }

    /// Rewrites all live rows into a new file as a compaction does: in a replace commit, which promises to keep them.
    /// `choice` adds catalog.py's `--files` or `--wrong`.
    pub async fn replace(&self, table: &str, choice: &[&str]) -> Value {
        self.run(&[&["replace", "--table", table], choice].concat(), "").await
    }

    /// Appends rows, given as JSON objects, one a line.
    pub async fn append(&self, table: &str, rows: &str) -> Value {
        self.run(&["append", "--table", table, "--rows", "-"], rows).await
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Value {
        let mut command = python(Engine::PyIceberg, "catalog.py");
        command.arg("--database").arg(&self.database).args(arguments);
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = pipes.spawn().expect("start PyIceberg");
        let mut stdin = process.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).await.expect("hand over the rows");
        drop(stdin);
        let output = process.wait_with_output().await.expect("wait for PyIceberg");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("one JSON document")
    }
}

/// A program of `deploy/readers`, run by the interpreter of the virtual environment that the engine is in.
/// What starts a program of `deploy/readers` for an engine: its python, and the program's file.
#[must_use]
pub fn program(engine: Engine, program: &str) -> [String; 2] {
    let command = python(engine, program);
    let text = |part: &std::ffi::OsStr| part.to_str().expect("paths of tests are text").to_owned();
    let file = command.as_std().get_args().last().expect("the program's file");
    [text(command.as_std().get_program()), text(file)]
}

pub(crate) fn python(engine: Engine, program: &str) -> Command {
    let interpreter = match std::env::var_os("LAKEHOUSE_SPARK") {
        // Its library and Sail's client for it exclude each other.
        Some(home) if engine == Engine::Spark => Path::new(&home).join("python/bin/python").into_os_string(),
        _ => std::env::var_os("LAKEHOUSE_READERS").expect(
            "LAKEHOUSE_READERS is not set: run deploy/test, which installs the readers and sets it to their python",
        ),
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/readers");
    let mut command = Command::new(interpreter);
    // -B: no compiled files beside the sources.
    command.arg("-B").arg(folder.join(program)).kill_on_drop(true);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A catalog with one table, made by PyIceberg.
    async fn lake(dir: &Path) -> PathBuf {
        const MAKE: &str = r#"
import sys, pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
catalog = SqlCatalog("lakehouse", uri=f"sqlite:///{sys.argv[1]}/catalog.db", warehouse=f"file://{sys.argv[1]}/warehouse")
catalog.create_namespace("ns")
rows = pa.table({"id": pa.array([1, 2, 3]), "l": pa.array([["a"], [], None], pa.list_(pa.string()))})
catalog.create_table("ns.t", rows.schema).append(rows)
"#;
        let interpreter = std::env::var_os("LAKEHOUSE_READERS").expect("run deploy/test");
        let made = Command::new(interpreter).args(["-c", MAKE]).arg(dir).status().await;
        assert!(made.expect("python").success());
        dir.join("catalog.db")
    }

    #[tokio::test]
    async fn every_engine_reads_now_and_before_a_foreign_commit() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let database = lake(dir.path()).await;
        let foreign = ForeignEngine::new(&database);
        let before = foreign.list().await["namespaces"][0]["tables"][0].clone();
        let snapshot: i64 = before["current_snapshot_id"].as_str().expect("an id").parse().expect("a number");
        foreign.delete("ns.t", "id == 1").await;
        foreign.rewrite("ns.t").await;
        foreign.append("ns.t", r#"{"id": 4, "l": [null]}"#).await;
        let old: [String; 3] = [r#"["1",["a"]]"#, r#"["2",[]]"#, r#"["3",null]"#].map(str::to_owned);
        let new: [String; 3] = [r#"["2",[]]"#, r#"["3",null]"#, r#"["4",[null]]"#].map(str::to_owned);
        for engine in Engine::at_hand() {
            let mut judge = Judge::start(engine).await;
            let metadata = judge.metadata(&database, "ns.t").await;
            judge.assert_rows(&metadata, None, &[], &new).await;
            judge.assert_rows(&metadata, Some(snapshot), &[], &old).await;
            assert_eq!(judge.rows(&metadata, None, &["id"]).await, [r#"["2"]"#, r#"["3"]"#, r#"["4"]"#]);
            assert_eq!(judge.count(&metadata, Some(snapshot)).await, 3);
            if engine != Engine::PyIceberg {
                assert_eq!(judge.sql(&metadata, None, "SELECT max(id) AS m FROM t").await, [r#"["4"]"#]);
            }
            let refused = judge.ask(json!({"do": "rows", "metadata": metadata, "columns": ["absent"]})).await;
            assert!(refused.expect_err("no such column").contains("absent"));
        }
    }

    #[tokio::test]
    #[should_panic(expected = "+ [\"3\",null]")]
    async fn a_row_too_much_is_shown() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let database = lake(dir.path()).await;
        let mut judge = Judge::start(Engine::DuckDb).await;
        let metadata = judge.metadata(&database, "ns.t").await;
        let expected = [r#"["1",["a"]]"#, r#"["2",[]]"#].map(str::to_owned);
        judge.assert_rows(&metadata, None, &[], &expected).await;
    }
}
