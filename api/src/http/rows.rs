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
use serde::Deserialize;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tracing::{info, warn};
use utoipa::IntoParams;

use super::auth::Principal;
use super::etag::Etag;
use super::format::Format;
use super::pipe::{self, Answer, Pipe, Wanted, too_much};
use super::problem::HttpProblem;
use super::tables::{InPath, Named};
use super::{Service, Shared};
use crate::answer;
use crate::cli::{self, parse_time};
use crate::digest::sha256;
use crate::failure::Failure;
use crate::lake::{Chosen, Neighbours, Point};
use crate::rows::{self, FilterTree, Output, Reading, Where};
use crate::shapes;

/// Rows, or changes, of one JSON document, which is made in memory.
pub(super) const JSON_ROWS: u64 = 10_000;
/// Bytes of it (S6).
const JSON_BYTES: usize = 32 << 20;
/// When to come again where every scan is taken, in seconds.
const SCAN_SECONDS: u64 = 1;

/// What to read. Of the first four at most one.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Wish {
    /// The state as of this snapshot. At most one of `snapshot_id`, `as_of`, `tag` and `cut`; else the newest.
    #[param(value_type = Option<String>, pattern = "^-?[0-9]{1,19}$")]
    snapshot_id: Option<i64>,
    /// The state as of this time: RFC 3339, or a date; without a zone it is UTC.
    #[param(example = "2026-11-21T09:30:00Z")]
    as_of: Option<String>,
    /// The state of this tag; `main` is the newest.
    tag: Option<String>,
    /// The state at the newest cut at or before this position.
    #[param(value_type = Option<shapes::Position>)]
    cut: Option<String>,
    /// Columns, with commas between them.
    select: Option<String>,
    /// A filter tree as JSON, such as `{"eq": {"column": "state", "value": "paid"}}`.
    filter: Option<String>,
    /// At most so many rows.
    limit: Option<u64>,
}

impl Wish {
    fn point(&self) -> Result<Point, HttpProblem> {
        point(self.snapshot_id, self.as_of.as_deref(), self.tag.as_deref(), self.cut.as_deref())
    }

    fn filter(&self) -> Result<Option<Where>, HttpProblem> {
        let tree = self.filter.as_deref().map(FilterTree::parse).transpose();
        let invalid = |error| HttpProblem::new(StatusCode::BAD_REQUEST, "FILTER_INVALID", format!("filter: {error}"));
        Ok(tree.map_err(invalid)?.map(Where::Tree))
    }

    fn columns(&self) -> Vec<String> {
        self.select.iter().flat_map(|select| select.split(',')).map(str::to_owned).collect()
    }
}

/// The point that a request names; the newest, if it names none.
pub(super) fn point(
    snapshot_id: Option<i64>,
    as_of: Option<&str>,
    tag: Option<&str>,
    cut: Option<&str>,
) -> Result<Point, HttpProblem> {
    let as_of = as_of.map(parse_time).transpose();
    let as_of = as_of.map_err(|error| HttpProblem::invalid(format!("as_of: {error}")))?;
    let cut = cut.map(str::parse).transpose();
    let cut = cut.map_err(|_| HttpProblem::invalid("cut: write a position as status shows it"))?;
    let tag = tag.map(|tag| Point::Tag(tag.to_owned()));
    let points = [snapshot_id.map(Point::Snapshot), as_of.map(Point::AsOf), tag, cut.map(Point::Cut)];
    let mut points = points.into_iter().flatten();
    match (points.next(), points.next()) {
        (None, _) => Ok(Point::Newest),
        (Some(point), None) => Ok(point),
        (Some(_), Some(_)) => Err(HttpProblem::invalid("give one of snapshot_id, as_of, tag and cut")),
    }
}

/// Of a query that cannot be understood.
pub(super) fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, HttpProblem> {
    query.map(|Query(wish)| wish).map_err(|rejection| HttpProblem::invalid(rejection.body_text()))
}

/// Read rows of a table, now or in the past.
#[utoipa::path(
    get, path = "/v1/tables/{namespace}/{table}/rows", operation_id = "read_rows", tag = "tables", params(InPath, Wish),
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
                ("Athena-SQL" = String, description = "The same rows by Athena, without the filter"),
            )
        ),
        (status = 403, description = "The token may not read this table, or this server shows no rows"),
        (status = 404, description = "There is no such table, snapshot, tag or cut"),
        (status = 406, description = "Rows do not come in a format that `Accept` names"),
        (status = 410, description = "The state has expired; `nearest` says what is kept around it"),
        (status = 429, description = "As many answers with rows are under way as this server gives at a time"),
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
    let wish = query(wish)?;
    let (point, filter, format) = (wish.point()?, wish.filter()?, Format::accepted(&headers)?);
    let most = service.most_rows(format, wish.limit)?;
    service.shows_rows()?;
    let table = named.load(&service.lake).await?;
    let chosen = service.find(&table, &point).await?;
    let id = chosen.snapshot.as_ref().map(|snapshot| snapshot.snapshot_id());
    let uuid = table.metadata.uuid().to_string();
    let etag = Etag::of(&[&uuid, &format!("{id:?}"), uri.query().unwrap_or_default(), format.media_type()]);
    if let Some(unchanged) = etag.unchanged(&headers) {
        return Ok(unchanged);
    }
    let permit = service.scan_permit()?;
    let reader = TableReader::at(&service.lake.storage, &table, id).await?;
    let columns = wish.columns();
    let reading = Reading::new(&table.name, &reader, &columns, filter.as_ref())?;
    info!(
        principal = %principal.name, table = %table.name, snapshot_id = id, columns = wish.select.as_deref().unwrap_or("*"),
        is_filtered = filter.is_some(), "rows are read"
    );
    let detail = json!({
        "snapshot_id": id.map(|id| id.to_string()),
        // As they are shown; without any, all that the snapshot has.
        "columns": wish.select.as_ref().map(|_| columns.iter().map(|name| name.trim()).collect::<Vec<_>>()),
        "filter_sha256": wish.filter.as_ref().map(|filter| sha256(filter.as_bytes())),
        "limit": wish.limit,
        "format": format.media_type(),
    });
    let intent = service.audit.read(principal.asks("rows", table.name.to_string(), detail)).await?;
    let (head, metrics) = (chosen.head(&table), service.metrics.clone());
    let limit = wish.limit.map_or(most + 1, |limit| limit.min(most + 1));
    let work = move |pipe: Pipe, wanted: &Wanted| {
        let schema = &reading.schema;
        let mut output = match format {
            Format::Json => Output::json(pipe, schema, head)?,
            Format::Ndjson => Output::of(cli::Format::Ndjson, pipe, schema, false)?,
            Format::Csv => Output::of(cli::Format::Csv, pipe, schema, false)?,
            Format::Arrow => Output::of(cli::Format::Arrow, pipe, schema, false)?,
        };
        let written = rows::write(&reader, &reading, Some(limit), &mut output, &|| wanted.check());
        let written = written.and_then(|rows| if rows > most { Err(too_many(most)) } else { Ok(rows) });
        metrics.rows(*written.as_ref().unwrap_or(&0));
        intent.outcome_now(&written, json!({"rows": written.as_ref().ok()}));
        match written {
            Ok(rows) if format == Format::Ndjson => end_of_lines(output.end()?, Ok(json!({"rows": rows}))),
            Ok(_) => output.end(),
            Err(failure) if format == Format::Ndjson && wanted.has_begun() => end_of_lines(output.end()?, Err(failure)),
            Err(failure) => Err(failure),
        }
    };
    let answer = pipe::start(&service, permit, work);
    let mut response = respond(answer, format).await?;
    describe(response.headers_mut(), &table, &chosen, &columns);
    Ok(etag.on(response))
}

impl Service {
    /// The point, or the problem of a point that is not there with what is around it.
    pub(super) async fn find(&self, table: &LoadedTable, point: &Point) -> Result<Chosen, HttpProblem> {
        let found = self.lake.find(&self.config, table, point).await;
        found.map_err(|failure| HttpProblem::from(failure).with_nearest(|| Neighbours::of(table, point)))
    }

    /// Rows that an answer may have.
    pub(super) fn most_rows(&self, format: Format, limit: Option<u64>) -> Result<u64, HttpProblem> {
        let most = self.api.max_rows.unwrap_or(u64::MAX - 1);
        let most = if format == Format::Json { most.min(JSON_ROWS) } else { most };
        if limit.is_some_and(|limit| limit > most) {
            return Err(too_many(most).into());
        }
        Ok(most)
    }

    /// This release does not ask Lake Formation, so it shows nothing that is Lake Formation's to show.
    pub(super) fn shows_rows(&self) -> Result<(), HttpProblem> {
        let detail = "this server shows no rows; rows = true in [api] changes that";
        let refused = HttpProblem::new(StatusCode::FORBIDDEN, "ROWS_DISABLED", detail);
        if self.api.rows { Ok(()) } else { Err(refused) }
    }

    /// The right to read rows, for as long as it is held.
    pub(super) fn scan_permit(&self) -> Result<OwnedSemaphorePermit, HttpProblem> {
        self.scans.clone().try_acquire_owned().map_err(|_| {
            self.metrics.refused("scans");
            let detail = "as many answers with rows are under way as this server gives at a time";
            HttpProblem::new(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_SCANS", detail).retry_after(SCAN_SECONDS)
        })
    }
}

pub(super) fn too_many(most: u64) -> Failure {
    too_much(&format!("more than {most} rows"))
}

/// The last line of an answer in lines: a client that has not seen it has not seen all rows.
pub(super) fn end_of_lines(mut out: Pipe, ended: Result<serde_json::Value, Failure>) -> Result<Pipe, Failure> {
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
    let consistency = if chosen.cut.is_some() { "cut" } else { "per_table" };
    headers.insert(HeaderName::from_static("consistency"), HeaderValue::from_static(consistency));
    let Some(snapshot) = &chosen.snapshot else { return };
    let id = snapshot.snapshot_id();
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let columns: Vec<String> = columns.iter().map(|name| quoted(name.trim())).collect();
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
