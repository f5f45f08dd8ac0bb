//! Other engines on an Iceberg REST catalog: PyIceberg, which reads and commits, and DuckDB, which reads.
//!
//! Not here: the engines themselves (`deploy/readers/rest.py`).

use std::process::Stdio;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::Mutex;

use crate::objects::Objects;
use crate::readers::{Engine, python};

/// How to reach the catalog, and the objects if they are in S3. Clones share one process, and take turns.
#[derive(Clone, Debug)]
pub struct RestEngine {
    catalog: Vec<String>,
    process: Arc<Mutex<Option<Process>>>,
}

/// `rest.py --serve`, started by the first question.
#[derive(Debug)]
struct Process {
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl RestEngine {
    /// On a catalog (its URI without `/v1`), a warehouse (of S3 Tables: a table bucket's ARN) and its objects.
    #[must_use]
    pub fn new(uri: &str, warehouse: &str, objects: &Objects) -> Self {
        let Objects { endpoint, region, access_key, secret_key } = objects;
        let mut engine = Self::on_files(uri);
        engine.option("--s3", endpoint).option("--region", region);
        engine.option("--key", access_key).option("--secret", secret_key);
        engine.on_warehouse(warehouse)
    }

    /// The same engine on another warehouse of the catalog.
    #[must_use]
    pub fn on_warehouse(mut self, warehouse: &str) -> Self {
        self.option("--warehouse", warehouse);
        self
    }

    /// On a catalog whose tables lie in local files.
    #[must_use]
    pub fn on_files(uri: &str) -> Self {
        Self { catalog: vec!["--uri".to_owned(), uri.to_owned()], process: Arc::default() }
    }

    /// The same engine with one more header on each request.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.option("--header", &format!("{name}={value}"));
        self
    }

    fn option(&mut self, name: &str, value: &str) -> &mut Self {
        self.catalog.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Everything the catalog lists, as `deploy/readers/catalog.py` says it.
    ///
    /// # Errors
    /// The engine's own words, as for every verb.
    pub async fn list(&self) -> Result<Value, String> {
        self.run(&["list"], "").await
    }

    /// Makes `namespace.table` with the columns `id` (long) and `name` (string), and its namespace.
    ///
    /// # Errors
    /// As [`RestEngine::list`].
    pub async fn create(&self, table: &str) -> Result<Value, String> {
        self.run(&["create", "--table", table], "").await
    }

    /// Deletes rows by an overwrite commit; `filter` is PyIceberg's, such as `id > 3`.
    ///
    /// # Errors
    /// As [`RestEngine::list`].
    pub async fn delete(&self, table: &str, filter: &str) -> Result<Value, String> {
        self.run(&["delete", "--table", table, "--where", filter], "").await
    }

    /// Appends rows, given as JSON objects, one a line.
    ///
    /// # Errors
    /// As [`RestEngine::list`].
    pub async fn append(&self, table: &str, rows: &str) -> Result<Value, String> {
        self.run(&["append", "--table", table, "--rows", "-"], rows).await
    }

    /// Rewrites all live rows into new files, by one overwrite commit.
    ///
    /// # Errors
    /// As [`RestEngine::list`].
    pub async fn rewrite(&self, table: &str) -> Result<Value, String> {
        self.run(&["rewrite", "--table", table], "").await
    }

    /// The same by a replace that leaves no delete files, as compaction does.
    ///
    /// # Errors
    /// As [`RestEngine::list`].
    pub async fn compact(&self, table: &str) -> Result<Value, String> {
        self.run(&["compact", "--table", table], "").await
    }

    /// All rows as PyIceberg reads them, each a JSON array, sorted by their text.
    ///
    /// # Errors
    /// As [`RestEngine::list`].
    pub async fn rows(&self, table: &str) -> Result<Vec<Value>, String> {
        rows(self.run(&["rows", "--table", table], "").await?)
    }

    /// The rows of a DuckDB query that sees the catalog as `lake`.
    ///
    /// # Errors
    /// As [`RestEngine::list`].
    pub async fn duckdb(&self, sql: &str) -> Result<Vec<Value>, String> {
        rows(self.run(&["duckdb", "--sql", sql], "").await?)
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Result<Value, String> {
        let mut turn = self.process.lock().await;
        // Taken out, so that a question that is given up takes its process, and the late answer, with it.
        let mut process = turn.take().unwrap_or_else(Process::start);
        let arguments: Vec<&str> = self.catalog.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        let question = json!({"arguments": arguments, "input": input});
        let sent = process.input.write_all(format!("{question}\n").as_bytes()).await;
        sent.map_err(|error| error.to_string())?;
        let line = process.answers.next_line().await.map_err(|error| error.to_string())?;
        let answer: Value =
            serde_json::from_str(&line.ok_or("the engine has ended")?).map_err(|error| error.to_string())?;
        *turn = Some(process);
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer),
        }
    }
}

impl Process {
    fn start() -> Self {
        let mut command = python(Engine::PyIceberg, "rest.py");
        command.arg("--serve").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start the engine");
        let input = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { input, answers, _child: child }
    }
}

fn rows(mut answer: Value) -> Result<Vec<Value>, String> {
    Vec::deserialize(answer["rows"].take()).map_err(|error| error.to_string())
}
