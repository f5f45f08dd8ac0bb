//! May they: what a route asks of its callers against what whoever is calling (`identity.rs`) has been granted. Nobody is let
//! through by default; without tokens, an issuer, or `allow_anonymous` on a loopback address, every call ends here.

use std::sync::Arc;

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use chrono::Utc;
use lakehouse_core::schema::TableName;
use serde::Serialize;
use serde_json::{Value, json};
use tracing::warn;
use utoipa::ToSchema;

use super::identity::{Caller, Login};
use super::problem::{HttpProblem, LOGIN_REQUIRED, RequestId};
use super::{Service, Shared};
use crate::audit::Act;
use crate::config::{Grant, PipelineConfig, Role, Scope};

/// How old a login may be that stands behind what is hard to undo, in seconds (S4).
const LOGIN_SECONDS: i64 = 15 * 60;
/// Characters of an address that the audit trail repeats: whoever is refused has chosen them.
const SHOWN: usize = 256;

/// Who is calling, and is let through.
#[derive(Clone, Debug)]
pub(super) struct Principal {
    pub(super) name: Arc<str>,
    /// The highest of their roles.
    role: Role,
    /// Of the grants that have the role which the route asks for; what they are granted for less does not count here.
    tables: Scope,
    /// What they call by; the audit trail's entries have it.
    request: RequestId,
}

impl Principal {
    pub(super) fn may_see(&self, table: &TableName) -> bool {
        self.tables.holds(table)
    }

    pub(super) fn may_see_everything(&self) -> bool {
        self.tables.holds_everything()
    }

    /// What they ask for, for the audit trail; without a reason, which is only given with a change.
    pub(super) fn asks(&self, action: &'static str, subject: String, detail: Value) -> Act {
        let (principal, request_id) = (self.name.to_string(), self.request.0.clone());
        Act { action, principal, subject, request_id, reason: None, detail }
    }
}

/// Who a token is.
#[derive(Serialize, ToSchema)]
struct Me {
    /// The token's name in the configuration, or `oidc:` and its subject; `anonymous` without a token.
    principal: String,
    role: Role,
    /// Patterns `namespace.table`; either half may be `*`.
    #[schema(value_type = Vec<String>)]
    tables: Scope,
}

/// Who the caller is, for a client that offers only what they may do.
#[utoipa::path(
    get, path = "/v1/me", operation_id = "me", tag = "service",
    responses((status = 200, description = "Name, role and tables of the token", body = Me))
)]
pub(super) async fn me(Extension(Principal { name, role, tables, .. }): Extension<Principal>) -> Response {
    Json(Me { principal: name.to_string(), role, tables }).into_response()
}

/// What a route asks of its callers.
#[derive(Clone)]
pub(super) struct Guard {
    pub(super) service: Shared,
    pub(super) role: Role,
    /// Not with a login of this morning.
    pub(super) recent_login: bool,
}

/// Before each handler.
pub(super) async fn check(
    State(guard): State<Guard>,
    params: Result<RawPathParams, RawPathParamsRejection>,
    mut request: Request,
    next: Next,
) -> Result<Response, HttpProblem> {
    let params = params.map_err(|_| HttpProblem::invalid("the address is not UTF-8"))?;
    let table = table(&params);
    let id = request.extensions().get::<RequestId>().cloned().unwrap_or_default();
    match guard.admit(table.as_ref(), request.headers(), &id).await {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            Ok(next.run(request).await)
        }
        Err(refusal) => {
            let path = request.uri().path().to_owned();
            Err(guard.service.refused(refusal, table.map(|table| table.to_string()), &path, id).await)
        }
    }
}

/// The table that the address names, if it names one.
fn table(params: &RawPathParams) -> Option<TableName> {
    let param = |wanted: &str| params.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value);
    Some(TableName::new(param("namespace")?, param("table")?))
}

/// Why somebody is not let through.
struct Refusal {
    status: StatusCode,
    code: &'static str,
    /// For the client.
    detail: &'static str,
    /// In one word, for the log, the metrics and the audit trail.
    why: &'static str,
    /// The caller's; empty where nobody is known.
    name: Arc<str>,
}

impl Refusal {
    fn unknown(why: &'static str) -> Self {
        let detail = "this needs a token in the header Authorization: Bearer …, one of [api.auth] that counts now";
        Self { status: StatusCode::UNAUTHORIZED, code: "UNAUTHENTICATED", detail, why, name: "".into() }
    }

    fn forbidden(name: Arc<str>, why: &'static str, detail: &'static str) -> Self {
        Self { status: StatusCode::FORBIDDEN, code: "FORBIDDEN", detail, why, name }
    }

    /// As RFC 9470 has it: whoever logs in again may come again.
    fn old_login(name: Arc<str>) -> Self {
        let detail =
            "this needs a login of the last 15 minutes: log in again, and come with the new token; nothing was changed";
        Self { status: StatusCode::UNAUTHORIZED, code: LOGIN_REQUIRED, detail, why: "login", name }
    }
}

impl Guard {
    /// The caller, and the table that the address names. A table beyond a caller's scope is refused whether it is there or
    /// not.
    async fn admit(
        &self,
        table: Option<&TableName>,
        headers: &HeaderMap,
        request: &RequestId,
    ) -> Result<Principal, Refusal> {
        let Caller { name, grants, login } = self.service.identify(headers).await.map_err(Refusal::unknown)?;
        let sufficient: Vec<Grant> = grants.into_iter().filter(|grant| grant.role >= self.role).collect();
        let Some(role) = sufficient.iter().map(|grant| grant.role).max() else {
            return Err(Refusal::forbidden(name, "role", "the caller's role may not do this"));
        };
        let tables = Scope::of_any(sufficient.into_iter().map(|grant| grant.tables));
        let principal = Principal { name, role, tables, request: request.clone() };
        if table.is_some_and(|table| !principal.may_see(table)) {
            return Err(Refusal::forbidden(principal.name, "table", "the token is not for this table"));
        }
        if self.recent_login && !is_recent(login, Utc::now().timestamp()) {
            return Err(Refusal::old_login(principal.name));
        }
        Ok(principal)
    }
}

fn is_recent(login: Login, now: i64) -> bool {
    match login {
        Login::Now => true,
        Login::At(then) => now.saturating_sub(then) <= LOGIN_SECONDS,
        Login::Unknown => false,
    }
}

impl Service {
    /// Tables that an address does not name.
    ///
    /// # Errors
    /// `FORBIDDEN` where the token is not for one of these tables, whether it is there or not.
    pub(super) async fn check_scope(&self, principal: &Principal, tables: &[TableName]) -> Result<(), HttpProblem> {
        match tables.iter().find(|table| !principal.may_see(table)) {
            None => Ok(()),
            Some(table) => {
                Err(self.beyond_scope(principal, &table.to_string(), "the token is not for this table").await)
            }
        }
    }

    /// # Errors
    /// `FORBIDDEN` where the token is not for every table of the pipeline; of one that has none yet, for its namespace.
    pub(super) async fn check_scope_of_all(
        &self,
        principal: &Principal,
        pipeline: &str,
        config: &PipelineConfig,
    ) -> Result<(), HttpProblem> {
        if principal.tables.holds_all_of(&config.namespace) {
            return Ok(());
        }
        let cut = self.lake.control(pipeline).await?.and_then(|(control, _)| control.cut);
        let tables = match cut {
            Some(cut) => self.lake.captured(&config.namespace, &cut.source).await?,
            None => Vec::new(),
        };
        if !tables.is_empty() && tables.iter().all(|table| principal.may_see(&table.name)) {
            return Ok(());
        }
        Err(self.beyond_scope(principal, pipeline, "the token is not for all tables of the pipeline").await)
    }

    /// What a route leaves to what stands in its address.
    ///
    /// # Errors
    /// `FORBIDDEN` below this role.
    pub(super) async fn check_role(&self, principal: &Principal, role: Role, subject: &str) -> Result<(), HttpProblem> {
        if principal.role >= role {
            return Ok(());
        }
        let (name, detail) = (Arc::clone(&principal.name), "the token's role may not do this");
        let refusal = Refusal::forbidden(name, "role", detail);
        Err(self.refused(refusal, Some(subject.to_owned()), "", principal.request.clone()).await)
    }

    pub(super) async fn beyond_scope(&self, principal: &Principal, subject: &str, detail: &'static str) -> HttpProblem {
        let refusal = Refusal::forbidden(Arc::clone(&principal.name), "table", detail);
        self.refused(refusal, Some(subject.to_owned()), "", principal.request.clone()).await
    }

    /// Tells everybody but the client why.
    async fn refused(
        &self,
        Refusal { status, code, detail, why, name }: Refusal,
        subject: Option<String>,
        path: &str,
        RequestId(request_id): RequestId,
    ) -> HttpProblem {
        warn!(path, principal = %name, why, "a call is refused");
        self.metrics.refused(why);
        let shown = |text: &str| text.chars().take(SHOWN).collect::<String>();
        let act = Act {
            action: "refused",
            principal: name.to_string(),
            subject: shown(&subject.unwrap_or_default()),
            request_id,
            reason: None,
            detail: json!({"path": shown(path), "why": why, "status": status.as_u16()}),
        };
        self.audit.refused(act).await;
        HttpProblem::new(status, code, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_recent_for_a_quarter_of_an_hour() {
        for (login, recent) in [
            (Login::Now, true),
            (Login::At(1_000), true),
            (Login::At(1_000 - LOGIN_SECONDS), true),
            (Login::At(1_000 - LOGIN_SECONDS - 1), false),
            (Login::At(1_001), true),
            (Login::At(i64::MIN), false),
            (Login::Unknown, false),
        ] {
            assert_eq!(is_recent(login, 1_000), recent, "{login:?}");
        }
    }
}
