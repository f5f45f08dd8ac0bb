//! What a read of rows asks for: in its address, or in a body where that is too long for one. Both mean the same.

use std::collections::HashSet;

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::body::Id;
use super::problem::HttpProblem;
use crate::cli::parse_time;
use crate::digest::sha256;
use crate::lake::Point;
use crate::rows::{By, FilterTree, Where};
use crate::shapes;

/// In an address. Of the first four at most one.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct Parameters {
    /// The state as of this snapshot. At most one of `snapshot_id`, `as_of`, `tag` and `cut`; else the newest.
    #[param(value_type = Option<String>, pattern = "^-?[0-9]{1,19}$")]
    snapshot_id: Option<i64>,
    /// The state as of this time: RFC 3339, or a date; without a zone it is UTC.
    #[param(example = "2026-11-21T09:30:00Z")]
    as_of: Option<String>,
    /// The state of this tag; `main` is the newest.
    tag: Option<String>,
    /// The state at the newest cut at or before this position.
    #[param(value_type = Option<shapes::Position>)]
    cut: Option<String>,
    /// Columns, with commas between them.
    select: Option<String>,
    /// A filter tree as JSON, such as `{"eq": {"column": "state", "value": "paid"}}`.
    filter: Option<String>,
    /// Columns, with commas between them, each with `:desc` where it descends.
    order: Option<String>,
    /// At most so many rows.
    limit: Option<u64>,
}

/// In a body. Of the first four at most one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RowsQuery)]
pub(super) struct Document {
    snapshot_id: Option<Id>,
    /// RFC 3339, or a date; without a zone it is UTC.
    as_of: Option<String>,
    /// `main` is the newest state.
    tag: Option<String>,
    /// The newest cut at or before this position is shown.
    #[schema(value_type = Option<shapes::Position>)]
    cut: Option<String>,
    /// Columns, each once; all, where it is left out.
    #[schema(min_items = 1)]
    select: Option<Vec<String>>,
    // Not yet looked at: its text is what the audit trail has the hash of.
    #[schema(value_type = Option<FilterTree>)]
    filter: Option<Box<RawValue>>,
    /// Without it rows come as they stand in the files.
    order: Option<Vec<By>>,
    /// At most so many rows.
    limit: Option<u64>,
}

/// Understood.
pub(super) struct Wish {
    pub(super) point: Point,
    /// All, where it is empty.
    pub(super) columns: Vec<String>,
    pub(super) filter: Option<Where>,
    pub(super) filter_sha256: Option<String>,
    pub(super) order: Vec<By>,
    pub(super) limit: Option<u64>,
}

impl Parameters {
    pub(super) fn wish(self) -> Result<Wish, HttpProblem> {
        let Self { snapshot_id, as_of, tag, cut, select, filter, order, limit } = self;
        let point = point(snapshot_id, as_of.as_deref(), tag.as_deref(), cut.as_deref())?;
        let words = |text: String| text.split(',').map(|word| word.trim().to_owned()).collect::<Vec<String>>();
        let order = order.map(words).unwrap_or_default();
        let order = order.iter().map(|word| word.parse()).collect::<Result<_, _>>();
        let Ok(order) = order;
        Wish::new(point, select.map(words).unwrap_or_default(), filter.as_deref(), order, limit)
    }
}

impl Document {
    pub(super) fn wish(self) -> Result<Wish, HttpProblem> {
        let Self { snapshot_id, as_of, tag, cut, select, filter, order, limit } = self;
        let snapshot_id = snapshot_id.map(|id| id.0);
        let point = point(snapshot_id, as_of.as_deref(), tag.as_deref(), cut.as_deref())?;
        if select.as_ref().is_some_and(Vec::is_empty) {
            return Err(HttpProblem::invalid("select: name at least one column"));
        }
        let filter = filter.as_ref().map(|filter| filter.get());
        Wish::new(point, select.unwrap_or_default(), filter, order.unwrap_or_default(), limit)
    }
}

impl Wish {
    fn new(
        point: Point,
        columns: Vec<String>,
        filter: Option<&str>,
        order: Vec<By>,
        limit: Option<u64>,
    ) -> Result<Self, HttpProblem> {
        // Columns of a table are few; a name that comes again and again would make an answer of any width.
        each_once("select", columns.iter())?;
        each_once("order", order.iter().map(|by| &by.column))?;
        let tree = filter.map(FilterTree::parse).transpose();
        let invalid = |error| HttpProblem::new(StatusCode::BAD_REQUEST, "FILTER_INVALID", format!("filter: {error}"));
        let filter_sha256 = filter.map(|filter| sha256(filter.as_bytes()));
        let filter = tree.map_err(invalid)?.map(Where::Tree);
        Ok(Self { point, columns, filter, filter_sha256, order, limit })
    }
}

fn each_once<'a>(key: &str, names: impl Iterator<Item = &'a String>) -> Result<(), HttpProblem> {
    let mut known = HashSet::new();
    match names.into_iter().find(|name| !known.insert(*name)) {
        Some(name) => Err(HttpProblem::invalid(format!("{key}: {name} is named twice"))),
        None => Ok(()),
    }
}

/// The point that a request names; the newest, if it names none.
pub(super) fn point(
    snapshot_id: Option<i64>,
    as_of: Option<&str>,
    tag: Option<&str>,
    cut: Option<&str>,
) -> Result<Point, HttpProblem> {
    let as_of = as_of.map(parse_time).transpose();
    let as_of = as_of.map_err(|error| HttpProblem::invalid(format!("as_of: {error}")))?;
    let cut = cut.map(str::parse).transpose();
    let cut = cut.map_err(|_| HttpProblem::invalid("cut: write a position as status shows it"))?;
    let tag = tag.map(|tag| Point::Tag(tag.to_owned()));
    let points = [snapshot_id.map(Point::Snapshot), as_of.map(Point::AsOf), tag, cut.map(Point::Cut)];
    let mut points = points.into_iter().flatten();
    match (points.next(), points.next()) {
        (None, _) => Ok(Point::Newest),
        (Some(point), None) => Ok(point),
        (Some(_), Some(_)) => Err(give_one()),
    }
}

/// The same of a request that must name one: the newest, repeated, would be another one.
pub(super) fn settled_point(
    snapshot_id: Option<i64>,
    as_of: Option<&str>,
    tag: Option<&str>,
    cut: Option<&str>,
) -> Result<Point, HttpProblem> {
    match point(snapshot_id, as_of, tag, cut)? {
        Point::Newest => Err(give_one()),
        point => Ok(point),
    }
}

fn give_one() -> HttpProblem {
    HttpProblem::invalid("give one of snapshot_id, as_of, tag and cut")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_and_a_body_mean_the_same() {
        let filter = r#"{"eq":{"column":"a","value":1}}"#;
        let address = Parameters {
            snapshot_id: Some(7),
            select: Some("a, b".to_owned()),
            filter: Some(filter.to_owned()),
            order: Some("b:desc,a".to_owned()),
            limit: Some(3),
            ..Parameters::default()
        };
        let body = format!(
            r#"{{"snapshot_id":"7","select":["a","b"],"filter":{filter},
                 "order":[{{"column":"b","descending":true}},{{"column":"a"}}],"limit":3}}"#
        );
        let body: Document = serde_json::from_str(&body).unwrap();
        let [one, other] = [address.wish(), body.wish()].map(|wish| wish.ok().unwrap());
        assert_eq!(one.point, Point::Snapshot(7));
        assert_eq!(
            (one.point, one.columns, one.filter_sha256, one.order, one.limit),
            (other.point, other.columns, other.filter_sha256, other.order, other.limit)
        );
    }

    #[test]
    fn what_is_named_twice_or_not_known_is_refused() {
        for body in [
            r#"{"select":["a","a"]}"#,
            r#"{"select":[]}"#,
            r#"{"order":[{"column":"a"},{"column":"a","descending":true}]}"#,
            r#"{"snapshot_id":1,"tag":"x"}"#,
            r#"{"filter":{"and":[]}}"#,
            r#"{"filter":"id = 1"}"#,
        ] {
            assert!(serde_json::from_str::<Document>(body).unwrap().wish().is_err(), "{body}");
        }
        for body in [
            r#"{"where":"id = 1"}"#,
            r#"{"select":"a"}"#,
            r#"{"order":["a"]}"#,
            r#"{"order":[{"column":"a","nulls":"first"}]}"#,
            r#"{"limit":-1}"#,
        ] {
            assert!(serde_json::from_str::<Document>(body).is_err(), "{body}");
        }
        let twice = Parameters { select: Some("a,a".to_owned()), ..Parameters::default() };
        assert!(twice.wish().is_err());
    }
}
