//! Judging: a flow that is known, and one that is new.
//!
//! Most packets that come this far end in the first lines of [`known_flow`]. What is off that path
//! is not inlined, here and in `report`: the kernel gives all of a program's frames 512 bytes together,
//! and functions that are not active at once share them.

use super::{
    Decision, Hook, Seen, audit, budget, flow, flow::Known, ownership, report,
    tables::FlowEntry as _, tables::FlowTables,
};
use crate::address::Address;
use crate::conntrack::{Signal, State};
use crate::judge::{Judgement, judge, judge_peer, peer_of};
use crate::maps::{
    Config, Connection, Counter, FIRST_RULE_ROW, FlowKey, ServiceKey, config_flags,
    connection_flags::{CUT, ITSELF, MID_STREAM, NODE, PEER_TOLD, POD_TOLD},
    hit_row, peer_bucket, peer_flags, settings_flags,
};
use crate::packet::transport::protocol;
use crate::verdict::{Direction, Reason, RuleId, Verdict};

/// What is asked of policy: may this flow be, seen from the direction it was opened in?
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    direction: Direction,
    /// Who the other side is, the protocol, and the port it was opened to: where SERVICES has it, if
    /// it has it.
    pub(super) key: ServiceKey,
    /// The interface that told, when the packet shows another address; else 0.
    pub(super) via: u32,
    peer_bucket: u16,
    /// Read before the peer's class is, so that a change in between shows as a mismatch later.
    peer_revision: u32,
}

impl Question {
    /// About nobody.
    pub(super) const NONE: Self = Self {
        direction: Direction::Ingress,
        key: ServiceKey {
            address: Address::UNSPECIFIED,
            port: 0,
            protocol: 0,
            reserved: 0,
        },
        via: 0,
        peer_bucket: 0,
        peer_revision: 0,
    };

    /// Revision of the peer's bucket as it was before anything was asked.
    #[inline(always)]
    pub(super) const fn peer_revision(&self) -> u32 {
        self.peer_revision
    }

    /// What a policy set says to it; and the peer's class.
    #[inline(never)]
    pub(super) fn put_to<T: FlowTables>(&self, tables: &T, set: u32, class: &mut u32) -> Judgement {
        let peer = peer_of(tables, &self.key.address);
        *class = peer.class;
        judge_peer(tables, set, peer, self.direction, &self.key)
    }

    /// The same where most peers are not virtual: no call is made for those.
    #[inline(always)]
    fn put_here<T: FlowTables>(&self, tables: &T, set: u32, class: &mut u32) -> Judgement {
        let peer = peer_of(tables, &self.key.address);
        if peer.flags & peer_flags::VIP != 0 {
            return self.put_to(tables, set, class);
        }
        *class = peer.class;
        judge(tables, set, peer.class, self.key.protocol, self.key.port)
    }

    /// Fills in what follows from the flow, its direction and the peer that is there.
    #[inline(always)]
    fn about<T: FlowTables>(&mut self, tables: &T, flow: &FlowKey, direction: Direction) {
        self.direction = direction;
        self.key.protocol = flow.protocol;
        self.key.port = flow::judged_port(flow, direction);
        self.peer_bucket = peer_bucket(self.key.address);
        self.peer_revision = tables.peer_revision(self.peer_bucket);
    }
}

/// Asks the policies in force and, where they differ, the audited ones, what `seen` has as its
/// question.
#[inline(never)]
fn ask<T: FlowTables>(tables: &T, seen: &Seen, config: &Config, decision: &mut Decision) -> Reason {
    let question = &seen.question;
    let (set, audit_set) = sets_of(config, question.direction);
    let in_force = question.put_to(tables, set, &mut decision.class);
    decide(config, question, set, in_force, decision);
    decision.is_audited = audit_set != set;
    if decision.is_audited {
        let class = &mut decision.class;
        decision.difference = audit::difference(tables, in_force, audit_set, question, class);
    } else {
        decision.difference = None;
    }
    decision.reason
}

/// Asks the policies in force alone.
#[inline(always)]
pub(super) fn ask_in_force<T: FlowTables>(
    tables: &T,
    seen: &Seen,
    config: &Config,
    decision: &mut Decision,
) {
    let question = &seen.question;
    let (set, _) = sets_of(config, question.direction);
    let in_force = question.put_here(tables, set, &mut decision.class);
    decide(config, question, set, in_force, decision);
}

/// Writes down what the policies in force have said.
#[inline(always)]
fn decide(
    config: &Config,
    question: &Question,
    set: u32,
    in_force: Judgement,
    decision: &mut Decision,
) {
    decision.reason = if matches!(in_force.reason, Reason::FailClosed) {
        posture(config)
    } else {
        in_force.reason
    };
    decision.direction = question.direction;
    decision.rule = in_force.rule;
    decision.set = set;
    decision.via = question.via;
}

/// A flow that was allowed when it was judged last.
#[inline(always)]
pub(super) fn known_flow<T: FlowTables>(
    tables: &T,
    seen: &mut Seen,
    config: &Config,
    known: &Known<T::Entry>,
    decision: &mut Decision,
) -> Reason {
    let connection = known.entry.read();
    let is_error = matches!(seen.signal, Signal::Related);
    if !is_error && !flow::comes_as_before(&seen.at, seen.has_fragment_header, &connection) {
        return new_flow(tables, seen, config, decision);
    }
    let peer_revision = tables.peer_revision(connection.peer_bucket);
    let is_current =
        connection.revision == seen.revision && connection.peer_revision == peer_revision;
    if !is_current && connection.flags & (NODE | ITSELF) == 0 {
        let reason = judge_again(tables, seen, config, &known.entry, decision);
        // What a change has cut, the node may end; the entry stays as it is.
        if !is_allowed(reason) || matches!(reason, Reason::Node) {
            return reason;
        }
    }
    if is_error {
        return Reason::IcmpRelated;
    }
    flow::advance(tables, seen, known);
    Reason::Reply
}

/// A flow whose endpoint or peer has changed since, in the direction it was opened in.
#[inline(never)]
fn judge_again<T: FlowTables>(
    tables: &T,
    seen: &mut Seen,
    config: &Config,
    entry: &T::Entry,
    decision: &mut Decision,
) -> Reason {
    let Connection {
        via,
        peer_bucket,
        originator,
        state,
        flags,
        ..
    } = entry.read();
    let direction = Direction::from_index(originator);
    ownership::find_behind(tables, seen, via);
    let question = &mut seen.question;
    question.direction = direction;
    question.key.protocol = seen.flow.protocol;
    question.key.port = flow::judged_port(&seen.flow, direction);
    question.via = via;
    question.peer_bucket = peer_bucket;
    question.peer_revision = tables.peer_revision(peer_bucket);
    let reason = ask(tables, seen, config, decision);
    if is_allowed(reason) {
        entry.stamp(
            seen.revision,
            seen.question.peer_revision,
            decision.rule.0,
            reason.number(),
        );
        if flags & CUT != 0 {
            entry.advance(state, flags & !(CUT | POD_TOLD | PEER_TOLD));
        }
        report::allowed(tables, seen, decision);
    } else {
        decision.is_known = true;
        refuse_known(tables, seen, entry, flags, decision);
        if matches!(seen.signal, Signal::Reset) && is_by_node(seen) {
            return Reason::Node;
        }
    }
    reason
}

/// Marks a flow that policy does not allow any more, and has its sender told if that is wanted. The
/// entry stays as it is, so both sides' packets keep meeting this judgement: without it, the other
/// side's next segment would open the flow anew in its own direction. It is kept as long as an
/// established one: a forged reset must not shorten that.
#[inline(never)]
fn refuse_known<T: FlowTables>(
    tables: &T,
    seen: &Seen,
    entry: &T::Entry,
    flags: u16,
    decision: &Decision,
) {
    let mut after = flags | CUT;
    let told = match seen.at.hook {
        Hook::FromPod => POD_TOLD,
        Hook::ToPod => PEER_TOLD,
    };
    if flags & CUT == 0 {
        tables.count(Counter::Cut);
    }
    // A few times, because resets get lost; not more, because segments may come in floods.
    if tables.settings().flags & settings_flags::TELL_CUT != 0
        && seen.flow.protocol == protocol::TCP
        && matches!(seen.signal, Signal::Segment | Signal::Finish)
        && flags & told != told
    {
        // The lowest of its bits.
        after += told & told.wrapping_neg();
        report::tell(tables, seen, decision);
    }
    if after != flags {
        entry.advance(State::Established.number(), after);
    }
}

/// A flow that is not known: who began it, may it be, is there room.
#[inline(never)]
pub(super) fn new_flow<T: FlowTables>(
    tables: &T,
    seen: &mut Seen,
    config: &Config,
    decision: &mut Decision,
) -> Reason {
    put_question(tables, seen);
    let mut flags = 0;
    if let Some((reason, exempt)) = exemption(seen, config) {
        decision.reason = reason;
        flags = exempt;
    } else {
        let reason = ask(tables, seen, config, decision);
        if seen.signal.is_mid_stream() {
            flags = MID_STREAM;
        }
        if !is_allowed(reason) {
            // Perhaps the connection was opened from the other side, before we looked or
            // longer ago than the table remembers. Then its peer is whom the address shows.
            seen.question.key.address = seen.flow.peer;
            seen.question.via = 0;
            let opposite = seen.direction.opposite();
            seen.question.about(tables, &seen.flow, opposite);
            if !may_adopt(tables, seen, config) || !adopt(tables, seen, config, decision) {
                return reason;
            }
        }
    }
    // A reset passes where its flow would have, and begins none.
    if !matches!(seen.signal, Signal::Reset) {
        admit(tables, seen, config, flags, decision);
    }
    decision.reason
}

/// Writes down what is asked of policy about a flow that begins with this packet.
#[inline(always)]
pub(super) fn put_question<T: FlowTables>(tables: &T, seen: &mut Seen) {
    ownership::find_sender(tables, seen);
    let direction = seen.direction;
    seen.question.about(tables, &seen.flow, direction);
}

/// Judges a flow in the direction opposite to its packet's; what is denied is not spoken of.
#[inline(never)]
fn adopt<T: FlowTables>(tables: &T, seen: &Seen, config: &Config, decision: &mut Decision) -> bool {
    let denied = *decision;
    if !is_allowed(ask(tables, seen, config, decision)) {
        *decision = denied;
        return false;
    }
    decision.reason = Reason::MidStream;
    true
}

/// True when the node itself has sent a packet to the pod.
#[inline(always)]
fn is_by_node(seen: &Seen) -> bool {
    // The node's forwarding forgets where IPv6 fragments came in when it cuts them again, so
    // those prove nothing; a chain of headers that was not read to its end never gets here.
    matches!(seen.at.hook, Hook::ToPod) && seen.at.ingress_ifindex == 0 && !seen.has_fragment_header
}

/// What is allowed whatever policy says, by where it comes from.
#[inline(always)]
pub(super) fn exemption(seen: &Seen, config: &Config) -> Option<(Reason, u16)> {
    let ingress_ifindex = seen.at.ingress_ifindex;
    match seen.at.hook {
        Hook::ToPod if is_by_node(seen) => Some((Reason::Node, NODE)),
        // A hairpin through a Service shows the node's address, but came in at the pod itself. The
        // pod's own address on a packet from elsewhere proves nothing: it is judged like any other.
        Hook::ToPod if ingress_ifindex == seen.at.ifindex => Some((Reason::Itself, ITSELF)),
        Hook::FromPod if ownership::is_own(config, seen.flow.peer.halves()) => {
            Some((Reason::Itself, ITSELF))
        }
        Hook::ToPod | Hook::FromPod => None,
    }
}

/// True when a segment without SYN may belong to a connection that the other side has opened.
#[inline(always)]
fn may_adopt<T: FlowTables>(tables: &T, seen: &Seen, config: &Config) -> bool {
    let settings = tables.settings();
    seen.signal.is_mid_stream()
        && (settings.flags & settings_flags::STRICT_MID_STREAM == 0
            || seen.now32().wrapping_sub(config.attached) <= settings.mid_stream_grace)
}

/// Finds room for an allowed flow, writes it down and reports it; or refuses it for want of room.
#[inline(never)]
fn admit<T: FlowTables>(
    tables: &T,
    seen: &mut Seen,
    config: &Config,
    flags: u16,
    decision: &mut Decision,
) {
    let signal = seen.signal;
    if keep(tables, seen, signal, config, flags, decision) {
        report::allowed(tables, seen, decision);
    }
}

/// Finds room for an allowed flow and writes it down; or refuses it. `signal` is what `seen` has, a
/// constant for who knows it.
#[inline(always)]
pub(super) fn keep<T: FlowTables>(
    tables: &T,
    seen: &mut Seen,
    signal: Signal,
    config: &Config,
    flags: u16,
    decision: &mut Decision,
) -> bool {
    let now = seen.now32();
    let is_by_node = flags & NODE != 0;
    // A flood must not keep the kubelet's probes out.
    if !is_by_node
        && !tables.spend(seen.slot(), |row| {
            budget::spend(row, tables.settings(), now)
        })
    {
        tables.count(Counter::BudgetExceeded);
        decision.reason = posture(config);
        return false;
    }
    // The node's SYN-ACK answers a connection that the pod has opened: it is not the node's. What
    // begins no flow is neither a new connection of its rule nor reported as one.
    if signal.begins_flow() && !(is_by_node && matches!(signal, Signal::Accept)) {
        if !remember(tables, seen, signal, flags, decision) {
            tables.count(Counter::ConnectionRefused);
            decision.reason = posture(config);
            return false;
        }
        if flags & MID_STREAM != 0 {
            tables.count(Counter::MidStream);
        }
        let row = hit_row(decision.rule, decision.reason, decision.direction);
        tables.begun(row, seen.now);
        if decision.rule != RuleId::NONE && row < FIRST_RULE_ROW {
            tables.count(Counter::RuleHitLost);
        }
        decision.is_new = true;
    }
    true
}

/// Writes a new flow down where it waits until both sides have agreed to it. False when there is no
/// room.
#[inline(always)]
fn remember<T: FlowTables>(
    tables: &T,
    seen: &mut Seen,
    signal: Signal,
    flags: u16,
    decision: &Decision,
) -> bool {
    let (question, now) = (&seen.question, seen.now32());
    // An adopted one has an answer, this packet; that its originator knows of it is to be seen yet.
    let state = if question.direction.index() == seen.direction.index() {
        signal.first_state()
    } else {
        State::Answered
    };
    seen.begun = Connection {
        revision: seen.revision,
        peer_revision: question.peer_revision,
        last_seen: now,
        rule: decision.rule.0,
        via: question.via,
        peer_bucket: question.peer_bucket,
        state: state.number(),
        originator: question.direction.index(),
        flags,
        reason: decision.reason.number(),
        reserved: Default::default(),
        first_seen: now,
    };
    tables.insert_pending(&seen.flow, &seen.begun)
}

#[inline(always)]
pub(super) fn is_allowed(reason: Reason) -> bool {
    reason.verdict() == Verdict::Allow
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

/// True when policies select the endpoint in a direction.
#[inline(always)]
pub(super) fn is_isolated(config: &Config, direction: Direction) -> bool {
    sets_of(config, direction).0 != 0
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
