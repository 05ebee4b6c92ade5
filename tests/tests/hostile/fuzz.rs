//! Mutated frames from pods under random policies: what arrives is what the host's packet path allows
//! over the same tables, what is counted is what it counts, and where policy decided, it decided as
//! the specification says.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::thread;

use agent_common::Reason;
use anyhow::{Context as _, Result};
use tests::dice::Dice;
use tests::lab::frames::switch::{Fate, Lying, Switch};
use tests::runs::{is_thorough, seed};
use tests::wild::cluster;
use tests::wild::frames::{Addresses, Wild};

/// Frames in all.
fn frames() -> usize {
    if is_thorough() { 10_000_000 } else { 200_000 }
}
/// Frames on one node, whose programs and tables are new: most of a short run's time is the verifier's.
const FRAMES_OF_A_NODE: usize = 200_000;
/// Frames under one choice of policies.
const FRAMES_OF_A_CHOICE: usize = 2_000;
/// Frames sent in one go.
const AT_ONCE: usize = 250;

const PODS: usize = 4;

fn addresses() -> Vec<Addresses> {
    let own = |pod: usize| {
        let texts = [format!("10.15.0.{}", pod + 1), format!("fd15::{}", pod + 1)];
        texts.map(|text| text.parse().unwrap())
    };
    (0..PODS).map(own).collect()
}

fn pod(place: usize) -> String {
    cluster::name(place).to_string()
}

/// How often which fate was met.
type Fates = BTreeMap<Fate, usize>;

/// Frames on one node, under one choice of policies after the other: flows outlive the choice that
/// they began under.
fn on_a_node(seed: u64, count: usize) -> Result<Fates> {
    let mut dice = Dice::of(seed);
    let mut switch = Switch::of(cluster::cluster(&mut dice, &addresses()))?;
    let mut wild = Wild::new(addresses());
    let mut fates = Fates::new();
    for turn in 0..count / AT_ONCE {
        if turn % (FRAMES_OF_A_CHOICE / AT_ONCE) == 0 {
            let changes = 1 + dice.roll(6_usize);
            let changes = (0..changes).map(|_| cluster::change(&mut dice, &addresses()));
            switch.change(changes.collect())?;
        }
        // Pieces are not waited for as long as a busy machine may take.
        wild.forget_pieces();
        let from = dice.roll(PODS);
        let to = (from + 1 + dice.roll(PODS - 1)) % PODS;
        let frames: Vec<Vec<u8>> = (0..AT_ONCE)
            .map(|_| wild.frame(&mut dice, from, to))
            .collect();
        let lying = dice.pick(&[Lying::Linear, Lying::Paged]);
        let became = switch
            .send_all(&pod(from), &pod(to), &frames, lying)
            .with_context(|| format!("turn {turn} from {from} to {to}, {lying:?}"))?;
        for fate in became {
            *fates.entry(fate).or_default() += 1;
        }
    }
    Ok(fates)
}

/// The kernel's log from now on.
struct KernelLog(File);

impl KernelLog {
    fn open() -> Result<Self> {
        let mut options = File::options();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut log = options.open("/dev/kmsg").context("opening /dev/kmsg")?;
        log.seek(SeekFrom::End(0)).context("the end of /dev/kmsg")?;
        Ok(Self(log))
    }

    /// Lines in which the kernel complains.
    fn complaints(&mut self) -> Result<Vec<String>> {
        let mut complaints = Vec::new();
        let mut line = [0; 8192];
        loop {
            match self.0.read(&mut line) {
                Ok(length) => {
                    let line = String::from_utf8_lossy(&line[..length]);
                    if ["WARNING:", "BUG:", "Oops", "Call Trace"]
                        .iter()
                        .any(|word| line.contains(word))
                    {
                        complaints.push(line.into_owned());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(complaints),
                // Some lines were overwritten before they were read.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) => return Err(error).context("reading /dev/kmsg"),
            }
        }
    }
}

#[test]
#[expect(
    clippy::print_stdout,
    reason = "the figures are what a long run is for"
)]
fn of_mutated_frames_arrives_what_policy_allows_and_all_are_counted() -> Result<()> {
    let seed = seed(1);
    let mut log = KernelLog::open()?;
    let mut fates = Fates::new();
    for node in 0..frames() / FRAMES_OF_A_NODE {
        let own = seed
            .wrapping_add(node as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            | 1;
        // A lab belongs to its thread.
        let run = thread::spawn(move || on_a_node(own, FRAMES_OF_A_NODE));
        let became = run.join().unwrap();
        let became = became.with_context(|| format!("PICKET_SEED={seed}, node {node}"))?;
        for (fate, count) in became {
            *fates.entry(fate).or_default() += count;
        }
    }
    let sent: usize = fates.values().sum();
    println!("{sent} frames sent, and counted, to the packet and the byte; of these");
    for (fate, count) in &fates {
        println!("{count:9} {fate}");
    }
    let complaints = log.complaints()?;
    assert!(complaints.is_empty(), "{complaints:#?}");
    let least = frames() / 1_000;
    for fate in [
        Fate::Arrives(Reason::Rule, Reason::Rule),
        Fate::Arrives(Reason::Reply, Reason::Reply),
        Fate::Arrives(Reason::NotIsolated, Reason::Rule),
        Fate::Arrives(Reason::Link, Reason::Link),
        Fate::Arrives(Reason::IcmpRelated, Reason::IcmpRelated),
        Fate::DroppedFrom(Reason::Fragment),
        Fate::DroppedFrom(Reason::Malformed),
        Fate::DroppedFrom(Reason::SpoofedSource),
        Fate::DroppedFrom(Reason::IsolatedNoRule),
        Fate::DroppedTo(Reason::IsolatedNoRule),
        Fate::NotMine,
    ] {
        let count = fates.get(&fate).copied().unwrap_or_default();
        assert!(count >= least, "{fate}: {count} of {sent}");
    }
    Ok(())
}
