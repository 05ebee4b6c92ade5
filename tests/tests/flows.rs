//! `picket flows` of a real agent on real connections: each is told once, with its verdict and the
//! rule or the absence of one that decided it, as a table, as JSON and as it happens.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use agent::dto::{Document, Edge, EdgeList, Flow, Party, VerdictWord};
use agent_policy::model::Protocol;
use anyhow::{Context as _, Result, bail, ensure};
use tests::lab::agent::{picket, run_picket};
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;
use tests::lab::wait_until;
use tests::probe::Servers;

const PORTS: &[(Protocol, u16)] = &[(Protocol::TCP, 8080)];
const WITHIN: Duration = Duration::from_secs(20);
const ADMITS_CLIENTS: &str = "{podSelector: {matchLabels: {role: server}}, \
     ingress: [{from: [{podSelector: {matchLabels: {role: client}}}], ports: [{port: 8080}]}]}";
const RULE: &str = "shop/only-clients/ingress/0";
/// Connections of the client.
const CALLS: u64 = 3;
/// A port at which the stranger is refused once.
const REFUSED: u16 = 8081;

/// A server that admits its client and nobody else, with the policy in force.
fn stage() -> Result<(Stage, Servers)> {
    let cluster = [
        namespace("shop", ""),
        namespace("attic", ""),
        pod("shop/server", "role: server", &["10.14.0.1"]),
        pod("shop/client", "role: client", &["10.14.0.2"]),
        pod("attic/stranger", "", &["10.14.0.3"]),
    ];
    let mut stage = Stage::open(&cluster.join("---\n"))?;
    let servers = stage.lab.serve("shop/server", PORTS)?;
    let policy = policy("shop", "only-clients", ADMITS_CLIENTS);
    stage.apply("policy.yaml", &policy)?;
    Ok((stage, servers))
}

/// The client calls some times, the stranger once, at a port.
fn call(stage: &Stage, port: u16) -> Result<()> {
    for _ in 0..CALLS {
        ensure!(stage.lab.reaches("shop/client", "shop/server", PORTS)?);
    }
    knock(stage, port)
}

/// The stranger is refused at a port.
fn knock(stage: &Stage, port: u16) -> Result<()> {
    let ports = &[(Protocol::TCP, port)];
    ensure!(!stage.lab.reaches("attic/stranger", "shop/server", ports)?);
    Ok(())
}

fn is(party: &Party, pod: &str) -> bool {
    let workload = party.workload.as_deref().unwrap_or_default();
    let namespace = party.namespace.as_deref().unwrap_or_default();
    let name = party.pod.as_deref();
    let name = name.or_else(|| workload.strip_prefix("Pod/"));
    format!("{namespace}/{}", name.unwrap_or_default()) == pod
}

/// What `picket flows` prints with further options.
fn flows(options: &[&str]) -> Result<(String, String)> {
    let output = run_picket(&[&["flows"], options].concat())?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.status.success(), "flows {options:?}: {said}");
    Ok((String::from_utf8(output.stdout)?, said))
}

/// The one edge between two pods.
fn edge<'a>(list: &'a EdgeList, from: &str, to: &str) -> Result<&'a Edge> {
    let between = |edge: &&Edge| is(&edge.from, from) && is(&edge.to, to);
    let found: Vec<&Edge> = list.items.iter().filter(between).collect();
    let [edge] = found[..] else {
        bail!("{from} to {to}: {found:?} among {list:?}");
    };
    Ok(edge)
}

#[test]
fn edges_say_how_often_and_by_which_rule() -> Result<()> {
    let (stage, _servers) = stage()?;
    call(&stage, 8080)?;
    wait_until("the edges to be told", WITHIN, || {
        let (text, _) = flows(&["-o", "json"])?;
        let list: Document<EdgeList> = serde_json::from_str(&text).context(text)?;
        let allowed = edge(&list.body, "shop/client", "shop/server")?;
        ensure!(allowed.connections == CALLS, "{allowed:?}");
        ensure!(allowed.verdict == VerdictWord::Allow, "{allowed:?}");
        ensure!(allowed.decision.reason == "rule", "{allowed:?}");
        ensure!(
            allowed.decision.rule.as_deref() == Some(RULE),
            "{allowed:?}"
        );
        ensure!(
            (allowed.protocol.as_str(), allowed.port) == ("TCP", Some(8080)),
            "{allowed:?}"
        );
        let denied = edge(&list.body, "attic/stranger", "shop/server")?;
        ensure!(denied.verdict == VerdictWord::Deny, "{denied:?}");
        ensure!(denied.decision.reason == "isolated-no-rule", "{denied:?}");
        ensure!(denied.decision.rule.is_none(), "{denied:?}");
        ensure!(
            denied.decision.isolated_by == ["shop/only-clients"],
            "{denied:?}"
        );
        let nearest = denied
            .decision
            .nearest
            .first()
            .context("the nearest rule")?;
        ensure!(nearest.rule == RULE, "{denied:?}");
        ensure!(list.body.events_lost == 0, "{list:?}");
        Ok(())
    })?;

    let (table, said) = flows(&[])?;
    let words: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let has = |row: &[&str]| words.iter().any(|line| line.ends_with(row));
    ensure!(
        has(&[
            "allow",
            "shop/pod/client",
            "shop/pod/server",
            "TCP/8080",
            "3",
            "only-clients[0]"
        ]),
        "{table}"
    );
    ensure!(
        table.contains("ingress: no rule admits (near: only-clients[0])"),
        "{table}"
    );
    ensure!(said.contains("no events lost"), "{said}");
    ensure!(
        said.contains("picket why attic/pod/stranger shop/pod/server:8080"),
        "{said}"
    );

    let (refused, _) = flows(&["--verdict", "deny", "-n", "attic", "--no-headers"])?;
    ensure!(
        refused.lines().count() == 1 && refused.contains("attic/pod/stranger"),
        "{refused}"
    );
    Ok(())
}

/// `picket flows -f` and what it has printed; it ends with the value.
struct Following {
    child: Child,
    lines: mpsc::Receiver<String>,
    printed: Vec<String>,
}

impl Following {
    fn start(options: &[&str]) -> Result<Self> {
        let mut child = Command::new(picket()?)
            .args(["flows", "-f"])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = BufReader::new(child.stdout.take().context("its output")?);
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            // Ends with the program's output, or when nobody listens any more.
            for line in out.lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            lines,
            printed: Vec::new(),
        })
    }

    fn printed(&mut self) -> &[String] {
        self.printed.extend(self.lines.try_iter());
        &self.printed
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().unwrap_or_default();
        drop(self.child.wait());
    }
}

/// How many connections lines tell of that say all of these words.
fn times(lines: &[String], words: &[&str]) -> u64 {
    let repeated = |line: &str| -> Option<u64> {
        let (_, count) = line.split_once('×')?;
        count.split_once(" more")?.0.parse().ok()
    };
    let (mut times, mut last) = (0, "");
    for line in lines {
        let about = if line.contains("(same,") { last } else { line };
        if words.iter().all(|word| about.contains(word)) {
            times += repeated(line).unwrap_or(1);
        }
        // Repetitions follow, indented, what begins with the time.
        if !line.starts_with(' ') {
            last = line;
        }
    }
    times
}

/// The stranger knocks, at another port each time (a refusal that goes on is told once), until each
/// of these has told one of the knocks. Returns the port that comes next.
fn knock_until_told(
    stage: &Stage,
    followings: &mut [Following; 3],
    first: u16,
    what: &str,
) -> Result<u16> {
    let mut port = first;
    wait_until(what, WITHIN, || {
        knock(stage, port)?;
        port += 1;
        for following in &mut *followings {
            let told = following.printed();
            let is_told = (first..port)
                .flat_map(|port| [format!("TCP/{port} "), format!("\"port\":{port},")])
                .any(|word| told.iter().any(|line| line.contains(&word)));
            ensure!(is_told, "none of {first}..{port} is in {told:?}");
        }
        Ok(())
    })?;
    Ok(port)
}

#[test]
fn each_connection_is_told_as_it_happens() -> Result<()> {
    let (stage, _servers) = stage()?;
    let mut followings = [
        Following::start(&[])?,
        Following::start(&["-o", "jsonl"])?,
        Following::start(&["-o", "jsonl", "--verdict", "deny"])?,
    ];
    // Who follows hears what happens from then on, and in its order: what is told between two
    // knocks is all that was told of what happened between them.
    let next = knock_until_told(&stage, &mut followings, 9000, "all to follow")?;
    call(&stage, REFUSED)?;
    knock_until_told(&stage, &mut followings, next, "all to be told")?;
    let [lines, objects, refusals] = &mut followings;

    let to = "shop/server TCP/8080 ";
    let to_refused = format!("shop/server TCP/{REFUSED} ");
    // What repeats within a second is a count at its end.
    wait_until("the second's end", WITHIN, || {
        let told = lines.printed();
        let calls = times(told, &["allow", "shop/client", to, "only-clients[0]"]);
        let refusals = times(told, &["deny", "attic/stranger", &to_refused, "no rule"]);
        let of_client = times(told, &["shop/client"]);
        ensure!(
            (calls, refusals, of_client) == (CALLS, 1, CALLS),
            "{calls} calls, {refusals} refusals in {told:?}"
        );
        Ok(())
    })?;

    let read = |lines: &[String]| -> Result<Vec<Flow>> {
        let flows = lines.iter().map(|line| {
            let flow: Document<Flow> = serde_json::from_str(line).with_context(|| line.clone())?;
            Ok(flow.body)
        });
        flows.collect()
    };
    let is_call = |flow: &&Flow| {
        is(&flow.from, "shop/client")
            && is(&flow.to, "shop/server")
            && flow.verdict == VerdictWord::Allow
            && flow.decision.rule.as_deref() == Some(RULE)
    };
    let is_strangers = |flow: &Flow| {
        is(&flow.from, "attic/stranger")
            && flow.verdict == VerdictWord::Deny
            && flow.decision.reason == "isolated-no-rule"
    };
    let is_refused = |flow: &&Flow| is_strangers(flow) && flow.port == Some(REFUSED);
    let told = read(objects.printed())?;
    ensure!(
        told.iter().filter(is_call).count() as u64 == CALLS
            && told.iter().filter(is_refused).count() == 1
            && told.iter().all(|flow| is_call(&flow) || is_strangers(flow)),
        "{told:?}"
    );
    let told = read(refusals.printed())?;
    ensure!(
        told.iter().filter(is_refused).count() == 1 && told.iter().all(is_strangers),
        "{told:?}"
    );
    Ok(())
}
