//! Rollbacks that somebody has been shown and may confirm: kept in memory, for a few minutes, for who has asked. A service
//! that is started anew knows none of them; what has been begun stands in the journal.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use lakehouse_core::rollback::Plan;
use tokio::time::Instant;

use super::etag::Etag;

/// How long a plan may be confirmed (requirement A-6).
pub(super) const PLAN_TIME: Duration = Duration::from_secs(300);
/// Plans kept at a time; the oldest goes first.
const PLANS: usize = 256;

/// A plan, as it was shown to one caller.
#[derive(Clone, Debug)]
pub(super) struct KeptPlan {
    pub(super) id: String,
    pub(super) caller: Arc<str>,
    pub(super) pipeline: String,
    pub(super) plan: Plan,
    /// Of all that is above.
    pub(super) etag: Etag,
    until: Instant,
}

impl KeptPlan {
    pub(super) fn new(id: String, caller: Arc<str>, pipeline: &str, plan: Plan, now: Instant) -> Self {
        let cut = plan.cut.to_string();
        let mut parts = vec![id.as_str(), &caller, pipeline, &cut];
        for (table, rolled) in &plan.tables {
            parts.extend([table.as_str(), &rolled.head, &rolled.target]);
        }
        let etag = Etag::of(&parts);
        Self { id, caller, pipeline: pipeline.to_owned(), plan, etag, until: now + PLAN_TIME }
    }
}

/// All that are kept, oldest first.
#[derive(Debug, Default)]
pub(super) struct Plans(VecDeque<KeptPlan>);

impl Plans {
    pub(super) fn keep(&mut self, plan: KeptPlan, now: Instant) {
        self.0.retain(|kept| kept.until > now);
        if self.0.len() == PLANS {
            self.0.pop_front();
        }
        self.0.push_back(plan);
    }

    /// `None` if it is over, or somebody else's.
    pub(super) fn find(&self, id: &str, caller: &str, now: Instant) -> Option<KeptPlan> {
        self.0.iter().find(|kept| kept.id == id && *kept.caller == *caller && kept.until > now).cloned()
    }

    /// What has been begun is not begun again.
    pub(super) fn forget(&mut self, id: &str) {
        self.0.retain(|kept| kept.id != id);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lakehouse_core::commit::RolledTable;
    use lakehouse_core::position::Position;

    use super::*;

    fn plan(id: usize, caller: &str, head: &str, now: Instant) -> KeptPlan {
        let rolled = RolledTable {
            source: "public.t".to_owned(),
            head: head.to_owned(),
            target: "1".to_owned(),
            target_position: None,
            position: Position::new(7),
        };
        let tables = BTreeMap::from([("app.t".to_owned(), rolled)]);
        KeptPlan::new(id.to_string(), caller.into(), "app", Plan { cut: Position::new(7), tables }, now)
    }

    #[test]
    fn a_plan_is_its_callers_for_five_minutes() {
        let begun = Instant::now();
        let mut plans = Plans::default();
        plans.keep(plan(1, "ann", "2", begun), begun);
        let found =
            |plans: &Plans, id: &str, caller: &str, after: Duration| plans.find(id, caller, begun + after).is_some();
        assert!(found(&plans, "1", "ann", Duration::ZERO));
        assert!(found(&plans, "1", "ann", PLAN_TIME - Duration::from_millis(1)));
        assert!(!found(&plans, "1", "ann", PLAN_TIME));
        assert!(!found(&plans, "1", "bob", Duration::ZERO));
        assert!(!found(&plans, "2", "ann", Duration::ZERO));
        plans.forget("1");
        assert!(!found(&plans, "1", "ann", Duration::ZERO));
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let now = Instant::now();
        let mut plans = Plans::default();
        (0..PLANS + 2).for_each(|id| plans.keep(plan(id, "ann", "2", now), now));
        let there = |id: usize| plans.find(&id.to_string(), "ann", now).is_some();
        assert_eq!([0, 1, 2, PLANS + 1].map(there), [false, false, true, true]);
        assert_eq!(plans.0.len(), PLANS);
        let later = now + PLAN_TIME;
        plans.keep(plan(0, "ann", "2", later), later);
        assert_eq!(plans.0.len(), 1, "what is over goes with the next one");
    }

    #[test]
    fn a_tag_is_of_one_plan_of_one_caller() {
        let now = Instant::now();
        let tag = |plan: KeptPlan| plan.etag.text().to_owned();
        let first = tag(plan(1, "ann", "2", now));
        assert_eq!(first, tag(plan(1, "ann", "2", now)));
        for other in [plan(2, "ann", "2", now), plan(1, "bob", "2", now), plan(1, "ann", "3", now)] {
            assert_ne!(first, tag(other));
        }
    }
}
