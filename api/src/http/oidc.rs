//! Tokens of an OIDC issuer: JWTs, signed with keys that only the configured address gives (S2).
//!
//! Before its signature holds, a token is asked for no more than the algorithm and the name of the key, and both must be among
//! what is configured and published. A key that it brings along, or the address of one (`jwk`, `jku`, `x5c`, `x5u`),
//! nobody looks at. What it claims is read behind the signature only.
//!
//! Not here: whether the caller may do what they ask for (`auth.rs`), and any way to log in: that is the issuer's.

mod claims;
mod jwks;
mod keys;

use chrono::Utc;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header};
use tokio_util::sync::CancellationToken;

use super::identity::{Caller, Login};
use crate::config::{Grant, OidcConfig};
use crate::failure::Failure;
use claims::Claims;
use keys::Keys;

/// The longest token; a head of a request has room for twice that.
const TOKEN_BYTES: usize = 8 << 10;
/// What a token may call itself (RFC 8725, section 3.11): one that is made for something else, such as a logout, is none.
const TYPES: [&str; 3] = ["jwt", "at+jwt", "application/at+jwt"];

pub(super) struct Oidc {
    config: OidcConfig,
    keys: Keys,
}

impl Oidc {
    /// # Errors
    /// `JWKS_UNREADABLE` where no client can be made; nobody is asked for keys yet.
    pub(super) fn new(config: &OidcConfig) -> Result<Self, Failure> {
        Ok(Self { config: config.clone(), keys: Keys::new(config)? })
    }

    /// Keeps the issuer's keys until it is stopped.
    pub(super) async fn keep_keys(&self, stop: CancellationToken) {
        stop.run_until_cancelled(self.keys.keep()).await;
    }

    /// # Errors
    /// In one word, why the token proves nothing.
    pub(super) async fn verify(&self, token: &str) -> Result<Caller, &'static str> {
        if token.len() > TOKEN_BYTES {
            return Err("token_size");
        }
        let header = decode_header(token).map_err(|_| "token_form")?;
        if !is_plain(&header) {
            return Err("token_form");
        }
        if !self.config.algorithms.contains(&header.alg) {
            return Err("algorithm");
        }
        let key = self.keys.find(header.kid.as_deref(), header.alg).await?;
        let token = decode::<Claims>(token, &key, &self.validation(header.alg));
        self.caller(&token.map_err(|error| reason(error.kind()))?.claims)
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.config.leeway.0.as_secs();
        validation.validate_nbf = true;
        validation.set_audience(&[&self.config.audience]);
        validation.set_required_spec_claims(&["exp", "aud"]);
        validation
    }

    fn caller(&self, claims: &Claims) -> Result<Caller, &'static str> {
        // The library would take a list with ours in it.
        if claims.text("iss") != Some(&self.config.issuer) {
            return Err("issuer");
        }
        let subject = claims.subject().ok_or("claims")?;
        let grants = claims.names(&self.config.claim).filter_map(|name| self.config.grants.get(name));
        let grants: Vec<Grant> = grants.cloned().collect();
        let (now, leeway) = (Utc::now().timestamp(), self.config.leeway.0.as_secs().cast_signed());
        let login = claims.login().filter(|then| *then <= now + leeway).map_or(Login::Unknown, Login::At);
        Ok(Caller { name: format!("oidc:{subject}").into(), grants, login })
    }
}

/// True unless the token says that it is something else, or wants more to be understood than is.
fn is_plain(header: &Header) -> bool {
    let is_known = |name: &String| TYPES.iter().any(|known| name.eq_ignore_ascii_case(known));
    let wants_more = header.crit.is_some() || header.cty.is_some() || header.enc.is_some() || header.zip.is_some();
    header.typ.as_ref().is_none_or(is_known) && !wants_more
}

fn reason(error: &ErrorKind) -> &'static str {
    match error {
        ErrorKind::InvalidSignature => "signature",
        ErrorKind::ExpiredSignature => "expired_token",
        ErrorKind::ImmatureSignature => "early_token",
        ErrorKind::InvalidAudience => "audience",
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) | ErrorKind::Json(_) => "claims",
        // The header was read before: what is left is a form that no issuer writes.
        _ => "token_form",
    }
}
