//! Writes container images as an archive that containerd and others import: the OCI image layout,
//! one layer a platform. The same files give the same bytes: nothing in it knows when it was made.
//!
//! Formats: <https://github.com/opencontainers/image-spec>, v1.1.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What one platform's image holds, and how it starts.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    arch: &'static str,
    entries: BTreeMap<String, Entry>,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    env: Vec<String>,
    user: Option<String>,
}

#[derive(Clone, Debug)]
enum Entry {
    Directory { mode: u32 },
    File { mode: u32, contents: Contents },
    Symlink { target: String },
}

#[derive(Clone, Debug)]
enum Contents {
    Here(Vec<u8>),
    At(PathBuf),
}

/// An archive that was written.
#[derive(Debug)]
pub(crate) struct Written {
    /// Digest of the manifest, or of the index when there are several platforms: what identifies
    /// the image wherever it goes.
    pub(crate) digest: String,
    /// Size of the archive.
    pub(crate) bytes: u64,
}

impl Image {
    /// An empty image for Linux on `arch` as Go calls it: `amd64`, `arm64`.
    pub(crate) fn new(arch: &'static str) -> Self {
        Self {
            arch,
            entries: BTreeMap::new(),
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            env: Vec::new(),
            user: None,
        }
    }

    /// The file `from`, as `path` in the image. It is read when the archive is written.
    pub(crate) fn file(self, path: &str, mode: u32, from: impl Into<PathBuf>) -> Self {
        let contents = Contents::At(from.into());
        self.entry(path, Entry::File { mode, contents })
    }

    /// A file of these bytes.
    pub(crate) fn text(self, path: &str, mode: u32, contents: impl Into<Vec<u8>>) -> Self {
        let contents = Contents::Here(contents.into());
        self.entry(path, Entry::File { mode, contents })
    }

    /// A symbolic link.
    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        let target = target.to_owned();
        self.entry(path, Entry::Symlink { target })
    }

    /// An empty directory; those that files lie in come by themselves, with mode 755.
    pub(crate) fn directory(self, path: &str, mode: u32) -> Self {
        self.entry(path, Entry::Directory { mode })
    }

    /// The program and its first arguments.
    pub(crate) fn entrypoint<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.entrypoint = words.map(str::to_owned).to_vec();
        self
    }

    /// Arguments that a pod's `args` replace.
    pub(crate) fn cmd<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.cmd = words.map(str::to_owned).to_vec();
        self
    }

    /// An environment variable.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    /// Who runs it: a name or a number, with its group after a colon. Root when not said.
    pub(crate) fn user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    fn entry(mut self, path: &str, entry: Entry) -> Self {
        let path = path.trim_matches('/');
        for (at, _) in path.match_indices('/') {
            let parent = path.get(..at).unwrap_or_default().to_owned();
            let directory = Entry::Directory { mode: 0o755 };
            self.entries.entry(parent).or_insert(directory);
        }
        self.entries.insert(path.to_owned(), entry);
        self
    }

    /// The only layer: a tar of all entries, sorted by path, so directories come before what is
    /// in them.
    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            entry
                .append(&mut tar, path)
                .with_context(|| format!("image: writing /{path}"))?;
        }
        tar.into_inner().context("image: ending its layer")
    }

    fn config(&self, diff_id: &str) -> Value {
        let mut config = Map::new();
        let mut say = |key: &str, value: Value| {
            config.insert(key.to_owned(), value);
        };
        say("WorkingDir", json!("/"));
        for (key, words) in [
            ("Entrypoint", &self.entrypoint),
            ("Cmd", &self.cmd),
            ("Env", &self.env),
        ] {
            if !words.is_empty() {
                say(key, json!(words));
            }
        }
        if let Some(user) = &self.user {
            say("User", json!(user));
        }
        json!({
            "architecture": self.arch,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        })
    }
}

impl Entry {
    fn append(&self, tar: &mut Builder<Vec<u8>>, path: &str) -> Result<()> {
        match self {
            Self::Directory { mode } => {
                let mut header = header(EntryType::Directory, *mode, 0);
                tar.append_data(&mut header, format!("{path}/"), io::empty())?;
            }
            Self::File { mode, contents } => {
                let read;
                let bytes = match contents {
                    Contents::Here(bytes) => bytes,
                    Contents::At(from) => {
                        read = fs::read(from)
                            .with_context(|| format!("reading {}", from.display()))?;
                        &read
                    }
                };
                append_file(tar, path, *mode, bytes)?;
            }
            Self::Symlink { target } => {
                let mut header = header(EntryType::Symlink, 0o777, 0);
                tar.append_link(&mut header, path, target)?;
            }
        }
        Ok(())
    }
}

/// Root's, made in 1970.
fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append_file(tar: &mut Builder<impl Write>, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = header(EntryType::Regular, mode, bytes.len());
    Ok(tar.append_data(&mut header, path, bytes)?)
}

/// What others say of a blob.
#[derive(Clone, Debug)]
struct Blob {
    media_type: &'static str,
    digest: String,
    size: usize,
}

impl Blob {
    fn descriptor<const N: usize>(&self, also: [(&str, Value); N]) -> Value {
        let own = [
            ("mediaType", json!(self.media_type)),
            ("digest", json!(self.digest)),
            ("size", json!(self.size)),
        ];
        let fields = own.into_iter().chain(also);
        fields.map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// Contents by digest: each once, in one order.
#[derive(Debug, Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    fn add(&mut self, media_type: &'static str, bytes: Vec<u8>) -> Blob {
        let hex = hex(&bytes);
        let blob = Blob {
            media_type,
            digest: format!("sha256:{hex}"),
            size: bytes.len(),
        };
        self.0.insert(hex, bytes);
        blob
    }

    fn add_json(&mut self, media_type: &'static str, value: &Value) -> Blob {
        self.add(media_type, value.to_string().into_bytes())
    }

    /// An image's layer, configuration and manifest; the last is what stands for it.
    fn add_image(&mut self, image: &Image) -> Result<Blob> {
        let layer = self.add(LAYER, image.layer()?);
        // The layer is not compressed: its digest is also that of its contents.
        let config = self.add_json(CONFIG, &image.config(&layer.digest));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor([]),
            "layers": [layer.descriptor([])],
        });
        Ok(self.add_json(MANIFEST, &manifest))
    }
}

/// Writes `images`, one a platform, as the archive `out`, under `name` (`repository:tag`), which is
/// what importers call it. With several platforms the name is that of an index of them, and whoever
/// runs it takes the platform of the machine.
pub(crate) fn write(out: &Path, name: &str, images: &[Image]) -> Result<Written> {
    let tag = match name.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => tag,
        _ => bail!("image name {name:?}: it has no tag; say repository:tag"),
    };
    let mut blobs = Blobs::default();
    let mut platforms = Vec::new();
    for image in images {
        let platform = json!({"architecture": image.arch, "os": "linux"});
        platforms.push((blobs.add_image(image)?, ("platform", platform)));
    }
    // containerd takes the whole name from the first, others the tag from the second.
    let annotations =
        json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
    let annotations = ("annotations", annotations);
    let (named, index) = match platforms.as_slice() {
        [] => bail!("image {name}: it has no platform"),
        [(only, platform)] => (
            only.clone(),
            index(&[only.descriptor([platform.clone(), annotations])]),
        ),
        several => {
            let platforms: Vec<Value> = several
                .iter()
                .map(|(manifest, platform)| manifest.descriptor([platform.clone()]))
                .collect();
            let all = blobs.add_json(INDEX, &index(&platforms));
            let index = index(&[all.descriptor([annotations])]);
            (all, index)
        }
    };
    archive(out, &index, &blobs)
        .with_context(|| format!("writing the image archive {}", out.display()))?;
    let bytes = fs::metadata(out)
        .with_context(|| format!("reading {}", out.display()))?
        .len();
    Ok(Written {
        digest: named.digest,
        bytes,
    })
}

fn index(manifests: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
}

/// Written beside its place and renamed: nobody ever sees half of it.
fn archive(out: &Path, index: &Value, blobs: &Blobs) -> Result<()> {
    let mut unfinished = out.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    let mut tar = Builder::new(BufWriter::new(File::create(&unfinished)?));
    append_file(
        &mut tar,
        "oci-layout",
        0o644,
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    append_file(&mut tar, "index.json", 0o644, index.to_string().as_bytes())?;
    for (hex, bytes) in &blobs.0 {
        append_file(&mut tar, &format!("blobs/sha256/{hex}"), 0o644, bytes)?;
    }
    tar.into_inner()?.flush()?;
    Ok(fs::rename(&unfinished, out)?)
}

/// A short name of these bytes, and of no others that anybody will meet: directories are named so
/// after all that decides what is in them.
pub(crate) fn key(bytes: &[u8]) -> String {
    let mut hex = hex(bytes);
    hex.truncate(12);
    hex
}

/// SHA-256, as digests write it.
fn hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// A file of this test alone, gone with it.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(test: &str) -> Self {
            let name = format!("picket-oci-{test}-{}.tar", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            drop(fs::remove_file(&self.0));
        }
    }

    fn image(arch: &'static str) -> Image {
        Image::new(arch)
            .file(
                "/usr/bin/it",
                0o755,
                concat!(env!("CARGO_MANIFEST_DIR"), "/src/oci.rs"),
            )
            .text("/etc/passwd", 0o644, "root:x:0:0::/:\n")
            .symlink("/bin/sh", "/usr/bin/it")
            .directory("/tmp", 0o1777)
            .entrypoint(["/usr/bin/it"])
            .cmd(["pause"])
            .env("A", "b")
            .user("65534:65534")
    }

    /// What an archive holds, by path, in its order.
    fn contents(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0, "an hour of its making");
            let path = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (path, bytes)
        });
        entries.collect()
    }

    fn blob(archive: &[(String, Vec<u8>)], descriptor: &Value) -> Vec<u8> {
        let digest = descriptor["digest"].as_str().unwrap();
        let path = format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap());
        let (_, bytes) = archive.iter().find(|(name, _)| *name == path).unwrap();
        assert_eq!(format!("sha256:{}", hex(bytes)), digest);
        assert_eq!(json!(bytes.len()), descriptor["size"]);
        bytes.clone()
    }

    fn parsed(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    fn index_of(archive: &[(String, Vec<u8>)]) -> Value {
        let (_, bytes) = archive
            .iter()
            .find(|(name, _)| name == "index.json")
            .unwrap();
        parsed(bytes)["manifests"][0].clone()
    }

    #[test]
    fn a_layer_holds_its_entries_after_their_directories() {
        let layer = contents(&image("amd64").layer().unwrap());
        let paths: Vec<&str> = layer.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "bin/",
                "bin/sh",
                "etc/",
                "etc/passwd",
                "tmp/",
                "usr/",
                "usr/bin/",
                "usr/bin/it"
            ]
        );
        assert_eq!(layer[3].1, b"root:x:0:0::/:\n");
        assert!(layer[7].1.starts_with(b"//! Writes container images"));
    }

    #[test]
    fn an_archive_is_named_and_says_how_the_image_starts() {
        let scratch = Scratch::new("named");
        let written = write(&scratch.0, "picket:dev", &[image("arm64")]).unwrap();
        let bytes = fs::read(&scratch.0).unwrap();
        assert_eq!(written.bytes, bytes.len() as u64);
        let archive = contents(&bytes);
        let named = index_of(&archive);
        assert_eq!(named["digest"], json!(written.digest));
        assert_eq!(
            named["annotations"]["io.containerd.image.name"],
            "picket:dev"
        );
        assert_eq!(named["platform"]["architecture"], "arm64");
        let manifest = parsed(&blob(&archive, &named));
        let layer = blob(&archive, &manifest["layers"][0]);
        assert_eq!(layer, image("arm64").layer().unwrap());
        assert_eq!(
            parsed(&blob(&archive, &manifest["config"])),
            json!({
                "architecture": "arm64",
                "os": "linux",
                "config": {
                    "Entrypoint": ["/usr/bin/it"],
                    "Cmd": ["pause"],
                    "Env": ["A=b"],
                    "User": "65534:65534",
                    "WorkingDir": "/",
                },
                "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]},
            })
        );
    }

    #[test]
    fn several_platforms_are_one_name() {
        let scratch = Scratch::new("platforms");
        let images = [image("amd64"), image("arm64")];
        write(&scratch.0, "registry.example:5000/picket:1", &images).unwrap();
        let archive = contents(&fs::read(&scratch.0).unwrap());
        let named = index_of(&archive);
        assert_eq!(named["mediaType"], INDEX);
        let platforms = parsed(&blob(&archive, &named))["manifests"].clone();
        for (at, arch) in ["amd64", "arm64"].into_iter().enumerate() {
            assert_eq!(platforms[at]["platform"]["architecture"], arch);
            let manifest = parsed(&blob(&archive, &platforms[at]));
            let config = parsed(&blob(&archive, &manifest["config"]));
            assert_eq!(config["architecture"], arch);
        }
    }

    #[test]
    fn the_same_files_give_the_same_bytes_in_whatever_order_they_come() {
        let (one, other) = (Scratch::new("one"), Scratch::new("other"));
        let directory = |image: Image| image.directory("/var/run", 0o755);
        let file = |image: Image| image.text("/var/a", 0o644, "a");
        write(&one.0, "a:b", &[file(directory(Image::new("amd64")))]).unwrap();
        write(&other.0, "a:b", &[directory(file(Image::new("amd64")))]).unwrap();
        assert_eq!(fs::read(&one.0).unwrap(), fs::read(&other.0).unwrap());
    }

    #[test]
    fn a_name_without_a_tag_is_refused() {
        let scratch = Scratch::new("untagged");
        for name in ["picket", "registry.example:5000/picket"] {
            let error = write(&scratch.0, name, &[image("amd64")]).unwrap_err();
            assert!(error.to_string().contains("repository:tag"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let scratch = Scratch::new("missing");
        let image = Image::new("amd64").file("/a", 0o755, "no/such/file");
        let error = write(&scratch.0, "a:b", &[image]).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains("/a") && error.contains("no/such/file"),
            "{error}"
        );
        assert!(!scratch.0.exists());
    }
}
