//! A network's configuration list, with our plugin at its end and without it. Text in, text out:
//! whatever else is in it stays byte for byte, in its order.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{NAME, VERSIONS};

/// Why a list is left as it is.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum ListError {
    /// It cannot be read.
    #[error("not a list of plugins in JSON: {0}")]
    Unreadable(String),
    /// It lists nothing that makes a network.
    #[error("it lists no plugins behind which ours could stand")]
    NoPlugins,
    /// The runtime would refuse the whole network with us in it.
    #[error("its cniVersion {0:?} is none that picket-cni speaks")]
    Version(String),
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(default, rename = "cniVersion")]
    version: String,
    #[serde(default, rename = "cniVersions")]
    versions: Vec<String>,
    #[serde(default, borrow)]
    plugins: Option<&'a RawValue>,
}

/// A network's name and the types of its plugins, in their order; also of a single plugin's
/// configuration.
pub(super) fn plugins(text: &str) -> Result<(String, Vec<String>), ListError> {
    let Named { name, kind } = object(text)?;
    match read(text) {
        Ok((_, plugins)) => Ok((
            name,
            plugins.into_iter().map(|plugin| plugin.kind).collect(),
        )),
        Err(ListError::NoPlugins) if !kind.is_empty() => Ok((name, vec![kind])),
        Err(error) => Err(error),
    }
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
    #[serde(default, rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Typed {
    #[serde(default, rename = "type")]
    kind: String,
}

/// A plugin's place in the text.
struct Plugin<'a> {
    text: &'a str,
    start: usize,
    end: usize,
    kind: String,
}

impl Plugin<'_> {
    fn is_ours(&self) -> bool {
        self.kind == NAME
    }
}

/// The text with `entry` as its last plugin and no other of ours; `None` when it is so already.
pub(super) fn with_ours(text: &str, entry: &str) -> Result<Option<String>, ListError> {
    let (list, plugins) = read(text)?;
    for version in list.versions.iter().chain([&list.version]) {
        if !VERSIONS.contains(&version.as_str()) {
            return Err(ListError::Version(version.clone()));
        }
    }
    let ours = plugins.iter().filter(|plugin| plugin.is_ours()).count();
    let last = plugins.last().ok_or(ListError::NoPlugins)?;
    if ours == 1 && last.is_ours() && last.text == entry && plugins.len() > 1 {
        return Ok(None);
    }
    if ours > 0 {
        let bare = without_ours(text)?.unwrap_or_default();
        return with_ours(&bare, entry).map(|with| with.filter(|with| with != text));
    }
    let (before, after) = text.split_at(last.end);
    let lead = text.get(..last.start).unwrap_or_default();
    let indent = lead.rsplit_once('\n').map(|(_, indent)| indent);
    let indent = indent.filter(|indent| indent.chars().all(char::is_whitespace));
    let gap = indent.map_or_else(|| " ".to_owned(), |indent| format!("\n{indent}"));
    Ok(Some(format!("{before},{gap}{entry}{after}")))
}

/// The text without any plugin of ours; `None` when there is none.
pub(super) fn without_ours(text: &str) -> Result<Option<String>, ListError> {
    let (_, plugins) = read(text)?;
    let Some(at) = plugins.iter().position(Plugin::is_ours) else {
        return Ok(None);
    };
    let end_before = at.checked_sub(1).and_then(|before| plugins.get(before));
    let next = plugins.get(at + 1);
    let (from, to) = match (end_before, plugins.get(at), next) {
        (Some(before), Some(own), _) => (before.end, own.end),
        (None, Some(own), Some(next)) => (own.start, next.start),
        (None, Some(own), None) => (own.start, own.end),
        (_, None, _) => return Ok(None),
    };
    let head = text.get(..from).unwrap_or_default();
    let bare = format!("{head}{}", text.get(to..).unwrap_or_default());
    // There may be more of them.
    Ok(Some(without_ours(&bare)?.unwrap_or(bare)))
}

/// An object of JSON; an array of its fields' values is none.
fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, ListError> {
    if !text.trim_start().starts_with('{') {
        return Err(ListError::Unreadable("an object is expected".to_owned()));
    }
    serde_json::from_str(text).map_err(|error| ListError::Unreadable(error.to_string()))
}

fn read(text: &str) -> Result<(List<'_>, Vec<Plugin<'_>>), ListError> {
    let unreadable = |error: serde_json::Error| ListError::Unreadable(error.to_string());
    let list: List<'_> = object(text)?;
    let plugins = list.plugins.ok_or(ListError::NoPlugins)?;
    let plugins: Vec<&RawValue> = serde_json::from_str(plugins.get()).map_err(unreadable)?;
    let plugins = plugins.into_iter().map(|plugin| {
        let typed: Typed = object(plugin.get())?;
        // A part of the very text that was read.
        let start = plugin.get().as_ptr().addr() - text.as_ptr().addr();
        Ok(Plugin {
            text: plugin.get(),
            start,
            end: start + plugin.get().len(),
            kind: typed.kind,
        })
    });
    let plugins: Result<Vec<Plugin<'_>>, ListError> = plugins.collect();
    Ok((list, plugins?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = r#"{"type":"picket-cni","onTimeout":"start"}"#;
    /// As CNIs write them, with fields in their own order and of their own.
    const LISTS: [&str; 4] = [
        "{\n  \"zeta\": [1, {\"plugins\": 5}],\n  \"name\": \"k8s\",\n  \"cniVersion\": \"0.3.1\",\n  \
         \"plugins\": [\n    {\n      \"type\": \"calico\",\n      \"b\": 1,\n      \"a\": \"]}\"\n    },\n    \
         {\"type\": \"portmap\", \"capabilities\": {\"portMappings\": true}}\n  ]\n}\n",
        r#"{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"ptp"}]}"#,
        r#"{"plugins": [ {"type":"ptp"} , {"type":"bandwidth"} ],"cniVersion":"1.1.0","cniVersions":["1.0.0","1.1.0"]}"#,
        "{\"cniVersion\":\"0.4.0\",\"plugins\":[\r\n\t{\"type\":\"ptp\",\"é\":\"ü\"}\r\n]}",
    ];

    #[test]
    fn what_is_added_is_taken_out_again_to_the_byte_and_never_added_twice() {
        for list in LISTS {
            let with = with_ours(list, ENTRY).unwrap().unwrap();
            assert_eq!(with_ours(&with, ENTRY), Ok(None), "{with}");
            assert_eq!(without_ours(&with), Ok(Some(list.to_owned())));
            assert_eq!(without_ours(list), Ok(None));
            let value: serde_json::Value = serde_json::from_str(&with).unwrap();
            let last = value["plugins"].as_array().unwrap().last().unwrap();
            assert_eq!(last["type"], "picket-cni");
        }
    }

    #[test]
    fn one_of_ours_that_is_older_or_not_the_last_is_replaced() {
        let list = r#"{"cniVersion":"1.0.0","plugins":[{"type":"ptp"},{"type":"tuning"}]}"#;
        let wanted = with_ours(list, ENTRY).unwrap().unwrap();
        for plugins in [
            r#"{"type":"ptp"},{"type":"picket-cni"},{"type":"tuning"}"#,
            r#"{"type":"picket-cni"},{"type":"ptp"},{"type":"tuning"}"#,
            r#"{"type":"picket-cni"},{"type":"picket-cni"},{"type":"ptp"},{"type":"tuning"}"#,
            r#"{"type":"ptp"},{"type":"tuning"},{"type":"picket-cni","onTimeout":"fail"}"#,
            r#"{"type":"ptp"},{"type":"tuning"},{"type":"picket-cni"},{"type":"picket-cni"}"#,
        ] {
            let before = format!(r#"{{"cniVersion":"1.0.0","plugins":[{plugins}]}}"#);
            assert_eq!(
                with_ours(&before, ENTRY),
                Ok(Some(wanted.clone())),
                "{before}"
            );
            assert_eq!(without_ours(&before), Ok(Some(list.to_owned())), "{before}");
        }
    }

    #[test]
    fn a_list_that_would_not_work_with_us_is_left_alone_and_why_is_said() {
        let add = |text: &str| with_ours(text, ENTRY).unwrap_err();
        for text in [
            "",
            "{",
            "[]",
            "null",
            r#"{"plugins":5,"cniVersion":"1.0.0"}"#,
            r#"{"plugins":[5],"cniVersion":"1.0.0"}"#,
            r#"{"plugins":[["ptp"]],"cniVersion":"1.0.0"}"#,
            r#"["1.0.0",[],[{"type":"ptp"}]]"#,
            r#"{"plugins":[],"plugins":[{"type":"ptp"}],"cniVersion":"1.0.0"}"#,
        ] {
            assert!(matches!(add(text), ListError::Unreadable(_)), "{text}");
        }
        for text in [
            r#"{"cniVersion":"1.0.0"}"#,
            r#"{"plugins":[],"cniVersion":"1.0.0"}"#,
            r#"{"plugins":[{"type":"picket-cni"}],"cniVersion":"1.0.0"}"#,
        ] {
            assert_eq!(add(text), ListError::NoPlugins, "{text}");
        }
        for text in [
            r#"{"plugins":[{"type":"ptp"}]}"#,
            r#"{"plugins":[{"type":"ptp"}],"cniVersion":"0.2.0"}"#,
            r#"{"plugins":[{"type":"ptp"}],"cniVersion":"1.0.0","cniVersions":["2.0.0"]}"#,
        ] {
            assert!(matches!(add(text), ListError::Version(_)), "{text}");
        }
    }
}
