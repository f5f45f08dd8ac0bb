//! Several catalogs as one: a pipeline's tables, its control table among them, stand in the catalog of its domain.

use std::sync::Arc;

use async_trait::async_trait;
use iceberg::{TableCreation, TableUpdate};

use super::{Catalog, LoadedTable, Swap};
use crate::commit::CONTROL_NAMESPACE;
use crate::error::Problem;
use crate::schema::TableName;

/// A pipeline that has a catalog of its own.
pub struct Route {
    pub pipeline: String,
    pub namespace: String,
    pub catalog: Arc<dyn Catalog>,
}

/// Everything that no route names stands in `default`.
pub struct RoutedCatalog {
    pub default: Arc<dyn Catalog>,
    pub routes: Vec<Route>,
}

impl RoutedCatalog {
    fn of(&self, name: &TableName) -> &dyn Catalog {
        let leads = |route: &&Route| match name.namespace == CONTROL_NAMESPACE {
            true => route.pipeline == name.name,
            false => route.namespace == name.namespace,
        };
        self.routes.iter().find(leads).map_or(&*self.default, |route| &*route.catalog)
    }
}

#[async_trait]
impl Catalog for RoutedCatalog {
    async fn list(&self, namespace: Option<&str>) -> Result<Vec<TableName>, Problem> {
        let mut names = self.default.list(namespace).await?;
        for route in &self.routes {
            names.extend(route.catalog.list(namespace).await?);
        }
        // What stands where nothing leads cannot be loaded by its name.
        names.sort();
        names.dedup();
        Ok(names)
    }

    async fn load(&self, name: &TableName, known: Option<&LoadedTable>) -> Result<Option<LoadedTable>, Problem> {
        self.of(name).load(name, known).await
    }

    async fn create(&self, name: &TableName, creation: TableCreation) -> Result<LoadedTable, Problem> {
        self.of(name).create(name, creation).await
    }

    async fn commit(&self, base: &LoadedTable, updates: Vec<TableUpdate>) -> Result<Swap, Problem> {
        self.of(&base.name).commit(base, updates).await
    }

    fn removes_files(&self) -> bool {
        self.default.removes_files()
    }

    fn check_name(&self, name: &TableName) -> Result<(), Problem> {
        self.of(name).check_name(name)
    }

    async fn check_owner(&self, name: &TableName) -> Result<(), Problem> {
        self.of(name).check_owner(name).await
    }
}
