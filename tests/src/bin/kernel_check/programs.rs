//! The kernel side alone: the programs load, the maps can be made, a plan is carried out and read
//! back, programs are attached, packets are judged, and the next agent finds all of it.

use std::net::IpAddr;

use agent::dataplane::{Action, Dataplane, Method, Options, uninstall};
use agent_common::classify::Hook;
use agent_common::maps::{
    ALLOW, Config, EndpointWord, PeerEntry, PortFunction, Settings, VerdictKey, config_flags,
};
use agent_policy::plan::Write;
use anyhow::{Context as _, Result, ensure};
use tests::lab::Lab;

use crate::{costs, report};

/// Where the pins are, in a BPF file system of the lab's own.
const PINS: &str = "/sys/fs/bpf/picket";
const POD: [u8; 4] = [10, 9, 0, 2];
const FRIEND: [u8; 4] = [10, 9, 1, 1];
const STRANGER: [u8; 4] = [10, 9, 1, 2];

/// Everything the agent does with the kernel, step by step; how this kernel holds programs best.
pub(crate) fn check() -> Result<Method> {
    let mut lab = Lab::enter().context("making a namespace")?;
    lab.add_pod("pod", &[IpAddr::from(POD)])?;
    let ifindex = lab.place("pod")?.veth;
    let interface = format!("pod{ifindex}");

    let mut dataplane =
        Dataplane::open(&Options::new(PINS)).context("loading programs, making maps")?;
    report::ok("the programs load");
    let verified = dataplane.verified_instructions()?;
    let method = dataplane.method();
    ensure!(dataplane.hz() >= 100, "{} ticks a second", dataplane.hz());

    let writes = plan(ifindex);
    dataplane.apply(&writes).context("carrying out a plan")?;
    let present = dataplane.present()?;
    ensure!(present.endpoints.len() == 1, "the plan is not in the maps");
    report::ok("a plan is carried out and read back");

    let settings = Settings {
        budget_rate: 1000,
        budget_burst: 1000,
        timeouts: agent_common::conntrack::Timeout::defaults(dataplane.hz()),
        ..Settings::default()
    };
    dataplane.put_settings(&settings)?;
    dataplane.attach(ifindex, &interface)?;
    let attached = dataplane.attached()?;
    ensure!(
        attached.len() == 1
            && attached
                .iter()
                .all(|one| one.is_whole() && one.method == method),
        "attached: {attached:?}"
    );
    report::ok(&format!("programs are attached by {}", method.as_label()));

    for (what, hook, from, to, wanted) in [
        ("to a friend", Hook::FromPod, POD, FRIEND, Action::Pass),
        ("its answer", Hook::ToPod, FRIEND, POD, Action::Pass),
        ("to a stranger", Hook::FromPod, POD, STRANGER, Action::Drop),
        (
            "a forged source",
            Hook::FromPod,
            STRANGER,
            FRIEND,
            Action::Drop,
        ),
    ] {
        let got = dataplane.test_run(hook, &datagram(from, to), ifindex, 0)?;
        ensure!(got == wanted, "{what}: {got:?} instead of {wanted:?}");
    }
    report::ok("a friend, its answer, a stranger and a forged source are told apart");
    ensure!(dataplane.connections(1)?.len() == 1, "no connection kept");
    ensure!(!dataplane.dropped(1)?.is_empty(), "no drop counted");
    ensure!(!dataplane.events()?.take().is_empty(), "no event came");
    report::ok("a connection is kept, refusals are counted, events come");

    drop(dataplane);
    costs::tell(verified, PINS)?;
    uninstall(PINS.as_ref()).context("uninstalling")?;
    Ok(method)
}

/// An endpoint that one class may reach, and that may reach it.
fn plan(ifindex: u32) -> Vec<Write> {
    let config = Config {
        ifindex,
        slot: 1,
        addresses: [IpAddr::from(POD).into(), agent_common::Address::UNSPECIFIED],
        sets: [1, 1],
        audit_sets: [1, 1],
        flags: config_flags::PROGRAMMED,
        ..Config::default()
    };
    let allow = PortFunction {
        verdict: ALLOW,
        rule: 1,
        ..PortFunction::default()
    };
    vec![
        Write::PutVerdict(VerdictKey { set: 1, class: 0 }, PortFunction::default()),
        Write::PutVerdict(VerdictKey { set: 1, class: 5 }, allow),
        Write::PutPeer(FRIEND.into(), PeerEntry { class: 5, flags: 0 }),
        Write::OpenSlot(1),
        Write::PutConfig(1, Box::new(config)),
        Write::Flip {
            ifindex,
            word: EndpointWord {
                config_row: 1,
                revision: 1,
            },
        },
    ]
}

/// An empty UDP datagram from port 1000 to port 1000 (RFC 791, RFC 768), checksums left out.
fn datagram(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([8, 0, 0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0]);
    frame.extend(from);
    frame.extend(to);
    frame.extend([3, 232, 3, 232, 0, 8, 0, 0]);
    frame.resize(64, 0);
    frame
}
