//! A simulator of Amazon S3 Tables, with the habits that no emulator has.
//!
//! Three addresses, as on Amazon: the native API ([`S3Tables::endpoint`]), the Iceberg REST catalog for readers and other
//! engines ([`S3Tables::rest_uri`]), and S3 for the tables' objects ([`S3Tables::s3_endpoint`]). Objects themselves lie in
//! a real S3 emulator that the test gives.
//!
//! What it does as the service does, by its documentation and by published tests of the live one:
//! - the swap compares a token over the whole table, and one of many holders of a token wins;
//! - a metadata file lies in the table's own warehouse, ends in `.metadata.json`, exists and has at most 50 MB;
//! - tables begin without metadata; names are checked; each table has a warehouse of its own;
//! - objects of tables can be neither listed nor deleted;
//! - managed compaction and snapshot management are on until they are switched off, and run, by the same swap, when the
//!   test says so ([`S3Tables::compact`], [`S3Tables::expire`]);
//! - REST: `stage-create` present and false, `purgeRequested=true`, one level of namespaces, no transactions or views.
//!
//! What is a guess, because nobody has published it: that the metadata file must exist, that REST asserts all kinds of
//! requirement, what an answer after a late update looks like. What it does not do: check signatures (it checks that
//! native calls are signed for `s3tables`), permissions, removal of unreferenced files.
//!
//! The REST side applies updates with the `iceberg` crate, which the product uses too: it judges no metadata.

mod compaction;
mod expiry;
mod front;
mod habits;
mod lake;
mod maintenance;
mod names;
mod native;
mod refusal;
mod rest;
mod service;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;

use crate::fault_proxy::Requests;
use crate::host::{Host, authority};
use crate::objects::Objects;
use crate::rest_engine::RestEngine;
use crate::wire;

pub use compaction::Compaction;
pub use expiry::Expiry;
pub use habits::Habits;
pub use lake::{Committer, Swap, TableId};
use service::Service;

/// A running simulator; it ends when it is dropped.
#[derive(Debug)]
pub struct S3Tables {
    address: SocketAddr,
    front: SocketAddr,
    service: Arc<Service>,
    /// Does the work of managed compaction.
    compactor: RestEngine,
    _host: Host,
}

impl S3Tables {
    /// On top of a service for objects.
    #[must_use]
    pub fn start(objects: &Objects) -> Self {
        let host = Host::start("s3-tables");
        let service = Arc::new(Service::new(objects, host.handle()));
        let (address, listener) = host.listen();
        let router = router(&service);
        host.spawn(async move { axum::serve(listener, router).await.expect("serving never fails") });
        let (front, listener) = host.listen();
        let upstream: Arc<str> = authority(&objects.endpoint).into();
        host.spawn(wire::serve(listener, move |request| front::pass(Arc::clone(&upstream), request)));
        let compactor = RestEngine::new(&format!("http://{address}/iceberg"), "", objects);
        Self { address, front, service, compactor, _host: host }
    }

    /// The native API, for `aws-sdk-s3tables`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The Iceberg REST catalog; the warehouse is a table bucket's ARN.
    #[must_use]
    pub fn rest_uri(&self) -> String {
        format!("http://{}/iceberg", self.address)
    }

    /// S3 for the tables' objects: refuses to list and to delete.
    #[must_use]
    pub fn s3_endpoint(&self) -> String {
        format!("http://{}", self.front)
    }

    /// The objects as a client of this service reaches them.
    #[must_use]
    pub fn objects(&self) -> Objects {
        self.service.objects.behind(&self.s3_endpoint())
    }

    /// Makes a table bucket and returns its ARN.
    ///
    /// # Panics
    /// When the name is taken or not allowed.
    #[must_use]
    pub fn create_table_bucket(&self, name: &str) -> String {
        self.service.lake().create_bucket(name).unwrap_or_else(|refusal| panic!("{name}: {refusal:?}"))
    }

    /// Changes how the service behaves from now on.
    pub fn habits(&self, change: impl FnOnce(&mut Habits)) {
        change(&mut self.service.habits());
    }

    /// How many updates were answered with an error and have not landed (or failed to) yet.
    #[must_use]
    pub fn late_updates(&self) -> usize {
        self.service.late_updates()
    }

    /// The accepted swaps of a table, oldest first: what was committed, whatever anybody was told.
    ///
    /// # Panics
    /// When there is no such table.
    #[must_use]
    pub fn swaps(&self, table: &TableId) -> Vec<Swap> {
        self.service.lake().table(table).unwrap_or_else(|refusal| panic!("{table:?}: {refusal:?}")).swaps.clone()
    }

    /// One run of managed compaction: all live rows into new files, committed by the token that stood when it began.
    ///
    /// # Panics
    /// When there is no such table, or the readers (PyIceberg does the work) are not installed.
    pub async fn compact(&self, table: &TableId) -> Compaction {
        compaction::run(&self.service, &self.compactor, table).await
    }

    /// One run of managed snapshot management, as if so much time had passed.
    ///
    /// # Panics
    /// When the simulator itself fails.
    pub async fn expire(&self, table: &TableId, later: Duration) -> Expiry {
        let (service, table) = (Arc::clone(&self.service), table.clone());
        let run = self.service.runtime.spawn(async move { expiry::run(&service, &table, later).await });
        run.await.expect("the run does not panic")
    }

    /// What clients have sent to the two catalog addresses since the start or the last [`S3Tables::reset_requests`].
    #[must_use]
    pub fn requests(&self) -> Requests {
        self.service.requests().clone()
    }

    /// Counts from zero again.
    pub fn reset_requests(&self) {
        *self.service.requests() = Requests::default();
    }
}

/// Larger requests than any commit of a test, and what the live REST endpoint takes is not published.
const LARGEST_REQUEST: usize = 64 << 20;

fn router(service: &Arc<Service>) -> Router {
    Router::new()
        .merge(native::routes())
        .nest("/iceberg/v1", rest::routes())
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .layer(middleware::from_fn_with_state(Arc::clone(service), count))
        .with_state(Arc::clone(service))
}

async fn count(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let target = request.uri().path();
    service.requests().count(request.method().as_str(), target);
    next.run(request).await
}

/// Amazon's own client for the native API of a simulator, an emulator or a proxy in front, each call sent once.
#[must_use]
pub fn client(endpoint: &str) -> aws_sdk_s3tables::Client {
    use aws_sdk_s3tables::config::{BehaviorVersion, Config, Region, retry::RetryConfig};

    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .retry_config(RetryConfig::disabled())
        .credentials_provider(aws_credential_types::Credentials::new("testing", "testing", None, None, "testkit"))
        .build();
    aws_sdk_s3tables::Client::from_conf(config)
}
