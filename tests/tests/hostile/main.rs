//! Hostile and odd packets: what a pod with `CAP_NET_RAW` can send is judged as what it is, or
//! dropped for a counted reason; nothing else of it arrives anywhere.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test's own helpers: a panic is the failure's report"
)]

mod errors;
mod floods;
mod fuzz;
mod link;
mod origin;
mod parsing;
mod recut;
mod shop;
mod source;
