//! One entry: a line of JSON that ends with its own hash.
//!
//! A line is `BODY,"hash":"HASH"}` and a line break. `BODY}` is one JSON object, its last member is `previous`, and HASH is
//! the SHA-256 of the bytes of `BODY}`, as 64 lower-case hexadecimal digits. `previous` is the hash of the line before, 64
//! zeros in the first one; `sequence` counts from 1. Whoever checks a line cuts its bytes and writes no JSON anew, so no
//! byte can be another one, not even a space or the case of a digit.

use chrono::{SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Kind, Via};
use crate::digest::sha256;

/// The longest line, its break included. A rollback of a thousand tables has a tenth of it.
pub(super) const LONGEST: u64 = 1 << 20;
/// Digits of a hash.
const DIGITS: usize = 64;
/// What stands around them.
const BEFORE_HASH: &[u8] = b",\"hash\":\"";
const BEHIND_HASH: &[u8] = b"\"}";

/// The last line of a chain: what the next one follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// 0 before the first line.
    pub(super) sequence: u64,
    pub(super) hash: String,
    /// When it was written; none before the first line.
    pub(super) at: Option<String>,
}

impl Head {
    /// Of a chain without lines.
    pub(super) fn none() -> Self {
        Self { sequence: 0, hash: "0".repeat(DIGITS), at: None }
    }
}

/// What an entry says of itself, before it has a place in a chain.
pub(super) struct Entry<'a> {
    pub(super) kind: Kind,
    pub(super) via: Via,
    pub(super) action: &'a str,
    pub(super) principal: &'a str,
    pub(super) subject: &'a str,
    pub(super) request_id: &'a str,
    pub(super) reason: Option<&'a str>,
    pub(super) detail: &'a Map<String, Value>,
}

/// The members of a line in their order, but for the hash.
#[derive(Serialize)]
struct Body<'a> {
    sequence: u64,
    at: String,
    kind: Kind,
    via: Via,
    action: &'a str,
    principal: &'a str,
    subject: &'a str,
    request_id: &'a str,
    reason: Option<&'a str>,
    detail: &'a Map<String, Value>,
    previous: &'a str,
}

impl Entry<'_> {
    /// The line that follows `head`, with its break.
    pub(super) fn seal(&self, head: &Head) -> Vec<u8> {
        let Self { kind, via, action, principal, subject, request_id, reason, detail } = *self;
        // A number that cannot be counted on is for the verification to find.
        let sequence = head.sequence.saturating_add(1);
        let at = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
        let previous = &head.hash;
        let body = Body { sequence, at, kind, via, action, principal, subject, request_id, reason, detail, previous };
        let mut line = serde_json::to_vec(&body).expect("an entry is plain data");
        let hash = sha256(&line);
        line.pop();
        line.extend_from_slice(BEFORE_HASH);
        line.extend_from_slice(hash.as_bytes());
        line.extend_from_slice(BEHIND_HASH);
        line.push(b'\n');
        line
    }
}

/// What ties a line to its neighbours. Later releases may write more beside it.
#[derive(Deserialize)]
struct Tie {
    sequence: u64,
    at: String,
    previous: String,
}

/// A line that is what its hash was made of.
pub(super) struct Sealed {
    pub(super) previous: String,
    pub(super) head: Head,
}

impl Sealed {
    /// A line with its break.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(line: &[u8]) -> Result<Self, &'static str> {
        let text = line.strip_suffix(b"\n").ok_or("it is torn: its end is missing")?;
        let (body, hash) = cut(text).ok_or("it does not end with a hash")?;
        let body = [body, b"}"].concat();
        if sha256(&body).as_bytes() != hash {
            return Err("it was changed: its hash is that of something else");
        }
        let Tie { sequence, at, previous } = serde_json::from_slice(&body).map_err(|_| "it is no entry")?;
        let hash = String::from_utf8_lossy(hash).into_owned();
        Ok(Self { previous, head: Head { sequence, hash, at: Some(at) } })
    }
}

/// A line's body without the last brace, and its hash.
fn cut(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.strip_suffix(BEHIND_HASH)?;
    let (body, hash) = text.split_at_checked(text.len().checked_sub(DIGITS)?)?;
    Some((body.strip_suffix(BEFORE_HASH)?, hash))
}
