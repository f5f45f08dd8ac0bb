//! What differs between two points of a table's past.

use std::io::Write;

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use lakehouse_core::diff::{Counts, Diff};
use serde::Deserialize;
use serde_json::{Map, json};
use tracing::info;
use utoipa::IntoParams;

use super::Shared;
use super::auth::Principal;
use super::etag::Etag;
use super::format::Format;
use super::pipe::{self, Pipe, Wanted};
use super::problem::HttpProblem;
use super::query::understood;
use super::rows::{Refused, end_of_lines, respond, too_many};
use super::tables::{InPath, Named};
use crate::cli;
use crate::failure::Failure;
use crate::lake::Point;
use crate::rows::ChangesOutput;
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
    /// Only how many rows differ.
    #[serde(default)]
    counts: bool,
}

/// Read what differs between two points of a table's past.
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
    let uuid = table.metadata.uuid().to_string();
    let snapshots = format!("diff {from} {to}");
    let etag = Etag::of(&[&uuid, &snapshots, uri.query().unwrap_or_default(), format.media_type()]);
    if let Some(unchanged) = etag.unchanged(&headers) {
        return Ok(unchanged);
    }
    let permit = service.scan_permit(&principal)?;
    let diff = Diff::open(&service.lake.storage, &table, from, to).await?;
    info!(principal = %principal.name, table = %table.name, from, to, counts = wish.counts, "a diff is read");
    let detail = json!({
        "from": from.to_string(),
        "to": to.to_string(),
        "counts": wish.counts,
        "format": format.media_type(),
    });
    let intent = service.audit.read(principal.asks("diff", table.name.to_string(), detail)).await?;
    let mut head = Map::new();
    head.insert("table".to_owned(), json!(table.name.to_string()));
    head.insert("from".to_owned(), json!(from.to_string()));
    head.insert("to".to_owned(), json!(to.to_string()));
    let (most, metrics) = (service.most_rows(format, None)?, service.metrics.clone());
    let work = move |mut pipe: Pipe, wanted: &Wanted| {
        let watch = || wanted.check();
        if wish.counts {
            let counts = diff.counts(&watch);
            intent.outcome_now(&counts, json!({"rows": 0}));
            let Counts { inserted, updated, deleted } = counts?;
            let counts = [("inserted", inserted), ("updated", updated), ("deleted", deleted)];
            head.extend(counts.map(|(key, rows)| (key.to_owned(), json!(rows))));
            writeln!(pipe, "{}", serde_json::Value::Object(head))?;
            return Ok(pipe);
        }
        let mut output = match format {
            Format::Json => ChangesOutput::json(pipe, head)?,
            Format::Ndjson => ChangesOutput::flat(cli::Format::Ndjson, pipe, diff.schema(), false)?,
            Format::Csv => ChangesOutput::flat(cli::Format::Csv, pipe, diff.schema(), false)?,
            Format::Arrow => ChangesOutput::flat(cli::Format::Arrow, pipe, diff.schema(), false)?,
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
        match found {
            Ok(counts) if format == Format::Ndjson => end_of_lines(output.end(counts)?, Ok(json!(counts))),
            Ok(counts) => output.end(counts),
            Err(failure) if format == Format::Ndjson && wanted.has_begun() => {
                end_of_lines(output.end(Counts::default())?, Err::<_, Failure>(failure))
            }
            Err(failure) => Err(failure),
        }
    };
    let answer = pipe::start(&service, permit, work);
    Ok(etag.on(respond(answer, format).await?))
}
