//! Programs under test: what they are handed, and what a run of one costs.

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, ProgramArray};
use aya::programs::{SchedClassifier, TestRun as _};
use aya::{Ebpf, Pod, TestRunAttrs, TestRunOptions};
use tests::cpu::thread_time;

use crate::policy::{IFINDEX, PORT};

/// As in `picket-floor`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Variation {
    next: u32,
    mask: u32,
    pod_port: u32,
    peer_port: u32,
    peer_base: u32,
    program: u32,
}

// SAFETY: plain words without padding.
unsafe impl Pod for Variation {}

/// Which packets a program gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packets<'a> {
    /// All but the ports.
    pub(crate) frame: &'a [u8],
    /// True for what goes to the pod.
    pub(crate) is_to_pod: bool,
    /// Number of the first packet's flow.
    pub(crate) first: u32,
    /// Flows that take turns: a power of two, or 0 for one of its own for each packet.
    pub(crate) flows: u32,
    /// What the program is to answer.
    pub(crate) action: i32,
}

/// What a program answers that lets a packet pass (`TC_ACT_UNSPEC`), and one that drops it
/// (`TC_ACT_SHOT`).
pub(crate) const PASS: i32 = -1;
pub(crate) const DROP: i32 = 2;

/// The program that varies packets, and the programs it hands them to, by their place.
pub(crate) struct Runner {
    floor: Ebpf,
    places: Vec<String>,
}

impl Runner {
    /// The floor's programs, each behind a place of its own.
    pub(crate) fn new(mut floor: Ebpf, names: &[&str]) -> Result<Self> {
        program(&mut floor, "vary")?.load()?;
        let mut runner = Self {
            floor,
            places: Vec::new(),
        };
        for name in names {
            program(&mut runner.floor, name)?.load()?;
            let fd = program(&mut runner.floor, name)?.fd()?.try_clone()?;
            runner.place(name, &fd)?;
        }
        Ok(runner)
    }

    /// Makes a program one of those that packets can be handed to.
    pub(crate) fn place(&mut self, name: &str, fd: &aya::programs::ProgramFd) -> Result<()> {
        let map = self.floor.map_mut("PROGRAMS").context("no map PROGRAMS")?;
        let place = u32::try_from(self.places.len())?;
        ProgramArray::try_from(map)?
            .set(place, fd, 0)
            .with_context(|| format!("placing {name}"))?;
        self.places.push(name.to_owned());
        Ok(())
    }

    pub(crate) fn floor(&mut self) -> &mut Ebpf {
        &mut self.floor
    }

    /// CPU nanoseconds a run of the program takes, with the variation.
    pub(crate) fn run(&mut self, name: &str, packets: Packets<'_>, runs: u32) -> Result<f64> {
        let place = self.places.iter().position(|known| known == name);
        let place = place.with_context(|| format!("no program {name}"))?;
        let header = if packets.frame.get(12) == Some(&0x08) {
            34
        } else {
            54
        };
        let (pod_port, peer_port) = if packets.is_to_pod {
            (header + 2, header)
        } else {
            (header, header + 2)
        };
        let map = self
            .floor
            .map_mut("VARIATION")
            .context("no map VARIATION")?;
        let variation = Variation {
            next: packets.first,
            mask: packets.flows.wrapping_sub(1),
            pod_port,
            peer_port,
            peer_base: PORT.into(),
            program: u32::try_from(place)?,
        };
        Array::try_from(map)?.set(0, variation, 0)?;
        let ingress_ifindex = if packets.is_to_pod { 2 } else { IFINDEX };
        let vary = program(&mut self.floor, "vary")?;
        let before = thread_time();
        let action = test_run(vary, ingress_ifindex, packets.frame, runs)?;
        let spent = thread_time().saturating_sub(before);
        ensure!(
            action.cast_signed() == packets.action,
            "{name} answers {} to the last packet, not {}",
            action.cast_signed(),
            packets.action
        );
        Ok(spent.as_secs_f64() * 1e9 / f64::from(runs))
    }
}

pub(crate) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

fn test_run(
    program: &SchedClassifier,
    ingress_ifindex: u32,
    packet: &[u8],
    repeat: u32,
) -> Result<u32> {
    // `ingress_ifindex` and `ifindex` of `struct __sk_buff`.
    let mut context = [0_u8; 192];
    context[36..40].copy_from_slice(&ingress_ifindex.to_ne_bytes());
    context[40..44].copy_from_slice(&IFINDEX.to_ne_bytes());
    let mut after = context;
    let result = program.test_run(TestRunOptions {
        data_in: Some(packet),
        data_out: None,
        ctx_in: Some(&context),
        ctx_out: Some(&mut after),
        repeat,
        attrs: TestRunAttrs::new(),
    })?;
    Ok(result.return_value)
}
