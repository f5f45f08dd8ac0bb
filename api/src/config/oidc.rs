//! `[api.auth.oidc]`: whose tokens count, how they are signed, and what they let their bearers do.

use std::collections::BTreeMap;
use std::time::Duration;

use jsonwebtoken::{Algorithm, AlgorithmFamily};
use reqwest::Url;
use serde::{Serialize, Serializer};

use super::grant::{Grant, grant};
use super::layers::Section;
use super::units::Span;
use crate::failure::Failure;
use crate::loopback::names_this_machine;

/// Clocks that differ by more want setting, not leeway.
const LONGEST_LEEWAY: Duration = Duration::from_secs(300);

#[derive(Clone, Debug, Serialize)]
pub(crate) struct OidcConfig {
    pub(crate) issuer: String,
    pub(crate) audience: String,
    #[serde(serialize_with = "as_text")]
    pub(crate) jwks_uri: Url,
    /// None of them symmetric: what verifies a signature stands at an address that anybody may read.
    pub(crate) algorithms: Vec<Algorithm>,
    pub(crate) leeway: Span,
    /// The claim with the names of grants; with a slash in front it is a JSON pointer to one.
    pub(crate) claim: String,
    pub(crate) grants: BTreeMap<String, Grant>,
}

pub(super) fn oidc(section: &Section<'_>) -> Result<OidcConfig, Failure> {
    let required = |key| section.text(key)?.filter(|text| !text.is_empty()).ok_or_else(|| section.missing(key));
    let (issuer, audience) = (required("issuer")?, required("audience")?);
    let jwks_uri = section.parsed::<Url>("jwks_uri")?.ok_or_else(|| section.missing("jwks_uri"))?;
    let names = section.list("algorithms")?;
    let leeway = section.parsed("leeway")?.unwrap_or(Span(Duration::from_secs(30)));
    let claim = section.text("claim")?.unwrap_or_else(|| "groups".to_owned());
    let mut grants = BTreeMap::new();
    for (name, section) in section.sections("grants")? {
        grants.insert(name, grant(&section)?);
        section.finish()?;
    }
    section.finish()?;
    if !is_safe(&jwks_uri) {
        let remedy = "write https://…, or http:// to a loopback address, without a password";
        return Err(section.invalid("jwks_uri", "keys from there could be anybody's", remedy));
    }
    if leeway.0 > LONGEST_LEEWAY {
        let remedy = format!("choose {} at most", Span(LONGEST_LEEWAY));
        return Err(section.invalid("leeway", format!("{leeway} is out of range"), remedy));
    }
    if grants.is_empty() {
        return Err(section.missing("grants"));
    }
    let algorithms = match names {
        None => vec![Algorithm::RS256],
        Some(names) => algorithms(section, &names)?,
    };
    Ok(OidcConfig { issuer, audience, jwks_uri, algorithms, leeway, claim, grants })
}

/// Nobody on the way can put keys of their own in, and nothing in the address is a secret.
fn is_safe(uri: &Url) -> bool {
    let is_plain = uri.username().is_empty() && uri.password().is_none();
    let host = uri.host_str().unwrap_or_default();
    is_plain && (uri.scheme() == "https" || uri.scheme() == "http" && names_this_machine(host))
}

fn algorithms(section: &Section<'_>, names: &[String]) -> Result<Vec<Algorithm>, Failure> {
    let remedy =
        "choose of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 and EdDSA those that the issuer uses";
    if names.is_empty() {
        return Err(section.invalid("algorithms", "no algorithm, no token", remedy));
    }
    let asymmetric = |name: &String| {
        let known: Option<Algorithm> = name.parse().ok();
        known
            .filter(|algorithm| algorithm.family() != AlgorithmFamily::Hmac)
            .ok_or_else(|| section.invalid("algorithms", format!("{name:?} is no algorithm with a public key"), remedy))
    };
    names.iter().map(asymmetric).collect()
}

fn as_text<S: Serializer>(uri: &Url, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(uri)
}
