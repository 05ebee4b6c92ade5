//! Which pod an address or a name belongs to, of those that state it.

use std::collections::hash_map::Entry;
use std::hash::Hash;

use super::namespaces::PodSlot;
use crate::hash::HashMap;
use crate::model::{Pod, PodUid};

/// The pods that state something, by what they state.
#[derive(Clone, Debug)]
pub(super) struct Owners<T> {
    claims: HashMap<T, Claims>,
}

/// Who states one thing: nearly always one pod, which is why it needs no place of its own.
#[derive(Clone, Debug)]
struct Claims {
    /// The one that owns it.
    latest: Claim,
    /// The others, in order; each precedes the latest.
    earlier: Vec<Claim>,
}

/// In order of precedence: the last one is the owner.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Claim {
    created: i64,
    uid: PodUid,
    slot: PodSlot,
}

impl<T> Default for Owners<T> {
    fn default() -> Self {
        Self {
            claims: HashMap::default(),
        }
    }
}

impl<T: Eq + Hash> Owners<T> {
    pub(super) fn owner_of(&self, stated: &T) -> Option<PodSlot> {
        Some(self.claims.get(stated)?.latest.slot)
    }

    pub(super) fn insert(&mut self, stated: T, slot: PodSlot, pod: &Pod) {
        let claim = claim(slot, pod);
        match self.claims.entry(stated) {
            Entry::Occupied(mut claims) => claims.get_mut().insert(claim),
            Entry::Vacant(place) => {
                place.insert(Claims {
                    latest: claim,
                    earlier: Vec::new(),
                });
            }
        }
    }

    pub(super) fn remove(&mut self, stated: T, slot: PodSlot, pod: &Pod) {
        if let Entry::Occupied(mut claims) = self.claims.entry(stated)
            && claims.get_mut().remove(&claim(slot, pod)) == Left::Nobody
        {
            claims.remove();
        }
    }
}

/// Whether anybody states it still.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Left {
    Somebody,
    Nobody,
}

impl Claims {
    fn insert(&mut self, claim: Claim) {
        if claim > self.latest {
            let before = std::mem::replace(&mut self.latest, claim);
            self.earlier.push(before);
        } else if claim < self.latest
            && let Err(place) = self.earlier.binary_search(&claim)
        {
            self.earlier.insert(place, claim);
        }
    }

    fn remove(&mut self, claim: &Claim) -> Left {
        if let Ok(place) = self.earlier.binary_search(claim) {
            self.earlier.remove(place);
        } else if *claim == self.latest {
            match self.earlier.pop() {
                Some(before) => self.latest = before,
                None => return Left::Nobody,
            }
        }
        Left::Somebody
    }
}

fn claim(slot: PodSlot, pod: &Pod) -> Claim {
    Claim {
        created: pod.created,
        uid: pod.uid.clone(),
        slot,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(created: i64, slot: PodSlot) -> Claim {
        Claim {
            created,
            uid: PodUid(format!("uid-{slot}").into()),
            slot,
        }
    }

    #[test]
    fn the_youngest_of_those_left_owns_an_address_whatever_comes_and_goes() {
        let all = [claim(1, 1), claim(2, 2), claim(3, 3)];
        // Every order of coming and every order of going.
        let orders = [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ];
        for coming in orders {
            for going in orders {
                let mut claims = Claims {
                    latest: all[coming[0]].clone(),
                    earlier: Vec::new(),
                };
                for place in coming {
                    claims.insert(all[place].clone());
                }
                let mut left = vec![0, 1, 2];
                for place in going {
                    assert_eq!(Some(&claims.latest), left.last().map(|last| &all[*last]));
                    left.retain(|other| *other != place);
                    let expected = if left.is_empty() {
                        Left::Nobody
                    } else {
                        Left::Somebody
                    };
                    assert_eq!(claims.remove(&all[place]), expected);
                }
            }
        }
    }
}
