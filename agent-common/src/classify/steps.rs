//! Judging: a flow that is known, and one that is new.
//!
//! Nearly every packet ends in the first lines of [`known_flow`].

use super::{
    Decision, Hook, Seen, audit, budget, flow, flow::Known, ownership, ownership::Identity, report,
    tables::FlowEntry as _, tables::FlowTables,
};
use crate::address::Address;
use crate::conntrack::Signal;
use crate::judge::{Judgement, judge, peer_of};
use crate::maps::{
    Config, Connection, Counter, FlowKey, PendingKey, config_flags,
    connection_flags::{CUT, ITSELF, MID_STREAM, NODE},
    peer_bucket, settings_flags,
};
use crate::verdict::{Direction, Reason, RuleId, Verdict};

/// What is asked of policy: may this flow be, seen from the direction it was opened in?
struct Question {
    direction: Direction,
    peer: Identity,
    peer_bucket: u16,
    /// Read before the peer's class is, so that a change in between shows as a mismatch later.
    peer_revision: u32,
    port: u16,
}

impl Question {
    #[inline(always)]
    fn about<T: FlowTables>(
        tables: &T,
        flow: &FlowKey,
        direction: Direction,
        peer: Identity,
    ) -> Self {
        let peer_bucket = peer_bucket(peer.address);
        Self {
            direction,
            peer,
            peer_bucket,
            peer_revision: tables.peer_revision(peer_bucket),
            port: flow::judged_port(flow, direction),
        }
    }

    /// Asks the policies in force and, where they differ, the audited ones.
    #[inline(always)]
    fn ask<T: FlowTables>(&self, tables: &T, config: &Config, protocol: u8) -> Decision {
        let (set, audit_set) = sets_of(config, self.direction);
        let class = peer_of(tables, &self.peer.address).class;
        let in_force: Judgement = judge(tables, set, class, protocol, self.port);
        Decision {
            reason: if in_force.reason == Reason::FailClosed {
                posture(config)
            } else {
                in_force.reason
            },
            direction: self.direction,
            rule: in_force.rule,
            set,
            class,
            via: self.peer.via,
            is_new: false,
            difference: audit::difference(
                tables,
                in_force,
                (set, audit_set),
                class,
                protocol,
                self.port,
            ),
        }
    }
}

/// A flow that was allowed when it was judged last.
#[inline(always)]
pub(super) fn known_flow<T: FlowTables>(
    tables: &T,
    seen: &Seen<'_>,
    config: &Config,
    flow: &PendingKey,
    signal: Signal,
    mut known: Known<T::Entry>,
) -> Decision {
    let connection = known.connection;
    let peer_revision = tables.peer_revision(connection.peer_bucket);
    let is_current =
        connection.revision == seen.revision && connection.peer_revision == peer_revision;
    if is_current || connection.flags & (NODE | ITSELF) != 0 {
        flow::advance(tables, seen, flow, signal, &known);
        return Decision::without_rule(seen.direction, Reason::Reply);
    }
    let direction = Direction::from_index(connection.originator);
    let question = Question {
        direction,
        peer: Identity {
            address: ownership::address_behind(tables, connection.via, flow.flow.peer)
                .unwrap_or(flow.flow.peer),
            via: connection.via,
        },
        peer_bucket: connection.peer_bucket,
        peer_revision,
        port: flow::judged_port(&flow.flow, direction),
    };
    let decision = question.ask(tables, config, flow.flow.protocol);
    if !is_allowed(&decision) {
        // The entry stays as it is, so both sides' packets keep meeting this judgement: without
        // it, the other side's next segment would open the flow anew in its own direction.
        if connection.flags & CUT == 0 {
            tables.count(Counter::Cut);
            known
                .entry
                .advance(connection.state, connection.flags | CUT);
        }
        return decision;
    }
    known.entry.stamp(
        seen.revision,
        peer_revision,
        decision.rule.0,
        decision.reason.number(),
    );
    if connection.flags & CUT != 0 {
        known.connection.flags &= !CUT;
        known
            .entry
            .advance(connection.state, known.connection.flags);
    }
    flow::advance(tables, seen, flow, signal, &known);
    report::allowed(tables, seen, &decision);
    Decision::without_rule(seen.direction, Reason::Reply)
}

/// A flow that is not known: who began it, may it be, is there room.
#[inline(always)]
pub(super) fn new_flow<T: FlowTables>(
    tables: &T,
    seen: &Seen<'_>,
    config: &Config,
    flow: &PendingKey,
    signal: Signal,
) -> Decision {
    let sender = ownership::sender(tables, seen, flow.flow.peer);
    let own = Question::about(tables, &flow.flow, seen.direction, sender);
    let grant = match exemption(tables, seen, config, flow.flow.peer) {
        Some((reason, flags)) => Grant {
            decision: Decision::without_rule(seen.direction, reason),
            question: own,
            flags,
        },
        None => judged(tables, seen, config, &flow.flow, signal, own),
    };
    if !is_allowed(&grant.decision) || matches!(signal, Signal::Reset) {
        return grant.decision;
    }
    admit(tables, seen, config, flow, signal, grant)
}

/// A new flow's judgement, and what its entry will say.
struct Grant {
    decision: Decision,
    question: Question,
    /// `connection_flags`.
    flags: u16,
}

/// What is allowed whatever policy says, by where it comes from.
#[inline(always)]
fn exemption<T: FlowTables>(
    tables: &T,
    seen: &Seen<'_>,
    config: &Config,
    peer: Address,
) -> Option<(Reason, u16)> {
    let ingress_ifindex = seen.at.ingress_ifindex;
    let is_own = ownership::is_own(config, peer);
    match seen.at.hook {
        // The node's forwarding forgets where IPv6 fragments came in when it cuts them again, so
        // those prove nothing; a chain of headers that was not read to its end never gets here.
        Hook::ToPod if ingress_ifindex == 0 && !seen.headers.has_fragment_header => {
            Some((Reason::Node, NODE))
        }
        // A hairpin through a Service shows the node's address, but came in at the pod itself.
        Hook::ToPod if ingress_ifindex == seen.at.ifindex => Some((Reason::Itself, ITSELF)),
        Hook::ToPod if is_own && tables.endpoint(ingress_ifindex).is_none() => {
            Some((Reason::Itself, ITSELF))
        }
        Hook::FromPod if is_own => Some((Reason::Itself, ITSELF)),
        Hook::ToPod | Hook::FromPod => None,
    }
}

/// Asks policy, in the packet's own direction first.
#[inline(always)]
fn judged<T: FlowTables>(
    tables: &T,
    seen: &Seen<'_>,
    config: &Config,
    flow: &FlowKey,
    signal: Signal,
    question: Question,
) -> Grant {
    let grant = Grant {
        decision: question.ask(tables, config, flow.protocol),
        question,
        flags: if signal.is_mid_stream() {
            MID_STREAM
        } else {
            0
        },
    };
    if is_allowed(&grant.decision) || !may_adopt(tables, seen, config, signal) {
        return grant;
    }
    // Perhaps the connection was opened from the other side, before we looked or longer ago than
    // the table remembers. Then its peer is whom the address shows.
    let shown = Identity {
        address: flow.peer,
        via: 0,
    };
    let opposite = Question::about(tables, flow, seen.direction.opposite(), shown);
    let adopted = opposite.ask(tables, config, flow.protocol);
    if !is_allowed(&adopted) {
        return grant;
    }
    Grant {
        decision: Decision {
            reason: Reason::MidStream,
            ..adopted
        },
        question: opposite,
        flags: MID_STREAM,
    }
}

/// True when a segment without SYN may belong to a connection that the other side has opened.
#[inline(always)]
fn may_adopt<T: FlowTables>(tables: &T, seen: &Seen<'_>, config: &Config, signal: Signal) -> bool {
    let settings = tables.settings();
    signal.is_mid_stream()
        && (settings.flags & settings_flags::STRICT_MID_STREAM == 0
            || seen.now32().wrapping_sub(config.attached) <= settings.mid_stream_grace)
}

/// Finds room for an allowed flow, writes it down and reports it.
#[inline(always)]
fn admit<T: FlowTables>(
    tables: &T,
    seen: &Seen<'_>,
    config: &Config,
    flow: &PendingKey,
    signal: Signal,
    grant: Grant,
) -> Decision {
    let Grant {
        mut decision,
        question,
        flags,
    } = grant;
    let now = seen.now32();
    let is_by_node = flags & NODE != 0;
    // A flood must not keep the kubelet's probes out.
    if !is_by_node && !tables.spend(seen.slot, |row| budget::spend(row, tables.settings(), now)) {
        tables.count(Counter::BudgetExceeded);
        decision.reason = posture(config);
        return decision;
    }
    // The node's SYN-ACK answers a connection that the pod has opened: it is not the node's.
    if signal.begins_flow() && !(is_by_node && matches!(signal, Signal::Accept)) {
        let connection = Connection {
            revision: seen.revision,
            peer_revision: question.peer_revision,
            last_seen: now,
            rule: decision.rule.0,
            via: question.peer.via,
            peer_bucket: question.peer_bucket,
            state: signal.first_state().number(),
            originator: question.direction.index(),
            flags,
            reason: decision.reason.number(),
            reserved: 0,
            first_seen: now,
        };
        if !tables.insert_pending(flow, &connection) {
            tables.count(Counter::ConnectionRefused);
            decision.reason = posture(config);
            return decision;
        }
        if flags & MID_STREAM != 0 {
            tables.count(Counter::MidStream);
        }
    }
    if decision.rule != RuleId::NONE && !tables.rule_hit(decision.rule, seen.now) {
        tables.count(Counter::RuleHitLost);
    }
    decision.is_new = true;
    report::allowed(tables, seen, &decision);
    decision
}

#[inline(always)]
fn is_allowed(decision: &Decision) -> bool {
    decision.reason.verdict() == Verdict::Allow
}

/// What becomes of a flow whose state cannot be kept.
#[inline(always)]
fn posture(config: &Config) -> Reason {
    if config.flags & config_flags::FAIL_OPEN != 0 {
        Reason::FailOpen
    } else {
        Reason::FailClosed
    }
}

/// The sets in force and with audited policies, of one direction.
#[inline(always)]
fn sets_of(config: &Config, direction: Direction) -> (u32, u32) {
    let ([ingress, egress], [audit_ingress, audit_egress]) = (config.sets, config.audit_sets);
    match direction {
        Direction::Ingress => (ingress, audit_ingress),
        Direction::Egress => (egress, audit_egress),
    }
}
