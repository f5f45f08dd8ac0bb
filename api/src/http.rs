//! The HTTP service: tables, their past and their rows, and what operators do to pipelines, below `/v1`; and a page that
//! asks for all that on behalf of a person (`console.rs`). Nothing here changes a table by itself: handlers ask `operate`
//! for what the command line's verbs ask for, too.
//!
//! A request goes through `routes.rs` (which role may call what), `auth.rs` (who is calling) and one handler; every error,
//! whoever makes it, becomes an answer in `problem.rs`. Rows are written by blocking work through a pipe that the client
//! empties (`pipe.rs`); operations go on behind their answers (`coordinator.rs`). Connections are HTTP/1.1 without TLS: a proxy in front ends it.

mod auth;
mod body;
mod console;
mod coordinator;
mod diff;
mod etag;
mod format;
mod metrics;
mod noted;
mod operations;
mod page;
mod pipe;
mod pipelines;
mod plans;
mod preconditions;
mod problem;
mod rollbacks;
mod routes;
mod rows;
mod scans;
mod tables;
mod wish;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::audit::{Audit, Via};
use crate::config::{ApiConfig, Config, Role};
use crate::failure::Failure;
use crate::lake::Lake;
use coordinator::Coordinator;
use metrics::Metrics;
use page::PageKey;
use plans::Plans;
use scans::Scans;

/// Open connections of one listener (S6); more wait in the system's queue.
const CONNECTIONS: usize = 256;
/// How long a client may take to send its request's head (S6).
const HEAD_TIME: Duration = Duration::from_secs(10);
/// The longest head of a request (S6).
const HEAD_BYTES: usize = 16 << 10;
/// How long answers under way may take once a stop was asked for.
const GRACE: Duration = Duration::from_secs(5);
/// After an error of the system's own, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What handlers share.
struct Service {
    config: Config,
    api: ApiConfig,
    lake: Lake,
    scans: Scans,
    metrics: Metrics,
    /// Rollbacks that were shown and not yet confirmed.
    plans: Mutex<Plans>,
    /// Of the tokens of pages.
    page_key: PageKey,
    coordinator: Coordinator,
    audit: Audit,
}

type Shared = Arc<Service>;

/// Bound to its addresses, not yet answering.
pub(crate) struct Server {
    listeners: Vec<(TcpListener, Router)>,
    service: Shared,
}

impl Server {
    /// # Errors
    /// `LISTEN` for an address that cannot be had; what `page_key` can have wrong.
    pub(crate) async fn bind(config: &Config, api: &ApiConfig, lake: Lake) -> Result<Self, Failure> {
        if !api.listen.ip().is_loopback() {
            warn!(address = %api.listen, "tokens and rows go over plain HTTP: only a proxy that ends TLS may reach this");
        }
        let audit = Audit::new(config.audit.as_ref(), Via::Http);
        look_at(&audit, api).await;
        let service = Arc::new(Service {
            config: config.clone(),
            api: api.clone(),
            coordinator: Coordinator::new(lake.clone()),
            lake,
            scans: Scans::new(usize::try_from(api.scans).unwrap_or(1)),
            metrics: Metrics::new(audit.entries()),
            plans: Mutex::default(),
            page_key: PageKey::new(api.page_key.as_ref())?,
            audit,
        });
        let mut listeners = vec![(listen("listen", api.listen).await?, routes::api(&service))];
        if let Some(address) = api.metrics_listen {
            listeners.push((listen("metrics_listen", address).await?, routes::metrics(&service)));
        }
        Ok(Self { listeners, service })
    }

    /// Answers until it is stopped, then ends what is under way.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let serving = self.listeners.into_iter().map(|(listener, router)| accept(listener, router, stop.clone()));
        futures::future::join_all(serving).await;
        self.service.coordinator.end(GRACE).await;
        info!("HTTP has stopped");
    }
}

/// Tells at the start what the first call would find out. It stops nothing: replication may be in the same process.
async fn look_at(audit: &Audit, api: &ApiConfig) {
    if !audit.is_kept() && api.tokens.values().any(|token| token.role > Role::Reader) {
        warn!("operators have tokens and no audit trail is kept: name a file in [audit]");
    }
    if let Err(Failure { problem, .. }) = audit.check().await {
        error!(
            code = problem.code,
            subject = problem.subject,
            reason = problem.message,
            remedy = problem.remedy,
            "calls that need an entry will be refused"
        );
    }
}

async fn listen(key: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        let message = format!("the address cannot be listened on: {error}");
        let remedy = format!("end what listens there, or set {key} in [api] to another address");
        Failure::failed("LISTEN", address.to_string(), message, remedy)
    })?;
    let address = listener.local_addr().map_or_else(|_| address.to_string(), |address| address.to_string());
    info!(key, address, "listening");
    Ok(listener)
}

async fn accept(listener: TcpListener, router: Router, stop: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_BYTES);
    let next = async || {
        let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
        (listener.accept().await, permit)
    };
    loop {
        // Biased: a stop is not kept waiting. A connection that was not accepted yet stays in the system's queue.
        let (accepted, permit) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = next() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a connection cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(protocol.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection has ended early");
            }
            drop(permit);
        });
    }
    drop(listener);
    if timeout(GRACE, graceful.shutdown()).await.is_err() {
        warn!("answers under way have not ended in time and are cut off");
    }
}
