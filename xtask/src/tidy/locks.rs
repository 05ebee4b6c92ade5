//! The lock file of the fuzzing programs, which are a workspace of their own, follows the
//! workspace's: what is fuzzed is built of what is shipped, and `cargo xtask fuzz` still builds.

use std::collections::{BTreeMap, BTreeSet};

use super::File;

/// The workspace's.
const OURS: &str = "Cargo.lock";
/// The one that follows.
const THEIRS: &str = "tests/fuzz/libfuzzer/Cargo.lock";
/// Takes the versions over and drops what is not needed.
const REMEDY: &str = "cp Cargo.lock tests/fuzz/libfuzzer/ && \
    cargo update --workspace --manifest-path tests/fuzz/libfuzzer/Cargo.toml";

/// A package of a lock file.
#[derive(Debug, Default, Eq, PartialEq)]
struct Package {
    name: String,
    version: String,
    /// It comes from a registry; else it is one of the tree.
    is_foreign: bool,
    dependencies: BTreeSet<String>,
}

/// What a manifest asks for: by name, whether it has to be there.
type Wanted = BTreeMap<String, bool>;

pub(super) fn follow(files: &[File]) -> Vec<String> {
    let text = |name: &str| files.iter().find(|file| file.name == name);
    let (Some(ours), Some(theirs)) = (text(OURS), text(THEIRS)) else {
        return vec![format!("{OURS} and {THEIRS}: one of them is missing")];
    };
    let manifests: BTreeMap<String, Wanted> = files
        .iter()
        .filter(|file| file.name.ends_with("Cargo.toml"))
        .filter_map(|file| manifest(&file.text))
        .collect();
    let mut faults = other_versions(&packages(&ours.text), &packages(&theirs.text));
    faults.extend(other_dependencies(&manifests, &packages(&theirs.text)));
    if !faults.is_empty() {
        faults.push(format!("mended by: {REMEDY}"));
    }
    faults
}

/// Packages that the workspace has in another version.
fn other_versions(ours: &[Package], theirs: &[Package]) -> Vec<String> {
    let mut faults = Vec::new();
    for package in theirs {
        let versions: Vec<&str> = ours
            .iter()
            .filter(|own| own.name == package.name)
            .map(|own| own.version.as_str())
            .collect();
        if !versions.is_empty() && !versions.contains(&package.version.as_str()) {
            let Package { name, version, .. } = package;
            let versions = versions.join(" and ");
            faults.push(format!(
                "{THEIRS}: {name} {version}, which is {versions} in {OURS}"
            ));
        }
    }
    faults
}

/// Packages of the tree whose manifest asks for something else by now.
fn other_dependencies(manifests: &BTreeMap<String, Wanted>, theirs: &[Package]) -> Vec<String> {
    let mut faults = Vec::new();
    for package in theirs.iter().filter(|package| !package.is_foreign) {
        let Package {
            name, dependencies, ..
        } = package;
        let Some(wanted) = manifests.get(name) else {
            faults.push(format!("{THEIRS}: no package of the tree is called {name}"));
            continue;
        };
        let missing = wanted
            .iter()
            .filter(|(dependency, is_needed)| **is_needed && !dependencies.contains(*dependency))
            .map(|(dependency, _)| format!("{THEIRS}: {name} depends on {dependency} now"));
        let gone = dependencies
            .iter()
            .filter(|dependency| !wanted.contains_key(*dependency))
            .map(|dependency| format!("{THEIRS}: {name} does not depend on {dependency} now"));
        faults.extend(missing.chain(gone));
    }
    faults
}

/// The packages of a lock file.
fn packages(lock: &str) -> Vec<Package> {
    lock.split("[[package]]\n").skip(1).map(package).collect()
}

fn package(lines: &str) -> Package {
    let mut package = Package::default();
    for line in lines.lines() {
        if let Some((field, value)) = line.split_once(" = ") {
            let value = value.trim_matches('"').to_owned();
            match field {
                "name" => package.name = value,
                "version" => package.version = value,
                "source" => package.is_foreign = true,
                _ => {}
            }
        } else if let Some(dependency) = line.strip_prefix(" \"") {
            // Followed by its version where there are several.
            let name = dependency.split(['"', ' ']).next().unwrap_or_default();
            package.dependencies.insert(name.to_owned());
        }
    }
    package
}

/// The name of a manifest's package, and what it is built of; tests' needs are not fuzzing's.
fn manifest(text: &str) -> Option<(String, Wanted)> {
    let mut section = "";
    let mut name = None;
    let mut wanted = Wanted::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line;
            continue;
        }
        let Some((field, value)) = line.split_once(" = ") else {
            continue;
        };
        if section == "[package]" && field == "name" {
            name = Some(value.trim_matches('"').to_owned());
        }
        let is_built_of = section.ends_with("dependencies]") && !section.contains("dev-");
        if is_built_of && !field.starts_with([' ', '#']) {
            let dependency = field.split('.').next().unwrap_or_default();
            let is_needed = !value.contains("optional = true") && !section.starts_with("[target");
            wanted.insert(dependency.to_owned(), is_needed);
        }
    }
    Some((name?, wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUR_LOCK: &str = "version = 4\n\n[[package]]\nname = \"one\"\nversion = \"0.1.0\"\n\
        dependencies = [\n \"two 1.2.0\",\n \"tested\",\n]\n\n\
        [[package]]\nname = \"two\"\nversion = \"1.2.0\"\nsource = \"registry\"\n\n\
        [[package]]\nname = \"two\"\nversion = \"2.0.0\"\nsource = \"registry\"\n";
    const THEIR_LOCK: &str = "version = 4\n\n[[package]]\nname = \"one\"\nversion = \"0.1.0\"\n\
        dependencies = [\n \"two\",\n]\n\n\
        [[package]]\nname = \"two\"\nversion = \"1.2.0\"\nsource = \"registry\"\n\n\
        [[package]]\nname = \"fuzzer\"\nversion = \"7.0.0\"\nsource = \"registry\"\n";
    const MANIFEST: &str = "[package]\nname = \"one\"\n\n[dependencies]\n\
        two = { workspace = true }\nseldom = { workspace = true, optional = true }\n\n\
        [dev-dependencies]\ntested = \"1\"\n";

    /// What is wrong with three files.
    fn faults(ours: &str, theirs: &str, manifest: &str) -> Vec<String> {
        let file = |name: &str, text: &str| File {
            name: name.to_owned(),
            text: text.to_owned(),
        };
        follow(&[
            file(OURS, ours),
            file(THEIRS, theirs),
            file("one/Cargo.toml", manifest),
        ])
    }

    #[track_caller]
    fn says(faults: &[String], word: &str) {
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].contains(word), "{faults:?}");
        assert!(faults[1].contains("cargo update"), "{faults:?}");
    }

    #[test]
    fn a_lock_file_that_follows_has_no_fault() {
        assert_eq!(faults(OUR_LOCK, THEIR_LOCK, MANIFEST), Vec::<String>::new());
    }

    #[test]
    fn a_version_that_the_workspace_has_not_is_a_fault() {
        let other = THEIR_LOCK.replace("1.2.0", "1.1.9");
        says(&faults(OUR_LOCK, &other, MANIFEST), "two 1.1.9");
        // One of several is as good as another.
        let other = THEIR_LOCK.replace("1.2.0", "2.0.0");
        assert!(faults(OUR_LOCK, &other, MANIFEST).is_empty());
    }

    #[test]
    fn a_dependency_that_came_or_went_is_a_fault() {
        let more = MANIFEST.replace("two = ", "three = { workspace = true }\ntwo = ");
        says(&faults(OUR_LOCK, THEIR_LOCK, &more), "depends on three now");
        let optional = MANIFEST.replace("two = ", "three = { optional = true }\ntwo = ");
        assert!(faults(OUR_LOCK, THEIR_LOCK, &optional).is_empty());
        let fewer = MANIFEST.replace("two = { workspace = true }\n", "");
        says(
            &faults(OUR_LOCK, THEIR_LOCK, &fewer),
            "does not depend on two now",
        );
        let renamed = MANIFEST.replace("\"one\"", "\"uno\"");
        says(&faults(OUR_LOCK, THEIR_LOCK, &renamed), "called one");
    }

    #[test]
    fn a_lock_file_that_is_missing_is_a_fault() {
        assert_eq!(follow(&[]).len(), 1);
    }
}
