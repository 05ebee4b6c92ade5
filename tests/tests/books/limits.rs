//! What does not fit: the state in force stays, whole; what is wrong and which setting mends it is
//! said; it is tried again; pods that come meanwhile take the posture.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test's own module: a panic is the failure's report"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aya::maps::{HashMap, Map, MapData};

use super::shop::{
    Shop, WITHIN, address, pod, policy, usual_policy, wait_for_error, wait_for_no_error,
};
use agent::dto::Status;
use anyhow::bail;
use tests::lab::agent::{ask, get, log, picket};
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
    let _agent = shop.agent(&[]);
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
    shop.lab.write_manifest("other.yaml", "").unwrap();
    shop.wait("shop/web", "shop/api", false);
    wait_for_no_error();
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
