//! What others have put on interfaces: their programs, and what leaves ours no place.

use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;

use super::attach::{Method, interfaces};
use super::clsact::{self, Qdisc};
use super::error::DataplaneError;
use super::load::PROGRAMS;

/// An interface that others use, too.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Foreign {
    /// Its name.
    pub interface: String,
    /// Names of programs and filters that are not ours; empty for those that have none.
    pub programs: Vec<String>,
    /// No program of ours can be put there: an `ingress` qdisc sits in its place, and the kernel
    /// has no TCX.
    pub is_taken: bool,
}

/// Every interface of this network namespace that others use, loopback left out.
///
/// # Errors
/// Interfaces, their qdiscs or filters cannot be listed.
pub fn foreign() -> Result<Vec<Foreign>, DataplaneError> {
    let method = Method::of_this_kernel();
    let mut found = Vec::new();
    for (ifindex, interface) in interfaces()? {
        if interface == "lo" {
            continue;
        }
        let wrong = |source| DataplaneError::Attach {
            ifindex,
            name: interface.clone(),
            action: "listing filters",
            source,
        };
        let mut programs = clsact::others(ifindex).map_err(wrong)?;
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            if method == Method::Tcx {
                programs.extend(linked(&interface, side)?);
            }
        }
        programs.sort();
        programs.dedup();
        let qdisc = clsact::qdisc(ifindex).map_err(wrong)?;
        let is_taken = qdisc == Qdisc::Ingress && method == Method::Clsact;
        if is_taken || !programs.is_empty() {
            found.push(Foreign {
                interface,
                programs,
                is_taken,
            });
        }
    }
    Ok(found)
}

/// Names of programs at a TCX hook that are not ours.
fn linked(interface: &str, side: TcAttachType) -> Result<Vec<String>, DataplaneError> {
    let wrong = |source| DataplaneError::Program {
        program: "of others",
        source,
    };
    let (_, programs) = SchedClassifier::query_tcx(interface, side).map_err(wrong)?;
    let names = programs
        .iter()
        .map(|program| program.name_as_str().unwrap_or_default().to_owned());
    Ok(names
        .filter(|name| !PROGRAMS.contains(&name.as_str()))
        .collect())
}
