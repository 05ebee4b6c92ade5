//! Frames by hand on a pod's own interface: what it sends, and what reaches it, byte by byte.
//!
//! A pod with `CAP_NET_RAW` can do all of this. What comes of such frames on a node is `switch`'s.

pub mod switch;

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::namespace::Namespace;
use super::netlink::Mac;
use super::{ETH0, FAR, NEAR, Place, mac, patience};

/// How long a frame may take that surely arrives.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);
/// Room for frames that wait to be read.
const ROOM_BYTES: usize = 64 << 20;
/// No frame is longer, not even one that is still to be cut into segments.
const LONGEST: usize = 1 << 18;
/// Options of `linux/if_packet.h`.
const VNET_HDR: libc::c_int = 15;
const IGNORE_OUTGOING: libc::c_int = 23;
/// Length of `struct virtio_net_hdr`.
const OFFLOAD_HEADER: usize = 10;

/// A pod's `eth0`, as a packet socket sees it (packet(7)).
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    /// Takes a `struct virtio_net_hdr` in front of each frame; opened where it is needed.
    offloading: OwnedFd,
    buffer: Vec<u8>,
}

impl Wire {
    /// Opens it in a pod's namespace.
    pub fn open(namespace: &Namespace) -> Result<Self> {
        namespace
            .enter(|| {
                let socket = packet_socket()?;
                set_socket_recv_buffer_size_force(&socket, ROOM_BYTES).context("its room")?;
                switch_on(&socket, IGNORE_OUTGOING)?;
                bind_to_eth0(&socket, libc::ETH_P_ALL)?;
                let offloading = packet_socket()?;
                switch_on(&offloading, VNET_HDR)?;
                // Of no protocol: it hears nothing.
                bind_to_eth0(&offloading, 0)?;
                Ok(Self {
                    socket,
                    offloading,
                    buffer: vec![0; LONGEST],
                })
            })
            .context("opening a packet socket on eth0")
    }

    /// Sends a frame as it is.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty())
            .with_context(|| format!("sending a frame of {} bytes", frame.len()))?;
        ensure!(sent == frame.len(), "{sent} of {} bytes sent", frame.len());
        Ok(())
    }

    /// Sends a frame of more than a page so that nothing but its Ethernet header is in the linear
    /// part of the kernel's buffer.
    pub fn send_paged(&self, frame: &[u8]) -> Result<()> {
        let linear = 14_u16.to_ne_bytes();
        self.send_offloaded([0, 0, linear[0], linear[1], 0, 0, 0, 0, 0, 0], frame)
    }

    /// Sends a frame with a `struct virtio_net_hdr`: what is left to the device, and how much of it
    /// is to be linear.
    pub fn send_offloaded(&self, header: [u8; OFFLOAD_HEADER], frame: &[u8]) -> Result<()> {
        let bytes = [&header, frame].concat();
        send(self.offloading.as_raw_fd(), &bytes, MsgFlags::empty())
            .with_context(|| format!("sending a frame of {} bytes, offloaded", frame.len()))?;
        Ok(())
    }

    /// Forgets what has arrived so far.
    pub fn forget(&mut self) -> Result<()> {
        while self.next()?.is_some() {}
        Ok(())
    }

    /// What has arrived by now, in order.
    pub fn arrived(&mut self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next()? {
            frames.push(frame);
        }
        Ok(frames)
    }

    /// Waits for a frame that surely arrives, and returns those before it.
    pub fn until(&mut self, is_last: impl Fn(&[u8]) -> bool) -> Result<Vec<Vec<u8>>> {
        let end = Instant::now() + ARRIVES_WITHIN * patience();
        let mut frames = Vec::new();
        loop {
            match self.next()? {
                Some(frame) if is_last(&frame) => return Ok(frames),
                Some(frame) => frames.push(frame),
                None => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        bail!(
                            "a frame that surely passes did not arrive; {} others did",
                            frames.len()
                        );
                    }
                    let left = Timespec::try_from(left).context("a pause")?;
                    poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&left))
                        .context("waiting for a frame")?;
                }
            }
        }
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let fd = self.socket.as_raw_fd();
            match recv(fd, &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => return Ok(self.buffer.get(..length).map(<[u8]>::to_vec)),
                Err(Errno::EAGAIN) => return Ok(None),
                // The interface may come and go; what counts still arrives.
                Err(Errno::ENETDOWN | Errno::EINTR) => {}
                Err(error) => return Err(error).context("reading a packet socket"),
            }
        }
    }
}

/// A packet socket of no protocol yet: it hears nothing before it is bound.
fn packet_socket() -> Result<OwnedFd> {
    let family = AddressFamily::Packet;
    socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).context("opening it")
}

/// Binds a packet socket to `eth0` of its namespace.
fn bind_to_eth0(socket: &OwnedFd, protocol: libc::c_int) -> Result<()> {
    let protocol = u16::try_from(protocol).context("a protocol of Ethernet")?;
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).context("a family")?,
        sll_protocol: protocol.to_be(),
        sll_ifindex: ETH0.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).context("a length")?;
    // SAFETY: the address lives through the call, and its length is its own.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("binding it");
    }
    Ok(())
}

/// Switches an option of packet sockets on.
fn switch_on(socket: &OwnedFd, option: libc::c_int) -> Result<()> {
    let (fd, level, on) = (
        socket.as_raw_fd(),
        libc::SOL_PACKET,
        libc::c_int::from(true),
    );
    let length = libc::socklen_t::try_from(size_of_val(&on)).context("a length")?;
    // SAFETY: the value lives through the call, and its length is its own.
    let result = unsafe { libc::setsockopt(fd, level, option, (&raw const on).cast(), length) };
    if result != 0 {
        let error = io::Error::last_os_error();
        return Err(error).with_context(|| format!("option {option} of packet sockets"));
    }
    Ok(())
}

impl Place {
    /// Hardware address of a pod's `eth0`.
    pub fn mac(&self) -> Mac {
        mac(FAR, self.veth)
    }

    /// Hardware address of the node's end of a pod's veth.
    pub fn near_mac(&self) -> Mac {
        mac(NEAR, self.veth)
    }
}

/// The same frame between two hardware addresses, with the checksum that an IPv4 header needs to be
/// routed.
pub fn between(from: Mac, to: Mac, frame: &[u8]) -> Vec<u8> {
    let rest = frame.get(12..).unwrap_or_default();
    let mut frame = [&to, &from, rest].concat();
    if frame.get(12..14) == Some(&[0x08, 0x00]) {
        let words = frame.get(14).map_or(0, |first| usize::from(first & 0xf));
        let header = frame.get_mut(14..14 + 4 * words).unwrap_or_default();
        if let Some(place) = header.get_mut(10..12) {
            place.fill(0);
            let sum = checksum(header);
            if let Some(place) = header.get_mut(10..12) {
                place.copy_from_slice(&sum);
            }
        }
    }
    frame
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| {
            u32::from(
                pair.iter()
                    .fold(0, |word, byte| word << 8 | u16::from(*byte)),
            )
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).map_or(0, |sum| !sum).to_be_bytes()
}
