//! Looks at what events name: enough where names tell everything, and refused where they do not.

use super::super::events::Pending;
use super::super::scan::Scanner;
use super::super::walk::Limits;
use super::*;
use crate::source::store::Store;

/// Something done to a directory, and a word about it.
type Deed = (&'static str, fn(&Directory));

/// A look at a file, or at all; what it finds to be new.
type Look<'a> = &'a dyn Fn(&mut Looked, &str, Instant) -> Vec<String>;

/// A directory that was looked through.
struct Looked {
    directory: Directory,
    scanner: Scanner,
    store: Store,
}

impl Looked {
    /// With two files, and whatever else `prepare` puts there.
    fn at(prepare: impl FnOnce(&Directory)) -> Self {
        let directory = Directory::new();
        fs::create_dir(directory.path("deep")).unwrap();
        directory.write("a.yaml", &namespace("one"));
        directory.write("deep/b.yaml", &namespace("two"));
        prepare(&directory);
        let limits = Limits {
            files: 3,
            bytes: 1000,
            ..Limits::STANDARD
        };
        let mut looked = Self {
            scanner: Scanner::of_directory(&directory.0).with(limits),
            store: Store::default(),
            directory,
        };
        looked.through(Instant::now());
        looked
    }

    /// What is new anywhere.
    fn through(&mut self, now: Instant) -> Vec<String> {
        let pending = Pending::default();
        let looked = self.scanner.look(&mut self.store, &pending, now);
        assert!(looked.unwrap().is_complete);
        self.changes()
    }

    /// What is new in files of these names, if they are enough.
    fn named(&mut self, names: &[&str], now: Instant) -> Option<Vec<String>> {
        let paths: Vec<PathBuf> = names.iter().map(|name| self.directory.path(name)).collect();
        self.with(&Pending::of(&paths), now)
    }

    fn with(&mut self, pending: &Pending, now: Instant) -> Option<Vec<String>> {
        let looked = self.scanner.look_at_named(&mut self.store, pending, now)?;
        assert!(looked.is_complete && looked.findings.is_empty());
        Some(self.changes())
    }

    fn changes(&mut self) -> Vec<String> {
        let word = |change| match namespace_of(change) {
            Named::Here(name) => name,
            Named::Gone(name) => format!("{name} gone"),
        };
        self.store.take_changes().into_iter().map(word).collect()
    }
}

#[test]
fn a_file_that_is_named_is_looked_at_and_no_other() {
    let mut looked = Looked::at(|_| {});
    let now = Instant::now();
    // The other one changes unnoticed.
    looked.directory.write("a.yaml", &namespace("unnamed"));
    looked.directory.write("deep/b.yaml", &namespace("three"));
    let words = looked.named(&["deep/b.yaml"], now).unwrap();
    assert_eq!(words, ["two gone", "three"]);
    looked.directory.write("c.yaml", &namespace("four"));
    looked.directory.write("notes.txt", "no manifest");
    let named = ["c.yaml", "notes.txt", ".hidden/c.yaml", "never-there.yaml"];
    assert_eq!(looked.named(&named, now).unwrap(), ["four"]);
    assert_eq!(looked.through(now), ["one gone", "unnamed"]);
}

#[test]
fn a_named_file_is_read_although_it_looks_unchanged() {
    // A file system's clock may not have moved on between two writes.
    let write = |looked: &mut Looked, name: &str| {
        looked.directory.write("a.yaml", &namespace(name));
        let path = looked.directory.path("a.yaml");
        looked.scanner.believe_unchanged(&path);
    };
    let mut looked = Looked::at(|_| {});
    let now = Instant::now();
    write(&mut looked, "new");
    assert!(looked.through(now).is_empty(), "nothing shows");
    assert_eq!(looked.named(&["a.yaml"], now).unwrap(), ["one gone", "new"]);
    write(&mut looked, "newer");
    let pending = Pending::of(&[looked.directory.path("a.yaml")]);
    let all = looked.scanner.look(&mut looked.store, &pending, now);
    assert!(all.unwrap().is_complete);
    assert_eq!(looked.changes(), ["new gone", "newer"]);
}

#[test]
fn a_file_that_goes_is_waited_for_and_then_gone() {
    let named = |looked: &mut Looked, name: &str, now| looked.named(&[name], now).unwrap();
    let through = |looked: &mut Looked, _: &str, now| looked.through(now);
    let looks: [Look<'_>; 2] = [&named, &through];
    for look in looks {
        let mut looked = Looked::at(|_| {});
        let now = Instant::now();
        fs::remove_file(looked.directory.path("a.yaml")).unwrap();
        assert!(look(&mut looked, "a.yaml", now).is_empty());
        let due = looked.scanner.next_look(now).unwrap();
        assert!(look(&mut looked, "b.yaml", now).is_empty(), "not yet");
        assert_eq!(look(&mut looked, "b.yaml", due), ["one gone"]);
        assert_eq!(looked.scanner.next_look(due), None);
        // What comes back in time never went.
        fs::remove_file(looked.directory.path("deep/b.yaml")).unwrap();
        assert!(look(&mut looked, "deep/b.yaml", due).is_empty());
        looked.directory.write("deep/b.yaml", &namespace("two"));
        assert!(look(&mut looked, "deep/b.yaml", due).is_empty());
        assert_eq!(looked.scanner.next_look(due), None);
    }
}

#[test]
fn all_is_looked_through_where_names_do_not_tell_everything() {
    let now = Instant::now();
    let before: [Deed; 4] = [
        ("a link", |directory| {
            symlink("a.yaml", directory.path("link.yaml")).unwrap();
            directory.write("a.yaml", "");
        }),
        ("a link that is none of ours", |directory| {
            symlink("deep", directory.path("again")).unwrap();
        }),
        ("two names of one file", |directory| {
            fs::hard_link(directory.path("a.yaml"), directory.path("a.txt")).unwrap();
        }),
        ("something wrong", |directory| {
            symlink("nowhere", directory.path("nowhere.yaml")).unwrap();
        }),
    ];
    for (what, prepare) in before {
        let mut looked = Looked::at(prepare);
        assert_eq!(looked.named(&["a.yaml"], now), None, "{what}");
    }
    let after: [Deed; 7] = [
        ("new", |directory| {
            fs::create_dir(directory.path("new")).unwrap();
        }),
        ("new/c.yaml", |directory| {
            fs::create_dir(directory.path("new")).unwrap();
            directory.write("new/c.yaml", &namespace("three"));
        }),
        ("deep", |directory| {
            fs::remove_dir_all(directory.path("deep")).unwrap();
        }),
        ("link.yaml", |directory| {
            symlink("a.yaml", directory.path("link.yaml")).unwrap();
        }),
        ("double.yaml", |directory| {
            fs::hard_link(directory.path("a.yaml"), directory.path("double.yaml")).unwrap();
        }),
        ("pipe.yaml", |directory| {
            let mode = nix::sys::stat::Mode::S_IRWXU;
            nix::unistd::mkfifo(&directory.path("pipe.yaml"), mode).unwrap();
        }),
        ("large.yaml", |directory| {
            directory.write("large.yaml", &"#".repeat(1000));
        }),
    ];
    for (name, change) in after {
        let mut looked = Looked::at(|_| {});
        change(&looked.directory);
        assert_eq!(looked.named(&[name], now), None, "{name}");
        assert_eq!(looked.named(&["a.yaml"], now), None, "{name}: for good");
    }
    let mut looked = Looked::at(|_| {});
    assert_eq!(looked.with(&Pending::vague(), now), None, "who knows");
    // One more than there may be.
    let mut looked = Looked::at(|directory| directory.write("c.yaml", &namespace("three")));
    looked.directory.write("d.yaml", &namespace("four"));
    assert_eq!(looked.named(&["d.yaml"], now), None, "no room");
    let mut looked = Looked::at(|_| {});
    looked.scanner.forget_names();
    assert_eq!(looked.named(&["a.yaml"], now), None, "another directory");
}
