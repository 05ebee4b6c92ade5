//! The kernel side: loads, pins and attaches the programs, carries out plans, reads the maps.

pub mod objects;
