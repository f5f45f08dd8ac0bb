//! `verify`: source against mirror. The comparison is the source crate's; here is what is asked and how it is told.

use lakehouse_core::verify::{TableVerdict, VerifyOptions, VerifyReport};

use super::Context;
use crate::answer;
use crate::cli::Verify;
use crate::config::{Config, PipelineConfig};
use crate::failure::{Exit, Failure};
use crate::lake::Lake;
use crate::operate;

pub(super) async fn run(context: &Context, arguments: &Verify) -> Result<Exit, Failure> {
    let (name, config) = pipeline(&context.config, arguments)?;
    let source = config.source(name)?;
    let lake = Lake::open(&context.config).await?;
    if !arguments.tables.is_empty() {
        operate::verify::mirrors(&lake, name, config, &arguments.tables).await?;
    }
    let options = VerifyOptions {
        tables: arguments.tables.iter().map(ToString::to_string).collect(),
        cut: arguments.cut,
        show_keys: arguments.show_keys,
    };
    let report = source.verify(lake.environment(name, config), options).await?;
    match context.json {
        true => answer::json(&report)?,
        false => print(&report)?,
    }
    Ok(if report.verdict == "equal" { Exit::Done } else { Exit::Different })
}

/// The named pipeline, or the one whose namespace the tables are in, or the only one.
fn pipeline<'a>(config: &'a Config, arguments: &'a Verify) -> Result<(&'a str, &'a PipelineConfig), Failure> {
    if let (None, [table, ..]) = (&arguments.pipeline, &arguments.tables[..]) {
        let mut owners = config.pipelines.iter().filter(|(_, pipeline)| pipeline.namespace == table.namespace);
        if let (Some((name, pipeline)), None) = (owners.next(), owners.next()) {
            return Ok((name, pipeline));
        }
    }
    config.choose_one(arguments.pipeline.as_deref())
}

fn print(report: &VerifyReport) -> Result<(), Failure> {
    let row = |table: &TableVerdict| {
        [
            table.table.clone(),
            table.verdict.to_owned(),
            table.source_rows.to_string(),
            table.mirror_rows.to_string(),
            table.only_in_source.to_string(),
            table.only_in_mirror.to_string(),
            table.differing.to_string(),
        ]
    };
    let rows: Vec<_> = report.tables.iter().map(row).collect();
    let headers = ["TABLE", "VERDICT", "SOURCE ROWS", "MIRROR ROWS", "ONLY IN SOURCE", "ONLY IN MIRROR", "DIFFERING"];
    answer::table(headers, &rows)?;
    for (table, count) in report.tables.iter().filter_map(|table| Some((table, table.quarantined?))) {
        answer::line(&format!("{}: rows of the source in {}_quarantine: {count}", table.table, table.table))?;
    }
    answer::line(&format!("verdict: {} at {}, against the {}", report.verdict, report.position, report.against))
}
