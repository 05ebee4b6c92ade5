//! Programs that this task starts: in silence when all is well, and waiting with a deadline.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How long between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// How much of a log explains a failure.
const LAST_LINES: usize = 8;

/// How much of a line.
const LINE: usize = 240;

/// A command whose input is empty.
pub(super) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// Runs it; what it wrote on stdout. A failure's error holds what it wrote on stderr.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {}", shown(command)))?;
    if !output.status.success() {
        bail!(
            "{}: {}\n{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("reading {}", shown(command)))
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy()));
    words.join(" ")
}

/// Waits until `is_there` has something. Its error ends the wait at once; after `deadline`, the
/// error says what did not come, and what was missing at the last look.
pub(super) fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut is_there: impl FnMut() -> Result<Look<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        let missing = match is_there()? {
            Look::There(found) => return Ok(found),
            Look::Missing(missing) => missing,
        };
        if started.elapsed() >= deadline {
            return Err(TooLate(format!(
                "{what}: not within {} s; {missing}",
                deadline.as_secs()
            ))
            .into());
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "between two looks at the condition"
        )]
        thread::sleep(LOOK);
    }
}

/// What a look found.
#[derive(Debug)]
pub(super) enum Look<T> {
    There(T),
    /// What is missing yet.
    Missing(String),
}

/// Something did not come in time; nobody said why.
#[derive(Debug)]
pub(super) struct TooLate(String);

impl fmt::Display for TooLate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TooLate {}

/// A log's last lines, for an error's end; nothing when there is none.
pub(super) fn last_lines(log: &Path) -> String {
    end_of(log, |_| true)
}

/// The last lines of a log in which a program complains.
pub(super) fn complaints(log: &Path) -> String {
    end_of(log, is_complaint)
}

fn end_of(log: &Path, is_wanted: fn(&str) -> bool) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text
        .lines()
        .filter(|line| is_wanted(line))
        .map(|line| line.chars().take(LINE).collect())
        .collect();
    let last = lines.get(lines.len().saturating_sub(LAST_LINES)..);
    match last.unwrap_or_default() {
        [] => String::new(),
        last => format!("\n{}:\n  {}", log.display(), last.join("\n  ")),
    }
}

/// Kubernetes' programs begin such lines with E or F and the date, others say the level.
fn is_complaint(line: &str) -> bool {
    let mut chars = line.chars();
    let klog =
        matches!(chars.next(), Some('E' | 'F')) && chars.next().is_some_and(|c| c.is_ascii_digit());
    let levels = [
        "level=error",
        "level=fatal",
        "\"level\":\"error\"",
        "\"level\":\"fatal\"",
    ];
    klog || levels.iter().any(|level| line.contains(level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_the_program_said() {
        let mut failing = command("sh");
        failing.args(["-c", "echo no such cluster >&2; exit 4"]);
        let error = output(&mut failing).unwrap_err().to_string();
        assert!(error.contains("no such cluster") && error.contains("exit status: 4"));
    }

    #[test]
    fn a_wait_ends_with_what_it_waited_for_or_says_what_was_missing() {
        let mut looks = 0;
        let found = wait_for("a number", Duration::from_mins(1), || {
            looks += 1;
            Ok(if looks == 3 {
                Look::There(looks)
            } else {
                Look::Missing(String::new())
            })
        });
        assert_eq!(found.unwrap(), 3);
        let missing = || Ok(Look::<()>::Missing("n2 is not Ready".to_owned()));
        let error = wait_for("two nodes", Duration::ZERO, missing).unwrap_err();
        assert!(error.to_string().contains("n2 is not Ready"), "{error}");
    }

    #[test]
    fn a_log_that_is_not_there_explains_nothing() {
        assert_eq!(last_lines(Path::new("no/such/log")), "");
    }

    #[test]
    fn a_complaint_is_told_from_what_is_merely_said() {
        for line in [
            "E1122 11:11:53.9 76 kubelet.go:1] \"Failed\"",
            "F1122 11:11:53.9 76 server.go:1] no such file",
            "time=\"2026\" level=fatal msg=\"x\"",
            "{\"level\":\"error\",\"msg\":\"x\"}",
        ] {
            assert!(is_complaint(line), "{line}");
        }
        for line in [
            "I1122 11:11 x",
            "Everything is fine",
            "level=info msg=error",
            "",
        ] {
            assert!(!is_complaint(line), "{line}");
        }
    }
}
