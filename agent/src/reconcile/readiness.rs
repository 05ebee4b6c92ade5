//! Whether what is here is enforced: what `/readyz` says, and what the startup taint waits for.

use std::collections::BTreeMap;

use super::{Endpoint, EndpointState, Phase, Plans};
use crate::endpoints::IfIndex;

/// Why not all that is here is enforced; nothing when it is.
pub(super) fn wanting(
    phase: Phase,
    plans: &Plans,
    endpoints: &BTreeMap<IfIndex, Endpoint>,
) -> Option<String> {
    if phase == Phase::Loading {
        return Some("the first complete state is not in force yet".to_owned());
    }
    let unattached = || {
        endpoints
            .values()
            .find_map(|endpoint| match &endpoint.state {
                EndpointState::Failed { error } => {
                    Some(format!("{} is not enforced: {error}", endpoint.pod))
                }
                EndpointState::Pending
                | EndpointState::Enforced
                | EndpointState::NoSlot
                | EndpointState::Orphaned => None,
            })
    };
    let wrong = plans.failing.clone().or_else(|| plans.refused.clone());
    wrong.or_else(unattached)
}
