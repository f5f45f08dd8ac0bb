//! Table buckets, namespaces, tables, and the one thing that matters: the swap of a table's metadata by its token.
//!
//! Not here: HTTP, and the metadata's content, which the native service never looks into.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use aws_sdk_s3tables::primitives::{DateTime, DateTimeFormat};
use uuid::Uuid;

use super::maintenance::Maintenance;
use super::names;
use super::refusal::Refusal;

pub(super) const ACCOUNT: &str = "123456789012";

/// How many states before the current one a stale read can show.
const REMEMBERED: usize = 16;

#[derive(Debug)]
pub(super) struct Lake {
    pub(super) region: String,
    pub(super) buckets: BTreeMap<String, Bucket>,
}

#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) created_at: String,
    pub(super) namespaces: BTreeMap<String, Namespace>,
}

#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) id: String,
    pub(super) created_at: String,
    pub(super) tables: BTreeMap<String, Table>,
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) arn: String,
    pub(super) created_at: String,
    pub(super) modified_at: String,
    /// `s3://` and a bucket of its own.
    pub(super) warehouse: String,
    pub(super) pointer: Pointer,
    /// Earlier pointers, newest first.
    pub(super) earlier: VecDeque<Pointer>,
    pub(super) swaps: Vec<Swap>,
    pub(super) maintenance: Maintenance,
}

/// What a swap compares and moves. Fresh tables have no metadata.
#[derive(Clone, Debug)]
pub(super) struct Pointer {
    pub(super) metadata: Option<String>,
    pub(super) token: String,
}

/// One accepted swap: the ground truth of what was committed, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// The token that was current and was given.
    pub token: String,
    /// The metadata that it made current.
    pub metadata: String,
    /// Who sent it.
    pub by: Committer,
}

/// By which way a commit came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committer {
    /// `UpdateTableMetadataLocation`.
    Native,
    /// The Iceberg REST endpoint.
    Rest,
    /// Managed maintenance.
    Maintenance,
}

/// A table's full name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableId {
    /// ARN of the table bucket.
    pub bucket: String,
    pub namespace: String,
    pub name: String,
}

impl Lake {
    pub(super) fn new(region: &str) -> Self {
        Self { region: region.to_owned(), buckets: BTreeMap::new() }
    }

    pub(super) fn arn(&self, bucket: &str) -> String {
        format!("arn:aws:s3tables:{}:{ACCOUNT}:bucket/{bucket}", self.region)
    }

    pub(super) fn create_bucket(&mut self, name: &str) -> Result<String, Refusal> {
        names::bucket(name)?;
        let arn = self.arn(name);
        if self.buckets.contains_key(&arn) {
            return Err(Refusal::conflict("The bucket that you tried to create already exists, and you own it."));
        }
        let bucket = Bucket { name: name.to_owned(), id: id(), created_at: now(), namespaces: BTreeMap::new() };
        self.buckets.insert(arn.clone(), bucket);
        Ok(arn)
    }

    pub(super) fn bucket(&self, arn: &str) -> Result<&Bucket, Refusal> {
        self.buckets.get(arn).ok_or_else(|| Refusal::not_found("table bucket"))
    }

    pub(super) fn create_namespace(&mut self, bucket: &str, name: &str) -> Result<(), Refusal> {
        let bucket = self.buckets.get_mut(bucket).ok_or_else(|| Refusal::not_found("table bucket"))?;
        names::namespace(name)?;
        if bucket.namespaces.contains_key(name) {
            return Err(Refusal::conflict("A namespace with an identical name already exists in the bucket."));
        }
        let namespace = Namespace { id: id(), created_at: now(), tables: BTreeMap::new() };
        bucket.namespaces.insert(name.to_owned(), namespace);
        Ok(())
    }

    pub(super) fn namespace(&self, bucket: &str, name: &str) -> Result<&Namespace, Refusal> {
        self.bucket(bucket)?.namespaces.get(name).ok_or_else(|| Refusal::not_found("namespace"))
    }

    fn namespace_mut(&mut self, bucket: &str, name: &str) -> Result<&mut Namespace, Refusal> {
        let bucket = self.buckets.get_mut(bucket).ok_or_else(|| Refusal::not_found("table bucket"))?;
        bucket.namespaces.get_mut(name).ok_or_else(|| Refusal::not_found("namespace"))
    }

    /// Checks that the table could be created, before its warehouse is.
    pub(super) fn may_create(&self, id: &TableId) -> Result<(), Refusal> {
        names::table(&id.name)?;
        match self.namespace(&id.bucket, &id.namespace)?.tables.contains_key(&id.name) {
            true => Err(Refusal::conflict("A table with an identical name already exists in the namespace.")),
            false => Ok(()),
        }
    }

    pub(super) fn create_table(
        &mut self,
        id: &TableId,
        warehouse: &str,
        metadata: Option<String>,
    ) -> Result<&Table, Refusal> {
        self.may_create(id)?;
        let table = Table {
            arn: format!("{}/table/{}", id.bucket, Uuid::new_v4()),
            created_at: now(),
            modified_at: now(),
            warehouse: warehouse.to_owned(),
            pointer: Pointer { metadata, token: token() },
            earlier: VecDeque::new(),
            swaps: Vec::new(),
            maintenance: Maintenance::default(),
        };
        Ok(self.namespace_mut(&id.bucket, &id.namespace)?.tables.entry(id.name.clone()).or_insert(table))
    }

    pub(super) fn table(&self, id: &TableId) -> Result<&Table, Refusal> {
        let namespace = self.namespace(&id.bucket, &id.namespace)?;
        namespace.tables.get(&id.name).ok_or_else(|| Refusal::not_found("table"))
    }

    pub(super) fn table_mut(&mut self, id: &TableId) -> Result<&mut Table, Refusal> {
        let namespace = self.namespace_mut(&id.bucket, &id.namespace)?;
        namespace.tables.get_mut(&id.name).ok_or_else(|| Refusal::not_found("table"))
    }

    pub(super) fn delete_table(&mut self, id: &TableId, token: Option<&str>) -> Result<(), Refusal> {
        let table = self.table(id)?;
        if token.is_some_and(|token| token != table.pointer.token) {
            return Err(stale());
        }
        self.namespace_mut(&id.bucket, &id.namespace)?.tables.remove(&id.name);
        Ok(())
    }

    /// The compare-and-swap: one holder of a token wins, whatever the change was.
    pub(super) fn swap(&mut self, id: &TableId, token: &str, metadata: &str, by: Committer) -> Result<&Table, Refusal> {
        let table = self.table_mut(id)?;
        names::metadata_location(metadata, &table.warehouse)?;
        if token != table.pointer.token {
            return Err(stale());
        }
        let next = Pointer { metadata: Some(metadata.to_owned()), token: self::token() };
        let before = std::mem::replace(&mut table.pointer, next);
        table.swaps.push(Swap { token: before.token.clone(), metadata: metadata.to_owned(), by });
        table.earlier.push_front(before);
        table.earlier.truncate(REMEMBERED);
        table.modified_at = now();
        Ok(table)
    }
}

impl Table {
    /// The pointer as it was so many swaps ago, or as far back as it is remembered.
    pub(super) fn pointer_before(&self, swaps: usize) -> &Pointer {
        match swaps.checked_sub(1) {
            Some(index) => self.earlier.get(index).or(self.earlier.back()).unwrap_or(&self.pointer),
            None => &self.pointer,
        }
    }
}

/// A bucket name as the service makes them: 63 characters.
pub(super) fn warehouse_bucket() -> String {
    let random = |length: usize| -> String {
        std::iter::repeat_with(fastrand::alphanumeric).take(length).collect::<String>().to_lowercase()
    };
    let id = Uuid::new_v4().to_string();
    format!("{}-{}--table-s3", &id[..18], random(34))
}

pub(super) fn now() -> String {
    DateTime::from(SystemTime::now()).fmt(DateTimeFormat::DateTime).expect("the present can be written")
}

fn stale() -> Refusal {
    Refusal::conflict("Provided version token does not match the table version token.")
}

fn id() -> String {
    Uuid::new_v4().to_string()
}

fn token() -> String {
    Uuid::new_v4().simple().to_string()[..20].to_owned()
}
