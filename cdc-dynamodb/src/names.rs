//! Attribute names to column names that Athena and S3 Tables accept. The rule is the core's, the same for every source;
//! where two attributes meet, or a name cannot be had, a person chooses another (D55).

use std::collections::BTreeMap;

use lakehouse_core::error::Problem;
use lakehouse_core::schema::lake_name;

use crate::items::REST;

/// The longest name of a column that Glue takes, in bytes.
const LONGEST: usize = 255;

/// Column names of attributes, each perhaps with a name from the configuration, in their order.
///
/// # Errors
/// `NAME_COLLISION`, `NAME_RESERVED` or `NAME_INVALID`.
pub(crate) fn column_names(table: &str, attributes: &[(&str, Option<&str>)]) -> Result<Vec<String>, Problem> {
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    let mut names = Vec::with_capacity(attributes.len());
    for (attribute, own) in attributes {
        let name = lake_name(own.unwrap_or(attribute));
        let remedy = format!("set columns.{attribute:?}.name = \"…\" for the table");
        let refused = |code, message: String| Err(Problem::halt(code, table, message, &remedy));
        if name == REST || name.starts_with("_cdc_") {
            return refused(
                "NAME_RESERVED",
                format!("attribute {attribute:?} would be column {name:?}, which is reserved"),
            );
        }
        if name.is_empty() || name.len() > LONGEST {
            let message = format!("the name of a column has 1 to {LONGEST} bytes, this attribute's has {}", name.len());
            return refused("NAME_INVALID", message);
        }
        if let Some(other) = seen.insert(name.clone(), attribute) {
            return refused(
                "NAME_COLLISION",
                format!("attributes {other:?} and {attribute:?} meet as column {name:?}"),
            );
        }
        names.push(name);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(attributes: &[(&str, Option<&str>)]) -> Result<Vec<String>, &'static str> {
        column_names("profiles", attributes).map_err(|problem| problem.code)
    }

    #[test]
    fn names_become_what_athena_accepts() {
        let attributes = [("userId", None), ("a.b-c", None), ("Größe", None), ("日本", Some("Japan"))];
        assert_eq!(names(&attributes).unwrap(), ["userid", "a_b_c", "gr__e", "japan"]);
    }

    #[test]
    fn attributes_that_meet_are_refused_until_one_is_renamed() {
        assert_eq!(names(&[("userId", None), ("UserID", None)]), Err("NAME_COLLISION"));
        assert_eq!(names(&[("a.b", None), ("a_b", None)]), Err("NAME_COLLISION"));
        assert_eq!(names(&[("é", None), ("日", None)]), Err("NAME_COLLISION"));
        assert_eq!(names(&[("a", Some("b")), ("b", None)]), Err("NAME_COLLISION"));
        assert_eq!(names(&[("a.b", None), ("a_b", Some("other"))]).unwrap(), ["a_b", "other"]);
    }

    #[test]
    fn names_that_cannot_be_had_are_refused() {
        assert_eq!(names(&[("_rest", None)]), Err("NAME_RESERVED"));
        assert_eq!(names(&[("_CDC_position", None)]), Err("NAME_RESERVED"));
        assert_eq!(names(&[("", None)]), Err("NAME_INVALID"));
        assert_eq!(names(&[(&"x".repeat(256), None)]), Err("NAME_INVALID"));
        assert!(names(&[(&"x".repeat(255), None)]).is_ok());
    }
}
