//! What audited policies would have said. A [`Shadow`] can be compared with the judgement in
//! force, and nothing else: no function turns it into a verdict.

use super::steps::Question;
use super::tables::FlowTables;
use crate::judge::Judgement;
use crate::verdict::{Reason, RuleId, Verdict};

/// The judgement of the policies in force and the audited ones together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shadow(Judgement);

/// What would be different with the audited policies in force, and by which rule. To report.
///
/// In C's order: the reason's spare values tell `None`, and BTF has no place for a discriminant
/// that does not come first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub(super) struct Difference {
    pub(super) reason: Reason,
    pub(super) rule: RuleId,
    /// The set that said so.
    pub(super) set: u32,
}

impl Shadow {
    #[inline(always)]
    fn difference(self, in_force: Reason, set: u32) -> Option<Difference> {
        let difference = |reason| Difference {
            reason,
            rule: self.0.rule,
            set,
        };
        match (in_force.verdict(), self.0.reason.verdict()) {
            (Verdict::Allow, Verdict::Deny) => Some(difference(Reason::WouldDeny)),
            (Verdict::Deny, Verdict::Allow) => Some(difference(Reason::WouldAllow)),
            _ => None,
        }
    }
}

/// How `in_force` would differ under `audit_set`.
#[inline(always)]
pub(super) fn difference<T: FlowTables>(
    tables: &T,
    in_force: Judgement,
    audit_set: u32,
    question: &Question,
    class: &mut u32,
) -> Option<Difference> {
    let shadow = Shadow(question.put_to(tables, audit_set, class));
    shadow.difference(in_force.reason, audit_set)
}
