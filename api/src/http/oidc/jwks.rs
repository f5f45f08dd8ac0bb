//! A set of public keys as an issuer publishes it (RFC 7517). Pure.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

/// Keys of one set (S2).
const KEYS: usize = 100;

/// Keys that verify signatures, by one or more of the algorithms that are allowed.
#[derive(Clone, Debug, Default)]
pub(super) struct KeySet(Vec<Key>);

#[derive(Clone, Debug)]
struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

impl KeySet {
    /// A key that is not understood, or is for something else, is left out.
    ///
    /// # Errors
    /// Why this is no set, or none with a key in it.
    pub(super) fn parse(text: &[u8], allowed: &[Algorithm]) -> Result<Self, &'static str> {
        let document: Document = serde_json::from_slice(text).map_err(|_| "it is no set of keys")?;
        if document.keys.len() > KEYS {
            return Err("it has more than 100 keys");
        }
        let keys: Vec<Key> = document.keys.into_iter().filter_map(|key| Key::read(key, allowed)).collect();
        if keys.is_empty() { Err("it has no key for the configured algorithms") } else { Ok(Self(keys)) }
    }

    /// The one key that a token can mean.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
        // Which of several has signed it is not to be guessed.
        if id.is_none() && self.0.len() > 1 {
            return None;
        }
        let fits =
            |key: &&Key| key.algorithms.contains(&algorithm) && id.is_none_or(|id| key.id.as_deref() == Some(id));
        let mut fitting = self.0.iter().filter(fits);
        match (fitting.next(), fitting.next()) {
            (Some(one), None) => Some(one.key.clone()),
            _ => None,
        }
    }
}

impl Key {
    fn read(key: Value, allowed: &[Algorithm]) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(key).ok()?;
        let common = &jwk.common;
        let signs = common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature)
            && common.key_operations.as_ref().is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        let fits = |algorithm: &&Algorithm| {
            by_kind(&jwk).contains(algorithm)
                && common.key_algorithm.is_none_or(|own| own == KeyAlgorithm::from(**algorithm))
        };
        let algorithms: Vec<Algorithm> = allowed.iter().filter(fits).copied().collect();
        if !signs || algorithms.is_empty() {
            return None;
        }
        Some(Self { id: common.key_id.clone(), algorithms, key: DecodingKey::from_jwk(&jwk).ok()? })
    }
}

/// What a key of this kind can verify. A symmetric one that is published is nobody's proof of anything.
fn by_kind(jwk: &Jwk) -> &'static [Algorithm] {
    const RSA: &[Algorithm] =
        &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];
    match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => RSA,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => &[Algorithm::ES256],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => &[Algorithm::ES384],
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: [Algorithm; 2] = [Algorithm::ES256, Algorithm::RS256];
    /// RFC 7517, appendix A.1, without identifier and purpose.
    const EC: &str = r#""kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM""#;

    fn parse(keys: &[String]) -> Result<KeySet, &'static str> {
        KeySet::parse(format!(r#"{{"keys":[{}]}}"#, keys.join(",")).as_bytes(), &ALLOWED)
    }

    fn ec(more: &str) -> String {
        format!("{{{EC}{more}}}")
    }

    #[test]
    fn a_key_is_found_by_its_name_and_algorithm() {
        let keys = parse(&[ec(r#","kid":"a""#), ec(r#","kid":"b","use":"sig","alg":"ES256""#)]).unwrap();
        for (id, algorithm, found) in [
            (Some("a"), Algorithm::ES256, true),
            (Some("b"), Algorithm::ES256, true),
            (Some("a"), Algorithm::RS256, false),
            (Some("a"), Algorithm::ES384, false),
            (Some("c"), Algorithm::ES256, false),
            (Some(""), Algorithm::ES256, false),
            (None, Algorithm::ES256, false),
        ] {
            assert_eq!(keys.find(id, algorithm).is_some(), found, "{id:?} {algorithm:?}");
        }
        let one = parse(&[ec(r#","kid":"a""#)]).unwrap();
        assert!(one.find(None, Algorithm::ES256).is_some());
        let twins = parse(&[ec(r#","kid":"a""#), ec(r#","kid":"a""#)]).unwrap();
        assert!(twins.find(Some("a"), Algorithm::ES256).is_none(), "which of them?");
    }

    #[test]
    fn keys_for_something_else_are_left_out() {
        let symmetric = r#"{"kty":"oct","kid":"a","k":"c2VjcmV0"}"#.to_owned();
        let unknown = r#"{"kty":"AKP","kid":"a","alg":"ML-DSA-44","pub":"x"}"#.to_owned();
        for other in [
            ec(r#","use":"enc""#),
            ec(r#","key_ops":["sign"]"#),
            ec(r#","alg":"ES384""#),
            ec(r#","alg":"ECDH-ES""#),
            symmetric,
            unknown,
            "7".to_owned(),
            r#"{"kty":"EC"}"#.to_owned(),
            r#"{"kty":"RSA","n":"!","e":"AQAB"}"#.to_owned(),
        ] {
            assert!(parse(std::slice::from_ref(&other)).is_err(), "{other}");
            let beside = parse(&[other.clone(), ec(r#","kid":"b""#)]).unwrap();
            assert!(beside.find(None, Algorithm::ES256).is_some(), "{other}");
        }
    }

    #[test]
    fn what_is_no_set_of_keys_is_none() {
        for wrong in ["", "<html>", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[]}"#] {
            assert!(KeySet::parse(wrong.as_bytes(), &ALLOWED).is_err(), "{wrong}");
        }
        assert!(parse(&vec![ec(""); KEYS]).is_ok());
        assert!(parse(&vec![ec(""); KEYS + 1]).is_err());
        assert!(KeySet::parse(format!(r#"{{"keys":[{}]}}"#, ec("")).as_bytes(), &[Algorithm::EdDSA]).is_err());
    }
}
