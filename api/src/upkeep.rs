//! The upkeep of tables by one process: which tables, whose duty each step is, in what order, and what is kept of it.
//!
//! What a step is and what it must hold is the `maintenance` crate's; how often this is called is `roles/maintain.rs`'s.

mod metrics;
mod pace;
mod scratch;
mod submit;

use std::collections::{BTreeMap, HashSet};

use chrono::Utc;
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::{Maintainer, is_control, runs_table};
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::schema::TableName;
use maintenance::budget::Budgets;
use maintenance::foreign::{ForeignRewrite, rewrites_since};
use maintenance::health::TableHealth;
use maintenance::run::{self, Done, Outcome, Settings, TablePlan, TableRun};
use maintenance::runs::{self, Step};
use maintenance::spark;
use maintenance::view::View;
use serde::Serialize;
use tokio::time::Instant;
use tracing::{error, info, warn};
use utoipa::ToSchema;

use crate::config::{MaintenanceConfig, Owner, Owners};
use crate::failure::Failure;
use crate::lake::{Kind, Lake, kind};
use crate::shapes;
pub(crate) use metrics::Metrics;
use pace::Pace;
use scratch::Scratch;

/// Who owns a duty is not who the configuration says (M-1).
pub(crate) const DRIFT: &str = "MAINTENANCE_OWNER";

/// One process's upkeep, over all its passes.
pub(crate) struct Upkeep {
    config: MaintenanceConfig,
    lake: Lake,
    maintainer: Maintainer,
    scratch: Scratch,
    /// Only these; all, where none is named.
    wanted: Vec<TableName>,
    known: BTreeMap<TableName, LoadedTable>,
    tables: BTreeMap<TableName, Memory>,
    budgets: Budgets,
    own_budgets: BTreeMap<TableName, Budgets>,
    metrics: Metrics,
}

/// What is remembered of a table between two passes.
#[derive(Clone, Debug, Default)]
struct Memory {
    pace: Pace,
    /// The last snapshot that was seen, by its sequence number.
    seen: Option<i64>,
    /// Statements for Spark that were told last.
    told: Vec<String>,
}

/// How often a pass looks at a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// When it is its turn.
    Due,
    /// Now, whatever is remembered of it.
    Now,
}

/// What a pass has come to for one table, or what it would do.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MaintenanceReport)]
pub(crate) struct TableReport {
    pub(crate) table: String,
    pub(crate) owner: Owners,
    #[serde(flatten)]
    #[schema(value_type = shapes::TableRun)]
    pub(crate) run: Option<TableRun>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(crate) spark: Option<SparkReport>,
    /// Files that another engine was seen to replace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<shapes::ForeignRewrite>, required = false)]
    pub(crate) foreign: Vec<ForeignRewrite>,
    /// Why there is no more to say.
    #[serde(flatten)]
    #[schema(value_type = shapes::Told)]
    pub(crate) problem: Option<Problem>,
}

/// What Spark is to do for a table.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SparkReport {
    pub(crate) statements: Vec<String>,
    /// They were run; else they are only told.
    pub(crate) submitted: bool,
}

/// The catalog as a pass begins.
struct Survey {
    tables: Vec<LoadedTable>,
    /// Where every table stands, by name.
    locations: BTreeMap<TableName, String>,
    protected: BTreeMap<String, HashSet<i64>>,
    /// Every table could be read. Else nobody knows whose files lie where, and nothing is removed.
    is_whole: bool,
}

/// A table that was looked at.
struct Looked {
    view: View,
    settings: Settings,
    plan: TablePlan,
    health: TableHealth,
    statements: Vec<String>,
}

impl Upkeep {
    /// # Errors
    /// `TABLE_UNKNOWN` for a table that is not there, or that no pipeline owns.
    pub(crate) async fn open(config: &MaintenanceConfig, lake: Lake, wanted: &[TableName]) -> Result<Self, Failure> {
        for name in wanted {
            check_maintained(&lake.table(name).await?)?;
        }
        let scratch = Scratch::open(&config.local_state)?;
        Ok(Self {
            own_budgets: config.own_budgets().map(|(name, budgets)| (name.clone(), budgets)).collect(),
            budgets: config.budgets(),
            maintainer: Maintainer { storage: lake.storage.with_spool(&scratch.spool())?, ..lake.maintainer() },
            config: config.clone(),
            lake,
            scratch,
            wanted: wanted.to_vec(),
            known: BTreeMap::new(),
            tables: BTreeMap::new(),
            metrics: Metrics::default(),
        })
    }

    /// Counts there what it does, for somebody who shows it.
    pub(crate) fn counting(self, metrics: &Metrics) -> Self {
        Self { metrics: metrics.clone(), ..self }
    }

    /// What a pass would do now. Changes nothing.
    pub(crate) async fn plans(&mut self) -> Result<Vec<TableReport>, Failure> {
        let survey = self.survey().await?;
        let mut reports = Vec::new();
        for table in &survey.tables {
            let looked = self.look(&survey, &table.name, true).await;
            reports.push(match looked {
                Ok(looked) => self.report(looked, None, false),
                Err(problem) => self.refused(&table.name, problem),
            });
        }
        Ok(reports)
    }

    /// Does what is due, table by table; one that fails does not keep the others waiting.
    ///
    /// # Errors
    /// Those of the catalog, before anything was done.
    pub(crate) async fn pass(&mut self, when: When) -> Result<Vec<TableReport>, Failure> {
        let survey = self.survey().await?;
        self.metrics.keep_only(|name| survey.locations.contains_key(name));
        let (mut reports, mut steps) = (Vec::new(), Vec::new());
        for table in &survey.tables {
            let now = Instant::now();
            let quiet_after = self.config.of(&table.name).quiet_after();
            let memory = self.tables.entry(table.name.clone()).or_default();
            if when == When::Due && !memory.pace.is_due(&table.metadata_location, quiet_after, now) {
                continue;
            }
            let (report, done) = self.one(&survey, &table.name, when).await;
            self.metrics.looked(&report, &done, Utc::now().timestamp_millis());
            reports.push(report);
            // The history's own upkeep leaves nothing in it.
            steps.extend(done.into_iter().filter(|_| table.name != runs_table()));
        }
        if let Err(problem) = runs::record(&self.maintainer, steps).await {
            warn!(
                code = problem.code,
                subject = problem.subject,
                reason = problem.message,
                "history of maintenance is not written"
            );
        }
        Ok(reports)
    }

    /// Looks at the whole catalog: a table's files may lie among another's, and any cut may name any snapshot.
    async fn survey(&mut self) -> Result<Survey, Failure> {
        let (mut known, mut is_whole) = (BTreeMap::new(), true);
        for name in self.lake.catalog.list(None).await? {
            match self.lake.catalog.load(&name, self.known.get(&name)).await {
                Ok(Some(table)) => drop(known.insert(name, table)),
                // One that went meanwhile is not there.
                Ok(None) => {}
                Err(problem) if problem.reaction == Reaction::Retry => return Err(problem.into()),
                Err(problem) => {
                    tell(&name, &problem, None);
                    is_whole = false;
                }
            }
        }
        self.known = known;
        let locations = self.known.iter().map(|(name, table)| (name.clone(), table.metadata.location().to_owned()));
        let locations = locations.collect();
        let is_wanted = |table: &&LoadedTable| self.wanted.is_empty() || self.wanted.contains(&table.name);
        let tables = self.known.values().filter(|table| is_maintained(table)).filter(is_wanted).cloned().collect();
        let protected = run::protected(&*self.lake.catalog).await?;
        Ok(Survey { tables, locations, protected, is_whole })
    }

    /// One table, from the first look to the last.
    async fn one(&mut self, survey: &Survey, name: &TableName, when: When) -> (TableReport, Vec<Step>) {
        let (started_at, begun) = (Utc::now().timestamp_millis(), Instant::now());
        let mut steps = Vec::new();
        let done = self.keep_up(survey, name, when, started_at, &mut steps).await;
        let memory = self.tables.entry(name.clone()).or_default();
        let report = match done {
            Ok(report) => {
                let idle = report.is_idle().then(|| survey.metadata_of(name)).flatten();
                memory.pace.went_well(idle, Instant::now());
                report
            }
            Err(problem) => {
                // A job that is switched back is not to be waited for.
                let rest = if problem.code == DRIFT { None } else { memory.pace.failed(Instant::now()) };
                tell(name, &problem, rest);
                steps.push(Step::failed(&name.to_string(), &problem, started_at, begun.elapsed().as_secs_f64()));
                self.refused(name, problem)
            }
        };
        (report, steps)
    }

    async fn keep_up(
        &mut self,
        survey: &Survey,
        name: &TableName,
        when: When,
        started_at: i64,
        steps: &mut Vec<Step>,
    ) -> Result<TableReport, Problem> {
        let now = Instant::now();
        let memory = self.tables.entry(name.clone()).or_default();
        let cleans = when == When::Now || memory.pace.is_cleaning_due(now);
        let looked = self.look(survey, name, cleans).await?;
        if cleans {
            self.tables.entry(name.clone()).or_default().pace.cleaned(now);
        }
        let mut foreign = self.recognise(&looked.view.table, steps);
        let outcome = match looked.plan.is_empty() {
            true => None,
            false => {
                let budgets = self.own_budgets.get_mut(name).unwrap_or(&mut self.budgets);
                let Looked { view, plan, settings, .. } = &looked;
                let mut outcome = Outcome::default();
                let acted = run::act(&self.maintainer, view, plan, settings, budgets, &mut outcome).await;
                steps.extend(Step::of_run(plan, &outcome, started_at));
                acted?;
                Some(outcome)
            }
        };
        let submitted = self.hand_over(name, &looked.statements).await?;
        let after = match outcome.is_some() || submitted {
            true => Some(self.maintainer.load(name, Some(&looked.view.table)).await?),
            false => None,
        };
        if let Some(table) = &after {
            foreign.extend(self.recognise(table, steps));
        }
        let done = match (outcome, after) {
            (Some(outcome), Some(table)) => Some(self.done(outcome, table, &looked.settings).await?),
            _ => None,
        };
        Ok(TableReport { foreign, ..self.report(looked, done, submitted) })
    }

    async fn look(&self, survey: &Survey, name: &TableName, cleans: bool) -> Result<Looked, Problem> {
        let own = self.config.of(name);
        let nothing = HashSet::new();
        let protected = survey.protected.get(&name.to_string()).unwrap_or(&nothing);
        let others: Vec<String> =
            survey.locations.iter().filter(|(other, _)| *other != name).map(|(_, place)| place.clone()).collect();
        let cleans = cleans && survey.is_whole;
        let with = |settings: Settings| Settings { clean: settings.clean && cleans, ..settings };
        let settings = with(own.settings(Owner::Ours));
        let (view, plan) = run::plan(&self.maintainer, name, protected, &others, &settings).await?;
        let now = Utc::now().timestamp_millis();
        let health = TableHealth::of(&view, &settings, now);
        let statements = match own.owner.has(Owner::Spark) {
            true => {
                let settings = with(own.settings(Owner::Spark));
                let (_, plan) = run::plan(&self.maintainer, name, protected, &others, &settings).await?;
                spark::statements(&self.config.spark.catalog, name, &plan, &health, &settings, now)
            }
            false => Vec::new(),
        };
        Ok(Looked { view, settings, plan, health, statements })
    }

    /// Runs Spark's statements, or tells them once where nothing is configured to run them.
    async fn hand_over(&mut self, name: &TableName, statements: &[String]) -> Result<bool, Problem> {
        if statements.is_empty() {
            return Ok(false);
        }
        let config = &self.config.spark;
        if config.command.is_empty() {
            let memory = self.tables.entry(name.clone()).or_default();
            if memory.told != statements {
                statements.iter().for_each(|statement| info!(table = %name, statement, "statement for Spark"));
                memory.told = statements.to_vec();
            }
            return Ok(false);
        }
        submit::submit(config, &self.scratch.statements(), &name.to_string(), statements).await?;
        info!(table = %name, statements = statements.len(), "Spark has run its statements");
        Ok(true)
    }

    /// Rewrites of other engines since the last look; the first look sees none, as nothing says what is new.
    fn recognise(&mut self, table: &LoadedTable, steps: &mut Vec<Step>) -> Vec<ForeignRewrite> {
        let owner = self.config.of(&table.name).owner.compact;
        let memory = self.tables.entry(table.name.clone()).or_default();
        let seen = memory.seen.replace(table.metadata.last_sequence_number());
        let found = seen.map(|seen| rewrites_since(table, seen)).unwrap_or_default();
        for rewrite in &found {
            info!(table = %table.name, snapshot_id = rewrite.snapshot_id, input_files = rewrite.input_files,
                  output_files = rewrite.output_files, owner = owner.as_str(), "another engine has replaced files");
            steps.push(Step::foreign(&table.name.to_string(), owner.as_str(), rewrite));
        }
        found
    }

    async fn done(&self, outcome: Outcome, table: LoadedTable, settings: &Settings) -> Result<Done, Problem> {
        let view = View::of(&self.maintainer.storage, table).await?;
        let after = TableHealth::of(&view, settings, Utc::now().timestamp_millis());
        Ok(Done { outcome, after })
    }

    fn report(&self, looked: Looked, done: Option<Done>, submitted: bool) -> TableReport {
        let Looked { view, plan, health, statements, .. } = looked;
        let owner = self.config.of(view.name()).owner;
        let spark = owner.has(Owner::Spark).then_some(SparkReport { statements, submitted });
        let run = Some(TableRun { plan, before: health, done });
        TableReport { table: view.name().to_string(), owner, run, spark, foreign: Vec::new(), problem: None }
    }

    fn refused(&self, name: &TableName, problem: Problem) -> TableReport {
        let owner = self.config.of(name).owner;
        let (table, problem) = (name.to_string(), Some(problem));
        TableReport { table, owner, run: None, spark: None, foreign: Vec::new(), problem }
    }
}

impl TableReport {
    pub(crate) fn has_drifted(&self) -> bool {
        self.problem.as_ref().is_some_and(|problem| problem.code == DRIFT)
    }

    /// Nothing was to be done.
    fn is_idle(&self) -> bool {
        let planned = self.run.as_ref().is_some_and(|run| !run.plan.is_empty());
        let told = self.spark.as_ref().is_some_and(|spark| !spark.statements.is_empty());
        !planned && !told && self.foreign.is_empty()
    }
}

impl Survey {
    fn metadata_of(&self, name: &TableName) -> Option<String> {
        self.tables.iter().find(|table| table.name == *name).map(|table| table.metadata_location.clone())
    }
}

/// A pipeline's table, or the history of maintenance. What another product has put beside them is its own to keep, and
/// control tables are kept by their workers (protocol C7).
pub(crate) fn is_maintained(table: &LoadedTable) -> bool {
    !is_control(&table.name) && kind(table) != Kind::Other
}

/// # Errors
/// `TABLE_UNKNOWN` for a table that is not maintained.
pub(crate) fn check_maintained(table: &LoadedTable) -> Result<(), Failure> {
    match is_maintained(table) {
        true => Ok(()),
        false => {
            let remedy = "name a mirror or a history; `lakehouse tables` lists them";
            Err(Failure::failed("TABLE_UNKNOWN", table.name.to_string(), "no table of a pipeline", remedy))
        }
    }
}

/// What a person must see of a failure; `rest` is how long the table is left alone after it.
fn tell(name: &TableName, problem: &Problem, rest: Option<std::time::Duration>) {
    let Problem { code, message, remedy, .. } = problem;
    let rest_seconds = rest.map(|rest| rest.as_secs());
    match problem.reaction {
        _ if *code == DRIFT => {
            error!(table = %name, code, reason = message, remedy, "maintenance_owner_drift");
        }
        Reaction::Retry => {
            warn!(table = %name, code, reason = message, rest_seconds, "maintenance of a table has failed")
        }
        Reaction::Halt | Reaction::HaltTable => {
            error!(table = %name, code, reason = message, remedy, rest_seconds, "maintenance of a table has failed");
        }
    }
}
