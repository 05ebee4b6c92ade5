//! What the running agent answers: on its socket, which is root's, and where metrics are scraped.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::lab::agent::{Agent, get, metric, request};
use tests::lab::objects::policy;
use tests::lab::stage::Stage;
use tests::lab::wait_until;

const CLUSTER: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}
- apiVersion: v1
  kind: Pod
  metadata: {namespace: shop, name: api, labels: {app: api}}
  spec: {containers: [{name: c, image: i, ports: [{containerPort: 8080}]}]}
  status: {podIP: 10.4.0.1}
- apiVersion: v1
  kind: Pod
  metadata: {namespace: shop, name: web, labels: {app: web}}
  spec: {containers: [{name: c, image: i}]}
  status: {podIP: 10.4.0.2}
";
const SCRAPES: &str = "127.0.0.1:9464";

fn answer(path: &str) -> Result<(u16, Value)> {
    let (status, body) = request(path)?;
    let text = String::from_utf8_lossy(&body).into_owned();
    Ok((status, serde_json::from_str(&text).with_context(|| text)?))
}

#[test]
fn every_question_is_answered_with_an_object_that_says_what_it_is() -> Result<()> {
    let mut stage = Stage::open(CLUSTER)?;
    stage.apply(
        "policy.yaml",
        &policy("shop", "deny", "{podSelector: {matchLabels: {app: api}}}"),
    )?;
    let mut answers = Vec::new();
    for (path, kind) in [
        ("/v1/status", "Status"),
        ("/v1/endpoints", "EndpointList"),
        ("/v1/flows", "FlowList"),
        ("/v1/edges", "EdgeList"),
        ("/v1/maps", "MapList"),
        ("/v1/can?from=shop/web&to=shop/api:8080", "Explanation"),
        ("/v1/why?from=shop/web&to=shop/api", "ExplanationList"),
        ("/v1/why?to=shop/api", "DenialList"),
        ("/v1/policy/shop/api", "EffectivePolicy"),
    ] {
        let (status, object) = answer(path)?;
        assert_eq!(status, 200, "{path}: {object}");
        assert_eq!(object["apiVersion"], "picket.dev/v1alpha1", "{path}");
        assert_eq!(object["kind"], kind, "{path}");
        answers.push(object);
    }
    assert_eq!(answers[0]["enforcing"], true);
    assert_eq!(answers[1]["items"].as_array().unwrap().len(), 3);
    assert_eq!(answers[5]["verdict"], "deny");
    assert_eq!(answers[6]["items"][0]["verdict"], "deny");
    let isolated_by = &answers[8]["directions"][0]["isolatedBy"];
    assert!(isolated_by.to_string().contains("deny"), "{isolated_by}");
    Ok(())
}

#[test]
fn what_cannot_be_answered_has_a_status_and_a_reason() -> Result<()> {
    let _stage = Stage::open(CLUSTER)?;
    for (path, wanted, word) in [
        ("/v1/nonsense", 404, "/v1/status"),
        ("/v1/policy/shop/nobody", 400, "nobody"),
        ("/v1/can?from=shop/web", 400, "to="),
        ("/v1/can?from=a/b/c/d&to=shop/api:80", 400, "a/b/c/d"),
        ("/v1/can?from=shop/web&to=shop/nobody:80", 400, "nobody"),
    ] {
        let (status, problem) = answer(path)?;
        assert_eq!(status, wanted, "{path}: {problem}");
        assert_eq!(problem["kind"], "Problem", "{path}");
        let message = problem["message"].as_str().unwrap();
        assert!(message.contains(word), "{path}: {message}");
    }
    Ok(())
}

#[test]
fn an_agent_whose_policy_is_refused_is_not_ready() -> Result<()> {
    let mut stage = Stage::without_agent(CLUSTER)?;
    let options = ["--map-capacity", "VERDICTS=3"];
    stage.agent = Some(Agent::start_with(&stage.lab.manifests(), &options)?);
    let many = (0..8).map(|n| {
        let spec = format!(
            "{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: 10.{n}.0.0/16}}}}], \
             ports: [{{port: {}}}]}}]}}",
            80 + n
        );
        policy("shop", &format!("p{n}"), &spec)
    });
    let many: Vec<String> = many.collect();
    stage.lab.write_manifest("many.yaml", &many.join("---\n"))?;
    wait_until("the refusal", Duration::from_secs(30), || {
        let (status, body) = request("/readyz")?;
        let said = String::from_utf8_lossy(&body);
        ensure!(status == 503, "{status}: {said}");
        ensure!(
            said.contains("verdict rows, more than the limit of 3"),
            "{said}"
        );
        Ok(())
    })?;
    stage.lab.remove_manifest("many.yaml")?;
    wait_until("it to be ready again", Duration::from_secs(30), || {
        get("/readyz")
    })
    .map(drop)
}

#[test]
fn the_socket_is_roots_alone_and_scrapes_see_nothing_else() -> Result<()> {
    let mut stage = Stage::without_agent(CLUSTER)?;
    let options = ["--metrics", SCRAPES];
    stage.agent = Some(Agent::start_with(&stage.lab.manifests(), &options)?);
    let mode = std::fs::metadata("/run/picket/agent.sock")?
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    for (path, wanted) in [
        ("/metrics", "200"),
        ("/healthz", "200"),
        ("/readyz", "200"),
        ("/v1/status", "404"),
        ("/v1/flows", "404"),
    ] {
        let mut stream = TcpStream::connect(SCRAPES)?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: picket\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        assert_eq!(answer.split(' ').nth(1), Some(wanted), "{path}: {answer}");
        if path == "/metrics" {
            assert!(answer.contains("\npicket_endpoints"), "{answer}");
        }
    }
    Ok(())
}

/// How fast that is, `cargo xtask bench scale` measures.
#[test]
fn each_change_is_timed_from_its_notice_to_the_maps() -> Result<()> {
    let mut stage = Stage::open(CLUSTER)?;
    let (mut changes, mut seconds) = timed()?;
    for port in [80, 81, 82] {
        let spec = format!("{{podSelector: {{}}, ingress: [{{ports: [{{port: {port}}}]}}]}}");
        let began = Instant::now();
        stage.apply("policy.yaml", &policy("shop", "p", &spec))?;
        let (changes_now, seconds_now) = timed()?;
        let (more, took) = (changes_now - changes, seconds_now - seconds);
        // A file may be noticed more than once.
        assert!(more >= 1.0, "{more} changes");
        assert!(
            took > 0.0 && took <= began.elapsed().as_secs_f64() * more,
            "{took} s in {:?}",
            began.elapsed()
        );
        (changes, seconds) = (changes_now, seconds_now);
    }
    Ok(())
}

/// How many changes were timed, and how long they took together, in seconds.
fn timed() -> Result<(f64, f64)> {
    let value = |part: &str| {
        metric(&format!(
            "picket_policy_apply_duration_seconds_{part}{{stage=\"watch_to_map\"}}"
        ))
    };
    Ok((value("count")?, value("sum")?))
}
