//! What the service counts of itself, how far behind its pipelines' cuts are, and what is counted by who maintains.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::{Instant, timeout};

use super::Shared;
use crate::upkeep;

/// OpenMetrics, which Prometheus reads as its own.
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Upper bounds of answers' times, in seconds.
const SECONDS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0];
/// How long the catalog may take to tell of one pipeline.
const CUT_TIME: Duration = Duration::from_secs(2);

/// Clones count together.
#[derive(Clone)]
pub(super) struct Metrics {
    registry: Arc<Registry>,
    requests: Family<Answered, Counter>,
    seconds: Family<Route, Histogram>,
    refused: Family<Reason, Counter>,
    scans: Gauge,
    rows: Counter,
    cut_age: Family<Pipeline, Gauge>,
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

impl Metrics {
    /// `audit_entries` is counted by who writes them, `upkeep` by who maintains.
    pub(super) fn new(audit_entries: Counter, upkeep: upkeep::Metrics) -> Self {
        let mut registry = Registry::with_prefix("lakehouse");
        let seconds = Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> Histogram);
        let (requests, refused, scans, rows, cut_age) =
            (Family::default(), Family::default(), Gauge::default(), Counter::default(), Family::default());
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
        let help = "Age of a pipeline's newest cut; absent where there is none or the catalog does not tell";
        registry.register_with_unit("cut_age", help, Unit::Seconds, Family::clone(&cut_age));
        upkeep.register(&mut registry);
        Self { registry: Arc::new(registry), requests, seconds, refused, scans, rows, cut_age, upkeep }
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

pub(super) async fn show(State(service): State<Shared>) -> Response {
    let metrics = &service.metrics;
    for pipeline in service.config.pipelines.keys() {
        let label = Pipeline { pipeline: pipeline.clone() };
        let told = timeout(CUT_TIME, service.lake.control(pipeline)).await;
        let cut = told.ok().and_then(Result::ok).flatten().and_then(|(control, _)| control.cut);
        match cut {
            Some(cut) => {
                let age = (Utc::now().timestamp_millis() - cut.committed_at).max(0) / 1_000;
                metrics.cut_age.get_or_create(&label).set(age);
            }
            // An old age would be taken for a good one.
            None => {
                metrics.cut_age.remove(&label);
            }
        }
    }
    let mut text = String::new();
    encode(&mut text, &metrics.registry).expect("a string takes everything");
    ([(CONTENT_TYPE, TEXT)], text).into_response()
}
