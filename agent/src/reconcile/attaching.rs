//! Interfaces: what is done about each decision, and when programs are attached.

use std::time::Instant;

use agent_common::maps::{NAME_SLOT, NameKey, SLOTS};
use agent_policy::engine::{LocalEndpoint, Progress as Published};
use agent_policy::model::{ObjectName, PodUid};
use agent_policy::tables::Tables;
use tracing::{debug, error, info, warn};

use super::run::{Reconciler, chain};
use super::takeover::Due;
use super::{Endpoint, EndpointState};
use crate::config::Posture;
use crate::conntrack;
use crate::dataplane::Known;
use crate::endpoints::{IfIndex, Interface};

impl Reconciler {
    pub(super) fn enforce(
        &mut self,
        interface: Interface,
        uid: PodUid,
        pod: ObjectName,
        is_new: bool,
    ) {
        let ifindex = interface.ifindex;
        if interface.netns.as_os_str().is_empty() {
            warn!(
                interface = %interface.name,
                %pod,
                netns = %self.config.netns.display(),
                "no network namespace shows the pod's interface; its policy stays until it goes"
            );
        }
        if is_new && !self.attached.contains_key(&ifindex) && !self.is_elsewhere(ifindex) {
            // Closed until its rows are in: nothing is published for it yet.
            self.attach(ifindex, &interface.name);
        }
        let attached = match self.attached.get(&ifindex) {
            Some(since) => *since,
            None => self.now_in_jiffies(),
        };
        if !self.attached.contains_key(&ifindex) {
            self.unattached.entry(ifindex).or_default();
        }
        self.engine.attach(LocalEndpoint {
            uid: uid.clone(),
            ifindex: ifindex.0,
            // Those its object states: what a pod puts on its interface is not evidence.
            addresses: Vec::new(),
            attached,
            fails_open: self.config.posture == Posture::Open,
        });
        let before = self.endpoints.remove(&ifindex);
        let state = match before {
            Some(Endpoint {
                uid: before,
                state: state @ (EndpointState::Enforced | EndpointState::NoSlot),
                ..
            }) if before == uid => state,
            Some(_) | None => EndpointState::Pending,
        };
        self.endpoints.insert(
            ifindex,
            Endpoint {
                interface,
                uid,
                pod,
                state,
            },
        );
    }

    /// Nothing is published for it, so the posture decides until its pod is known.
    pub(super) fn enclose(&mut self, interface: &Interface) {
        self.engine.detach(interface.ifindex.0);
        self.endpoints.remove(&interface.ifindex);
        info!(
            interface = %interface.name,
            netns = %interface.netns.display(),
            posture = self.config.posture.as_label(),
            "an interface's pod is not known yet: the posture decides until it is"
        );
        if !self.attached.contains_key(&interface.ifindex) {
            self.attach(interface.ifindex, &interface.name);
        }
    }

    /// What is in force stays: the object is not what sends and receives.
    pub(super) fn orphan(&mut self, ifindex: IfIndex) {
        if !self.endpoints.contains_key(&ifindex)
            && let (Some(interface), Some((uid, pod))) =
                (self.locals.interface(ifindex), self.left.get(&ifindex))
        {
            let endpoint = Endpoint {
                interface: interface.clone(),
                uid: uid.clone(),
                pod: pod.clone(),
                state: EndpointState::Orphaned,
            };
            // Claimed, so that the engine knows whose it is when the object comes back. Until then,
            // after a restart, its row is withdrawn and the posture decides.
            self.engine.attach(LocalEndpoint {
                uid: uid.clone(),
                ifindex: ifindex.0,
                addresses: Vec::new(),
                attached: self.attached.get(&ifindex).copied().unwrap_or_default(),
                fails_open: self.config.posture == Posture::Open,
            });
            if !self.attached.contains_key(&ifindex) {
                self.unattached.entry(ifindex).or_default();
            }
            self.endpoints.insert(ifindex, endpoint);
        }
        if let Some(endpoint) = self.endpoints.get_mut(&ifindex) {
            endpoint.state = EndpointState::Orphaned;
            warn!(
                interface = %endpoint.interface.name,
                pod = %endpoint.pod,
                "the pod's object is gone and its interface is not; what is in force is in the status"
            );
        }
    }

    pub(super) fn remove(&mut self, ifindex: IfIndex) {
        self.engine.detach(ifindex.0);
        if let Err(error) = self.dataplane.detach(ifindex.0) {
            warn!(%ifindex, error = chain(&error), "what is left of a vanished interface stays pinned");
        }
        self.attached.remove(&ifindex);
        self.unattached.remove(&ifindex);
        self.left.remove(&ifindex);
        if let Some(endpoint) = self.endpoints.remove(&ifindex) {
            debug!(pod = %endpoint.pod, interface = %endpoint.interface.name, "endpoint gone");
        }
    }

    pub(super) fn report_unenforced(&mut self) {
        let unenforced = self.locals.unenforced(self.engine.cluster());
        for new in unenforced
            .iter()
            .filter(|each| !self.unenforced.contains(each))
        {
            warn!(
                pod = %new.pod,
                netns = %new.place.netns.display(),
                interface = %new.place.interface,
                why = %new.place.why,
                "pod is not enforced"
            );
        }
        self.unenforced = unenforced;
    }

    /// Brings states to what is published by now, of interfaces that programs are on.
    pub(super) fn mark_published(&mut self) {
        for status in self.engine.endpoints() {
            let ifindex = IfIndex(status.ifindex);
            let Some(endpoint) = self.endpoints.get_mut(&ifindex) else {
                continue;
            };
            if !self.attached.contains_key(&ifindex) {
                continue;
            }
            match (&endpoint.state, status.progress) {
                (EndpointState::Pending | EndpointState::NoSlot, Published::Published) => {
                    endpoint.state = EndpointState::Enforced;
                }
                (EndpointState::Pending, Published::NoSlot) => {
                    endpoint.state = EndpointState::NoSlot;
                    warn!(
                        pod = %endpoint.pod,
                        interface = %endpoint.interface.name,
                        slots = SLOTS - 1,
                        posture = self.config.posture.as_label(),
                        "pod is not enforced: every slot is taken, so the posture decides until a pod of this node goes"
                    );
                }
                _ => {}
            }
        }
    }

    /// Attaches programs to interfaces whose rows are in, or never will be: those take the posture.
    pub(super) fn attach_those_with_rows(&mut self) {
        if self.unattached.is_empty() || self.attaching.is_waiting(Instant::now()) {
            return;
        }
        self.attaching.begin();
        let with_rows = self.engine.endpoints().into_iter().filter_map(|status| {
            let ifindex = IfIndex(status.ifindex);
            let is_due = match status.progress {
                Published::Published => true,
                // Another version's programs know a policy for it, which is better than the posture.
                Published::NoSlot => !self.is_elsewhere(ifindex),
                Published::PodUnknown | Published::Planned => false,
            };
            is_due.then_some(Due {
                ifindex,
                slot: status.slot,
            })
        });
        let enclosed = self.unclaimed.iter().filter(|each| each.is_enclosed);
        let enclosed = enclosed.map(|each| Due {
            ifindex: each.interface.ifindex,
            slot: 0,
        });
        let due: Vec<Due> = with_rows
            .chain(enclosed)
            .filter(|each| self.unattached.contains_key(&each.ifindex))
            .collect();
        if due.is_empty() {
            return;
        }
        self.attach_with_connections(&due);
        self.mark_published();
    }

    /// Says of interfaces that should be enclosed why they are not.
    pub(super) fn note_those_left_open(&mut self) {
        for each in self.unclaimed.iter_mut().filter(|each| each.is_enclosed) {
            let failed = self.unattached.get(&each.interface.ifindex);
            each.error = failed.cloned().flatten();
        }
    }

    /// Attaches programs to interfaces whose connections the kernel may know; returns how many it
    /// did.
    pub(super) fn attach_adopting(&mut self, due: &[IfIndex]) -> usize {
        let adopted = self.adopt(due, Known::IsReplaced);
        for ifindex in due {
            self.attach_known(*ifindex);
        }
        // What was opened between the first look and the attachment.
        adopted + self.adopt(due, Known::Stays)
    }

    /// Attaches programs to an interface if it is still there.
    pub(super) fn attach_known(&mut self, ifindex: IfIndex) {
        if let Some(interface) = self.locals.interface(ifindex) {
            let name = interface.name.clone();
            self.attach(ifindex, &name);
        }
    }

    /// Lets interfaces that are about to be attached know the connections they carry already, as far
    /// as the kernel knows them. For the others there is the mid-stream rule.
    fn adopt(&mut self, interfaces: &[IfIndex], known: Known) -> usize {
        let now = self.now_in_jiffies();
        let begun = Instant::now();
        let owners = match self.owners(interfaces) {
            Ok(owners) if owners.adopting.is_empty() => return 0,
            Ok(owners) => owners,
            Err(error) => {
                warn!(
                    error = chain(&error),
                    "the node's addresses cannot be listed; connections that are open are not adopted"
                );
                return 0;
            }
        };
        let tracked = match conntrack::list() {
            Ok(tracked) => tracked,
            Err(error) => {
                warn!(
                    error = chain(&error),
                    "the kernel's connections cannot be listed; those that are open are judged at their next packet"
                );
                return 0;
            }
        };
        let entries: Vec<_> = tracked
            .iter()
            .flat_map(|tracked| conntrack::adopted(tracked, &owners, now))
            .collect();
        match self.dataplane.adopt(&entries, known) {
            Ok(0) => 0,
            Ok(adopted) => {
                info!(
                    adopted,
                    tracked = tracked.len(),
                    took_ms = begun.elapsed().as_millis(),
                    "connections older than the attachment adopted"
                );
                adopted
            }
            Err(error) => {
                warn!(
                    error = chain(&error),
                    "not every open connection is adopted"
                );
                0
            }
        }
    }

    /// Whose addresses are whose, for adoption.
    fn owners(&self, adopting: &[IfIndex]) -> std::io::Result<conntrack::Owners> {
        let mut owners = conntrack::Owners {
            node: conntrack::node_addresses()?,
            ..conntrack::Owners::default()
        };
        for status in self.engine.endpoints() {
            let Some(pod) = self.engine.cluster().pod(&status.uid) else {
                continue;
            };
            for address in &pod.addresses {
                owners.interfaces.insert(*address, status.ifindex);
                if status.slot != 0 && adopting.contains(&IfIndex(status.ifindex)) {
                    let local = conntrack::Local {
                        slot: status.slot,
                        ifindex: status.ifindex,
                    };
                    owners.adopting.insert(*address, local);
                }
            }
        }
        Ok(owners)
    }

    fn attach(&mut self, ifindex: IfIndex, name: &str) {
        match self.dataplane.attach(ifindex.0, name) {
            Ok(()) => {
                self.unattached.remove(&ifindex);
                let now = self.now_in_jiffies();
                self.attached.insert(ifindex, now);
                debug!(interface = name, "programs attached");
                self.set_state(ifindex, EndpointState::Pending);
            }
            Err(error) => {
                let error = chain(&error);
                self.attaching.fail(Instant::now());
                let before = self.unattached.insert(ifindex, Some(error.clone()));
                if before.flatten().as_ref() != Some(&error) {
                    error!(interface = name, error, "pod is not enforced; tried again");
                }
                self.set_state(ifindex, EndpointState::Failed { error });
            }
        }
    }

    fn set_state(&mut self, ifindex: IfIndex, state: EndpointState) {
        if let Some(endpoint) = self.endpoints.get_mut(&ifindex) {
            endpoint.state = state;
        }
    }

    /// The low half of the kernel's tick; 0 when it cannot be read, which gives no grace.
    #[expect(clippy::cast_possible_truncation, reason = "the maps keep low halves")]
    fn now_in_jiffies(&mut self) -> u32 {
        match self.dataplane.tick() {
            Ok(tick) => tick.jiffies as u32,
            Err(error) => {
                debug!(error = chain(&error), "the kernel's clock cannot be read");
                0
            }
        }
    }
}

/// Whose an interface was under the last agent, if anything was published for it, and since when
/// its programs are on.
pub(super) fn left_at(ifindex: IfIndex, present: &Tables) -> (Option<(PodUid, ObjectName)>, u32) {
    let config = present
        .endpoints
        .get(&ifindex.0)
        .and_then(|word| present.configs.get(&word.config_row));
    let owner = config.and_then(|config| {
        let key = NameKey {
            kind: NAME_SLOT,
            id: config.slot,
        };
        let (uid, pod) = present.names.get(&key)?.split_once(' ')?;
        let (namespace, name) = pod.split_once('/')?;
        Some((PodUid(uid.into()), ObjectName::new(namespace, name)))
    });
    (owner, config.map_or(0, |config| config.attached))
}
