//! SCTP by hand, for kernels without it: INIT, INIT ACK and the checksum of RFC 9260. No
//! association ever comes to life; policy is decided by the first packet and its answer.

/// Common header: ports, verification tag, checksum (RFC 9260 §3.1).
const HEADER: usize = 12;
/// Chunk types (RFC 9260 §3.2).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;

/// What a server said to our INIT.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// It would talk.
    InitAck,
    /// It is there, and will not.
    Abort,
}

/// An INIT from `source` to `destination`.
pub fn init(source: u16, destination: u16, tag: u32) -> Vec<u8> {
    packet(source, destination, 0, &init_chunk(INIT, tag, &[]))
}

/// The INIT ACK a listener on one of `ports` gives to a packet that is an INIT.
pub fn init_ack(packet_received: &[u8], ports: &[u16]) -> Option<Vec<u8>> {
    let received = Packet::parse(packet_received)?;
    if received.chunk != INIT || !ports.contains(&received.destination) {
        return None;
    }
    // Parameter 7, the state cookie, is mandatory (RFC 9260 §3.3.3); it is never used.
    let chunk = init_chunk(INIT_ACK, 1, &[0, 7, 0, 8, b'p', b'k', b't', 0]);
    Some(packet(
        received.destination,
        received.source,
        received.initiate_tag,
        &chunk,
    ))
}

/// What a raw socket's packet says to our INIT: it must come from `ports.0` to `ports.1` and carry
/// our tag. IPv4 sockets hand out the IP header too.
pub fn answer_to(received: &[u8], v4: bool, ports: (u16, u16), tag: u32) -> Option<Answer> {
    let received = Packet::parse(if v4 {
        without_ip_header(received)?
    } else {
        received
    })?;
    if (received.source, received.destination) != ports || received.verification_tag != tag {
        return None;
    }
    match received.chunk {
        INIT_ACK => Some(Answer::InitAck),
        ABORT => Some(Answer::Abort),
        _ => None,
    }
}

/// The payload of an IPv4 packet.
pub fn without_ip_header(packet: &[u8]) -> Option<&[u8]> {
    packet.get(usize::from(packet.first()? & 0x0f) * 4..)
}

struct Packet {
    source: u16,
    destination: u16,
    verification_tag: u32,
    chunk: u8,
    initiate_tag: u32,
}

impl Packet {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let half = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let (head, tail) = (bytes.get(..8)?, bytes.get(HEADER..)?);
        let sum = crc32c([head, &[0; 4], tail].concat().as_slice());
        if bytes.get(8..HEADER)? != sum.to_le_bytes() {
            return None;
        }
        Some(Self {
            source: half(0)?,
            destination: half(2)?,
            verification_tag: word(4)?,
            chunk: *bytes.get(HEADER)?,
            initiate_tag: word(HEADER + 4).unwrap_or_default(),
        })
    }
}

fn init_chunk(kind: u8, tag: u32, parameters: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + parameters.len()).expect("chunks are short");
    let mut chunk = vec![kind, 0];
    chunk.extend(length.to_be_bytes());
    chunk.extend(tag.to_be_bytes());
    chunk.extend(65_535_u32.to_be_bytes()); // receiver window
    chunk.extend([0, 1, 0, 1]); // one stream each way
    chunk.extend(tag.to_be_bytes()); // first sequence number
    chunk.extend(parameters);
    chunk
}

fn packet(source: u16, destination: u16, verification_tag: u32, chunk: &[u8]) -> Vec<u8> {
    let mut head = source.to_be_bytes().to_vec();
    head.extend(destination.to_be_bytes());
    head.extend(verification_tag.to_be_bytes());
    let sum = crc32c(&[&head, &[0; 4][..], chunk].concat());
    // RFC 9260 appendix A: the checksum travels with its least significant byte first.
    [&head, &sum.to_le_bytes()[..], chunk].concat()
}

/// CRC-32C (RFC 9260 appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_has_the_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn listener_answers_init_on_its_port_only_and_the_sender_knows_the_answer() {
        let question = init(40_001, 9999, 77);
        assert_eq!(init_ack(&question, &[80]), None);
        let answer = init_ack(&question, &[80, 9999]).unwrap();
        assert_eq!(
            answer_to(&answer, false, (9999, 40_001), 77),
            Some(Answer::InitAck)
        );
        assert_eq!(
            answer_to(&answer, false, (9999, 40_001), 78),
            None,
            "another one's tag"
        );
        assert_eq!(
            answer_to(&answer, false, (9998, 40_001), 77),
            None,
            "another one's port"
        );
    }

    #[test]
    fn packet_with_a_wrong_checksum_is_not_an_answer() {
        let mut answer = init_ack(&init(40_001, 9999, 77), &[9999]).unwrap();
        answer[20] ^= 1;
        assert_eq!(answer_to(&answer, false, (9999, 40_001), 77), None);
    }
}
