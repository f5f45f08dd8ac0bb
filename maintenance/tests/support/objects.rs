//! The table in an object store in memory, of which a whole copy can be made: files as objects, and the catalog's file.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use lakehouse_core::aws::AwsConfig;
use lakehouse_core::catalog::{Catalog, SqliteCatalog};
use lakehouse_core::storage::Storage;
use tempfile::TempDir;
use testkit::object_store::{Contents, ObjectStore};

use super::{Lake, temporary_folder};

pub struct Life {
    pub store: ObjectStore,
    /// With the catalog's file.
    pub folder: TempDir,
}

impl Life {
    /// `catalog`: the folder of another one's catalog, which these objects belong to.
    pub fn of(contents: Contents, catalog: Option<&Path>) -> Self {
        let folder = temporary_folder();
        if let Some(catalog) = catalog {
            copy_files(catalog, folder.path());
        }
        Self { store: ObjectStore::start(contents), folder }
    }

    /// The table as a process finds it that begins now, with a client and a spool of its own.
    pub async fn lake(&self) -> Lake {
        self.lake_through(|catalog| catalog).await
    }

    /// The same, whose catalog is reached through something.
    pub async fn lake_through(&self, made: impl FnOnce(Arc<dyn Catalog>) -> Arc<dyn Catalog>) -> Lake {
        let keys = self.store.objects();
        let credentials = Credentials::new(keys.access_key, keys.secret_key, None, None, "test");
        let config = AwsConfig {
            region: Some(keys.region),
            s3_endpoint: Some(keys.endpoint),
            credentials: Some(SharedCredentialsProvider::new(credentials)),
            ..AwsConfig::default()
        };
        let storage = Storage::s3(&config).await.with_spool(&self.path("spool")).expect("a spool");
        let warehouse = "s3://bucket/warehouse".to_owned();
        let catalog = SqliteCatalog::open_at(&self.path("catalog.db"), warehouse, storage.clone()).expect("a catalog");
        let lake = Lake::on(Arc::new(catalog), storage).await;
        Lake { catalog: made(Arc::clone(&lake.catalog)), ..lake }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// The files of a folder, not those of folders in it.
pub fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("a copy");
        }
    }
}
