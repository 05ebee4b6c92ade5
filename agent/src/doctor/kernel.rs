//! The kernel: its version, whether it compiles BPF programs, whether it describes itself.

use std::fs;
use std::path::Path;

use super::{Check, Finding};
use crate::dataplane::accounts_maps_to_the_process;

/// Oldest kernel that policy is enforced on.
const OLDEST: (u32, u32) = (5, 10);
const RELEASE: &str = "/proc/sys/kernel/osrelease";
/// Shown in the node's own network namespace alone, and to root alone.
const JIT: &str = "/proc/sys/net/core/bpf_jit_enable";
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// What was read of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Kernel {
    /// As `uname -r` says it; empty when it cannot be read.
    release: String,
    /// What the JIT's switch says, where it can be seen.
    jit: Option<String>,
    has_btf: bool,
}

impl Kernel {
    pub(super) fn read() -> Self {
        let text = |path| fs::read_to_string(path).map(|text| text.trim().to_owned());
        Self {
            release: text(RELEASE).unwrap_or_default(),
            jit: text(JIT).ok(),
            has_btf: Path::new(BTF).exists(),
        }
    }

    #[cfg(test)]
    pub(super) fn of(release: &str) -> Self {
        Self {
            release: release.to_owned(),
            jit: None,
            has_btf: true,
        }
    }

    /// Whether maps count against `RLIMIT_MEMLOCK`.
    pub(super) fn accounts_maps(&self) -> bool {
        accounts_maps_to_the_process(&self.release)
    }

    pub(super) fn judge(&self) -> Finding {
        let Some(version) = version(&self.release) else {
            return Finding::unknown(
                Check::Kernel,
                format!("{RELEASE} says {:?}, which is no version", self.release),
                "mount /proc where picket runs",
            );
        };
        let release = format!("Linux {}", self.release);
        if version < OLDEST {
            return Finding::problem(
                Check::Kernel,
                release,
                "Linux 5.10 is the oldest that policy is enforced on: boot a newer one",
            );
        }
        let btf = if self.has_btf {
            "BTF"
        } else {
            "no BTF (none is needed)"
        };
        match self.jit.as_deref() {
            Some("0") => Finding::warning(
                Check::Kernel,
                format!("{release}, {btf}; BPF is interpreted: packets cost several times more"),
                "sysctl -w net.core.bpf_jit_enable=1, and in /etc/sysctl.d",
            ),
            Some(_) => Finding::ok(Check::Kernel, format!("{release}, JIT, {btf}")),
            // Where programs are interpreted they are enforced all the same.
            None => Finding::ok(Check::Kernel, format!("{release}, {btf}")),
        }
    }
}

/// Major and minor number of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    let end = rest.find(|char: char| !char.is_ascii_digit());
    let minor = rest.get(..end.unwrap_or(rest.len()))?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::Judgement;
    use super::*;

    fn kernel(release: &str, jit: Option<&str>) -> Finding {
        let kernel = Kernel {
            release: release.to_owned(),
            jit: jit.map(str::to_owned),
            has_btf: true,
        };
        kernel.judge()
    }

    #[test]
    fn linux_5_10_is_the_oldest_that_will_do() {
        for enough in ["5.10.0-46-cloud-amd64", "6.1.0-56-amd64", "7.2", "6.18.5+"] {
            let finding = kernel(enough, Some("1"));
            assert_eq!(finding.judgement, Judgement::Ok, "{finding:?}");
            assert_eq!(finding.found, format!("Linux {enough}, JIT, BTF"));
        }
        for too_old in ["5.4.0-200-generic", "4.18.0-553.el8.x86_64"] {
            let finding = kernel(too_old, Some("1"));
            assert!(
                matches!(finding.judgement, Judgement::Problem(_)),
                "{finding:?}"
            );
        }
        for no_version in ["", "unknown", "6"] {
            let finding = kernel(no_version, Some("1"));
            assert!(
                matches!(finding.judgement, Judgement::Unknown(_)),
                "{finding:?}"
            );
        }
    }

    #[test]
    fn interpreted_programs_are_worth_a_warning_and_an_unseen_switch_is_not() {
        assert!(matches!(
            kernel("6.1.0", Some("0")).judgement,
            Judgement::Warning(_)
        ));
        assert_eq!(kernel("6.1.0", Some("2")).judgement, Judgement::Ok);
        assert_eq!(kernel("6.1.0", None).found, "Linux 6.1.0, BTF");
    }
}
