//! Bytes of a frame, read as the programs read them: nothing is looked for past where the kernel's
//! side can reach, what comes out is of one family and has ports only where there are some, and
//! padding behind a packet changes nothing.

use agent_common::packet::transport::has_ports;
use agent_common::packet::{Fragmentation, Frame, Head, Headers, OFFSET_MASK, Packet, parse};

/// Ethernet's header and the shortest IP header.
const LEAST: usize = 34;

/// The claim of this target.
///
/// # Panics
/// Where it does not hold.
pub fn run(bytes: &[u8]) {
    let read = parse(&Strict(bytes));
    if let Ok(Frame::Ip(headers)) = read {
        assert!(bytes.len() >= LEAST, "{headers:?}");
        let is_v4 = headers.source.is_v4();
        assert_eq!(is_v4, headers.destination.is_v4(), "{headers:?}");
        let has_transport = headers.fragmentation != Fragmentation::Later;
        assert!(
            has_ports(headers.protocol) && has_transport || !says_ports(&headers),
            "{headers:?}"
        );
    }
    // IP says where it ends; a packet of no stated length ends with its frame.
    let is_ip = matches!(bytes.get(12..14), Some([0x08, 0x00] | [0x86, 0xdd]));
    let stated = if bytes.get(12) == Some(&0x08) { 16 } else { 18 };
    if is_ip && read.is_ok() && bytes.get(stated..stated + 2) != Some(&[0, 0]) {
        let padded = [bytes, &[0x50; 40]].concat();
        assert_eq!(parse(&Strict(&padded)), read, "padding counts");
    }
}

fn says_ports(headers: &Headers) -> bool {
    headers.source_port != 0 || headers.destination_port != 0
}

/// Notices whoever reads past what offsets may be.
struct Strict<'a>(&'a [u8]);

impl Packet for Strict<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        assert!(offset + N <= OFFSET_MASK, "offset {offset} is out of reach");
        self.0.load(offset)
    }

    fn head<const N: usize>(&self) -> Option<impl Head> {
        self.0.first_chunk::<N>()
    }

    fn length(&self) -> u32 {
        self.0.length()
    }
}
