//! Opening the catalog that the configuration names, and the storage behind it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use lakehouse_core::aws::AwsConfig;
use lakehouse_core::catalog::{Catalog, RestCatalog, RestConfig, Route, RoutedCatalog, S3TablesCatalog, SqliteCatalog};
use lakehouse_core::storage::{Storage, local_path, location_of};

use super::Lake;
use crate::config::{CatalogConfig, Config, PipelineConfig};
use crate::failure::Failure;

/// What may happen to a catalog that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// It begins empty.
    Create,
    /// It is an error.
    Refuse,
}

impl Lake {
    /// For verbs that read: nothing is created.
    ///
    /// # Errors
    /// `CATALOG_MISSING` where there is none.
    pub(crate) async fn open(config: &Config) -> Result<Self, Failure> {
        open(config, Missing::Refuse).await
    }

    /// The same; `None` where there is no catalog yet.
    pub(crate) async fn open_if_there(config: &Config) -> Result<Option<Self>, Failure> {
        match &config.catalog {
            CatalogConfig::Sqlite { path, .. } if !path.exists() => Ok(None),
            _ => Self::open(config).await.map(Some),
        }
    }

    /// For roles that write: a catalog that is not there begins empty.
    pub(crate) async fn create(config: &Config) -> Result<Self, Failure> {
        open(config, Missing::Create).await
    }
}

async fn open(config: &Config, missing: Missing) -> Result<Lake, Failure> {
    match &config.catalog {
        CatalogConfig::Sqlite { path, warehouse, endpoints } => {
            let (storage, location) = match warehouse.contains("://") && !warehouse.starts_with("file:") {
                true => (Storage::s3(&endpoints.aws()).await, warehouse.trim_end_matches('/').to_owned()),
                false => (Storage::local(), location_of(&local_path(warehouse)?)),
            };
            let catalog = match missing {
                Missing::Create => SqliteCatalog::open_at(path, location, storage.clone())?,
                Missing::Refuse => SqliteCatalog::open_existing(path, location, storage.clone())?,
            };
            Ok(Lake::of(Arc::new(catalog), storage))
        }
        CatalogConfig::S3Tables { table_bucket, endpoints } => {
            table_buckets(config, table_bucket.as_deref(), &endpoints.aws()).await
        }
        CatalogConfig::Rest { uri, warehouse, credential, sigv4, endpoints } => {
            let rest = RestConfig {
                uri: uri.clone(),
                warehouse: warehouse.clone(),
                credential: credential.as_ref().map(|reference| reference.read()).transpose()?,
                sigv4: *sigv4,
                aws: endpoints.aws(),
            };
            let storage = Storage::s3(&rest.aws).await;
            Ok(Lake::of(Arc::new(RestCatalog::open(&rest).await?), storage))
        }
    }
}

/// One catalog per table bucket; a pipeline's tables stand in its own where it names one.
async fn table_buckets(config: &Config, default: Option<&str>, aws: &AwsConfig) -> Result<Lake, Failure> {
    let own = |pipeline: &PipelineConfig| pipeline.table_bucket.clone();
    // Where every pipeline has its own, any of them answers for names that nothing leads to.
    let default = default.map(str::to_owned).or_else(|| config.pipelines.values().find_map(own)).ok_or_else(|| {
        let remedy = "set table_bucket in [catalog], or in every pipeline's section";
        Failure::usage("CONFIG_MISSING_KEY", "[catalog] table_bucket", "no table bucket is named", remedy)
    })?;
    let storage = Storage::s3(aws).await;
    let managed = config.maintenance.managed();
    let mut opened: BTreeMap<String, Arc<dyn Catalog>> = BTreeMap::new();
    for bucket in config.pipelines.values().filter_map(own).chain([default.clone()]) {
        if let Entry::Vacant(vacant) = opened.entry(bucket) {
            let catalog = S3TablesCatalog::open(aws, vacant.key(), storage.clone(), managed.clone()).await;
            vacant.insert(Arc::new(catalog));
        }
    }
    let routes = config.pipelines.iter().filter_map(|(name, pipeline)| {
        let catalog = Arc::clone(&opened[&own(pipeline)?]);
        Some(Route { pipeline: name.clone(), namespace: pipeline.namespace.clone(), catalog })
    });
    let routes: Vec<Route> = routes.collect();
    let default = Arc::clone(&opened[&default]);
    let catalog: Arc<dyn Catalog> = match routes.is_empty() {
        true => default,
        false => Arc::new(RoutedCatalog { default, routes }),
    };
    Ok(Lake::of(catalog, storage))
}
