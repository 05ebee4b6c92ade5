//! The running agent on a directory that somebody spoils: it goes on enforcing what it knew, says
//! what is wrong, and follows the rest.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use agent::dto::Status;
use agent_policy::model::Protocol;
use anyhow::{Context as _, Result, ensure};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tests::lab::agent::{Agent, ask, request, run_picket};
use tests::lab::hanging::Hanging;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;
use tests::lab::wait_until;

const PORTS: &[(Protocol, u16)] = &[(Protocol::TCP, 8080)];
/// How long the agent may take to say what it noticed, on a machine that does other things, too.
const SAID_WITHIN: Duration = Duration::from_mins(3);
/// A regular file that nobody can read, not even root.
const UNREADABLE: &str = "/proc/self/mem";

fn address(number: u8) -> IpAddr {
    IpAddr::from([10, 14, 0, number])
}

fn cluster() -> String {
    [
        namespace("shop", ""),
        pod("shop/api", "app: api", &[address(1)]),
        pod("shop/web", "app: web", &[address(2)]),
        pod("shop/other", "app: other", &[address(3)]),
    ]
    .join("---\n")
}

/// Only pods with this label reach the api.
fn admits(app: &str) -> String {
    policy(
        "shop",
        "api",
        &format!(
            "{{podSelector: {{matchLabels: {{app: api}}}}, ingress: [{{from: [{{podSelector: \
             {{matchLabels: {{app: {app}}}}}}}]}}]}}"
        ),
    )
}

/// Who of web and other reaches the api.
fn reach(stage: &Stage) -> Result<(bool, bool)> {
    let reaches = |from| stage.lab.reaches(from, "shop/api", PORTS);
    Ok((reaches("shop/web")?, reaches("shop/other")?))
}

fn wait_said(part: &str) -> Result<()> {
    wait_until(part, SAID_WITHIN, || {
        let findings = ask::<Status>("/v1/status")?.findings;
        let is_said = findings.iter().any(|each| each.message.contains(part));
        ensure!(is_said, "{findings:?}");
        Ok(())
    })
}

/// `picket status` says it, and ends with 1.
fn status_says(part: &str) -> Result<()> {
    let output = run_picket(&["status"])?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.contains(part), "{part} is not in\n{text}");
    ensure!(
        output.status.code() == Some(1),
        "ended with {}",
        output.status
    );
    Ok(())
}

/// An alias bomb: each level is nine of the one below.
fn bomb() -> String {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..20 {
        let items = vec![format!("*a{}", level - 1); 9].join(", ");
        bomb = format!("{bomb}a{level}: &a{level} [{items}]\n");
    }
    bomb
}

#[test]
fn a_spoilt_directory_leaves_enforcement_as_it_is_and_is_told_of() -> Result<()> {
    let mut stage = Stage::open(&cluster())?;
    let _servers = stage.lab.serve("shop/api", PORTS)?;
    stage.apply("policy.yaml", &admits("web"))?;
    ensure!(reach(&stage)? == (true, false));

    let manifests = stage.lab.manifests();
    let policy = manifests.join("policy.yaml");
    let spoilt: [(&str, Vec<u8>); 6] = [
        ("bytes", b"kind: \xff\n".to_vec()),
        ("bomb", bomb().into_bytes()),
        ("deep", "[".repeat(1 << 20).into_bytes()),
        (
            "twice",
            format!("{}kind: Pod\n", admits("other")).into_bytes(),
        ),
        (
            "half",
            admits("other").into_bytes().into_iter().take(60).collect(),
        ),
        ("large", {
            let comment = format!("# {}\n", "x".repeat(98)).into_bytes();
            [admits("other").into_bytes(), comment.repeat(700_000)].concat()
        }),
    ];
    for (what, bytes) in spoilt {
        fs::write(&policy, bytes)?;
        wait_said("policy.yaml")?;
        stage.settle()?;
        ensure!(reach(&stage)? == (true, false), "{what}: as it was");
        status_says("policy.yaml")?;
        stage.apply("policy.yaml", &admits("web"))?;
        ensure!(
            ask::<Status>("/v1/status")?.findings.is_empty(),
            "{what}: mended"
        );
    }

    mkfifo(&manifests.join("pipe.yaml"), Mode::S_IRWXU)?;
    let _socket = UnixListener::bind(manifests.join("socket.yaml"))?;
    symlink("/dev/zero", manifests.join("device.yaml"))?;
    symlink(&manifests, manifests.join("again"))?;
    symlink("round.yaml", manifests.join("round.yaml"))?;
    symlink(UNREADABLE, manifests.join("unreadable.yaml"))?;
    for name in ["pipe", "socket", "device", "round", "unreadable"] {
        wait_said(&format!("{name}.yaml"))?;
        status_says(&format!("{name}.yaml"))?;
    }
    // What is there yet is followed.
    stage.apply("policy.yaml", &admits("other"))?;
    ensure!(reach(&stage)? == (false, true), "followed");
    Ok(())
}

#[test]
fn an_agent_that_starts_on_what_it_cannot_read_leaves_what_is_in_force_and_says_so() -> Result<()> {
    let mut stage = Stage::open(&cluster())?;
    let _servers = stage.lab.serve("shop/api", PORTS)?;
    stage.apply("policy.yaml", &admits("web"))?;
    ensure!(reach(&stage)? == (true, false));

    stage.agent.take().context("the agent")?.kill()?;
    // Whatever it says now may well be what is in force.
    let policy = stage.lab.manifests().join("policy.yaml");
    fs::remove_file(&policy)?;
    symlink(UNREADABLE, &policy)?;
    let mut agent = Agent::spawn(&stage.lab.manifests(), &[])?;
    wait_said("policy.yaml")?;
    status_says("not yet enforcing")?;
    status_says("what is in force stays")?;
    let (ready, _) = request("/readyz")?;
    ensure!(ready == 503, "/readyz says {ready}");
    ensure!(reach(&stage)? == (true, false), "as it was");
    // Nobody knows what is allowed to a pod that comes now.
    stage.lab.add_pod("shop/late", &[address(4)])?;
    let _late = stage.lab.serve("shop/late", PORTS)?;
    wait_until("its interface to be closed", SAID_WITHIN, || {
        status_says("closed until one does")
    })?;
    let reaches = |from, to| stage.lab.reaches(from, to, PORTS);
    ensure!(!reaches("shop/late", "shop/web")?, "from it");
    ensure!(!reaches("shop/web", "shop/late")?, "to it");

    fs::remove_file(&policy)?;
    fs::write(&policy, admits("other"))?;
    agent.wait_ready()?;
    stage.agent = Some(agent);
    stage.settle()?;
    ensure!(reach(&stage)? == (false, true), "as it says now");
    Ok(())
}

#[test]
fn a_policy_too_large_for_an_api_server_stays_what_it_was() -> Result<()> {
    let mut stage = Stage::open(&cluster())?;
    let _servers = stage.lab.serve("shop/api", PORTS)?;
    stage.apply("policy.yaml", &admits("web"))?;
    // Four MiB of ports, and everybody in.
    let ports = "{port: 8080}, ".repeat(300_000);
    let spec = format!("{{podSelector: {{}}, ingress: [{{ports: [{ports}]}}]}}");
    stage
        .lab
        .write_manifest("policy.yaml", &policy("shop", "api", &spec))?;
    wait_said("of which an API server takes 3")?;
    stage.settle()?;
    ensure!(reach(&stage)? == (true, false), "as it was");
    status_says("networkpolicy shop/api")?;
    Ok(())
}

#[test]
fn a_file_that_does_not_answer_is_told_of_and_what_is_in_force_stays() -> Result<()> {
    let mut stage = Stage::open(&cluster())?;
    let _servers = stage.lab.serve("shop/api", PORTS)?;
    stage.apply("policy.yaml", &admits("web"))?;

    let slow = stage.lab.manifests().join("slow.yaml");
    fs::write(&slow, "")?;
    stage.settle()?;
    let hanging = Hanging::mount(&slow, &namespace("late", ""))?;
    wait_until("the agent to read it", SAID_WITHIN, || {
        ensure!(hanging.is_waited_for(), "nobody does");
        Ok(())
    })?;
    // Nobody can notice this now, but the rest of the agent is there, and says why.
    stage.lab.write_manifest("policy.yaml", &admits("other"))?;
    wait_said("has not answered for")?;
    status_says("slow.yaml")?;
    ensure!(reach(&stage)? == (true, false), "as it was");
    stage.lab.add_pod("shop/late", &[address(4)])?;
    let _late = stage.lab.serve("shop/late", PORTS)?;
    stage
        .lab
        .wait_reaches("shop/web", "shop/late", PORTS, false)?;

    hanging.answer()?;
    stage.settle()?;
    ensure!(reach(&stage)? == (false, true), "noticed");
    let findings = ask::<Status>("/v1/status")?.findings;
    ensure!(findings.is_empty(), "{findings:?}");
    Ok(())
}
