//! The catalog that the demo is asked for: servers that stand in for the real ones, and how everybody reaches them.
//!
//! Not here: what these servers do right and wrong (`testkit::emulators`, `testkit::s3_tables`).

use std::path::Path;

use testkit::emulators::{Ministack, RestCatalog, Warehouse};
use testkit::objects::Objects;
use testkit::s3_tables::S3Tables;

/// The kinds of `[catalog] kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    S3Tables,
    Rest,
}

impl Kind {
    pub(crate) fn named(name: &str) -> Option<Self> {
        let kinds = [("sqlite", Self::Sqlite), ("s3-tables", Self::S3Tables), ("rest", Self::Rest)];
        kinds.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }
}

/// A catalog that is ready to be used. Its servers end when it is dropped.
#[derive(Debug)]
pub(crate) struct Catalog {
    /// The section of the configuration file.
    pub(crate) section: String,
    /// What the binary needs in its environment.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Arguments that lead `deploy/readers/query.py` to it.
    pub(crate) query: Vec<String>,
    /// Python that opens it with PyIceberg.
    pub(crate) pyiceberg: String,
    /// What stands there, a line each.
    pub(crate) servers: Vec<String>,
    /// In the order in which they end: objects go last.
    _rest: Option<RestCatalog>,
    _tables: Option<S3Tables>,
    _ministack: Option<Ministack>,
}

/// Of the table bucket, and of the lake in general.
const NAME: &str = "fuji-lake";

impl Catalog {
    pub(crate) async fn start(kind: Kind, folder: &Path) -> Self {
        match kind {
            Kind::Sqlite => Self::sqlite(folder),
            Kind::S3Tables => Self::s3_tables().await,
            Kind::Rest => Self::rest().await,
        }
    }

    fn sqlite(folder: &Path) -> Self {
        let file = folder.join("lake/catalog.db").display().to_string();
        Self {
            section: "path = \"lake/catalog.db\"\nwarehouse = \"lake/warehouse\"".to_owned(),
            // For the emulator of DynamoDB, which takes any.
            environment: vec![("AWS_ACCESS_KEY_ID", "demo".to_owned()), ("AWS_SECRET_ACCESS_KEY", "demo".to_owned())],
            pyiceberg: format!(
                "from pyiceberg.catalog.sql import SqlCatalog\n\
                 catalog = SqlCatalog(\"lakehouse\", uri=\"sqlite:///{file}\", init_catalog_tables=\"false\")"
            ),
            query: vec!["--database".to_owned(), file],
            servers: Vec::new(),
            _rest: None,
            _tables: None,
            _ministack: None,
        }
    }

    /// The native API for the product, REST for everybody else, as on Amazon.
    async fn s3_tables() -> Self {
        let ministack = Ministack::start().await;
        let tables = S3Tables::start(&ministack.objects());
        let bucket = tables.create_table_bucket(NAME);
        let section = format!(
            "kind = \"s3-tables\"\ntable_bucket = \"{bucket}\"\nendpoint = \"{}\"             # only for the simulator\n\
             s3_endpoint = \"{}\"",
            tables.endpoint(),
            tables.s3_endpoint()
        );
        let servers = vec![
            format!("S3 Tables: the simulator of this repository, native API on {}", tables.endpoint()),
            format!("for readers: its Iceberg REST endpoint {}", tables.rest_uri()),
            format!("objects: ministack, behind {}, where nothing can be listed or deleted", tables.s3_endpoint()),
        ];
        let read = tables.objects();
        let catalog = Self::readable(section, servers, &tables.rest_uri(), &bucket, &read);
        Self { _tables: Some(tables), _ministack: Some(ministack), ..catalog }
    }

    /// Iceberg's own server, or the simulator's REST endpoint where there is no Java.
    async fn rest() -> Self {
        let ministack = Ministack::start().await;
        let objects = ministack.objects();
        objects.create_bucket(NAME).await;
        let warehouse = Warehouse::S3 { objects: objects.clone(), bucket: NAME.to_owned() };
        let section = |uri: &str, more: &str, objects: &Objects| {
            format!(
                "kind = \"rest\"\nuri = \"{uri}\"\n{more}s3_endpoint = \"{}\"   # only for the emulator",
                objects.endpoint
            )
        };
        if let Some(rest) = RestCatalog::start(&warehouse).await {
            let servers = vec![
                format!("REST catalog: Iceberg's own RESTCatalogServer on {}", rest.uri()),
                format!("objects: ministack on {}", objects.endpoint),
            ];
            let catalog = Self::readable(section(&rest.uri(), "", &objects), servers, &rest.uri(), "", &objects);
            return Self { _rest: Some(rest), _ministack: Some(ministack), ..catalog };
        }
        let tables = S3Tables::start(&objects);
        let bucket = tables.create_table_bucket(NAME);
        let read = tables.objects();
        let servers = vec![
            format!(
                "REST catalog: without Java the REST endpoint of this repository's simulator, {}",
                tables.rest_uri()
            ),
            format!("objects: ministack, behind {}", tables.s3_endpoint()),
        ];
        let named = section(&tables.rest_uri(), &format!("warehouse = \"{bucket}\"\n"), &read);
        let catalog = Self::readable(named, servers, &tables.rest_uri(), &bucket, &read);
        Self { _tables: Some(tables), _ministack: Some(ministack), ..catalog }
    }

    /// What other engines read at a REST endpoint, with objects in S3.
    fn readable(section: String, servers: Vec<String>, uri: &str, warehouse: &str, objects: &Objects) -> Self {
        let Objects { endpoint, region, access_key, secret_key } = objects;
        let mut query = vec!["--uri", uri, "--s3", endpoint];
        let mut named = String::new();
        if !warehouse.is_empty() {
            query.extend(["--warehouse", warehouse]);
            named = format!(" warehouse=\"{warehouse}\",");
        }
        Self {
            section,
            servers,
            query: query.into_iter().map(str::to_owned).collect(),
            environment: vec![
                ("AWS_REGION", region.clone()),
                ("AWS_ACCESS_KEY_ID", access_key.clone()),
                ("AWS_SECRET_ACCESS_KEY", secret_key.clone()),
            ],
            pyiceberg: format!(
                "from pyiceberg.catalog.rest import RestCatalog\n\
                 catalog = RestCatalog(\"lakehouse\", uri=\"{uri}\",{named} **{{\n    \"s3.endpoint\": \"{endpoint}\", \
                 \"s3.region\": \"{region}\",\n    \"s3.access-key-id\": \"{access_key}\", \
                 \"s3.secret-access-key\": \"{secret_key}\"}})"
            ),
            _rest: None,
            _tables: None,
            _ministack: None,
        }
    }
}
