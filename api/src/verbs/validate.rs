//! `validate`: everything that can be known before a start, each finding with the statement that mends it; and the
//! configuration as it counts, all layers together. Writes nothing.

use lakehouse_core::error::Problem;
use lakehouse_core::finding::{Finding, Severity};
use serde::Serialize;

use super::Context;
use crate::answer;
use crate::config::{Config, PipelineConfig};
use crate::failure::{Exit, Failure};
use crate::lake::Lake;

#[derive(Serialize)]
struct Answer<'a> {
    verdict: &'static str,
    findings: &'a [Found],
    configuration: &'a Config,
}

/// A finding, and whose.
#[derive(Serialize)]
struct Found {
    pipeline: Option<String>,
    code: &'static str,
    severity: Severity,
    subject: String,
    message: String,
    /// What mends it: for the source the exact statement.
    fix: Option<String>,
}

impl Found {
    fn of(pipeline: &str, finding: Finding) -> Self {
        let Finding { code, severity, subject, message, fix } = finding;
        Self { pipeline: Some(pipeline.to_owned()), code, severity, subject, message, fix }
    }

    fn problem(pipeline: Option<&str>, problem: Problem) -> Self {
        let Problem { code, subject, message, remedy, .. } = problem;
        let pipeline = pipeline.map(str::to_owned);
        Self { pipeline, code, severity: Severity::Error, subject, message, fix: Some(remedy) }
    }
}

pub(super) async fn run(context: &Context, wanted: &[String]) -> Result<Exit, Failure> {
    let config = &context.config;
    let mut findings = Vec::new();
    let lake = Lake::open_if_there(config).await;
    let lake = lake.unwrap_or_else(|failure| {
        findings.push(Found::problem(None, failure.problem));
        None
    });
    for (name, pipeline) in config.choose(wanted)? {
        findings.extend(source(name, pipeline, lake.as_ref()).await);
    }
    let valid = !findings.iter().any(|finding| finding.severity == Severity::Error);
    let verdict = if valid { "valid" } else { "invalid" };
    match context.json {
        true => answer::json(&Answer { verdict, findings: &findings, configuration: config })?,
        false => print(config, &findings, verdict)?,
    }
    Ok(if valid { Exit::Done } else { Exit::Usage })
}

async fn source(name: &str, pipeline: &PipelineConfig, lake: Option<&Lake>) -> Vec<Found> {
    let found = match pipeline.source(name) {
        Ok(source) => source.validate(lake.map(|lake| &*lake.catalog)).await,
        Err(failure) => Err(failure.problem),
    };
    match found {
        Ok(findings) => findings.into_iter().map(|finding| Found::of(name, finding)).collect(),
        Err(problem) => vec![Found::problem(Some(name), problem)],
    }
}

fn print(config: &Config, findings: &[Found], verdict: &str) -> Result<(), Failure> {
    let text = toml::to_string_pretty(config).expect("a configuration is plain data");
    answer::line(&format!("# the configuration as it counts\n{text}"))?;
    for Found { pipeline, code, severity, subject, message, fix } in findings {
        let severity = match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let place = pipeline.as_ref().map(|pipeline| format!("{pipeline}: ")).unwrap_or_default();
        answer::line(&format!("{severity} {code}: {message}\n  at: {place}{subject}"))?;
        if let Some(fix) = fix {
            answer::line(&format!("  do: {fix}"))?;
        }
    }
    answer::line(&format!("verdict: {verdict}"))
}
