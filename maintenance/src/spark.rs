//! The statements by which Spark does what was planned. Pure.
//!
//! Iceberg's procedures choose files by measures, not by names, so they are given ours. Snapshots are named one by one: a
//! procedure that expires by age knows nothing of the cuts that name some of them (`maintenance.md` M-6).

use std::time::Duration;

use chrono::DateTime;
use lakehouse_core::schema::TableName;

use crate::health::TableHealth;
use crate::plan::{Order, Reason};
use crate::run::{Settings, TablePlan};

/// Snapshots that one statement names.
const SNAPSHOTS_AT_ONCE: usize = 1_000;

/// What Spark is to run for a table, in this order. `plan` is made with the duties that Spark has, and no others; `catalog`
/// is what Spark calls the catalog, `now` is in milliseconds since 1970.
pub fn statements(
    catalog: &str,
    table: &TableName,
    plan: &TablePlan,
    health: &TableHealth,
    settings: &Settings,
    now: i64,
) -> Vec<String> {
    let call =
        Call { catalog: quoted(catalog), table: format!("{}.{}", quoted(&table.namespace), quoted(&table.name)) };
    let mut statements = Vec::new();
    if settings.compact {
        statements.extend(call.rewrite_data_files(plan, settings));
        statements.extend(call.rewrite_position_delete_files(health));
    }
    if settings.expire {
        statements.extend(plan.expiry.expired.chunks(SNAPSHOTS_AT_ONCE).map(|ids| call.expire_snapshots(ids)));
    }
    if settings.clean && !plan.orphans.removable.is_empty() {
        statements.push(call.remove_orphan_files(settings.orphan_age, now));
    }
    statements
}

struct Call {
    catalog: String,
    table: String,
}

impl Call {
    fn rewrite_data_files(&self, plan: &TablePlan, settings: &Settings) -> Option<String> {
        if plan.rewrites.is_empty() {
            return None;
        }
        let small = plan.rewrites.iter().filter(|rewrite| rewrite.reason == Reason::SmallFiles);
        // The smallest group that is to be merged, or Spark would leave it alone.
        let least = small.map(|rewrite| rewrite.files.len()).min().unwrap_or(settings.targets.fan).max(2);
        let options = [
            ("target-file-size-bytes", settings.targets.file_bytes.to_string()),
            ("min-input-files", least.to_string()),
            ("delete-ratio-threshold", settings.targets.deleted_share.to_string()),
            ("partial-progress.enabled", true.to_string()),
            ("remove-dangling-deletes", true.to_string()),
        ];
        let options = options.map(|(key, value)| format!("'{key}', '{value}'")).join(", ");
        let order = order(&settings.targets.order);
        Some(self.call("rewrite_data_files", &format!("{order}options => map({options})")))
    }

    /// Ours are one for a data file; others' may be many, or without effect.
    fn rewrite_position_delete_files(&self, health: &TableHealth) -> Option<String> {
        let useful = health.dangling_deletes > 0 || health.most_deletes_per_file > 1;
        useful.then(|| self.call("rewrite_position_delete_files", "options => map('rewrite-all', 'true')"))
    }

    /// Older than 1970 is nothing: only what is named goes.
    fn expire_snapshots(&self, ids: &[String]) -> String {
        let ids = ids.iter().map(|id| format!("{id}L")).collect::<Vec<_>>().join(", ");
        let arguments = format!("snapshot_ids => array({ids}), older_than => TIMESTAMP '1970-01-01T00:00:00Z'");
        self.call("expire_snapshots", &arguments)
    }

    fn remove_orphan_files(&self, age: Duration, now: i64) -> String {
        let since = now.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        let since = DateTime::from_timestamp_millis(since).unwrap_or_default().format("%Y-%m-%dT%H:%M:%SZ");
        self.call("remove_orphan_files", &format!("older_than => TIMESTAMP '{since}'"))
    }

    fn call(&self, procedure: &str, arguments: &str) -> String {
        format!("CALL {}.system.{procedure}(table => {}, {arguments})", self.catalog, text(&self.table))
    }
}

/// The arguments that make the procedure sort, where rows are not to stay as they are.
fn order(order: &Order) -> String {
    let names = |columns: &[String]| columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", ");
    let by = match order {
        Order::AsWritten => return String::new(),
        Order::Sorted(columns) => names(columns),
        Order::ZOrder(columns) => format!("zorder({})", names(columns)),
    };
    format!("strategy => 'sort', sort_order => {}, ", text(&by))
}

/// A text as SQL takes it.
fn text(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A name as SQL takes it.
fn quoted(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if plain { name.to_owned() } else { format!("`{}`", name.replace('`', "``")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clean::{Orphan, Orphans};
    use crate::plan::Targets;
    use crate::run::{PlannedExpiry, PlannedRewrite};

    const NOW: i64 = 1_700_000_000_000;

    fn rewrite(reason: Reason, files: usize) -> PlannedRewrite {
        PlannedRewrite {
            reason,
            files: vec!["f".to_owned(); files],
            delete_files: Vec::new(),
            bytes: 0,
            rows: 0,
            deleted_rows: 0,
            expected_files: 1,
        }
    }

    fn check(table: &TableName, plan: &TablePlan, health: &TableHealth, settings: &Settings, expected: &[&str]) {
        assert_eq!(statements("lakehouse", table, plan, health, settings, NOW), expected);
    }

    #[test]
    fn each_duty_has_its_procedure_with_our_measures_and_nothing_is_called_for_nothing() {
        let table = TableName::new("app", "orders");
        let (healthy, settings) = (TableHealth::default(), Settings::default());
        check(&table, &TablePlan::default(), &healthy, &settings, &[]);
        let orphan = Orphan { location: "o".to_owned(), bytes: 1, age_seconds: 1 };
        let plan = TablePlan {
            rewrites: vec![
                rewrite(Reason::SmallFiles, 9),
                rewrite(Reason::SmallFiles, 3),
                rewrite(Reason::DeletedRows, 1),
            ],
            expiry: PlannedExpiry { expired: vec!["7".to_owned(), "8".to_owned()], ..PlannedExpiry::default() },
            orphans: Orphans { removable: vec![orphan], ..Orphans::default() },
            ..TablePlan::default()
        };
        let dangling = TableHealth { dangling_deletes: 1, ..TableHealth::default() };
        let compact = "CALL lakehouse.system.rewrite_data_files(table => 'app.orders', options => \
                       map('target-file-size-bytes', '268435456', 'min-input-files', '3', 'delete-ratio-threshold', '0.1', \
                       'partial-progress.enabled', 'true', 'remove-dangling-deletes', 'true'))";
        let deletes = "CALL lakehouse.system.rewrite_position_delete_files(table => 'app.orders', options => \
                       map('rewrite-all', 'true'))";
        let expire = "CALL lakehouse.system.expire_snapshots(table => 'app.orders', snapshot_ids => array(7L, 8L), \
                      older_than => TIMESTAMP '1970-01-01T00:00:00Z')";
        let clean = "CALL lakehouse.system.remove_orphan_files(table => 'app.orders', \
                     older_than => TIMESTAMP '2023-11-07T22:13:20Z')";
        check(&table, &plan, &dangling, &settings, &[compact, deletes, expire, clean]);
        check(&table, &plan, &healthy, &Settings { clean: false, expire: false, ..settings.clone() }, &[compact]);
        check(&table, &plan, &dangling, &Settings { compact: false, ..settings.clone() }, &[expire, clean]);
        let order = Order::ZOrder(vec!["a".to_owned(), "B c".to_owned()]);
        let sorted = Settings {
            targets: Targets { order, ..settings.targets.clone() },
            expire: false,
            clean: false,
            ..settings
        };
        let compact = compact.replace("options", "strategy => 'sort', sort_order => 'zorder(a, `B c`)', options");
        check(&table, &plan, &healthy, &sorted, &[&compact]);
    }

    #[test]
    fn a_name_cannot_end_the_statement() {
        let plan = TablePlan {
            expiry: PlannedExpiry { expired: vec!["7".to_owned()], ..PlannedExpiry::default() },
            ..TablePlan::default()
        };
        let table = TableName::new("App", "it's`x");
        let found = statements("my-lake", &table, &plan, &TableHealth::default(), &Settings::default(), NOW);
        assert!(
            found[0].starts_with(r"CALL `my-lake`.system.expire_snapshots(table => '`App`.`it\'s``x`', "),
            "{found:?}"
        );
    }
}
