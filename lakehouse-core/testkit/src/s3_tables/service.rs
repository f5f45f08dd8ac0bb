//! What both catalog addresses share: the lake under its lock, the objects, and the swap with its checks around it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use aws_sdk_s3::Client;
use tokio::runtime::Handle;
use tokio::time::sleep;

use super::habits::Habits;
use super::lake::{Committer, Lake, Pointer, TableId, warehouse_bucket};
use super::names;
use super::refusal::Refusal;
use crate::fault_proxy::Requests;
use crate::objects::{self, Objects};

/// The largest metadata file that the service works with.
pub(super) const LARGEST_METADATA: u64 = 50 * 1000 * 1000;

#[derive(Debug)]
pub(super) struct Service {
    pub(super) objects: Objects,
    pub(super) client: Client,
    lake: Mutex<Lake>,
    habits: Mutex<Habits>,
    requests: Mutex<Requests>,
    late: AtomicUsize,
    /// The connections of `client` live there, so everything that uses it runs there.
    pub(super) runtime: Handle,
}

/// What a read of a table's pointer shows.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) pointer: Pointer,
    pub(super) warehouse: String,
}

impl Service {
    pub(super) fn new(objects: &Objects, runtime: Handle) -> Self {
        Self {
            objects: objects.clone(),
            client: objects.client(),
            lake: Mutex::new(Lake::new(&objects.region)),
            habits: Mutex::default(),
            requests: Mutex::default(),
            late: AtomicUsize::new(0),
            runtime,
        }
    }

    pub(super) fn lake(&self) -> MutexGuard<'_, Lake> {
        self.lake.lock().expect("no panic under the lock")
    }

    pub(super) fn habits(&self) -> MutexGuard<'_, Habits> {
        self.habits.lock().expect("no panic under the lock")
    }

    pub(super) fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().expect("no panic under the lock")
    }

    pub(super) fn late_updates(&self) -> usize {
        self.late.load(Ordering::SeqCst)
    }

    /// A bucket of the table's own among the objects; its location is the table's warehouse.
    pub(super) async fn make_warehouse(&self) -> Result<String, Refusal> {
        let bucket = warehouse_bucket();
        let made = self.client.create_bucket().bucket(&bucket).send().await;
        made.map_err(|error| Refusal::internal(format!("{}", aws_sdk_s3::error::DisplayErrorContext(error))))?;
        Ok(format!("s3://{bucket}"))
    }

    pub(super) fn show(&self, id: &TableId) -> Result<Shown, Refusal> {
        let behind = self.habits().behind();
        let lake = self.lake();
        let table = lake.table(id)?;
        Ok(Shown { pointer: table.pointer_before(behind).clone(), warehouse: table.warehouse.clone() })
    }

    /// The native update: now, or late while the caller is told of an error. Answers with the table's ARN and the token
    /// that this swap made, which may be old by the time that the caller reads it.
    pub(super) async fn update(
        self: &Arc<Self>,
        id: TableId,
        token: String,
        metadata: String,
    ) -> Result<(String, String), Refusal> {
        let warehouse = self.lake().table(&id)?.warehouse.clone();
        names::metadata_location(&metadata, &warehouse)?;
        self.check_size(&metadata).await?;
        let delay = self.habits().delays();
        let Some(delay) = delay else {
            let mut lake = self.lake();
            let table = lake.swap(&id, &token, &metadata, Committer::Native)?;
            return Ok((table.arn.clone(), table.pointer.token.clone()));
        };
        self.late.fetch_add(1, Ordering::SeqCst);
        let service = Arc::clone(self);
        self.runtime.spawn(async move {
            sleep(delay).await;
            // Refused when somebody else was faster; nobody is there to be told.
            let _ = service.lake().swap(&id, &token, &metadata, Committer::Native).map(drop);
            service.late.fetch_sub(1, Ordering::SeqCst);
        });
        Err(Refusal::internal("We encountered an internal error. Please try again."))
    }

    /// Before any operation on metadata: it is there and not too large.
    pub(super) async fn check_size(&self, metadata: &str) -> Result<(), Refusal> {
        match objects::size(&self.client, metadata).await {
            None => Err(Refusal::bad_request(format!("The metadata file cannot be read: {metadata}"))),
            Some(size) if size > LARGEST_METADATA => {
                Err(Refusal::bad_request(format!("The metadata file is too large: {size} bytes")))
            }
            Some(_) => Ok(()),
        }
    }
}
