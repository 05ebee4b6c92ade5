//! A list that changes while it stays the same atom, and the numbers by which its blocks are known.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Atom, AtomContent, AtomId, Atoms, Block};

/// Numbers of an atom's blocks, in the blocks' order. A block has its own for as long as the atom
/// has the block; none comes twice.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    given: Arc<[u64]>,
    next: u64,
}

impl Numbers {
    pub(super) fn of(content: &AtomContent) -> Self {
        let next = content.blocks.len() as u64;
        Self {
            given: (0..next).collect(),
            next,
        }
    }

    fn give(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }
}

/// An atom, or a part of one, with its blocks' numbers.
#[derive(Clone, Debug)]
pub(crate) struct Drawing {
    pub(crate) content: Arc<AtomContent>,
    numbers: Arc<[u64]>,
}

impl Drawing {
    /// The blocks, each with its number.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (u64, &Block)> {
        self.numbers.iter().copied().zip(&self.content.blocks)
    }
}

/// A live atom that has other content than before.
#[derive(Clone, Debug)]
pub(crate) struct Redrawn {
    pub(crate) atom: AtomId,
    /// What it had and has no longer.
    pub(crate) lost: Drawing,
    /// What it has and had not.
    pub(crate) gained: Drawing,
}

/// A part of an atom while it is gathered.
#[derive(Debug, Default)]
struct Part {
    blocks: Vec<Block>,
    numbers: Vec<u64>,
}

impl Part {
    fn add(&mut self, block: &Block, number: u64) {
        self.blocks.push(block.clone());
        self.numbers.push(number);
    }

    fn with(self, pods: Vec<super::PodPeer>) -> Drawing {
        Drawing {
            content: Arc::new(AtomContent {
                pods,
                blocks: self.blocks,
            }),
            numbers: self.numbers.into(),
        }
    }
}

impl Atom {
    pub(super) fn drawing(&self) -> Drawing {
        Drawing {
            content: Arc::clone(&self.content),
            numbers: Arc::clone(&self.numbers.given),
        }
    }

    /// True when it is one rule's alone and something judges by it. What a dead atom has is not
    /// looked after, so it must not come alive as another.
    fn may_be_redrawn(&self) -> bool {
        self.mentions == 1 && !self.sets.is_empty()
    }

    /// Takes over other content: what it lost and what it gained.
    fn redraw(&mut self, content: &Arc<AtomContent>) -> [Drawing; 2] {
        let before = self.drawing();
        let mut old = before.blocks().peekable();
        let mut given = Vec::with_capacity(content.blocks.len());
        let [mut lost, mut gained] = [Part::default(), Part::default()];
        for block in &content.blocks {
            while let Some((number, gone)) = old.next_if(|(_, old)| *old < block) {
                lost.add(gone, number);
            }
            let number = old.next_if(|(_, old)| *old == block).map_or_else(
                || {
                    let number = self.numbers.give();
                    gained.add(block, number);
                    number
                },
                |(number, _)| number,
            );
            given.push(number);
        }
        old.for_each(|(number, gone)| lost.add(gone, number));
        self.numbers.given = given.into();
        let pods = [
            missing(&before.content.pods, &content.pods),
            missing(&content.pods, &before.content.pods),
        ];
        self.content = Arc::clone(content);
        let [lost_pods, gained_pods] = pods;
        [lost.with(lost_pods), gained.with(gained_pods)]
    }
}

/// Items of one sorted list that another has not.
fn missing<T: Clone + Ord>(of: &[T], other: &[T]) -> Vec<T> {
    let is_missing = |item: &&T| other.binary_search(item).is_err();
    of.iter().filter(is_missing).cloned().collect()
}

impl Atoms {
    /// Makes a live atom of one rule the atom of other content, if it may be.
    pub(super) fn redraw(&mut self, id: AtomId, content: &Arc<AtomContent>) -> bool {
        let Some(atom) = self.get(id).filter(|atom| atom.may_be_redrawn()) else {
            return false;
        };
        let before = Arc::clone(&atom.content);
        self.in_force.entry(id).or_insert(before);
        self.draw(id, content);
        true
    }

    /// Gives atoms that were redrawn the content back that the maps have of them: what they were to
    /// be did not fit. Those that no set judges by stay as they are. Returns those given back.
    pub(crate) fn take_back(&mut self) -> BTreeSet<AtomId> {
        let mut taken_back = BTreeSet::new();
        for (id, content) in std::mem::take(&mut self.in_force) {
            if self.get(id).is_some_and(|atom| !atom.sets.is_empty()) {
                self.draw(id, &content);
                taken_back.insert(id);
            }
        }
        taken_back
    }

    /// What every atom is will be in the maps.
    pub(crate) fn put_in_force(&mut self) {
        self.in_force.clear();
    }

    /// Makes a live atom the atom of other content.
    fn draw(&mut self, id: AtomId, content: &Arc<AtomContent>) {
        let Some(atom) = self.get_mut(id) else { return };
        let before = Arc::clone(&atom.content);
        let [lost, gained] = atom.redraw(content);
        self.forget_content(id, &before);
        self.by_content.entry(Arc::clone(content)).or_insert(id);
        for peer in &lost.content.pods {
            self.selectors.remove(id, peer);
        }
        for peer in &gained.content.pods {
            self.selectors.insert(id, peer);
        }
        self.redrawn.push(Redrawn {
            atom: id,
            lost,
            gained,
        });
    }

    /// Atoms with other content than when this was last asked.
    pub(crate) fn take_redrawn(&mut self) -> Vec<Redrawn> {
        std::mem::take(&mut self.redrawn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::policy_sets::SetId;
    use crate::compile::prefixes::Net;

    fn content(blocks: &[&str]) -> AtomContent {
        let blocks = blocks.iter().map(|text| Block {
            cidr: Net::of(text.parse().unwrap()).unwrap(),
            except: Vec::new(),
        });
        AtomContent {
            pods: Vec::new(),
            blocks: blocks.collect(),
        }
    }

    fn numbers(drawing: &Drawing) -> Vec<u64> {
        drawing.blocks().map(|(number, _)| number).collect()
    }

    #[test]
    fn a_list_that_changes_stays_the_same_atom_and_so_do_the_blocks_it_keeps() {
        let mut atoms = Atoms::default();
        let id = atoms.mention(content(&["10.0.0.0/8", "10.2.0.0/16", "10.3.0.0/16"]), None);
        atoms.add_set(id, SetId(1));
        let new = content(&["10.1.0.0/16", "10.2.0.0/16", "10.4.0.0/16"]);
        assert_eq!(atoms.mention(new, Some(id)), id);
        atoms.forget_mention(id);
        let redrawn = atoms.take_redrawn();
        assert_eq!(redrawn.len(), 1);
        assert_eq!(numbers(&redrawn[0].lost), [0, 2]);
        assert_eq!(numbers(&redrawn[0].gained), [3, 4]);
        let drawing = atoms.get(id).unwrap().drawing();
        assert_eq!(numbers(&drawing), [3, 1, 4]);
        let same = content(&["10.1.0.0/16", "10.2.0.0/16", "10.4.0.0/16"]);
        assert_eq!(atoms.mention(same, None), id, "found by what it is now");
    }

    #[test]
    fn a_list_that_others_have_too_or_nobody_judges_by_becomes_another_atom() {
        let mut atoms = Atoms::default();
        let dead = atoms.mention(content(&["10.0.0.0/8"]), None);
        let other = atoms.mention(content(&["10.1.0.0/16"]), Some(dead));
        assert_ne!(dead, other);
        atoms.add_set(other, SetId(1));
        assert_eq!(atoms.mention(content(&["10.1.0.0/16"]), None), other);
        let third = atoms.mention(content(&["10.2.0.0/16"]), Some(other));
        assert_ne!(third, other);
        assert!(atoms.take_redrawn().is_empty());
    }
}
