//! A file's identity and age: tells a changed file from an unchanged one without reading it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

/// Another one means that the file may have other content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Signature {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Bytes of the file.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }
}
