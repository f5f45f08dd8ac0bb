//! Deliberate faults, one per rule of the commit protocol, so that the tests that should catch them can be shown to.
//!
//! Nothing but a test makes a value other than [`Planted::none`]; no configuration reaches it. The numbers are those of
//! the planted bugs in the reliability requirements.

/// One way to break the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// B1: the source is told before the commit.
    AcknowledgeBeforeCommit,
    /// B2: after a rejection the same change is put on whatever head there is.
    BlindRebase,
    /// B3: changes that the table has are applied again after a restart.
    NoSkip,
    /// B4: a batch may end in the middle of a transaction.
    SplitTransaction,
    /// B5: files of a commit without an answer are deleted.
    DeleteOnUnknown,
    /// B6: a rollback moves the branch to an older snapshot, and makes none of its own.
    MoveRef,
    /// B8: a worker trusts its lease and does not look at the table's position.
    TrustLease,
    /// B9: an update's new row is written without deleting the old one first.
    KeepOldRow,
    /// B10: a value that was not sent becomes NULL.
    UnchangedAsNull,
    /// B11: a slot that has forgotten more than the cut holds is read on.
    NoGapCheck,
    /// B12: the position stands in the snapshot summary only.
    PositionInSummaryOnly,
    /// B13: rows are decoded by the schema of the first chunk.
    StaleSchema,
    /// B14: a shard is read before the one that it goes on from has ended.
    ChildBeforeParent,
    /// B7: unreferenced files are removed at any age.
    OrphanAgeZero,
    /// B15: a rewrite takes the deletes that were there when it was planned, and no later ones.
    CompactionIgnoresDeletes,
    /// B16: a row that cannot be mapped is left out, and does not stand in the quarantine.
    DropQuarantined,
    /// Deletes are forwarded on one look at the table, and the swap takes the token of a later one (model `deletes`).
    ForwardEarly,
    /// Of several rewrites behind a pending commit only the last is translated (model `deletes`).
    LastMapOnly,
    /// A delete file is merged with the one of the plan's base, not with that of the attempt's (model `deletes`).
    MergeOnPlansBase,
    /// A rewrite leaves a row out.
    RewriteLosesRow,
    /// A rewrite does not notice that deletes have been taken back since its plan (model `deletes`).
    IgnoreRollback,
}

/// The faults that are switched on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Planted(Option<Bug>);

impl Planted {
    pub const fn none() -> Self {
        Self(None)
    }

    pub const fn only(bug: Bug) -> Self {
        Self(Some(bug))
    }

    pub fn is(self, bug: Bug) -> bool {
        self.0 == Some(bug)
    }
}
