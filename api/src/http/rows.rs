//! Rows of a table, now or at a point of its past.

use std::io::Write;

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::read::TableReader;
use serde_json::{Value, json};
use tracing::{info, warn};
use utoipa::IntoResponses;

use super::auth::Principal;
use super::body::Body;
use super::etag::Etag;
use super::format::Format;
use super::pipe::{self, Answer, Pipe, Wanted, too_much};
use super::problem::HttpProblem;
use super::query::understood;
use super::scans::ScanPermit;
use super::tables::{InPath, Named};
use super::wish::{Document, Parameters, Wish};
use super::{Service, Shared};
use crate::answer;
use crate::failure::Failure;
use crate::lake::{Chosen, Point};
use crate::rows::{self, ORDERED_ROWS, Output, Reading};
use crate::shapes;

/// Rows, or changes, of one JSON document, which is made in memory.
pub(super) const JSON_ROWS: u64 = 10_000;
/// Bytes of it (S6).
const JSON_BYTES: usize = 32 << 20;
/// When to come again where every scan is taken, in seconds.
const SCAN_SECONDS: u64 = 1;

/// Why rows, or changes, are not shown.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is wanted")]
pub(super) enum Refused {
    /// The token may not read this table, or this server shows no rows
    #[response(status = 403)]
    Hidden,
    /// There is no such table, snapshot, tag or cut; of a time or position `nearest` says what is kept around it
    #[response(status = 404)]
    Unknown,
    /// Rows do not come in a format that `Accept` names
    #[response(status = 406)]
    Format,
    /// A state has expired; `nearest` says what is kept around it
    #[response(status = 410)]
    Expired,
    /// As many answers with rows are under way as this server gives at a time, in all or to one caller
    #[response(status = 429)]
    Busy,
}

/// Read rows of a table, now or in the past.
#[utoipa::path(
    get, path = "/v1/tables/{namespace}/{table}/rows", operation_id = "read_rows", tag = "tables",
    params(InPath, Parameters),
    responses(
        (
            status = 200, description = "Rows, in the format that `Accept` asks for",
            content(
                (shapes::Rows = "application/json"), (shapes::Lines = "application/x-ndjson"),
                (shapes::Csv = "text/csv"), (shapes::ArrowStream = "application/vnd.apache.arrow.stream"),
            ),
            headers(
                ("ETag" = String),
                ("Snapshot-Id" = String, description = "The state that the rows are of"),
                ("Snapshot-Timestamp" = String, description = "When it was committed, as RFC 3339"),
                ("Consistency" = String, description = "`cut` where all tables agree, else `per_table`"),
                ("Cut" = String, description = "Where one was asked for: the position of the cut that is shown"),
                ("Athena-SQL" = String, description = "The same rows by Athena, without the filter and the order"),
            )
        ),
        Refused,
    )
)]
pub(super) async fn get(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    named: Named,
    headers: HeaderMap,
    uri: Uri,
    parameters: Result<Query<Parameters>, QueryRejection>,
) -> Result<Response, HttpProblem> {
    let wish = understood(parameters)?.wish()?;
    read(&service, &principal, &named, &headers, wish, Some(uri.query().unwrap_or_default())).await
}

/// Read rows of a table by a query in the body, which may be longer than an address.
///
/// Its answer has no tag: nobody keeps the answer to a POST.
#[utoipa::path(
    post, path = "/v1/tables/{namespace}/{table}/rows:query", operation_id = "query_rows", tag = "tables",
    params(InPath), request_body = Document,
    responses(
        (
            status = 200, description = "Rows, in the format that `Accept` asks for",
            content(
                (shapes::Rows = "application/json"), (shapes::Lines = "application/x-ndjson"),
                (shapes::Csv = "text/csv"), (shapes::ArrowStream = "application/vnd.apache.arrow.stream"),
            ),
            headers(
                ("Snapshot-Id" = String, description = "The state that the rows are of"),
                ("Snapshot-Timestamp" = String, description = "When it was committed, as RFC 3339"),
                ("Consistency" = String, description = "`cut` where all tables agree, else `per_table`"),
                ("Cut" = String, description = "Where one was asked for: the position of the cut that is shown"),
                ("Athena-SQL" = String, description = "The same rows by Athena, without the filter and the order"),
            )
        ),
        Refused,
    )
)]
pub(super) async fn query(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    named: Named,
    headers: HeaderMap,
    Body(document): Body<Document>,
) -> Result<Response, HttpProblem> {
    read(&service, &principal, &named, &headers, document.wish()?, None).await
}

/// `address` is the query of a request whose answer may be kept.
async fn read(
    service: &Service,
    principal: &Principal,
    named: &Named,
    headers: &HeaderMap,
    wish: Wish,
    address: Option<&str>,
) -> Result<Response, HttpProblem> {
    let Wish { point, columns, filter, filter_sha256, order, limit } = wish;
    let format = Format::accepted(headers)?;
    let most = service.most_rows(format, limit)?;
    let most = if order.is_empty() { most } else { at_most(most.min(ORDERED_ROWS), limit)? };
    service.shows_rows()?;
    let table = named.load(&service.lake).await?;
    let chosen = service.find(&table, &point).await?;
    let id = chosen.snapshot.as_ref().map(|snapshot| snapshot.snapshot_id());
    let uuid = table.metadata.uuid().to_string();
    let etag = address.map(|address| Etag::of(&[&uuid, &format!("{id:?}"), address, format.media_type()]));
    if let Some(unchanged) = etag.as_ref().and_then(|etag| etag.unchanged(headers)) {
        return Ok(unchanged);
    }
    let permit = service.scan_permit(principal)?;
    let reader = TableReader::at(&service.lake.storage, &table, id).await?;
    let reading = Reading::new(&table.name, &reader, &columns, filter.as_ref(), &order)?;
    let shown = Some(&columns).filter(|columns| !columns.is_empty());
    info!(
        principal = %principal.name, table = %table.name, snapshot_id = id,
        columns = shown.map_or("*".to_owned(), |columns| columns.join(",")), is_filtered = filter.is_some(),
        "rows are read"
    );
    let detail = json!({
        "snapshot_id": id.map(|id| id.to_string()),
        // As they are shown; without any, all that the snapshot has.
        "columns": shown,
        "filter_sha256": filter_sha256,
        "limit": limit,
        "format": format.media_type(),
    });
    let intent = service.audit.read(principal.asks("rows", table.name.to_string(), detail)).await?;
    let (head, metrics) = (chosen.head(&table), service.metrics.clone());
    let consistency = chosen.consistency();
    let limit = limit.map_or(most + 1, |limit| limit.min(most + 1));
    let work = move |pipe: Pipe, wanted: &Wanted| {
        let schema = &reading.schema;
        let mut output = match format.flat() {
            None => Output::json(pipe, schema, head)?,
            Some(flat) => Output::of(flat, pipe, schema, false)?,
        };
        let written = rows::write(&reader, &reading, Some(limit), &mut output, &|| wanted.check());
        let written = written.and_then(|rows| if rows > most { Err(too_many(most)) } else { Ok(rows) });
        metrics.rows(*written.as_ref().unwrap_or(&0));
        intent.outcome_now(&written, json!({"rows": written.as_ref().ok()}));
        let told = |rows: &u64| json!({"rows": rows, "consistency": consistency});
        ended(format, wanted, written, |_| output.end(), told)
    };
    let answer = pipe::start(service, permit, work);
    let mut response = respond(answer, format).await?;
    describe(response.headers_mut(), &table, &chosen, &columns);
    Ok(match etag {
        Some(etag) => etag.on(response),
        None => response,
    })
}

impl Service {
    /// The point, or the problem of a point that is not there with what is around it.
    pub(super) async fn find(&self, table: &LoadedTable, point: &Point) -> Result<Chosen, HttpProblem> {
        let found = self.lake.find(&self.config, table, point).await;
        found.map_err(|failure| HttpProblem::of_point(failure, table, point))
    }

    /// Rows that an answer may have.
    pub(super) fn most_rows(&self, format: Format, limit: Option<u64>) -> Result<u64, HttpProblem> {
        let most = self.api.max_rows.unwrap_or(u64::MAX - 1);
        let most = if format == Format::Json { most.min(JSON_ROWS) } else { most };
        at_most(most, limit)
    }

    /// This release does not ask Lake Formation, so it shows nothing that is Lake Formation's to show.
    pub(super) fn shows_rows(&self) -> Result<(), HttpProblem> {
        let detail = "this server shows no rows; rows = true in [api] changes that";
        let refused = HttpProblem::new(StatusCode::FORBIDDEN, "ROWS_DISABLED", detail);
        if self.api.rows { Ok(()) } else { Err(refused) }
    }

    /// # Errors
    /// `TOO_MANY_SCANS`.
    pub(super) fn scan_permit(&self, principal: &Principal) -> Result<ScanPermit, HttpProblem> {
        self.scans.permit(&principal.name).ok_or_else(|| {
            self.metrics.refused("scans");
            let detail =
                "as many answers with rows are under way as this server gives at a time, in all or to one caller";
            HttpProblem::new(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_SCANS", detail).retry_after(SCAN_SECONDS)
        })
    }
}

/// # Errors
/// `ROWS_LIMIT` where more are wanted.
fn at_most(most: u64, limit: Option<u64>) -> Result<u64, HttpProblem> {
    if limit.is_some_and(|limit| limit > most) { Err(too_many(most).into()) } else { Ok(most) }
}

pub(super) fn too_many(most: u64) -> Failure {
    too_much(&format!("more than {most} rows"))
}

/// Ends an answer with `end`. One in lines has a last one, of what `told` makes of what was written, or of why that is not
/// all.
pub(super) fn ended<C: Default>(
    format: Format,
    wanted: &Wanted,
    written: Result<C, Failure>,
    end: impl FnOnce(C) -> Result<Pipe, Failure>,
    told: impl FnOnce(&C) -> Value,
) -> Result<Pipe, Failure> {
    match written {
        Ok(counts) if format == Format::Ndjson => {
            let told = told(&counts);
            end_of_lines(end(counts)?, Ok(told))
        }
        Ok(counts) => end(counts),
        Err(failure) if format == Format::Ndjson && wanted.has_begun() => {
            end_of_lines(end(C::default())?, Err(failure))
        }
        Err(failure) => Err(failure),
    }
}

/// The last line of an answer in lines: a client that has not seen it has not seen all rows.
fn end_of_lines(mut out: Pipe, ended: Result<Value, Failure>) -> Result<Pipe, Failure> {
    let line = match ended {
        Ok(mut counts) => {
            counts["_status"] = json!("complete");
            counts
        }
        Err(Failure { problem, .. }) => {
            warn!(code = problem.code, subject = problem.subject, reason = problem.message, "an answer is cut off");
            json!({"_status": "failed", "code": problem.code})
        }
    };
    writeln!(out, "{line}")?;
    Ok(out)
}

/// The answer in its format: a document at once, everything else as it comes.
pub(super) async fn respond(answer: Answer, format: Format) -> Result<Response, HttpProblem> {
    let mut response = match format {
        Format::Json => answer.whole(JSON_BYTES).await?.into_response(),
        Format::Ndjson | Format::Csv | Format::Arrow => answer.streamed().await?.into_response(),
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    Ok(response)
}

/// Which state the rows are of, and how to read the same one with Athena.
fn describe(headers: &mut HeaderMap, table: &LoadedTable, chosen: &Chosen, columns: &[String]) {
    headers.insert(HeaderName::from_static("consistency"), HeaderValue::from_static(chosen.consistency()));
    let cut = chosen.cut.and_then(|(position, _)| HeaderValue::from_str(&position.to_string()).ok());
    headers.extend(cut.map(|cut| (HeaderName::from_static("cut"), cut)));
    let Some(snapshot) = &chosen.snapshot else { return };
    let id = snapshot.snapshot_id();
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let columns: Vec<String> = columns.iter().map(|name| quoted(name)).collect();
    let columns = if columns.is_empty() { "*".to_owned() } else { columns.join(", ") };
    let (namespace, name) = (quoted(&table.name.namespace), quoted(&table.name.name));
    let sql = format!("SELECT {columns} FROM {namespace}.{name} FOR VERSION AS OF {id}");
    for (name, value) in [
        ("snapshot-id", id.to_string()),
        ("snapshot-timestamp", answer::time(snapshot.timestamp_ms())),
        ("athena-sql", sql),
    ] {
        // A name beyond ASCII has no place in a header.
        if let (true, Ok(value)) = (value.is_ascii(), HeaderValue::from_str(&value)) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}
