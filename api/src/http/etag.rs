//! Strong entity tags: what was sent under one never changes.

use axum::http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use lakehouse_core::catalog::LoadedTable;

use super::page::Page;
use crate::digest::sha256_of_parts;

/// Of the digest: enough that no two states meet.
const DIGITS: usize = 32;

/// The tag of an answer that the parts decide.
#[derive(Clone, Debug)]
pub(super) struct Etag(String);

impl Etag {
    /// Of a table's state: its uuid and the token that the catalog compares at the swap.
    pub(super) fn of_table(table: &LoadedTable) -> Self {
        Self::of(&[&table.metadata.uuid().to_string(), &table.token])
    }

    /// Of a page of what stands in a table's metadata. Whatever fits into one page has the tag of the table.
    pub(super) fn of_page<T>(table: &LoadedTable, page: &Page<T>) -> Self {
        match &page.next {
            None => Self::of_table(table),
            Some(next) => Self::of(&[&table.metadata.uuid().to_string(), &table.token, next]),
        }
    }

    pub(super) fn of(parts: &[&str]) -> Self {
        Self(format!("\"{}\"", &sha256_of_parts(parts)[..DIGITS]))
    }

    /// With its quotes, as headers have it.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// Whether `If-Match` means this tag. Not by `*` or a weak one (RFC 9110 section 13.1.1): who changes something names what
    /// they have seen.
    pub(super) fn is_among(&self, if_match: &str) -> bool {
        if_match.split(',').any(|tag| tag.trim() == self.0)
    }

    /// The answer that the client has already, if it says so.
    pub(super) fn unchanged(&self, headers: &HeaderMap) -> Option<Response> {
        let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let mut known = known.flat_map(|value| value.split(',')).map(|tag| tag.trim().trim_start_matches("W/"));
        known.any(|tag| tag == "*" || tag == self.0).then(|| self.on(StatusCode::NOT_MODIFIED.into_response()))
    }

    /// Puts the tag on an answer.
    pub(super) fn on(&self, mut response: Response) -> Response {
        let headers = response.headers_mut();
        headers.insert(ETAG, HeaderValue::from_str(&self.0).expect("digits in quotes"));
        // To be asked for again each time, and kept by nobody in between.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_strong_tag_itself_is_meant() {
        let tag = Etag::of(&["a"]);
        let text = tag.text().to_owned();
        for (header, meant) in [
            (text.clone(), true),
            (format!("\"x\", {text}"), true),
            (format!("W/{text}"), false),
            ("*".to_owned(), false),
            (text.trim_matches('"').to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(tag.is_among(&header), meant, "{header}");
        }
    }
}
