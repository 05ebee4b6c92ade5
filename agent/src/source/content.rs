//! A manifest file to its objects, and what can still be taken from one that is malformed.

use std::path::Path;

use agent_policy::manifest;
use agent_policy::model::{Change, Finding};

use super::documents::{self, Document, Malformed};
use super::object::{self, Key, Kind, Object, Reading};
use super::store::Content;
use super::{Place, Reported};

/// Reads a file. A document that is no object makes the whole file malformed: a slip of the pen in
/// `kind` must not take a policy back.
pub(crate) fn read(path: &Path, bytes: &[u8]) -> Result<Content, Malformed> {
    let mut content = Content::default();
    for document in documents::parse(path, bytes)? {
        add(&mut content, path, document, 0)?;
    }
    Ok(content)
}

fn add(
    content: &mut Content,
    path: &Path,
    document: Document,
    lines_before: u64,
) -> Result<(), Malformed> {
    let place = Place {
        file: path.to_owned(),
        document: Some(document.number),
        line: document.line.map(|line| line + lines_before),
    };
    for reading in object::read(document.value) {
        match reading {
            Reading::Object(object) => content.objects.push((place.clone(), *object)),
            Reading::Unreadable { key, finding } => {
                content.unreadable.insert(key);
                content.findings.push(reported(&place, finding));
            }
            Reading::Ignored { kind } => {
                tracing::debug!(place = %place, kind, "kind that is not looked at");
            }
            Reading::NotAnObject(finding) => {
                return Err(Malformed {
                    line: place.line,
                    message: finding.to_string(),
                });
            }
        }
    }
    Ok(())
}

fn reported(place: &Place, finding: Finding) -> Reported {
    Reported {
        place: Some(place.clone()),
        finding,
    }
}

/// What a malformed file without last good content still says: each document that can be read by
/// itself, and of each that cannot but looks like a NetworkPolicy, that it isolates.
pub(crate) fn salvage(path: &Path, bytes: &[u8], fault: &Malformed) -> Content {
    let text = String::from_utf8_lossy(bytes);
    let mut content = Content {
        is_salvaged: true,
        ..Content::default()
    };
    let mut lines_before = 0;
    for (number, chunk) in (1..).zip(chunks(&text)) {
        let mut part = Content::default();
        let read = documents::parse(path, chunk.as_bytes()).and_then(|documents| {
            documents
                .into_iter()
                .try_for_each(|document| add(&mut part, path, document, lines_before))
        });
        match read {
            Ok(()) => {
                content.objects.extend(part.objects);
                content.findings.extend(part.findings);
            }
            Err(_) => content
                .objects
                .extend(policy(path, chunk, number, lines_before, fault)),
        }
        lines_before += chunk.lines().count() as u64;
    }
    content
}

/// Stretches of text between document markers, each with the marker that opens it.
fn chunks(text: &str) -> Vec<&str> {
    let mut starts: Vec<usize> = text
        .match_indices("---")
        .map(|(at, _)| at)
        .filter(|at| *at == 0 || text.as_bytes().get(at - 1) == Some(&b'\n'))
        .collect();
    if starts.first() != Some(&0) {
        starts.insert(0, 0);
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts
        .iter()
        .zip(ends)
        .filter_map(|(start, end)| text.get(*start..end))
        .collect()
}

/// A closed policy in the place of one that cannot be parsed.
fn policy(
    path: &Path,
    chunk: &str,
    number: usize,
    lines_before: u64,
    fault: &Malformed,
) -> Option<(Place, Object)> {
    if first_value(chunk, "kind") != Some("NetworkPolicy") {
        return None;
    }
    let namespace = first_value(chunk, "namespace").unwrap_or_default();
    let name = first_value(chunk, "name").unwrap_or_default();
    let (policy, finding) = manifest::salvage_policy(namespace, name, &fault.message);
    let key = Key {
        kind: Kind::NetworkPolicy,
        namespace: policy.name.namespace.to_string(),
        name: policy.name.name.to_string(),
    };
    let place = Place {
        file: path.to_owned(),
        document: Some(number),
        line: Some(lines_before + 1),
    };
    let object = Object {
        key,
        change: Some(Change::Policy(Box::new(policy))),
        findings: vec![finding],
    };
    Some((place, object))
}

/// The value on the first line that reads `field: value`, in YAML or JSON.
fn first_value<'a>(text: &'a str, field: &str) -> Option<&'a str> {
    let bare =
        |text: &'a str| text.trim_matches(|c: char| c.is_whitespace() || "\"',{}".contains(c));
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| bare(name) == field)
        .map(|(_, value)| bare(value))
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n";

    fn salvaged(file: &str, text: &str) -> Vec<String> {
        let path = Path::new(file);
        let fault = read(path, text.as_bytes()).expect_err("the file is malformed");
        let content = salvage(path, text.as_bytes(), &fault);
        let words = |(place, object): (Place, Object)| format!("{place} {}", object.key);
        content.objects.into_iter().map(words).collect()
    }

    #[test]
    fn what_can_be_read_of_a_malformed_file_is_taken_and_broken_policies_isolate() {
        let text = format!(
            "{GOOD}---\n\nkind: NetworkPolicy\nmetadata:\n  name: allow\n  namespace: shop\nspec:\n\
             \tpodSelector: {{}}\n---\nkind: [\n---\n{GOOD}"
        );
        assert_eq!(
            salvaged("a.yaml", &text),
            [
                "a.yaml:1 namespace shop",
                "a.yaml:5 networkpolicy shop/allow",
                "a.yaml:16 namespace shop"
            ]
        );
        let json = "{\n\"kind\": \"NetworkPolicy\",\n\"metadata\": {\n\"namespace\": \"shop\",\n";
        assert_eq!(
            salvaged("a.json", json),
            ["a.json:1 networkpolicy shop/(unnamed)"]
        );
    }

    #[test]
    fn a_document_without_kind_makes_the_whole_file_malformed() {
        let text = format!("{GOOD}---\nkid: NetworkPolicy\n");
        let fault = read(Path::new("a.yaml"), text.as_bytes()).expect_err("malformed");
        assert_eq!(fault.line, Some(6), "{fault:?}");
    }
}
