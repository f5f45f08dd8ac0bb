//! Which format of rows a client accepts.

use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, StatusCode};

use super::problem::HttpProblem;
use crate::cli;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Ndjson,
    Csv,
    Arrow,
}

/// The first is what everybody gets who names nothing.
const FORMATS: [(&str, Format); 4] = [
    ("application/json", Format::Json),
    ("application/x-ndjson", Format::Ndjson),
    ("text/csv", Format::Csv),
    ("application/vnd.apache.arrow.stream", Format::Arrow),
];

impl Format {
    /// The one that is accepted most; of those alike the one that is named first.
    ///
    /// # Errors
    /// `NOT_ACCEPTABLE` where none is.
    pub(super) fn accepted(headers: &HeaderMap) -> Result<Self, HttpProblem> {
        let mut best: Option<(f32, Self)> = None;
        let mut named = false;
        for range in headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(',')) {
            named = true;
            let mut parts = range.split(';').map(str::trim);
            let wanted = parts.next().unwrap_or_default();
            let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Ok(1.0), str::parse::<f32>);
            let weight = weight.unwrap_or(0.0);
            let fits = |(name, _): &&(&str, Format)| {
                wanted == "*/*"
                    || wanted.eq_ignore_ascii_case(name)
                    || wanted.strip_suffix("/*").is_some_and(|kind| name.split('/').next() == Some(kind))
            };
            if let Some((_, format)) = FORMATS.iter().find(fits)
                && weight > best.map_or(0.0, |(weight, _)| weight)
            {
                best = Some((weight, *format));
            }
        }
        match best {
            Some((_, format)) => Ok(format),
            None if !named => Ok(Self::Json),
            None => {
                let names = FORMATS.map(|(name, _)| name).join(", ");
                let detail = format!("rows come as {names}");
                Err(HttpProblem::new(StatusCode::NOT_ACCEPTABLE, "NOT_ACCEPTABLE", detail))
            }
        }
    }

    /// Rows one behind the other; `None` for a document.
    pub(super) fn flat(self) -> Option<cli::Format> {
        match self {
            Self::Json => None,
            Self::Ndjson => Some(cli::Format::Ndjson),
            Self::Csv => Some(cli::Format::Csv),
            Self::Arrow => Some(cli::Format::Arrow),
        }
    }

    pub(super) fn media_type(self) -> &'static str {
        FORMATS.iter().find(|(_, format)| *format == self).map_or("application/json", |(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: Option<&str>, format: Option<Format>) {
        let mut headers = HeaderMap::new();
        headers.extend(accept.map(|accept| (ACCEPT, accept.parse().unwrap())));
        assert_eq!(Format::accepted(&headers).ok(), format, "{accept:?}");
    }

    #[test]
    fn the_heaviest_format_is_taken_and_nothing_unknown() {
        check(None, Some(Format::Json));
        check(Some("*/*"), Some(Format::Json));
        check(Some("text/*"), Some(Format::Csv));
        check(Some("text/csv;q=0.5, application/x-ndjson"), Some(Format::Ndjson));
        check(Some("text/html, application/vnd.apache.arrow.stream"), Some(Format::Arrow));
        check(Some("text/html, */*;q=0.1"), Some(Format::Json));
        check(Some("application/xml"), None);
        check(Some("text/csv;q=0"), None);
        check(Some("text/csv;q=x"), None);
    }
}
