//! A guest's files as the kernel takes them: a cpio archive, "newc" form.
//!
//! Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive in the making.
#[derive(Debug)]
pub(crate) struct Initramfs {
    bytes: Vec<u8>,
    inode: usize,
}

impl Initramfs {
    pub(crate) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            inode: 0,
        }
    }

    pub(crate) fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, &[]);
    }

    pub(crate) fn program(&mut self, name: &str, contents: &[u8]) {
        self.entry(name, PROGRAM, contents);
    }

    /// The file at `from`, as an executable one.
    pub(crate) fn copy(&mut self, name: &str, from: &Path) -> Result<()> {
        let contents = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.program(name, &contents);
        Ok(())
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.inode += 1;
        // Magic, then thirteen fields of eight hex digits: inode, mode, uid, gid, links, mtime,
        // size, device ×2, own device ×2, length of the name with its NUL, checksum.
        let header = format!(
            "070701{:08x}{mode:08x}{:016x}{:08x}{:08x}{:08x}{:032x}{:08x}{:08x}",
            self.inode,
            0,
            1,
            0,
            contents.len(),
            0,
            name.len() + 1,
            0
        );
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    /// Names and contents end on a multiple of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_110_byte_header_a_name_and_contents_padded_to_four() {
        let mut archive = Initramfs::new();
        archive.program("ab", b"xyz");
        let bytes = archive.bytes;
        assert_eq!(bytes.len(), 116 + 4);
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[54..62], b"00000003", "size of the contents");
        assert_eq!(
            &bytes[94..102],
            b"00000003",
            "length of the name with its NUL"
        );
        assert_eq!(&bytes[110..120], b"ab\0\0\0\0xyz\0");
    }

    #[test]
    fn an_archive_ends_with_its_trailer() {
        let bytes = Initramfs::new().finish();
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
