//! From bytes to headers: what a packet claims to be, checked against how long it is.
//!
//! Each header has its own file; this one holds their order and what comes out. Whatever does
//! not add up is a [`ParseError`], never a guess.
//!
//! VLAN tags (IEEE 802.1Q): the kernel takes the outermost one off before any program runs and puts it
//! back behind them, so a tagged frame is read, and judged, as what is inside: a tag neither hides a
//! packet nor makes it another. A tag below that one is an ethertype that we do not read.

pub mod arp;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod quote;
pub mod transport;

use crate::address::Address;

/// Bytes of one packet from its Ethernet header on: an skb in the kernel, a slice on the host.
///
/// Offsets are constant, or a constant plus a value bounded to at most [`MAX_HEADER_BYTES`] by a
/// comparison or a mask right before the call, so the kernel's `load` may add them to `data` once
/// it has masked them again with [`OFFSET_MASK`].
pub trait Packet {
    /// The `N` bytes at `offset`, or `None` when the packet ends before them. Where the bytes are
    /// (linear or paged) makes no difference.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Its first `N` bytes, when they lie in one piece. A packet that has them in several may say
    /// `None`.
    fn head<const N: usize>(&self) -> Option<impl Head>;

    /// The address at `offset`.
    #[inline(always)]
    fn load_address(&self, offset: usize) -> Option<Address> {
        self.load(offset).map(Address::from_v6)
    }

    /// Length of the whole packet in bytes, Ethernet header included.
    fn length(&self) -> u32;
}

/// The first bytes of a packet, read in words. What lies outside of them reads as anything.
pub trait Head {
    /// One byte.
    fn byte<const AT: usize>(&self) -> u8;
    /// Two bytes, as they lie.
    fn short<const AT: usize>(&self) -> u16;
    /// Four bytes, as they lie.
    fn word<const AT: usize>(&self) -> u32;
    /// Eight bytes, as they lie.
    fn long<const AT: usize>(&self) -> u64;
}

impl<const N: usize> Head for &[u8; N] {
    #[inline(always)]
    fn byte<const AT: usize>(&self) -> u8 {
        u8::from_ne_bytes(chunk(self, AT))
    }

    #[inline(always)]
    fn short<const AT: usize>(&self) -> u16 {
        u16::from_ne_bytes(chunk(self, AT))
    }

    #[inline(always)]
    fn word<const AT: usize>(&self) -> u32 {
        u32::from_ne_bytes(chunk(self, AT))
    }

    #[inline(always)]
    fn long<const AT: usize>(&self) -> u64 {
        u64::from_ne_bytes(chunk(self, AT))
    }
}

fn chunk<const N: usize, const M: usize>(bytes: &[u8; N], at: usize) -> [u8; M] {
    bytes
        .get(at..)
        .and_then(|bytes| bytes.first_chunk().copied())
        .unwrap_or([0; M])
}

/// No header is looked for past this many bytes: RFC 7112 §5 wants the whole header chain in the
/// first fragment, and RFC 8200 §5 lets every link carry 1 280 bytes.
pub const MAX_HEADER_BYTES: usize = 1280;

/// Every offset given to [`Packet::load`] fits this mask.
pub const OFFSET_MASK: usize = 0x7ff;

impl Packet for [u8] {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }

    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<impl Head> {
        self.first_chunk::<N>()
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }
}

/// Why bytes are not the packet they claim to be.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ParseError {
    /// It ends inside its Ethernet header.
    EthernetTruncated,
    /// Neither IPv4, IPv6 nor ARP; a VLAN tag that the kernel has left in the frame among them.
    Ethertype,
    /// ARP that is too short or too long, or about other addresses than those of IPv4 on Ethernet.
    Arp,
    /// It ends inside its IP header.
    IpTruncated,
    /// The version inside the IP header is not the one the ethertype says.
    Version,
    /// The IP header says it is shorter than an IP header can be.
    HeaderLength,
    /// The IP header says there is more than there is.
    TotalLength,
    /// An IPv4-mapped address in an IPv6 header: no such packet exists (RFC 4291 §2.5.5.2).
    MappedAddress,
    /// A chain of extension headers longer than we follow, or out of order.
    ExtensionChain,
    /// A routing header that has not ended: the destination shown is not where it goes.
    Routing,
    /// It ends inside its transport header.
    TransportTruncated,
    /// A TCP header that says it is shorter than one can be, or longer than the segment.
    TcpHeaderLength,
    /// An ICMP error in fragments: they fit any link (RFC 1812 §4.3.2.3, RFC 4443 §2.4 (c)).
    ErrorInPieces,
}

/// Whether a packet is whole.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Fragmentation {
    /// It is.
    #[default]
    Whole,
    /// The first of several fragments: it has the transport header.
    First,
    /// One that has no transport header.
    Later,
}

/// What an IP packet says about itself. `default()` says nothing.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Headers {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port, host order; 0 without ports.
    pub source_port: u16,
    /// Destination port, host order; 0 without ports.
    pub destination_port: u16,
    /// What kind of ICMP echo it is, with the identifier.
    pub echo: Option<icmp::Echo>,
    /// What an ICMP error quotes, when it can be read.
    pub quote: Option<quote::Quote>,
    /// IP protocol number of the transport header.
    pub protocol: u8,
    /// TCP flags, ICMP type or the type of SCTP's first chunk.
    pub detail: u8,
    /// ICMP code.
    pub code: u8,
    /// TCP acknowledgement number, valid or not.
    pub acknowledgement: u32,
    /// IPv4 time to live, IPv6 hop limit.
    pub hop_limit: u8,
    /// Whether it is whole.
    pub fragmentation: Fragmentation,
    /// Which packet a fragment is of.
    pub identification: u32,
    /// Of a later fragment, where it begins; of a first one, where its headers end. In bytes from
    /// where what is in pieces begins.
    pub fragment_offset: u16,
    /// Where in the frame what is in pieces begins: behind IPv4's header or IPv6's fragment header.
    pieces_at: usize,
    /// An IPv6 fragment header was on the way, also in front of a whole packet (RFC 6946).
    pub has_fragment_header: bool,
    /// An IPv6 hop-by-hop header was on the way.
    pub has_hop_by_hop: bool,
    /// Any IPv6 extension header was on the way.
    pub has_extension_header: bool,
}

impl Headers {
    /// Reads what an ICMP error quotes at `at`.
    #[inline(always)]
    fn read_quote<P: Packet + ?Sized>(&mut self, packet: &P, at: usize, end: usize) {
        let is_v4 = self.source.is_v4();
        let quote = self.quote.insert(quote::Quote::default());
        if quote::read(packet, at, end, is_v4, quote).is_none() {
            self.quote = None;
        }
    }

    /// Writes down how far the headers reach into what is in pieces. That is less than
    /// [`MAX_HEADER_BYTES`] and a header.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "no header is looked for further from the start than 16 bits reach"
    )]
    const fn measure_pieces(&mut self, transport: usize) {
        let end = transport + transport::header_bytes(self.protocol);
        self.fragment_offset = end.wrapping_sub(self.pieces_at) as u16;
    }

    /// Says nothing again. Field by field, of zeros that the compiler does not see through: it
    /// would make a call and a loop over bytes of a whole value.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "it is zero")]
    pub(crate) fn clear(&mut self) {
        let zero = core::hint::black_box(0_u64);
        self.source = Address::from_halves([zero; 2]);
        self.destination = Address::from_halves([zero; 2]);
        self.source_port = zero as u16;
        self.destination_port = zero as u16;
        self.echo = None;
        self.quote = None;
        self.protocol = zero as u8;
        self.detail = zero as u8;
        self.code = zero as u8;
        self.acknowledgement = zero as u32;
        self.hop_limit = zero as u8;
        self.fragmentation = Fragmentation::Whole;
        self.identification = zero as u32;
        self.fragment_offset = zero as u16;
        self.pieces_at = zero as usize;
        self.has_fragment_header = zero != 0;
        self.has_hop_by_hop = zero != 0;
        self.has_extension_header = zero != 0;
    }
}

/// What a frame is to us.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Frame {
    /// An ARP packet.
    Arp,
    /// An IPv4 or IPv6 packet.
    Ip(Headers),
}

/// Reads a frame's headers.
///
/// # Errors
/// When it cannot be what it claims to be.
#[inline(always)]
pub fn parse<P: Packet + ?Sized>(packet: &P) -> Result<Frame, ParseError> {
    let mut headers = Headers::default();
    Ok(match parse_into(packet, &mut headers)? {
        Kind::Arp => Frame::Arp,
        Kind::Ip => Frame::Ip(headers),
    })
}

/// What a frame is, by its ethertype.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// ARP.
    Arp,
    /// IPv4 or IPv6.
    Ip,
}

/// [`parse`], for who must be sparing with copies: the headers are written where they stay, and
/// say nothing that is of use when this fails.
///
/// # Errors
/// When the frame cannot be what it claims to be.
#[inline(always)]
pub fn parse_into<P: Packet + ?Sized>(
    packet: &P,
    headers: &mut Headers,
) -> Result<Kind, ParseError> {
    let extent = match ethernet::ethertype(packet)? {
        ethernet::IPV4 => ipv4::parse(packet, headers)?,
        ethernet::IPV6 => ipv6::parse(packet, headers)?,
        ethernet::ARP => {
            arp::parse(packet, headers)?;
            return Ok(Kind::Arp);
        }
        _ => return Err(ParseError::Ethertype),
    };
    if headers.fragmentation != Fragmentation::Later {
        headers.measure_pieces(extent.transport);
        transport::parse(packet, extent, headers)?;
    }
    Ok(Kind::Ip)
}

/// Where in a frame the transport header begins, and where the IP packet ends; padding may follow.
#[derive(Clone, Copy, Debug)]
struct Extent {
    transport: usize,
    end: usize,
}

/// Where an IP packet ends that says it has `stated` bytes.
///
/// # Errors
/// When the frame has less.
#[inline(always)]
fn packet_end<P: Packet + ?Sized>(
    packet: &P,
    stated: usize,
    is_unstated: bool,
) -> Result<usize, ParseError> {
    let length = packet.length() as usize;
    // Segments of more than 64 KiB inside the node (BIG TCP) say 0, for want of bits.
    if is_unstated && length > ethernet::HEADER_BYTES + u16::MAX as usize {
        return Ok(length);
    }
    let end = ethernet::HEADER_BYTES + stated;
    if end > length {
        return Err(ParseError::TotalLength);
    }
    Ok(end)
}
