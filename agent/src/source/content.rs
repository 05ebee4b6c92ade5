//! A manifest file to its objects, and what can still be taken from one that is malformed.

use std::collections::BTreeSet;
use std::path::Path;

use agent_policy::manifest;
use agent_policy::model::{Change, Finding};

use super::documents::{self, Document, MAX_DOCUMENTS, Malformed};
use super::object::{Key, Kind, Object, Reading, Readings};
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
    document: Document<Readings>,
    lines_before: u64,
) -> Result<(), Malformed> {
    let place = Place {
        file: path.to_owned(),
        document: Some(document.number),
        line: document.line.map(|line| line + lines_before),
    };
    for reading in document.content.0 {
        match reading {
            Reading::Object(object) => content.objects.push((place.clone(), *object)),
            Reading::Unreadable {
                key,
                finding,
                stand_in,
            } => {
                let stand_in = stand_in.map(|object| (place.clone(), *object));
                content.unreadable.insert(key, stand_in);
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
/// itself, and of each that cannot but is a NetworkPolicy, that it isolates. `None` when that is
/// not all: then there may be a policy of which not even the namespace is known.
pub(crate) fn salvage(path: &Path, bytes: &[u8], fault: &Malformed) -> Option<Content> {
    let text = String::from_utf8_lossy(bytes);
    let mut content = Content {
        is_salvaged: true,
        ..Content::default()
    };
    let mut lines_before = 0;
    let chunks = chunks(&text);
    if chunks.len() > MAX_DOCUMENTS {
        return None;
    }
    for (number, chunk) in (1..).zip(chunks) {
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
                content.unreadable.extend(part.unreadable);
            }
            Err(_) if chunk.contains("NetworkPolicy") => {
                let place = Place {
                    file: path.to_owned(),
                    document: Some(number),
                    line: Some(lines_before + 1),
                };
                let policy = closed(chunk, fault).ok()?;
                content.objects.extend(policy.map(|policy| (place, policy)));
            }
            Err(_) => {}
        }
        lines_before += chunk.lines().count() as u64;
    }
    Some(content)
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

/// It cannot be told whether there is a policy, or two, or of which namespace.
struct Doubt;

/// A closed policy in the place of one that cannot be parsed; none where there was none.
fn closed(chunk: &str, fault: &Malformed) -> Result<Option<Object>, Doubt> {
    let kinds = values(chunk, "kind");
    let may_hold_one = |kind: &&str| *kind == "NetworkPolicy" || kind.ends_with("List");
    if !kinds.is_empty() && !kinds.iter().any(may_hold_one) {
        return Ok(None);
    }
    // The same kind and namespace may stand there again, in an annotation.
    let only = |field| {
        let values = values(chunk, field);
        values.first().copied().filter(|_| values.len() == 1)
    };
    let namespace = only("namespace")
        .filter(|_| only("kind") == Some("NetworkPolicy"))
        .filter(|namespace| manifest::identity(namespace).is_ok())
        .ok_or(Doubt)?;
    // With several, the name of none: another policy of the namespace may be called so.
    let name = only("name").unwrap_or_default();
    let (policy, finding) = manifest::salvage_policy(namespace, name, &fault.message);
    let key = Key {
        kind: Kind::NetworkPolicy,
        namespace: policy.name.namespace.to_string(),
        name: policy.name.name.to_string(),
    };
    Ok(Some(Object {
        key,
        change: Some(Change::Policy(Box::new(policy))),
        findings: vec![finding],
    }))
}

/// What stands behind `field:` anywhere in a text, in YAML or JSON, block or flow.
fn values<'a>(text: &'a str, field: &str) -> BTreeSet<&'a str> {
    let is_of_name = |c: char| c.is_alphanumeric() || "-_./".contains(c);
    let value = |(at, _): (usize, &str)| {
        if text.get(..at)?.ends_with(is_of_name) {
            return None;
        }
        let rest = text.get(at + field.len()..)?;
        let rest = rest
            .trim_start_matches(['"', '\'', '\\'])
            .trim_start_matches(' ');
        let rest = rest.strip_prefix(':')?;
        let rest = rest.trim_start_matches([' ', '"', '\'', '\\']);
        let end = rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
        rest.get(..end).filter(|value| !value.is_empty())
    };
    text.match_indices(field).filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n";

    fn salvaged(file: &str, text: &str) -> Vec<String> {
        let path = Path::new(file);
        let fault = read(path, text.as_bytes()).expect_err("the file is malformed");
        let content = salvage(path, text.as_bytes(), &fault).expect("nothing is in doubt");
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

    /// What is salvaged of one broken document.
    fn of(text: &str) -> Option<Vec<String>> {
        let path = Path::new("a.yaml");
        let fault = read(path, text.as_bytes()).expect_err("the file is malformed");
        let content = salvage(path, text.as_bytes(), &fault)?;
        let words = |(_, object): (Place, Object)| object.key.to_string();
        Some(content.objects.into_iter().map(words).collect())
    }

    #[test]
    fn a_broken_policy_is_known_in_whatever_style_it_is_written() {
        for text in [
            "kind: NetworkPolicy # ours\nmetadata:\n  name: \"a\"\n  namespace: shop\nspec: [\n",
            "{kind: NetworkPolicy, metadata: {name: a, namespace: shop}, spec: [\n",
            r#"{"kind":"NetworkPolicy","metadata":{"name":"a","namespace":"shop"},"spec":"#,
            "metadata:\n  annotations:\n    last: '{\"kind\":\"NetworkPolicy\",\"metadata\":{\"name\":\
             \"a\",\"namespace\":\"shop\"}}'\n  name: a\n  namespace: shop\nkind: NetworkPolicy\nx: [\n",
        ] {
            assert_eq!(
                of(text),
                Some(vec!["networkpolicy shop/a".to_owned()]),
                "{text}"
            );
        }
    }

    #[test]
    fn a_broken_document_that_may_hold_policies_of_any_namespace_leaves_a_doubt() {
        for text in [
            "kind: NetworkPolicy\nmetadata: [\n",
            "kind: List\nitems:\n- kind: NetworkPolicy\n  metadata: {namespace: shop}\n- [\n",
            "kind: NetworkPolicy\nmetadata: {namespace: shop}\n  namespace: other\n",
            "kid: NetworkPolicy\nmetadata: [\n",
            "kind: NetworkPolicy\nmetadata: {namespace: \"a/b\"}\nspec: [\n",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
        let pod = "# for the NetworkPolicy of web\nkind: Pod\nmetadata: [\n";
        assert_eq!(of(pod), Some(Vec::new()), "no policy can be in it");
    }

    #[test]
    fn a_document_without_kind_makes_the_whole_file_malformed() {
        let text = format!("{GOOD}---\nkid: NetworkPolicy\n");
        let fault = read(Path::new("a.yaml"), text.as_bytes()).expect_err("malformed");
        assert_eq!(fault.line, Some(6), "{fault:?}");
    }
}
