//! What a caller over HTTP may do: a role, and the tables that it is for.

use lakehouse_core::schema::TableName;
use serde::Serialize;
use utoipa::ToSchema;

use super::layers::Section;
use crate::failure::Failure;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Grant {
    pub(crate) role: Role,
    pub(crate) tables: Scope,
}

/// Each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Reader,
    Operator,
    Admin,
}

const ROLES: [(&str, Role); 3] = [("reader", Role::Reader), ("operator", Role::Operator), ("admin", Role::Admin)];

/// Tables, by patterns `namespace.table` in which either half may be `*`.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Scope(Vec<String>);

impl Scope {
    pub(crate) fn everything() -> Self {
        Self(vec!["*.*".to_owned()])
    }

    /// The tables of any of these.
    pub(crate) fn of_any(scopes: impl IntoIterator<Item = Self>) -> Self {
        Self(scopes.into_iter().flat_map(|scope| scope.0).collect())
    }

    /// Every table that there is or will be.
    pub(crate) fn holds_everything(&self) -> bool {
        self.0.iter().any(|pattern| pattern == "*.*")
    }

    /// Every table that a namespace has or will have.
    pub(crate) fn holds_all_of(&self, namespace: &str) -> bool {
        let mut patterns = self.0.iter().filter_map(|pattern| pattern.split_once('.'));
        patterns.any(|(of, name)| name == "*" && (of == "*" || of == namespace))
    }

    pub(crate) fn holds(&self, table: &TableName) -> bool {
        let fits = |pattern: &str, name: &str| pattern == "*" || pattern == name;
        self.0
            .iter()
            .filter_map(|pattern| pattern.split_once('.'))
            .any(|(namespace, name)| fits(namespace, &table.namespace) && fits(name, &table.name))
    }
}

/// The keys `role` and `tables` of a section that has others, too.
pub(super) fn grant(section: &Section<'_>) -> Result<Grant, Failure> {
    let role = section.word("role", &ROLES)?.ok_or_else(|| section.missing("role"))?;
    let tables = section.list("tables")?.map_or_else(Scope::everything, Scope);
    let halves =
        |pattern: &String| pattern.split_once('.').is_some_and(|(left, right)| !left.is_empty() && !right.is_empty());
    match tables.0.iter().find(|pattern| !halves(pattern)) {
        None => Ok(Grant { role, tables }),
        Some(wrong) => {
            let message = format!("{wrong:?} names no table");
            Err(section.invalid("tables", message, "write namespace.table; * stands for all of either"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_holds_the_tables_of_its_patterns() {
        let scope = Scope(vec!["app.*".to_owned(), "shop.orders".to_owned()]);
        for (namespace, name, held) in
            [("app", "x", true), ("shop", "orders", true), ("shop", "order", false), ("ap", "x", false)]
        {
            assert_eq!(scope.holds(&TableName::new(namespace, name)), held, "{namespace}.{name}");
        }
        for (namespace, held) in [("app", true), ("shop", false), ("ap", false)] {
            assert_eq!(scope.holds_all_of(namespace), held, "{namespace}");
        }
        assert!(Scope::everything().holds(&TableName::new("a", "b")));
        assert!(Scope::everything().holds_everything() && !scope.holds_everything());
        assert!(Scope::everything().holds_all_of("a") && !Scope(vec!["*.a".to_owned()]).holds_all_of("a"));
        assert!(!Scope(Vec::new()).holds(&TableName::new("a", "b")));
        let both = Scope::of_any([scope, Scope(vec!["ap.x".to_owned()])]);
        assert!(both.holds(&TableName::new("shop", "orders")) && both.holds(&TableName::new("ap", "x")));
    }
}
