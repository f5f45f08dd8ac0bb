//! What differs between two points of a table's past (`net`), or what has led from one to the other (`log`, in
//! `change_log.rs`).

use std::io::Write;

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::diff::Diff;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;
use utoipa::IntoParams;

use super::auth::Principal;
use super::etag::Etag;
use super::format::Format;
use super::pipe::{self, Pipe, Wanted};
use super::problem::HttpProblem;
use super::query::understood;
use super::rows::{Refused, ended, respond, too_many};
use super::tables::{InPath, Named};
use super::{Service, Shared};
use crate::answer;
use crate::audit::Intent;
use crate::cli::Mode;
use crate::lake::Point;
use crate::rows::{ChangesOutput, head};
use crate::shapes;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Wish {
    /// A point in one word: a snapshot's id, a time as RFC 3339 has it, a cut's position, or a tag.
    #[param(example = "main")]
    from: String,
    /// The same.
    #[param(example = "main")]
    to: String,
    /// `net`: the rows that differ; `log`: every change in between, in order, from the table's history.
    #[serde(default)]
    #[param(inline)]
    mode: Mode,
    /// Only how many rows differ, or how many changes there are.
    #[serde(default)]
    counts: bool,
}

/// Read what differs between two points of a table's past, or what has led from one to the other.
///
/// A log is the history's, so the token must be for that as well. It leads forward, and it is whole or there is none.
#[utoipa::path(
    get, path = "/v1/tables/{namespace}/{table}/diff", operation_id = "read_diff", tag = "tables", params(InPath, Wish),
    responses(
        (
            status = 200, description = "What differs, in the format that `Accept` asks for; counts always as JSON",
            content(
                (shapes::Changes = "application/json"), (shapes::Lines = "application/x-ndjson"),
                (shapes::Csv = "text/csv"), (shapes::ArrowStream = "application/vnd.apache.arrow.stream"),
            ),
            headers(("ETag" = String))
        ),
        Refused,
        (status = 409, description = "The history of a log may not have its last changes yet"),
    )
)]
pub(super) async fn get(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    named: Named,
    headers: HeaderMap,
    uri: Uri,
    wish: Result<Query<Wish>, QueryRejection>,
) -> Result<Response, HttpProblem> {
    let wish = understood(wish)?;
    // Counts are one document, whatever rows would be.
    let format = if wish.counts { Format::Json } else { Format::accepted(&headers)? };
    service.shows_rows()?;
    let table = named.load(&service.lake).await?;
    let mut ids = [0; 2];
    for (id, text) in ids.iter_mut().zip([&wish.from, &wish.to]) {
        let Ok(point) = text.parse::<Point>();
        let found = service.lake.find_id(&service.config, &table, &point).await;
        *id = found.map_err(|failure| HttpProblem::of_point(failure, &table, &point))?;
    }
    let [from, to] = ids;
    let address = uri.query().unwrap_or_default();
    let (service, principal, headers) = (&*service, &principal, &headers);
    let asked = Asked { service, principal, headers, address, table, from, to, counts: wish.counts, format };
    match wish.mode {
        Mode::Net => asked.net().await,
        Mode::Log => asked.log().await,
    }
}

/// Two states of a table, and what is asked about the way between them.
pub(super) struct Asked<'a> {
    pub(super) service: &'a Service,
    pub(super) principal: &'a Principal,
    pub(super) headers: &'a HeaderMap,
    /// The query of the request.
    address: &'a str,
    pub(super) table: LoadedTable,
    pub(super) from: i64,
    pub(super) to: i64,
    pub(super) counts: bool,
    pub(super) format: Format,
}

impl Asked<'_> {
    /// Of the answer; `what` is all that decides it beside the request.
    pub(super) fn etag(&self, what: &str) -> Etag {
        let uuid = self.table.metadata.uuid().to_string();
        Etag::of(&[&uuid, what, self.address, self.format.media_type()])
    }

    /// Tells the log and the audit trail who reads what.
    pub(super) async fn intent(&self, mode: &'static str) -> Result<Intent, HttpProblem> {
        let Self { service, principal, table, from, to, counts, format, .. } = self;
        info!(principal = %principal.name, table = %table.name, from, to, mode, counts, "a diff is read");
        let detail = json!({
            "from": from.to_string(),
            "to": to.to_string(),
            "mode": mode,
            "counts": counts,
            "format": format.media_type(),
        });
        Ok(service.audit.read(principal.asks("diff", table.name.to_string(), detail)).await?)
    }

    async fn net(self) -> Result<Response, HttpProblem> {
        let (service, counts, format) = (self.service, self.counts, self.format);
        let etag = self.etag(&format!("diff {} {}", self.from, self.to));
        if let Some(unchanged) = etag.unchanged(self.headers) {
            return Ok(unchanged);
        }
        let permit = service.scan_permit(self.principal)?;
        let diff = Diff::open(&service.lake.storage, &self.table, self.from, self.to).await?;
        let intent = self.intent("net").await?;
        let mut head = head(&self.table.name, self.from, self.to, Mode::Net);
        let (most, metrics) = (service.most_rows(format, None)?, service.metrics.clone());
        let work = move |mut pipe: Pipe, wanted: &Wanted| {
            let watch = || wanted.check();
            if counts {
                let counts = diff.counts(&watch);
                intent.outcome_now(&counts, json!({"rows": 0}));
                head.extend(answer::keys(&counts?));
                writeln!(pipe, "{}", Value::Object(head))?;
                return Ok(pipe);
            }
            let mut output = match format.flat() {
                None => ChangesOutput::json(pipe, head)?,
                Some(flat) => ChangesOutput::flat(flat, pipe, diff.schema(), false)?,
            };
            let mut written = 0;
            let found = diff.changes(&watch, &mut |changes| {
                written += changes.num_rows() as u64;
                if written > most {
                    return Err(too_many(most));
                }
                output.write(&changes)
            });
            metrics.rows(written);
            intent.outcome_now(&found, json!({"rows": written}));
            ended(format, wanted, found, |counts| output.end(counts), |counts| json!(counts))
        };
        let answer = pipe::start(service, permit, work);
        Ok(etag.on(respond(answer, format).await?))
    }
}
