//! A regular file whose content nobody gets until it is time, as on a network mount whose server is
//! gone: a file system of that one file, by FUSE (`linux/fuse.h`).

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

/// Operations that a file which is only read needs.
mod operation {
    pub(super) const GETATTR: u32 = 3;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
}

/// Length of `struct fuse_in_header`.
const HEADER: usize = 40;
/// The smallest buffer that the kernel gives requests to (`FUSE_MIN_READ_BUFFER`).
const REQUEST: usize = 8192;
const VERSION: [u32; 2] = [7, 31];
/// A regular file that everybody may read.
const MODE: u32 = 0o100_444;

/// The file; whoever waits for it is answered when the value goes: it cannot even be killed before.
#[derive(Debug)]
pub struct Hanging {
    server: Arc<Server>,
}

#[derive(Debug)]
struct Server {
    device: File,
    content: Vec<u8>,
    answers: AtomicBool,
    /// Who waits: the requests' own numbers.
    waiting: Mutex<Vec<u64>>,
}

impl Hanging {
    /// Puts it in the place of a file, for the mount namespace of the calling thread.
    pub fn mount(path: &Path, content: &str) -> Result<Self> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .context("opening /dev/fuse")?;
        let options = format!(
            "fd={},rootmode={MODE:o},user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(
            Some("hanging"),
            path,
            Some("fuse"),
            flags,
            Some(options.as_str()),
        )
        .with_context(|| format!("mounting over {}", path.display()))?;
        let server = Arc::new(Server {
            device,
            content: content.as_bytes().to_vec(),
            answers: AtomicBool::new(false),
            waiting: Mutex::default(),
        });
        let serving = Arc::clone(&server);
        // Ends with the mount, or the process.
        std::thread::spawn(move || serving.serve());
        Ok(Self { server })
    }

    /// True once somebody waits for the content.
    pub fn is_waited_for(&self) -> bool {
        !self.server.waiting().is_empty()
    }

    /// Answers whoever waits and whoever asks from now on.
    pub fn answer(&self) -> Result<()> {
        self.server.answers.store(true, Ordering::SeqCst);
        let waiting = std::mem::take(&mut *self.server.waiting());
        waiting
            .into_iter()
            .try_for_each(|request| self.server.reply(request, 0, &self.server.content))
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        // Nobody may wait any more, nor be there.
        drop(self.answer());
    }
}

impl Server {
    fn serve(&self) {
        let mut request = vec![0; REQUEST + self.content.len()];
        // The mount is gone when this fails.
        while let Ok(length) = (&self.device).read(&mut request) {
            let request = request.get(..length).unwrap_or_default();
            let word = |at: usize| -> Option<u32> {
                Some(u32::from_ne_bytes(
                    request.get(at..at + 4)?.try_into().ok()?,
                ))
            };
            let number = request.get(8..16).and_then(|bytes| bytes.try_into().ok());
            let (Some(operation), Some(number)) = (word(4), number.map(u64::from_ne_bytes)) else {
                return;
            };
            let offset = word(HEADER + 8).unwrap_or_default();
            // Nobody to tell when it fails: the test notices.
            drop(self.handle(operation, number, offset));
        }
    }

    fn handle(&self, operation: u32, number: u64, offset: u32) -> Result<()> {
        match operation {
            operation::INIT => {
                let mut answer = [VERSION[0].to_ne_bytes(), VERSION[1].to_ne_bytes()].concat();
                answer.resize(64, 0);
                self.reply(number, 0, &answer)
            }
            operation::GETATTR => self.reply(number, 0, &self.attributes()),
            operation::OPEN => self.reply(number, 0, &[0; 16]),
            operation::READ => {
                let mut waiting = self.waiting();
                if !self.answers.load(Ordering::SeqCst) {
                    waiting.push(number);
                    return Ok(());
                }
                drop(waiting);
                let from = usize::try_from(offset)?;
                self.reply(number, 0, self.content.get(from..).unwrap_or_default())
            }
            operation::FLUSH | operation::RELEASE => self.reply(number, 0, &[]),
            _ => self.reply(number, -libc::ENOSYS, &[]),
        }
    }

    /// `struct fuse_attr_out`, valid for no time.
    fn attributes(&self) -> Vec<u8> {
        let mut answer = vec![0; 16];
        let mut long = |value: u64| answer.extend(value.to_ne_bytes());
        long(1);
        long(self.content.len() as u64);
        // Blocks and times, in seconds.
        (0..4).for_each(|_| long(0));
        let mut word = |value: u32| answer.extend(value.to_ne_bytes());
        // The rest of the times.
        (0..3).for_each(|_| word(0));
        word(MODE);
        word(1);
        // Owner, device, block size, flags.
        (0..5).for_each(|_| word(0));
        answer
    }

    fn reply(&self, number: u64, error: i32, answer: &[u8]) -> Result<()> {
        let length = u32::try_from(16 + answer.len())?.to_ne_bytes();
        let header = [length, error.to_ne_bytes()].concat();
        let message = [header.as_slice(), &number.to_ne_bytes(), answer].concat();
        (&self.device).write_all(&message).context("answering")
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
