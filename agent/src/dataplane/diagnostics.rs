//! What the programs themselves have to say, carried into the agent's log.

use aya::Ebpf;
use aya_log::EbpfLogger;

use super::error::DataplaneError;

/// Passes records of aya-log's on to `tracing`.
#[derive(Clone, Copy, Debug)]
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // The programs only speak of what cannot happen, so the level makes no difference.
        tracing::error!(program = record.target(), "{}", record.args());
    }

    fn flush(&self) {}
}

/// The programs' messages.
pub struct Diagnostics {
    logger: EbpfLogger<ToTracing>,
}

impl std::fmt::Debug for Diagnostics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Diagnostics")
    }
}

impl Diagnostics {
    /// Opens the programs' message ring; `None` when somebody has it already.
    pub(crate) fn open(ebpf: &mut Ebpf) -> Result<Option<Self>, DataplaneError> {
        match EbpfLogger::init_with_logger(ebpf, ToTracing) {
            Ok(logger) => Ok(Some(Self { logger })),
            Err(aya_log::Error::MapNotFound) => Ok(None),
            Err(error) => Err(DataplaneError::Events(std::io::Error::other(error))),
        }
    }

    /// Logs what the programs have said since the last time; once a second is often enough.
    pub fn forward(&mut self) {
        self.logger.flush();
    }
}
