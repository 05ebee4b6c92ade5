//! The proof: the real programs under a real policy between two private namespaces. What policy
//! allows has to arrive, what it denies has to be dropped and counted, both ways, both families;
//! and before there are programs all of it has to arrive.

mod attempt;
mod ground;
mod wires;

use std::fmt;

use agent_common::Direction;

use super::{Check, Finding};
use crate::dataplane::Method;

/// What became of the attempt.
#[derive(Debug)]
pub(super) enum Attempt {
    /// There is no ground to try on, and why.
    NoGround(String),
    /// The programs do not load, and why.
    NotLoaded(String),
    /// They load, but something about the attempt failed, and what.
    Broken(Loaded, String),
    /// It was carried out.
    Done(Loaded, Vec<Walk>),
}

/// What is known once programs are loaded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Loaded {
    /// How they are held on interfaces.
    pub(super) method: Method,
    /// Kernel ticks a second.
    pub(super) hz: u32,
}

/// The family of addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Family {
    V4,
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One direction of one family: what became of its packets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Walk {
    pub(super) family: Family,
    /// Seen from the pod that policy isolates.
    pub(super) direction: Direction,
    /// What is allowed arrived.
    pub(super) allowed_arrived: bool,
    /// What is denied arrived.
    pub(super) denied_arrived: bool,
    /// Packets that were counted as denied by `isolated-no-rule`.
    pub(super) counted: u64,
}

impl Walk {
    /// What went wrong on it, if anything.
    fn fault(&self) -> Option<String> {
        let Self {
            family, direction, ..
        } = self;
        let fault = if self.denied_arrived {
            "what policy denies arrives"
        } else if !self.allowed_arrived {
            "what policy allows does not arrive"
        } else if self.counted == 0 {
            "what policy denies is dropped and not counted"
        } else {
            return None;
        };
        Some(format!("{family} {direction}: {fault}"))
    }
}

/// Tries it, in a thread whose namespaces go with it.
pub(super) fn attempt() -> Attempt {
    let thread = std::thread::Builder::new().name("attempt".to_owned());
    let ended = thread
        .spawn(attempt::attempt)
        .map(std::thread::JoinHandle::join);
    match ended {
        Ok(Ok(attempt)) => attempt,
        Ok(Err(_panic)) => Attempt::NoGround("the attempt panicked".to_owned()),
        Err(error) => Attempt::NoGround(error.to_string()),
    }
}

impl Attempt {
    pub(super) fn judge(&self) -> [Finding; 2] {
        [self.judge_programs(), self.judge_packets()]
    }

    fn judge_programs(&self) -> Finding {
        match self {
            Self::NoGround(why) => Finding::unknown(
                Check::Programs,
                format!("not loaded, for want of a namespace of our own: {why}"),
                "run picket doctor as root, with the capabilities of deploy/picket.yaml",
            ),
            Self::NotLoaded(why) => Finding::problem(
                Check::Programs,
                why,
                "this kernel lacks what they need, or does not let this process have it: see \
                 capabilities and kernel above",
            ),
            Self::Broken(loaded, _) | Self::Done(loaded, _) => {
                let Loaded { method, hz } = loaded;
                let held = match method {
                    Method::Tcx => "held by TCX",
                    Method::Clsact => "held by clsact filters (Linux 6.6 has TCX)",
                };
                Finding::ok(
                    Check::Programs,
                    format!("they load and verify; {held}; the kernel ticks {hz} times a second"),
                )
            }
        }
    }

    fn judge_packets(&self) -> Finding {
        let walks = match self {
            Self::NoGround(_) | Self::NotLoaded(_) => {
                return Finding::unknown(
                    Check::Packets,
                    "none were sent: see programs",
                    "mend that first",
                );
            }
            Self::Broken(_, why) => {
                return Finding::problem(
                    Check::Packets,
                    why,
                    "tell the project, with this output and `uname -a`",
                );
            }
            Self::Done(_, walks) => walks,
        };
        let faults: Vec<String> = walks.iter().filter_map(Walk::fault).collect();
        if !faults.is_empty() {
            return Finding::problem(
                Check::Packets,
                faults.join("; "),
                "policy is not enforced on this kernel as it should be: do not rely on it, and \
                 tell the project, with this output and `uname -a`",
            );
        }
        let families: Vec<String> = [Family::V4, Family::V6]
            .into_iter()
            .filter(|family| walks.iter().any(|walk| walk.family == *family))
            .map(|family| family.to_string())
            .collect();
        if families.is_empty() {
            return Finding::unknown(
                Check::Packets,
                "none were sent: this kernel has neither IPv4 nor IPv6",
                "mount /proc where picket runs",
            );
        }
        Finding::ok(
            Check::Packets,
            format!(
                "allowed ones arrive, denied ones are dropped and counted: ingress and egress, {}",
                families.join(" and ")
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::Judgement;
    use super::*;

    const LOADED: Loaded = Loaded {
        method: Method::Tcx,
        hz: 250,
    };
    const WALK: Walk = Walk {
        family: Family::V4,
        direction: Direction::Ingress,
        allowed_arrived: true,
        denied_arrived: false,
        counted: 1,
    };

    fn packets(walks: &[Walk]) -> Finding {
        let [_, packets] = Attempt::Done(LOADED, walks.to_vec()).judge();
        packets
    }

    #[test]
    fn packets_that_go_as_policy_says_are_said_by_family() {
        let v6 = Walk {
            family: Family::V6,
            direction: Direction::Egress,
            ..WALK
        };
        let both = packets(&[WALK, v6]);
        assert_eq!(both.judgement, Judgement::Ok);
        assert!(both.found.ends_with("IPv4 and IPv6"), "{both:?}");
        assert!(packets(&[WALK]).found.ends_with("egress, IPv4"));
        assert!(matches!(packets(&[]).judgement, Judgement::Unknown(_)));
    }

    #[test]
    fn whatever_is_otherwise_is_a_problem_and_says_where() {
        let (allowed_arrived, denied_arrived) = (false, true);
        for (walk, said) in [
            (
                Walk {
                    denied_arrived,
                    ..WALK
                },
                "IPv4 ingress: what policy denies arrives",
            ),
            (
                Walk {
                    allowed_arrived,
                    ..WALK
                },
                "IPv4 ingress: what policy allows does not arrive",
            ),
            (
                Walk { counted: 0, ..WALK },
                "IPv4 ingress: what policy denies is dropped and not counted",
            ),
        ] {
            let finding = packets(&[WALK, walk]);
            assert!(
                matches!(finding.judgement, Judgement::Problem(_)),
                "{finding:?}"
            );
            assert_eq!(finding.found, said);
        }
    }

    #[test]
    fn what_could_not_be_tried_is_unknown_and_what_does_not_load_a_problem() {
        let judged = |attempt: Attempt| attempt.judge().map(|finding| finding.judgement);
        let [programs, packets] = judged(Attempt::NoGround("EPERM".to_owned()));
        assert!(matches!(
            (programs, packets),
            (Judgement::Unknown(_), Judgement::Unknown(_))
        ));
        let [programs, packets] = judged(Attempt::NotLoaded("EINVAL".to_owned()));
        assert!(matches!(
            (programs, packets),
            (Judgement::Problem(_), Judgement::Unknown(_))
        ));
        let [programs, packets] = judged(Attempt::Broken(LOADED, "no answer".to_owned()));
        assert!(matches!(
            (programs, packets),
            (Judgement::Ok, Judgement::Problem(_))
        ));
    }
}
