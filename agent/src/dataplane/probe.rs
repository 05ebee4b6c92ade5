//! Runs a loaded program on a packet of our own making, without sending it anywhere.

use std::io;

use aya::programs::{SchedClassifier, TestRun as _};
use aya::{TestRunAttrs, TestRunOptions};

use super::error::DataplaneError;

/// What a program decided about a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// `TC_ACT_UNSPEC`: it goes on, to the next program.
    Pass,
    /// `TC_ACT_SHOT`: it vanishes.
    Drop,
    /// Anything else; our programs never say so.
    Other(i32),
}

impl Action {
    fn from_return(value: u32) -> Self {
        match value.cast_signed() {
            -1 => Self::Pass,
            2 => Self::Drop,
            other => Self::Other(other),
        }
    }
}

/// The fields of `struct __sk_buff` that a test run may set, at their offsets.
const MARK: usize = 8;
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;
const CONTEXT: usize = 192;

/// How a packet comes to the program.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Context {
    pub(crate) mark: u32,
    pub(crate) ingress_ifindex: u32,
    pub(crate) ifindex: u32,
}

/// Runs a program once and returns what it returned. The kernel wants 14 bytes at least, and 34
/// of an IPv4 packet.
pub(crate) fn run(program: &SchedClassifier, packet: &[u8], context: Context) -> io::Result<u32> {
    let mut bytes = [0; CONTEXT];
    for (offset, value) in [
        (MARK, context.mark),
        (INGRESS_IFINDEX, context.ingress_ifindex),
        (IFINDEX, context.ifindex),
    ] {
        if let Some(place) = bytes.get_mut(offset..offset + 4) {
            place.copy_from_slice(&value.to_ne_bytes());
        }
    }
    let mut after = bytes;
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: None,
            ctx_in: Some(&bytes),
            ctx_out: Some(&mut after),
            repeat: 1,
            attrs: TestRunAttrs::new(),
        })
        .map_err(io::Error::other)?;
    Ok(result.return_value)
}

/// Runs a program on a packet.
pub(crate) fn action(
    program: &'static str,
    classifier: &SchedClassifier,
    packet: &[u8],
    context: Context,
) -> Result<Action, DataplaneError> {
    run(classifier, packet, context)
        .map(Action::from_return)
        .map_err(|source| DataplaneError::Map {
            map: program,
            action: "test-running it",
            source,
        })
}
