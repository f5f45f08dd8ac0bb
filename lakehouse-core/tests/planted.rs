//! The checks that the other tests rely on, shown to see what they should: with each planted bug a violation is found.

use crate::support::bank::{self, Load};
use crate::support::check::Report;
use crate::support::faults::{duel, play, random_plans};
use crate::support::{Violation, block_on};
use futures::future::BoxFuture;
use lakehouse_core::planted::{Bug, Planted};

/// A bug must be found within this many histories.
const WITHIN: u64 = 200;

/// The same histories as those that pass without a bug, until one does not.
fn caught(bug: Bug, history: impl Fn(u64, Planted) -> BoxFuture<'static, Result<Report, Violation>>) {
    let found = block_on(async {
        for seed in 0..WITHIN {
            let outcome = tokio::spawn(history(seed, Planted::only(bug))).await;
            match outcome {
                Ok(Ok(_)) => {}
                Ok(Err(violation)) => return Some((seed, violation.to_string())),
                Err(panic) => return Some((seed, format!("[panic] {panic}"))),
            }
        }
        None
    });
    let (seed, violation) = found.unwrap_or_else(|| panic!("{bug:?} is not caught within {WITHIN} histories"));
    println!("{bug:?}: caught in history {seed}: {violation}");
}

/// Random faults.
fn faults(seed: u64, planted: Planted) -> BoxFuture<'static, Result<Report, Violation>> {
    let load = Load { transactions: 6, wide: seed.is_multiple_of(2) };
    let plans = random_plans(seed, &bank::script(seed, load));
    Box::pin(async move { play(seed, load, &plans, planted).await })
}

/// No fault at all.
fn peace(seed: u64, planted: Planted) -> BoxFuture<'static, Result<Report, Violation>> {
    Box::pin(async move { play(seed, Load { transactions: 8, wide: seed.is_multiple_of(2) }, &[], planted).await })
}

/// A sleeper and its successor.
fn duels(seed: u64, planted: Planted) -> BoxFuture<'static, Result<Report, Violation>> {
    Box::pin(duel(seed, planted))
}

#[test]
fn b1_an_acknowledgement_before_the_commit_is_caught() {
    caught(Bug::AcknowledgeBeforeCommit, peace);
}

#[test]
fn b2_a_blind_rebase_is_caught() {
    caught(Bug::BlindRebase, faults);
}

#[test]
fn b3_a_replay_that_is_not_skipped_is_caught() {
    caught(Bug::NoSkip, faults);
}

#[test]
fn b4_a_split_transaction_is_caught() {
    caught(Bug::SplitTransaction, peace);
}

#[test]
fn b5_files_deleted_without_an_answer_are_caught() {
    caught(Bug::DeleteOnUnknown, faults);
}

#[test]
fn b8_a_worker_that_trusts_its_lease_is_caught() {
    caught(Bug::TrustLease, duels);
}

#[test]
fn b9_an_old_row_that_stays_is_caught() {
    caught(Bug::KeepOldRow, peace);
}

#[test]
fn b10_an_unchanged_value_that_becomes_null_is_caught() {
    caught(Bug::UnchangedAsNull, peace);
}

#[test]
fn b12_a_position_in_the_summary_only_is_caught() {
    caught(Bug::PositionInSummaryOnly, peace);
}

#[test]
fn b13_a_stale_schema_is_caught() {
    caught(Bug::StaleSchema, peace);
}
