//! Memory that the kernel refuses in the middle of a plan: the old state stays, it is tried again,
//! and then every row is there.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test's own module: a panic is the failure's report"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use agent::dataplane::{Dataplane, Options};
use agent::source::directory;
use agent_common::Address;
use agent_common::judge::{PolicyTables as _, judge, peer_of};
use agent_policy::engine::{self, Engine, LocalEndpoint};
use agent_policy::model::Protocol;
use agent_policy::tables::Tables;
use tests::lab::agent::{get, picket};
use tests::lab::pins::PINS;
use tests::lab::wait_until;

use super::shop::{Shop, WITHIN, pod, policy, wait_for_error, wait_for_no_error};

/// A memory cgroup of our own, gone with the value.
///
/// Held open, because the lab's `/sys` hides where it is.
struct Cgroup {
    name: String,
    directory: fs::File,
    root: fs::File,
}

impl Cgroup {
    /// `None` where the machine has no memory controller for us.
    fn make() -> Option<Self> {
        let name = format!("picket-books-{}", std::process::id());
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let root = mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let (path, kind) = (Path::new(fields[1]), fields[2]);
            let has_memory = match kind {
                "cgroup" => fields[3].split(',').any(|option| option == "memory"),
                "cgroup2" => fs::read_to_string(path.join("cgroup.subtree_control"))
                    .is_ok_and(|text| text.contains("memory")),
                _ => false,
            };
            has_memory.then(|| path.to_owned())
        })?;
        let path = root.join(&name);
        fs::create_dir(&path).ok()?;
        Some(Self {
            directory: fs::File::open(&path).ok()?,
            root: fs::File::open(root).ok()?,
            name,
        })
    }
}

#[test]
fn memory_that_the_kernel_refuses_leaves_the_old_state_and_is_tried_again() {
    let Some(group) = Cgroup::make() else {
        eprintln!("no memory controller here: the kernel cannot be made to run out of memory");
        return;
    };
    let shop = Shop::new();
    // The maps are charged to whoever made them: an agent inside the group, which then dies.
    group.make_maps(&shop);
    let agent = shop.agent(&[]);
    group.limit_to_what_is_used();
    let peers: Vec<String> = (20..250)
        .map(|last| pod(&format!("peer{last}"), last))
        .collect();
    let blocks: Vec<String> = (0..80_u8)
        .flat_map(|a| (0..250_u8).map(move |b| format!("{{ipBlock: {{cidr: 198.{a}.{b}.0/24}}}}")))
        .collect();
    shop.lab
        .write_manifest("more.yaml", &peers.join("---\n"))
        .unwrap();
    shop.lab
        .write_manifest(
            "policy.yaml",
            &policy(&format!("{{from: [{}]}}", blocks.join(", "))),
        )
        .unwrap();
    wait_for_error("kernel", &["out of memory"]);
    assert!(shop.reaches("shop/web", "shop/api"));
    assert!(!shop.reaches("shop/other", "shop/api"));
    group.lift();
    // Attempts come less and less often; a change is one at once.
    shop.lab.write_manifest("nudge.yaml", "").unwrap();
    shop.wait("shop/web", "shop/api", false);
    wait_for_no_error();
    agent.kill().unwrap();
    holds_the_plan(&shop);
}

/// Compares the maps with what an engine plans that has met no trouble: each judges every address
/// that either of them names alike, for every pod. Ids may differ, they tell what came when.
fn holds_the_plan(shop: &Shop) {
    let present = Dataplane::open(&Options::new(PINS)).unwrap();
    let present = present.present().unwrap();
    let mut engine = Engine::new(engine::Options::default());
    for change in directory::load(&shop.lab.manifests()).unwrap().changes {
        drop(engine.apply(change));
    }
    let pods: Vec<_> = engine.cluster().pods().cloned().collect();
    let mut ours = Vec::new();
    for pod in pods {
        if let Ok(place) = shop.lab.place(&pod.name.to_string()) {
            ours.push(place.veth);
            engine.attach(LocalEndpoint {
                uid: pod.uid.clone(),
                ifindex: place.veth,
                addresses: Vec::new(),
                attached: 0,
                fails_open: false,
            });
        }
    }
    let mut planned = Tables::default();
    while let Some(plan) = engine.plan(Duration::ZERO).unwrap() {
        planned.apply_all(&plan.writes);
        engine.written(Duration::ZERO);
    }
    let named = |tables: &Tables| -> BTreeSet<Address> {
        let prefixes = tables.prefix_rows().map(|(prefix, _)| prefix.address);
        tables.peers.keys().copied().chain(prefixes).collect()
    };
    let (wanted, found) = (named(&planned), named(&present));
    assert!(wanted.len() >= 20_000, "{} addresses", wanted.len());
    let missing: Vec<_> = wanted.difference(&found).collect();
    assert!(missing.is_empty(), "{} rows are missing", missing.len());
    let judged = |tables: &Tables, ifindex, address: &Address| {
        let (config, _) = tables.endpoint(ifindex).unwrap();
        let class = peer_of(tables, address).class;
        config.sets.map(|set| {
            let judgement = judge(tables, set, class, Protocol::TCP.0, 8080);
            judgement.reason.verdict()
        })
    };
    assert_eq!(ours.len(), 3);
    for address in wanted.union(&found) {
        for &pod in &ours {
            let (present, planned) = (
                judged(&present, pod, address),
                judged(&planned, pod, address),
            );
            assert_eq!(present, planned, "{address:?} for interface {pod}");
        }
    }
}

impl Cgroup {
    /// Runs an agent of the group until it enforces, and kills it.
    fn make_maps(&self, shop: &Shop) {
        let procs = PathBuf::from(format!("/proc/{}", std::process::id())).join(
            inside(&self.directory, "cgroup.procs")
                .strip_prefix("/proc/self")
                .unwrap(),
        );
        let script = r#"echo $$ > "$1" && exec "$2" agent --manifests "$3""#;
        let mut maker = Command::new("sh")
            .args(["-c", script, "maker"])
            .args([&procs, &picket().unwrap(), &shop.lab.manifests()])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the maker to be ready", WITHIN, || get("/readyz")).unwrap();
        maker.kill().unwrap();
        maker.wait().unwrap();
    }

    fn file(&self, v2: &str, v1: &str) -> PathBuf {
        let file = inside(&self.directory, v2);
        if file.exists() {
            file
        } else {
            inside(&self.directory, v1)
        }
    }

    fn limit_to_what_is_used(&self) {
        let used =
            fs::read_to_string(self.file("memory.current", "memory.usage_in_bytes")).unwrap();
        fs::write(
            self.file("memory.max", "memory.limit_in_bytes"),
            used.trim(),
        )
        .unwrap();
    }

    fn lift(&self) {
        let (v2, v1) = ("memory.max", "memory.limit_in_bytes");
        let is_v2 = inside(&self.directory, v2).exists();
        let none = if is_v2 { "max" } else { "-1" };
        fs::write(self.file(v2, v1), none).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its maps go with the lab; the directory may go before them.
        fs::remove_dir(inside(&self.root, &self.name)).unwrap_or_default();
    }
}

fn inside(directory: &fs::File, file: &str) -> PathBuf {
    let number = std::os::fd::AsRawFd::as_raw_fd(directory);
    PathBuf::from(format!("/proc/self/fd/{number}")).join(file)
}
