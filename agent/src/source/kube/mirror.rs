//! What all kinds together amount to: batches, and what is wrong, for whoever enforces. No I/O and
//! no clock: news in, batches out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use agent_policy::manifest::brief;
use agent_policy::model::{Finding, ObjectName, Severity};
use jiff::{Timestamp, Unit};

use super::super::object::Kind;
use super::super::{Batch, Reported};
use super::api::Failure;
use super::follow::News;
use super::kept::{KeptError, Recalled};
use super::kinds::{WATCHED, plural};
use super::table::{Changes, Doubt, Table, Told};

/// What findings call the server.
const API: &str = "kubernetes api";
/// Findings told at a time.
const MAX_FINDINGS: usize = 1000;

/// See the module.
#[derive(Debug)]
pub(super) struct Mirror {
    /// The API's address, for people.
    url: String,
    tables: BTreeMap<Kind, Table>,
    failing: BTreeMap<Kind, Trouble>,
    /// Since when the server does not answer, and the first thing that was noticed of it.
    outage: Option<Trouble>,
    is_complete: bool,
    /// What is wrong with the startup taint.
    taint: Option<Finding>,
    /// What is known was not said by the server in this life.
    recalled: Option<Hearsay>,
    /// What is known is not kept, because of this.
    unkept: Option<String>,
    /// What was said last.
    told: Option<Vec<Reported>>,
}

/// What a file said that the server had said.
#[derive(Debug)]
struct Hearsay {
    file: PathBuf,
    until: Timestamp,
    /// Kinds that the server has not said anew.
    kinds: BTreeSet<Kind>,
}

#[derive(Clone, Debug)]
struct Trouble {
    since: Timestamp,
    failure: Failure,
}

impl Mirror {
    pub(super) fn new(url: &str) -> Self {
        let tables = WATCHED
            .iter()
            .map(|watched| (watched.kind, Table::new(watched.kind)));
        Self {
            url: url.to_owned(),
            tables: tables.collect(),
            failing: BTreeMap::new(),
            outage: None,
            is_complete: false,
            taint: None,
            recalled: None,
            unkept: None,
            told: None,
        }
    }

    /// One that knows what a file says, until the server says more.
    pub(super) fn recalling(url: &str, recalled: Recalled, file: &Path) -> Self {
        let mut mirror = Self::new(url);
        let mut kinds = BTreeSet::new();
        for (kind, items, version) in recalled.kinds {
            if let Some(table) = mirror.tables.get_mut(&kind) {
                table.begin_list();
                for item in items {
                    table.put_listed(item);
                }
                table.end_list(version);
                kinds.insert(kind);
            }
        }
        mirror.recalled = Some(Hearsay {
            file: file.to_owned(),
            until: recalled.until,
            kinds,
        });
        mirror
    }

    /// Takes in what was heard of a kind.
    pub(super) fn hear(&mut self, kind: Kind, news: News, now: Timestamp) -> Doubt {
        let Some(table) = self.tables.get_mut(&kind) else {
            return Doubt(false);
        };
        match news {
            News::ListBegins => table.begin_list(),
            News::Listed(items) => {
                for item in items {
                    table.put_listed(item);
                }
            }
            News::ListEnds(version) => {
                table.end_list(version);
                self.is_said_anew(kind);
            }
            News::Put(item) => return table.put_event(item),
            News::Gone(id) => table.remove_by_event(&id),
            News::Failed(failure) => {
                let is_no_fault =
                    failure == Failure::Absent && may_be_absent(kind) && table.take_as_absent();
                if is_no_fault {
                    self.works(kind);
                    self.is_said_anew(kind);
                } else {
                    self.fails(kind, failure, now);
                }
            }
            News::Works => self.works(kind),
        }
        Doubt(false)
    }

    /// Takes in what is wrong with the startup taint now, if anything is.
    pub(super) fn hear_of_taint(&mut self, fault: Option<Finding>) {
        self.taint = fault;
    }

    fn is_said_anew(&mut self, kind: Kind) {
        if let Some(recalled) = &mut self.recalled {
            recalled.kinds.remove(&kind);
        }
        self.recalled.take_if(|recalled| recalled.kinds.is_empty());
    }

    /// True while the server does not say what there is, and nothing else has.
    pub(super) fn is_in_need(&self) -> bool {
        !self.is_complete && !self.failing.is_empty()
    }

    /// From now on nothing is kept.
    pub(super) fn cannot_keep(&mut self, file: &Path, error: &KeptError) {
        self.unkept = Some(format!(
            "what is known is not kept in {}: {}; mend that and start the agent again, else one \
             that starts while the server is silent knows nothing",
            file.display(),
            brief(&error.to_string())
        ));
    }

    /// Versions of what is known, by kind.
    pub(super) fn versions(&self) -> BTreeMap<Kind, u64> {
        let versions = self.tables.iter();
        versions
            .map(|(kind, table)| (*kind, table.latest()))
            .collect()
    }

    /// Until when the server is known to have said what is known.
    pub(super) fn known_until(&self, now: Timestamp) -> Timestamp {
        self.recalled
            .as_ref()
            .map_or(now, |recalled| recalled.until)
    }

    fn fails(&mut self, kind: Kind, failure: Failure, now: Timestamp) {
        let trouble = Trouble {
            since: now,
            failure,
        };
        if matches!(trouble.failure, Failure::Unreachable(_)) && self.outage.is_none() {
            self.outage = Some(trouble.clone());
        }
        // The first word about a fault is kept, and with it the time: each try fails with words
        // that may differ a little.
        let is_known = self.failing.get(&kind).is_some_and(|known| {
            std::mem::discriminant(&known.failure) == std::mem::discriminant(&trouble.failure)
        });
        if !is_known {
            self.failing.insert(kind, trouble);
        }
        self.end_outage();
    }

    fn works(&mut self, kind: Kind) {
        self.failing.remove(&kind);
        self.end_outage();
    }

    /// The server answers all that ask.
    fn end_outage(&mut self) {
        let is_silent = |trouble: &Trouble| matches!(trouble.failure, Failure::Unreachable(_));
        if !self.failing.values().any(is_silent) {
            self.outage = None;
        }
    }

    /// The next batch, and what of objects it tells: when something changed or is said for the first
    /// time.
    pub(super) fn take_batch(&mut self, noticed: Instant) -> Option<(Batch, Vec<Told>)> {
        let was_complete = self.is_complete;
        self.is_complete |= self.tables.values().all(Table::is_settled);
        // Half-knowledge must not be the first word: see `Batch`.
        let found = if self.is_complete {
            self.take_changes()
        } else {
            Changes::default()
        };
        let Changes { gone, came, told } = found;
        let mut changes = gone;
        changes.extend(came);
        let findings = self.findings();
        let is_news = self.is_complete != was_complete
            || !changes.is_empty()
            || self.told.as_ref() != Some(&findings);
        // Nothing wrong, nothing known: no word is needed.
        if !is_news || !self.is_complete && self.told.is_none() && findings.is_empty() {
            return None;
        }
        self.told = Some(findings.clone());
        let batch = Batch {
            changes,
            is_complete: self.is_complete,
            findings,
            noticed,
        };
        Some((batch, told))
    }

    /// What changed. Pods wait for their namespaces, which another watch tells of: without its labels
    /// a namespace would be what a selector wants that asks for a label not to be there.
    fn take_changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        let mut held = BTreeSet::new();
        if let Some(namespaces) = self.tables.get_mut(&Kind::Namespace) {
            namespaces.take_changes(&held, &mut changes);
        }
        if let (Some(namespaces), Some(pods)) = (
            self.tables.get(&Kind::Namespace),
            self.tables.get(&Kind::Pod),
        ) {
            let of_pods = pods.untold_namespaces().into_iter();
            held = of_pods
                .filter(|name| !namespaces.has_told(&ObjectName::new("", Arc::clone(name))))
                .cloned()
                .collect();
        }
        let nothing = BTreeSet::new();
        for (kind, table) in &mut self.tables {
            let held = if *kind == Kind::Pod { &held } else { &nothing };
            table.take_changes(held, &mut changes);
        }
        changes
    }

    fn findings(&self) -> Vec<Reported> {
        let api = self.outage.iter().map(|trouble| self.of_outage(trouble));
        let kinds = self
            .failing
            .iter()
            .filter_map(|(kind, trouble)| self.of_kind(*kind, trouble));
        let recalled = self.recalled.iter().map(|recalled| {
            hint(format!(
                "what is in force is what the server had said until {}, kept in {}",
                time(recalled.until),
                recalled.file.display()
            ))
        });
        let unkept = self.unkept.iter().cloned().map(hint);
        let mut findings: Vec<Finding> = api
            .chain(kinds)
            .chain(self.taint.clone())
            .chain(recalled)
            .chain(unkept)
            .collect();
        let objects = self.tables.values().flat_map(Table::findings);
        let (errors, warnings): (Vec<&Finding>, Vec<&Finding>) =
            objects.partition(|finding| finding.severity == Severity::Error);
        let all = findings.len() + errors.len() + warnings.len();
        let besides: usize = self.tables.values().map(Table::faulty_besides).sum();
        let left_out = all.saturating_sub(MAX_FINDINGS) + besides;
        findings.extend(errors.into_iter().chain(warnings).cloned());
        findings.truncate(MAX_FINDINGS);
        if left_out > 0 {
            findings.push(hint(format!(
                "{left_out} more faults of objects; mend those that are said and these are, too"
            )));
        }
        let reported = |finding| Reported {
            place: None,
            finding,
        };
        findings.into_iter().map(reported).collect()
    }

    fn of_outage(&self, trouble: &Trouble) -> Finding {
        let words = match &trouble.failure {
            Failure::Unreachable(words) => words.as_str(),
            Failure::Forbidden { .. }
            | Failure::Absent
            | Failure::Expired
            | Failure::Refused { .. }
            | Failure::Garbled(_) => "",
        };
        fault(
            String::new(),
            format!(
                "{} does not answer since {}: {words}; {}, and it is asked again",
                self.url,
                time(trouble.since),
                self.consequence()
            ),
        )
    }

    /// What is wrong with one kind; nothing when the server as a whole is.
    fn of_kind(&self, kind: Kind, trouble: &Trouble) -> Option<Finding> {
        let plural = plural(kind);
        let since = time(trouble.since);
        let (problem, remedy) = match &trouble.failure {
            Failure::Unreachable(_) => return None,
            Failure::Forbidden {
                message,
                is_unknown: true,
            } => (
                format!("refused since {since}: {message}"),
                "renew the credentials".to_owned(),
            ),
            Failure::Forbidden { message, .. } => (
                format!("forbidden since {since}: {message}"),
                format!("grant list and watch of {plural}"),
            ),
            Failure::Absent => (
                format!("not served since {since}, though the server has or had them"),
                "see whether this is the API server".to_owned(),
            ),
            Failure::Expired => (
                format!("forgotten faster than they can be listed, since {since}"),
                "see whether the API server is overloaded".to_owned(),
            ),
            Failure::Refused { code, message, .. } => (
                format!("refused with {code} since {since}: {message}"),
                "see the API server's log".to_owned(),
            ),
            Failure::Garbled(problem) => (
                format!("cannot be understood since {since}: {problem}"),
                "see whether this is the API server".to_owned(),
            ),
        };
        Some(fault(
            plural.to_owned(),
            format!("{problem}; {remedy}; {}", self.consequence()),
        ))
    }

    fn consequence(&self) -> &'static str {
        if self.is_complete {
            "until then what was known stays in force"
        } else {
            "nothing is put in force before, and what is in force stays"
        }
    }
}

/// Something wrong with the server, or with what it makes of a kind.
fn fault(field: String, message: String) -> Finding {
    Finding {
        severity: Severity::Error,
        object: API.to_owned(),
        field,
        message,
    }
}

/// Something to know about how objects are known.
fn hint(message: String) -> Finding {
    Finding {
        severity: Severity::Warning,
        object: API.to_owned(),
        field: String::new(),
        message,
    }
}

fn may_be_absent(kind: Kind) -> bool {
    WATCHED
        .iter()
        .any(|watched| watched.kind == kind && watched.may_be_absent)
}

/// To the second.
fn time(at: Timestamp) -> Timestamp {
    at.round(Unit::Second).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use agent_policy::model::Change;
    use serde_json::json;

    use super::super::kinds::{Item, Reader};
    use super::*;

    const NOON: Timestamp = Timestamp::UNIX_EPOCH;

    fn pod(name: &str, label: &serde_json::Value) -> Item {
        let watched = WATCHED.iter().find(|watched| watched.kind == Kind::Pod);
        let object = json!({"metadata": {"name": name, "namespace": "shop",
            "resourceVersion": "1", "labels": {"app": label}}});
        Reader::new(watched.unwrap())
            .read(object.to_string().as_bytes())
            .unwrap()
    }

    fn hear(mirror: &mut Mirror, kind: Kind, news: Vec<News>) {
        for news in news {
            assert_eq!(mirror.hear(kind, news, NOON), Doubt(false));
        }
    }

    fn list(mirror: &mut Mirror, kind: Kind, items: Vec<Item>) {
        let news = vec![News::ListBegins, News::Listed(items), News::ListEnds(5)];
        hear(mirror, kind, news);
    }

    fn namespace(name: &str) -> Item {
        let watched = WATCHED
            .iter()
            .find(|watched| watched.kind == Kind::Namespace);
        let object = json!({"metadata": {"name": name, "resourceVersion": "1"}});
        Reader::new(watched.unwrap())
            .read(object.to_string().as_bytes())
            .unwrap()
    }

    fn all_but(one: Kind) -> impl Iterator<Item = Kind> {
        let kinds = WATCHED.iter().map(|watched| watched.kind);
        kinds.filter(move |kind| *kind != one)
    }

    /// One that knows all there is.
    fn complete(pods: Vec<Item>) -> Mirror {
        let mut mirror = Mirror::new("https://api");
        for kind in all_but(Kind::Pod) {
            let namespaces = (kind == Kind::Namespace).then(|| namespace("shop"));
            list(&mut mirror, kind, namespaces.into_iter().collect());
            assert!(
                mirror.take_batch(Instant::now()).is_none(),
                "not all is here"
            );
        }
        list(&mut mirror, Kind::Pod, pods);
        mirror
    }

    fn silent(words: &str) -> Vec<News> {
        vec![News::Failed(Failure::Unreachable(words.to_owned()))]
    }

    #[test]
    fn the_first_batch_waits_for_every_kind() {
        let mut mirror = complete(vec![pod("web", &json!("web"))]);
        let (batch, told) = mirror.take_batch(Instant::now()).unwrap();
        assert_eq!(told.len(), 2);
        assert!(batch.is_complete);
        assert_eq!(batch.changes.len(), 2);
        assert!(mirror.take_batch(Instant::now()).is_none(), "it was told");
    }

    #[test]
    fn the_first_batch_waits_for_a_list_that_is_under_way_again() {
        let mut mirror = Mirror::new("https://api");
        let policies = [News::ListBegins, News::ListEnds(5), News::ListBegins];
        hear(&mut mirror, Kind::NetworkPolicy, policies.into());
        for kind in all_but(Kind::NetworkPolicy) {
            list(&mut mirror, kind, Vec::new());
        }
        assert!(mirror.take_batch(Instant::now()).is_none(), "no policies");
        hear(&mut mirror, Kind::NetworkPolicy, vec![News::ListEnds(6)]);
        assert!(mirror.take_batch(Instant::now()).unwrap().0.is_complete);
    }

    #[test]
    fn a_pod_waits_for_its_namespace_and_its_end_does_not() {
        let mut mirror = complete(vec![pod("old", &json!("web"))]);
        mirror.take_batch(Instant::now());
        hear(&mut mirror, Kind::Namespace, vec![News::ListBegins]);
        let mut new = pod("new", &json!("web"));
        new.id.name = ObjectName::new("evil", "new");
        new.id.version = 7;
        let mut old = pod("old", &json!("web")).id;
        old.version = 8;
        hear(
            &mut mirror,
            Kind::Pod,
            vec![News::Put(new), News::Gone(old)],
        );
        let (batch, _) = mirror.take_batch(Instant::now()).unwrap();
        assert!(
            matches!(batch.changes[..], [Change::PodGone(_)]),
            "{:?}",
            batch.changes
        );
        let namespaces = vec![namespace("shop"), namespace("evil")];
        hear(
            &mut mirror,
            Kind::Namespace,
            vec![News::Listed(namespaces), News::ListEnds(9)],
        );
        let (batch, _) = mirror.take_batch(Instant::now()).unwrap();
        assert!(
            matches!(batch.changes[..], [Change::Namespace(_), Change::Pod(_)]),
            "{:?}",
            batch.changes
        );
    }

    #[test]
    fn a_silent_server_is_one_finding_whose_words_do_not_change() {
        let mut mirror = complete(Vec::new());
        mirror.take_batch(Instant::now());
        hear(&mut mirror, Kind::Pod, silent("refused"));
        let said = mirror.take_batch(Instant::now()).unwrap().0.findings;
        assert_eq!(said.len(), 1, "{said:?}");
        for (kind, words) in [(Kind::Pod, "reset"), (Kind::Node, "refused")] {
            hear(&mut mirror, kind, silent(words));
            assert!(mirror.take_batch(Instant::now()).is_none(), "nothing new");
        }
        hear(&mut mirror, Kind::Pod, vec![News::Works]);
        assert!(
            mirror.take_batch(Instant::now()).is_none(),
            "one kind is silent still"
        );
        hear(&mut mirror, Kind::Node, vec![News::Works]);
        let said = mirror.take_batch(Instant::now()).unwrap().0.findings;
        assert!(said.is_empty(), "{said:?}");
    }

    #[test]
    fn faults_of_objects_are_said_up_to_a_number_and_counted_beyond() {
        let spoilt = (0..MAX_FINDINGS).map(|n| pod(&format!("pod-{n}"), &json!(n)));
        let mut mirror = complete(spoilt.collect());
        let said = mirror.take_batch(Instant::now()).unwrap().0.findings;
        assert_eq!(said.len(), MAX_FINDINGS);
        hear(&mut mirror, Kind::Node, silent("refused"));
        let said = mirror.take_batch(Instant::now()).unwrap().0.findings;
        assert_eq!(said.len(), MAX_FINDINGS + 1);
        let said = |at: usize| said[at].to_string();
        assert!(said(0).contains("does not answer"), "{}", said(0));
        assert!(said(MAX_FINDINGS).contains(": 1 more faults"));
        // Those that there was no room for are counted until they are mended or gone.
        let besides = (0..500).map(|n| News::Put(at(10 + n, pod(&format!("more-{n}"), &json!(n)))));
        hear(&mut mirror, Kind::Pod, besides.collect());
        let mended = at(1000, pod("more-0", &json!("web")));
        hear(&mut mirror, Kind::Pod, vec![News::Put(mended)]);
        let said = mirror.take_batch(Instant::now()).unwrap().0.findings;
        let last = said.last().unwrap().to_string();
        assert!(last.contains(": 500 more faults"), "{last}");
    }

    /// The same object at another version.
    fn at(version: u64, mut item: Item) -> Item {
        item.id.version = version;
        item
    }
}
