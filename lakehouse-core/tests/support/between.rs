//! Somebody who acts between a look at a table and the commit that was planned on it.

use std::sync::Arc;

use async_trait::async_trait;
use iceberg::{TableCreation, TableUpdate};
use lakehouse_core::catalog::{Catalog, LoadedTable, Swap};
use lakehouse_core::error::Problem;
use lakehouse_core::schema::TableName;

/// What is done right before a commit to a table goes out, behind the load that it was planned on.
#[async_trait]
pub trait Meddler: Send + Sync {
    async fn before_commit(&self, base: &LoadedTable) -> Result<(), Problem>;
}

/// A catalog in which that happens.
pub struct Between<M> {
    pub inner: Arc<dyn Catalog>,
    pub meddler: M,
}

#[async_trait]
impl<M: Meddler> Catalog for Between<M> {
    async fn list(&self, namespace: Option<&str>) -> Result<Vec<TableName>, Problem> {
        self.inner.list(namespace).await
    }

    async fn load(&self, name: &TableName, known: Option<&LoadedTable>) -> Result<Option<LoadedTable>, Problem> {
        self.inner.load(name, known).await
    }

    async fn create(&self, name: &TableName, creation: TableCreation) -> Result<LoadedTable, Problem> {
        self.inner.create(name, creation).await
    }

    async fn commit(&self, base: &LoadedTable, updates: Vec<TableUpdate>) -> Result<Swap, Problem> {
        self.meddler.before_commit(base).await?;
        self.inner.commit(base, updates).await
    }

    async fn check_owner(&self, name: &TableName) -> Result<(), Problem> {
        self.inner.check_owner(name).await
    }
}
