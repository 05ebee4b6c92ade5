//! The built `picket`, offline: help, matrix, can and why on the manifests under
//! `manifests/cli`, exit codes, what goes to which stream. Needs no root.

#![expect(
    clippy::unwrap_used,
    reason = "what cannot be run or read fails its test"
)]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What a run left behind.
struct Run {
    code: i32,
    out: String,
    err: String,
}

/// The binary lies beside the tests: `cargo xtask test lab` builds it first.
fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(Path::parent).unwrap();
    let binary = folder.join("picket");
    assert!(
        binary.exists(),
        "{} is missing: cargo build -p agent --bin picket",
        binary.display()
    );
    binary
}

fn manifests(folder: &str) -> String {
    format!("{}/manifests/{folder}", env!("CARGO_MANIFEST_DIR"))
}

fn run_as(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Run {
    let output = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    Run {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn picket(arguments: &[&str]) -> Run {
    run_as(&binary(), arguments, &[])
}

/// `picket … -f manifests/cli`.
fn judged(arguments: &[&str]) -> Run {
    picket(&[arguments, &["-f", &manifests("cli")]].concat())
}

const COMMANDS: [&str; 10] = [
    "agent",
    "matrix",
    "can",
    "why",
    "flows",
    "status",
    "uninstall",
    "cni",
    "completion",
    "version",
];

#[test]
fn help_lists_every_command_and_each_teaches_by_example() {
    let help = picket(&["--help"]);
    assert_eq!(help.code, 0);
    for command in COMMANDS {
        assert!(
            help.out.contains(&format!("  {command} ")),
            "{command} is not listed:\n{}",
            help.out
        );
        let its = picket(&[command, "--help"]);
        assert_eq!((its.code, its.err.as_str()), (0, ""), "{command}");
        assert!(
            its.out.contains(&format!("Usage: picket {command}")),
            "{}",
            its.out
        );
        assert!(
            its.out
                .contains(&format!("\nExamples:\n  picket {command}")),
            "{}",
            its.out
        );
    }
}

#[test]
fn as_a_kubectl_plugin_help_says_kubectl_picket() {
    let folder = std::env::temp_dir().join(format!("picket-cli-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let plugin = folder.join("kubectl-picket");
    std::os::unix::fs::symlink(binary(), &plugin).unwrap();
    let help = run_as(&plugin, &["why", "--help"], &[]);
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(
        help.out.contains("Usage: kubectl picket why"),
        "{}",
        help.out
    );
    assert!(
        help.out.contains("\n  kubectl picket why --to"),
        "{}",
        help.out
    );
}

#[test]
fn wrong_usage_ends_with_2_and_nothing_on_standard_output() {
    for arguments in [
        &["matrix"][..],
        &["nonsense"],
        &["can", "a/b/c/d", "e/f:80"],
        &["can", "a/b", "e/f:0"],
        &["matrix", "-f", "x", "--port", "http"],
        &["matrix", "-f", "/nonexistent/manifests"],
        &["why", "a/b"],
        &["can", "a/b", "c/d", "-f", "/nonexistent/manifests"],
    ] {
        let run = picket(arguments);
        assert_eq!(
            (run.code, run.out.as_str()),
            (2, ""),
            "{arguments:?}: {}",
            run.err
        );
        assert!(!run.err.is_empty(), "{arguments:?} fails without a word");
    }
}

#[test]
fn without_an_agent_the_socket_and_the_remedy_are_named() {
    for arguments in [
        &["status"][..],
        &["flows"],
        &["flows", "-f"],
        &["can", "a/b", "c/d:80"],
        &["why", "a/b", "c/d"],
        &["why", "--to", "a/b"],
    ] {
        let run = picket(&[arguments, &["--socket", "/nonexistent/agent.sock"]].concat());
        assert_eq!((run.code, run.out.as_str()), (2, ""), "{arguments:?}");
        assert!(
            run.err.starts_with(
                "picket: no agent answers at /nonexistent/agent.sock: there is no such socket"
            ),
            "{arguments:?}: {}",
            run.err
        );
    }
}

#[test]
fn a_port_that_was_forgotten_is_said_before_an_agent_is_looked_for() {
    let run = picket(&["can", "a/b", "c/d", "--socket", "/nonexistent/agent.sock"]);
    assert_eq!((run.code, run.out.as_str()), (2, ""));
    assert!(
        run.err.starts_with("picket: c/d: on which port?"),
        "{}",
        run.err
    );
}

#[test]
fn yaml_says_what_json_says() {
    let question = ["can", "lending/deploy/desk", "records/postgres-0:5432"];
    let said = |form| judged(&[&question[..], &["-o", form]].concat());
    let (yaml, json) = (said("yaml"), said("json"));
    assert_eq!((yaml.code, yaml.err.as_str()), (0, ""));
    assert!(
        yaml.out
            .starts_with("apiVersion: picket.dev/v1alpha1\nkind: Explanation\n"),
        "{}",
        yaml.out
    );
    assert!(
        yaml.out
            .contains("\n  rule: records/allow-desk/ingress/0\n"),
        "{}",
        yaml.out
    );
    // A line of YAML is a line of JSON, less what only closes.
    let values = |text: &str| text.matches("lending").count();
    assert_eq!(values(&yaml.out), values(&json.out));

    let matrix = judged(&["matrix", "-o", "yaml"]);
    assert!(
        matrix.out.starts_with(
            "apiVersion: picket.dev/v1alpha1\nkind: Matrix\nitems:\n- {\"from\":\"edge/"
        ),
        "{}",
        matrix.out
    );
}

#[test]
fn where_nothing_can_be_judged_the_reason_is_said_and_no_line_is_written() {
    let folder = std::env::temp_dir().join(format!("picket-cli-empty-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let run = picket(&["matrix", "-o", "jsonl", "-f", folder.to_str().unwrap()]);
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!((run.code, run.out.as_str()), (0, ""));
    assert!(
        run.err.contains("states no pod with an address") && run.err.contains("picket-cli-empty"),
        "{}",
        run.err
    );
}

#[test]
fn what_is_no_socket_and_what_holds_no_pins_is_said() {
    let status = picket(&["status", "--socket", "/dev/null"]);
    assert_eq!((status.code, status.out.as_str()), (2, ""));
    assert!(
        status.err.contains("that is no socket; is --socket right?"),
        "{}",
        status.err
    );
    let folder = std::env::temp_dir().join(format!("picket-cli-pins-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let uninstall = picket(&["uninstall", "--yes", "--pins", folder.to_str().unwrap()]);
    let is_there = folder.is_dir();
    std::fs::remove_dir_all(&folder).unwrap_or_default();
    assert_eq!((uninstall.code, uninstall.out.as_str()), (2, ""));
    assert!(
        uninstall.err.contains("is --pins right?"),
        "{}",
        uninstall.err
    );
    assert!(is_there, "it was not ours to remove");
}

#[test]
fn matrix_lines_have_the_fixed_form_and_order() {
    let run = judged(&["matrix", "-o", "jsonl"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    let lines: Vec<&str> = run.out.lines().collect();
    assert_eq!(lines.len(), 54);
    assert_eq!(
        lines[0],
        r#"{"from":"edge/gateway-5c8d7f6b9-4hxzt","to":"kube-system/coredns-7db6d8ff4d-9rnqv","protocol":"UDP","port":53,"ingress":"allow","egress":"allow","verdict":"allow"}"#
    );
    assert!(lines.contains(
        &r#"{"from":"lending/reminders-29384710-xv7bd","to":"records/postgres-0","protocol":"TCP","port":5432,"ingress":"deny","egress":"deny","verdict":"deny"}"#
    ));
    assert!(lines.contains(
        &r#"{"from":"lending/desk-6f9c8b7d5-2jk8m","to":"records/postgres-0","protocol":"TCP","port":5432,"ingress":"allow","egress":"allow","verdict":"allow"}"#
    ));
}

#[test]
fn given_ports_replace_declared_ones_and_externals_need_them() {
    let endpoints = ["--endpoint", "203.0.113.7", "--endpoint", "203.0.113.200"];
    let run = judged(
        &[
            &["matrix", "-o", "jsonl", "--port", "TCP/443"][..],
            &endpoints,
        ]
        .concat(),
    );
    assert_eq!(run.code, 0);
    // Nine ends, every ordered pair of distinct ones, less those of two externals.
    assert_eq!(
        run.out
            .lines()
            .filter(|line| line.contains("\"port\":443"))
            .count(),
        run.out.lines().count()
    );
    let verdict = |from: &str, to: &str| {
        let start = format!("{{\"from\":\"{from}\",\"to\":\"{to}\",");
        let line = run
            .out
            .lines()
            .find(|line| line.starts_with(&start))
            .unwrap();
        line.ends_with("\"verdict\":\"allow\"}")
    };
    assert!(verdict("lending/desk-6f9c8b7d5-2jk8m", "203.0.113.7"));
    assert!(
        !verdict("lending/desk-6f9c8b7d5-2jk8m", "203.0.113.200"),
        "it is excepted"
    );
    assert!(!verdict("203.0.113.7", "lending/desk-6f9c8b7d5-2jk8m"));

    let without = judged(&[&["matrix", "-o", "jsonl"][..], &endpoints].concat());
    assert_eq!(without.code, 0);
    assert!(
        !without.out.contains("\"to\":\"203.0.113.7\""),
        "no port to judge it on"
    );
    assert!(
        without.err.contains("203.0.113.7") && without.err.contains("--port"),
        "{}",
        without.err
    );
}

#[test]
fn the_table_is_a_grid_for_each_port() {
    let run = judged(&["matrix", "--port", "TCP/5432"]);
    assert_eq!(run.code, 0);
    assert!(
        run.out.starts_with("TCP/5432  from (rows) to (columns)\n"),
        "{}",
        run.out
    );
    assert!(
        run.out.contains('✗') && run.out.contains('✓') && !run.out.contains('\x1b'),
        "{}",
        run.out
    );
    let ascii = run_as(
        &binary(),
        &[
            "matrix",
            "--port",
            "TCP/5432",
            "-f",
            &manifests("cli"),
            "--color",
            "always",
        ],
        &[("LANG", "C")],
    );
    assert!(
        ascii.out.is_ascii() && ascii.out.contains("\x1b[31mx\x1b[0m"),
        "{}",
        ascii.out
    );
}

#[test]
fn broken_manifests_are_said_and_the_rest_is_judged() {
    let run = picket(&["matrix", "-o", "jsonl", "-f", &manifests("cli-broken")]);
    assert_eq!(run.code, 2, "the exit code remembers");
    assert_eq!(
        run.out,
        "{\"from\":\"x/a\",\"to\":\"x/b\",\"protocol\":\"TCP\",\"port\":80,\"ingress\":\"allow\",\"egress\":\"allow\",\"verdict\":\"allow\"}\n\
         {\"from\":\"x/b\",\"to\":\"x/a\",\"protocol\":\"TCP\",\"port\":80,\"ingress\":\"deny\",\"egress\":\"allow\",\"verdict\":\"deny\"}\n"
    );
    for part in [
        "error: ",
        "objects.yaml",
        "networkpolicy x/wrong",
        "spec.ingress[0].from[0].ipBlock.cidr",
        "10.0.0.0/33",
    ] {
        assert!(run.err.contains(part), "{part} is missing: {}", run.err);
    }
}

#[test]
fn can_says_yes_with_the_rules_that_admit() {
    let run = judged(&["can", "edge/deploy/gateway", "lending/deploy/desk:http"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert_eq!(
        run.out,
        "\
✓ yes   edge/deploy/gateway → lending/deploy/desk   TCP/8080 (http)
        egress   yes  not isolated
        ingress  yes  allow-gateway[0]
"
    );
}

#[test]
fn can_says_no_with_1_and_the_nearest_miss() {
    let run = judged(&["can", "lending/reminders", "records/sts/postgres:5432"]);
    assert_eq!((run.code, run.err.as_str()), (1, ""));
    assert!(
        run.out
            .starts_with("✗ no   lending/cronjob/reminders → records/sts/postgres   TCP/5432\n"),
        "{}",
        run.out
    );
    assert!(run.out.contains("nearest allow-desk[0]"), "{}", run.out);
}

#[test]
fn unknown_names_come_with_the_nearest_and_end_with_2() {
    let run = judged(&["can", "lending/deploy/dsk", "records/sts/postgres:5432"]);
    assert_eq!((run.code, run.out.as_str()), (2, ""));
    assert!(
        run.err.starts_with(
            "picket: deployment lending/dsk: there is none; nearest: lending/deploy/desk"
        ),
        "{}",
        run.err
    );
}

#[test]
fn why_explains_each_declared_port_when_none_is_said() {
    let run = judged(&["why", "watch/prometheus-0", "lending/deploy/desk"]);
    assert_eq!(run.code, 1, "8080 is refused, 9090 is not");
    assert!(
        run.out
            .contains("✗ DENIED   watch/prometheus-0 → lending/deploy/desk   TCP/8080"),
        "{}",
        run.out
    );
    assert!(
        run.out
            .contains("✓ ALLOWED   watch/prometheus-0 → lending/deploy/desk   TCP/9090"),
        "{}",
        run.out
    );
    assert!(
        run.out
            .contains("admitted by lending/allow-scrape/ingress/0"),
        "{}",
        run.out
    );
    assert!(run.out.contains("isolated by"), "{}", run.out);
}

#[test]
fn json_is_the_api_object() {
    let run = judged(&[
        "can",
        "lending/deploy/desk",
        "10.20.1.30:5432",
        "-o",
        "json",
    ]);
    let object: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(run.code, 0);
    assert_eq!(object["apiVersion"], "picket.dev/v1alpha1");
    assert_eq!(object["kind"], "Explanation");
    assert_eq!(object["verdict"], "allow");
    assert_eq!(object["from"]["workload"], "Deployment/desk");
    assert_eq!(object["to"]["pod"], "postgres-0");
    assert_eq!(
        object["judgements"][1]["rule"],
        "records/allow-desk/ingress/0"
    );
    assert_eq!(object.get("observed"), None, "unknown is absent");
}

#[test]
fn completion_and_version_answer_on_standard_output() {
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let run = picket(&["completion", shell]);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{shell}");
        assert!(run.out.contains("picket"), "{shell}");
    }
    let version = picket(&["version"]);
    assert!(
        version
            .out
            .starts_with("picket 0.1.0 (map layout 1, API picket.dev/v1alpha1)"),
        "{}",
        version.out
    );
}

#[test]
fn uninstall_never_acts_unasked() {
    let run = picket(&["uninstall", "--pins", "/nonexistent/pins"]);
    assert_eq!((run.code, run.out.as_str()), (2, ""));
    assert!(run.err.contains("add --yes"), "{}", run.err);
}

#[test]
fn uninstall_waits_when_it_is_told_to_until_it_is_told_to_end() {
    let mut waiting = Command::new(binary())
        .args([
            "uninstall",
            "--yes",
            "--wait",
            "--pins",
            "/nonexistent/pins",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(waiting.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.starts_with("nothing of Picket is pinned"), "{line}");
    // What follows is the end of its output, which comes with its own end.
    let pid = Pid::from_raw(waiting.id().try_into().unwrap());
    let is_running = waiting.try_wait().unwrap().is_none();
    kill(pid, Signal::SIGTERM).unwrap();
    let end = waiting.wait().unwrap();
    assert!(is_running && end.code() == Some(0), "{end}");
}

#[test]
fn capacities_come_from_the_environment_with_commas_between() {
    let variable = ("PICKET_MAP_CAPACITY", "VERDICTS=4096,NO_SUCH_MAP=1");
    let run = run_as(&binary(), &["agent", "--manifests", "/"], &[variable]);
    assert_eq!((run.code, run.out.as_str()), (2, ""));
    assert!(
        run.err
            .contains("--map-capacity \"NO_SUCH_MAP\": no such map"),
        "{}",
        run.err
    );
}
