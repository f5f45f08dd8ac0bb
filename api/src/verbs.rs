//! What each verb does, one file a verb. They read the configuration and the lake, and answer on standard output.

mod audit;
mod completions;
mod confirm;
mod diff;
mod fsck;
pub(crate) mod health;
mod maintain;
mod openapi;
mod operations;
mod pause;
mod quarantine;
mod release;
mod resync;
mod rollback;
mod rows;
pub(crate) mod snapshots;
pub(crate) mod status;
pub(crate) mod tables;
mod tag;
mod validate;
mod verify;
mod version;
mod wait;

use serde_json::Value;
use uuid::Uuid;

use crate::audit::{Act, Audit, Intent, Via};
use crate::cli::{self, AuditVerify, Cli, Verb};
use crate::config::{Config, Sources};
use crate::failure::{Exit, Failure};
use crate::roles;

/// What every verb but the simplest stands on.
pub(crate) struct Context {
    pub(crate) config: Config,
    /// Answer with one JSON document.
    pub(crate) json: bool,
}

impl Context {
    /// Writes down what an operator's verb is going to change; before it does, and after a person has said yes.
    ///
    /// # Errors
    /// `AUDIT_UNWRITABLE`, `AUDIT_DAMAGED`: then it changes nothing.
    async fn intent(
        &self,
        action: &'static str,
        subject: &str,
        reason: Option<&str>,
        detail: Value,
    ) -> Result<Intent, Failure> {
        let act = Act {
            action,
            principal: confirm::asker(),
            subject: subject.to_owned(),
            request_id: Uuid::now_v7().to_string(),
            reason: reason.map(str::to_owned),
            detail,
        };
        Audit::new(self.config.audit.as_ref(), Via::CommandLine).intent(act).await
    }
}

impl Verb {
    /// True for verbs that run until they are stopped.
    pub(crate) fn is_role(&self) -> bool {
        match self {
            Self::Run | Self::Replicate { .. } | Self::Serve => true,
            Self::Maintain(arguments) => !arguments.once && !arguments.dry_run,
            _ => false,
        }
    }
}

pub(crate) async fn run(cli: Cli) -> Result<Exit, Failure> {
    match &cli.verb {
        Verb::Version => return version::run(cli.json),
        Verb::Completions { shell } => return completions::run(*shell),
        Verb::Openapi => return openapi::run(),
        // A copy is checked far from the host, where there is no configuration.
        Verb::Audit(cli::Audit::Verify(arguments @ AuditVerify { file: Some(file), .. })) => {
            return audit::verify(file, arguments, cli.json);
        }
        _ => {}
    }
    // A name or value that is not UTF-8 overrides nothing of ours.
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    let environment: Vec<(String, String)> = std::env::vars_os().filter_map(text).collect();
    let sources = Sources { file: &cli.config, environment: &environment, flags: &cli.set };
    let context = Context { config: Config::load(&sources)?, json: cli.json };
    match cli.verb {
        Verb::Run => roles::run(&context.config).await,
        Verb::Replicate { pipelines } => roles::replicate(&context.config, &pipelines).await,
        Verb::Maintain(arguments) => maintain::run(&context, &arguments).await,
        Verb::Serve => roles::serve(&context.config).await,
        Verb::Validate { pipelines } => validate::run(&context, &pipelines).await,
        Verb::Status { pipelines } => status::run(&context, &pipelines).await,
        Verb::Wait(arguments) => wait::run(&context, &arguments).await,
        Verb::Tables => tables::run(&context).await,
        Verb::Snapshots { table } => snapshots::run(&context, &table).await,
        Verb::Rows(arguments) => rows::run(&context, arguments).await,
        Verb::Diff(arguments) => diff::run(&context, arguments).await,
        Verb::Verify(arguments) => verify::run(&context, &arguments).await,
        Verb::Fsck { tables } => fsck::run(&context, &tables).await,
        Verb::Health { table, unreferenced } => health::run(&context, table.as_ref(), unreferenced).await,
        Verb::Quarantine(arguments) => quarantine::run(&context, &arguments).await,
        Verb::Resync(arguments) => resync::run(&context, &arguments).await,
        Verb::Rollback(arguments) => rollback::run(&context, &arguments).await,
        Verb::Undo(arguments) => release::undo(&context, &arguments, "undo").await,
        Verb::Abort(arguments) => release::undo(&context, &arguments, "abort").await,
        Verb::Replay(arguments) => release::replay(&context, &arguments).await,
        Verb::Accept(arguments) => release::accept(&context, &arguments).await,
        Verb::Tag(arguments) => tag::tag(&context, &arguments).await,
        Verb::Protect(arguments) => tag::protect(&context, &arguments).await,
        Verb::Operations(arguments) => operations::run(&context, &arguments).await,
        Verb::Pause(arguments) => pause::pause(&context, &arguments).await,
        Verb::Resume(arguments) => pause::resume(&context, &arguments).await,
        Verb::Audit(cli::Audit::Verify(arguments)) => audit::verify_configured(&context, &arguments),
        Verb::Version | Verb::Completions { .. } | Verb::Openapi => {
            unreachable!("answered above, without a configuration")
        }
    }
}
