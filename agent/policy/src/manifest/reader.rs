//! What is wrong with one object, as it is read: bounded, whatever the object holds, and fit for a
//! terminal.

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::syntax;
use crate::model::{Finding, Labels, Severity};

/// Findings kept of one object: who mends these is told of the others next.
const MAX_FINDINGS: usize = 32;
/// Characters of a finding's object, field or message that are kept from its beginning. Messages
/// quote what is wrong, and that may be the whole object.
const HEAD: usize = 400;
/// The same from its end, where a message says what follows.
const TAIL: usize = 200;

/// Addresses of one pod or node: pods have one of each family, nodes some dozens.
const MAX_ADDRESSES: usize = 256;

/// Collects the findings of one object.
pub(super) struct Reader {
    object: String,
    findings: Vec<Finding>,
    /// Those that are not kept, and the worst of them.
    left_out: usize,
    worst: Severity,
}

impl Reader {
    pub(super) fn new(kind: &str, name: &str) -> Self {
        let name = super::name_or_unnamed(name);
        Self {
            object: brief(&format!("{kind} {name}")),
            findings: Vec::new(),
            left_out: 0,
            worst: Severity::Warning,
        }
    }

    /// Everything that was found.
    pub(super) fn finish(mut self) -> Vec<Finding> {
        if self.left_out > 0 {
            self.findings.push(Finding {
                severity: self.worst,
                object: self.object,
                field: String::new(),
                message: format!(
                    "has {} more faults; mend those above and these are said",
                    self.left_out
                ),
            });
        }
        self.findings
    }

    /// How much was found so far.
    pub(super) fn count(&self) -> usize {
        self.findings.len() + self.left_out
    }

    pub(super) fn error(&mut self, field: impl AsRef<str>, message: impl AsRef<str>) {
        self.add(Severity::Error, field.as_ref(), message.as_ref());
    }

    pub(super) fn warning(&mut self, field: impl AsRef<str>, message: impl AsRef<str>) {
        self.add(Severity::Warning, field.as_ref(), message.as_ref());
    }

    fn add(&mut self, severity: Severity, field: &str, message: &str) {
        if self.findings.len() >= MAX_FINDINGS {
            self.left_out += 1;
            self.worst = self.worst.max(severity);
            return;
        }
        self.findings.push(Finding {
            severity,
            object: self.object.clone(),
            field: brief(field),
            message: brief(message),
        });
    }

    /// True for a name that an object can go by here; the others could pass for two names.
    pub(super) fn has_name(&mut self, name: &str) -> bool {
        if name.is_empty() {
            self.error("metadata.name", "missing: name it; it is left out");
            return false;
        }
        let validity = syntax::identity(name);
        if let Err(problem) = validity {
            self.error(
                "metadata.name",
                format!("{name:?}: {problem}; it is left out"),
            );
        }
        validity.is_ok()
    }

    /// The same of the namespace it is in.
    pub(super) fn has_namespace(&mut self, namespace: &str) -> bool {
        let validity = syntax::identity(namespace);
        if let Err(problem) = validity {
            self.error(
                "metadata.namespace",
                format!("{namespace:?}: {problem}; it is left out"),
            );
        }
        validity.is_ok()
    }

    pub(super) fn check_name(&mut self, name: &str, validity: Result<(), &'static str>) {
        if let Err(problem) = validity {
            self.warning(
                "metadata.name",
                format!("{name:?}: {problem}; the API server would refuse it, here it counts"),
            );
        }
    }

    /// The object's labels as they are written: one that no valid selector can name harms nobody.
    pub(super) fn labels(&mut self, metadata: &ObjectMeta) -> Labels {
        let labels = metadata.labels.clone().unwrap_or_default();
        for (key, value) in &labels {
            let validity = syntax::label_key(key).and_then(|()| syntax::label_value(value));
            if let Err(problem) = validity {
                self.warning(
                    format!("metadata.labels[{key}]"),
                    format!("{value:?}: {problem}; the API server would refuse it, here it counts"),
                );
            }
        }
        labels.into()
    }

    pub(super) fn address(&mut self, addresses: &mut Vec<IpAddr>, field: String, text: &str) {
        match text.parse::<IpAddr>() {
            Ok(address) => {
                let address = address.to_canonical();
                if addresses.contains(&address) {
                    return;
                }
                if addresses.len() >= MAX_ADDRESSES {
                    self.error(
                        field,
                        format!("{text:?}: one more than {MAX_ADDRESSES}; it is left out"),
                    );
                    return;
                }
                addresses.push(address);
            }
            Err(_) => self.error(
                field,
                format!("{text:?}: not an IP address; it is left out"),
            ),
        }
    }
}

/// A text that is said to people: what a terminal would obey is spelt out, and the middle of a long
/// one is left out.
pub fn brief(text: &str) -> String {
    let tail = text.char_indices().rev().nth(TAIL - 1);
    let shortened = match (text.char_indices().nth(HEAD), tail) {
        (Some((head, _)), Some((tail, _))) if head < tail => {
            let left_out = tail - head;
            let (head, tail) = (text.get(..head), text.get(tail..));
            format!(
                "{} [{left_out} bytes left out] {}",
                head.unwrap_or_default(),
                tail.unwrap_or_default()
            )
        }
        _ => text.to_owned(),
    };
    if !shortened.contains(syntax::is_obeyed) {
        return shortened;
    }
    let mut spelt = String::with_capacity(shortened.len());
    for c in shortened.chars() {
        if syntax::is_obeyed(c) {
            spelt.extend(c.escape_default());
        } else {
            spelt.push(c);
        }
    }
    spelt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_keeps_its_ends_and_says_how_much_is_left_out() {
        let long = format!("begin {}; the end", "ä".repeat(1_000_000));
        let said = brief(&long);
        assert!(
            said.starts_with("begin ää") && said.ends_with("ä; the end"),
            "{said}"
        );
        assert!(said.len() < 2_000, "{said}");
        assert!(said.contains("bytes left out"), "{said}");
        let short = "a".repeat(HEAD + TAIL);
        assert_eq!(brief(&short), short);
    }

    #[test]
    fn what_a_terminal_would_obey_is_spelt_out() {
        assert_eq!(
            brief("a\u{1b}[2Jb\nc\u{202e}d"),
            "a\\u{1b}[2Jb\\nc\\u{202e}d"
        );
        assert_eq!(brief("größe"), "größe");
    }

    #[test]
    fn of_many_findings_the_first_are_kept_and_the_others_counted() {
        let mut reader = Reader::new("pod", "shop/web");
        for index in 0..1000 {
            reader.warning(format!("field[{index}]"), "odd");
        }
        reader.error("last", "wrong");
        assert_eq!(reader.count(), 1001);
        let findings = reader.finish();
        assert_eq!(findings.len(), MAX_FINDINGS + 1);
        let last = findings.last().unwrap();
        assert_eq!(
            last.severity,
            Severity::Error,
            "the worst of those left out"
        );
        assert!(last.message.starts_with("has 969 more faults"), "{last}");
    }
}
