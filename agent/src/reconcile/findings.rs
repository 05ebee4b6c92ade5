//! What is wrong with objects, told once when it appears and once when it is mended.

use std::collections::HashSet;

use agent_policy::model::Severity;
use tracing::{error, info, warn};

use crate::source::Reported;

/// Logs the difference between two lists of findings.
pub(super) fn tell(before: &[Reported], now: &[Reported]) {
    let was: HashSet<&Reported> = before.iter().collect();
    let is: HashSet<&Reported> = now.iter().collect();
    for reported in now.iter().filter(|reported| !was.contains(reported)) {
        let finding = &reported.finding;
        let place = place(reported);
        match finding.severity {
            Severity::Error => {
                error!(place, object = %finding.object, field = %finding.field, "{}", finding.message);
            }
            Severity::Warning => {
                warn!(place, object = %finding.object, field = %finding.field, "{}", finding.message);
            }
        }
    }
    for reported in before.iter().filter(|reported| !is.contains(reported)) {
        let finding = &reported.finding;
        info!(place = place(reported), object = %finding.object, field = %finding.field, "mended");
    }
}

fn place(reported: &Reported) -> Option<String> {
    reported.place.as_ref().map(ToString::to_string)
}
