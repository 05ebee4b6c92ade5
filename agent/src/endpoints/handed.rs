//! What the chained CNI plugin hands over: whose an interface is, while the runtime still makes the
//! pod's network. The runtime's library writes the same into its result cache only when the last
//! plugin of the chain, which is ours, has returned.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent_policy::model::ObjectName;
use tokio::sync::Notify;

use super::Interface;
use super::cni::{MAX_FILE_BYTES, Recorded, parse};

/// Longest word that is read; the runtime's own files have the same limit.
#[expect(clippy::cast_possible_truncation, reason = "a MiB")]
pub const MAX_WORD_BYTES: usize = MAX_FILE_BYTES as usize;

/// Words that are kept at most: more than a node has pods.
const MAX_WORDS: usize = 1024;
/// A word whose namespace is not seen is kept for this long, lest it be seen a moment later.
const UNSEEN_FOR: Duration = Duration::from_secs(10);

/// Why a word is of no use.
#[derive(Debug, thiserror::Error)]
pub enum HandError {
    /// It is not what a runtime would write.
    #[error("what was handed over is no result of CNI: {0}")]
    Malformed(#[source] std::io::Error),
    /// It names no pod, or a namespace that has no file where they are looked for.
    #[error("no pod with UID, namespace and name in a network namespace of {0:?} is named")]
    NoPod(OsString),
}

/// One pod's interface, as it was handed over.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Handed(Recorded);

impl Handed {
    /// Whose it is.
    pub fn pod(&self) -> &ObjectName {
        &self.0.sandbox.pod
    }

    /// True of the host side of this very interface.
    pub fn is(&self, interface: &Interface) -> bool {
        self.is_in(&interface.netns) && self.0.of(&interface.inside, &interface.name).is_some()
    }

    /// True of the network namespace that it is in.
    pub fn is_in(&self, netns: &Path) -> bool {
        netns.file_name() == Some(&self.0.netns)
    }

    /// True when an endpoint of this name and UID is this pod's. A static pod's UID is the kubelet's
    /// own: the object in the API has another.
    pub fn is_of(&self, pod: &ObjectName, uid: &agent_policy::model::PodUid) -> bool {
        let sandbox = &self.0.sandbox;
        sandbox.pod == *pod && (sandbox.uid == *uid || sandbox.is_static())
    }
}

/// Takes words from the plugin and keeps them until what they are about is gone. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hands(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Last part of the name of the directory of namespaces.
    netns: OsString,
    words: Mutex<Vec<(Instant, Recorded)>>,
    news: Notify,
}

impl Hands {
    /// For namespaces of this directory.
    pub fn new(netns_dir: &Path) -> Self {
        Self(Arc::new(Shared {
            netns: netns_dir.file_name().unwrap_or_default().to_owned(),
            words: Mutex::default(),
            news: Notify::new(),
        }))
    }

    /// Takes a word, in the form of the runtime's own files.
    ///
    /// # Errors
    /// It is not of that form or about no pod.
    pub fn take(&self, bytes: &[u8]) -> Result<Handed, HandError> {
        let said = parse(bytes, Some(&self.0.netns)).map_err(HandError::Malformed)?;
        let recorded = said.ok_or_else(|| HandError::NoPod(self.0.netns.clone()))?;
        let mut words = self.words();
        // The runtime tries again what has failed.
        words
            .retain(|(_, word)| (&word.netns, &word.inside) != (&recorded.netns, &recorded.inside));
        if words.len() >= MAX_WORDS {
            words.remove(0);
        }
        words.push((Instant::now(), recorded.clone()));
        drop(words);
        self.0.news.notify_one();
        Ok(Handed(recorded))
    }

    /// Waits for another word.
    pub(super) async fn news(&self) {
        self.0.news.notified().await;
    }

    /// All words about namespaces that are there; the others are dropped in time.
    pub(super) fn of(&self, is_there: impl Fn(&OsStr) -> bool) -> Vec<Recorded> {
        let mut words = self.words();
        words.retain(|(at, word)| at.elapsed() < UNSEEN_FOR || is_there(&word.netns));
        words.iter().map(|(_, word)| word.clone()).collect()
    }

    fn words(&self) -> MutexGuard<'_, Vec<(Instant, Recorded)>> {
        self.0.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(netns: &str, uid: &str) -> Vec<u8> {
        let word = serde_json::json!({
            "netns": format!("/var/run/netns/{netns}"),
            "ifName": "eth0",
            "cniArgs": [["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "api-0"],
                        ["K8S_POD_UID", uid]],
            "result": {"interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "x"}],
                       "ips": [{"interface": 1, "address": "10.0.0.7/24"}]},
        });
        word.to_string().into_bytes()
    }

    fn interface(netns: &str, name: &str) -> Interface {
        Interface {
            ifindex: super::super::IfIndex(7),
            name: name.to_owned(),
            addresses: Vec::new(),
            inside: "eth0".to_owned(),
            netns: Path::new("/run/netns").join(netns),
            sandbox: None,
        }
    }

    #[test]
    fn a_word_is_about_one_interface_of_one_pod() {
        let hands = Hands::new(Path::new("/run/netns"));
        let handed = hands.take(&word("cni-1", "u-1")).unwrap();
        assert!(handed.is(&interface("cni-1", "veth1")));
        assert!(!handed.is(&interface("cni-2", "veth1")));
        assert!(!handed.is(&interface("cni-1", "veth2")));
        let pod = ObjectName::new("shop", "api-0");
        assert!(handed.is_of(&pod, &agent_policy::model::PodUid("u-1".into())));
        assert!(!handed.is_of(&pod, &agent_policy::model::PodUid("u-2".into())));
    }

    #[test]
    fn the_last_word_about_a_namespace_counts_and_there_are_never_too_many() {
        let hands = Hands::new(Path::new("/run/netns"));
        for number in 0..2 * MAX_WORDS {
            hands.take(&word(&format!("cni-{number}"), "u")).unwrap();
        }
        assert_eq!(hands.of(|_| true).len(), MAX_WORDS);
        let newest = format!("cni-{}", 2 * MAX_WORDS - 1);
        hands.take(&word(&newest, "again")).unwrap();
        let words = hands.of(|_| true);
        assert_eq!(words.len(), MAX_WORDS);
        let last = words.last().unwrap();
        assert_eq!(
            (&*last.sandbox.uid.0, last.netns.to_str()),
            ("again", Some(&*newest))
        );
    }

    #[test]
    fn what_names_no_pod_is_refused_with_what_is_missing() {
        let hands = Hands::new(Path::new("/run/netns"));
        for wrong in [&b""[..], b"{", b"[]", br#"{"netns": 5}"#] {
            let error = hands.take(wrong).unwrap_err();
            assert!(matches!(error, HandError::Malformed(_)), "{error}");
        }
        let elsewhere = String::from_utf8(word("cni-1", "u-1")).unwrap();
        let elsewhere = elsewhere.replace("/var/run/netns", "/proc/1/ns");
        let error = hands.take(elsewhere.as_bytes()).unwrap_err();
        assert!(matches!(error, HandError::NoPod(_)), "{error}");
        assert!(hands.of(|_| true).is_empty());
    }
}
