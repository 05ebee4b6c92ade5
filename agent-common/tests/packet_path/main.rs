//! A packet's way on the host: what bytes are taken for, how flows live, what becomes of packets.

#![expect(
    unreachable_pub,
    reason = "its modules are also those of a library, where this is their interface"
)]

// Shared with the whole-system tests, which compare this very machine with the kernel.
#[path = "../../../tests/src/machine.rs"]
mod machine;
#[path = "../../../tests/src/packets.rs"]
mod packets;

#[cfg(test)]
mod books;
#[cfg(test)]
mod changes;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod flows;
#[cfg(test)]
mod fragments;
#[cfg(test)]
mod glance;
#[cfg(test)]
mod parse;
#[cfg(test)]
mod places;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod world;
