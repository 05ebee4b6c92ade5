//! What this process may do: the agent's capabilities, and what each lack means.

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use super::kernel::Kernel;
use super::{Check, Finding};

/// What was read of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// Effective capabilities; `None` when the kernel does not say.
    effective: Option<CapabilitySet>,
    pub(super) is_root: bool,
    has_memory_limit: bool,
}

/// A capability, its name, and what is not done without it.
type Need = (CapabilitySet, &'static str, &'static str);

const ALWAYS: [Need; 2] = [
    (
        CapabilitySet::SYS_ADMIN,
        "CAP_SYS_ADMIN",
        "no map is made and no pod's network namespace is entered: the agent does not start",
    ),
    (
        CapabilitySet::NET_ADMIN,
        "CAP_NET_ADMIN",
        "connections older than Picket are not known, and before Linux 6.6 no pod is enforced",
    ),
];
const TO_RAISE_THE_LIMIT: Need = (
    CapabilitySet::SYS_RESOURCE,
    "CAP_SYS_RESOURCE",
    "Linux before 5.11 counts maps against RLIMIT_MEMLOCK, which is too small: the agent does not \
     start",
);

impl Held {
    pub(super) fn read() -> Self {
        Self {
            effective: capabilities(None).ok().map(|sets| sets.effective),
            is_root: rustix::process::geteuid().is_root(),
            has_memory_limit: getrlimit(Resource::Memlock).current.is_some(),
        }
    }

    pub(super) fn judge(&self, kernel: &Kernel) -> Finding {
        let Some(held) = self.effective else {
            return Finding::unknown(
                Check::Capabilities,
                "the kernel does not say which this process has",
                "run picket doctor as root",
            );
        };
        let raises = kernel.accounts_maps() && self.has_memory_limit;
        let needs = ALWAYS.iter().chain(raises.then_some(&TO_RAISE_THE_LIMIT));
        let (has, lacks): (Vec<&Need>, Vec<&Need>) =
            needs.partition(|(needed, ..)| held.contains(*needed));
        let names = |needs: &[&Need]| {
            let names: Vec<&str> = needs.iter().map(|(_, name, _)| *name).collect();
            names.join(", ")
        };
        if lacks.is_empty() {
            return Finding::ok(Check::Capabilities, names(&has));
        }
        let without: Vec<String> = lacks
            .iter()
            .map(|(_, name, means)| format!("without {name} {means}"))
            .collect();
        if !self.is_root {
            // What somebody without rights lacks says nothing of the agent.
            return Finding::unknown(
                Check::Capabilities,
                format!("this user has no {}", names(&lacks)),
                "run picket doctor as root",
            );
        }
        Finding::problem(
            Check::Capabilities,
            without.join("; "),
            format!(
                "add {} to securityContext.capabilities, as deploy/picket.yaml does (linux-5.10 is \
                 a component); on the node itself run as root",
                names(&lacks).replace("CAP_", "")
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::Judgement;
    use super::*;

    const NEW: &str = "6.1.0";
    const OLD: &str = "5.10.0-46-amd64";

    fn judged(held: CapabilitySet, is_root: bool, release: &str) -> Finding {
        let held = Held {
            effective: Some(held),
            is_root,
            has_memory_limit: true,
        };
        held.judge(&Kernel::of(release))
    }

    #[test]
    fn the_daemonsets_two_are_enough_and_5_10_wants_a_third() {
        let both = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN;
        assert_eq!(judged(both, true, NEW).judgement, Judgement::Ok);
        let old = judged(both, true, OLD);
        assert!(matches!(old.judgement, Judgement::Problem(_)), "{old:?}");
        assert!(old.found.contains("CAP_SYS_RESOURCE"), "{old:?}");
        let three = both | CapabilitySet::SYS_RESOURCE;
        assert_eq!(judged(three, true, OLD).judgement, Judgement::Ok);
    }

    #[test]
    fn what_root_lacks_is_named_with_what_it_means_and_what_to_add() {
        let finding = judged(CapabilitySet::NET_ADMIN, true, NEW);
        assert!(
            finding.found.starts_with("without CAP_SYS_ADMIN no map"),
            "{finding:?}"
        );
        let Judgement::Problem(remedy) = finding.judgement else {
            panic!("{:?}", finding.judgement);
        };
        assert!(remedy.starts_with("add SYS_ADMIN to"), "{remedy}");
    }

    #[test]
    fn what_an_ordinary_user_lacks_says_nothing_of_the_agent() {
        let finding = judged(CapabilitySet::empty(), false, NEW);
        assert_eq!(
            finding.judgement,
            Judgement::Unknown("run picket doctor as root".to_owned())
        );
    }
}
