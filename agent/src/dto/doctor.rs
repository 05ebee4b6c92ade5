//! What `picket doctor` found on its node.

use serde::{Deserialize, Serialize};

/// How a check ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckResult {
    /// As it should be.
    Ok,
    /// Worth knowing; policy is enforced.
    Warning,
    /// Has to be mended.
    Problem,
    /// Could not be found out.
    Unknown,
}

impl CheckResult {
    /// The word.
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
            Self::Unknown => "unknown",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CheckReport {
    /// Which: `kernel`, `cni`, …
    pub check: String,
    /// How it ended.
    pub result: CheckResult,
    /// What was found.
    pub found: String,
    /// What to do; absent when all is well.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remedy: Option<String>,
}

/// What `picket doctor` found.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Doctor {
    /// Version of the program that looked.
    pub version: String,
    /// The whole, as the exit code says it: `problem` when there is one, `unknown` when something
    /// that matters could not be found out, else `ok`.
    pub result: CheckResult,
    /// One by one.
    pub checks: Vec<CheckReport>,
}
