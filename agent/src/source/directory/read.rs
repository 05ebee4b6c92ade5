//! The bytes of one file: read without ever waiting for anybody, whole, and no more than bounded.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::signature::Signature;
use crate::source::documents::MAX_FILE_BYTES;

/// What came of reading a file.
#[derive(Debug)]
pub(super) enum Contents {
    /// All of it, and what it looked like meanwhile.
    Whole(Vec<u8>, Signature),
    /// Somebody wrote while it was read: these may be two halves.
    Changing,
    /// More than [`MAX_FILE_BYTES`].
    TooLarge(Signature),
}

/// Reads a regular file.
///
/// # Errors
/// It is gone, is none, or cannot be read.
pub(super) fn regular(path: &Path) -> io::Result<Contents> {
    // What was a file when the directory was walked may be a pipe by now: opened like this it is
    // not waited for.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(io::Error::other("is no regular file any more"));
    }
    let before = Signature::of(&before);
    if before.size() > MAX_FILE_BYTES {
        return Ok(Contents::TooLarge(before));
    }
    let bytes = bounded(&file)?;
    let after = Signature::of(&file.metadata()?);
    if before != after {
        return Ok(Contents::Changing);
    }
    Ok(match bytes {
        Some(bytes) => Contents::Whole(bytes, after),
        None => Contents::TooLarge(after),
    })
}

/// Reads what was named itself, whatever it is: a pipe too, which is waited for.
///
/// # Errors
/// It is gone or cannot be read.
pub(super) fn named(path: &Path) -> io::Result<Contents> {
    let file = File::open(path)?;
    let signature = Signature::of(&file.metadata()?);
    Ok(match bounded(&file)? {
        Some(bytes) => Contents::Whole(bytes, signature),
        None => Contents::TooLarge(signature),
    })
}

/// The bytes, unless there are too many.
fn bounded(file: &File) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= MAX_FILE_BYTES).then_some(bytes))
}
