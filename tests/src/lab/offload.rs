//! What sockets may leave to an interface: cutting large packets into segments, their checksums; and
//! what it may put together. A veth passes all of it on to its other end.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Something that an interface does, by the command of `linux/ethtool.h` that switches it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Offload {
    /// Checksums of what is sent; without them no other part of sending.
    Checksums = 0x17,
    /// Cutting TCP into segments.
    Segmentation = 0x1f,
    /// The same by the kernel, just before the interface.
    LateSegmentation = 0x24,
    /// Putting together what comes in.
    Reassembly = 0x2c,
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Switches it on or off, for an interface of the calling thread's namespace.
pub fn switch(interface: &str, offload: Offload, is_on: bool) -> Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let socket: OwnedFd = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("a socket to ask by")?;
    let mut value = Value {
        command: offload as u32,
        data: u32::from(is_on),
    };
    // SAFETY: `struct ifreq` is numbers, arrays and pointers: zeros are a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    let name = request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1);
    for (place, byte) in name.zip(interface.bytes()) {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request and the value that it points to live through the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result != 0 {
        let error = io::Error::last_os_error();
        return Err(error).with_context(|| format!("switching {offload:?} of {interface}"));
    }
    Ok(())
}
