//! The directory as others see it: files in, batches out.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use agent_policy::model::Change;
use tokio::sync::mpsc;

use super::{load, watch};
use crate::source::Batch;

mod hostile;
mod named;

const DEADLINE: Duration = Duration::from_secs(10);

/// A directory that goes when the test ends.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("picket-manifests-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Some tests remove it themselves.
        drop(fs::remove_dir_all(&self.0));
    }
}

/// What a change says of a namespace, by its name.
enum Named {
    Here(String),
    Gone(String),
}

/// These tests write no manifests of other kinds.
fn namespace_of(change: Change) -> Named {
    match change {
        Change::Namespace(namespace) => Named::Here(namespace.name.to_string()),
        Change::NamespaceGone(name) => Named::Gone(name.to_string()),
        other @ (Change::Pod(_)
        | Change::PodGone(_)
        | Change::Node(_)
        | Change::NodeGone(_)
        | Change::Policy(_)
        | Change::PolicyGone(_)
        | Change::Service(_)
        | Change::ServiceGone(_)
        | Change::EndpointSlice(_)
        | Change::EndpointSliceGone(_)) => panic!("{other:?}"),
    }
}

/// A watch, read with a deadline.
struct Watched {
    batches: mpsc::Receiver<Batch>,
    runtime: tokio::runtime::Runtime,
    known: Vec<String>,
    said: Vec<String>,
    /// What the latest batch says of itself.
    is_complete: bool,
}

impl Watched {
    fn start(path: &Path) -> Self {
        let mut watched = Self {
            batches: watch(path).unwrap().into_inner(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap(),
            known: Vec::new(),
            said: Vec::new(),
            is_complete: false,
        };
        assert!(
            watched.step(Instant::now() + DEADLINE),
            "the first batch comes always"
        );
        watched
    }

    /// Takes one batch in; false when none came in time.
    fn step(&mut self, deadline: Instant) -> bool {
        let receive = async { tokio::time::timeout_at(deadline.into(), self.batches.recv()).await };
        let Ok(batch) = self.runtime.block_on(receive) else {
            return false;
        };
        let batch = batch.expect("the watch goes on");
        self.is_complete = batch.is_complete;
        assert!(batch.is_complete || batch.changes.is_empty(), "half of it");
        self.said = batch.findings.iter().map(ToString::to_string).collect();
        for change in batch.changes {
            match namespace_of(change) {
                Named::Here(name) => self.known.push(name),
                Named::Gone(name) => self.known.retain(|known| *known != name),
            }
        }
        self.known.sort();
        true
    }

    /// Waits until exactly these namespaces are known.
    fn wait(&mut self, namespaces: &[&str]) {
        let deadline = Instant::now() + DEADLINE;
        while self.known != namespaces {
            assert!(
                self.step(deadline),
                "waited for {namespaces:?}, have {:?}; {:?}",
                self.known,
                self.said
            );
        }
    }

    fn wait_said(&mut self, part: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.said.iter().any(|said| said.contains(part)) {
            assert!(
                self.step(deadline),
                "waited for {part:?}, have {:?}",
                self.said
            );
        }
    }

    fn wait_silent(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        while !self.said.is_empty() {
            assert!(self.step(deadline), "still {:?}", self.said);
        }
    }
}

fn namespace(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n")
}

#[test]
fn yaml_and_json_at_any_depth_are_read_and_other_files_are_not() {
    let directory = Directory::new();
    directory.write("a.yaml", &(namespace("one") + &namespace("two")));
    fs::create_dir_all(directory.path("deep/deeper")).unwrap();
    directory.write(
        "deep/deeper/b.json",
        r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "three"}}"#,
    );
    directory.write("deep/c.yml", &namespace("four"));
    directory.write(".hidden.yaml", &namespace("hidden"));
    directory.write("README.md", "not: [yaml");
    symlink(directory.path("."), directory.path("deep/back")).unwrap();

    let loaded = load(&directory.0).unwrap();
    assert_eq!(loaded.findings, []);
    assert_eq!(loaded.changes.len(), 4, "{:?}", loaded.changes);
    let watched = Watched::start(&directory.0);
    assert_eq!(watched.known, ["four", "one", "three", "two"]);
    load(&directory.path("nothing")).unwrap_err();
}

#[test]
fn files_that_come_change_and_go_are_told() {
    let directory = Directory::new();
    let mut watched = Watched::start(&directory.0);
    assert!(watched.known.is_empty());
    directory.write("a.yaml", &namespace("one"));
    watched.wait(&["one"]);
    directory.write("a.yaml", &(namespace("one") + &namespace("two")));
    watched.wait(&["one", "two"]);
    fs::create_dir_all(directory.path("new/newer")).unwrap();
    directory.write("new/newer/b.yaml", &namespace("three"));
    watched.wait(&["one", "three", "two"]);
    directory.write("new/newer/b.yaml", &namespace("four"));
    watched.wait(&["four", "one", "two"]);
    fs::remove_file(directory.path("a.yaml")).unwrap();
    watched.wait(&["four"]);
    fs::remove_dir_all(directory.path("new")).unwrap();
    watched.wait(&[]);
}

#[test]
fn two_writes_within_one_tick_of_the_clock_are_both_seen() {
    let directory = Directory::new();
    let mut watched = Watched::start(&directory.0);
    // Same length, same inode: only the content differs.
    for round in 0..20 {
        let name = if round % 2 == 0 { "one" } else { "two" };
        directory.write("a.yaml", &namespace(name));
        watched.wait(&[name]);
    }
}

#[test]
fn replacing_a_file_as_editors_do_never_tells_it_as_gone() {
    let directory = Directory::new();
    directory.write("a.yaml", &namespace("one"));
    let mut watched = Watched::start(&directory.0);
    // Move away, write anew.
    fs::rename(directory.path("a.yaml"), directory.path("a.yaml~")).unwrap();
    directory.write("a.yaml", &(namespace("one") + &namespace("two")));
    let deadline = Instant::now() + DEADLINE;
    while watched.known != ["one", "two"] {
        assert!(watched.step(deadline));
        assert!(watched.known.contains(&"one".to_owned()));
    }
    // Write beside, move over.
    directory.write("a.yaml.new", &namespace("one"));
    fs::rename(directory.path("a.yaml.new"), directory.path("a.yaml")).unwrap();
    watched.wait(&["one"]);
}

#[test]
fn a_mounted_configmap_is_followed_when_its_link_is_swapped() {
    let directory = Directory::new();
    fs::create_dir(directory.path("..v1")).unwrap();
    directory.write("..v1/a.yaml", &namespace("one"));
    symlink("..v1", directory.path("..data")).unwrap();
    symlink("..data/a.yaml", directory.path("a.yaml")).unwrap();
    let mut watched = Watched::start(&directory.0);
    assert_eq!(watched.known, ["one"]);
    fs::create_dir(directory.path("..v2")).unwrap();
    directory.write("..v2/a.yaml", &namespace("two"));
    symlink("..v2", directory.path("..data_tmp")).unwrap();
    fs::rename(directory.path("..data_tmp"), directory.path("..data")).unwrap();
    watched.wait(&["two"]);
}

#[test]
fn a_file_being_written_is_read_when_it_is_whole() {
    use std::io::Write as _;

    let directory = Directory::new();
    directory.write("a.yaml", &(namespace("one") + &namespace("two")));
    let mut watched = Watched::start(&directory.0);
    let mut file = fs::File::create(directory.path("a.yaml")).unwrap();
    file.write_all(namespace("one").as_bytes()).unwrap();
    // Another file's change makes the directory be looked at meanwhile.
    directory.write("b.yaml", &namespace("three"));
    watched.wait(&["one", "three", "two"]);
    file.write_all(namespace("four").as_bytes()).unwrap();
    drop(file);
    watched.wait(&["four", "one", "three"]);
}

#[test]
fn a_malformed_file_is_reported_until_mended_and_its_last_good_content_stays() {
    let directory = Directory::new();
    directory.write("a.yaml", &namespace("one"));
    let mut watched = Watched::start(&directory.0);
    directory.write("a.yaml", "kind: [\n");
    watched.wait_said("a.yaml:");
    assert_eq!(watched.known, ["one"]);
    directory.write("a.yaml", &namespace("two"));
    watched.wait(&["two"]);
    watched.wait_silent();
}

#[test]
fn a_policy_broken_before_the_start_isolates_its_namespace() {
    let directory = Directory::new();
    directory.write(
        "a.yaml",
        "kind: NetworkPolicy\nmetadata:\n  name: allow\n  namespace: shop\nspec:\n\tbroken\n",
    );
    let loaded = load(&directory.0).unwrap();
    let [Change::Policy(policy)] = &*loaded.changes else {
        panic!("{:?}", loaded.changes);
    };
    assert!(
        policy.isolates_ingress && policy.isolates_egress,
        "{policy:?}"
    );
    assert!(loaded.findings.len() >= 2, "{:?}", loaded.findings);
}

#[test]
fn a_directory_that_vanishes_keeps_its_objects_and_is_looked_for_again() {
    let directory = Directory::new();
    directory.write("a.yaml", &namespace("one"));
    let mut watched = Watched::start(&directory.0);
    let away = Directory::new();
    fs::rename(&directory.0, away.path("moved")).unwrap();
    watched.wait_said("cannot be read");
    assert_eq!(watched.known, ["one"]);
    fs::create_dir(&directory.0).unwrap();
    directory.write("a.yaml", &namespace("two"));
    watched.wait(&["two"]);
    watched.wait_silent();
    directory.write("a.yaml", &namespace("three"));
    watched.wait(&["three"]);
}

#[test]
fn a_file_that_is_too_large_is_reported_not_read() {
    let directory = Directory::new();
    let file = fs::File::create(directory.path("a.yaml")).unwrap();
    file.set_len(super::super::documents::MAX_FILE_BYTES + 1)
        .unwrap();
    let loaded = load(&directory.0).unwrap();
    assert!(loaded.changes.is_empty());
    let said: Vec<String> = loaded.findings.iter().map(ToString::to_string).collect();
    assert!(
        said.iter().any(|said| said.contains("larger than 64 MiB")),
        "{said:?}"
    );
}
