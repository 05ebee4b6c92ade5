//! What another layout version has in force: which interfaces, taking their connections over, and
//! leaving nothing of it behind. Replacing the programs is [`Dataplane::attach`].

use agent_common::maps::before;

use super::attach::{self, Attached};
use super::error::DataplaneError;
use super::layouts::Layout;
use super::settings::jiffies;
use super::{Dataplane, inherit};

impl Dataplane {
    /// Interfaces that another layout version's programs judge, and nobody else's. One of which
    /// only one direction is still theirs is among [`Self::taken_up`], too.
    pub fn elsewhere(&self) -> &[Attached] {
        &self.elsewhere
    }

    /// Interfaces went, and other versions' programs with them.
    pub fn forget_elsewhere(&mut self, is_gone: impl Fn(u32) -> bool) {
        self.elsewhere.retain(|one| !is_gone(one.ifindex));
    }

    /// Removes what other layout versions have pinned, once none of their programs is in force.
    ///
    /// # Errors
    /// The pins or interfaces could not be listed, or something could not be removed.
    pub fn leave_other_layouts(&mut self) -> Result<(), DataplaneError> {
        if !self.elsewhere.is_empty() || self.pins.others()?.is_empty() {
            return Ok(());
        }
        // What is in force, not what is remembered of it.
        self.elsewhere = attach::attached(&self.pins)?;
        self.elsewhere.retain(|one| one.layout != Layout::Own);
        if self.elsewhere.is_empty() {
            self.before = None;
            attach::remove_others(&self.pins)?;
        }
        Ok(())
    }

    /// Whether the connections of an interface that another layout version judges can be carried
    /// over from that version's maps.
    pub fn inherits(&self, ifindex: u32) -> bool {
        let is_before = |one: &Attached| {
            one.ifindex == ifindex && one.layout == Layout::Version(before::VERSION)
        };
        self.before.is_some() && self.elsewhere.iter().any(is_before)
    }

    /// Carries an interface's connections over from the maps of the version before, for the
    /// endpoint that has `slot` now; returns how many there are. Each meets policy at its next
    /// packet.
    ///
    /// # Errors
    /// A map could not be read or written; some may be in.
    pub fn carry_over(&mut self, ifindex: u32, slot: u32) -> Result<usize, DataplaneError> {
        let Some(before) = &self.before else {
            return Ok(0);
        };
        #[expect(clippy::cast_possible_truncation, reason = "stamps are low halves")]
        let now = jiffies(&mut self.ebpf)? as u32;
        inherit::carry_over(&self.maps, before, ifindex, slot, now)
    }
}
