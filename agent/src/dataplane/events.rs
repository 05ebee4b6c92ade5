//! The ring buffer's records, as they come. Decoding is left to `flows`.
//!
//! The programs write without waking the reader, which would cost a packet up to 100 ns; the
//! reader looks by the clock instead.

use std::path::Path;
use std::time::Duration;

use agent_common::event::FlowEvent;
use aya::maps::{Map, MapData, RingBuf};
use bytes::{Bytes, BytesMut};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::error::DataplaneError;

/// How often the ring is looked at. It holds some 40 000 records: 1.6 million a second.
const PERIOD: Duration = Duration::from_millis(25);
/// Records taken in one go, so that a flood cannot grow a batch without bound.
const BATCH: usize = 4096;

/// The only reader of the ring buffer.
pub struct Events {
    ring: RingBuf<MapData>,
    timer: Option<Interval>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    pub(crate) fn open(directory: &Path) -> Result<Self, DataplaneError> {
        let wrong =
            |error: aya::maps::MapError| DataplaneError::Events(std::io::Error::other(error));
        let map = MapData::from_pin(directory.join("EVENTS")).map_err(wrong)?;
        Ok(Self {
            ring: RingBuf::try_from(Map::RingBuf(map)).map_err(wrong)?,
            timer: None,
        })
    }

    /// Takes what is there now, at most some thousand records; empty when there is nothing. Each
    /// is a whole record of the ring: a [`FlowEvent`] in memory order.
    pub fn take(&mut self) -> Vec<Bytes> {
        // One allocation for the batch; the records are slices of it.
        let mut bytes = BytesMut::new();
        let mut records = Vec::new();
        while records.len() < BATCH
            && let Some(record) = self.ring.next()
        {
            if bytes.capacity() < record.len() {
                bytes.reserve(64 * size_of::<FlowEvent>());
            }
            bytes.extend_from_slice(&record);
            records.push(bytes.split().freeze());
        }
        records
    }

    /// Waits until there are records and takes them. Dropping the future loses none.
    pub async fn next(&mut self) -> Vec<Bytes> {
        loop {
            let records = self.take();
            if !records.is_empty() {
                return records;
            }
            let timer = self.timer.get_or_insert_with(|| {
                let mut timer = interval(PERIOD);
                timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
                timer
            });
            timer.tick().await;
        }
    }
}
