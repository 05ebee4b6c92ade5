//! Frames by chance between a few parties: sound ones, odd ones, broken ones. They meet: flows have
//! answers, datagrams come in pieces, errors quote what was sent before.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::dice::Dice;
use crate::packets::Frame;

/// An IPv4 and an IPv6 address.
pub type Addresses = [IpAddr; 2];

/// Every port that flows have.
pub const PORTS: [u16; 6] = [0, 79, 80, 81, 443, 40_000];
/// What is remembered of one party's frames to another.
const MEMORY: usize = 12;
/// Bytes of an Ethernet header's two addresses.
const HARDWARE: usize = 12;
/// No frame is longer.
const LONGEST: usize = 9_000;

/// Those who send, and what they have sent.
#[derive(Debug)]
pub struct Wild {
    parties: Vec<Addresses>,
    /// By sender and receiver: what was sent, before anything was broken.
    sent: BTreeMap<(usize, usize), Vec<Frame>>,
    /// The same: pieces of what is on its way.
    pieces: BTreeMap<(usize, usize), Vec<Frame>>,
    /// Of the last datagram that was cut.
    identification: u16,
}

impl Wild {
    /// Parties by their place in the list.
    pub fn new(parties: Vec<Addresses>) -> Self {
        Self {
            parties,
            sent: BTreeMap::new(),
            pieces: BTreeMap::new(),
            identification: 0,
        }
    }

    /// What is still on its way is lost.
    pub fn forget_pieces(&mut self) {
        self.pieces.clear();
    }

    /// A frame of one party's to another, as bytes that may be anything.
    pub fn frame(&mut self, dice: &mut Dice, from: usize, to: usize) -> Vec<u8> {
        let mut bytes = match self.piece(dice, (from, to)) {
            Some(piece) => piece.bytes(),
            None if dice.one_in(30) => self.arp(dice, from, to),
            None => self.packet(dice, from, to).bytes(),
        };
        mutate(dice, &mut bytes);
        bytes
    }

    /// A piece of what is on its way, mostly in order.
    fn piece(&mut self, dice: &mut Dice, way: (usize, usize)) -> Option<Frame> {
        let pieces = self
            .pieces
            .get_mut(&way)
            .filter(|pieces| !pieces.is_empty())?;
        if dice.one_in(3) {
            return None;
        }
        let place = match dice.roll(8) {
            0 => dice.roll(pieces.len()),
            _ => 0,
        };
        // Now and then it comes twice.
        if dice.one_in(10) {
            return pieces.get(place).cloned();
        }
        Some(pieces.remove(place))
    }

    /// A whole packet, or the piece of one that is sent first.
    fn packet(&mut self, dice: &mut Dice, from: usize, to: usize) -> Frame {
        let (source, destination) = self.ends(dice, from, to);
        let mut frame = match dice.roll(24) {
            // A question of one is an answer to another.
            0..=7 => Frame::tcp(
                (source, dice.pick(&PORTS)),
                (destination, dice.pick(&PORTS)),
                dice.pick(&[2, 2, 0x12, 16, 24, 17, 4, 20, 0]),
            ),
            8..=12 => Frame::udp(
                (source, dice.pick(&PORTS)),
                (destination, dice.pick(&PORTS)),
            ),
            13 | 14 => Frame::sctp(
                (source, dice.pick(&PORTS)),
                (destination, dice.pick(&PORTS)),
                dice.pick(&[1, 1, 2, 10, 0, 6, 7, 14]),
            ),
            15 => Frame::echo_request(source, destination, dice.pick(&[1, 2])),
            16 => Frame::echo_reply(source, destination, dice.pick(&[1, 2])),
            17..=19 => self.error(dice, from, to),
            20 | 21 => self.neighbour(dice, from, to),
            22 => self.other_icmp(dice, source, destination),
            _ => {
                let length = dice.roll(80);
                let protocol = dice.pick(&[1, 58, 47, 50, 59, 6, 4, 41, 17]);
                Frame::new(source, destination, protocol, vec![dice.byte(); length])
            }
        };
        if dice.one_in(12) {
            frame.hop_limit = dice.pick(&[255, 1, 0]);
        }
        if dice.one_in(6) {
            frame.options = (0..dice.roll(41)).map(|_| 1).collect();
            for _ in 0..dice.roll(4) {
                let kind = dice.pick(&[0, 60, 43, 51]);
                frame = frame.with_extension(kind, vec![0; 6 + 8 * dice.roll(3)]);
            }
        }
        let known = self.sent.entry((from, to)).or_default();
        if known.len() < MEMORY {
            known.push(frame.clone());
        } else if let Some(place) = known.get_mut(dice.roll(MEMORY)) {
            *place = frame.clone();
        }
        if dice.one_in(10) {
            frame = self.cut(dice, (from, to), frame);
        } else if dice.one_in(24) {
            let offset = dice.pick(&[0, 0, 1, 2, 100, 0x1fff]);
            frame = frame
                .with_fragment(offset, dice.one_in(2))
                .with_identification(self.identification);
        }
        if dice.one_in(40) {
            frame.lie = dice.pick(&[-1, 1, -21, 8, 1_000]);
        }
        if dice.one_in(50) {
            // More than a page.
            frame.payload.resize(5_000, 0);
        }
        frame
    }

    /// Mostly the parties' own addresses, of one family.
    fn ends(&self, dice: &mut Dice, from: usize, to: usize) -> (IpAddr, IpAddr) {
        let is_v6 = dice.one_in(2);
        let parsed = |text: &str| text.parse().expect("an address");
        let source = match dice.roll(24) {
            1 => self.address(dice.roll(self.parties.len()), is_v6),
            2 => parsed(dice.pick(&["10.99.0.1", "fd99::1", "fe80::1", "::", "0.0.0.0"])),
            _ => self.address(from, is_v6),
        };
        let destination = match dice.roll(24) {
            1 => self.address(dice.roll(self.parties.len()), is_v6),
            2 => {
                let groups = ["239.1.1.1", "255.255.255.255", "ff15::7", "ff02::1:ff00:1"];
                parsed(dice.pick(&groups))
            }
            3 => parsed(dice.pick(&["10.99.0.1", "fd99::1", "fe80::1"])),
            _ => self.address(to, is_v6),
        };
        if source.is_ipv4() == destination.is_ipv4() {
            (source, destination)
        } else {
            (source, self.address(to, source.is_ipv6()))
        }
    }

    /// A party's address.
    #[expect(
        clippy::indexing_slicing,
        reason = "whoever names a party that is not there stops here"
    )]
    pub fn address(&self, party: usize, is_v6: bool) -> IpAddr {
        self.parties[party][usize::from(is_v6)]
    }

    /// An ICMP error, mostly about what the receiver has sent: as it was, or forged.
    fn error(&self, dice: &mut Dice, from: usize, to: usize) -> Frame {
        // Its own way, the other way, or between any two.
        let way = match dice.roll(8) {
            1 => (from, to),
            2 => (dice.roll(self.parties.len()), dice.roll(self.parties.len())),
            _ => (to, from),
        };
        let known = self.sent.get(&way).filter(|sent| !sent.is_empty());
        let known = known.and_then(|sent| sent.get(dice.roll(sent.len())));
        let mut about = if let Some(about) = known {
            about.clone()
        } else {
            let is_v6 = dice.one_in(2);
            let (source, destination) = (self.address(way.0, is_v6), self.address(way.1, is_v6));
            let source = (source, dice.pick(&PORTS));
            Frame::udp(source, (destination, dice.pick(&PORTS)))
        };
        match dice.roll(12) {
            1 => about.addresses = (about.addresses.1, about.addresses.0),
            2 => set(&mut about.payload, dice.roll(4), &[dice.byte()]),
            3 => about.protocol = dice.pick(&[6, 17, 132, 1, 58]),
            4 => about.lie = dice.pick(&[-8, 8]),
            5 => about = about.with_fragment(dice.pick(&[0, 1]), dice.one_in(2)),
            _ => {}
        }
        let source = self.address(from, about.addresses.0.is_ipv6());
        let kind = if source.is_ipv4() {
            dice.pick(&[3, 3, 3, 11, 12, 5, 4])
        } else {
            dice.pick(&[1, 2, 2, 3, 4, 0, 137])
        };
        let quoted = dice.pick(&[usize::MAX, usize::MAX, usize::MAX, 28, 48, 27, 47, 8]);
        let mut error = Frame::icmp_error(source, kind, dice.pick(&[0, 3, 4]), &about, quoted);
        if dice.one_in(8) {
            error.addresses.1 = self.address(to, source.is_ipv6());
        }
        error
    }

    /// Neighbour or listener discovery: as hosts send it, but for what it says.
    fn neighbour(&self, dice: &mut Dice, from: usize, to: usize) -> Frame {
        let (own, other) = (self.address(from, true), self.address(to, true));
        let parsed = |text: &str| text.parse().expect("an address");
        let source = match dice.roll(6) {
            1 => parsed("::"),
            2 => parsed("fe80::1"),
            3 => other,
            _ => own,
        };
        let destination = match dice.roll(4) {
            1 => parsed("ff02::1"),
            2 => parsed("ff02::1:ff00:1"),
            _ => other,
        };
        let kind = dice.pick(&[135, 135, 136, 136, 133, 134, 137, 143, 131]);
        let mut frame = Frame::icmp(source, destination, kind, 0, 0);
        if matches!(kind, 131 | 143) {
            frame.hop_limit = 1;
            return frame.with_extension(0, vec![5, 2, 0, 0, 1, 0]);
        }
        let target = match dice.roll(4) {
            1 => other,
            2 => parsed("fe80::1"),
            _ => own,
        };
        if let IpAddr::V6(target) = target {
            frame.payload.extend(target.octets());
        }
        // The sender's hardware address.
        frame
            .payload
            .extend([dice.pick(&[1, 2]), 1, 2, 0, 0, 0, 0, 2]);
        frame.hop_limit = 255;
        frame
    }

    /// ICMP that is neither echo nor well made.
    fn other_icmp(&self, dice: &mut Dice, source: IpAddr, destination: IpAddr) -> Frame {
        let kind = dice.pick(&[1, 2, 3, 4, 11, 12, 13, 130, 133, 134, 135, 136, 137, 143]);
        let mut frame = Frame::icmp(source, destination, kind, dice.pick(&[0, 0, 0, 4]), 0);
        let party = dice.roll(self.parties.len());
        if let IpAddr::V6(target) = self.address(party, true) {
            frame.payload.extend(target.octets());
        }
        frame
    }

    fn arp(&self, dice: &mut Dice, from: usize, to: usize) -> Vec<u8> {
        let v4 = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(_) => [0; 4],
        };
        let sender = match dice.roll(6) {
            1 => to,
            2 => dice.roll(self.parties.len()),
            _ => from,
        };
        let operation = dice.pick(&[1, 1, 2, 2, 3, 0]);
        let target = v4(self.address(to, false));
        Frame::arp_of(operation, v4(self.address(sender, false)), target)
    }

    /// Cuts a packet to pieces, in order or not, whole or not; returns the one that is sent first.
    fn cut(&mut self, dice: &mut Dice, way: (usize, usize), mut frame: Frame) -> Frame {
        const UNIT: usize = 8;
        let units = 2 + dice.roll(6_usize);
        frame.payload.resize(UNIT * units * 3, 0);
        self.identification = self.identification.wrapping_add(1);
        let mut pieces = Vec::new();
        for place in 0..3_u16 {
            let mut piece = frame.clone().with_identification(self.identification);
            let first = usize::from(place) * UNIT * units;
            piece.payload = frame
                .payload
                .iter()
                .skip(first)
                .take(UNIT * units)
                .copied()
                .collect();
            // A piece that lies over the one before (RFC 5722).
            let back = if dice.one_in(12) { dice.roll(3) } else { 0 };
            let offset = u16::try_from(first / UNIT).unwrap_or_default();
            pieces.push(piece.with_fragment(offset.saturating_sub(back), place < 2));
        }
        match dice.roll(10) {
            // The first one is missing, or comes last.
            1 => drop(pieces.remove(0)),
            2 => pieces.rotate_left(1),
            _ => {}
        }
        let first = pieces.remove(0);
        self.pieces.insert(way, pieces);
        first
    }
}

/// Changes a frame anywhere behind its hardware addresses.
fn mutate(dice: &mut Dice, frame: &mut Vec<u8>) {
    if dice.one_in(20) {
        let groups = [[0xff; 6], [0x33, 0x33, 0, 0, 0, 1]];
        set(frame, 0, &dice.pick(&groups));
    }
    if dice.one_in(30) {
        let tag = [
            dice.pick(&[0x81, 0x88]),
            dice.pick(&[0x00, 0xa8]),
            dice.byte(),
            dice.byte(),
        ];
        frame.splice(HARDWARE..HARDWARE, tag);
    }
    if !dice.one_in(3) {
        return;
    }
    for _ in 0..=dice.roll(4) {
        // Mostly the headers.
        let near = frame.len().saturating_sub(HARDWARE).clamp(1, 100);
        let place = HARDWARE + dice.roll(near);
        let byte = dice.byte();
        match dice.roll(8) {
            0..=2 => set(frame, place, &[byte]),
            3 => {
                let old = frame.get(place).copied().unwrap_or_default();
                set(frame, place, &[old ^ 1 << dice.roll(8_u32)]);
            }
            4 => {
                let words = [
                    0_u16, 1, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x86dd, 0x0800,
                ];
                set(frame, place, &dice.pick(&words).to_be_bytes());
            }
            5 => frame.truncate(14 + dice.roll(frame.len())),
            6 => frame.resize((frame.len() + dice.roll(80)).min(LONGEST), byte),
            _ => {
                let bytes = vec![byte; 1 + dice.roll(8)];
                let place = place.min(frame.len());
                frame.splice(place..place, bytes);
            }
        }
    }
    // Ethernet's own header is what an interface takes at least.
    frame.resize(frame.len().clamp(14, LONGEST), 0);
}

fn set(bytes: &mut [u8], place: usize, new: &[u8]) {
    for (place, byte) in bytes.iter_mut().skip(place).zip(new) {
        *place = *byte;
    }
}
