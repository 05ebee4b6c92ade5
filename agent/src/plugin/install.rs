//! Puts the plugin into a node's network and takes it out: its program first, then the list that
//! names it, each by one rename; the other way round when it goes. At no moment does a list name a
//! program that is not there, so pods start wherever this is broken off.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use super::conflist::{ListError, plugins, with_ours, without_ours};
use super::{NAME, OnTimeout};
use crate::signature::Signature;

/// Where container runtimes look for networks when nothing else is said.
pub const DEFAULT_CONF_DIR: &str = "/etc/cni/net.d";
/// Where they look for plugins.
pub const DEFAULT_BIN_DIR: &str = "/opt/cni/bin";
/// No list is larger.
const MAX_LIST_BYTES: u64 = 1 << 20;
/// Files that runtimes take for networks (containerd/go-cni, cri-o/ocicni).
const NETWORKS: [&str; 3] = ["conf", "conflist", "json"];
/// Type and permissions of the program's file.
const PROGRAM_MODE: u32 = libc::S_IFREG | 0o755;
/// Ends the name of a file that is being written: no runtime takes it for a network.
const UNFINISHED: &str = "picket-new";

/// A node's directories of networks and plugins.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Places {
    /// Of networks' configurations.
    pub conf: PathBuf,
    /// Of plugins' programs.
    pub bin: PathBuf,
}

/// What the entry in the list says.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The agent's socket.
    pub socket: PathBuf,
    /// How long a pod's start is held up.
    pub wait_millis: u64,
    /// What becomes of it then.
    pub on_timeout: OnTimeout,
}

/// What was done to a node's network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Installed {
    /// The list that names the plugin.
    pub list: PathBuf,
    /// It did not before, or otherwise.
    pub is_changed: bool,
}

/// Why the plugin is not in the node's network, or not out of it.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file or directory cannot be read or written.
    #[error("{}: {error}; the agent needs it mounted and writable", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// No network is configured yet.
    #[error("{}: no network is configured there yet; it is looked at again when there is", .0.display())]
    NoNetwork(PathBuf),
    /// The runtime uses a configuration of one plugin.
    #[error(
        "{}: the configuration of a single plugin, behind which none can stand; have the CNI write \
         a .conflist", .0.display()
    )]
    Single(PathBuf),
    /// It is no file of its own.
    #[error("{}: a link, or no regular file; put the file itself there", .0.display())]
    NoFile(PathBuf),
    /// The list cannot take the plugin.
    #[error("{}: {error}; it is left as it is", path.display())]
    List {
        /// Which.
        path: PathBuf,
        /// Why.
        error: ListFault,
    },
    /// Somebody else has written the list at the same moment.
    #[error("{}: written by somebody else at the same moment; tried again", .0.display())]
    Collision(PathBuf),
}

/// Why a list is left as it is.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(transparent)]
pub struct ListFault(#[from] ListError);

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |error| InstallError::Io { path, error }
}

/// Puts the plugin into a node's network.
#[derive(Clone, Debug)]
pub struct Installer {
    places: Places,
    entry: Entry,
    /// The program that was found to be this one, so that it is not read each time.
    program: Option<Signature>,
}

impl Installer {
    /// One that has done nothing yet.
    pub const fn new(places: Places, entry: Entry) -> Self {
        Self {
            places,
            entry,
            program: None,
        }
    }

    /// Where the networks are.
    pub fn networks(&self) -> &Path {
        &self.places.conf
    }

    /// Puts the plugin's program and then its entry in place, or leaves them where they are right.
    ///
    /// # Errors
    /// What is in the way; what was done before stays, and pods start.
    pub fn install(&mut self) -> Result<Installed, InstallError> {
        self.put_program()?;
        let path = network(&self.places.conf)?;
        if path
            .extension()
            .is_none_or(|extension| extension != "conflist")
        {
            return Err(InstallError::Single(path));
        }
        let entry = text_of(&self.entry).map_err(io_at(&path))?;
        let is_changed = edit(&path, |text| with_ours(text, &entry))?;
        Ok(Installed {
            list: path,
            is_changed,
        })
    }

    /// Copies this very program to where runtimes look for plugins.
    fn put_program(&mut self) -> Result<(), InstallError> {
        let own = Path::new("/proc/self/exe");
        let bin = &self.places.bin;
        let program = bin.join(NAME);
        let found = fs::symlink_metadata(&program).ok();
        let now = found.filter(|found| found.mode() == PROGRAM_MODE);
        let now = now.as_ref().map(Signature::of);
        if now.is_some() && now == self.program {
            return Ok(());
        }
        if now.is_none() || !is_same(own, &program).unwrap_or(false) {
            fs::create_dir_all(bin).map_err(io_at(bin))?;
            let new = unfinished(&program);
            let mut from = File::open(own).map_err(io_at(own))?;
            write(&new, &mut from, 0o755, None).map_err(io_at(&new))?;
            finish(&new, &program).map_err(io_at(&program))?;
            tracing::info!(program = %program.display(), "CNI plugin put in place");
        }
        let put = fs::symlink_metadata(&program).map_err(io_at(&program))?;
        self.program = Some(Signature::of(&put));
        Ok(())
    }
}

/// The entry with its type, which comes first.
fn text_of(entry: &Entry) -> io::Result<String> {
    let fields = serde_json::to_string(entry)?;
    let fields = fields.strip_prefix('{').unwrap_or_default();
    Ok(format!("{{\"type\":\"{NAME}\",{fields}"))
}

/// What was taken out of a node's network.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Unplugged {
    /// One line a thing.
    pub removed: Vec<String>,
    /// Why the program is still there, if it is.
    pub kept: Option<String>,
}

/// Takes the plugin out of every list, then its program away. While `results` of the runtime name
/// the plugin, the program stays: some runtimes end a pod by the list that it was started with, and
/// a program that does nothing there is better than none.
///
/// # Errors
/// What is in the way; nothing that comes later is done then.
pub fn uninstall(places: &Places, results: &Path) -> Result<Unplugged, InstallError> {
    let mut unplugged = Unplugged::default();
    for path in networks(&places.conf)? {
        let is_list = path
            .extension()
            .is_some_and(|extension| extension == "conflist");
        // What cannot be read, no runtime reads.
        let is_ours = is_list && read_text(&path).is_ok_and(|text| text.contains(NAME));
        if is_ours && edit(&path, without_ours)? {
            let line = format!("{NAME} from {}", path.display());
            unplugged.removed.push(line);
        }
    }
    let program = places.bin.join(NAME);
    let pods = results_with_ours(results);
    if pods > 0 && program.exists() {
        unplugged.kept = Some(format!(
            "{} stays: {pods} pods were started with it, and the runtime may call it when they end; \
             uninstall again, or remove it, when they are gone",
            program.display()
        ));
        return Ok(unplugged);
    }
    match fs::remove_file(&program) {
        Ok(()) => unplugged.removed.push(program.display().to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_at(&program)(error)),
    }
    Ok(unplugged)
}

/// What the runtime's library keeps of each pod's network: also the list, in base64.
#[derive(serde::Deserialize)]
struct Cached {
    #[serde(default)]
    config: String,
}

/// How many pods were started with a list that names the plugin.
fn results_with_ours(results: &Path) -> usize {
    let entries = fs::read_dir(results).into_iter().flatten();
    let files = entries.filter_map(|entry| read_text(&entry.ok()?.path()).ok());
    let named = files.filter(|text| {
        let cached = serde_json::from_str::<Cached>(text).ok();
        let list = cached.map(|cached| decoded(&cached.config));
        list.is_some_and(|list| String::from_utf8_lossy(&list).contains(NAME))
    });
    named.count()
}

/// Bytes that are written in base64 (RFC 4648, section 4), as far as they are.
fn decoded(text: &str) -> Vec<u8> {
    let values = text.bytes().map_while(|byte| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    });
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0_u32);
    for value in values {
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            let [.., byte] = (bits >> held).to_be_bytes();
            bytes.push(byte);
        }
    }
    bytes
}

/// Compares two files without holding either in memory.
fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (BufReader::new(one), BufReader::new(other));
    loop {
        let (a, b) = (one.fill_buf()?, other.fill_buf()?);
        let both = a.len().min(b.len());
        if a.get(..both) != b.get(..both) {
            return Ok(false);
        }
        if both == 0 {
            return Ok(a.is_empty() && b.is_empty());
        }
        one.consume(both);
        other.consume(both);
    }
}

/// What runtimes take for networks, in their order.
fn networks(conf: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let entries = match fs::read_dir(conf) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io_at(conf))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(io_at(conf))?.path();
        let extension = path.extension().unwrap_or_default();
        if NETWORKS.iter().any(|each| extension == *each) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The one that the runtime uses: the first by name.
fn network(conf: &Path) -> Result<PathBuf, InstallError> {
    let first = networks(conf)?.into_iter().next();
    first.ok_or_else(|| InstallError::NoNetwork(conf.to_owned()))
}

/// A network as it is configured.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeNetwork {
    /// The file that says so.
    pub path: PathBuf,
    /// Its name.
    pub name: String,
    /// Types of its plugins, in their order.
    pub plugins: Vec<String>,
}

impl NodeNetwork {
    fn read(path: &Path, text: &str) -> Result<Self, InstallError> {
        let (name, plugins) = plugins(text).map_err(|error| InstallError::List {
            path: path.to_owned(),
            error: error.into(),
        })?;
        Ok(Self {
            path: path.to_owned(),
            name,
            plugins,
        })
    }
}

/// The network that the runtime uses.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn network_in_force(conf: &Path) -> Result<NodeNetwork, InstallError> {
    let path = network(conf)?;
    // Runtimes follow links; it is the installer that would replace one by a file.
    let file = fs::canonicalize(&path).map_err(io_at(&path))?;
    NodeNetwork::read(&path, &read_text(&file)?)
}

/// The network that the latest pod got, by what the runtime's library keeps of it; loopback is no
/// network of a pod's.
pub fn network_of_results(results: &Path) -> Option<NodeNetwork> {
    let files = fs::read_dir(results).ok()?;
    let mut files: Vec<_> = files
        .filter_map(|file| {
            let file = file.ok()?;
            Some((file.metadata().ok()?.modified().ok()?, file.path()))
        })
        .collect();
    files.sort();
    files.iter().rev().find_map(|(_, path)| {
        let cached: Cached = serde_json::from_str(&read_text(path).ok()?).ok()?;
        let list = String::from_utf8(decoded(&cached.config)).ok()?;
        let network = NodeNetwork::read(path, &list).ok()?;
        let is_loopback = network.plugins.iter().all(|plugin| plugin == "loopback");
        (!is_loopback).then_some(network)
    })
}

fn read_text(path: &Path) -> Result<String, InstallError> {
    let found = fs::symlink_metadata(path).map_err(io_at(path))?;
    if !found.is_file() {
        return Err(InstallError::NoFile(path.to_owned()));
    }
    let mut text = String::new();
    let file = File::open(path).map_err(io_at(path))?;
    let read = file.take(MAX_LIST_BYTES + 1).read_to_string(&mut text);
    read.map_err(io_at(path))?;
    if text.len() as u64 > MAX_LIST_BYTES {
        return Err(io_at(path)(io::Error::other("larger than 1 MiB")));
    }
    Ok(text)
}

/// Changes a list, if it has to be; true when it was.
fn edit(
    path: &Path,
    change: impl FnOnce(&str) -> Result<Option<String>, ListError>,
) -> Result<bool, InstallError> {
    let text = read_text(path)?;
    let changed = change(&text).map_err(|error| InstallError::List {
        path: path.to_owned(),
        error: error.into(),
    })?;
    let Some(changed) = changed else {
        return Ok(false);
    };
    let found = fs::metadata(path).map_err(io_at(path))?;
    let owner = Some((found.uid(), found.gid()));
    let new = unfinished(path);
    write(&new, &mut changed.as_bytes(), found.mode() & 0o7777, owner).map_err(io_at(&new))?;
    // Its own writer may have come in between.
    if read_text(path)? != text {
        fs::remove_file(&new).map_err(io_at(&new))?;
        return Err(InstallError::Collision(path.to_owned()));
    }
    finish(&new, path).map_err(io_at(path))?;
    Ok(true)
}

fn unfinished(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".");
    name.push(UNFINISHED);
    path.with_file_name(name)
}

/// Writes a file that is not there yet, down to the disk.
fn write(
    path: &Path,
    from: &mut impl io::Read,
    mode: u32,
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let options = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .clone();
    let mut file = options.open(path)?;
    io::copy(from, &mut file)?;
    if let Some((user, group)) = owner {
        fchown(&file, Some(user), Some(group))?;
    }
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Puts a written file in its place.
fn finish(new: &Path, path: &Path) -> io::Result<()> {
    fs::rename(new, path)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests;
