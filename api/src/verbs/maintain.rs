//! `maintain`: what is due for tables is done, once or until a signal; with `--dry-run` it is only said.

use indicatif::HumanBytes;
use lakehouse_core::schema::TableName;
use maintenance::plan::Reason;
use maintenance::run::{Outcome, PlannedRewrite, TablePlan};
use serde::Serialize;

use super::Context;
use crate::answer;
use crate::cli::Maintain;
use crate::failure::{Exit, Failure};
use crate::lake::Lake;
use crate::roles;
use crate::upkeep::{TableReport, Upkeep, When};

#[derive(Serialize)]
struct Answer {
    tables: Vec<TableReport>,
}

pub(super) async fn run(context: &Context, arguments: &Maintain) -> Result<Exit, Failure> {
    let Maintain { once, tables, dry_run } = arguments;
    if !once && !dry_run {
        return roles::maintain::maintain(&context.config, tables).await;
    }
    let mut upkeep = open(context, tables).await?;
    let reports = match dry_run {
        true => upkeep.plans().await?,
        false => upkeep.pass(When::Now).await?,
    };
    let exit = exit(&reports);
    match context.json {
        true => answer::json(&Answer { tables: reports })?,
        false => print(&reports)?,
    }
    Ok(exit)
}

async fn open(context: &Context, tables: &[TableName]) -> Result<Upkeep, Failure> {
    Upkeep::open(&context.config.maintenance, Lake::open(&context.config).await?, tables).await
}

/// A job that somebody else has switched is worse than a table that failed.
fn exit(reports: &[TableReport]) -> Exit {
    match (reports.iter().any(TableReport::has_drifted), reports.iter().any(|report| report.problem.is_some())) {
        (true, _) => Exit::Halted,
        (false, true) => Exit::Failed,
        (false, false) => Exit::Done,
    }
}

/// What is touched, one line a thing; and why there is no more to say, where there is not.
fn print(reports: &[TableReport]) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for report in reports {
        let mut row = |step: &str, what: String| rows.push([report.table.clone(), step.to_owned(), what]);
        if let Some(run) = &report.run {
            match &run.done {
                Some(done) => outcome(&run.plan, &done.outcome, &mut row),
                None => plan(&run.plan, &mut row),
            }
        }
        for rewrite in &report.foreign {
            let (inputs, outputs, id) = (rewrite.input_files, rewrite.output_files, &rewrite.snapshot_id);
            row("compaction", format!("another engine made {outputs} files of {inputs}, snapshot {id}"));
        }
        if let Some(spark) = &report.spark {
            let step = if spark.submitted { "run by Spark" } else { "for Spark" };
            spark.statements.iter().for_each(|statement| row(step, format!("{statement};")));
        }
        if let Some(problem) = &report.problem {
            row("failed", format!("{}: {}", problem.code, problem.message));
        }
    }
    match rows.is_empty() {
        true => answer::line("nothing is to be done")?,
        false => answer::table(["TABLE", "STEP", "WHAT"], &rows)?,
    }
    for problem in reports.iter().filter_map(|report| report.problem.clone()) {
        Failure::from(problem).print(false);
    }
    Ok(())
}

fn plan(plan: &TablePlan, row: &mut impl FnMut(&str, String)) {
    for rewrite in &plan.rewrites {
        row("compaction", planned(rewrite));
        rewrite.files.iter().for_each(|file| row("", format!("rewrites {file}")));
        rewrite.delete_files.iter().for_each(|file| row("", format!("applies {file}")));
    }
    plan.equality_deletes
        .iter()
        .for_each(|file| row("compaction", format!("turns {file} into position deletes, and the rest waits for it")));
    plan.dangling_deletes.iter().for_each(|file| row("compaction", format!("drops {file}, which has no data file")));
    if plan.merged_manifests > 0 {
        row("compaction", format!("merges manifests: {} fewer", plan.merged_manifests));
    }
    let (expiry, orphans) = (&plan.expiry, &plan.orphans);
    if !expiry.expired.is_empty() {
        row("expiry", format!("{} snapshots leave", expiry.expired.len()));
        expiry.expired.iter().for_each(|id| row("", format!("expires snapshot {id}")));
    }
    expiry.tagged.iter().for_each(|(name, id)| row("expiry", format!("tags snapshot {id} as {name}")));
    expiry.untagged.iter().for_each(|name| row("expiry", format!("removes tag {name}")));
    if !orphans.removable.is_empty() {
        let bytes: u64 = orphans.removable.iter().map(|orphan| orphan.bytes).sum();
        row("cleaning", format!("{} files that nothing needs, {}", orphans.removable.len(), HumanBytes(bytes)));
        orphans.removable.iter().for_each(|orphan| row("", format!("removes {}", orphan.location)));
    }
    if let Some(why) = orphans.refused {
        row("cleaning", format!("nothing is removed: {why}"));
    }
}

fn planned(rewrite: &PlannedRewrite) -> String {
    let PlannedRewrite { reason, files, bytes, rows, deleted_rows, expected_files, .. } = rewrite;
    format!(
        "{}: {} files, {}, {rows} rows stay and {deleted_rows} go, about {expected_files} files come of it",
        reason.as_str(),
        files.len(),
        HumanBytes(*bytes)
    )
}

fn outcome(plan: &TablePlan, outcome: &Outcome, row: &mut impl FnMut(&str, String)) {
    let moved = "the table has moved since; the next run plans anew";
    match outcome.expired {
        Some(true) => {
            let expiry = &plan.expiry;
            let (gone, come, left) = (expiry.expired.len(), expiry.tagged.len(), expiry.untagged.len());
            row("expiry", format!("{gone} snapshots have left; {come} tags made, {left} removed"));
        }
        Some(false) => row("expiry", moved.to_owned()),
        None => {}
    }
    for rewrite in &outcome.rewrites {
        let what = match (rewrite.snapshot_id, rewrite.overtaken) {
            (Some(id), _) => format!(
                "{} files, {}, became {}, {}, in {:.1} s; snapshot {id}, attempt {}, {} deletes forwarded",
                rewrite.input_files,
                HumanBytes(rewrite.input_bytes),
                rewrite.output_files,
                HumanBytes(rewrite.output_bytes),
                rewrite.seconds,
                rewrite.attempts,
                rewrite.forwarded
            ),
            (None, why) => format!("overtaken: {}", why.unwrap_or(moved)),
        };
        row("compaction", what);
    }
    let of_groups = |reason: Reason| matches!(reason, Reason::SmallFiles | Reason::DeletedRows | Reason::ReadCost);
    let files = outcome.rewrites.iter().filter(|rewrite| of_groups(rewrite.reason)).count();
    let left = plan.rewrites.len().saturating_sub(files);
    if left > 0 {
        row("compaction", format!("{left} groups wait for the budget of the next hour"));
    }
    if outcome.removed_files > 0 {
        let bytes = HumanBytes(outcome.removed_bytes);
        row("cleaning", format!("{} files that nothing needs are removed, {bytes}", outcome.removed_files));
    }
}
