//! What audited policies would have said. A [`Shadow`] can be compared with the judgement in
//! force, and nothing else: no function turns it into a verdict.

use crate::judge::{Judgement, PolicyTables, judge};
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
    fn cast(tables: &impl PolicyTables, set: u32, class: u32, protocol: u8, port: u16) -> Self {
        Self(judge(tables, set, class, protocol, port))
    }

    #[inline(always)]
    fn difference(self, in_force: Judgement, set: u32) -> Option<Difference> {
        let reason = match (in_force.reason.verdict(), self.0.reason.verdict()) {
            (Verdict::Allow, Verdict::Deny) => Reason::WouldDeny,
            (Verdict::Deny, Verdict::Allow) => Reason::WouldAllow,
            _ => return None,
        };
        Some(Difference {
            reason,
            rule: self.0.rule,
            set,
        })
    }
}

/// How `in_force` would differ under `audit_set`; nothing when that is the set in force.
#[inline(always)]
pub(super) fn difference(
    tables: &impl PolicyTables,
    in_force: Judgement,
    (set, audit_set): (u32, u32),
    class: u32,
    protocol: u8,
    port: u16,
) -> Option<Difference> {
    if audit_set == set {
        return None;
    }
    Shadow::cast(tables, audit_set, class, protocol, port).difference(in_force, audit_set)
}
