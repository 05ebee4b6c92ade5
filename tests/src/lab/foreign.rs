//! What others put on a pod's interface: programs that pass every packet on and are counted by the
//! kernel, and the shaping that the CNI's bandwidth plugin does.

use std::fmt;
use std::os::fd::OwnedFd;
use std::process::Command;

use agent::dataplane::objects;
use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::programs::SchedClassifier;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType};
use aya::programs::{LinkOrder, ProgramInfo};
use aya::sys::{Stats, enable_stats};
use serde_json::Value;

/// The program: it does nothing but pass the packet on.
const PROGRAM: &str = "bare";

/// How a program of somebody else's is attached.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// By TCX, behind whatever is there.
    Tcx,
    /// As a filter of this priority in the interface's clsact qdisc.
    Filter(u16),
}

/// A program of somebody else's; it goes with the value.
pub struct Foreign {
    interface: String,
    side: TcAttachType,
    place: Place,
    link: SchedClassifierLink,
    ebpf: Ebpf,
    /// The kernel counts runs as long as somebody wants it.
    _counting: Option<OwnedFd>,
}

impl fmt::Debug for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            TcAttachType::Ingress => "ingress",
            TcAttachType::Egress => "egress",
            TcAttachType::Custom(_) => "elsewhere",
        };
        write!(f, "{:?} at {side} of {}", self.place, self.interface)
    }
}

impl Foreign {
    /// Attaches it, its runs counted.
    pub fn attach(interface: &str, side: TcAttachType, place: Place) -> Result<Self> {
        let counting = enable_stats(Stats::RunTime).context("having runs counted")?;
        Ok(Self {
            _counting: Some(counting),
            ..Self::uncounted(interface, side, place)?
        })
    }

    /// Attaches it; its runs cost no more than they do elsewhere.
    pub fn uncounted(interface: &str, side: TcAttachType, place: Place) -> Result<Self> {
        let mut ebpf = Ebpf::load(objects::floor())?;
        let program: &mut SchedClassifier = ebpf
            .program_mut(PROGRAM)
            .context("the floor's program")?
            .try_into()?;
        program.load()?;
        let options = match place {
            Place::Tcx => TcAttachOptions::TcxOrder(LinkOrder::default()),
            Place::Filter(priority) => TcAttachOptions::Netlink(NlOptions {
                priority,
                ..NlOptions::default()
            }),
        };
        let id = program
            .attach_with_options(interface, side, options)
            .with_context(|| format!("attaching to {interface}"))?;
        let link = program.take_link(id)?;
        Ok(Self {
            interface: interface.to_owned(),
            side,
            place,
            link,
            ebpf,
            _counting: None,
        })
    }

    /// Packets it has seen.
    pub fn packets(&self) -> Result<u64> {
        Ok(self.info()?.run_count())
    }

    /// True when the kernel still shows a TCX program where it was put.
    pub fn is_shown(&self) -> Result<bool> {
        let own = self.info()?.id();
        let (_, programs) = SchedClassifier::query_tcx(self.interface.as_str(), self.side)?;
        Ok(programs.iter().any(|program| program.id() == own))
    }

    /// Leaves it attached for as long as its interface lives.
    #[expect(clippy::mem_forget, reason = "dropping a link detaches it")]
    pub fn leave(self) {
        std::mem::forget(self.link);
    }

    fn info(&self) -> Result<ProgramInfo> {
        let program: &SchedClassifier = self
            .ebpf
            .program(PROGRAM)
            .context("the floor's program")?
            .try_into()?;
        Ok(program.info()?)
    }
}

/// An interface whose traffic is shaped both ways as the bandwidth plugin does it: `tbf` to the
/// pod, and a redirection of what the pod sends to an interface with a `tbf` of its own.
#[derive(Debug)]
pub struct Shaped {
    interface: String,
    detour: String,
}

/// What shaping has done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shaping {
    /// Packets to the pod, and from it, that have passed their shaper.
    pub packets: [u64; 2],
    /// How often a shaper held one back.
    pub held: [u64; 2],
    /// Packets that were redirected.
    pub redirected: u64,
}

impl Shaped {
    /// Shapes an interface; `kind` is the qdisc that holds the redirection: `ingress`, as the
    /// plugin has it, or `clsact`.
    pub fn new(interface: &str, kind: &str) -> Result<Self> {
        let detour = format!("ifb-{interface}");
        run("ip", &format!("link add {detour} type ifb"))?;
        run("ip", &format!("link set {detour} up"))?;
        for device in [interface, &detour] {
            // A few packets at once; the queue holds all that a test sends.
            let shaper = "root tbf rate 4mbit burst 5k latency 2s";
            run("tc", &format!("qdisc add dev {device} {shaper}"))?;
        }
        let made = run("tc", &format!("qdisc add dev {interface} {kind}"));
        // clsact is whoever's came first.
        if !run("tc", &format!("qdisc show dev {interface}"))?.contains(kind) {
            made?;
        }
        let everything = "protocol all u32 match u32 0 0";
        run(
            "tc",
            &format!(
                "filter add dev {interface} ingress pref 9 {everything} \
                 action mirred egress redirect dev {detour}"
            ),
        )?;
        Ok(Self {
            interface: interface.to_owned(),
            detour,
        })
    }

    /// What it has done so far; an error when a part of it is gone.
    pub fn done(&self) -> Result<Shaping> {
        let to_pod = shaper(&self.interface)?;
        let from_pod = shaper(&self.detour)?;
        let filters = shown(&format!("-s -j filter show dev {} ingress", self.interface))?;
        let redirected = filters
            .iter()
            .find_map(|filter| number(filter.pointer("/options/actions/0/stats/packets")?));
        Ok(Shaping {
            packets: [to_pod.0, from_pod.0],
            held: [to_pod.1, from_pod.1],
            redirected: redirected.with_context(|| format!("no redirection in {filters:?}"))?,
        })
    }
}

impl Drop for Shaped {
    fn drop(&mut self) {
        // Gone already, when the lab is.
        drop(run("ip", &format!("link del {}", self.detour)));
    }
}

/// Packets that passed a device's `tbf`, and how often it held one back.
fn shaper(device: &str) -> Result<(u64, u64)> {
    let qdiscs = shown(&format!("-s -j qdisc show dev {device}"))?;
    let tbf = qdiscs
        .iter()
        .find(|qdisc| qdisc.get("kind").is_some_and(|kind| kind == "tbf"));
    let counts = tbf.and_then(|tbf| {
        Some((
            number(tbf.get("packets")?)?,
            number(tbf.get("overlimits")?)?,
        ))
    });
    counts.with_context(|| format!("no tbf on {device}: {qdiscs:?}"))
}

fn number(value: &Value) -> Option<u64> {
    value.as_u64()
}

/// What tc(8) shows, as JSON.
fn shown(arguments: &str) -> Result<Vec<Value>> {
    let text = run("tc", arguments)?;
    serde_json::from_str(&text).with_context(|| format!("tc {arguments}: {text}"))
}

/// Runs a program of iproute2 with its arguments, separated by spaces; what it says.
pub(super) fn run(program: &str, arguments: &str) -> Result<String> {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .with_context(|| format!("starting {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
