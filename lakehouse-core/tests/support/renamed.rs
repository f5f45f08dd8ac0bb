//! A catalog under other namespaces: many worlds on one server, each with names of its own.

use std::sync::Arc;

use async_trait::async_trait;
use iceberg::{TableCreation, TableUpdate};
use lakehouse_core::catalog::{Catalog, LoadedTable, Swap};
use lakehouse_core::error::Problem;
use lakehouse_core::schema::TableName;

pub struct Renamed {
    pub inner: Arc<dyn Catalog>,
    /// Goes behind every namespace.
    pub suffix: String,
}

impl Renamed {
    fn there(&self, name: &TableName) -> TableName {
        TableName::new(format!("{}_{}", name.namespace, self.suffix), &name.name)
    }
}

fn here(name: &TableName, table: LoadedTable) -> LoadedTable {
    LoadedTable { name: name.clone(), ..table }
}

#[async_trait]
impl Catalog for Renamed {
    async fn list(&self, namespace: Option<&str>) -> Result<Vec<TableName>, Problem> {
        let there = namespace.map(|namespace| format!("{namespace}_{}", self.suffix));
        let suffix = format!("_{}", self.suffix);
        let names = self.inner.list(there.as_deref()).await?;
        let here = |name: TableName| Some(TableName::new(name.namespace.strip_suffix(&suffix)?, name.name.clone()));
        Ok(names.into_iter().filter_map(here).collect())
    }

    async fn load(&self, name: &TableName, known: Option<&LoadedTable>) -> Result<Option<LoadedTable>, Problem> {
        Ok(self.inner.load(&self.there(name), known).await?.map(|table| here(name, table)))
    }

    async fn create(&self, name: &TableName, creation: TableCreation) -> Result<LoadedTable, Problem> {
        Ok(here(name, self.inner.create(&self.there(name), creation).await?))
    }

    async fn commit(&self, base: &LoadedTable, updates: Vec<TableUpdate>) -> Result<Swap, Problem> {
        let there = LoadedTable { name: self.there(&base.name), ..base.clone() };
        Ok(match self.inner.commit(&there, updates).await? {
            Swap::Landed(table) => Swap::Landed(here(&base.name, table)),
            other => other,
        })
    }

    async fn check_owner(&self, name: &TableName) -> Result<(), Problem> {
        self.inner.check_owner(&self.there(name)).await
    }
}
