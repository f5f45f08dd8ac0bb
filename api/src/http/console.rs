//! The operators' console: one static page and what it is made of, the same for everybody and without any data, so nobody
//! has to say who they are. What it shows it asks `/v1` for, with the token of whoever looks at it.

use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};

use super::etag::Etag;

/// Nothing from elsewhere, nothing inline, and nobody's frame around it: what a cell says stays a text, whatever it says.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const MARKDOWN: &str = "text/markdown; charset=utf-8";

const PAGE: &str = include_str!("../console/index.html");

/// By their names below `/console`.
const ASSETS: [(&str, &str, &str); 27] = [
    ("console.css", CSS, include_str!("../console/console.css")),
    ("console.js", JAVASCRIPT, include_str!("../console/console.js")),
    ("api.js", JAVASCRIPT, include_str!("../console/api.js")),
    ("audit.js", JAVASCRIPT, include_str!("../console/audit.js")),
    ("cells.js", JAVASCRIPT, include_str!("../console/cells.js")),
    ("codes.js", JAVASCRIPT, include_str!("../console/codes.js")),
    ("dom.js", JAVASCRIPT, include_str!("../console/dom.js")),
    ("forms.js", JAVASCRIPT, include_str!("../console/forms.js")),
    ("maintenance.js", JAVASCRIPT, include_str!("../console/maintenance.js")),
    ("operations.js", JAVASCRIPT, include_str!("../console/operations.js")),
    ("overview.js", JAVASCRIPT, include_str!("../console/overview.js")),
    ("pages.js", JAVASCRIPT, include_str!("../console/pages.js")),
    ("pass.js", JAVASCRIPT, include_str!("../console/pass.js")),
    ("plan.js", JAVASCRIPT, include_str!("../console/plan.js")),
    ("plot.js", JAVASCRIPT, include_str!("../console/plot.js")),
    ("quarantine.js", JAVASCRIPT, include_str!("../console/quarantine.js")),
    ("rollback.js", JAVASCRIPT, include_str!("../console/rollback.js")),
    ("run.js", JAVASCRIPT, include_str!("../console/run.js")),
    ("snapshot.js", JAVASCRIPT, include_str!("../console/snapshot.js")),
    ("table.js", JAVASCRIPT, include_str!("../console/table.js")),
    ("tags.js", JAVASCRIPT, include_str!("../console/tags.js")),
    ("target.js", JAVASCRIPT, include_str!("../console/target.js")),
    ("verbs.js", JAVASCRIPT, include_str!("../console/verbs.js")),
    ("verification.js", JAVASCRIPT, include_str!("../console/verification.js")),
    ("watch.js", JAVASCRIPT, include_str!("../console/watch.js")),
    ("words.js", JAVASCRIPT, include_str!("../console/words.js")),
    // What every code means, from the same page that people read.
    ("troubleshooting.md", MARKDOWN, include_str!("../../../deploy/docs/troubleshooting.md")),
];

/// The operators' console.
#[utoipa::path(
    get, path = "/console", operation_id = "console", tag = "console",
    responses(
        (status = 200, description = "The page", body = String, content_type = "text/html", headers(("ETag" = String)))
    )
)]
pub(super) async fn page(headers: HeaderMap) -> Response {
    file(HTML, PAGE, &headers)
}

/// The page's addresses are relative, so that a proxy may put it below a path of its own; with a slash more they would
/// lead elsewhere.
#[utoipa::path(
    get, path = "/console/", operation_id = "console_slash", tag = "console", summary = "Where the console is.",
    responses((status = 308, description = "See the address without the slash", headers(("Location" = String))))
)]
pub(super) async fn slash() -> Redirect {
    Redirect::permanent("../console")
}

/// A part of the console.
#[utoipa::path(
    get, path = "/console/{asset}", operation_id = "console_asset", tag = "console",
    params(("asset" = String, Path)),
    responses(
        (
            status = 200, description = "The part", headers(("ETag" = String)),
            content((String = "text/css"), (String = "text/javascript"), (String = "text/markdown"))
        ),
        (status = 404, description = "There is no such part"),
    )
)]
pub(super) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match ASSETS.iter().find(|(known, _, _)| *known == name) {
        Some((_, media_type, content)) => file(media_type, content, &headers),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn file(media_type: &'static str, content: &'static str, headers: &HeaderMap) -> Response {
    let etag = Etag::of(&[content]);
    let mut response = etag.unchanged(headers).unwrap_or_else(|| etag.on(content.into_response()));
    for (name, value) in [
        (CONTENT_TYPE, media_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        // Asked for each time, so that a page and its scripts are of one release; it is no secret from any cache.
        (CACHE_CONTROL, "no-cache"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
