//! The least that tracking connections can cost where Picket's programs stand: the floor's, which ask
//! no policy and drop nothing.

use agent::dataplane::objects;
use agent_common::maps::CONNTRACK_CAPACITY;
use anyhow::{Context as _, Result, ensure};
use aya::maps::HashMap;
use aya::programs::tc::{TcAttachOptions, TcAttachType};
use aya::programs::{LinkOrder, SchedClassifier};
use aya::{Ebpf, EbpfLoader, Pod};

/// The floor's programs at a pod's interface, with room for as many connections as Picket gives it.
pub(crate) fn tracking(interface: &str, is_v6: bool) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for map in ["FLOOR_FLOWS_V4", "FLOOR_FLOWS_V6"] {
        loader.map_max_entries(map, CONNTRACK_CAPACITY);
    }
    let mut floor = loader.load(objects::floor())?;
    let family = if is_v6 { "v6" } else { "v4" };
    for (hook, side) in [
        ("from", TcAttachType::Ingress),
        ("to", TcAttachType::Egress),
    ] {
        let name = format!("track_{hook}_{family}");
        let program = floor.program_mut(&name).context(name)?;
        let program: &mut SchedClassifier = program.try_into()?;
        program.load()?;
        program
            .attach_with_options(
                interface,
                side,
                TcAttachOptions::TcxOrder(LinkOrder::default()),
            )
            .with_context(|| format!("attaching to {interface}"))?;
    }
    Ok(floor)
}

/// Fails unless the floor's programs have written the connections down.
pub(crate) fn has_tracked(floor: &Ebpf, is_v6: bool, connections: u32) -> Result<()> {
    let tracked = if is_v6 {
        flows_of::<[u64; 5]>(floor, "FLOOR_FLOWS_V6")?
    } else {
        flows_of::<[u64; 2]>(floor, "FLOOR_FLOWS_V4")?
    };
    // The least recently used ones go before there is no room at all.
    let wanted = connections.min(CONNTRACK_CAPACITY / 2) as usize;
    ensure!(
        tracked >= wanted,
        "the floor's programs know {tracked} of {connections} connections"
    );
    Ok(())
}

fn flows_of<Flow: Pod>(floor: &Ebpf, name: &str) -> Result<usize> {
    let flows: HashMap<_, Flow, u64> = HashMap::try_from(floor.map(name).context("no such map")?)?;
    Ok(flows.keys().filter_map(Result::ok).count())
}
