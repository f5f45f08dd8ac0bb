//! The HTTP service: tables, their past and their rows, and what operators do to pipelines, below `/v1`; and a page that
//! asks for all that on behalf of a person (`console.rs`). Nothing here changes a table by itself: handlers ask `operate`
//! for what the command line's verbs ask for, too.
//!
//! A request goes through `routes.rs` (which role may call what; `openapi.rs` tells programs), `identity.rs` (who is
//! calling), `auth.rs` (whether they may) and one handler; every error, whoever makes it, becomes an answer in `problem.rs`.
//! Rows are written by blocking work through a pipe that the client empties (`pipe.rs`), compressed where it wishes so
//! (`compression.rs`); operations go on behind their answers (`coordinator.rs`). Connections are those of `listener.rs`, in
//! TLS where the configuration has a certificate (`tls.rs`).

mod audit;
mod auth;
mod body;
mod change_log;
mod compression;
mod console;
mod coordinator;
mod diff;
mod etag;
mod format;
mod identity;
mod listener;
mod metrics;
mod noted;
mod oidc;
pub(crate) mod openapi;
mod operations;
mod page;
mod pipe;
mod pipelines;
mod plans;
mod preconditions;
mod problem;
mod quarantine;
mod query;
mod rollbacks;
mod routes;
mod rows;
mod runs;
mod scans;
mod tables;
mod tags;
mod tls;
mod upkeep;
mod verifications;
mod wish;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use lakehouse_core::verify::VerifyReport;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::audit::{Audit, Via};
use crate::config::{ApiConfig, Config};
use crate::failure::Failure;
use crate::lake::Lake;
use crate::upkeep::{Metrics as UpkeepMetrics, TableReport};
use coordinator::Coordinator;
use listener::Listener;
use metrics::Metrics;
use oidc::Oidc;
use page::PageKey;
use plans::Plans;
use runs::Runs;
use scans::Scans;
use tls::Tls;

/// How long answers under way may take once a stop was asked for.
const GRACE: Duration = Duration::from_secs(5);

/// What handlers share.
struct Service {
    config: Config,
    api: ApiConfig,
    /// Whose tokens count beside those of the configuration.
    oidc: Option<Oidc>,
    lake: Lake,
    scans: Scans,
    metrics: Metrics,
    /// Rollbacks that were shown and not yet confirmed.
    plans: Mutex<Plans>,
    /// Of the tokens of pages.
    page_key: PageKey,
    coordinator: Coordinator,
    /// What callers have asked for, and look at.
    passes: Runs<Vec<TableReport>>,
    verifications: Runs<VerifyReport>,
    audit: Audit,
}

type Shared = Arc<Service>;

/// Bound to its addresses, not yet answering.
pub(crate) struct Server {
    listeners: Vec<Listener>,
    tls: Option<Arc<Tls>>,
    service: Shared,
}

impl Server {
    /// # Errors
    /// `LISTEN` for an address that cannot be had; `TLS_CERTIFICATE`, `JWKS_UNREADABLE`; what `page_key` can have wrong.
    pub(crate) async fn bind(
        config: &Config,
        api: &ApiConfig,
        lake: Lake,
        upkeep: UpkeepMetrics,
    ) -> Result<Self, Failure> {
        if !api.listen.ip().is_loopback() && api.tls.is_none() {
            warn!(address = %api.listen, "tokens and rows go over plain HTTP: only a proxy that ends TLS may reach this");
        }
        let tls = api.tls.as_ref().map(Tls::open).transpose()?.map(Arc::new);
        let audit = Audit::new(config.audit.as_ref(), Via::Http);
        look_at(&audit, api).await;
        let service = Arc::new(Service {
            config: config.clone(),
            api: api.clone(),
            oidc: api.auth.oidc.as_ref().map(Oidc::new).transpose()?,
            coordinator: Coordinator::new(lake.clone()),
            lake,
            scans: Scans::new(usize::try_from(api.scans).unwrap_or(1)),
            metrics: Metrics::new(audit.entries(), upkeep),
            plans: Mutex::default(),
            passes: Runs::new("/v1/maintenance/runs", "MAINTENANCE_RUNNING"),
            verifications: Runs::new("/v1/verifications", "VERIFY_RUNNING"),
            page_key: PageKey::new(api.page_key.as_ref())?,
            audit,
        });
        let mut listeners = vec![Listener::bind("listen", api.listen, routes::api(&service), tls.clone()).await?];
        if let Some(address) = api.metrics_listen {
            let tls = tls.clone().filter(|_| api.tls.as_ref().is_some_and(|tls| tls.metrics));
            listeners.push(Listener::bind("metrics_listen", address, routes::metrics(&service), tls).await?);
        }
        Ok(Self { listeners, tls, service })
    }

    /// Answers until it is stopped, then ends what is under way.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let serving = self.listeners.into_iter().map(|listener| listener.serve(stop.clone()));
        let keys = self.service.oidc.iter().map(|oidc| oidc.keep_keys(stop.clone()));
        let certificate = self.tls.iter().map(|tls| tls.follow(stop.clone()));
        tokio::join!(join_all(serving), join_all(keys), join_all(certificate));
        self.service.coordinator.end(GRACE).await;
        info!("HTTP has stopped");
    }
}

/// Tells at the start what the first call would find out. It stops nothing: replication may be in the same process.
async fn look_at(audit: &Audit, api: &ApiConfig) {
    if !audit.is_kept() && api.auth.has_operators() {
        warn!("there are operators and no audit trail is kept: name a file in [audit]");
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
