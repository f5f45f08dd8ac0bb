//! What `verify` tells of mirrors.

use utoipa::ToSchema;

use super::Position;

// lakehouse_core::verify::VerifyReport
/// Mirrors and what they were compared with, at one position.
#[derive(ToSchema)]
pub(crate) struct VerifyReport {
    /// `different`, where one of them is.
    verdict: Verdict,
    position: Position,
    against: Against,
    tables: Vec<TableVerdict>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum Verdict {
    Equal,
    Different,
}

/// The source itself, or at a past cut the mirrors' own histories.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum Against {
    Source,
    History,
}

#[derive(ToSchema)]
struct TableVerdict {
    /// As `namespace.table`.
    table: String,
    verdict: Verdict,
    source_rows: u64,
    mirror_rows: u64,
    only_in_source: u64,
    only_in_mirror: u64,
    /// Rows with a key on both sides and other contents.
    differing: u64,
    /// Rows of the source that cannot be mapped and stand in the quarantine instead; only where a policy says so.
    #[schema(nullable = false)]
    quarantined: Option<u64>,
    /// Up to 20 keys that differ.
    samples: Vec<Sample>,
}

#[derive(ToSchema)]
struct Sample {
    difference: Difference,
    /// Its digest in hexadecimal.
    key: String,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum Difference {
    OnlyInSource,
    OnlyInMirror,
    Differing,
}

#[cfg(test)]
mod tests {
    use lakehouse_core::compare::{self, TableComparison};
    use lakehouse_core::position;
    use lakehouse_core::verify;
    use serde_json::json;
    use utoipa::PartialSchema;
    use utoipa::openapi::{RefOr, Schema};

    use super::super::tests::check;
    use super::*;

    #[test]
    fn a_shape_has_the_keys_and_words_of_what_it_stands_for() {
        use compare::Difference::{Differing, OnlyInMirror, OnlyInSource};
        let words = |schema: RefOr<Schema>| serde_json::to_value(schema).unwrap()["enum"].clone();
        let sample = compare::Sample { difference: OnlyInSource, key: "a1".to_owned() };
        check::<Sample>(&sample);
        let equal = verify::TableVerdict::new("app.t".to_owned(), TableComparison::default());
        let found = TableComparison { only_in_source: 1, samples: vec![sample], ..TableComparison::default() };
        let different =
            verify::TableVerdict { quarantined: Some(1), ..verify::TableVerdict::new("app.u".to_owned(), found) };
        check::<TableVerdict>(&different);
        assert_eq!(words(Verdict::schema()), json!([equal.verdict, different.verdict]));
        check::<VerifyReport>(&verify::VerifyReport::new(position::Position::new(7), "source", vec![equal, different]));
        assert_eq!(words(Difference::schema()), json!([OnlyInSource, OnlyInMirror, Differing]));
    }
}
