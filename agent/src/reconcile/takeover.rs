//! Interfaces that another layout version's programs judge: they are handed over when their rows
//! are in ours, connections included. Until then, and while their pod is not known, they stay as they
//! are: nothing is opened or closed by another version's coming.

use std::time::Instant;

use agent_common::maps::LAYOUT_VERSION;
use tracing::{info, warn};

use super::run::{Reconciler, chain};
use crate::dataplane::Layout;
use crate::endpoints::{IfIndex, Sighting};

/// An interface about to be attached, as far as that matters here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Due {
    pub(super) ifindex: IfIndex,
    /// Its endpoint's slot; 0 when it has none.
    pub(super) slot: u32,
}

impl Reconciler {
    /// Another version's programs judge an interface, in one direction at least.
    pub(super) fn is_elsewhere(&self, ifindex: IfIndex) -> bool {
        let mut elsewhere = self.dataplane.elsewhere().iter();
        elsewhere.any(|one| one.ifindex == ifindex.0)
    }

    /// Says so, once, before the first is taken over.
    pub(super) fn announce_takeover(&self) {
        let elsewhere = self.dataplane.elsewhere();
        let Some(first) = elsewhere.first() else {
            return;
        };
        info!(
            from = %first.layout,
            to = %Layout::Own,
            interfaces = elsewhere.len(),
            "another layout version's programs are in force: each interface stays with them until \
             its policy is in the new maps"
        );
    }

    /// Interfaces that went took their programs with them.
    pub(super) fn sight_elsewhere(&mut self, sighting: &Sighting) {
        self.dataplane.forget_elsewhere(|ifindex| {
            let ifindex = IfIndex(ifindex);
            !sighting.links.contains_key(&ifindex) || sighting.vanished.contains(&ifindex)
        });
    }

    /// Attaches programs to interfaces that may carry connections, which are adopted, or carried
    /// over from the version before where that has judged the interface so far.
    pub(super) fn attach_with_connections(&mut self, due: &[Due]) {
        let (inherited, adopted): (Vec<Due>, Vec<Due>) = due
            .iter()
            .partition(|each| each.slot != 0 && self.dataplane.inherits(each.ifindex.0));
        self.take_over(&inherited);
        let taken = adopted.iter().map(|each| each.ifindex);
        let taken: Vec<IfIndex> = taken
            .filter(|ifindex| self.is_elsewhere(*ifindex))
            .collect();
        let begun = Instant::now();
        let adopted: Vec<IfIndex> = adopted.iter().map(|each| each.ifindex).collect();
        let connections = self.attach_adopting(&adopted);
        self.tell_taken_over(&taken, connections, begun);
    }

    /// One by one, so that little time lies between reading an interface's connections and
    /// replacing its programs: what is opened in between is written down by the old ones only.
    fn take_over(&mut self, due: &[Due]) {
        let begun = Instant::now();
        let mut connections = 0;
        for each in due {
            let before = self.carry_over(*each);
            self.attach_known(each.ifindex);
            let after = self.carry_over(*each);
            connections += before.max(after);
        }
        let taken: Vec<IfIndex> = due.iter().map(|each| each.ifindex).collect();
        self.tell_taken_over(&taken, connections, begun);
    }

    fn carry_over(&mut self, Due { ifindex, slot }: Due) -> usize {
        let carried = self.dataplane.carry_over(ifindex.0, slot);
        carried.unwrap_or_else(|error| {
            warn!(
                %ifindex,
                error = chain(&error),
                "not every open connection is carried over: the others are judged at their next packet"
            );
            0
        })
    }

    fn tell_taken_over(&self, interfaces: &[IfIndex], connections: usize, begun: Instant) {
        let mut done = interfaces.iter();
        let done = done
            .by_ref()
            .filter(|ifindex| !self.is_elsewhere(**ifindex))
            .count();
        if done == 0 {
            return;
        }
        info!(
            to = format_args!("v{LAYOUT_VERSION}"),
            interfaces = done,
            connections,
            left = self.dataplane.elsewhere().len(),
            took_ms = begun.elapsed().as_millis(),
            "interfaces taken over from another layout version"
        );
    }

    /// When no interface is judged by another version any more, nothing of it stays.
    pub(super) fn leave_other_layouts(&mut self) {
        if let Err(error) = self.dataplane.leave_other_layouts() {
            warn!(
                error = chain(&error),
                "what another layout version has pinned stays; the next start tries again"
            );
        }
    }
}
