//! The document about this service for programs: OpenAPI 3.1, made of the routes themselves. What a handler answers is
//! said above it; here is what all of them have in common: roles, problems, tags of what a client has already.

use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response as HttpResponse};
use serde_json::{Value, json};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{AllOfBuilder, Components, ComponentsBuilder};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Content, Info, License, ObjectBuilder, OpenApi, OpenApiBuilder, Paths, Ref, RefOr, Required, Response, Type,
};

use super::etag::Etag;
use super::problem::{self, CODES};
use super::routes::{self, Route};
use crate::config::Role;
use crate::lake::{Neighbour, Neighbours};

const PROBLEM: &str = "Problem";
const SCHEME: &str = "bearer";
const ROLE: &str = "x-role";
const RECENT_LOGIN: &str = "x-recent-login";

/// The document, indented: whoever has a copy sees in a diff what has changed.
pub(crate) fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let mut document = serde_json::to_value(document()).expect("a document is plain data");
        order_own_words(&mut document);
        format!("{document:#}\n")
    });
    &TEXT
}

/// This document.
///
/// It is the same for everybody, has no data, and every copy of the program prints it. So nobody has to say who they are,
/// as for the console: what makes a client of it has no token.
#[utoipa::path(
    get, path = "/v1/openapi.json", operation_id = "openapi", tag = "service",
    responses((status = 200, description = "OpenAPI 3.1", body = Object, headers(("ETag" = String))))
)]
pub(super) async fn show(headers: HeaderMap) -> HttpResponse {
    let etag = Etag::of(&[text()]);
    let whole = || etag.on(([(CONTENT_TYPE, "application/json")], text()).into_response());
    etag.unchanged(&headers).unwrap_or_else(whole)
}

fn document() -> OpenApi {
    let mut paths = Paths::new();
    let mut components = components();
    for Route { role, destructive, described: (schemas, mut described, _), .. } in routes::all() {
        components.schemas.extend(schemas);
        let own = described.paths.values_mut().flat_map(operations);
        own.for_each(|operation| complete(operation, role, destructive));
        paths.merge(described);
    }
    let mut info = Info::new("lakehouse", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "Tables, their past and their rows, and what operators do to pipelines. `x-role` is the least role that may call \
         an address, for the tables of its token; where `x-recent-login` stands, people must have logged in within 15 \
         minutes. A list with `next_page_token` has more: ask the same address again with it as `page_token`. Answers may \
         get more keys: a client passes over those that it does not know. Of a request the service refuses them, and \
         parameters as well. Rows and differences come compressed where `Accept-Encoding` names zstd, br or gzip."
            .to_owned(),
    );
    info.license = Some(License::new(env!("CARGO_PKG_LICENSE")));
    OpenApiBuilder::new().info(info).paths(paths).components(Some(components)).build()
}

/// What no handler names: the bearer's token, the problem, and for each status the codes that it may have.
fn components() -> Components {
    let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let mut components = ComponentsBuilder::new()
        .security_scheme(SCHEME, scheme)
        .schema_from::<problem::Document<'_>>()
        .schema_from::<Neighbours>()
        .schema_from::<Neighbour>();
    for (status, codes) in CODES {
        let code = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(codes.iter().copied()));
        let with_code = ObjectBuilder::new().property("code", code);
        let schema = AllOfBuilder::new().item(Ref::from_schema_name(PROBLEM)).item(with_code);
        components = components.schema(problem_of(status), schema);
    }
    components.build()
}

/// What operations say in words of ours has no order by itself, and a copy is to be the same every time.
fn order_own_words(document: &mut Value) {
    fn values(object: &mut Value) -> impl Iterator<Item = &mut Value> {
        object.as_object_mut().into_iter().flat_map(|object| object.values_mut())
    }
    for operation in values(&mut document["paths"]).flat_map(values).filter_map(Value::as_object_mut) {
        for word in [ROLE, RECENT_LOGIN] {
            if let Some(value) = operation.remove(word) {
                operation.insert(word.to_owned(), value);
            }
        }
    }
}

/// The name of a status' problem.
fn problem_of(status: StatusCode) -> String {
    if status.is_server_error() { PROBLEM.to_owned() } else { format!("{PROBLEM}{}", status.as_u16()) }
}

/// Those that an address has.
fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, patch, .. } = item;
    [get, put, post, delete, patch].into_iter().flatten()
}

/// Adds what a handler does not say about itself.
fn complete(operation: &mut Operation, role: Option<Role>, destructive: bool) {
    let mut also = vec![StatusCode::BAD_REQUEST, StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE];
    if let Some(role) = role {
        also.extend([StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN]);
        operation.security = Some(vec![SecurityRequirement::new(SCHEME, [""; 0])]);
        operation.extensions.get_or_insert_default().insert(ROLE.to_owned(), json!(role));
    }
    if destructive {
        operation.extensions.get_or_insert_default().insert(RECENT_LOGIN.to_owned(), json!(true));
    }
    if operation.request_body.is_some() {
        also.extend([StatusCode::REQUEST_TIMEOUT, StatusCode::PAYLOAD_TOO_LARGE]);
    } else if has_tag(operation) {
        also.push(StatusCode::NOT_MODIFIED);
        operation.parameters.get_or_insert_default().push(if_none_match());
    }
    let responses = &mut operation.responses.responses;
    for status in also {
        responses.entry(status.as_str().to_owned()).or_insert_with(|| Response::new("").into());
    }
    for (status, response) in responses {
        if let (Ok(status), RefOr::T(response)) = (status.parse(), response) {
            complete_response(status, response);
        }
    }
}

/// Its answer has a tag by which a client is told that it has it already.
fn has_tag(operation: &Operation) -> bool {
    let answer = operation.responses.responses.get(StatusCode::OK.as_str());
    matches!(answer, Some(RefOr::T(answer)) if answer.headers.contains_key("ETag"))
}

fn if_none_match() -> Parameter {
    ParameterBuilder::new()
        .name("If-None-Match")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some("Tags of answers that the client has"))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build()
}

fn complete_response(status: StatusCode, response: &mut Response) {
    if response.description.is_empty() {
        response.description = status.canonical_reason().unwrap_or_default().to_owned();
    }
    if status.is_client_error() || status.is_server_error() {
        let content = Content::new(Some(Ref::from_schema_name(problem_of(status))));
        response.content.insert("application/problem+json".to_owned(), content);
    }
    if let Some(tag) = response.headers.get_mut("ETag") {
        tag.description.get_or_insert_with(|| "Of this answer, for `If-None-Match`".to_owned());
    }
    let mut header = |name: &str, kind: Type, description: &str| {
        let schema = ObjectBuilder::new().schema_type(kind);
        let header = HeaderBuilder::new().schema(schema).description(Some(description)).build();
        response.headers.entry(name.to_owned()).or_insert(header);
    };
    header("X-Request-Id", Type::String, "By which the log and the audit trail know the request");
    match status {
        StatusCode::NOT_MODIFIED => header("ETag", Type::String, "Of what the client has"),
        StatusCode::UNAUTHORIZED => {
            header("WWW-Authenticate", Type::String, "`Bearer`; of `LOGIN_REQUIRED` with how old a login may be")
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            header("Retry-After", Type::Integer, "When to come again, in seconds");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn parsed() -> Value {
        serde_json::from_str(text()).unwrap()
    }

    fn each_operation(document: &Value) -> impl Iterator<Item = (&String, &Value)> {
        let paths = document["paths"].as_object().unwrap().iter();
        paths.flat_map(|(path, item)| item.as_object().unwrap().values().map(move |operation| (path, operation)))
    }

    #[test]
    fn every_operation_has_a_role_a_name_of_its_own_and_a_description() {
        let document = parsed();
        let mut names = BTreeSet::new();
        for (path, operation) in each_operation(&document) {
            let open = ["/console", "/livez", "/readyz", "/v1/openapi.json"].iter().any(|open| path.starts_with(open));
            assert_eq!(operation["x-role"].is_string(), !open, "{path}");
            assert_eq!(operation["security"].is_array(), !open, "{path}");
            assert!(operation["summary"].is_string(), "{path}");
            assert!(names.insert(operation["operationId"].as_str().unwrap()), "{path}: a name twice");
        }
    }

    #[test]
    fn every_error_has_a_problem_and_below_500_its_codes() {
        let document = parsed();
        let schemas = &document["components"]["schemas"];
        for (path, operation) in each_operation(&document) {
            for (status, response) in operation["responses"].as_object().unwrap() {
                assert!(!response["description"].as_str().unwrap().is_empty(), "{path} {status}");
                if status.as_str() < "400" {
                    continue;
                }
                let of = response["content"]["application/problem+json"]["schema"]["$ref"].as_str().unwrap();
                let problem = &schemas[of.trim_start_matches("#/components/schemas/")];
                assert!(problem.is_object(), "{path} {status}: {of}");
                assert_eq!(problem["allOf"][1]["properties"]["code"]["enum"].is_array(), status.as_str() < "500");
            }
        }
    }

    /// What is referred to is there.
    fn check_references(document: &Value, part: &Value) {
        match part {
            Value::Object(object) => {
                if let Some(of) = object.get("$ref").and_then(Value::as_str) {
                    assert!(document.pointer(of.trim_start_matches('#')).is_some(), "{of}");
                }
                object.values().for_each(|part| check_references(document, part));
            }
            Value::Array(parts) => parts.iter().for_each(|part| check_references(document, part)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = parsed();
        check_references(&document, &document);
    }
}
