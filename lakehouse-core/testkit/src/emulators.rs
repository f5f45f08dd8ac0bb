//! Servers that other people wrote, started for one test: S3 in memory, Amazon's S3 Tables API, Iceberg's REST catalog.
//!
//! Which is used for what, and what each gets wrong, stands at each one. All listen on 127.0.0.1 only, and end with the
//! test even when it is killed (`process`). Installed by `deploy/test`, which says where by environment variables.

mod process;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::objects::Objects;
use process::Process;

/// S3 for the objects of tables, in memory (`ministack`).
///
/// Right: conditional writes have one winner, range reads, multipart. Wrong, so that no test may rely on it: any secret
/// key is accepted, and parts below 5 MiB are. Its S3 Tables and Iceberg catalog ignore version tokens and are never used.
#[derive(Debug)]
pub struct Ministack {
    process: Process,
}

impl Ministack {
    /// Starts it; about two seconds.
    ///
    /// # Panics
    /// When it is not installed or does not start, with its log.
    pub async fn start() -> Self {
        let python = installed("LAKEHOUSE_MINISTACK");
        let process = Process::start("ministack", |port, _| {
            let mut command = Command::new(&python);
            command.args(["-m", "ministack"]).env("BIND_HOST", "127.0.0.1").env("GATEWAY_PORT", port.to_string());
            // It would look for Docker, and offer files to all the world, otherwise.
            command.env("DOCKER_HOST", "unix:///nonexistent").env("SFTP_ENABLED", "0");
            command
        });
        Self { process: process.await }
    }

    /// The service and keys that it takes.
    #[must_use]
    pub fn objects(&self) -> Objects {
        Objects::at(&self.process.uri())
    }

    /// Its DynamoDB, and the streams of its tables: one shard each, that never ends, with records that are never trimmed.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.process.uri()
    }
}

/// Amazon's native S3 Tables API with version tokens that are compared (`moto`), and S3 under the same address.
///
/// Right: the swap has one winner, nothing outside the warehouse, no deletion in table buckets. Wrong: checks only how a
/// name begins, takes a metadata location without its ending and one in a bucket whose name merely begins alike; has no
/// maintenance, no REST catalog, no delays. `deploy/emulators/moto_s3_tables.py` mends two of its answers, and makes swaps
/// wait for each other: two at the same moment could both win (seen once in 1,000 races).
#[derive(Debug)]
pub struct Moto {
    process: Process,
}

impl Moto {
    /// Starts it; about two seconds.
    ///
    /// # Panics
    /// When it is not installed or does not start, with its log.
    pub async fn start() -> Self {
        let python = installed("LAKEHOUSE_MOTO");
        let program = emulators().join("moto_s3_tables.py");
        let process = Process::start("moto", |port, _| {
            let mut command = Command::new(&python);
            command.arg("-B").arg(&program).arg(port.to_string());
            command
        });
        Self { process: process.await }
    }

    /// For `aws-sdk-s3tables` and, by path, S3.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.process.uri()
    }

    /// Its S3.
    #[must_use]
    pub fn objects(&self) -> Objects {
        Objects::at(&self.process.uri())
    }
}

/// The reference Iceberg REST catalog, Iceberg's own RESTCatalogServer, on SQLite.
///
/// Right: every requirement answers 409, one winner each. Wrong: `/v1/transactions/commit` loses acknowledged commits
/// when used concurrently, unknown updates give an HTML error, a tagged snapshot can be removed, and there is no
/// authentication.
#[derive(Debug)]
pub struct RestCatalog {
    process: Process,
}

/// Where the REST catalog's tables lie.
#[derive(Clone, Debug)]
pub enum Warehouse {
    /// In a folder that is removed with the server.
    Files,
    /// In an existing bucket.
    S3 { objects: Objects, bucket: String },
}

impl RestCatalog {
    /// As [`RestCatalog::start`], and where there is none, a line that says which test is skipped.
    pub async fn start_or_skip(test: &str, warehouse: &Warehouse) -> Option<Self> {
        let catalog = Self::start(warehouse).await;
        if catalog.is_none() {
            println!("SKIP {test}: Iceberg's REST catalog is not installed (LAKEHOUSE_REST_CATALOG)");
        }
        catalog
    }

    /// Starts it, about a second; `None` where `deploy/test` could not install it, because there is no Java.
    ///
    /// # Panics
    /// When it does not start, with its log.
    pub async fn start(warehouse: &Warehouse) -> Option<Self> {
        let home = PathBuf::from(std::env::var_os("LAKEHOUSE_REST_CATALOG")?);
        let process = Process::start("rest-catalog", |port, dir| {
            let mut command = Command::new(home.join("java/bin/java"));
            let classes = format!("{0}/classes:{0}/jars/*", home.display());
            command.args(["-Xmx512m", "-cp", &classes, "org.apache.iceberg.rest.LoopbackRestCatalog"]);
            // The environment's names are the catalog's properties: `_` is a dot there, `__` a hyphen.
            command.env("CATALOG_REST_PORT", port.to_string());
            let database = dir.join("catalog.db");
            command.env("CATALOG_URI", format!("jdbc:sqlite:file:{}?busy_timeout=30000", database.display()));
            match warehouse {
                Warehouse::Files => command.env("CATALOG_WAREHOUSE", dir.join("warehouse")),
                Warehouse::S3 { objects, bucket } => command
                    .env("CATALOG_WAREHOUSE", format!("s3://{bucket}/warehouse"))
                    .env("CATALOG_IO__IMPL", "org.apache.iceberg.aws.s3.S3FileIO")
                    .env("CATALOG_S3_ENDPOINT", &objects.endpoint)
                    .env("CATALOG_S3_PATH__STYLE__ACCESS", "true")
                    .env("CATALOG_S3_ACCESS__KEY__ID", &objects.access_key)
                    .env("CATALOG_S3_SECRET__ACCESS__KEY", &objects.secret_key)
                    .env("CATALOG_CLIENT_REGION", &objects.region),
            };
            command
        });
        Some(Self { process: process.await })
    }

    /// The catalog's address, without `/v1`.
    #[must_use]
    pub fn uri(&self) -> String {
        self.process.uri()
    }

    /// The server's own folder; with [`Warehouse::Files`] the tables lie in its `warehouse`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.process.dir()
    }
}

/// What `deploy/test` has installed under this name.
fn installed(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => panic!("{variable} is not set: run deploy/test, which installs the emulators and sets it"),
    }
}

fn emulators() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/emulators")
}
