//! The plugin on nodes of many kinds: what is put there, what is taken away, and what is left alone.

use super::*;

const LIST: &str =
    "{\n  \"cniVersion\": \"1.0.0\",\n  \"plugins\": [\n    {\"type\": \"ptp\"}\n  ]\n}\n";

/// A node's directories, which go with the value.
struct Node(PathBuf);

impl Node {
    fn new(test: &str) -> Self {
        let name = format!("picket-plugin-{test}-{}", std::process::id());
        let node = Self(std::env::temp_dir().join(name));
        fs::create_dir_all(node.places().conf).unwrap();
        node
    }

    fn places(&self) -> Places {
        Places {
            conf: self.0.join("net.d"),
            bin: self.0.join("bin"),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.places().conf.join(name)
    }

    fn install(&self) -> Result<Installed, InstallError> {
        let entry = Entry {
            socket: "/run/x.sock".into(),
            wait_millis: 5_000,
            on_timeout: OnTimeout::Fail,
        };
        Installer::new(self.places(), entry).install()
    }

    fn uninstall(&self) -> Result<Unplugged, InstallError> {
        uninstall(&self.places(), &self.0.join("results"))
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.places().conf).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A second panic would hide the first.
        drop(fs::remove_dir_all(&self.0));
    }
}

#[test]
fn program_and_entry_come_together_and_go_without_a_trace() {
    let node = Node::new("whole");
    let list = node.file("10-net.conflist");
    fs::write(&list, LIST).unwrap();
    fs::set_permissions(&list, fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(node.file("20-other.conflist"), LIST).unwrap();
    let installed = node.install().unwrap();
    assert_eq!(
        (installed.list.clone(), installed.is_changed),
        (list.clone(), true)
    );
    let text = fs::read_to_string(&list).unwrap();
    let entry =
        r#"{"type":"picket-cni","socket":"/run/x.sock","waitMillis":5000,"onTimeout":"fail"}"#;
    assert!(text.contains(entry), "{text}");
    assert_eq!(fs::metadata(&list).unwrap().mode() & 0o777, 0o640);
    let program = node.places().bin.join(NAME);
    assert_eq!(fs::metadata(&program).unwrap().mode() & 0o777, 0o755);
    assert!(is_same(Path::new("/proc/self/exe"), &program).unwrap());
    assert!(!node.install().unwrap().is_changed, "nothing to do");
    assert_eq!(
        fs::read_to_string(node.file("20-other.conflist")).unwrap(),
        LIST
    );

    assert_eq!(node.uninstall().unwrap().removed.len(), 2);
    assert_eq!(fs::read_to_string(&list).unwrap(), LIST);
    assert!(!program.exists());
    assert_eq!(node.names(), ["10-net.conflist", "20-other.conflist"]);
    assert_eq!(
        node.uninstall().unwrap(),
        Unplugged::default(),
        "nothing is left"
    );
}

#[test]
fn wherever_it_breaks_off_no_list_names_a_program_that_is_not_there() {
    let node = Node::new("broken-off");
    let list = node.file("10-net.conflist");
    fs::write(&list, LIST).unwrap();
    // The program cannot be put where a directory is.
    let program = node.places().bin.join(NAME);
    fs::create_dir_all(program.join("x")).unwrap();
    node.install().unwrap_err();
    assert_eq!(fs::read_to_string(&list).unwrap(), LIST);
    fs::remove_dir_all(&program).unwrap();
    node.install().unwrap();
    // The list cannot be written where a directory is: the program stays with it.
    fs::create_dir_all(unfinished(&list).join("x")).unwrap();
    node.uninstall().unwrap_err();
    assert!(program.exists());
    fs::remove_dir_all(unfinished(&list)).unwrap();
    // Left by one that was killed.
    fs::write(unfinished(&list), "half").unwrap();
    node.uninstall().unwrap();
    assert_eq!(node.names(), ["10-net.conflist"]);
}

#[test]
fn the_program_outlives_the_pods_that_were_started_with_it() {
    let node = Node::new("pods");
    fs::write(node.file("10-net.conflist"), LIST).unwrap();
    node.install().unwrap();
    let results = node.0.join("results");
    fs::create_dir_all(&results).unwrap();
    for (file, list) in [
        (
            "net-1-eth0",
            "eyJwbHVnaW5zIjpbeyJ0eXBlIjoicGlja2V0LWNuaSJ9XX0=",
        ),
        (
            "net-2-eth0",
            "eyJwbHVnaW5zIjogW3sidHlwZSI6InBpY2tldC1jbmkifV19",
        ),
        (
            "net-3-eth0",
            "eyJwbHVnaW5zIjogIFt7InR5cGUiOiJwaWNrZXQtY25pIn1dfQ==",
        ),
        (
            "other-4-eth0",
            "eyJwbHVnaW5zIjpbeyJ0eXBlIjoicG9ydG1hcCJ9XX0=",
        ),
    ] {
        let cached = serde_json::json!({"kind": "cniCacheV1", "config": list});
        fs::write(results.join(file), cached.to_string()).unwrap();
    }
    fs::write(results.join("net-5-eth0"), "half").unwrap();
    let unplugged = node.uninstall().unwrap();
    assert_eq!(unplugged.removed.len(), 1, "{unplugged:?}");
    assert!(unplugged.kept.unwrap().contains(": 3 pods were"));
    assert!(node.places().bin.join(NAME).exists());
    for number in 1..=3 {
        fs::remove_file(results.join(format!("net-{number}-eth0"))).unwrap();
    }
    assert_eq!(node.uninstall().unwrap().removed.len(), 1);
    assert!(!node.places().bin.join(NAME).exists());
}

#[test]
fn the_network_in_force_is_the_first_by_name_whatever_its_form() {
    let node = Node::new("in-force");
    let conf = node.places().conf;
    let read = || network_in_force(&conf).map(|network| (network.name, network.plugins));
    assert!(matches!(read(), Err(InstallError::NoNetwork(_))));
    fs::write(node.file("20-net.conflist"), LIST).unwrap();
    let (_, plugins) = read().unwrap();
    assert!(!plugins.is_empty());
    fs::write(
        node.file("10-one.conf"),
        r#"{"name":"one","type":"bridge"}"#,
    )
    .unwrap();
    assert_eq!(
        read().unwrap(),
        ("one".to_owned(), vec!["bridge".to_owned()])
    );
    let linked = conf.with_file_name("elsewhere.json");
    let list = r#"{"name":"two","plugins":[{"type":"ptp"},{"type":"portmap"}]}"#;
    fs::write(&linked, list).unwrap();
    std::os::unix::fs::symlink(&linked, node.file("05-link.conflist")).unwrap();
    let wires = ["ptp", "portmap"].map(str::to_owned).to_vec();
    assert_eq!(read().unwrap(), ("two".to_owned(), wires));
    fs::write(node.file("01-broken.conflist"), "{}").unwrap();
    assert!(matches!(read(), Err(InstallError::List { .. })));
}

#[test]
fn where_networks_are_not_seen_the_latest_pods_says_what_it_is() {
    let node = Node::new("latest");
    let results = node.0.join("results");
    assert_eq!(network_of_results(&results), None);
    fs::create_dir_all(&results).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH;
    for (file, list, is_old) in [
        // {"plugins":[{"type":"portmap"}]}
        (
            "a-1-eth0",
            "eyJwbHVnaW5zIjpbeyJ0eXBlIjoicG9ydG1hcCJ9XX0=",
            true,
        ),
        // {"plugins":[{"type":"picket-cni"}]}
        (
            "b-2-eth0",
            "eyJwbHVnaW5zIjpbeyJ0eXBlIjoicGlja2V0LWNuaSJ9XX0=",
            false,
        ),
        // {"plugins":[{"type":"loopback"}]}
        (
            "cni-loopback-2-lo",
            "eyJwbHVnaW5zIjpbeyJ0eXBlIjoibG9vcGJhY2sifV19",
            false,
        ),
    ] {
        let cached = serde_json::json!({"kind": "cniCacheV1", "config": list});
        let path = results.join(file);
        fs::write(&path, cached.to_string()).unwrap();
        if is_old {
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(old)
                .unwrap();
        }
    }
    let network = network_of_results(&results).unwrap();
    assert_eq!(network.plugins, ["picket-cni"]);
    assert!(network.path.ends_with("b-2-eth0"), "{network:?}");
}

#[test]
fn what_is_no_list_of_a_network_is_refused_with_the_file_and_left_alone() {
    let node = Node::new("hostile");
    assert!(matches!(node.install(), Err(InstallError::NoNetwork(_))));
    fs::write(node.file("00-ignored.txt"), LIST).unwrap();
    assert!(matches!(node.install(), Err(InstallError::NoNetwork(_))));

    let large = format!("{LIST}{}", " ".repeat(1 << 20));
    for (name, text, complaint) in [
        ("05-one.conf", r#"{"type":"ptp"}"#, "a single plugin"),
        ("05-one.json", LIST, "a single plugin"),
        ("05-a.conflist", "{", "not a list of plugins in JSON"),
        (
            "05-a.conflist",
            r#"{"cniVersion":"1.0.0","plugins":[]}"#,
            "lists no plugins",
        ),
        ("05-a.conflist", &large, "larger than 1 MiB"),
    ] {
        fs::write(node.file(name), text).unwrap();
        let error = node.install().unwrap_err().to_string();
        assert!(error.contains(complaint) && error.contains(name), "{error}");
        assert_eq!(fs::read_to_string(node.file(name)).unwrap(), text);
        node.uninstall().unwrap();
        fs::remove_file(node.file(name)).unwrap();
    }
    fs::write(node.file("50-real.conflist"), LIST).unwrap();
    std::os::unix::fs::symlink("50-real.conflist", node.file("05-link.conflist")).unwrap();
    assert!(matches!(node.install(), Err(InstallError::NoFile(_))));
    fs::remove_file(node.file("05-link.conflist")).unwrap();
    nix::unistd::mkfifo(
        &node.file("05-pipe.conflist"),
        nix::sys::stat::Mode::S_IRUSR,
    )
    .unwrap();
    assert!(matches!(node.install(), Err(InstallError::NoFile(_))));
    node.uninstall().unwrap();
    assert_eq!(
        fs::read_to_string(node.file("50-real.conflist")).unwrap(),
        LIST
    );
}
