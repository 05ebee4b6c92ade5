//! What hostile directories and files come to: nothing waits, nothing is unbounded, the rest goes on.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixListener;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::super::events::Pending;
use super::super::read::{self, Contents};
use super::super::scan::Scanner;
use super::super::walk::Limits;
use super::*;
use crate::source::documents::MAX_FILE_BYTES;
use crate::source::store::Store;

/// A regular file that nobody can read, not even root.
const UNREADABLE: &str = "/proc/self/mem";

fn policy(namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn pipe(path: &Path) {
    mkfifo(path, Mode::S_IRWXU).unwrap();
}

fn said(path: &Path) -> Vec<String> {
    let loaded = load(path).unwrap();
    loaded.findings.iter().map(ToString::to_string).collect()
}

fn says(said: &[String], part: &str) -> bool {
    said.iter().any(|said| said.contains(part))
}

#[test]
fn a_pipe_a_socket_or_a_device_is_reported_and_never_opened() {
    let directory = Directory::new();
    pipe(&directory.path("pipe.yaml"));
    let _listener = UnixListener::bind(directory.path("socket.json")).unwrap();
    // Opened and read, it would never end.
    symlink("/dev/zero", directory.path("device.yml")).unwrap();
    directory.write("good.yaml", &namespace("one"));
    let watched = Watched::start(&directory.0);
    assert_eq!(watched.known, ["one"]);
    for part in [
        "pipe.yaml: path: is a named pipe",
        "socket.json: path: is a socket",
        "device.yml: path: is a device",
    ] {
        assert!(says(&watched.said, part), "{part}: {:?}", watched.said);
    }
    // Between the walk and its opening, a file may become one.
    let error = read::regular(&directory.path("pipe.yaml")).unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
}

#[test]
fn a_file_that_becomes_a_pipe_keeps_what_it_held() {
    let directory = Directory::new();
    directory.write("a.yaml", &namespace("one"));
    let mut watched = Watched::start(&directory.0);
    pipe(&directory.path("b.yaml.new"));
    fs::rename(directory.path("b.yaml.new"), directory.path("a.yaml")).unwrap();
    watched.wait_said("a.yaml: path: is a named pipe");
    // Longer than a file that went is waited for.
    for round in 0..30 {
        let name = if round % 2 == 0 { "three" } else { "two" };
        directory.write("b.yaml", &namespace(name));
        watched.wait(&["one", name]);
    }
    fs::remove_file(directory.path("a.yaml")).unwrap();
    watched.wait(&["two"]);
    watched.wait_silent();
}

#[test]
fn a_directory_that_becomes_a_pipe_keeps_what_it_held() {
    let directory = Directory::new();
    let root = directory.path("root");
    fs::create_dir(&root).unwrap();
    directory.write("root/a.yaml", &namespace("one"));
    let mut watched = Watched::start(&root);
    fs::rename(&root, directory.path("away")).unwrap();
    pipe(&root);
    watched.wait_said("cannot be read: Not a directory");
    assert_eq!(watched.known, ["one"]);
    fs::remove_file(&root).unwrap();
    fs::rename(directory.path("away"), &root).unwrap();
    directory.write("root/a.yaml", &namespace("two"));
    watched.wait(&["two"]);
    watched.wait_silent();
}

#[test]
fn links_that_lead_round_or_nowhere_are_reported_and_the_rest_is_read() {
    let directory = Directory::new();
    for name in ["x", "y"] {
        fs::create_dir(directory.path(name)).unwrap();
    }
    symlink("../y", directory.path("x/to-y")).unwrap();
    symlink("../x", directory.path("y/to-x")).unwrap();
    symlink("self.yaml", directory.path("self.yaml")).unwrap();
    symlink("nothing-there", directory.path("nowhere.yaml")).unwrap();
    directory.write("x/a.yaml", &namespace("one"));
    directory.write("y/a.yaml", &namespace("two"));
    let watched = Watched::start(&directory.0);
    assert_eq!(watched.known, ["one", "two"]);
    for part in [
        "leads back to itself",
        "nowhere.yaml: path: is a link that leads nowhere",
    ] {
        assert!(says(&watched.said, part), "{part}: {:?}", watched.said);
    }
    assert_eq!(watched.said.len(), 2, "each file once: {:?}", watched.said);
}

#[test]
fn another_directory_in_the_place_of_the_watched_one_is_followed() {
    let directory = Directory::new();
    for (name, holds) in [("v1", "one"), ("v2", "two")] {
        fs::create_dir(directory.path(name)).unwrap();
        directory.write(&format!("{name}/a.yaml"), &namespace(holds));
    }
    let root = directory.path("current");
    symlink("v1", &root).unwrap();
    let mut watched = Watched::start(&root);
    symlink("v2", directory.path("next")).unwrap();
    fs::rename(directory.path("next"), &root).unwrap();
    watched.wait(&["two"]);
    // What is written to the old one counts no more.
    directory.write("v1/b.yaml", &namespace("old"));
    directory.write("v2/b.yaml", &namespace("three"));
    watched.wait(&["three", "two"]);
}

#[test]
fn what_cannot_be_read_at_the_start_is_no_first_list() {
    let directory = Directory::new();
    directory.write("good.yaml", &namespace("one"));
    symlink(UNREADABLE, directory.path("bad.yaml")).unwrap();
    let mut watched = Watched::start(&directory.0);
    assert!(!watched.is_complete && watched.known.is_empty());
    assert!(
        says(&watched.said, "nothing is put in force before it is mended"),
        "{:?}",
        watched.said
    );
    fs::remove_file(directory.path("bad.yaml")).unwrap();
    watched.wait(&["one"]);
    assert!(watched.is_complete);
    watched.wait_silent();
    // Later on it is a file like others: what is known stays.
    symlink(UNREADABLE, directory.path("bad.yaml")).unwrap();
    watched.wait_said("bad.yaml: path: cannot be read");
    assert!(
        says(&watched.said, "nothing in it is in force"),
        "{:?}",
        watched.said
    );
    directory.write("other.yaml", &namespace("two"));
    watched.wait(&["one", "two"]);
}

#[test]
fn a_file_that_cannot_be_read_any_more_keeps_what_it_held() {
    let directory = Directory::new();
    directory.write("a.yaml", &namespace("one"));
    let mut watched = Watched::start(&directory.0);
    symlink(UNREADABLE, directory.path("link")).unwrap();
    fs::rename(directory.path("link"), directory.path("a.yaml")).unwrap();
    watched.wait_said("what it held before stays in force");
    assert_eq!(watched.known, ["one"]);
}

#[test]
fn a_policy_of_a_namespace_nobody_can_tell_is_no_first_list() {
    let directory = Directory::new();
    directory.write("a.yaml", "kind: NetworkPolicy\nmetadata: [\n");
    directory.write("good.yaml", &namespace("one"));
    let mut watched = Watched::start(&directory.0);
    assert!(!watched.is_complete, "{:?}", watched.said);
    directory.write("a.yaml", &namespace("two"));
    watched.wait(&["one", "two"]);
    assert!(watched.is_complete);
}

#[test]
fn a_file_that_is_too_large_is_no_first_list_and_later_keeps_what_it_held() {
    let directory = Directory::new();
    let enlarge = || {
        let file = fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .open(directory.path("a.yaml"));
        file.unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
    };
    enlarge();
    let mut watched = Watched::start(&directory.0);
    assert!(!watched.is_complete, "{:?}", watched.said);
    directory.write("a.yaml", &namespace("one"));
    watched.wait(&["one"]);
    enlarge();
    watched.wait_said("larger than 64 MiB: split it into several files; until it is mended, what");
    assert_eq!(watched.known, ["one"]);
}

#[test]
fn more_files_or_bytes_than_there_may_be_are_refused_and_what_is_known_is_followed() {
    let directory = Directory::new();
    directory.write("a.yaml", &namespace("one"));
    directory.write("b.yaml", &namespace("two"));
    let limits = Limits {
        files: 2,
        entries: 4,
        bytes: 200,
    };
    let mut scanner = Scanner::of_directory(&directory.0).with(limits);
    let mut store = Store::default();
    let mut look = || {
        let look = scanner
            .look(&mut store, &Pending::default(), Instant::now())
            .unwrap();
        let said: Vec<String> = look.findings.iter().map(ToString::to_string).collect();
        (look.is_complete, said, store.take_changes().len())
    };
    assert_eq!(look(), (true, vec![], 2));
    // One file too many; of those that were there, one changes.
    directory.write("c.yaml", &namespace("three"));
    directory.write("b.yaml", &namespace("new"));
    let (is_complete, said, changes) = look();
    assert!(
        !is_complete && says(&said, "holds more than 2 manifests or 4 names"),
        "{said:?}"
    );
    assert!(
        changes == 0 || changes == 2,
        "{changes}: the old one goes, the new one comes"
    );
    fs::remove_file(directory.path("c.yaml")).unwrap();
    look();
    // Names that are no manifests are looked at, too.
    for index in 0..4 {
        directory.write(&format!("{index}.txt"), "");
    }
    let (is_complete, said, changes) = look();
    assert!(!is_complete && says(&said, "or 4 names"), "{said:?}");
    assert_eq!(changes, 0, "nothing counts as gone");
    for index in 0..4 {
        fs::remove_file(directory.path(&format!("{index}.txt"))).unwrap();
    }
    fs::remove_file(directory.path("b.yaml")).unwrap();
    let long = namespace("four") + &"#".repeat(200);
    directory.write("d.yaml", &long);
    let (_, said, _) = look();
    assert!(
        says(&said, "d.yaml: path: all files together are larger"),
        "{said:?}"
    );
}

#[test]
fn a_file_somebody_writes_to_is_not_taken_in_halves() {
    let directory = Directory::new();
    let path = directory.path("a.yaml");
    let mut file = fs::File::create(&path).unwrap();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                file.write_all(b"# more and more\n").unwrap();
                // Long enough to be read into, and never too long.
                if file.metadata().unwrap().len() > 1 << 20 {
                    file.set_len(0).unwrap();
                }
            }
        });
        let deadline = Instant::now() + DEADLINE;
        let is_noticed = std::iter::from_fn(|| (Instant::now() < deadline).then_some(()))
            .any(|()| matches!(read::regular(&path).unwrap(), Contents::Changing));
        is_over.store(true, Ordering::Relaxed);
        assert!(is_noticed, "it always looked whole");
    });
}

#[test]
fn names_that_are_not_text_are_read_and_said_in_words() {
    let directory = Directory::new();
    let name = OsStr::from_bytes(b"\xff\x1b[2J\n.yaml");
    fs::write(directory.0.join(name), "kind: [").unwrap();
    let said = said(&directory.0);
    assert!(says(&said, "\u{fffd}\\u{1b}[2J\\n.yaml"), "{said:?}");
    fs::write(directory.0.join(name), namespace("one")).unwrap();
    assert_eq!(load(&directory.0).unwrap().changes.len(), 1);
}

/// Files that nobody meant, each with what is said of it.
fn nonsense() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let items = vec![format!("*a{}", level - 1); 9].join(", ");
        bomb = format!("{bomb}a{level}: &a{level} [{items}]\n");
    }
    let long = "x".repeat(1 << 20);
    let text_bomb = format!("a: &a {long}\nb: [{}]\n", vec!["*a"; 2000].join(", "));
    let object = "apiVersion: v1\nkind: Namespace\nmetadata: {name: one}\n";
    vec![
        ("bytes.yaml", b"a: \xff\xfe\n".to_vec(), "not UTF-8"),
        (
            "utf16.yaml",
            "a: 1".encode_utf16().flat_map(u16::to_le_bytes).collect(),
            "",
        ),
        ("nul.yaml", b"a: \0\n".to_vec(), ""),
        ("bomb.yaml", bomb.into_bytes(), ""),
        ("text-bomb.yaml", text_bomb.into_bytes(), ""),
        (
            "across.yaml",
            format!("a: &a 1\n---\n{object}x: *a\n").into_bytes(),
            "",
        ),
        ("flow.yaml", "[".repeat(100_000).into_bytes(), ""),
        ("block.yaml", "- ".repeat(100_000).into_bytes(), ""),
        ("keys.yaml", "? ".repeat(100_000).into_bytes(), ""),
        ("deep.json", "[".repeat(100_000).into_bytes(), "recursion"),
        (
            "twice.yaml",
            format!("{object}kind: Pod\n").into_bytes(),
            "kind",
        ),
        (
            "quoted-twice.yaml",
            format!("{object}\"kind\": Pod\n").into_bytes(),
            "kind",
        ),
        (
            "twice.json",
            br#"{"kind": "Pod", "kind": "Pod"}"#.to_vec(),
            "\"kind\" stands twice",
        ),
        ("huge.yaml", format!("{object}x: .inf\n").into_bytes(), ""),
        ("nan.yaml", format!("{object}x: .nan\n").into_bytes(), ""),
        (
            "huge.json",
            b"{\"a\": 1e999}".to_vec(),
            "number out of range",
        ),
        ("tab.yaml", b"a:\n\t- b\n".to_vec(), ""),
        ("lying.json", b"{\"apiVersion\": \"v1\"".to_vec(), "EOF"),
    ]
}

#[test]
fn nonsense_is_told_by_its_file_and_keeps_what_it_held() {
    let directory = Directory::new();
    for (name, _, _) in nonsense() {
        let own = name.replace('.', "-");
        let json = format!(
            r#"{{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": "{own}"}}}}"#
        );
        directory.write(name, &json);
    }
    let mut watched = Watched::start(&directory.0);
    let known = watched.known.clone();
    for (name, bytes, part) in nonsense() {
        // At once: a file that is seen empty holds nothing any more.
        let new = directory.path(&format!(".{name}.new"));
        fs::write(&new, bytes).unwrap();
        fs::rename(&new, directory.path(name)).unwrap();
        watched.wait_said(&format!("/{name}:"));
        let of_file = watched
            .said
            .iter()
            .find(|said| said.contains(&format!("/{name}:")))
            .unwrap();
        assert!(
            of_file.contains(part) && of_file.ends_with("what it held before stays in force"),
            "{name}: {of_file}"
        );
        assert!(
            of_file.len() < 2000,
            "{name}: {} bytes are said",
            of_file.len()
        );
        assert_eq!(watched.known, known, "{name}");
    }
}

#[test]
fn what_windows_editors_write_is_read() {
    let directory = Directory::new();
    let text = format!("\u{feff}{}{}", namespace("one"), namespace("two")).replace('\n', "\r\n");
    directory.write("a.yaml", &text);
    let json = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "three"}}"#;
    directory.write("b.json", &format!("\u{feff}{json}\r\n"));
    let watched = Watched::start(&directory.0);
    assert_eq!(watched.known, ["one", "three", "two"], "{:?}", watched.said);
    assert_eq!(watched.said, Vec::<String>::new());
}

/// A policy as large as said, as JSON.
fn large_policy(bytes: usize) -> String {
    let mut ranges = String::new();
    for index in 0.. {
        if ranges.len() > bytes {
            break;
        }
        let [_, a, b, c] = u32::to_be_bytes(index);
        writeln!(
            ranges,
            "{{\"ipBlock\": {{\"cidr\": \"10.{a}.{b}.{c}/32\"}}}},"
        )
        .unwrap();
    }
    policy(
        "shop",
        &format!("{{podSelector: {{}}, ingress: [{{from: [{ranges}]}}]}}"),
    )
}

#[test]
fn an_object_larger_than_an_api_server_takes_isolates_at_the_start() {
    let directory = Directory::new();
    directory.write("a.yaml", &large_policy(10 << 20));
    let loaded = load(&directory.0).unwrap();
    let [Change::Policy(policy)] = &*loaded.changes else {
        panic!("{} changes", loaded.changes.len());
    };
    assert!(policy.isolates_ingress && policy.isolates_egress && policy.ingress.is_empty());
    let said: Vec<String> = loaded.findings.iter().map(ToString::to_string).collect();
    assert!(
        says(&said, "a.yaml:2: networkpolicy shop/p: 9.")
            && says(&said, "of which an API server takes 3"),
        "{said:?}"
    );
}

#[test]
fn an_object_that_comes_too_large_is_told_of_and_changes_nothing() {
    let directory = Directory::new();
    let mut scanner = Scanner::of_directory(&directory.0);
    let mut store = Store::default();
    let mut look = || {
        let now = Instant::now();
        let look = scanner.look(&mut store, &Pending::default(), now).unwrap();
        assert!(look.is_complete);
        let said: Vec<String> = store.findings().iter().map(ToString::to_string).collect();
        (store.take_changes().len(), said)
    };
    assert_eq!(look(), (0, vec![]));
    // Nothing was there before: nothing stands in for it.
    directory.write("a.yaml", &large_policy(4 << 20));
    let (changes, said) = look();
    assert_eq!(changes, 0);
    assert!(says(&said, "of which an API server takes 3"), "{said:?}");
}

#[test]
fn an_object_that_grows_too_large_stays_what_it_was() {
    let mut store = Store::default();
    let path: std::sync::Arc<Path> = std::sync::Arc::from(Path::new("a.yaml"));
    let mut put = |text: &str| {
        let mut content = crate::source::content::read(&path, text.as_bytes()).unwrap();
        content.forget_stand_ins();
        store.put(&path, content);
        store.take_changes().len()
    };
    assert_eq!(put(&policy("shop", "{podSelector: {}}")), 1);
    assert_eq!(put(&large_policy(4 << 20)), 0, "it stays what it was");
    assert_eq!(put(&policy("shop", "{podSelector: {}, ingress: [{}]}")), 1);
    assert_eq!(put(&namespace("one")), 2, "gone, and another came");
    assert_eq!(
        put(&large_policy(4 << 20)),
        1,
        "it was not there: only the namespace goes"
    );
}

#[test]
fn a_thousand_faults_are_told_and_the_others_counted() {
    let directory = Directory::new();
    for index in 0..1100 {
        directory.write(&format!("{index}.yaml"), "kind: [");
    }
    let said = said(&directory.0);
    assert_eq!(said.len(), 1001);
    assert!(says(&said, "has 100 more faults"), "{:?}", said.last());
}
