//! A catalog of each kind as production has it, behind a proxy that breaks what it is told to, and the same catalog seen
//! without anything in between.

use std::collections::HashMap;
use std::sync::Arc;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use iceberg::TableUpdate;
use iceberg::spec::{MAIN_BRANCH, Operation, Snapshot, SnapshotReference, SnapshotRetention, Summary};
use lakehouse_core::aws::AwsConfig;
use lakehouse_core::catalog::{
    Catalog, LoadedTable, ManagedJobs, RestCatalog, RestConfig, S3TablesCatalog, SqliteCatalog,
};
use lakehouse_core::storage::Storage;
use tempfile::TempDir;
use testkit::emulators::{self, Ministack, Moto, Warehouse};
use testkit::fault_proxy::{Fault, FaultProxy, Hits, Rule, When};
use testkit::objects::Objects;
use testkit::s3_tables::S3Tables;

use super::world::temporary_folder;

/// One environment variable points the suite at a real table bucket: its ARN. Credentials come from the usual chain.
const REAL_TABLE_BUCKET: &str = "LAKEHOUSE_TEST_TABLE_BUCKET";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    /// Our simulator of S3 Tables, for its habits.
    Simulator,
    /// An emulator that we did not write, for its version tokens.
    Moto,
    /// Iceberg's own server.
    Rest,
    /// Amazon's service.
    Amazon,
}

pub struct Rig {
    pub kind: Kind,
    pub storage: Storage,
    /// Through the proxy.
    pub catalog: Arc<dyn Catalog>,
    /// What really stands there.
    pub clean: Arc<dyn Catalog>,
    /// In front of the catalog; SQLite has no network, and Amazon is not reached through one.
    pub proxy: Option<FaultProxy>,
    /// In front of the objects.
    pub objects: Option<FaultProxy>,
    pub simulator: Option<S3Tables>,
    /// How another process reaches the catalog.
    pub address: Address,
    _servers: Servers,
}

/// A catalog as text: kind, address, and what else it takes.
#[derive(Clone, Debug, Default)]
pub struct Address {
    pub uri: String,
    pub bucket: String,
    pub s3: String,
}

#[derive(Default)]
struct Servers {
    _folder: Option<TempDir>,
    _ministack: Option<Ministack>,
    _moto: Option<Moto>,
    _rest: Option<emulators::RestCatalog>,
}

impl Rig {
    /// The rig of a kind; `None`, and a line that says why, where it cannot be had.
    pub async fn start(kind: Kind, test: &str) -> Option<Self> {
        match kind {
            Kind::Sqlite => Some(Self::sqlite()),
            Kind::Simulator => Some(Self::simulator().await),
            Kind::Moto => Some(Self::moto().await),
            Kind::Rest => Self::rest(test).await,
            Kind::Amazon => Self::amazon(test).await,
        }
    }

    fn sqlite() -> Self {
        let folder = temporary_folder();
        let storage = Storage::local();
        let path = folder.path().join("catalog.db");
        let open = || -> Arc<dyn Catalog> {
            Arc::new(SqliteCatalog::open(&path, &folder.path().join("lake"), storage.clone()).expect("a catalog"))
        };
        Self {
            kind: Kind::Sqlite,
            catalog: open(),
            clean: open(),
            storage: storage.clone(),
            proxy: None,
            objects: None,
            simulator: None,
            address: Address { uri: path.display().to_string(), ..Address::default() },
            _servers: Servers { _folder: Some(folder), ..Servers::default() },
        }
    }

    async fn simulator() -> Self {
        let ministack = Ministack::start().await;
        let simulator = S3Tables::start(&ministack.objects());
        let bucket = simulator.create_table_bucket("fuji");
        let servers = Servers { _ministack: Some(ministack), ..Servers::default() };
        let (uri, s3) = (simulator.endpoint(), simulator.s3_endpoint());
        let rig = Self::table_bucket(Kind::Simulator, uri, s3, bucket, servers).await;
        Self { simulator: Some(simulator), ..rig }
    }

    async fn moto() -> Self {
        let moto = Moto::start().await;
        let uri = moto.endpoint();
        let made = testkit::s3_tables::client(&uri).create_table_bucket().name("fuji").send().await;
        let bucket = made.expect("a table bucket").arn().to_owned();
        let servers = Servers { _moto: Some(moto), ..Servers::default() };
        Self::table_bucket(Kind::Moto, uri.clone(), uri, bucket, servers).await
    }

    async fn table_bucket(kind: Kind, uri: String, s3: String, bucket: String, servers: Servers) -> Self {
        let (proxy, objects) = (FaultProxy::start(&uri), FaultProxy::start(&s3));
        let storage = Storage::s3(&aws(&uri, &objects.uri())).await;
        let address = Address { uri: uri.clone(), bucket: bucket.clone(), s3: s3.clone() };
        Self {
            kind,
            catalog: s3_tables(&proxy.uri(), &objects.uri(), &bucket).await,
            clean: s3_tables(&uri, &s3, &bucket).await,
            storage,
            proxy: Some(proxy),
            objects: Some(objects),
            simulator: None,
            address,
            _servers: servers,
        }
    }

    async fn rest(test: &str) -> Option<Self> {
        let ministack = Ministack::start().await;
        let objects = ministack.objects();
        objects.create_bucket("warehouse").await;
        let warehouse = Warehouse::S3 { objects: objects.clone(), bucket: "warehouse".to_owned() };
        let server = emulators::RestCatalog::start_or_skip(test, &warehouse).await?;
        let (proxy, front) = (FaultProxy::start(&server.uri()), FaultProxy::start(&objects.endpoint));
        let storage = Storage::s3(&aws("", &front.uri())).await;
        Some(Self {
            kind: Kind::Rest,
            catalog: rest(&proxy.uri()).await,
            clean: rest(&server.uri()).await,
            storage,
            address: Address { uri: server.uri(), bucket: String::new(), s3: objects.endpoint },
            proxy: Some(proxy),
            objects: Some(front),
            simulator: None,
            _servers: Servers { _ministack: Some(ministack), _rest: Some(server), ..Servers::default() },
        })
    }

    async fn amazon(test: &str) -> Option<Self> {
        let Ok(bucket) = std::env::var(REAL_TABLE_BUCKET) else {
            println!("SKIP {test}: {REAL_TABLE_BUCKET} names no table bucket");
            return None;
        };
        let config = AwsConfig::default();
        let storage = Storage::s3(&config).await;
        Some(Self {
            kind: Kind::Amazon,
            catalog: Arc::new(S3TablesCatalog::open(&config, &bucket, storage.clone(), ManagedJobs::default()).await),
            clean: Arc::new(S3TablesCatalog::open(&config, &bucket, storage.clone(), ManagedJobs::default()).await),
            storage,
            proxy: None,
            objects: None,
            simulator: None,
            address: Address { bucket: bucket.clone(), ..Address::default() },
            _servers: Servers::default(),
        })
    }

    /// Breaks the next pointer swaps.
    pub fn break_swaps(&self, when: When, fault: Fault) -> Hits {
        let (method, path) = self.swap();
        self.network().add(Rule::new(when, method, path, fault))
    }

    /// Breaks the next reads of the pointer.
    pub fn break_loads(&self, when: When, fault: Fault) -> Hits {
        self.network().add(Rule::new(when, "GET", self.swap().1, fault))
    }

    /// # Panics
    /// On a kind without a network.
    pub fn network(&self) -> &FaultProxy {
        self.proxy.as_ref().expect("a catalog behind a proxy")
    }

    /// Method and path of the request that moves a pointer.
    fn swap(&self) -> (&'static str, &'static str) {
        match self.kind {
            Kind::Rest => ("POST", "/tables/"),
            _ => ("PUT", "/metadata-location"),
        }
    }
}

/// A catalog at an address, without a proxy: as another process opens it.
pub async fn open(kind: Kind, address: &Address) -> (Arc<dyn Catalog>, Storage) {
    match kind {
        Kind::Sqlite => {
            let path = std::path::Path::new(&address.uri);
            let lake = path.parent().expect("a file in a folder").join("lake");
            let storage = Storage::local();
            (Arc::new(SqliteCatalog::open(path, &lake, storage.clone()).expect("a catalog")), storage)
        }
        Kind::Rest => (rest(&address.uri).await, Storage::s3(&aws("", &address.s3)).await),
        Kind::Simulator | Kind::Moto => {
            let storage = Storage::s3(&aws(&address.uri, &address.s3)).await;
            (s3_tables(&address.uri, &address.s3, &address.bucket).await, storage)
        }
        Kind::Amazon => {
            let config = AwsConfig::default();
            let storage = Storage::s3(&config).await;
            let jobs = ManagedJobs::default();
            (Arc::new(S3TablesCatalog::open(&config, &address.bucket, storage.clone(), jobs).await), storage)
        }
    }
}

async fn s3_tables(uri: &str, s3: &str, bucket: &str) -> Arc<dyn Catalog> {
    let config = aws(uri, s3);
    let storage = Storage::s3(&config).await;
    Arc::new(S3TablesCatalog::open(&config, bucket, storage, ManagedJobs::default()).await)
}

async fn rest(uri: &str) -> Arc<dyn Catalog> {
    let config = RestConfig { uri: uri.to_owned(), ..RestConfig::default() };
    Arc::new(RestCatalog::open(&config).await.expect("a REST catalog"))
}

/// An emulator's address, with the keys that it takes.
pub fn aws(endpoint: &str, s3: &str) -> AwsConfig {
    let keys = Objects::at(s3);
    let credentials = Credentials::new(keys.access_key, keys.secret_key, None, None, "test");
    AwsConfig {
        region: Some(keys.region),
        endpoint: (!endpoint.is_empty()).then(|| endpoint.to_owned()),
        s3_endpoint: Some(s3.to_owned()),
        credentials: Some(SharedCredentialsProvider::new(credentials)),
    }
}

/// What appends a snapshot without files to a table: the least that a commit of the protocol holds.
pub fn empty_snapshot(base: &LoadedTable, schema_id: i32) -> [TableUpdate; 2] {
    let metadata = &base.metadata;
    let id = fastrand::i64(1..);
    let snapshot = Snapshot::builder()
        .with_snapshot_id(id)
        .with_parent_snapshot_id(base.snapshot_id())
        .with_sequence_number(metadata.next_sequence_number())
        .with_timestamp_ms(metadata.last_updated_ms() + 1)
        .with_manifest_list(format!("{}/metadata/snap-{id}.avro", metadata.location()))
        .with_summary(Summary { operation: Operation::Append, additional_properties: HashMap::new() })
        .with_schema_id(schema_id)
        .build();
    let reference = SnapshotReference::new(id, SnapshotRetention::branch(None, None, None));
    [TableUpdate::AddSnapshot { snapshot }, TableUpdate::SetSnapshotRef { ref_name: MAIN_BRANCH.to_owned(), reference }]
}
