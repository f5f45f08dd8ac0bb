//! Who is calling: a bearer token whose SHA-256 stands in the configuration, a token of the issuer (`oidc.rs`), or, only
//! where that is allowed, nobody that anybody knows.

use std::sync::Arc;

use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::{HeaderMap, Uri};
use chrono::Utc;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Service;
use crate::config::{ApiConfig, Grant, Role, Scope, TokenConfig};
use crate::loopback::names_this_machine;

/// Whose call it is, as far as is proved.
#[derive(Debug)]
pub(super) struct Caller {
    /// The token's name in the configuration; of one of the issuer's, `oidc:` and its subject, which is no such name.
    pub(super) name: Arc<str>,
    pub(super) grants: Vec<Grant>,
    pub(super) login: Login,
}

/// When the caller has last proved to be who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// The secret of the call itself is the proof.
    Now,
    /// In seconds since 1970, as the issuer says; not in the future, as far as clocks agree.
    At(i64),
    /// The issuer does not say.
    Unknown,
}

impl Service {
    /// # Errors
    /// In one word, why nobody is known by this request.
    pub(super) async fn identify(&self, headers: &HeaderMap) -> Result<Caller, &'static str> {
        let mut authorizations = headers.get_all(AUTHORIZATION).iter();
        let authorization = match (authorizations.next(), authorizations.next()) {
            (None, _) => return anonymous(&self.api, headers).ok_or("no_token"),
            (Some(one), None) => one.to_str().map_err(|_| "not_bearer")?,
            // A proxy may have looked at the other one.
            (Some(_), Some(_)) => return Err("not_bearer"),
        };
        let (scheme, token) = authorization.split_once(' ').ok_or("not_bearer")?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err("not_bearer");
        }
        let token = token.trim();
        match (self.static_token(token), &self.oidc) {
            (Some((name, known)), _) => bearer(name, known),
            (None, Some(oidc)) if token.contains('.') => oidc.verify(token).await,
            (None, _) => Err("unknown_token"),
        }
    }

    fn static_token(&self, token: &str) -> Option<(&str, &TokenConfig)> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        // All of them are looked at, so that the time tells nothing.
        let mut found = None;
        for (name, known) in &self.api.auth.tokens {
            if bool::from(known.sha256.ct_eq(&digest)) {
                found = Some((name.as_str(), known));
            }
        }
        found
    }
}

fn bearer(name: &str, token: &TokenConfig) -> Result<Caller, &'static str> {
    match token.expires.is_some_and(|expires| expires <= Utc::now()) {
        true => Err("expired_token"),
        false => Ok(Caller { name: name.into(), grants: vec![token.grant.clone()], login: Login::Now }),
    }
}

fn anonymous(api: &ApiConfig, headers: &HeaderMap) -> Option<Caller> {
    // A page in somebody's browser may call by a name of its own that leads to this machine.
    let is_local = headers.get(HOST).and_then(|host| host.to_str().ok()).is_some_and(is_this_machine);
    (api.allow_anonymous && is_local).then(|| {
        let grants = vec![Grant { role: Role::Reader, tables: Scope::everything() }];
        Caller { name: "anonymous".into(), grants, login: Login::Unknown }
    })
}

fn is_this_machine(host: &str) -> bool {
    let uri: Result<Uri, _> = format!("http://{host}/").parse();
    uri.is_ok_and(|uri| uri.host().is_some_and(names_this_machine))
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
