//! Somebody who acts between a look at a table and the commit that was planned on it, or decides what becomes of the commit.
//! The tests of other crates have it from here, too.

use std::sync::Arc;

use async_trait::async_trait;
use iceberg::{TableCreation, TableUpdate};
use lakehouse_core::catalog::{Catalog, LoadedTable, Swap};
use lakehouse_core::error::Problem;
use lakehouse_core::schema::TableName;

/// Does one of these; whatever it leaves alone is as without it.
#[async_trait]
pub trait Meddler: Send + Sync {
    /// What is done right before a commit to a table goes out, behind the load that it was planned on.
    async fn before_commit(&self, _: &LoadedTable) -> Result<(), Problem> {
        Ok(())
    }

    /// The commit itself: what of it comes to `inner`, and what its sender hears.
    async fn commit(
        &self,
        inner: &dyn Catalog,
        base: &LoadedTable,
        updates: Vec<TableUpdate>,
    ) -> Result<Swap, Problem> {
        self.before_commit(base).await?;
        inner.commit(base, updates).await
    }

    /// Whether the service alone lists and removes files.
    fn removes_files(&self, inner: &dyn Catalog) -> bool {
        inner.removes_files()
    }
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
        self.meddler.commit(&*self.inner, base, updates).await
    }

    fn check_name(&self, name: &TableName) -> Result<(), Problem> {
        self.inner.check_name(name)
    }

    fn removes_files(&self) -> bool {
        self.meddler.removes_files(&*self.inner)
    }

    async fn check_owner(&self, name: &TableName) -> Result<(), Problem> {
        self.inner.check_owner(name).await
    }
}
