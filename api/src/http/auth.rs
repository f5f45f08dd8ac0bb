//! Who is calling, and may they: a bearer token's SHA-256 against those of the configuration. Nobody is let through by
//! default; without tokens, and without `allow_anonymous` on a loopback address, every call ends here.

use std::sync::Arc;

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use chrono::Utc;
use lakehouse_core::schema::TableName;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tracing::warn;

use super::problem::{HttpProblem, RequestId};
use super::{Service, Shared};
use crate::audit::Act;
use crate::config::{ApiConfig, PipelineConfig, Role, Scope, TokenConfig};

/// Characters of an address that the audit trail repeats: whoever is refused has chosen them.
const SHOWN: usize = 256;

/// Who is calling.
#[derive(Clone, Debug)]
pub(super) struct Principal {
    /// The token's name in the configuration.
    pub(super) name: Arc<str>,
    role: Role,
    tables: Scope,
    /// What they call by; the audit trail's entries have it.
    request: RequestId,
}

impl Principal {
    pub(super) fn may_see(&self, table: &TableName) -> bool {
        self.tables.holds(table)
    }

    /// What they ask for, for the audit trail; without a reason, which is only given with a change.
    pub(super) fn asks(&self, action: &'static str, subject: String, detail: Value) -> Act {
        let (principal, request_id) = (self.name.to_string(), self.request.0.clone());
        Act { action, principal, subject, request_id, reason: None, detail }
    }
}

/// Who the caller is, for a client that offers only what they may do.
pub(super) async fn me(Extension(Principal { name, role, tables, .. }): Extension<Principal>) -> Response {
    Json(json!({"principal": *name, "role": role, "tables": tables})).into_response()
}

/// What a route asks of its callers.
#[derive(Clone)]
pub(super) struct Guard {
    pub(super) service: Shared,
    pub(super) role: Role,
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
    match guard.admit(table.as_ref(), request.headers(), &id) {
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
    /// For the client.
    detail: &'static str,
    /// In one word, for the log, the metrics and the audit trail.
    why: &'static str,
    /// The token's name; empty where nobody is known.
    name: Arc<str>,
}

impl Guard {
    /// The caller, their role, and the table that the address names. A table beyond a caller's scope is refused whether it
    /// is there or not.
    fn admit(&self, table: Option<&TableName>, headers: &HeaderMap, request: &RequestId) -> Result<Principal, Refusal> {
        let principal = identify(&self.service.api, headers, request).map_err(|why| {
            let detail = "this needs a token of [api.auth] in the header Authorization: Bearer …";
            Refusal { status: StatusCode::UNAUTHORIZED, detail, why, name: "".into() }
        })?;
        let forbidden = |detail: &'static str, why: &'static str| {
            Err(Refusal { status: StatusCode::FORBIDDEN, detail, why, name: Arc::clone(&principal.name) })
        };
        if principal.role < self.role {
            return forbidden("the token's role may not do this", "role");
        }
        if table.is_some_and(|table| !principal.may_see(table)) {
            return forbidden("the token is not for this table", "table");
        }
        Ok(principal)
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
        let refusal = Refusal { status: StatusCode::FORBIDDEN, detail, why: "role", name };
        Err(self.refused(refusal, Some(subject.to_owned()), "", principal.request.clone()).await)
    }

    pub(super) async fn beyond_scope(&self, principal: &Principal, subject: &str, detail: &'static str) -> HttpProblem {
        let name = Arc::clone(&principal.name);
        let refusal = Refusal { status: StatusCode::FORBIDDEN, detail, why: "table", name };
        self.refused(refusal, Some(subject.to_owned()), "", principal.request.clone()).await
    }

    /// Tells everybody but the client why.
    async fn refused(
        &self,
        Refusal { status, detail, why, name }: Refusal,
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
        let code = if status == StatusCode::UNAUTHORIZED { "UNAUTHENTICATED" } else { "FORBIDDEN" };
        HttpProblem::new(status, code, detail)
    }
}

/// # Errors
/// In one word, why nobody is known by this request.
fn identify(api: &ApiConfig, headers: &HeaderMap, request: &RequestId) -> Result<Principal, &'static str> {
    let request = request.clone();
    let Some(authorization) = headers.get(AUTHORIZATION) else {
        // A page in somebody's browser may call by a name of its own that leads to this machine.
        let local = headers.get(HOST).and_then(|host| host.to_str().ok()).is_some_and(is_this_machine);
        return match api.allow_anonymous && local {
            true => {
                Ok(Principal { name: "anonymous".into(), role: Role::Reader, tables: Scope::everything(), request })
            }
            false => Err("no_token"),
        };
    };
    let text = authorization.to_str().map_err(|_| "not_bearer")?;
    let (scheme, token) = text.split_once(' ').ok_or("not_bearer")?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err("not_bearer");
    }
    let digest: [u8; 32] = Sha256::digest(token.trim().as_bytes()).into();
    // All of them are looked at, so that the time tells nothing.
    let mut found: Option<(&String, &TokenConfig)> = None;
    for (name, known) in &api.tokens {
        if bool::from(known.sha256.ct_eq(&digest)) {
            found = Some((name, known));
        }
    }
    let (name, token) = found.ok_or("unknown_token")?;
    if token.expires.is_some_and(|expires| expires <= Utc::now()) {
        return Err("expired_token");
    }
    Ok(Principal { name: name.as_str().into(), role: token.role, tables: token.tables.clone(), request })
}

fn is_this_machine(host: &str) -> bool {
    let uri: Result<Uri, _> = format!("http://{host}/").parse();
    uri.is_ok_and(|uri| match uri.host() {
        Some("localhost") => true,
        Some(host) => {
            let address: Result<std::net::IpAddr, _> = host.trim_matches(['[', ']']).parse();
            address.is_ok_and(|address| address.is_loopback())
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_its_own() {
        for (host, own) in [
            ("127.0.0.1:8080", true),
            ("localhost:8080", true),
            ("[::1]:8080", true),
            ("localhost", true),
            ("evil.example:8080", false),
            ("localhost.evil.example", false),
            ("10.0.0.1", false),
            ("", false),
            ("a b", false),
        ] {
            assert_eq!(is_this_machine(host), own, "{host}");
        }
    }
}
