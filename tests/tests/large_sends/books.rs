//! What the programs count, beside what the interfaces themselves have carried.

use std::collections::BTreeMap;
use std::fs;

use agent::dto::{DirectionWord, Status, Traffic};
use anyhow::{Context as _, Result, ensure};
use tests::lab::agent::ask;
use tests::lab::stage::{Stage, endpoint};
use tests::lab::wait_until;

use crate::{PODS, WITHIN};

/// Bytes of an Ethernet header, which interfaces count and programs do not.
pub(crate) const ETHERNET: u64 = 14;

/// What has happened at one pod's interface, to the pod and from it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// What the interface itself has carried.
    pub(crate) carried: [Traffic; 2],
    pub(crate) passed: [Traffic; 2],
    pub(crate) dropped: [Traffic; 2],
}

pub(crate) const TO_POD: usize = 0;
pub(crate) const FROM_POD: usize = 1;

/// The programs' counts and the interfaces', since it was opened.
pub(crate) struct Books {
    before: BTreeMap<&'static str, Counts>,
}

impl Books {
    pub(crate) fn open(stage: &Stage) -> Result<Self> {
        let mut books = Self {
            before: PODS.map(|pod| (pod, Counts::default())).into(),
        };
        let before = wait_until("interfaces to be quiet", WITHIN, || {
            let one = books.since(stage)?;
            let other = books.since(stage)?;
            ensure!(format!("{one:?}") == format!("{other:?}"), "{one:?}");
            Ok(one)
        })?;
        books.before = before;
        Ok(books)
    }

    pub(crate) fn since(&self, stage: &Stage) -> Result<BTreeMap<&'static str, Counts>> {
        let status: Status = ask("/v1/status")?;
        let counts = self.before.iter().map(|(pod, before)| {
            let veth = stage.lab.place(pod)?.veth;
            let mut counts = Counts {
                // What the interface sends goes to the pod.
                carried: [carried(veth, "tx")?, carried(veth, "rx")?],
                ..Counts::default()
            };
            for direction in &endpoint(&status, pod)?.directions {
                let place = match direction.direction {
                    DirectionWord::Ingress => TO_POD,
                    DirectionWord::Egress => FROM_POD,
                };
                counts.passed[place] = direction.passed;
                counts.dropped[place] = direction
                    .dropped
                    .values()
                    .fold(Traffic::default(), |all, each| plus(all, *each));
            }
            for (now, before) in [
                (&mut counts.carried, before.carried),
                (&mut counts.passed, before.passed),
                (&mut counts.dropped, before.dropped),
            ] {
                for (now, before) in now.iter_mut().zip(before) {
                    now.packets -= before.packets;
                    now.bytes -= before.bytes;
                }
            }
            Ok((*pod, counts))
        });
        counts.collect()
    }

    /// Waits until everything sent was passed or dropped, and everything passed arrived: to the
    /// packet and the byte, at every pod.
    pub(crate) fn balance(&self, stage: &Stage) -> Result<BTreeMap<&'static str, Counts>> {
        wait_until("counts to be the interfaces'", WITHIN, || {
            let counts = self.since(stage)?;
            for (pod, counts) in &counts {
                let from_pod = plus(counts.passed[FROM_POD], counts.dropped[FROM_POD]);
                ensure!(from_pod == counts.carried[FROM_POD], "{pod}: {counts:?}");
                let to_pod = counts.passed[TO_POD];
                ensure!(to_pod == counts.carried[TO_POD], "{pod}: {counts:?}");
            }
            Ok(counts)
        })
    }
}

fn plus(one: Traffic, other: Traffic) -> Traffic {
    Traffic {
        packets: one.packets + other.packets,
        bytes: one.bytes + other.bytes,
    }
}

/// What the kernel says an interface has sent, or received, without Ethernet headers.
fn carried(veth: u32, way: &str) -> Result<Traffic> {
    let read = |what: &str| -> Result<u64> {
        let path = format!("/sys/class/net/pod{veth}/statistics/{way}_{what}");
        let text = fs::read_to_string(&path).context(path)?;
        Ok(text.trim().parse()?)
    };
    let packets = read("packets")?;
    Ok(Traffic {
        packets,
        bytes: read("bytes")? - ETHERNET * packets,
    })
}

/// Bytes of a packet, as they are on average.
pub(crate) fn mean(traffic: Traffic) -> u64 {
    traffic.bytes / traffic.packets.max(1)
}
