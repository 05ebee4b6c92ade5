//! The questions people ask of policy, answered from a cluster: the same code offline (`-f DIR`)
//! and in the agent's API.

mod effective;
mod judge;
mod question;
mod reference;
mod resolve;
mod words;

pub use effective::effective;
pub use judge::judgement_of;
pub use question::{AnswerError, can, why};
pub(crate) use question::{declared_ports, explain, explain_refused};
pub use reference::{PortArg, PortName, PortReference, Reference, ReferenceError, Who, short_kind};
pub use resolve::{End, ResolveError, Resolved, address_party, pod_party, resolve, short_workload};
