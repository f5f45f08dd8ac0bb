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
    let json = [("content-type", "application/json")];
    let answer = exchange(method, uri, if body.is_empty() { &[] } else { &json }, body).await?;
    Ok(Answer { status: answer.status(), body: String::from_utf8_lossy(&answer.content()).into_owned() })
}

/// An answer with its headers, as it came.
#[derive(Clone, Debug)]
pub struct Exchange(Message);

impl Exchange {
    pub fn status(&self) -> u16 {
        self.0.status()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.0.header(name)
    }

    /// The body, its framing left out.
    pub fn content(&self) -> Vec<u8> {
        self.0.content()
    }
}

/// Sends a request with headers of its own to an `http://` address; `host` is the address's, unless it is among them.
///
/// # Errors
/// When there is no whole answer.
pub async fn exchange(method: &str, uri: &str, headers: &[(&str, &str)], body: &str) -> io::Result<Exchange> {
    let host = authority(uri);
    let target = uri.trim_start_matches("http://").trim_start_matches(&host);
    let target = if target.is_empty() { "/" } else { target };
    let mut headers = headers.to_vec();
    if !headers.iter().any(|(name, _)| *name == "host") {
        headers.push(("host", host.as_str()));
    }
    forward(&host, &Message::request(method, target, &headers, body.as_bytes())).await.map(Exchange)
}
