//! What a token says of its bearer, once its signature holds.

use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// The longest subject (OpenID Connect Core, section 2).
const SUBJECT_BYTES: usize = 255;

/// Claims, each there once. Of two, one reader takes the first and another the last (RFC 7519, section 4), and what lies
/// between them is somebody's way in.
#[derive(Debug)]
pub(super) struct Claims(Value);

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;

        impl<'de> Visitor<'de> for Once {
            type Value = Claims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("claims")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Claims, A::Error> {
                let mut claims = Map::new();
                while let Some((name, value)) = entries.next_entry::<String, Value>()? {
                    if claims.insert(name, value).is_some() {
                        return Err(A::Error::custom("a claim stands there twice"));
                    }
                }
                Ok(Claims(Value::Object(claims)))
            }
        }

        deserializer.deserialize_map(Once)
    }
}

impl Claims {
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// Who it is, in characters that a log can show.
    pub(super) fn subject(&self) -> Option<&str> {
        let is_shown = |subject: &&str| subject.bytes().all(|byte| byte.is_ascii_graphic());
        self.text("sub").filter(|subject| (1..=SUBJECT_BYTES).contains(&subject.len())).filter(is_shown)
    }

    /// When they have logged in; of an issuer that does not say, when it has made the token. Seconds since 1970.
    pub(super) fn login(&self) -> Option<i64> {
        let time = self.0.get("auth_time").or_else(|| self.0.get("iat"))?;
        // Seconds may have a fraction (RFC 7519, section 2).
        time.as_i64().or_else(|| time.as_f64().map(|seconds| seconds as i64))
    }

    /// The texts of a claim: one, or a list. A name that begins with a slash is a JSON pointer.
    pub(super) fn names(&self, claim: &str) -> impl Iterator<Item = &str> {
        let value = if claim.starts_with('/') { self.0.pointer(claim) } else { self.0.get(claim) };
        let listed = match value {
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
            None => &[],
        };
        listed.iter().filter_map(Value::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(text: &str) -> Claims {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_claim_stands_there_once() {
        for wrong in [r#"{"sub":"a","sub":"b"}"#, r#"{"groups":["a"],"x":1,"groups":["a"]}"#, "[]", "\"a\"", "1"] {
            assert!(serde_json::from_str::<Claims>(wrong).is_err(), "{wrong}");
        }
        assert_eq!(claims(r#"{"iss":"a","sub":"b"}"#).text("iss"), Some("a"));
    }

    #[test]
    fn a_subject_can_be_shown() {
        let subject = |subject: &str| claims(&format!(r#"{{"sub":{subject}}}"#)).subject().map(str::to_owned);
        assert_eq!(subject("\"auth0|5f\"").as_deref(), Some("auth0|5f"));
        assert!(subject(&format!("{:?}", "a".repeat(255))).is_some());
        for wrong in [r#""""#, r#""a b""#, r#""a\nb""#, r#""é""#, "7", "null", &format!("{:?}", "a".repeat(256))] {
            assert_eq!(subject(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_login_is_when_the_issuer_says() {
        for (text, login) in [
            (r#"{"auth_time":7,"iat":9}"#, Some(7)),
            (r#"{"iat":9}"#, Some(9)),
            (r#"{"iat":9.75}"#, Some(9)),
            (r#"{"auth_time":"7","iat":9}"#, None),
            ("{}", None),
        ] {
            assert_eq!(claims(text).login(), login, "{text}");
        }
    }

    #[test]
    fn names_are_a_text_or_a_list_of_texts() {
        let names = |text: &str, claim: &str| claims(text).names(claim).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names(r#"{"groups":"a"}"#, "groups"), ["a"]);
        assert_eq!(names(r#"{"groups":["a",1,"b",["c"]]}"#, "groups"), ["a", "b"]);
        assert_eq!(names(r#"{"realm_access":{"roles":["a"]}}"#, "/realm_access/roles"), ["a"]);
        assert_eq!(names(r#"{"https://lake/roles":["a"]}"#, "https://lake/roles"), ["a"]);
        for nothing in ["{}", r#"{"groups":null}"#, r#"{"groups":{"a":"a"}}"#, r#"{"groups":[]}"#] {
            assert!(names(nothing, "groups").is_empty(), "{nothing}");
        }
    }
}
