//! Who is calling, and may they: a bearer token's SHA-256 against those of the configuration. Nobody is let through by
//! default; without tokens, and without `allow_anonymous` on a loopback address, every call ends here.

use std::sync::Arc;

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::Response;
use chrono::Utc;
use lakehouse_core::schema::TableName;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tracing::warn;

use super::problem::HttpProblem;
use super::{Service, Shared};
use crate::config::{ApiConfig, PipelineConfig, Role, Scope, TokenConfig};

/// Who is calling.
#[derive(Clone, Debug)]
pub(super) struct Principal {
    /// The token's name in the configuration.
    pub(super) name: Arc<str>,
    role: Role,
    tables: Scope,
}

impl Principal {
    pub(super) fn may_see(&self, table: &TableName) -> bool {
        self.tables.holds(table)
    }
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
    let principal = guard.admit(&params, request.uri().path(), request.headers())?;
    request.extensions_mut().insert(principal);
    Ok(next.run(request).await)
}

impl Guard {
    /// The caller, their role, and the table that the address names. A table beyond a caller's scope is refused whether it
    /// is there or not.
    fn admit(&self, params: &RawPathParams, path: &str, headers: &HeaderMap) -> Result<Principal, HttpProblem> {
        let refused = |status: StatusCode, detail: &str, why: &str, name: &str| {
            self.service.refused(path, name, why);
            let code = if status == StatusCode::UNAUTHORIZED { "UNAUTHENTICATED" } else { "FORBIDDEN" };
            HttpProblem::new(status, code, detail)
        };
        let principal = identify(&self.service.api, headers).map_err(|why| {
            let detail = "this needs a token of [api.auth] in the header Authorization: Bearer …";
            refused(StatusCode::UNAUTHORIZED, detail, why, "")
        })?;
        if principal.role < self.role {
            return Err(refused(StatusCode::FORBIDDEN, "the token's role may not do this", "role", &principal.name));
        }
        let param = |wanted: &str| params.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value);
        if let (Some(namespace), Some(table)) = (param("namespace"), param("table"))
            && !principal.may_see(&TableName::new(namespace, table))
        {
            return Err(refused(StatusCode::FORBIDDEN, "the token is not for this table", "table", &principal.name));
        }
        Ok(principal)
    }
}

/// Tables that an address does not name.
impl Service {
    /// # Errors
    /// `FORBIDDEN` where the token is not for one of these tables, whether it is there or not.
    pub(super) fn check_scope(&self, principal: &Principal, tables: &[TableName]) -> Result<(), HttpProblem> {
        match tables.iter().find(|table| !principal.may_see(table)) {
            None => Ok(()),
            Some(table) => Err(self.beyond_scope(principal, &table.to_string(), "the token is not for this table")),
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
        Err(self.beyond_scope(principal, pipeline, "the token is not for all tables of the pipeline"))
    }

    pub(super) fn beyond_scope(&self, principal: &Principal, subject: &str, detail: &str) -> HttpProblem {
        self.refused(subject, &principal.name, "table");
        HttpProblem::new(StatusCode::FORBIDDEN, "FORBIDDEN", detail)
    }

    fn refused(&self, subject: &str, principal: &str, why: &str) {
        warn!(subject, principal, why, "a call is refused");
        self.metrics.refused(why);
    }
}

/// # Errors
/// In one word, why nobody is known by this request.
fn identify(api: &ApiConfig, headers: &HeaderMap) -> Result<Principal, &'static str> {
    let Some(authorization) = headers.get(AUTHORIZATION) else {
        // A page in somebody's browser may call by a name of its own that leads to this machine.
        let local = headers.get(HOST).and_then(|host| host.to_str().ok()).is_some_and(is_this_machine);
        return match api.allow_anonymous && local {
            true => Ok(Principal { name: "anonymous".into(), role: Role::Reader, tables: Scope::everything() }),
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
    Ok(Principal { name: name.as_str().into(), role: token.role, tables: token.tables.clone() })
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
