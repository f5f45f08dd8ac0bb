//! Headers without which an operation is not begun (RFC 6585 section 3): the state that the caller has seen, and the key
//! by which the same request is known again when its answer was lost.

use axum::http::header::{IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use lakehouse_core::commit::RequestDigest;

use super::problem::HttpProblem;
use crate::digest::sha256_of_parts;

const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The longest key, in bytes.
const KEY_LENGTH: usize = 128;

/// A header's one value.
///
/// # Errors
/// `PRECONDITION_REQUIRED`; `REQUEST_INVALID` where there are several, or it is no visible ASCII.
pub(super) fn required<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, HttpProblem> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => {
            let detail = format!("this needs the header {name}");
            Err(HttpProblem::new(StatusCode::PRECONDITION_REQUIRED, "PRECONDITION_REQUIRED", detail))
        }
        (Some(_), Some(_)) => Err(HttpProblem::invalid(format!("{name} stands there more than once"))),
        (Some(value), None) => {
            value.to_str().map_err(|_| HttpProblem::invalid(format!("{name} is not written in visible ASCII")))
        }
    }
}

/// What a caller has seen at an address that something is put under.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen<'a> {
    Nothing,
    /// By its `ETag`.
    State(&'a str),
}

/// # Errors
/// As [`required`], where neither of both headers is there; `REQUEST_INVALID` for both, and for another `If-None-Match` than
/// `*`.
pub(super) fn seen(headers: &HeaderMap) -> Result<Seen<'_>, HttpProblem> {
    match (headers.contains_key(IF_NONE_MATCH), headers.contains_key(IF_MATCH)) {
        (true, true) => Err(HttpProblem::invalid("give if-none-match or if-match, not both")),
        (true, false) => match required(headers, "if-none-match")?.trim() {
            "*" => Ok(Seen::Nothing),
            _ => Err(HttpProblem::invalid("if-none-match: only * says that nothing was there")),
        },
        (false, true) => required(headers, "if-match").map(Seen::State),
        (false, false) => {
            let detail = "this needs the header if-none-match: * where nothing was there, or if-match with what was";
            Err(HttpProblem::new(StatusCode::PRECONDITION_REQUIRED, "PRECONDITION_REQUIRED", detail))
        }
    }
}

/// # Errors
/// As [`required`]; `REQUEST_INVALID` unless it is 1 to 128 characters of visible ASCII.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<&str, HttpProblem> {
    let key = required(headers, IDEMPOTENCY_KEY)?;
    match (1..=KEY_LENGTH).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(key),
        false => {
            let detail =
                format!("{IDEMPOTENCY_KEY}: write 1 to {KEY_LENGTH} characters of visible ASCII, such as a uuid");
            Err(HttpProblem::invalid(detail))
        }
    }
}

/// A key is its caller's own: two callers with the same one do not meet.
pub(super) fn request_digest(caller: &str, key: &str, content: &[&str]) -> RequestDigest {
    RequestDigest { key: sha256_of_parts(&[caller, key]), content: sha256_of_parts(content) }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use axum::response::IntoResponse;

    use super::*;

    fn check(keys: &[&[u8]]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for key in keys {
            headers.append(IDEMPOTENCY_KEY, HeaderValue::from_bytes(key).unwrap());
        }
        idempotency_key(&headers).ok().map(str::to_owned)
    }

    #[test]
    fn one_header_says_what_was_seen() {
        let status = |sent: &[(&str, &str)], expected: Result<Seen<'_>, u16>| {
            let mut headers = HeaderMap::new();
            for (name, value) in sent {
                let name: axum::http::HeaderName = name.parse().unwrap();
                headers.append(name, HeaderValue::from_str(value).unwrap());
            }
            let found = seen(&headers).map_err(|problem| problem.into_response().status().as_u16());
            assert_eq!(found, expected, "{sent:?}");
        };
        status(&[("if-none-match", "*")], Ok(Seen::Nothing));
        status(&[("if-match", "\"a\"")], Ok(Seen::State("\"a\"")));
        status(&[], Err(428));
        status(&[("if-none-match", "\"a\"")], Err(400));
        status(&[("if-none-match", "*"), ("if-match", "\"a\"")], Err(400));
        status(&[("if-match", "\"a\""), ("if-match", "\"b\"")], Err(400));
    }

    #[test]
    fn a_key_is_visible_ascii_within_bounds() {
        for good in ["a", "0193e7a0-0000-7000-8000-000000000000", "~!", &"k".repeat(128)] {
            assert_eq!(check(&[good.as_bytes()]).as_deref(), Some(good));
        }
        for wrong in [&b""[..], b"a b", b"a\tb", "ké".as_bytes(), &[b'k'; 129]] {
            assert_eq!(check(&[wrong]), None, "{wrong:?}");
        }
        assert_eq!(check(&[]), None);
        assert_eq!(check(&[b"a", b"b"]), None, "which of them?");
    }

    #[test]
    fn requests_differ_in_every_part() {
        let digests = [
            request_digest("a", "k", &["plan", "why"]),
            request_digest("b", "k", &["plan", "why"]),
            request_digest("a", "l", &["plan", "why"]),
            request_digest("a", "k", &["plan", "whyever"]),
            request_digest("ak", "", &["planwhy", ""]),
        ];
        assert_eq!(digests[0], request_digest("a", "k", &["plan", "why"]));
        for other in &digests[1..] {
            assert_ne!(&digests[0], other);
        }
        assert_eq!((digests[0].key.len(), &digests[0].key), (64, &digests[3].key));
    }
}
