//! `picket doctor`: whether this node can be enforced and whether it is, one line a check.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Outcome;
use super::client::Socket;
use super::directories::Directories;
use super::output::{Format, Paint, Terminal, counted};
use crate::config::{DEFAULT_NETNS, DEFAULT_SOCKET};
use crate::doctor::{Agent, Places, examine, report};
use crate::dto::{CheckResult, Doctor, Kind as _, Status};

/// Tell whether policy can be enforced on this node and whether it is, with a remedy for each fault
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Run it as root on a node, in the node's own network, before or after Picket is installed. It
changes nothing of the node: what it tries, it tries in namespaces of its own that go when it
ends, however it ends. A check ends with ok, warning (policy is enforced, and you should know),
problem or unknown.

Exit codes: 0 no problem, warnings or not · 1 a problem · 2 usage error · 3 no problem, but
something that matters could not be found out: not root, for one.

Examples:
  picket doctor                                        on the node, with the static binary
  picket doctor -o json | jq '.checks[] | select(.result == \"problem\")'
  picket doctor --root /host                           where the node's files are below /host:

  kubectl debug node/NODE -it --profile=sysadmin --image=IMAGE -- picket doctor --root /host
  ctr run --rm --privileged --net-host --mount type=bind,src=/,dst=/host,options=rbind:rslave \\
      IMAGE doctor picket doctor --root /host
  kubectl -n picket-system exec daemonset/picket -- picket doctor       once it is installed")]
pub(super) struct Args {
    /// Where the node's file system is seen: every directory below is looked for there
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Unix socket of the agent
    #[arg(long, value_name = "PATH", env = "PICKET_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Directory of the pods' network namespaces
    #[arg(long, value_name = "DIR", env = "PICKET_NETNS", default_value = DEFAULT_NETNS)]
    netns: PathBuf,
    #[command(flatten)]
    directories: Directories,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

impl Args {
    pub(super) fn run(self, terminal: &Terminal) -> anyhow::Result<Outcome> {
        let places = Places {
            root: self.root,
            pins: self.directories.pins,
            netns: self.netns,
            cni_results: self.directories.cni_results,
            state: self.directories.state,
            socket: self.socket,
            cni_conf: self.directories.cni_conf_dir,
            cni_bin: self.directories.cni_bin_dir,
        };
        let places = places.below_root();
        let agent = ask(&places.socket);
        let document = report(examine(&places, &agent)).into_document();
        self.output
            .print(&document, |out| write_report(out, terminal, &document.body))?;
        Ok(match document.body.result {
            CheckResult::Ok | CheckResult::Warning => Outcome::Yes,
            CheckResult::Problem => Outcome::No,
            CheckResult::Unknown => Outcome::CannotTell,
        })
    }
}

fn ask(socket: &Path) -> Agent {
    match Socket::at(socket.to_owned()).get::<Status>("/v1/status", &[]) {
        Ok(status) => Agent::Answers(Box::new(status.body)),
        Err(_) if !socket.exists() => Agent::Absent,
        Err(error) => Agent::Silent(format!("{error:#}")),
    }
}

const fn paint(result: CheckResult) -> Paint {
    match result {
        CheckResult::Ok => Paint::Allow,
        CheckResult::Warning => Paint::Audit,
        CheckResult::Problem => Paint::Deny,
        CheckResult::Unknown => Paint::Unknown,
    }
}

fn write_report(out: &mut impl Write, terminal: &Terminal, doctor: &Doctor) -> io::Result<()> {
    for check in &doctor.checks {
        let word = format!("{:<7}", check.result.as_label());
        let word = terminal.paint(paint(check.result), &word);
        writeln!(out, "{word}  {:<12}  {}", check.check, check.found)?;
        if let Some(remedy) = &check.remedy {
            writeln!(out, "{:23}{} {remedy}", "", terminal.arrow())?;
        }
    }
    let count = |result| {
        doctor
            .checks
            .iter()
            .filter(|check| check.result == result)
            .count()
    };
    let problems = count(CheckResult::Problem);
    writeln!(
        out,
        "\npicket {}: {}, {}, {}",
        doctor.version,
        counted(problems, "problem", "problems"),
        counted(count(CheckResult::Warning), "warning", "warnings"),
        counted(count(CheckResult::Unknown), "unknown", "unknown"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dto::CheckReport;

    #[test]
    fn a_check_is_a_line_and_a_remedy_one_more() {
        let check = |check: &str, result, found: &str, remedy: Option<&str>| CheckReport {
            check: check.to_owned(),
            result,
            found: found.to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let doctor = Doctor {
            version: "0.1.0".to_owned(),
            result: CheckResult::Problem,
            checks: vec![
                check("kernel", CheckResult::Ok, "Linux 6.12.9", None),
                check("bpffs", CheckResult::Problem, "none", Some("mount one")),
            ],
        };
        let mut out = Vec::new();
        write_report(&mut out, &Terminal::PLAIN, &doctor).unwrap();
        let expected = "\
ok       kernel        Linux 6.12.9
problem  bpffs         none
                       → mount one

picket 0.1.0: 1 problem, 0 warnings, 0 unknown
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
