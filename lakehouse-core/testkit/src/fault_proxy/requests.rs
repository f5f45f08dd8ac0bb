//! How many requests of each kind were made: the measure behind "requests per commit".

use std::collections::BTreeMap;
use std::fmt;

/// Requests by method and class of path, such as `PUT metadata-location` or `GET *.parquet`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests(BTreeMap<(String, String), u64>);

impl Requests {
    pub(crate) fn count(&mut self, method: &str, target: &str) {
        *self.0.entry((method.to_owned(), class(target))).or_default() += 1;
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Those of one method (empty: any) and class (empty: any).
    #[must_use]
    pub fn of(&self, method: &str, class: &str) -> u64 {
        let fits = |(m, c): &(String, String)| (method.is_empty() || m == method) && (class.is_empty() || c == class);
        self.0.iter().filter(|(key, _)| fits(key)).map(|(_, count)| count).sum()
    }

    /// Method, class and count of each kind.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        self.0.iter().map(|((method, class), count)| (method.as_str(), class.as_str(), *count))
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (method, class, count) in self.iter() {
            write!(f, "{separator}{count} {method} {class}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// What kind of thing a path names: for objects the kind of file, for catalogs the operation without its names.
fn class(target: &str) -> String {
    let path = target.split('?').next().unwrap_or(target);
    let last = path.rsplit('/').next().unwrap_or_default();
    // S3 Tables: /tables/<bucket>/<namespace>/<table>/metadata-location; Iceberg: …/namespaces/<namespace>/tables/<table>.
    for operation in ["metadata-location", "maintenance-job-status", "maintenance"] {
        if path.ends_with(&format!("/{operation}")) || path.contains(&format!("/{operation}/")) {
            return operation.to_owned();
        }
    }
    if let Some(rest) = path.split_once("/v1/").map(|(_, rest)| rest) {
        let words = ["config", "namespaces", "tables", "transactions", "commit", "views", "metrics", "rename"];
        let named: Vec<&str> = rest.split('/').filter(|part| words.contains(part)).collect();
        let one = if named.last().is_some_and(|word| *word != last) { "/*" } else { "" };
        return format!("v1/{}{one}", named.join("/"));
    }
    for native in ["get-table", "buckets", "namespaces", "tables"] {
        if path.strip_prefix('/').is_some_and(|rest| rest == native || rest.starts_with(&format!("{native}/"))) {
            return native.to_owned();
        }
    }
    if last.ends_with(".metadata.json") || last.ends_with(".metadata.json.gz") {
        return "*.metadata.json".to_owned();
    }
    if last.starts_with("snap-") && last.ends_with(".avro") {
        return "snap-*.avro".to_owned();
    }
    match last.rsplit_once('.') {
        Some((_, suffix)) => format!("*.{suffix}"),
        None if path.trim_matches('/').contains('/') => "object".to_owned(),
        None => "bucket".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::class;

    #[test]
    fn a_class_names_the_kind_and_not_the_thing() {
        for (target, expected) in [
            ("/tables/arn%3Aaws%3As3tables%3Aus-east-1%3A1%3Abucket%2Fb/ns/t/metadata-location", "metadata-location"),
            ("/tables/arn/ns/t/maintenance/icebergCompaction", "maintenance"),
            ("/get-table?name=t", "get-table"),
            ("/tables/arn/ns", "tables"),
            ("/iceberg/v1/config?warehouse=x", "v1/config"),
            ("/v1/namespaces/ns/tables/t", "v1/namespaces/tables/*"),
            ("/v1/prefix/namespaces/ns/tables", "v1/namespaces/tables"),
            ("/v1/transactions/commit", "v1/transactions/commit"),
            ("/bucket/metadata/00001-a.metadata.json", "*.metadata.json"),
            ("/bucket/metadata/snap-1.avro", "snap-*.avro"),
            ("/bucket/metadata/1-m0.avro", "*.avro"),
            ("/bucket/data/a.parquet?partNumber=1&uploadId=2", "*.parquet"),
            ("/bucket?list-type=2", "bucket"),
        ] {
            assert_eq!(class(target), expected, "{target}");
        }
    }
}
