//! Verifications over HTTP: the mirrors of a pipeline against its source, as `lakehouse verify` compares them. They take
//! long, so each goes on behind its answer and is looked at.
//!
//! The source is read from where this service stands, with the pipeline's own credentials: where there is no way to it, the
//! code of that is what comes of the verification. Keys are told by their digests alone.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use lakehouse_core::position::Position;
use lakehouse_core::verify::{VerifyOptions, VerifyReport};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Shared;
use super::auth::Principal;
use super::body::{Body, Name, Reason, named};
use super::problem::HttpProblem;
use super::runs::{Begun, Head, Run};
use crate::audit::Intent;
use crate::failure::Failure;
use crate::operate;
use crate::shapes;

/// What is compared.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = VerifyOrder)]
pub(super) struct Wanted {
    /// All of the pipeline, where it is left out.
    #[schema(min_items = 1)]
    tables: Option<Vec<Name>>,
    /// The mirrors at this past cut, with their histories in place of the source.
    #[schema(value_type = Option<shapes::Position>)]
    cut: Option<Position>,
    reason: Option<Reason>,
}

/// One verification.
#[derive(Serialize, ToSchema)]
#[schema(as = Verification)]
struct Shown<'a> {
    #[serde(flatten)]
    #[schema(value_type = Head)]
    run: &'a Head,
    pipeline: &'a str,
    /// Null while it is at work, and where it has failed.
    #[schema(value_type = Option<shapes::VerifyReport>)]
    report: Option<&'a VerifyReport>,
}

/// Compare the mirrors of a pipeline with its source, row by row.
///
/// It changes nothing, and goes on behind this answer: it reads every row, at the source with the pipeline's own
/// credentials.
#[utoipa::path(
    post, path = "/v1/pipelines/{pipeline}/verify", operation_id = "verify_pipeline", tag = "pipelines",
    params(("pipeline" = String, Path)), request_body = Wanted,
    responses(
        (
            status = 202, description = "A verification, which goes on behind this answer", body = Begun,
            headers(("Location" = String, description = "The verification's address"))
        ),
        (status = 404, description = "There is no such pipeline, or no such mirror of it"),
        (status = 409, description = "Another verification of the pipeline is at work, or it has no cut yet"),
    )
)]
pub(super) async fn verify(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(pipeline): Path<String>,
    Body(Wanted { tables, cut, reason }): Body<Wanted>,
) -> Result<Response, HttpProblem> {
    let config = service.config.pipeline(&pipeline)?;
    let tables = named(tables)?;
    match tables.is_empty() {
        true => service.check_scope_of_all(&principal, &pipeline, config).await?,
        false => service.check_scope(&principal, &tables).await?,
    }
    let mirrors = operate::verify::mirrors(&service.lake, &pipeline, config, &tables).await?;
    let id = Uuid::now_v7().to_string();
    let reason = reason.map_or_else(String::new, |Reason(reason)| reason);
    let names: Vec<String> = mirrors.iter().map(ToString::to_string).collect();
    let detail = json!({"pipeline": pipeline, "tables": names, "cut": cut});
    let intent = service.intent(&principal, "verify", &id, &reason, detail).await?;
    let run = Run::new(&id, &pipeline, &principal.name, &reason, &mirrors);
    let (intent, begun) = service.verifications.begin(run, intent).await?;
    // All of a pipeline is all that the source has: a mirror that is missing must not go unnoticed.
    let tables = tables.iter().map(ToString::to_string).collect();
    let options = VerifyOptions { tables, cut, show_keys: false };
    service.coordinator.spawn(perform(Shared::clone(&service), id, pipeline, options, intent));
    Ok(begun)
}

/// Show how far a verification has come, and its verdict.
#[utoipa::path(
    get, path = "/v1/verifications/{id}", operation_id = "show_verification", tag = "pipelines",
    params(("id" = String, Path)),
    responses(
        (status = 200, description = "The verification", body = Shown),
        (status = 404, description = "This service has no such verification, or has forgotten it"),
    )
)]
pub(super) async fn show(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Response, HttpProblem> {
    service.verifications.show(&id, &principal, |run| {
        let report = run.outcome.as_ref();
        // A table may have come to the source meanwhile.
        let mut tables = report.into_iter().flat_map(|report| &report.tables);
        let may_see = tables.all(|table| table.table.parse().is_ok_and(|name| principal.may_see(&name)));
        may_see.then(|| Json(Shown { run: &run.head, pipeline: &run.subject, report }).into_response())
    })
}

/// The verification behind the answer. A service that ends meanwhile gives it up, and the source lets go of what it has
/// held for it.
async fn perform(service: Shared, id: String, pipeline: String, options: VerifyOptions, intent: Intent) {
    let verified = async {
        let config = service.config.pipeline(&pipeline)?;
        let environment = service.lake.environment(&pipeline, config);
        Ok::<_, Failure>(config.source(&pipeline)?.verify(environment, options).await?)
    };
    let verified = verified.await;
    service.verifications.end(&id, intent, verified, |report| json!({"verdict": report.verdict})).await;
}
