//! What an address carries behind its question mark: nothing but the parameters that its description has, so the document
//! (`openapi.rs`) and the service know the same ones. A name that is written wrongly is told, and never passed over.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use utoipa::openapi::path::{Operation, ParameterIn, PathItem};

use super::problem::HttpProblem;

/// The parameters of one address, by method.
#[derive(Clone)]
pub(super) struct Known(Arc<[(Method, Vec<String>)]>);

impl Known {
    pub(super) fn of(item: &PathItem) -> Self {
        let PathItem { get, put, post, delete, .. } = item;
        let methods = [(Method::GET, get), (Method::PUT, put), (Method::POST, post), (Method::DELETE, delete)];
        Self(methods.into_iter().filter_map(|(method, operation)| Some((method, names(operation.as_ref()?)))).collect())
    }

    /// `None` for a method that the address does not take: that is said elsewhere.
    fn by(&self, method: &Method) -> Option<&[String]> {
        // A HEAD is answered as a GET.
        let method = if method == Method::HEAD { &Method::GET } else { method };
        self.0.iter().find(|(known, _)| known == method).map(|(_, names)| names.as_slice())
    }
}

fn names(operation: &Operation) -> Vec<String> {
    let parameters = operation.parameters.iter().flatten();
    let in_query = parameters.filter(|parameter| parameter.parameter_in == ParameterIn::Query);
    in_query.map(|parameter| parameter.name.clone()).collect()
}

/// Before each handler, once it is clear who is calling.
pub(super) async fn check(State(known): State<Known>, request: Request, next: Next) -> Result<Response, HttpProblem> {
    if let Some(known) = known.by(request.method()) {
        let given: Vec<(String, String)> = understood(Query::try_from_uri(request.uri()))?;
        if let Some((name, _)) = given.iter().find(|(name, _)| !known.contains(name)) {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(HttpProblem::invalid(format!("query: unknown parameter {name:?}; this address takes {known}")));
        }
    }
    Ok(next.run(request).await)
}

/// The values of a handler's parameters.
///
/// # Errors
/// `REQUEST_INVALID` for what cannot be read as them.
pub(super) fn understood<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, HttpProblem> {
    query.map(|Query(wish)| wish).map_err(|rejection| HttpProblem::invalid(rejection.body_text()))
}
