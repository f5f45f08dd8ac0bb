//! `[api]`: where HTTP is served, to whom, and within which bounds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};

use super::grant::{Grant, Role, grant};
use super::layers::Section;
use super::oidc::{OidcConfig, oidc};
use super::tls::{TlsConfig, tls};
use super::units::{Bytes, Span};
use super::{CatalogConfig, SecretReference, check_name};
use crate::failure::Failure;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct ApiConfig {
    pub(crate) listen: SocketAddr,
    pub(crate) metrics_listen: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls: Option<TlsConfig>,
    /// Only a proxy that ends TLS can reach the address.
    pub(crate) behind_proxy: bool,
    /// Whoever can connect is a reader.
    pub(crate) allow_anonymous: bool,
    /// Rows may be read, not only what stands about them.
    pub(crate) rows: bool,
    pub(crate) scans: u64,
    pub(crate) scan_time: Span,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_rows: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_bytes: Option<Bytes>,
    /// What tokens of pages are signed with, where several processes serve one lake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) page_key: Option<SecretReference>,
    pub(crate) auth: AuthConfig,
}

/// Whose calls are let through.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AuthConfig {
    /// By the name that logs show.
    pub(crate) tokens: BTreeMap<String, TokenConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oidc: Option<OidcConfig>,
}

impl AuthConfig {
    /// Somebody may do more than look.
    pub(crate) fn has_operators(&self) -> bool {
        let tokens = self.tokens.values().map(|token| &token.grant);
        let granted = self.oidc.iter().flat_map(|oidc| oidc.grants.values());
        tokens.chain(granted).any(|grant| grant.role > Role::Reader)
    }
}

/// What the bearer of a token may do.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TokenConfig {
    /// SHA-256 of the token.
    #[serde(skip)]
    pub(crate) sha256: [u8; 32],
    #[serde(flatten)]
    pub(crate) grant: Grant,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub(crate) expires: Option<DateTime<Utc>>,
}

pub(super) fn api(section: &Section<'_>, catalog: &CatalogConfig) -> Result<ApiConfig, Failure> {
    let listen: SocketAddr = section.parsed("listen")?.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8_080)));
    let metrics_listen = section.parsed("metrics_listen")?;
    let tls = if section.has("tls") { Some(tls(&section.section("tls")?)?) } else { None };
    let behind_proxy = section.boolean("behind_proxy")?.unwrap_or(false);
    let allow_anonymous = section.boolean("allow_anonymous")?.unwrap_or(false);
    // Readers of a table bucket are Lake Formation's to admit, and it is not asked here.
    let rows = section.boolean("rows")?.unwrap_or(!matches!(catalog, CatalogConfig::S3Tables { .. }));
    let scans = section.number_within("scans", 1, 256)?.unwrap_or(4);
    let scan_time = section.parsed("scan_time")?.unwrap_or(Span(Duration::from_secs(300)));
    let max_rows = section.number_within("max_rows", 1, u64::MAX - 1)?;
    let max_bytes = section.parsed("max_bytes")?;
    let page_key = section.secret("page_key")?;
    let auth = auth(&section.section("auth")?)?;
    section.finish()?;
    let is_local = listen.ip().is_loopback();
    if allow_anonymous && !is_local {
        let remedy = "listen on a loopback address, or configure [api.auth]";
        return Err(section.invalid("allow_anonymous", "anonymous access beyond this machine", remedy));
    }
    if !is_local && tls.is_none() && !behind_proxy {
        let remedy =
            "configure [api.tls]; or set behind_proxy = true, if only a proxy that ends TLS can reach the address";
        return Err(section.invalid("listen", "tokens and rows in plain text beyond this machine", remedy));
    }
    Ok(ApiConfig {
        listen,
        metrics_listen,
        tls,
        behind_proxy,
        allow_anonymous,
        rows,
        scans,
        scan_time,
        max_rows,
        max_bytes,
        page_key,
        auth,
    })
}

fn auth(section: &Section<'_>) -> Result<AuthConfig, Failure> {
    let mut tokens = BTreeMap::new();
    for (name, token) in section.sections("tokens")? {
        check_name(&name, || token.here())?;
        tokens.insert(name, self::token(&token)?);
    }
    let oidc = if section.has("oidc") { Some(oidc(&section.section("oidc")?)?) } else { None };
    section.finish()?;
    Ok(AuthConfig { tokens, oidc })
}

fn token(section: &Section<'_>) -> Result<TokenConfig, Failure> {
    let sha256 = section.text("sha256")?.ok_or_else(|| section.missing("sha256"))?;
    let grant = grant(section)?;
    let expires = section.parsed::<DateTime<Utc>>("expires")?;
    section.finish()?;
    let sha256 = digest(&sha256).ok_or_else(|| {
        let remedy = "write the SHA-256 of the token: printf %s \"$TOKEN\" | sha256sum";
        section.invalid("sha256", "not 64 hexadecimal digits", remedy)
    })?;
    Ok(TokenConfig { sha256, grant, expires })
}

fn as_text<S: Serializer>(time: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.to_rfc3339()).serialize(serializer)
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.chars().map(|digit| u8::try_from(digit.to_digit(16)?).ok()).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    if digits.len() == 64 { bytes.try_into().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_has_64_digits() {
        assert_eq!(digest(&"0aF1".repeat(16)).map(|bytes| (bytes[0], bytes[1])), Some((0x0a, 0xf1)));
        for wrong in ["", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(digest(wrong), None, "{wrong}");
        }
    }
}
