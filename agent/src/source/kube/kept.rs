//! What was last known of the API's objects, on disk: for an agent that starts while the API is
//! silent.
//!
//! A file of JSON lines. The first says what the file is good for; then each object as it was told,
//! or that it has gone; a line `end` after each batch. What comes after the last `end` was not told
//! to anybody and does not count. A batch is written before anyone acts on it, so the file is never
//! older than what is in force; and it is of no use after the machine has booted, when nothing is in
//! force. For both reasons nothing is ever flushed to the disk itself.
//!
//! Objects that changed often leave lines behind that mean nothing any more: when they are most of
//! the file, it is written anew without them.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{
    self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _,
};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use agent_policy::model::ObjectName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::super::object::Kind;
use super::kinds::{Item, Reader, WATCHED, Watched, plural};
use super::table::Told;

/// The file in the state directory.
const FILE: &str = "objects.jsonl";
/// What a file that is being written ends in.
const NEW: &str = "new";
/// What the lines look like; a file of another number is not read.
const LAYOUT: u32 = 1;
/// Lines that mean nothing any more are left alone up to this.
const SLACK: u64 = 4 << 20;
/// Told by the kernel: another one after each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeptError {
    /// The file or its directory cannot be used.
    #[error("{doing} {path}: {error}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    /// It is not what was written.
    #[error("{path} at byte {at}: {problem}")]
    Malformed {
        path: PathBuf,
        /// Where the line begins.
        at: u64,
        problem: String,
    },
    /// What is known cannot be written.
    #[error("writing {path}: {error}")]
    Json {
        path: PathBuf,
        error: serde_json::Error,
    },
}

/// The file of one API.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    /// The API's address: what another one said is not this one's.
    server: String,
    /// Open once a whole state was written in this life.
    file: Option<BufWriter<File>>,
    bytes: u64,
    /// At this size the file is written anew.
    rewrite_at: u64,
}

/// What the file says.
#[derive(Debug)]
pub(super) struct Recalled {
    /// Until then the API had said so.
    pub(super) until: Timestamp,
    /// What all objects of a kind were, and the version at which they were that.
    pub(super) kinds: Vec<(Kind, Vec<Item>, u64)>,
}

/// The first line.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Header {
    layout: u32,
    boot: String,
    server: String,
}

/// Any other.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
enum Line<'a> {
    /// What an object is; `null` when it is gone.
    Object {
        /// As people call it: `pods`.
        #[serde(borrow)]
        kind: Cow<'a, str>,
        #[serde(borrow)]
        namespace: Cow<'a, str>,
        #[serde(borrow)]
        name: Cow<'a, str>,
        #[serde(borrow)]
        object: Option<&'a RawValue>,
    },
    /// All of it was so then; versions by kind.
    End(End<'a>),
}

#[derive(Debug, Deserialize, Serialize)]
struct End<'a> {
    /// RFC 3339.
    until: String,
    #[serde(borrow)]
    versions: BTreeMap<Cow<'a, str>, u64>,
}

/// Where in the file the lines are that count.
#[derive(Debug)]
struct Survey {
    objects: HashMap<(Kind, ObjectName), Range<u64>>,
    until: Timestamp,
    versions: BTreeMap<Kind, u64>,
}

/// Removes the file, and its directory when nothing else is in it; false when there was none.
///
/// # Errors
/// It is there and cannot be removed.
pub fn forget(directory: &Path) -> io::Result<bool> {
    let path = directory.join(FILE);
    let mut was_there = false;
    for path in [&path.with_extension(NEW), &path] {
        match fs::remove_file(path) {
            Ok(()) => was_there = true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    // Somebody else's things may be there, or nothing at all.
    drop(fs::remove_dir(directory));
    Ok(was_there)
}

impl Kept {
    /// Touches nothing yet.
    pub(super) fn new(directory: &Path, server: &str) -> Self {
        Self {
            path: directory.join(FILE),
            server: server.to_owned(),
            file: None,
            bytes: 0,
            rewrite_at: 0,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The versions at which the file was last written: what is in force is not newer, and must not
    /// be replaced by what is older. Nothing where there is no file that can be read.
    pub(super) fn versions(&self) -> BTreeMap<Kind, u64> {
        let survey = self
            .open()
            .and_then(|file| file.map(|mut file| self.survey(&mut file)).transpose());
        match survey {
            Ok(survey) => {
                let versions = survey.flatten().map(|survey| survey.versions);
                versions.unwrap_or_default()
            }
            Err(error) => {
                tracing::warn!(%error, "what is kept on disk cannot be used");
                BTreeMap::new()
            }
        }
    }

    /// What was known when the file was last written: nothing if there is no file, or none of this
    /// boot and API.
    pub(super) fn recall(&self) -> Result<Option<Recalled>, KeptError> {
        let Some(mut file) = self.open()? else {
            return Ok(None);
        };
        let Some(survey) = self.survey(&mut file)? else {
            return Ok(None);
        };
        let mut kinds: Vec<(Kind, Vec<Item>, u64)> = Vec::new();
        for watched in &WATCHED {
            let version = survey.versions.get(&watched.kind).copied();
            let version = version.unwrap_or_default();
            let mut reader = Reader::new(watched);
            let mut items = Vec::new();
            for place in survey.places(|(kind, _)| *kind == watched.kind) {
                let line = self.line_at(&mut file, &place)?;
                let read = serde_json::from_slice(&line)
                    .map_err(|error| self.malformed(place.start, &error))?;
                let Line::Object {
                    object: Some(object),
                    ..
                } = read
                else {
                    return Err(self.malformed(place.start, &"changed while it was read"));
                };
                let item = reader.read_listed(object.get().as_bytes());
                items.push(item.map_err(|error| self.malformed(place.start, &error))?);
            }
            kinds.push((watched.kind, items, version));
        }
        Ok(Some(Recalled {
            until: survey.until,
            kinds,
        }))
    }

    /// Writes what is told: a whole state the first time, then what changed since. After an error
    /// there is neither a file nor a `Kept`: it would be older than what is in force.
    pub(super) fn keep(
        mut self,
        told: &[Told],
        versions: &BTreeMap<Kind, u64>,
        until: Timestamp,
    ) -> Result<Self, KeptError> {
        match self.try_keep(told, versions, until) {
            Ok(()) => Ok(self),
            Err(error) => {
                // Where it cannot even be removed, that is for the same reason.
                drop(fs::remove_file(&self.path));
                Err(error)
            }
        }
    }

    fn try_keep(
        &mut self,
        told: &[Told],
        versions: &BTreeMap<Kind, u64>,
        until: Timestamp,
    ) -> Result<(), KeptError> {
        let Some(mut file) = self.file.take() else {
            let mut new = self.create()?;
            let written = self.append(&mut new, told, versions, until)?;
            return self.put_in_place(new, written);
        };
        if !told.is_empty() {
            self.bytes += self.append(&mut file, told, versions, until)?;
        }
        self.file = Some(file);
        if self.bytes >= self.rewrite_at {
            self.rewrite()?;
        }
        Ok(())
    }

    /// The lines that count, and no others.
    fn rewrite(&mut self) -> Result<(), KeptError> {
        let Some(mut old) = self.open()? else {
            return Err(self.malformed(0, &"removed by somebody"));
        };
        let Some(survey) = self.survey(&mut old)? else {
            return Err(self.malformed(0, &"replaced by somebody"));
        };
        let mut new = self.create()?;
        let mut written = 0;
        for place in survey.places(|_| true) {
            let line = self.line_at(&mut old, &place)?;
            new.write_all(&line).map_err(self.failed("writing"))?;
            written += line.len() as u64;
        }
        written += self.append(&mut new, &[], &survey.versions, survey.until)?;
        self.put_in_place(new, written)
    }

    /// A new file beside the old one, with its first line.
    fn create(&self) -> Result<BufWriter<File>, KeptError> {
        if let Some(directory) = self.path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(self.failed("making the directory of"))?;
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.new_path())
            .map_err(self.failed("making"))?;
        let mut file = BufWriter::new(file);
        let header = Header {
            layout: LAYOUT,
            boot: boot()?,
            server: self.server.clone(),
        };
        self.write(&mut file, &header)?;
        Ok(file)
    }

    fn new_path(&self) -> PathBuf {
        self.path.with_extension(NEW)
    }

    fn put_in_place(&mut self, file: BufWriter<File>, bytes: u64) -> Result<(), KeptError> {
        fs::rename(self.new_path(), &self.path).map_err(self.failed("making"))?;
        self.file = Some(file);
        self.bytes = bytes;
        self.rewrite_at = bytes.saturating_mul(2).saturating_add(SLACK);
        Ok(())
    }

    /// Writes lines and the `end` after them; returns how many bytes that was.
    fn append(
        &self,
        file: &mut BufWriter<File>,
        told: &[Told],
        versions: &BTreeMap<Kind, u64>,
        until: Timestamp,
    ) -> Result<u64, KeptError> {
        let mut written = 0;
        for Told {
            kind,
            name,
            document,
        } in told
        {
            let object = document.as_deref().map(serde_json::from_slice);
            let object = object.transpose().map_err(|error| self.unwritten(error))?;
            let line = Line::Object {
                kind: Cow::Borrowed(plural(*kind)),
                namespace: Cow::Borrowed(&name.namespace),
                name: Cow::Borrowed(&name.name),
                object,
            };
            written += self.write(file, &line)?;
        }
        let versions = versions.iter();
        let versions = versions
            .map(|(kind, version)| (Cow::Borrowed(plural(*kind)), *version))
            .collect();
        let until = until.to_string();
        written += self.write(file, &Line::End(End { until, versions }))?;
        file.flush().map_err(self.failed("writing"))?;
        Ok(written)
    }

    fn write(&self, file: &mut BufWriter<File>, line: &impl Serialize) -> Result<u64, KeptError> {
        let mut bytes = serde_json::to_vec(line).map_err(|error| self.unwritten(error))?;
        bytes.push(b'\n');
        file.write_all(&bytes).map_err(self.failed("writing"))?;
        Ok(bytes.len() as u64)
    }

    fn open(&self) -> Result<Option<BufReader<File>>, KeptError> {
        match File::open(&self.path) {
            Ok(file) => Ok(Some(BufReader::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("opening")(error)),
        }
    }

    /// Reads the file once; nothing when it is of another boot, API or layout, or ends before its
    /// first state does.
    fn survey(&self, file: &mut BufReader<File>) -> Result<Option<Survey>, KeptError> {
        let mut survey: Option<Survey> = None;
        let mut objects = HashMap::new();
        let mut pending = Vec::new();
        let mut line = Vec::new();
        let mut at = 0;
        loop {
            line.clear();
            let read = file
                .read_until(b'\n', &mut line)
                .map_err(self.failed("reading"))?;
            let begins = at;
            at += read as u64;
            if line.last() != Some(&b'\n') {
                // The end, or a line that nobody lived to finish.
                break;
            }
            let malformed = |error: serde_json::Error| self.malformed(begins, &error);
            if begins == 0 {
                let header: Header = serde_json::from_slice(&line).map_err(malformed)?;
                let is_ours = header.layout == LAYOUT
                    && header.server == self.server
                    && header.boot == boot()?;
                if !is_ours {
                    tracing::debug!(?header, "what is kept is another boot's or API's");
                    return Ok(None);
                }
                continue;
            }
            match serde_json::from_slice(&line).map_err(malformed)? {
                Line::Object {
                    kind,
                    namespace,
                    name,
                    object,
                } => {
                    let watched = self.watched(begins, &kind)?;
                    let name = ObjectName::new(&*namespace, &*name);
                    let place = object.is_some().then_some(begins..at);
                    pending.push(((watched.kind, name), place));
                }
                Line::End(End { until, versions }) => {
                    for (key, place) in pending.drain(..) {
                        match place {
                            Some(place) => objects.insert(key, place),
                            None => objects.remove(&key),
                        };
                    }
                    let mut known = BTreeMap::new();
                    for (kind, version) in versions {
                        known.insert(self.watched(begins, &kind)?.kind, version);
                    }
                    if known.len() != WATCHED.len() {
                        let problem = "it is not of all kinds that are watched";
                        return Err(self.malformed(begins, &problem));
                    }
                    survey = Some(Survey {
                        objects: HashMap::new(),
                        until: until.parse().map_err(|error| {
                            let error: jiff::Error = error;
                            self.malformed(begins, &error)
                        })?,
                        versions: known,
                    });
                }
            }
        }
        Ok(survey.map(|survey| Survey { objects, ..survey }))
    }

    fn watched(&self, at: u64, plural: &str) -> Result<&'static Watched, KeptError> {
        Watched::by_plural(plural)
            .ok_or_else(|| self.malformed(at, &format!("{plural:?} are not watched")))
    }

    fn line_at(&self, file: &mut BufReader<File>, at: &Range<u64>) -> Result<Vec<u8>, KeptError> {
        let mut read = || {
            file.seek(SeekFrom::Start(at.start))?;
            let mut line = Vec::new();
            file.by_ref()
                .take(at.end - at.start)
                .read_to_end(&mut line)?;
            Ok(line)
        };
        read().map_err(self.failed("reading"))
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(io::Error) -> KeptError + use<> {
        let path = self.path.clone();
        move |error| KeptError::Io { doing, path, error }
    }

    fn malformed(&self, at: u64, problem: &dyn ToString) -> KeptError {
        KeptError::Malformed {
            path: self.path.clone(),
            at,
            problem: problem.to_string(),
        }
    }

    fn unwritten(&self, error: serde_json::Error) -> KeptError {
        KeptError::Json {
            path: self.path.clone(),
            error,
        }
    }
}

fn boot() -> Result<String, KeptError> {
    fs::read_to_string(BOOT_ID)
        .map(|id| id.trim().to_owned())
        .map_err(|error| KeptError::Io {
            doing: "reading",
            path: PathBuf::from(BOOT_ID),
            error,
        })
}

impl Survey {
    /// Places of objects in the order of the file, in which it is read fastest.
    fn places(&self, of: impl Fn(&(Kind, ObjectName)) -> bool) -> Vec<Range<u64>> {
        let places = self.objects.iter().filter(|(key, _)| of(key));
        let mut places: Vec<_> = places.map(|(_, place)| place.clone()).collect();
        places.sort_by_key(|place| place.start);
        places
    }
}

#[cfg(test)]
mod tests;
