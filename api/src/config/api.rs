//! `[api]`: where HTTP is served, to whom, and within which bounds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use lakehouse_core::schema::TableName;
use serde::{Serialize, Serializer};

use super::layers::Section;
use super::units::{Bytes, Span};
use super::{CatalogConfig, SecretReference, check_name};
use crate::failure::Failure;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct ApiConfig {
    pub(crate) listen: SocketAddr,
    pub(crate) metrics_listen: Option<SocketAddr>,
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
    /// By the name that logs show.
    pub(crate) tokens: BTreeMap<String, TokenConfig>,
}

/// What the bearer of a token may do.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TokenConfig {
    /// SHA-256 of the token.
    #[serde(skip)]
    pub(crate) sha256: [u8; 32],
    pub(crate) role: Role,
    pub(crate) tables: Scope,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub(crate) expires: Option<DateTime<Utc>>,
}

/// Each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Reader,
    Operator,
    Admin,
}

const ROLES: [(&str, Role); 3] = [("reader", Role::Reader), ("operator", Role::Operator), ("admin", Role::Admin)];

/// Tables, by patterns `namespace.table` in which either half may be `*`.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Scope(Vec<String>);

impl Scope {
    pub(crate) fn everything() -> Self {
        Self(vec!["*.*".to_owned()])
    }

    /// Every table that a namespace has or will have.
    pub(crate) fn holds_all_of(&self, namespace: &str) -> bool {
        let mut patterns = self.0.iter().filter_map(|pattern| pattern.split_once('.'));
        patterns.any(|(of, name)| name == "*" && (of == "*" || of == namespace))
    }

    pub(crate) fn holds(&self, table: &TableName) -> bool {
        let fits = |pattern: &str, name: &str| pattern == "*" || pattern == name;
        self.0
            .iter()
            .filter_map(|pattern| pattern.split_once('.'))
            .any(|(namespace, name)| fits(namespace, &table.namespace) && fits(name, &table.name))
    }
}

pub(super) fn api(section: &Section<'_>, catalog: &CatalogConfig) -> Result<ApiConfig, Failure> {
    let listen: SocketAddr = section.parsed("listen")?.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8_080)));
    let metrics_listen = section.parsed("metrics_listen")?;
    let allow_anonymous = section.boolean("allow_anonymous")?.unwrap_or(false);
    // Readers of a table bucket are Lake Formation's to admit, and it is not asked here.
    let rows = section.boolean("rows")?.unwrap_or(!matches!(catalog, CatalogConfig::S3Tables { .. }));
    let scans = section.number_within("scans", 1, 256)?.unwrap_or(4);
    let scan_time = section.parsed("scan_time")?.unwrap_or(Span(Duration::from_secs(300)));
    let max_rows = section.number_within("max_rows", 1, u64::MAX - 1)?;
    let max_bytes = section.parsed("max_bytes")?;
    let page_key = section.secret("page_key")?;
    if section.has("tls") {
        let remedy = "listen on a loopback address behind a proxy that ends TLS";
        return Err(Failure::not_yet(section.subject("tls"), "this release serves plain HTTP", remedy));
    }
    let tokens = tokens(&section.section("auth")?)?;
    section.finish()?;
    if allow_anonymous && !listen.ip().is_loopback() {
        let remedy = "listen on a loopback address, or configure [api.auth]";
        return Err(section.invalid("allow_anonymous", "anonymous access beyond this machine", remedy));
    }
    Ok(ApiConfig {
        listen,
        metrics_listen,
        allow_anonymous,
        rows,
        scans,
        scan_time,
        max_rows,
        max_bytes,
        page_key,
        tokens,
    })
}

fn tokens(section: &Section<'_>) -> Result<BTreeMap<String, TokenConfig>, Failure> {
    for key in ["issuer", "audience"] {
        if section.has(key) {
            let message = "this release knows no OIDC";
            let remedy = "give each caller a token of its own: [api.auth.tokens.NAME]";
            return Err(Failure::not_yet(section.subject(key), message, remedy));
        }
    }
    let mut tokens = BTreeMap::new();
    for (name, token) in section.sections("tokens")? {
        check_name(&name, || token.here())?;
        tokens.insert(name, self::token(&token)?);
    }
    section.finish()?;
    Ok(tokens)
}

fn token(section: &Section<'_>) -> Result<TokenConfig, Failure> {
    let sha256 = section.text("sha256")?.ok_or_else(|| section.missing("sha256"))?;
    let role = section.word("role", &ROLES)?.ok_or_else(|| section.missing("role"))?;
    let tables = section.list("tables")?.map_or_else(Scope::everything, Scope);
    let expires = section.parsed::<DateTime<Utc>>("expires")?;
    section.finish()?;
    let sha256 = digest(&sha256).ok_or_else(|| {
        let remedy = "write the SHA-256 of the token: printf %s \"$TOKEN\" | sha256sum";
        section.invalid("sha256", "not 64 hexadecimal digits", remedy)
    })?;
    let halves =
        |pattern: &String| pattern.split_once('.').is_some_and(|(left, right)| !left.is_empty() && !right.is_empty());
    if let Some(wrong) = tables.0.iter().find(|pattern| !halves(pattern)) {
        let message = format!("{wrong:?} names no table");
        return Err(section.invalid("tables", message, "write namespace.table; * stands for all of either"));
    }
    Ok(TokenConfig { sha256, role, tables, expires })
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
    fn a_scope_holds_the_tables_of_its_patterns() {
        let scope = Scope(vec!["app.*".to_owned(), "shop.orders".to_owned()]);
        for (namespace, name, held) in
            [("app", "x", true), ("shop", "orders", true), ("shop", "order", false), ("ap", "x", false)]
        {
            assert_eq!(scope.holds(&TableName::new(namespace, name)), held, "{namespace}.{name}");
        }
        for (namespace, held) in [("app", true), ("shop", false), ("ap", false)] {
            assert_eq!(scope.holds_all_of(namespace), held, "{namespace}");
        }
        assert!(Scope::everything().holds(&TableName::new("a", "b")));
        assert!(Scope::everything().holds_all_of("a") && !Scope(vec!["*.a".to_owned()]).holds_all_of("a"));
        assert!(!Scope(Vec::new()).holds(&TableName::new("a", "b")));
    }

    #[test]
    fn a_digest_has_64_digits() {
        assert_eq!(digest(&"0aF1".repeat(16)).map(|bytes| (bytes[0], bytes[1])), Some((0x0a, 0xf1)));
        for wrong in ["", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(digest(wrong), None, "{wrong}");
        }
    }
}
