//! Which pod an address belongs to.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use super::namespaces::PodSlot;
use crate::model::{Pod, PodUid};

/// The pods that state an address, in order of precedence: the last one owns it.
#[derive(Clone, Debug, Default)]
pub(super) struct Owners {
    claims: HashMap<IpAddr, BTreeSet<Claim>>,
}

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Claim {
    created: i64,
    uid: PodUid,
    slot: PodSlot,
}

impl Owners {
    pub(super) fn owner_of(&self, address: IpAddr) -> Option<PodSlot> {
        Some(self.claims.get(&address)?.last()?.slot)
    }

    pub(super) fn insert(&mut self, slot: PodSlot, pod: &Pod) {
        for address in &pod.addresses {
            self.claims
                .entry(*address)
                .or_default()
                .insert(claim(slot, pod));
        }
    }

    pub(super) fn remove(&mut self, slot: PodSlot, pod: &Pod) {
        for address in &pod.addresses {
            if let Some(claims) = self.claims.get_mut(address) {
                claims.remove(&claim(slot, pod));
                if claims.is_empty() {
                    self.claims.remove(address);
                }
            }
        }
    }
}

fn claim(slot: PodSlot, pod: &Pod) -> Claim {
    Claim {
        created: pod.created,
        uid: pod.uid.clone(),
        slot,
    }
}
