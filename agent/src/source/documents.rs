//! Bytes of a manifest file to its documents, YAML or JSON, each with the line it starts at.
//! Limits are here: nothing a file holds can make reading it hang, overflow or exhaust memory.

mod value;

use std::path::Path;

use agent_policy::manifest::brief;
use serde::de::Error as _;
use serde_json::Value;
use serde_saphyr::Spanned;

use value::Strict;

/// No manifest file larger than this is read: the pods of 5 000, as kubectl writes them, are 40 MiB.
pub(crate) const MAX_FILE_BYTES: u64 = 64 << 20;
/// Nesting of a document; objects that are looked at need about 15. Each level costs stack.
const MAX_DEPTH: usize = 64;
/// Values of all documents of a YAML file: about three million make 64 MiB.
const MAX_NODES: usize = 8 << 20;
/// Values reached through anchors: an alias bomb is noticed within a fraction of a second.
const MAX_ANCHORED: usize = 1 << 16;
/// Text of all values of a YAML file, what aliases repeat included.
const MAX_TEXT_BYTES: usize = 128 << 20;
/// Documents of a file, as many as there may be files.
pub(crate) const MAX_DOCUMENTS: usize = 1 << 18;

/// One document of a file.
#[derive(Debug, PartialEq)]
pub(crate) struct Document<T> {
    /// Position in the file, from 1, empty documents not counted.
    pub(crate) number: usize,
    /// Line it starts at, from 1.
    pub(crate) line: Option<u64>,
    /// What was made of its content.
    pub(crate) content: T,
}

/// Why a file cannot be read as documents.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Malformed {
    /// Line of the fault, from 1, when known.
    pub(crate) line: Option<u64>,
    /// What is wrong.
    pub(crate) message: String,
}

/// True for names that may hold objects. Editors' swap files and configmap's `..data` are not
/// read, what links to them is.
pub(crate) fn is_manifest(path: &Path) -> bool {
    !is_hidden(path)
        && path.extension().is_some_and(|extension| {
            ["yaml", "yml", "json"]
                .iter()
                .any(|known| extension.eq_ignore_ascii_case(known))
        })
}

/// True for names that start with a dot.
pub(crate) fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Splits a file into its documents, and makes of each what is wanted before the next is read.
pub(crate) fn parse<T: From<Value>>(
    path: &Path,
    bytes: &[u8],
) -> Result<Vec<Document<T>>, Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|error| Malformed {
        line: Some(line_at(bytes, error.valid_up_to())),
        message: "not UTF-8".to_owned(),
    })?;
    // Some editors put it before everything.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
    {
        parse_json(text)
    } else {
        parse_yaml(text)
    }
}

fn parse_yaml<T: From<Value>>(text: &str) -> Result<Vec<Document<T>>, Malformed> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 2 * MAX_NODES,
            max_documents: MAX_DOCUMENTS,
            max_recorded_anchor_events: MAX_ANCHORED,
            max_total_scalar_bytes: MAX_TEXT_BYTES,
        },
        emit_comments: false,
        with_snippet: false,
    };
    let documents = serde_saphyr::from_multiple_with_options::<Spanned<Strict<T>>>(text, options)
        .map_err(|error| Malformed {
        line: error
            .location()
            .map(|location| location.line())
            .filter(|line| *line > 0),
        message: first_line(&error.to_string()),
    })?;
    let numbered = documents.into_iter().zip(1..);
    Ok(numbered
        .map(|(document, number)| Document {
            number,
            line: Some(document.referenced.line()).filter(|line| *line > 0),
            content: document.value.0,
        })
        .collect())
}

fn parse_json<T: From<Value>>(text: &str) -> Result<Vec<Document<T>>, Malformed> {
    let mut documents = Vec::new();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Option<Strict<T>>>();
    // Lines are counted as far as documents were read: each once, however many documents.
    let (mut counted, mut line) = (0, 1);
    loop {
        let rest = text.get(stream.byte_offset()..).unwrap_or_default();
        let start = text.len() - rest.trim_start().len();
        line += newlines(text.as_bytes().get(counted..start).unwrap_or_default());
        counted = start;
        let content = match stream.next() {
            None => return Ok(documents),
            Some(Ok(None)) => continue,
            Some(Ok(Some(Strict(content)))) => content,
            Some(Err(error)) => return Err(malformed_json(&error)),
        };
        if documents.len() == MAX_DOCUMENTS {
            let error = format!("more than {MAX_DOCUMENTS} documents: split the file");
            return Err(malformed_json(&serde_json::Error::custom(error)));
        }
        documents.push(Document {
            number: documents.len() + 1,
            line: Some(line),
            content,
        });
    }
}

fn malformed_json(error: &serde_json::Error) -> Malformed {
    Malformed {
        line: Some(error.line() as u64).filter(|line| *line > 0),
        message: first_line(&error.to_string()),
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.split(|byte| *byte == b'\n').count() as u64 - 1
}

fn line_at(bytes: &[u8], offset: usize) -> u64 {
    1 + newlines(bytes.get(..offset).unwrap_or(bytes))
}

/// What a parser says, without the trail it appends.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let line = line
        .split_once(" (defined at")
        .map_or(line, |(head, _)| head);
    brief(line)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn yaml(text: &str) -> Result<Vec<Document<Value>>, Malformed> {
        parse(Path::new("a.yaml"), text.as_bytes())
    }

    #[test]
    fn documents_know_their_line_and_empty_ones_do_not_count() {
        let documents = yaml("# nothing\n---\na: 1\n---\n---\n\n# x\nb: 2\n").unwrap();
        let expected = [(1, Some(3), json!({"a": 1})), (2, Some(8), json!({"b": 2}))];
        assert_eq!(
            documents
                .into_iter()
                .map(|document| (document.number, document.line, document.content))
                .collect::<Vec<_>>(),
            expected
        );
        let documents =
            parse::<Value>(Path::new("a.json"), b"{\"a\": 1}\n\n{\"b\":\n2}\n").unwrap();
        let expected = [(1, Some(1), json!({"a": 1})), (2, Some(3), json!({"b": 2}))];
        assert_eq!(
            documents
                .into_iter()
                .map(|document| (document.number, document.line, document.content))
                .collect::<Vec<_>>(),
            expected
        );
    }

    #[test]
    fn an_empty_file_has_no_documents() {
        for text in ["", "\n", "---\n", "# only words\n", "---\n---\n"] {
            assert_eq!(yaml(text), Ok(Vec::new()), "{text:?}");
        }
        assert_eq!(parse::<Value>(Path::new("a.json"), b" \n"), Ok(Vec::new()));
    }

    #[test]
    fn a_fault_is_told_with_its_line() {
        let fault = yaml("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(fault.line.is_some_and(|line| line >= 2), "{fault:?}");
        let fault = parse::<Value>(Path::new("a.json"), b"{\"a\": 1}\n{\"b\": }\n").unwrap_err();
        assert_eq!(fault.line, Some(2), "{fault:?}");
        let fault = parse::<Value>(Path::new("a.yaml"), b"a: 1\nb: \xff\n").unwrap_err();
        assert_eq!(fault.line, Some(2), "{fault:?}");
    }

    #[test]
    fn the_same_key_twice_is_a_fault() {
        yaml("a: 1\na: 2\n").unwrap_err();
    }

    #[test]
    fn nesting_without_end_is_a_fault_not_a_crash() {
        yaml(&"[".repeat(100_000)).unwrap_err();
        yaml(&"- ".repeat(100_000)).unwrap_err();
        parse::<Value>(Path::new("a.json"), "[".repeat(100_000).as_bytes()).unwrap_err();
    }

    #[test]
    fn an_alias_bomb_is_a_fault() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = format!("*a{}", level - 1);
            let items = vec![below; 9].join(", ");
            bomb = format!("{bomb}a{level}: &a{level} [{items}]\n");
        }
        yaml(&bomb).unwrap_err();
    }

    #[test]
    fn hidden_and_foreign_files_are_not_manifests() {
        for name in ["a.yaml", "b.YML", "c.json", "dir.d/x.yaml"] {
            assert!(is_manifest(Path::new(name)), "{name}");
        }
        for name in [
            ".a.yaml",
            "a.yaml~",
            "a.yaml.swp",
            "README.md",
            "..data",
            "yaml",
        ] {
            assert!(!is_manifest(Path::new(name)), "{name}");
        }
    }
}
