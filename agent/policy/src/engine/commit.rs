//! A decided plan: its writes in their order, and the engine's picture of the maps after them.
//!
//! The order (after every prefix each packet is judged by the old or the new state):
//! rows of new rules, names → what is withdrawn → functions → rows of new sets and classes, those for class 0 first →
//! moving peers to a class that old sets judge as before and new sets as afterwards → endpoints
//! flip → peers to their final class → keys that go → buckets of peers are stamped, endpoints whose
//! lists changed revised → new endpoints → what has rested is deleted.
//!
//! Narrower prefixes come before wider ones, and go after them: what a narrower one says must not
//! be said by the wider one for a moment, neither before it is there nor while it still is.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use agent_common::maps::{Config, EndpointWord, IdKind, PeerEntry};

use super::Engine;
use super::draft::Draft;
use super::endpoints::{Published, slot_key};
use super::resting::Resting;
use super::transition::{Change, Meanwhile};
use crate::compile::peer_classes::ClassId;
use crate::compile::policy_sets::SetId;
use crate::compile::prefixes::Row;
use crate::plan::{Plan, Summary, Write};

const fn entry(class: ClassId, row: &Row) -> PeerEntry {
    PeerEntry {
        class: class.0,
        flags: row.wanted_flags,
    }
}

impl Engine {
    /// Decides a draft. What comes back beside the plan rests once the plan is carried out.
    pub(super) fn commit(&mut self, mut draft: Draft, now: Duration) -> (Plan, Vec<Resting>) {
        draft.prefixes.sort_by_key(|(net, _)| Reverse(net.length()));
        let mut summary = Summary {
            endpoints_published: draft.fresh.len(),
            endpoints_flipped: draft.flips.len(),
            endpoints_revised: draft.flips.iter().filter(|flip| flip.is_revised).count()
                + draft.redrawn.len(),
            endpoints_withdrawn: 0,
            peers_moved: draft.peers.len(),
            prefixes_moved: draft.prefixes.len(),
            transitional_classes: draft.transitional.len(),
            buckets_stamped: draft.buckets.len(),
        };
        let needs_revision = summary.endpoints_revised > 0
            || summary.endpoints_published > 0
            || summary.buckets_stamped > 0;
        let revision = if needs_revision {
            self.compiler.ids.take(IdKind::Revision)
        } else {
            0
        };
        let mut rest = Vec::new();
        let mut writes = self.compiler.rules.opened();
        writes.reserve(draft.peers.len() + draft.prefixes.len());
        summary.endpoints_withdrawn = self.withdraw(&mut writes, &mut rest);
        self.write_rows(&mut writes);
        if draft.has_targets {
            let own = self.write_transitional(&draft, &mut writes, &mut rest);
            for (address, row) in &draft.peers {
                if let Some(class) = meanwhile(&draft, &own, row) {
                    writes.push(Write::PutPeer((*address).into(), entry(class, row)));
                }
            }
            for (net, row) in &draft.prefixes {
                if let Some(class) = meanwhile(&draft, &own, row) {
                    writes.push(Write::PutPrefix((*net).into(), entry(class, row)));
                }
            }
            self.write_services(&draft, &mut writes, |change| {
                class_meanwhile(&draft, &own, change)
            });
        }
        for flip in &draft.flips {
            self.publish(
                flip.ifindex,
                flip.config,
                flip.is_revised.then_some(revision),
                &mut writes,
                &mut rest,
            );
        }
        // What already has its final class needs no second write.
        let is_final = |row: &Row| {
            let known = draft.meanwhile.get(&(row.old, row.new));
            draft.has_targets && (known == Some(&Meanwhile::New) || row.old == row.new)
        };
        for (address, row) in &draft.peers {
            if let Some(class) = row.wanted.filter(|_| !is_final(row)) {
                writes.push(Write::PutPeer((*address).into(), entry(class, row)));
            }
        }
        for (net, row) in &draft.prefixes {
            if let Some(class) = row.wanted.filter(|_| !is_final(row)) {
                writes.push(Write::PutPrefix((*net).into(), entry(class, row)));
            }
        }
        for (net, row) in draft.prefixes.iter().rev() {
            if row.wanted.is_none() {
                writes.push(Write::DeletePrefix((*net).into()));
            }
        }
        for (address, row) in &draft.peers {
            if row.wanted.is_none() {
                writes.push(Write::DeletePeer((*address).into()));
            }
        }
        self.write_services(&draft, &mut writes, |(_, new)| new);
        for bucket in &draft.buckets {
            writes.push(Write::StampPeers {
                bucket: *bucket,
                revision,
            });
        }
        for ifindex in &draft.redrawn {
            self.revise(*ifindex, revision, &mut writes);
        }
        for (ifindex, config) in &draft.fresh {
            self.open_slot(config.slot, &mut writes);
            self.publish(*ifindex, *config, Some(revision), &mut writes, &mut rest);
        }
        self.settle(&draft, &mut rest);
        writes.extend(self.rest.deletions(now, &mut self.compiler));
        writes.splice(0..0, self.compiler.ids.reservations());
        let plan = Plan {
            writes,
            summary,
            is_clearing: false,
        };
        (plan, rest)
    }

    /// Writes rows of SERVICES that differ from the map, their backends having classes by their
    /// change. New backends come before endpoints flip: as if the Services had changed first, on
    /// their own.
    fn write_services(
        &mut self,
        draft: &Draft,
        writes: &mut Vec<Write>,
        class: impl Fn(Change) -> ClassId,
    ) {
        let services = &mut self.compiler.services;
        for row in &draft.services {
            let present = row.with(&class);
            if present == services.present(row.key) {
                continue;
            }
            writes.push(match present {
                Some(service) => Write::PutService(row.key.into(), service),
                None => Write::DeleteService(row.key.into()),
            });
            services.settle(row.key, present);
        }
    }

    fn withdraw(&mut self, writes: &mut Vec<Write>, rest: &mut Vec<Resting>) -> usize {
        let gone = std::mem::take(&mut self.withdrawals);
        let mut withdrawn = 0;
        for gone in gone {
            if let Some((ifindex, published)) = gone.published {
                withdrawn += 1;
                writes.push(Write::Unpublish { ifindex });
                rest.push(Resting::Config(published.row));
                self.leave_sets(published.sets());
            }
            if gone.is_open {
                writes.push(Write::CloseSlot(gone.slot));
                writes.push(Write::DeleteName(slot_key(gone.slot)));
            }
            if gone.slot != 0 {
                self.slots.give_back(gone.slot);
                self.touched.extend(self.endpoints.without_slot());
                self.has_new_room = true;
            }
        }
        withdrawn
    }

    fn write_rows(&mut self, writes: &mut Vec<Write>) {
        let ports = self.compiler.functions.port_rows_to_write();
        writes.extend(
            ports
                .into_iter()
                .map(|(key, verdict)| Write::PutPort(key, verdict)),
        );
        for (key, function) in self.compiler.rows.take_unwritten() {
            let row = self.compiler.functions.row(function);
            writes.push(Write::PutVerdict(key, row));
        }
    }

    /// Gives transitional classes their ids and writes their rows, which rest at once: nothing
    /// carries these classes when the plan is done.
    fn write_transitional(
        &mut self,
        draft: &Draft,
        writes: &mut Vec<Write>,
        rest: &mut Vec<Resting>,
    ) -> BTreeMap<Change, ClassId> {
        let mut classes = BTreeMap::new();
        for (change, rows) in &draft.transitional {
            let class = self.compiler.ids.take(IdKind::Class);
            classes.insert(*change, ClassId(class));
            for transitional in rows {
                let mut key = transitional.key;
                key.class = class;
                writes.push(Write::PutVerdict(key, transitional.row));
                if let Some(function) = transitional.function {
                    self.compiler.functions.hold_again(function);
                }
                rest.push(Resting::Verdict(key, transitional.function));
            }
        }
        classes
    }

    fn open_slot(&self, slot: u32, writes: &mut Vec<Write>) {
        if let Some(owner) = self.slots.owner(slot) {
            writes.push(Write::PutName(slot_key(slot), owner.to_string()));
        }
        writes.push(Write::OpenSlot(slot));
    }

    /// Publishes a row; without a revision the endpoint keeps the one it has.
    fn publish(
        &mut self,
        ifindex: u32,
        config: Config,
        revision: Option<u32>,
        writes: &mut Vec<Write>,
        rest: &mut Vec<Resting>,
    ) {
        let Some(row) = self.config_rows.pop_front() else {
            return;
        };
        let Some(endpoint) = self.endpoints.get_mut(ifindex) else {
            return;
        };
        let kept = endpoint.published.as_ref().map(|before| before.revision);
        let revision = revision.or(kept).unwrap_or_default();
        writes.push(Write::PutConfig(row, Box::new(config)));
        writes.push(Write::Flip {
            ifindex,
            word: EndpointWord {
                config_row: row,
                revision,
            },
        });
        let before = endpoint.published.replace(Published {
            row,
            revision,
            config,
        });
        for set in config.sets.map(SetId) {
            let Some(set) = self.compiler.sets.get_mut(set) else {
                continue;
            };
            set.published += 1;
        }
        if let Some(before) = before {
            rest.push(Resting::Config(before.row));
            // Left only when the plan is settled: rows must not go while it is made.
            self.left.extend(before.sets());
        }
    }

    /// Gives a published row another revision.
    fn revise(&mut self, ifindex: u32, revision: u32, writes: &mut Vec<Write>) {
        let endpoint = self.endpoints.get_mut(ifindex);
        let Some(published) = endpoint.and_then(|endpoint| endpoint.published.as_mut()) else {
            return;
        };
        published.revision = revision;
        writes.push(Write::Flip {
            ifindex,
            word: EndpointWord {
                config_row: published.row,
                revision,
            },
        });
    }

    fn leave_sets(&mut self, sets: [SetId; 2]) {
        self.left.extend(sets);
    }

    /// The engine's picture of the maps once the plan is carried out.
    fn settle(&mut self, draft: &Draft, rest: &mut Vec<Resting>) {
        for (address, row) in &draft.peers {
            self.compiler.settle_class(row.present, row.wanted);
            self.compiler.addresses.settle(*address, row.settled());
        }
        let mut written = draft.peers.iter().map(|(address, _)| *address).peekable();
        for address in std::mem::take(&mut self.compiler.moved.addresses) {
            if written.next_if_eq(&address).is_some() {
                continue;
            }
            // Rows that stay may have another owner now.
            let compiler = &mut self.compiler;
            let row = compiler.addresses.row(address, &compiler.prefixes).row;
            let present = row.present.map(|class| (class, row.present_flags));
            compiler.addresses.settle(address, present);
        }
        for (net, row) in &draft.prefixes {
            self.compiler.settle_class(row.present, row.wanted);
            if let Some(class) = self.compiler.prefixes.settle(*net) {
                self.compiler.release_class(class);
            }
        }
        for set in std::mem::take(&mut self.left) {
            if let Some(set) = self.compiler.sets.get_mut(set) {
                set.published = set.published.saturating_sub(1);
            }
            self.compiler.drop_set_if_unused(set);
        }
        self.compiler.moved.prefixes.clear();
        self.compiler.services.settled();
        self.compiler.atoms.put_in_force();
        if !std::mem::take(&mut self.has_new_room) {
            self.touched.clear();
        }
        self.is_compacting = false;
        self.foreign = None;
        let retired = std::mem::take(&mut self.compiler.retired);
        let rows = retired.rows.into_iter();
        rest.extend(rows.map(|row| Resting::Verdict(row.key, Some(row.function))));
        rest.extend(retired.ports.into_iter().map(Resting::Port));
        rest.extend(retired.rules.into_iter().map(Resting::Rule));
        let adopted = std::mem::take(&mut self.adopted_rows);
        rest.extend(adopted.into_iter().map(|key| Resting::Verdict(key, None)));
        rest.extend(
            std::mem::take(&mut self.adopted_ports)
                .into_iter()
                .map(Resting::Port),
        );
        rest.extend(
            std::mem::take(&mut self.adopted_rules)
                .into_iter()
                .map(Resting::Rule),
        );
    }
}

/// The class a moving key takes while endpoints flip; `None` when it has it already.
fn meanwhile(draft: &Draft, own: &BTreeMap<Change, ClassId>, row: &Row) -> Option<ClassId> {
    let class = class_meanwhile(draft, own, (row.old, row.new));
    let is_there = row.present == Some(class) && row.present_flags == row.wanted_flags;
    (!is_there).then_some(class)
}

/// The class that addresses have while endpoints flip.
fn class_meanwhile(draft: &Draft, own: &BTreeMap<Change, ClassId>, change: Change) -> ClassId {
    let (old, new) = change;
    match draft.meanwhile.get(&change) {
        Some(Meanwhile::New) => new,
        Some(Meanwhile::Own) => own.get(&change).copied().unwrap_or(old),
        Some(Meanwhile::Old) | None => old,
    }
}
