//! What the service counts of itself, what is counted by who maintains, and what the lake tells of its pipelines: how old
//! their cuts are, and what stands in their quarantines.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use futures::future::join_all;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::{Instant, timeout};

use super::Shared;
use crate::config::PipelineConfig;
use crate::failure::Failure;
use crate::lake::Lake;
use crate::upkeep;

/// The first part of every name.
const PREFIX: &str = "lakehouse";
/// OpenMetrics, which Prometheus reads as its own.
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Upper bounds of answers' times, in seconds.
const SECONDS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0];
/// How long the catalog may take to tell of one pipeline.
const LAKE_TIME: Duration = Duration::from_secs(5);

/// Clones count together.
#[derive(Clone)]
pub(super) struct Metrics {
    registry: Arc<Registry>,
    requests: Family<Answered, Counter>,
    seconds: Family<Route, Histogram>,
    refused: Family<Reason, Counter>,
    scans: Gauge,
    rows: Counter,
    pub(super) upkeep: upkeep::Metrics,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: String,
    method: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pipeline {
    pipeline: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Mirror {
    pipeline: String,
    table: String,
}

impl Metrics {
    /// `audit_entries` is counted by who writes them, `upkeep` by who maintains.
    pub(super) fn new(audit_entries: Counter, upkeep: upkeep::Metrics) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let seconds = Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> Histogram);
        let (requests, refused, scans, rows) =
            (Family::default(), Family::default(), Gauge::default(), Counter::default());
        registry.register("build", "The release", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register("http_requests", "Answers, by route and status", Family::clone(&requests));
        let help = "Time until an answer begins";
        registry.register_with_unit("http_answer", help, Unit::Seconds, Family::clone(&seconds));
        registry.register(
            "http_refused",
            "Calls refused: by whom they came, or for want of scans",
            Family::clone(&refused),
        );
        registry.register("http_scans", "Answers with rows under way", Gauge::clone(&scans));
        registry.register("http_rows", "Rows sent", Counter::clone(&rows));
        registry.register("audit_entries", "Entries written to the audit trail", audit_entries);
        upkeep.register(&mut registry);
        Self { registry: Arc::new(registry), requests, seconds, refused, scans, rows, upkeep }
    }

    pub(super) fn refused(&self, why: &str) {
        self.refused.get_or_create(&Reason { reason: why.to_owned() }).inc();
    }

    pub(super) fn rows(&self, rows: u64) {
        self.rows.inc_by(rows);
    }

    /// One more scan, until it is dropped.
    pub(super) fn scan(&self) -> Scan {
        self.scans.inc();
        Scan(self.scans.clone())
    }
}

/// A scan under way.
pub(super) struct Scan(Gauge);

impl Drop for Scan {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Around every request. Routes, not addresses: those have no end.
pub(super) async fn observe(State(service): State<Shared>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    let route = path.map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    // Clients make up methods; labels have few values.
    let method = match *request.method() {
        Method::GET | Method::HEAD | Method::POST | Method::PUT | Method::DELETE | Method::OPTIONS => {
            request.method().to_string()
        }
        _ => "other".to_owned(),
    };
    let begun = Instant::now();
    let response = next.run(request).await;
    let seconds = begun.elapsed().as_secs_f64();
    let metrics = &service.metrics;
    metrics.seconds.get_or_create(&Route { route: route.clone() }).observe(seconds);
    metrics.requests.get_or_create(&Answered { route, method, status: response.status().as_u16() }).inc();
    response
}

/// What the lake tells: made anew for every answer, as an old age would be taken for a good one. What the catalog does not
/// tell in time is absent.
struct Told {
    registry: Registry,
    cut_age: Family<Pipeline, Gauge>,
    quarantine_rows: Family<Mirror, Gauge>,
}

impl Told {
    fn nothing() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let (cut_age, quarantine_rows) = (Family::default(), Family::default());
        let help = "Age of a pipeline's newest cut; absent where there is none or the catalog does not tell";
        registry.register_with_unit("cut_age", help, Unit::Seconds, Family::clone(&cut_age));
        let help = "Rows in the quarantine of a table; absent where it has none or the catalog does not tell";
        registry.register("quarantine_rows", help, Family::clone(&quarantine_rows));
        Self { registry, cut_age, quarantine_rows }
    }

    async fn ask(&self, lake: &Lake, pipeline: &str, config: &PipelineConfig) -> Result<(), Failure> {
        let control = lake.control(pipeline).await?;
        let Some(cut) = control.and_then(|(control, _)| control.cut) else { return Ok(()) };
        let age = (Utc::now().timestamp_millis() - cut.committed_at).max(0) / 1_000;
        self.cut_age.get_or_create(&Pipeline { pipeline: pipeline.to_owned() }).set(age);
        for (mirror, rows) in lake.quarantines(&config.namespace, &cut.source).await? {
            let label = Mirror { pipeline: pipeline.to_owned(), table: mirror.to_string() };
            self.quarantine_rows.get_or_create(&label).set(i64::try_from(rows).unwrap_or(i64::MAX));
        }
        Ok(())
    }
}

pub(super) async fn show(State(service): State<Shared>) -> Response {
    let told = Told::nothing();
    let asked = service.config.pipelines.iter();
    join_all(asked.map(|(name, config)| timeout(LAKE_TIME, told.ask(&service.lake, name, config)))).await;
    let mut text = String::new();
    for registry in [&service.metrics.registry, &told.registry] {
        encode_registry(&mut text, registry).expect("a string takes everything");
    }
    encode_eof(&mut text).expect("a string takes everything");
    ([(CONTENT_TYPE, TEXT)], text).into_response()
}
