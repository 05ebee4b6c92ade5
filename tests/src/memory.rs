//! What a process has in memory, as the kernel tells it.

use std::fs;

use anyhow::{Context as _, Result};

/// What a process has in memory, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident, now.
    pub rss: u64,
    /// Resident, the most so far.
    pub peak: u64,
    /// Of what is resident, what is no file's.
    pub anonymous: u64,
    /// Of what is resident, the kernel's maps that it looks into.
    pub maps: u64,
}

impl Memory {
    /// What a process has now.
    pub fn of(pid: u32) -> Result<Self> {
        let file = format!("/proc/{pid}/status");
        let text = fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
        let kib = |name: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
            kib.with_context(|| format!("{file} says no {name}"))
        };
        Ok(Self {
            rss: kib("VmRSS:")?,
            peak: kib("VmHWM:")?,
            anonymous: kib("RssAnon:")?,
            maps: mapped_maps(pid)?,
        })
    }
}

/// KiB of BPF maps among what is resident of a process.
fn mapped_maps(pid: u32) -> Result<u64> {
    let file = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
    let (mut is_map, mut sum) = (false, 0);
    for line in text.lines() {
        if let Some(kib) = line.strip_prefix("Rss:") {
            let kib: Option<u64> = kib
                .trim()
                .strip_suffix(" kB")
                .and_then(|kib| kib.parse().ok());
            sum += kib.filter(|_| is_map).unwrap_or_default();
        } else if line
            .split(' ')
            .next()
            .is_some_and(|range| range.contains('-'))
        {
            is_map = line.ends_with("anon_inode:bpf-map");
        }
    }
    Ok(sum)
}
