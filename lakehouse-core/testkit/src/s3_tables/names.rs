//! What Amazon allows as names of table buckets, namespaces and tables, and where a table's files may lie.
//!
//! The rules: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/s3-tables-buckets-naming.html>

use super::refusal::Refusal;

const RESERVED_PREFIXES: [&str; 4] = ["xn--", "sthree-", "amzn-s3-demo-", "aws"];
const RESERVED_SUFFIXES: [&str; 4] = ["-s3alias", "--ol-s3", "--x-s3", "--table-s3"];

pub(super) fn bucket(name: &str) -> Result<(), Refusal> {
    let right = (3..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && framed(name)
        && !RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        && !RESERVED_SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
    right.then_some(()).ok_or_else(|| Refusal::bad_request(format!("The specified bucket name is not valid: {name}")))
}

pub(super) fn namespace(name: &str) -> Result<(), Refusal> {
    let right = identifier(name) && !name.starts_with("aws");
    right
        .then_some(())
        .ok_or_else(|| Refusal::bad_request(format!("The specified namespace name is not valid: {name}")))
}

pub(super) fn table(name: &str) -> Result<(), Refusal> {
    identifier(name)
        .then_some(())
        .ok_or_else(|| Refusal::bad_request(format!("The specified table name is not valid: {name}")))
}

fn identifier(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        && framed(name)
}

/// Begins and ends with a letter or digit.
fn framed(name: &str) -> bool {
    let ends = [name.bytes().next(), name.bytes().next_back()];
    ends.iter().all(|byte| byte.is_some_and(|byte| byte.is_ascii_alphanumeric()))
}

/// A metadata file lies in the table's own warehouse, says so without detours, and has the ending that readers look for.
pub(super) fn metadata_location(location: &str, warehouse: &str) -> Result<(), Refusal> {
    let inside = location.strip_prefix(warehouse).and_then(|rest| rest.strip_prefix('/'));
    let ending = location.ends_with(".metadata.json") || location.ends_with(".metadata.json.gz");
    match inside {
        Some(path) if ending && !path.split('/').any(|part| matches!(part, "" | "." | "..")) => Ok(()),
        _ => Err(Refusal::bad_request(format!("The specified metadata location is not valid: {location}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::{bucket, metadata_location, namespace, table};

    #[test]
    fn names_are_as_amazon_allows_them() {
        for right in ["abc", "a-1", "0lake0"] {
            assert!(bucket(right).is_ok(), "{right}");
        }
        for wrong in ["ab", "Abc", "a_c", "-ab", "ab-", "xn--a", "aws-lake", "a--table-s3", &"a".repeat(64)] {
            assert!(bucket(wrong).is_err(), "{wrong}");
        }
        for right in ["a", "a_b", "1st", "awesome"] {
            assert!(table(right).is_ok(), "{right}");
        }
        assert!(table("aws_t").is_ok() && namespace("aws_n").is_err());
        for wrong in ["", "A", "a-b", "a.b", "_a", "a_", &"a".repeat(256)] {
            assert!(table(wrong).is_err() && namespace(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn metadata_stays_in_its_warehouse() {
        let at = |location| metadata_location(location, "s3://w--table-s3");
        assert!(at("s3://w--table-s3/metadata/1.metadata.json").is_ok());
        assert!(at("s3://w--table-s3/metadata/1.metadata.json.gz").is_ok());
        for wrong in [
            "s3://w--table-s3/metadata/1.json",
            "s3://w--table-s3-other/1.metadata.json",
            "s3://w--table-s3/../x/1.metadata.json",
            "s3://w--table-s3//1.metadata.json",
            "s3://elsewhere/1.metadata.json",
            "file:///1.metadata.json",
        ] {
            assert!(at(wrong).is_err(), "{wrong}");
        }
    }
}
