//! Whether what is here is enforced: what `/readyz` says, and what the startup taint waits for.

use std::collections::BTreeMap;

use super::{Endpoint, EndpointState, Phase, Plans, Unclaimed};
use crate::endpoints::IfIndex;

/// Why not all that is here is enforced; nothing when it is.
pub(super) fn wanting(
    phase: Phase,
    plans: &Plans,
    endpoints: &BTreeMap<IfIndex, Endpoint>,
    unclaimed: &[Unclaimed],
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
    let open = || {
        unclaimed.iter().find_map(|each| {
            let (name, error) = (&each.interface.name, each.error.as_ref()?);
            Some(format!("{name}, whose pod is not known, is open: {error}"))
        })
    };
    let wrong = plans.failing.clone().or_else(|| plans.refused.clone());
    wrong.or_else(unattached).or_else(open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::Interface;

    #[test]
    fn an_interface_of_nobodys_that_cannot_be_closed_is_said() {
        let mut unclaimed = Unclaimed {
            interface: Interface {
                ifindex: IfIndex(7),
                name: "veth7".to_owned(),
                addresses: Vec::new(),
                inside: "eth0".to_owned(),
                netns: std::path::PathBuf::new(),
                sandbox: None,
            },
            is_enclosed: true,
            error: None,
        };
        let said = |each: &Unclaimed| {
            let each = std::slice::from_ref(each);
            wanting(Phase::Enforcing, &Plans::default(), &BTreeMap::new(), each)
        };
        assert_eq!(said(&unclaimed), None, "it is closed");
        unclaimed.error = Some("no room".to_owned());
        assert!(said(&unclaimed).is_some_and(|said| said.contains("veth7")));
    }
}
