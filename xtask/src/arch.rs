//! The architectures that Picket is built for, as everybody calls them.

use std::env;

use clap::ValueEnum;

/// What a program or a kernel runs on.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, ValueEnum)]
pub(crate) enum Arch {
    /// Rust calls it `x86_64`.
    Amd64,
    /// Rust calls it `aarch64`.
    Arm64,
}

impl Arch {
    pub(crate) const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// Debian's word for it, and Go's.
    pub(crate) const fn as_label(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Rust's word for it.
    const fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// The target of Rust that makes static programs.
    pub(crate) const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }

    /// What this machine runs, if it is one of them.
    pub(crate) fn here() -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|arch| arch.machine() == env::consts::ARCH)
    }

    /// A C compiler for it.
    pub(crate) const fn c_compiler(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu-gcc",
            Self::Arm64 => "aarch64-linux-gnu-gcc",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_one_of_the_architectures() {
        assert!(Arch::here().is_some_and(|arch| Arch::ALL.contains(&arch)));
    }
}
