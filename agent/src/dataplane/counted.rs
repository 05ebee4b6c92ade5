//! The books of the programs, for reading from any thread.

use std::sync::Arc;

use agent_common::maps::{Connection, Counter, Denied, DeniedKey, FlowKey, RuleHit, Traffic};

use super::counts::{self, Dropped, MapUse};
use super::error::DataplaneError;
use super::maps::Maps;

/// What the programs have counted. Cheap to clone, and read without the loop: counts only grow
/// until the loop clears them.
#[derive(Clone, Debug)]
pub struct Counted(Arc<Maps>);

impl Counted {
    pub(super) fn new(maps: &Arc<Maps>) -> Self {
        Self(Arc::clone(maps))
    }

    /// What a slot's pod received and sent, by `Direction::index`.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn passed(&self, slot: u32) -> Result<[Traffic; 2], DataplaneError> {
        counts::passed(&self.0, slot)
    }

    /// What was dropped at a slot, by direction and reason; nothing dropped, no row.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn dropped(&self, slot: u32) -> Result<Vec<Dropped>, DataplaneError> {
        counts::dropped(&self.0, slot)
    }

    /// Refusals that DENIED has room for.
    pub fn denied_capacity(&self) -> usize {
        usize::try_from(self.0.denied.capacity()).unwrap_or(usize::MAX)
    }

    /// Every refusal that is remembered, with its count.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn denied(&self) -> Result<Vec<(DeniedKey, Denied)>, DataplaneError> {
        counts::denied(&self.0)
    }

    /// New connections by row of RULE_HITS (see `agent_common::maps::hit_row`); rows of zero are
    /// left out.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn rule_hits(
        &self,
        rows: impl IntoIterator<Item = u32>,
    ) -> Result<Vec<(u32, RuleHit)>, DataplaneError> {
        counts::rule_hits(&self.0, rows)
    }

    /// The node's own counters.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, DataplaneError> {
        counts::counters(&self.0)
    }

    /// How full every map is. Walks whole maps: for status and metrics.
    ///
    /// # Errors
    /// A map could not be read.
    pub fn map_uses(&self) -> Result<Vec<MapUse>, DataplaneError> {
        counts::map_uses(&self.0)
    }

    /// Every known connection of a slot.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn connections(&self, slot: u32) -> Result<Vec<(FlowKey, Connection)>, DataplaneError> {
        counts::connections(&self.0, slot)
    }
}
