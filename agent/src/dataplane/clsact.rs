//! tc filters by netlink, for kernels without TCX. Ours have a priority, a handle and a name of
//! their own; nobody else's filter or qdisc is ever changed.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// Our filters' priority: in front of most, behind nothing that must be first.
const PRIORITY: u32 = 2;
/// Our filters' handle: "pckt".
const HANDLE: u32 = 0x7063_6b74;
/// `ETH_P_ALL`, big-endian, as `tcm_info` wants it.
const ALL_PROTOCOLS: u32 = 0x0300;
/// `TC_H_CLSACT`: the parent of clsact and of `ingress` qdiscs alike.
const CLSACT_PARENT: u32 = 0xffff_fff1;
/// The handle of clsact and of `ingress` qdiscs alike.
const CLSACT_HANDLE: u32 = 0xffff_0000;

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

const REQUEST_ACK: u16 = 0x1 | 0x4;
const REPLACE: u16 = 0x100;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
const REQUEST_DUMP: u16 = 0x1 | 0x300;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
/// The program's return value is the verdict.
const DIRECT_ACTION: u32 = 1;
const NESTED: u16 = 1 << 15;

const HEADER: usize = 16;
const TCMSG: usize = 20;

/// Which side of the interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    /// tc ingress: what the pod sends.
    Ingress,
    /// tc egress: what reaches the pod.
    Egress,
}

impl Side {
    const fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// What sits at the place that clsact needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Qdisc {
    /// Nothing.
    None,
    /// clsact: filters can be attached.
    Clsact,
    /// `ingress`, which leaves no place for clsact.
    Ingress,
}

/// A filter as a dump shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Filter {
    priority: u32,
    handle: u32,
    name: String,
    /// Id of the program; 0 when the filter runs none.
    program: u32,
}

/// What is at the clsact place of an interface.
pub(crate) fn qdisc(ifindex: u32) -> io::Result<Qdisc> {
    // Every interface's qdiscs come; older kernels ignore the index in a dump.
    let mut found = Qdisc::None;
    for message in dump(RTM_GETQDISC, RTM_NEWQDISC, ifindex, 0)? {
        let (Some(index), Some(handle)) = (word(&message, 4), word(&message, 8)) else {
            continue;
        };
        if index == ifindex && handle == CLSACT_HANDLE {
            match attribute(&message, TCMSG, TCA_KIND).map(text).as_deref() {
                Some("clsact") => found = Qdisc::Clsact,
                Some("ingress") => found = Qdisc::Ingress,
                Some(_) | None => {}
            }
        }
    }
    Ok(found)
}

/// Makes the clsact qdisc; the caller has looked that none is there.
pub(crate) fn add_qdisc(ifindex: u32) -> io::Result<()> {
    let mut message = Message::new(RTM_NEWQDISC, REQUEST_ACK | CREATE | EXCLUSIVE);
    message.tcmsg(ifindex, CLSACT_HANDLE, CLSACT_PARENT, 0);
    message.attribute(TCA_KIND, b"clsact\0");
    message.send()
}

/// Removes a clsact qdisc that we made, unless somebody's filters are in it by now.
pub(crate) fn remove_empty_qdisc(ifindex: u32) -> io::Result<()> {
    if qdisc(ifindex)? != Qdisc::Clsact
        || !filters(ifindex, Side::Ingress)?.is_empty()
        || !filters(ifindex, Side::Egress)?.is_empty()
    {
        return Ok(());
    }
    let mut message = Message::new(RTM_DELQDISC, REQUEST_ACK);
    message.tcmsg(ifindex, CLSACT_HANDLE, CLSACT_PARENT, 0);
    message.send()
}

/// Puts our filter in place, or another program behind it, atomically.
pub(crate) fn replace_filter(
    ifindex: u32,
    side: Side,
    program: BorrowedFd<'_>,
    name: &str,
) -> io::Result<()> {
    let mut message = Message::new(RTM_NEWTFILTER, REQUEST_ACK | CREATE | REPLACE);
    message.tcmsg(
        ifindex,
        HANDLE,
        side.parent(),
        PRIORITY << 16 | ALL_PROTOCOLS,
    );
    message.attribute(TCA_KIND, b"bpf\0");
    let mut options = Message::default();
    options.attribute(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes());
    options.attribute(TCA_BPF_NAME, &[name.as_bytes(), b"\0"].concat());
    options.attribute(TCA_BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes());
    message.attribute(TCA_OPTIONS | NESTED, &options.bytes);
    message.send()
}

/// The id of the program behind our filter, when that is there.
pub(crate) fn program(ifindex: u32, side: Side, name: &str) -> io::Result<Option<u32>> {
    let filters = filters(ifindex, side)?;
    let ours = filters.iter().find(|filter| {
        filter.priority == PRIORITY && filter.handle == HANDLE && filter.name == name
    });
    Ok(ours.map(|filter| filter.program))
}

/// Names of filters that are not ours, on both sides.
pub(crate) fn others(ifindex: u32) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for side in [Side::Ingress, Side::Egress] {
        let foreign = filters(ifindex, side)?.into_iter();
        let foreign = foreign.filter(|one| (one.priority, one.handle) != (PRIORITY, HANDLE));
        names.extend(foreign.map(|one| one.name));
    }
    Ok(names)
}

/// Removes our filter; none there is no error.
pub(crate) fn remove_filter(ifindex: u32, side: Side, name: &str) -> io::Result<()> {
    if program(ifindex, side, name)?.is_none() {
        return Ok(());
    }
    let mut message = Message::new(RTM_DELTFILTER, REQUEST_ACK);
    message.tcmsg(
        ifindex,
        HANDLE,
        side.parent(),
        PRIORITY << 16 | ALL_PROTOCOLS,
    );
    message.attribute(TCA_KIND, b"bpf\0");
    message.send()
}

/// Filters on one side of an interface.
fn filters(ifindex: u32, side: Side) -> io::Result<Vec<Filter>> {
    let mut filters = Vec::new();
    for message in dump(RTM_GETTFILTER, RTM_NEWTFILTER, ifindex, side.parent())? {
        let (Some(handle), Some(info)) = (word(&message, 8), word(&message, 16)) else {
            continue;
        };
        // A chain head without a filter has handle 0.
        if handle != 0 {
            let options = attribute(&message, TCMSG, TCA_OPTIONS).unwrap_or_default();
            filters.push(Filter {
                priority: info >> 16,
                handle,
                name: attribute(options, 0, TCA_BPF_NAME)
                    .map(text)
                    .unwrap_or_default(),
                program: attribute(options, 0, TCA_BPF_ID)
                    .and_then(|id| word(id, 0))
                    .unwrap_or(0),
            });
        }
    }
    Ok(filters)
}

/// A netlink request being put together.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        Self { bytes }
    }

    fn tcmsg(&mut self, ifindex: u32, handle: u32, parent: u32, info: u32) {
        for word in [0, ifindex, handle, parent, info] {
            self.bytes.extend(word.to_ne_bytes());
        }
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Sends the request and returns the kernel's answers until it says that it is done.
    fn ask(mut self) -> io::Result<Vec<(u16, Vec<u8>)>> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        for (place, byte) in self.bytes.iter_mut().zip(length.to_ne_bytes()) {
            *place = byte;
        }
        let socket = socket()?;
        // SAFETY: the pointer and length are of one live vector.
        let sent = unsafe {
            libc::send(
                socket.as_raw_fd(),
                self.bytes.as_ptr().cast(),
                self.bytes.len(),
                0,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut answers = Vec::new();
        loop {
            let received = receive(&socket)?;
            if take(&received, &mut answers)? {
                return Ok(answers);
            }
        }
    }

    fn send(self) -> io::Result<()> {
        self.ask().map(|_acknowledged| ())
    }
}

fn dump(request: u16, answer: u16, ifindex: u32, parent: u32) -> io::Result<Vec<Vec<u8>>> {
    let mut message = Message::new(request, REQUEST_DUMP);
    message.tcmsg(ifindex, 0, parent, 0);
    let answers = message.ask()?;
    Ok(answers
        .into_iter()
        .filter(|(kind, _)| *kind == answer)
        .map(|(_, payload)| payload)
        .collect())
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor the kernel has just given us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn receive(socket: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 64 << 10];
    // SAFETY: the pointer and length are of one live vector.
    let length = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
        )
    };
    let length = usize::try_from(length).map_err(|_negative| io::Error::last_os_error())?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Takes the messages out of one datagram; true when the answer is complete.
fn take(mut bytes: &[u8], answers: &mut Vec<(u16, Vec<u8>)>) -> io::Result<bool> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    while let (Some(length), Some(kind)) = (word(bytes, 0), half(bytes, 4)) {
        let Some(payload) = bytes.get(HEADER..length as usize) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = word(payload, 0).unwrap_or(0).cast_signed();
                return if errno == 0 {
                    Ok(true)
                } else {
                    Err(io::Error::from_raw_os_error(-errno))
                };
            }
            _ => answers.push((kind, payload.to_vec())),
        }
        bytes = bytes
            .get((length as usize).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(false)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The payload of the first attribute of a kind, from `start` on.
fn attribute(bytes: &[u8], start: usize, wanted: u16) -> Option<&[u8]> {
    let mut rest = bytes.get(start..)?;
    loop {
        let length = usize::from(half(rest, 0)?);
        let kind = half(rest, 2)? & !NESTED;
        let payload = rest.get(4..length)?;
        if kind == wanted {
            return Some(payload);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default())
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_by_kind_and_bounded() {
        let mut message = Message::default();
        message.attribute(TCA_KIND, b"clsact\0");
        message.attribute(TCA_OPTIONS | NESTED, &[1, 2, 3, 4]);
        let bytes = message.bytes;
        assert_eq!(
            attribute(&bytes, 0, TCA_KIND).map(text).as_deref(),
            Some("clsact")
        );
        assert_eq!(attribute(&bytes, 0, TCA_OPTIONS), Some(&[1, 2, 3, 4][..]));
        assert_eq!(attribute(&bytes, 0, TCA_BPF_FD), None);
        for end in 0..bytes.len() {
            let cut = bytes.get(..end).unwrap_or_default();
            assert!(attribute(cut, 0, TCA_BPF_FD).is_none(), "cut at {end}");
        }
    }

    #[test]
    fn an_error_answer_is_an_error_and_an_acknowledgement_is_the_end() {
        let answer = |errno: i32| {
            let mut message = Message::new(2, 0);
            message.bytes.extend(errno.to_ne_bytes());
            let length = u32::try_from(message.bytes.len()).unwrap();
            message.bytes[..4].copy_from_slice(&length.to_ne_bytes());
            take(&message.bytes, &mut Vec::new())
        };
        assert!(answer(0).unwrap());
        assert_eq!(answer(-17).unwrap_err().raw_os_error(), Some(17));
    }
}
