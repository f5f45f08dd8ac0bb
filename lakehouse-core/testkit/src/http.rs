//! A plain HTTP call as a test makes it: one connection, sent once, no library that retries or reuses behind its back.

use std::io;

use crate::host::authority;
use crate::wire::{Message, forward};

/// What came back, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// Sends a body (empty: none) as JSON to an `http://` address.
///
/// # Errors
/// When there is no whole answer.
pub async fn send(method: &str, uri: &str, body: &str) -> io::Result<Answer> {
    let host = authority(uri);
    let target = uri.trim_start_matches("http://").trim_start_matches(&host);
    let target = if target.is_empty() { "/" } else { target };
    let mut headers = vec![("host", host.as_str())];
    if !body.is_empty() {
        headers.push(("content-type", "application/json"));
    }
    let answer = forward(&host, &Message::request(method, target, &headers, body.as_bytes())).await?;
    Ok(Answer { status: answer.status(), body: String::from_utf8_lossy(&answer.content()).into_owned() })
}
