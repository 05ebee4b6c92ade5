//! What does not fit its map: the state in force stays, whole; what is wrong and which setting
//! mends it is said; it is tried again; pods that come meanwhile take the posture.

#![expect(
    clippy::unwrap_used,
    reason = "a test's own module: a panic is the failure's report"
)]

use aya::maps::{HashMap, Map, MapData};

use super::shop::{
    Shop, WITHIN, address, metric, pod, policy, usual_policy, wait_for_error, wait_for_no_error,
};
use agent::dto::{EffectivePolicy, Status};
use agent_common::maps::RULE_ROWS;
use anyhow::bail;
use tests::lab::agent::{ask, log};
use tests::lab::pins::pinned;
use tests::lab::wait_until;

/// A change that lets nobody in any more, and needs more of something than there is.
struct Limit {
    map: &'static str,
    capacity: u32,
    /// The rules of `shop/api`, besides which nothing is needed.
    rules: String,
    /// Further objects.
    objects: String,
}

fn limits() -> Vec<Limit> {
    let some =
        |count: u8, one: &dyn Fn(u8) -> String| (1..=count).map(one).collect::<Vec<_>>().join(", ");
    let blocks = some(40, &|n| format!("{{ipBlock: {{cidr: 192.0.{n}.0/24}}}}"));
    let ports = some(40, &|n| {
        format!("{{protocol: TCP, port: {}}}", 2 * u16::from(n))
    });
    let distinct = some(40, &|n| {
        format!("{{from: [{{ipBlock: {{cidr: 192.0.{n}.0/24}}}}], ports: [{{port: {n}}}]}}")
    });
    let peers: Vec<String> = (20..80)
        .map(|last| pod(&format!("peer{last}"), last))
        .collect();
    let limit = |map, rules, objects| Limit {
        map,
        capacity: 32,
        rules,
        objects,
    };
    vec![
        limit(
            "PEERS_EXACT",
            "{from: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}}]}"
                .to_owned(),
            peers.join("---\n"),
        ),
        limit("PEERS_CIDR", format!("{{from: [{blocks}]}}"), String::new()),
        limit("PORTS", format!("{{from: [{{ipBlock: {{cidr: 192.0.2.0/24}}}}], ports: [{ports}]}}"), String::new()),
        limit("VERDICTS", distinct.clone(), String::new()),
        limit("NAMES", distinct, String::new()),
    ]
}

#[test]
fn a_plan_that_does_not_fit_a_map_is_refused_whole_and_tried_again() {
    // Each in a lab of its own, which is its thread's.
    for limit in limits() {
        std::thread::spawn(move || refused_whole(&limit))
            .join()
            .unwrap();
    }
}

fn refused_whole(limit: &Limit) {
    let shop = Shop::new();
    let option = format!("{}={}", limit.map, limit.capacity);
    let _agent = shop.agent(&["--map-capacity", &option]);
    shop.wait("shop/web", "shop/api", true);
    shop.lab
        .write_manifest("more.yaml", &limit.objects)
        .unwrap();
    shop.lab
        .write_manifest("policy.yaml", &policy(&limit.rules))
        .unwrap();
    let setting = format!("--map-capacity {}=", limit.map);
    wait_for_error("limit", &[&setting, "the state in force stays"]);
    assert!(shop.reaches("shop/web", "shop/api"), "{}", limit.map);
    assert!(!shop.reaches("shop/other", "shop/api"), "{}", limit.map);
    // Half of it is not in force either: the same change, but small enough.
    shop.lab.write_manifest("policy.yaml", &policy("")).unwrap();
    shop.lab.write_manifest("more.yaml", "").unwrap();
    shop.wait("shop/web", "shop/api", false);
    wait_for_no_error();
}

#[test]
fn a_pod_that_comes_while_plans_are_refused_takes_the_posture() {
    for (posture, is_open) in [("closed", false), ("open", true)] {
        std::thread::spawn(move || takes_posture(posture, is_open))
            .join()
            .unwrap();
    }
}

fn takes_posture(posture: &str, is_open: bool) {
    let mut shop = Shop::new();
    let _agent = shop.agent(&["--map-capacity", "NAMES=6", "--posture", posture]);
    let rules = "{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}, ".repeat(5);
    shop.lab
        .write_manifest("policy.yaml", &policy(&rules))
        .unwrap();
    wait_for_error("limit", &["--map-capacity NAMES="]);
    shop.lab.write_manifest("new.yaml", &pod("new", 4)).unwrap();
    shop.lab.add_pod("shop/new", &[address(4)]).unwrap();
    wait_until("the pod to be seen", WITHIN, || {
        let status: Status = ask("/v1/status")?;
        if status.endpoints.iter().any(|each| each.pod == "new") {
            return Ok(());
        }
        bail!("the agent said:\n{}", log())
    })
    .unwrap();
    shop.wait("shop/other", "shop/new", is_open);
    assert!(shop.reaches("shop/web", "shop/api"), "others are as before");
    shop.lab
        .write_manifest("policy.yaml", &usual_policy())
        .unwrap();
    shop.wait("shop/other", "shop/new", true);
    wait_for_no_error();
}

/// A pinned map of the agent's, as somebody else may write it.
fn opened(name: &str) -> HashMap<MapData, [u8; 16], [u8; 8]> {
    let data = MapData::from_pin(pinned(name)).unwrap();
    HashMap::try_from(Map::HashMap(data)).unwrap()
}

/// An address of nobody, for a row that is not the agent's.
fn filler(number: u16) -> [u8; 16] {
    let mut address = [0xfc; 16];
    address[14..].copy_from_slice(&number.to_be_bytes());
    address
}

/// Lets everyone in whose label is their own, so that every pod here gets a row.
fn open_policy() -> String {
    policy("{from: [{podSelector: {matchExpressions: [{key: app, operator: Exists}]}}]}")
}

#[test]
fn a_map_that_the_kernel_finds_full_leaves_the_old_state_and_is_tried_again() {
    let shop = Shop::new();
    let _agent = shop.agent(&["--map-capacity", "PEERS_EXACT=64"]);
    shop.wait("shop/web", "shop/api", true);
    let mut rows = opened("PEERS_EXACT");
    let filled = (0..64).take_while(|number| rows.insert(filler(*number), [0; 8], 0).is_ok());
    let filled = filled.count();
    assert!(filled > 0, "the map was to be filled to its brim");
    shop.lab
        .write_manifest("policy.yaml", &open_policy())
        .unwrap();
    wait_for_error(
        "kernel",
        &["PEERS_EXACT", "full: it holds 64", "--map-capacity"],
    );
    assert!(shop.reaches("shop/web", "shop/api"));
    assert!(!shop.reaches("shop/other", "shop/api"), "not half of it");
    for number in 0..64 {
        // Those beyond the brim were never in.
        drop(rows.remove(&filler(number)));
    }
    shop.wait("shop/other", "shop/api", true);
    wait_for_no_error();
}

/// More rules than there are rows to count them in, the last of which admits `app: other`.
fn many_rules() -> String {
    let rule = |number: u32| {
        let [.., a, b, c] = (number << 8).to_be_bytes();
        format!(
            "{{from: [{{ipBlock: {{cidr: {}.{b}.{c}.0/24}}}}]}}",
            100 + a
        )
    };
    let rules: Vec<String> = (0..LAST).map(rule).collect();
    let last = "{from: [{podSelector: {matchLabels: {app: other}}}]}";
    policy(&format!("{}, {last}", rules.join(", ")))
}

/// The number of the rule that admits `app: other`.
const LAST: u32 = RULE_ROWS;

/// What a rule of `shop/api` has counted in a row of its own.
fn counted_by(rule: u32) -> Option<u64> {
    let policy: EffectivePolicy = ask("/v1/policy/shop/api").unwrap();
    let name = format!("shop/api/ingress/{rule}");
    let mut rules = policy.directions.iter().flat_map(|each| &each.rules);
    let rule = rules.find(|each| each.rule == name);
    let rule = rule.ok_or_else(|| format!("{name} is not in force"));
    rule.unwrap().connections
}

#[test]
fn rules_beyond_the_rows_are_enforced_and_counted_together() {
    let shop = Shop::new();
    let _agent = shop.agent(&[]);
    shop.wait("shop/other", "shop/api", false);
    shop.wait("shop/web", "shop/api", true);
    assert!(counted_by(0) >= Some(1), "a rule with a row of its own");
    shop.lab
        .write_manifest("policy.yaml", &many_rules())
        .unwrap();
    shop.wait("shop/other", "shop/api", true);
    shop.wait("shop/web", "shop/api", false);
    wait_for_no_error();
    let together =
        || metric(r#"picket_verdicts_total{direction="ingress",verdict="allow",reason="rule"}"#);
    let without_row = || metric(r#"picket_kernel_events_total{kind="rule_hit_lost"}"#);
    let before = (together(), without_row());
    for _ in 0..5 {
        assert!(shop.reaches("shop/other", "shop/api"));
    }
    let more = (together() - before.0, without_row() - before.1);
    assert!((5.0..6.0).contains(&more.0), "{more:?} were counted");
    assert!((5.0..6.0).contains(&more.1), "{more:?}: some have a row");
    assert_eq!(counted_by(LAST), None, "it has no row of its own");
}
