//! Other engines on an Iceberg REST catalog: PyIceberg, which reads and commits, and DuckDB, which reads.
//!
//! Not here: the engines themselves (`deploy/readers/rest.py`).

use std::process::Stdio;

use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::objects::Objects;
use crate::readers::{Engine, python};

/// How to reach the catalog, and the objects if they are in S3.
#[derive(Clone, Debug)]
pub struct RestEngine {
    catalog: Vec<String>,
}

impl RestEngine {
    /// On a catalog (its URI without `/v1`), a warehouse (of S3 Tables: a table bucket's ARN) and its objects.
    #[must_use]
    pub fn new(uri: &str, warehouse: &str, objects: &Objects) -> Self {
        let Objects { endpoint, region, access_key, secret_key } = objects;
        let mut engine = Self::on_files(uri);
        engine.option("--warehouse", warehouse).option("--s3", endpoint).option("--region", region);
        engine.option("--key", access_key).option("--secret", secret_key);
        engine
    }

    /// On a catalog whose tables lie in local files.
    #[must_use]
    pub fn on_files(uri: &str) -> Self {
        Self { catalog: vec!["--uri".to_owned(), uri.to_owned()] }
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
        let mut command = python(Engine::PyIceberg, "rest.py");
        command.args(&self.catalog).args(arguments);
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = pipes.spawn().expect("start the engine");
        let mut stdin = process.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).await.expect("hand over the rows");
        drop(stdin);
        let output = process.wait_with_output().await.expect("wait for the engine");
        if output.status.success() {
            serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

fn rows(mut answer: Value) -> Result<Vec<Value>, String> {
    Vec::deserialize(answer["rows"].take()).map_err(|error| error.to_string())
}
