//! The text of a table's metadata file, as other engines insist on it (files W8, W9, W12).

use std::collections::HashSet;

use serde_json::Value;
use uuid::Uuid;

use super::findings::{Check, CheckName, Findings};
use crate::catalog::LoadedTable;
use crate::error::Problem;
use crate::storage::{Storage, iceberg_problem};

pub(super) async fn check(storage: &Storage, table: &LoadedTable) -> Check {
    let location = table.metadata_location.as_str();
    let mut findings = Findings::new(CheckName::Metadata);
    let bytes = match read(storage, location).await {
        Ok(bytes) => bytes,
        Err(problem) => {
            findings.fail(format!("{location}: {problem}"));
            return findings.check("");
        }
    };
    if !is_file_name(location) {
        findings.fail(format!("{location} is not named NNNNN-<uuid>.metadata.json"));
    }
    match serde_json::from_slice(&bytes) {
        Ok(text) => check_text(&text, &mut findings),
        // Compressed metadata has been read by the catalog already; its text is not looked at.
        Err(_) if location.ends_with(".gz.metadata.json") => findings.note("the text is compressed"),
        Err(error) => findings.fail(format!("{location} is not JSON: {error}")),
    }
    findings.check(format!("{} bytes, {} snapshots", bytes.len(), table.metadata.snapshots().len()))
}

async fn read(storage: &Storage, location: &str) -> Result<bytes::Bytes, Problem> {
    let failed = |error: iceberg::Error| iceberg_problem(location, "read", &error);
    storage.io().new_input(location).map_err(failed)?.read().await.map_err(failed)
}

fn is_file_name(location: &str) -> bool {
    let name = location.rsplit('/').next().unwrap_or_default();
    let stem = name.strip_suffix(".metadata.json").map(|stem| stem.strip_suffix(".gz").unwrap_or(stem));
    let parts = stem.and_then(|stem| stem.split_once('-'));
    parts.is_some_and(|(number, id)| {
        number.len() >= 5 && number.bytes().all(|byte| byte.is_ascii_digit()) && Uuid::try_parse(id).is_ok()
    })
}

fn check_text(text: &Value, findings: &mut Findings) {
    if text["format-version"] != 2 {
        findings.fail(format!("format version {} instead of 2", text["format-version"]));
    }
    if !text["current-snapshot-id"].is_i64() {
        findings.fail("current-snapshot-id is not there; a table without snapshots has -1");
    }
    for schema in text["schemas"].as_array().into_iter().flatten() {
        let current = schema["schema-id"] == text["current-schema-id"];
        check_type(schema, "", current, findings);
    }
}

/// One type, at any depth. Names and kinds matter in the current schema only, the text in every one.
fn check_type(data_type: &Value, path: &str, current: bool, findings: &mut Findings) {
    if let Some(text) = data_type.as_str() {
        if text.starts_with("decimal") && !is_decimal(text) {
            findings.fail(format!("column {path} is written as {text:?}, not as \"decimal(p, s)\""));
        }
        if current && text.starts_with("fixed[") {
            findings.fail(format!("column {path} is {text}, which some engines cannot read"));
        }
        return;
    }
    let mut names = HashSet::new();
    for field in data_type["fields"].as_array().into_iter().flatten() {
        let name = field["name"].as_str().unwrap_or_default();
        let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        if current && !names.insert(name.to_lowercase()) {
            findings.fail(format!("column {path} differs from another one only in case"));
        }
        check_type(&field["type"], &path, current, findings);
    }
    for inner in ["element", "key", "value"] {
        if !data_type[inner].is_null() {
            check_type(&data_type[inner], &format!("{path}.{inner}"), current, findings);
        }
    }
}

/// `decimal(9, 2)`, with the space.
fn is_decimal(text: &str) -> bool {
    let inner = text.strip_prefix("decimal(").and_then(|text| text.strip_suffix(')'));
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    inner.and_then(|inner| inner.split_once(", ")).is_some_and(|(p, s)| number(p) && number(s))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(text: &Value) -> String {
        let mut findings = Findings::new(CheckName::Metadata);
        check_text(text, &mut findings);
        findings.check("").detail
    }

    fn with_type(data_type: Value) -> Value {
        let field = |name: &str, data_type: Value| json!({"id": 1, "name": name, "required": false, "type": data_type});
        let schema =
            json!({"schema-id": 0, "type": "struct", "fields": [field("a", data_type), field("b", json!("int"))]});
        json!({"format-version": 2, "current-snapshot-id": -1, "current-schema-id": 0, "schemas": [schema]})
    }

    #[test]
    fn decimals_are_written_with_a_space_at_any_depth() {
        assert_eq!(faults(&with_type(json!("decimal(9, 2)"))), "");
        assert!(faults(&with_type(json!("decimal(9,2)"))).contains("column a is written as \"decimal(9,2)\""));
        let list = json!({"type": "list", "element-id": 2, "element": "decimal(9,2)", "element-required": false});
        assert!(faults(&with_type(list)).contains("column a.element"));
    }

    #[test]
    fn names_that_differ_in_case_only_and_fixed_bytes_are_told() {
        let fields = json!([{"id": 2, "name": "x", "type": "int"}, {"id": 3, "name": "X", "type": "fixed[4]"}]);
        let said = faults(&with_type(json!({"type": "struct", "fields": fields})));
        assert!(said.contains("column a.X differs") && said.contains("column a.X is fixed[4]"), "{said}");
    }

    #[test]
    fn an_empty_table_says_so() {
        let mut text = with_type(json!("int"));
        text["current-snapshot-id"] = Value::Null;
        assert!(faults(&text).contains("-1"));
    }

    /// Readers such as Athena know version 2 only (`maintenance.md` M-13).
    #[test]
    fn another_format_version_is_told() {
        let mut text = with_type(json!("int"));
        text["format-version"] = json!(3);
        assert!(faults(&text).contains("format version 3 instead of 2"));
    }

    #[test]
    fn metadata_files_have_the_name_that_every_engine_parses() {
        let id = "2cd22b57-5127-4198-92ba-e4e67c79821b";
        for right in ["00000", "00012", "123456"] {
            assert!(is_file_name(&format!("file:///w/t/metadata/{right}-{id}.metadata.json")), "{right}");
        }
        for wrong in [format!("0-{id}.metadata.json"), "00000-x.metadata.json".into(), format!("00000-{id}.json")] {
            assert!(!is_file_name(&wrong), "{wrong}");
        }
    }
}
