//! Ways to give a socket many bytes at once, and to hear them again.

use std::fs::File;
use std::io::{self, IoSlice, Read as _, Seek as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::LazyLock;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};
use rustix::fs::{MemfdFlags, memfd_create, sendfile};
use rustix::net::SendFlags;

/// Bytes of a stream.
const STREAM: usize = 3 << 20;
/// Datagrams of one send, and the bytes of each.
pub(crate) const DATAGRAMS: usize = 40;
pub(crate) const DATAGRAM: usize = 1400;
/// Sends of datagrams.
const SENDS: usize = 20;

/// Bytes of which no two stretches are alike.
static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..STREAM / 8).flat_map(|_| next()).collect()
});

/// How bytes are given to a socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// They are copied.
    Write,
    /// The packets have the program's own pages (`MSG_ZEROCOPY`).
    ZeroCopy,
    /// The pages of a file (sendfile(2)).
    File,
    /// The pages of a pipe (splice(2)).
    Pipe,
}

pub(crate) const WAYS: [Way; 4] = [Way::Write, Way::ZeroCopy, Way::File, Way::Pipe];

impl Way {
    /// Gives a stream's socket all of the content; an error when that takes too long.
    pub(crate) fn send(self, stream: &mut TcpStream) -> Result<()> {
        match self {
            Self::Write => stream.write_all(&CONTENT)?,
            Self::ZeroCopy => {
                allow_zero_copy(stream)?;
                let mut left = CONTENT.as_slice();
                while !left.is_empty() {
                    let sent = rustix::net::send(&*stream, left, zero_copy())?;
                    left = left.get(sent..).unwrap_or_default();
                }
            }
            Self::File => {
                let file = file()?;
                let mut left = STREAM;
                while left > 0 {
                    left -= sendfile(&*stream, &file, None, left)?;
                }
            }
            Self::Pipe => {
                let file = file()?;
                let (end, begin) = io::pipe()?;
                let (end, begin) = (OwnedFd::from(end), OwnedFd::from(begin));
                let mut left = STREAM;
                while left > 0 {
                    let mut inside = splice(file.as_raw_fd(), begin.as_raw_fd(), left)?;
                    left -= inside;
                    while inside > 0 {
                        inside -= splice(end.as_raw_fd(), stream.as_raw_fd(), inside)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The content as a file, to be read from its beginning.
fn file() -> Result<File> {
    let mut file = File::from(memfd_create("content", MemfdFlags::CLOEXEC)?);
    file.write_all(&CONTENT)?;
    file.rewind()?;
    Ok(file)
}

fn splice(from: i32, to: i32, most: usize) -> io::Result<usize> {
    let none = std::ptr::null_mut();
    // SAFETY: no offsets are given; the kernel looks at nothing of ours.
    let moved = unsafe { libc::splice(from, none, to, none, most, libc::SPLICE_F_MOVE) };
    usize::try_from(moved).map_err(|_negative| io::Error::last_os_error())
}

/// Lets a socket be asked for `MSG_ZEROCOPY`.
pub(crate) fn allow_zero_copy(socket: &impl AsFd) -> Result<()> {
    let on = libc::c_int::from(true);
    let length = libc::socklen_t::try_from(size_of_val(&on))?;
    // SAFETY: the value lives through the call, and its length is its own.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            (&raw const on).cast(),
            length,
        )
    };
    ensure!(result == 0, "SO_ZEROCOPY: {}", io::Error::last_os_error());
    Ok(())
}

/// The content is never written: the kernel may read it for as long as it likes.
fn zero_copy() -> SendFlags {
    SendFlags::from_bits_retain(libc::MSG_ZEROCOPY.cast_unsigned())
}

/// Sends the content over a connection and hears all of it.
pub(crate) fn stream(way: Way, [sender, receiver]: &mut [TcpStream; 2]) -> Result<()> {
    let heard = std::thread::scope(|scope| {
        let sending = scope.spawn(|| way.send(sender));
        let mut heard = vec![0; STREAM];
        let result = receiver.read_exact(&mut heard);
        sending.join().unwrap()?;
        result.context("what was sent").map(|()| heard)
    })
    .with_context(|| format!("{way:?}"))?;
    same(&heard, &CONTENT).with_context(|| format!("{way:?}"))
}

fn same(heard: &[u8], sent: &[u8]) -> Result<()> {
    let differs = heard.iter().zip(sent).position(|(one, other)| one != other);
    if let Some(place) = differs {
        bail!("byte {place} of {} is another", sent.len());
    }
    ensure!(heard.len() == sent.len(), "{} bytes", heard.len());
    Ok(())
}

/// Many datagrams in one send (`UDP_SEGMENT`, udp(7)), which differ from send to send.
pub(crate) fn send_datagrams(
    sender: &UdpSocket,
    number: usize,
    flags: MsgFlags,
) -> Result<&'static [u8]> {
    let content = CONTENT
        .get(number * 1000..number * 1000 + DATAGRAMS * DATAGRAM)
        .context("enough content")?;
    let size = u16::try_from(DATAGRAM)?;
    let sent = sendmsg::<()>(
        sender.as_raw_fd(),
        &[IoSlice::new(content)],
        &[ControlMessage::UdpGsoSegments(&size)],
        flags,
        None,
    )?;
    ensure!(sent == content.len(), "{sent} bytes sent");
    Ok(content)
}

/// Sends datagrams in large pieces and hears all of them, one by one, or as they come.
pub(crate) fn datagrams([sender, receiver]: &[UdpSocket; 2]) -> Result<()> {
    allow_zero_copy(sender)?;
    for number in 0..SENDS {
        let is_even = number % 2 == 0;
        setsockopt(receiver, sockopt::UdpGroSegment, &is_even)?;
        let flags = if number % 4 < 2 {
            MsgFlags::empty()
        } else {
            MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY)
        };
        let sent = send_datagrams(sender, number, flags)?;
        let mut heard = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        while heard.len() < sent.len() {
            let length = receiver.recv(&mut buffer).context("a datagram")?;
            ensure!(is_even || length == DATAGRAM, "{length} bytes");
            heard.extend(buffer.get(..length).unwrap_or_default());
        }
        same(&heard, sent).with_context(|| format!("send {number}"))?;
    }
    Ok(())
}
