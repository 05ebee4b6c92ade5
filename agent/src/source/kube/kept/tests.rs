//! What is kept and recalled, torn, foreign and spoilt files.

use agent_policy::model::Change;
use serde_json::{Value, json};

use super::*;
use crate::source::object::Reading;

const SERVER: &str = "https://api";

/// A directory that goes with the test.
struct State(PathBuf);

impl State {
    fn new(test: &str) -> Self {
        let name = format!("picket-kept-{}-{test}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        drop(fs::remove_dir_all(&directory));
        Self(directory)
    }

    fn kept(&self) -> Kept {
        Kept::new(&self.0, SERVER)
    }

    fn file(&self) -> PathBuf {
        self.0.join(FILE)
    }

    fn recalled(&self) -> Option<Vec<String>> {
        let recalled = self.kept().recall().unwrap()?;
        let mut words = Vec::new();
        for (kind, items, version) in recalled.kinds {
            for item in items {
                words.push(format!(
                    "{kind:?} {} {version} {}",
                    item.id.name,
                    said(&item)
                ));
            }
        }
        words.sort();
        Some(words)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn said(item: &Item) -> String {
    let Reading::Object(object) = &item.reading else {
        return "unreadable".to_owned();
    };
    let change = object.change.as_ref().unwrap();
    if let Change::Pod(pod) = change {
        format!("{:?} {:?}", pod.labels, pod.addresses)
    } else if let Change::Policy(policy) = change {
        format!("{} rules", policy.ingress.len())
    } else {
        format!("{change:?}")
    }
}

fn item(kind: Kind, object: &Value) -> Item {
    let watched = WATCHED.iter().find(|watched| watched.kind == kind).unwrap();
    let bytes = object.to_string();
    Reader::new(watched).read(bytes.as_bytes()).unwrap()
}

fn told(kind: Kind, object: &Value) -> Told {
    let item = item(kind, object);
    Told {
        kind,
        name: item.id.name,
        document: Some(item.document),
    }
}

fn pod(name: &str, app: &str) -> Told {
    let object = json!({"metadata": {"name": name, "namespace": "shop", "uid": name,
        "resourceVersion": "7", "labels": {"app": app},
        "managedFields": [{"manager": "nobody reads this"}]},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "none"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}});
    told(Kind::Pod, &object)
}

fn gone(name: &str) -> Told {
    Told {
        document: None,
        ..pod(name, "")
    }
}

fn versions() -> BTreeMap<Kind, u64> {
    WATCHED.iter().map(|watched| (watched.kind, 9)).collect()
}

fn keep(kept: Kept, told: &[Told]) -> Kept {
    kept.keep(told, &versions(), Timestamp::UNIX_EPOCH).unwrap()
}

#[test]
fn what_is_kept_is_what_is_recalled() {
    let state = State::new("same");
    assert_eq!(state.recalled(), None, "there is no file");
    let policy = json!({"metadata": {"name": "p", "namespace": "shop", "resourceVersion": "7"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}});
    let kept = keep(
        state.kept(),
        &[
            pod("a", "x"),
            pod("b", "x"),
            told(Kind::NetworkPolicy, &policy),
        ],
    );
    keep(kept, &[pod("c", "x"), gone("b"), pod("a", "y")]);
    let expected = [
        "NetworkPolicy shop/p 9 1 rules",
        r#"Pod shop/a 9 {"app": "y"} [10.0.0.1]"#,
        r#"Pod shop/c 9 {"app": "x"} [10.0.0.1]"#,
    ];
    assert_eq!(state.recalled().unwrap(), expected);
    let text = fs::read_to_string(state.file()).unwrap();
    assert!(!text.contains("managedFields"), "{text}");
    // The next life begins a file of its own.
    keep(state.kept(), &[pod("d", "x")]);
    assert_eq!(state.recalled().unwrap().len(), 1);
}

#[test]
fn an_object_read_of_its_document_is_the_same_object() {
    let labels = json!({"app": "x"});
    let metadata = json!({"name": "a", "namespace": "shop", "uid": "u", "labels": labels,
        "resourceVersion": "7", "creationTimestamp": "2026-11-22T10:00:00Z",
        "annotations": {"picket.dev/allow-source": "10.9.0.0/16", "other": "left out"}});
    let large: Vec<Value> = (0..4000)
        .map(|n| json!({"from": [{"ipBlock": {"cidr": format!("{n:01000}")}}]}))
        .collect();
    for (kind, object) in [
        (Kind::Namespace, json!({"metadata": metadata})),
        (
            Kind::Node,
            json!({"metadata": metadata, "spec": {"podCIDRs": ["10.0.0.0/24"]},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
        ),
        (
            Kind::Pod,
            json!({"metadata": metadata,
                "spec": {"nodeName": "n", "hostNetwork": true, "containers": [{"name": "c",
                    "ports": [{"name": "http", "containerPort": 80}]}],
                    "initContainers": [{"name": "i", "restartPolicy": "Always",
                        "ports": [{"name": "m", "containerPort": 81}]}]},
                "status": {"phase": "Running", "hostIP": "192.0.2.1", "podIP": "10.0.0.2"}}),
        ),
        (
            Kind::NetworkPolicy,
            json!({"metadata": metadata, "spec": {"podSelector": {"matchLabels": labels},
                "policyTypes": ["Egress"], "egress": [{"to": [], "ports": [{"port": "http"}]},
                {"to": "nonsense"}]}}),
        ),
        (
            Kind::NetworkPolicy,
            json!({"metadata": metadata, "spec": {"podSelector": {}, "ingress": large}}),
        ),
    ] {
        let change = |item: &Item| match &item.reading {
            Reading::Object(object) => object.change.clone(),
            Reading::Unreadable { stand_in, .. } => stand_in.as_ref().unwrap().change.clone(),
            Reading::Ignored { .. } | Reading::NotAnObject(_) => None,
        };
        let first = item(kind, &object);
        let document = serde_json::from_slice(&first.document).unwrap();
        let second = item(kind, &document);
        assert!(change(&first).is_some());
        assert_eq!(change(&first), change(&second), "{kind:?} {document}");
        assert_eq!(first.id, second.id);
    }
}

#[test]
fn what_was_not_finished_does_not_count() {
    let state = State::new("torn");
    let kept = keep(state.kept(), &[pod("a", "x"), pod("b", "x")]);
    let whole = fs::read(state.file()).unwrap();
    keep(kept, &[pod("c", "x"), gone("a")]);
    let all = fs::read(state.file()).unwrap();
    for end in 0..all.len() {
        fs::write(state.file(), &all[..end]).unwrap();
        let expected = (end >= whole.len()).then_some(2);
        let recalled = state.recalled();
        assert_eq!(recalled.as_ref().map(Vec::len), expected, "{end}");
        assert!(
            recalled.is_none_or(|words| words[0].contains("shop/a")),
            "{end}"
        );
    }
}

#[test]
fn another_servers_or_boots_word_is_not_taken() {
    let state = State::new("other");
    keep(state.kept(), &[pod("a", "x")]);
    assert!(
        Kept::new(&state.0, "https://other")
            .recall()
            .unwrap()
            .is_none()
    );
    let text = fs::read_to_string(state.file()).unwrap();
    let boot = fs::read_to_string(BOOT_ID).unwrap();
    for (from, to) in [(boot.trim(), "earlier"), ("\"layout\":1", "\"layout\":2")] {
        assert!(text.contains(from));
        fs::write(state.file(), text.replace(from, to)).unwrap();
        assert!(state.recalled().is_none(), "{to}");
    }
}

#[test]
fn a_file_that_is_not_what_was_written_is_refused_whole() {
    let state = State::new("spoilt");
    keep(state.kept(), &[pod("a", "x")]);
    let text = fs::read_to_string(state.file()).unwrap();
    for (from, to) in [
        ("\"shop\"", "\"no/namespace\""),
        ("\"pods\":9", "\"pots\":9"),
        ("\"nodes\":9,", ""),
        ("1970-01-01", "yesterday"),
        ("{\"object\"", "{\"abject\""),
    ] {
        assert!(text.contains(from), "{from} in {text}");
        fs::write(state.file(), text.replace(from, to)).unwrap();
        let refused = state.kept().recall();
        assert!(
            matches!(refused, Err(KeptError::Malformed { .. })),
            "{from}: {refused:?}"
        );
    }
}

#[test]
fn lines_that_mean_nothing_any_more_go_in_time() {
    let state = State::new("rewritten");
    let mut kept = keep(state.kept(), &[pod("a", "x"), pod("b", "x")]);
    let long = "y".repeat(1 << 20);
    for _ in 0..16 {
        kept = keep(kept, &[pod("b", &long), pod("c", "x")]);
        kept = keep(kept, &[gone("c")]);
    }
    let bytes = fs::metadata(state.file()).unwrap().len();
    assert!(bytes < 8 << 20, "{bytes}");
    assert!(
        bytes - kept.bytes < 200,
        "all but the first line is counted"
    );
    keep(kept, &[pod("d", "z")]);
    let words = state.recalled().unwrap();
    assert_eq!(words.len(), 3);
    assert!(words[1].contains(&long) && words[2].contains("shop/d"));
}

#[test]
fn where_nothing_can_be_written_nothing_older_is_left() {
    let state = State::new("unwritable");
    let kept = keep(state.kept(), &[pod("a", "x")]);
    // A directory where the next file would be made.
    fs::create_dir_all(state.file().with_extension(NEW)).unwrap();
    let failed = state
        .kept()
        .keep(&[pod("a", "y")], &versions(), Timestamp::UNIX_EPOCH);
    assert!(matches!(failed, Err(KeptError::Io { .. })), "{failed:?}");
    assert!(!state.file().exists());
    drop(kept);
}

#[test]
fn a_file_is_forgotten_and_its_directory_with_it() {
    let state = State::new("forgotten");
    assert!(!forget(&state.0).unwrap());
    keep(state.kept(), &[pod("a", "x")]);
    assert!(forget(&state.0).unwrap());
    assert!(!state.0.exists());
}
