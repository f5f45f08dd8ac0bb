//! How much a quarantine takes (reliability requirements Q3). More of it means that the table is not what its columns say:
//! a person looks, before most of the table stands where nobody reads.

use crate::error::Problem;
use crate::schema::TableName;

/// The code of a table that has left the cut for it.
pub const QUARANTINE_LIMIT: &str = "QUARANTINE_LIMIT";
/// So few rows say nothing of a share: the only change of a batch would be all of it.
const FEW: u64 = 100;

/// What one table's quarantine takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuarantineLimit {
    /// Rows that stand there, all together.
    pub rows: u64,
    /// Rows of a hundred that one commit brings: changes of a batch, or rows of a copy's chunk. 100 is no limit.
    pub percent: u64,
}

impl Default for QuarantineLimit {
    fn default() -> Self {
        Self { rows: 10_000, percent: 10 }
    }
}

impl QuarantineLimit {
    /// Before a commit that brings `added` rows, of `decoded` ones, to a quarantine where `held` rows stay.
    pub(super) fn check(self, quarantine: &TableName, held: u64, added: u64, decoded: u64) -> Result<(), Problem> {
        let Self { rows, percent } = self;
        let message = if added > 0 && held.saturating_add(added) > rows {
            format!("the quarantine has {held} rows and would get {added} more, its limit is {rows}")
        } else if added > FEW && added.saturating_mul(100) > decoded.saturating_mul(percent) {
            format!("of the {decoded} rows of one commit {added} cannot be mapped, more than {percent} %")
        } else {
            return Ok(());
        };
        let remedy =
            "repair the items at the source, declare a type that takes them or raise the limit; then resync the table";
        Err(Problem::halt_table(QUARANTINE_LIMIT, quarantine.to_string(), message, remedy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_too_many_and_a_share_too_large_are_refused() {
        let limit = QuarantineLimit { rows: 1_000, percent: 10 };
        let check = |held, added, decoded| {
            let checked = limit.check(&TableName::new("app", "t_quarantine"), held, added, decoded);
            checked.map_err(|problem| problem.message)
        };
        for (held, added, decoded) in [
            (0, 0, 0),
            (999, 1, 1_000),
            // What stands there already is no reason to refuse what brings nothing.
            (5_000, 0, 1_000),
            // All of a small batch.
            (0, FEW, FEW),
            (0, 101, 1_010),
        ] {
            assert_eq!(check(held, added, decoded), Ok(()), "{held} {added} {decoded}");
        }
        for (held, added, decoded, word) in [(1_000, 1, 1_000, "limit is 1000"), (0, 101, 1_009, "10 %")] {
            let message = check(held, added, decoded).expect_err("too many");
            assert!(message.contains(word), "{message}");
        }
        let unlimited = QuarantineLimit { rows: u64::MAX, percent: 100 };
        assert!(unlimited.check(&TableName::new("app", "t_quarantine"), 0, 1_000, 1_000).is_ok());
    }
}
