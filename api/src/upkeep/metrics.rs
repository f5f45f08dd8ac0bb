//! What one process has counted of its upkeep, and what it has last measured of each table: for `/metrics`
//! (`maintenance.md` M-14, M-19). Every name stands in `deploy/docs/maintenance.md`, too.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lakehouse_core::schema::TableName;
use maintenance::health::TableHealth;
use maintenance::runs::Step;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use super::TableReport;

/// Name, help, unit, and what it is of a table's health.
type Measure = (&'static str, &'static str, Option<Unit>, fn(&TableHealth) -> f64);

/// The measures of `lakehouse health`, but for delete files, which have kinds.
const MEASURES: [Measure; 17] = [
    ("table_health_score", "Health, of 100", None, |health| health.score),
    ("table_data_files", "Data files", None, |health| health.data_files as f64),
    ("table_small_files", "Data files below an eighth of the target", None, |health| health.small_files as f64),
    ("table_most_deletes_per_file", "The most delete files of one data file", None, |health| {
        health.most_deletes_per_file as f64
    }),
    ("table_dangling_deletes", "Delete files without a live data file", None, |health| health.dangling_deletes as f64),
    ("table_rows", "Live rows", None, |health| health.rows as f64),
    ("table_deleted_rows", "Deleted rows that still stand in files", None, |health| health.deleted_rows as f64),
    ("table_size", "Size of all files", Some(Unit::Bytes), |health| health.bytes as f64),
    ("table_manifests", "Manifests", None, |health| health.manifests as f64),
    ("table_manifest", "Size of all manifests", Some(Unit::Bytes), |health| health.manifest_bytes as f64),
    ("table_snapshots", "Kept snapshots", None, |health| health.snapshots as f64),
    ("table_metadata", "Size of the metadata file", Some(Unit::Bytes), |health| health.metadata_bytes as f64),
    ("compaction_debt", "What compaction would read now if nothing bounded it", Some(Unit::Bytes), |health| {
        health.debt_bytes as f64
    }),
    ("compaction_age", "Since files were replaced; NaN if no kept snapshot did", Some(Unit::Seconds), |health| {
        health.compaction_age_seconds.map_or(f64::NAN, |seconds| seconds as f64)
    }),
    ("oldest_time_travel", "How far back a table can be read as of any time", Some(Unit::Seconds), |health| {
        health.time_travel_seconds as f64
    }),
    ("promised_time_travel", "How far back the configuration wants it", Some(Unit::Seconds), |health| {
        health.promised_time_travel_seconds as f64
    }),
    ("time_travel_kept", "1 while that holds, else 0", None, |health| f64::from(u8::from(health.time_travel_kept))),
];

/// Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    healths: Healths,
    steps: Family<Ended, Counter>,
    stranded_files: Family<Table, Counter>,
    stranded_bytes: Family<Table, Counter>,
    last_success: Family<Table, Gauge>,
    drift: Family<Table, Gauge>,
}

/// All tables by name, as they were last measured: none where that has failed since, as old measures would be taken for
/// good ones.
#[derive(Clone, Debug, Default)]
struct Healths(Arc<Mutex<BTreeMap<String, Option<TableHealth>>>>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Table {
    table: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeleteFiles {
    table: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    op: &'static str,
    result: String,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.healths.clone()));
        registry.register("maintenance_runs", "Steps of maintenance, by what came of them", self.steps.clone());
        let help = "Files that a rewrite wrote and that nothing names";
        registry.register("maintenance_stranded_files", help, self.stranded_files.clone());
        let help = "Their size";
        registry.register_with_unit("maintenance_stranded", help, Unit::Bytes, self.stranded_bytes.clone());
        let help = "When a look at a table last went well";
        let (name, last_success) = ("maintenance_last_success_timestamp", self.last_success.clone());
        registry.register_with_unit(name, help, Unit::Seconds, last_success);
        let help = "1 while another one does what the configuration gives to somebody else";
        registry.register("maintenance_owner_drift", help, self.drift.clone());
    }

    /// A look at a table at `now`, in milliseconds since 1970, and the steps that were done.
    pub(super) fn looked(&self, report: &TableReport, steps: &[Step], now: i64) {
        for step in steps {
            let (op, result) = (step.operation.as_str(), step.result.clone());
            self.steps.get_or_create(&Ended { op, result }).inc();
            let (files, bytes) = (step.stranded_files.unwrap_or(0), step.stranded_bytes.unwrap_or(0));
            if files > 0 {
                let table = Table { table: step.table.clone() };
                self.stranded_files.get_or_create(&table).inc_by(files);
                self.stranded_bytes.get_or_create(&table).inc_by(bytes);
            }
        }
        let table = Table { table: report.table.clone() };
        self.drift.get_or_create(&table).set(report.has_drifted().into());
        if report.problem.is_none() {
            self.last_success.get_or_create(&table).set(now / 1_000);
        }
        let health = report.run.as_ref().map(|run| run.done.as_ref().map_or(&run.before, |done| &done.after));
        self.healths.lock().insert(table.table, health.cloned());
    }

    /// Forgets tables that are not there any more.
    pub(super) fn keep_only(&self, is_there: impl Fn(&TableName) -> bool) {
        self.healths.lock().retain(|table, _| {
            let stays = table.parse::<TableName>().is_ok_and(|name| is_there(&name));
            if !stays {
                let table = Table { table: table.clone() };
                self.drift.remove(&table);
                self.last_success.remove(&table);
            }
            stays
        });
    }
}

impl Healths {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Option<TableHealth>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Healths {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let healths = self.lock();
        let healths: Vec<_> =
            healths.iter().filter_map(|(table, health)| Some((table.clone(), health.as_ref()?))).collect();
        if healths.is_empty() {
            return Ok(());
        }
        for (name, help, unit, of) in MEASURES {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for (table, health) in &healths {
                let table = Table { table: table.clone() };
                ConstGauge::new(of(health)).encode(family.encode_family(&table)?)?;
            }
        }
        let help = "Delete files, by kind";
        let mut family = encoder.encode_descriptor("table_delete_files", help, None, MetricType::Gauge)?;
        for (table, health) in &healths {
            for (kind, files) in [("position", health.delete_files), ("equality", health.equality_delete_files)] {
                let labels = DeleteFiles { table: table.clone(), kind };
                ConstGauge::new(files).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lakehouse_core::error::Problem;
    use maintenance::plan::Reason;
    use maintenance::run::{Done, Outcome, RewriteOutcome, TablePlan, TableRun};
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::config::{Owner, Owners};

    const PAGE: &str = include_str!("../../../deploy/docs/maintenance.md");
    const NOW: i64 = 1_700_000_000_999;

    fn report(run: Option<TableRun>, problem: Option<Problem>) -> TableReport {
        let owner = Owners { compact: Owner::Ours, expire: Owner::Ours, clean: Owner::Ours };
        TableReport { table: "app.orders".to_owned(), owner, run, spark: None, foreign: Vec::new(), problem }
    }

    /// A rewrite that was overtaken, and how the table stands behind it: each measure has a number of its own.
    fn overtaken() -> (TableReport, Vec<Step>) {
        let mut plan = TablePlan::default();
        plan.table = "app.orders".to_owned();
        let rewrite = RewriteOutcome {
            reason: Reason::SmallFiles,
            snapshot_id: None,
            overtaken: Some("a file is gone"),
            input_files: 8,
            input_bytes: 900,
            output_files: 2,
            output_bytes: 700,
            rows: 70,
            attempts: 0,
            forwarded: 0,
            stranded: vec!["a".to_owned(), "b".to_owned()],
            seconds: 0.5,
        };
        let outcome = Outcome { rewrites: vec![rewrite], ..Outcome::default() };
        let steps = Step::of_run(&plan, &outcome, NOW);
        let after = TableHealth {
            score: 81.5,
            data_files: 1,
            small_files: 2,
            delete_files: 3,
            equality_delete_files: 4,
            most_deletes_per_file: 5,
            dangling_deletes: 6,
            rows: 7,
            deleted_rows: 8,
            bytes: 9,
            manifests: 10,
            manifest_bytes: 11,
            snapshots: 12,
            metadata_bytes: 13,
            debt_bytes: 14,
            compaction_age_seconds: Some(15),
            time_travel_seconds: 16,
            promised_time_travel_seconds: 17,
            time_travel_kept: true,
        };
        let run = TableRun { plan, before: TableHealth::default(), done: Some(Done { outcome, after }) };
        (report(Some(run), None), steps)
    }

    fn text(metrics: &Metrics) -> String {
        let mut registry = Registry::with_prefix("lakehouse");
        metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).expect("a string takes everything");
        text
    }

    fn samples(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.starts_with('#')).collect()
    }

    #[test]
    fn every_measure_of_a_table_has_its_metric() {
        let metrics = Metrics::default();
        let (report, steps) = overtaken();
        metrics.looked(&report, &steps, NOW);
        let golden = r#"
lakehouse_table_health_score{table="app.orders"} 81.5
lakehouse_table_data_files{table="app.orders"} 1.0
lakehouse_table_small_files{table="app.orders"} 2.0
lakehouse_table_most_deletes_per_file{table="app.orders"} 5.0
lakehouse_table_dangling_deletes{table="app.orders"} 6.0
lakehouse_table_rows{table="app.orders"} 7.0
lakehouse_table_deleted_rows{table="app.orders"} 8.0
lakehouse_table_size_bytes{table="app.orders"} 9.0
lakehouse_table_manifests{table="app.orders"} 10.0
lakehouse_table_manifest_bytes{table="app.orders"} 11.0
lakehouse_table_snapshots{table="app.orders"} 12.0
lakehouse_table_metadata_bytes{table="app.orders"} 13.0
lakehouse_compaction_debt_bytes{table="app.orders"} 14.0
lakehouse_compaction_age_seconds{table="app.orders"} 15.0
lakehouse_oldest_time_travel_seconds{table="app.orders"} 16.0
lakehouse_promised_time_travel_seconds{table="app.orders"} 17.0
lakehouse_time_travel_kept{table="app.orders"} 1.0
lakehouse_table_delete_files{table="app.orders",kind="position"} 3
lakehouse_table_delete_files{table="app.orders",kind="equality"} 4
lakehouse_maintenance_runs_total{op="compaction",result="overtaken"} 1
lakehouse_maintenance_stranded_files_total{table="app.orders"} 2
lakehouse_maintenance_stranded_bytes_total{table="app.orders"} 700
lakehouse_maintenance_last_success_timestamp_seconds{table="app.orders"} 1700000000
lakehouse_maintenance_owner_drift{table="app.orders"} 0
"#;
        // The collector may come before the rest or behind it.
        let found = text(&metrics);
        let sorted = |text: &str| -> BTreeSet<String> { samples(text.trim()).into_iter().map(str::to_owned).collect() };
        assert_eq!(sorted(&found), sorted(golden));
    }

    #[test]
    fn what_fails_or_goes_has_no_measures_and_a_drift_is_seen() {
        let metrics = Metrics::default();
        let (good, steps) = overtaken();
        metrics.looked(&good, &steps, NOW);
        let drift = Problem::halt(super::super::DRIFT, "app.orders", "a job is on", "switch it off");
        let failed = Step::failed("app.orders", &drift, NOW, 0.1);
        metrics.looked(&report(None, Some(drift)), &[failed], NOW + 60_000);
        let found = text(&metrics);
        assert!(!found.contains("lakehouse_table_"), "{found}");
        for line in [
            "lakehouse_maintenance_owner_drift{table=\"app.orders\"} 1",
            "lakehouse_maintenance_last_success_timestamp_seconds{table=\"app.orders\"} 1700000000",
            "lakehouse_maintenance_runs_total{op=\"planning\",result=\"MAINTENANCE_OWNER\"} 1",
        ] {
            assert!(samples(&found).contains(&line), "{line}: {found}");
        }
        metrics.looked(&good, &[], NOW);
        metrics.keep_only(|name| name.to_string() == "app.orders");
        assert!(text(&metrics).contains("lakehouse_table_rows{"));
        metrics.keep_only(|_| false);
        let found = text(&metrics);
        let gone = ["lakehouse_table_", "lakehouse_maintenance_owner_drift{", "last_success_timestamp_seconds{"];
        assert!(gone.iter().all(|name| !found.contains(name)), "{found}");
    }

    #[test]
    fn the_page_names_the_metrics_that_there_are() {
        let metrics = Metrics::default();
        let (report, steps) = overtaken();
        metrics.looked(&report, &steps, NOW);
        let found = text(&metrics);
        let name = |sample: &str| sample.split('{').next().unwrap_or_default().to_owned();
        let found: BTreeSet<String> = samples(&found).into_iter().map(name).collect();
        let named = PAGE.split('`').filter(|code| code.starts_with("lakehouse_") && !code.contains('.'));
        let named: BTreeSet<String> = named.map(name).collect();
        assert_eq!(named, found);
    }
}
