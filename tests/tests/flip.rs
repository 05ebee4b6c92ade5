//! The endpoint flip is one aligned word: a program that loads it while the dataplane stores it
//! sees all of the old or all of the new one. Needs root and two CPUs.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests fail like tests; the figures are printed for people"
)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use agent::dataplane::{Dataplane, Options, objects};
use agent_common::maps::{Config, EndpointWord};
use agent_policy::plan::Write;
use aya::maps::PerCpuArray;
use aya::programs::{SchedClassifier, TestRun as _};
use aya::{Ebpf, EbpfLoader, TestRunOptions};
use tests::lab::namespace::leave_the_machine;
use tests::lab::pins::{PINS, pinned};
use tests::runs::is_thorough;

/// The interface whose word the reader loads; see `picket-floor`.
const IFINDEX: u32 = 1;
/// What a revision is, given its config row; the same number as in `picket-floor`.
const PAIR: u32 = 0x9e37_79b1;
/// Reads in one run of a reader, as in `picket-floor`.
const READS_A_RUN: u64 = 1000;
/// Runs in one system call.
const REPEAT: u32 = 1000;

/// Flips meanwhile, at least: of words stored in two halves, a reader on another CPU sees some.
const FLIPS: u64 = 100_000;

fn wanted_reads() -> u64 {
    if is_thorough() {
        100_000_000
    } else {
        5_000_000
    }
}

/// Reads and mismatches that the reader has counted.
fn counted(reader: &Ebpf) -> (u64, u64) {
    let map = reader.map("TORN_COUNTS").unwrap();
    let counts: PerCpuArray<_, u64> = PerCpuArray::try_from(map).unwrap();
    let sum = |place| counts.get(&place, 0).unwrap().iter().sum();
    (sum(0), sum(1))
}

/// Reads at least so often, and for as long as it is worth while.
fn read(reader: &mut Ebpf, reads: u64, is_worth_while: impl Fn() -> bool) -> (u64, u64) {
    let program: &mut SchedClassifier =
        reader.program_mut("torn_word").unwrap().try_into().unwrap();
    program.load().unwrap();
    loop {
        let program: &SchedClassifier = reader.program("torn_word").unwrap().try_into().unwrap();
        let repeat = u64::from(REPEAT).min(reads.div_ceil(READS_A_RUN));
        program
            .test_run(TestRunOptions {
                data_in: Some(&[0; 64]),
                repeat: u32::try_from(repeat).unwrap(),
                ..TestRunOptions::new()
            })
            .unwrap();
        let (read, torn) = counted(reader);
        if read >= reads && !is_worth_while() {
            return (read, torn);
        }
    }
}

fn word(row: u32) -> EndpointWord {
    EndpointWord {
        config_row: row,
        revision: row.wrapping_mul(PAIR),
    }
}

#[test]
fn a_flip_is_never_seen_half_done() {
    leave_the_machine().unwrap();
    let mut dataplane = Dataplane::open(&Options::new(PINS)).unwrap();
    let rows = 1..=2_u32;
    let configs: Vec<_> = rows
        .clone()
        .map(|row| {
            let config = Config {
                ifindex: IFINDEX,
                ..Config::default()
            };
            Write::PutConfig(row, Box::new(config))
        })
        .collect();
    dataplane.apply(&configs).unwrap();
    let flips: Vec<_> = rows
        .map(|row| Write::Flip {
            ifindex: IFINDEX,
            word: word(row),
        })
        .collect();
    dataplane.apply(&flips).unwrap();
    let mut reader = EbpfLoader::new()
        .map_pin_path("ENDPOINTS", pinned("ENDPOINTS"))
        .load(objects::floor())
        .unwrap();
    let (is_over, flipped) = (AtomicBool::new(false), AtomicU64::new(0));
    let ((reads, torn), flips) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let done = dataplane.apply(&flips).unwrap();
                flipped.fetch_add(done as u64, Ordering::Relaxed);
            }
        });
        let enough = || flipped.load(Ordering::Relaxed) >= FLIPS;
        let result = read(&mut reader, wanted_reads(), || !enough());
        is_over.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        (result, flipped.load(Ordering::Relaxed))
    });
    println!("{reads} reads of the word during {flips} flips: {torn} torn");
    assert_eq!(torn, 0);
}
