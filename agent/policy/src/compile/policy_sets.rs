//! Policy sets: the rules that judge an endpoint in one direction. Endpoints with equal rules
//! share a set; a set never changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use agent_common::maps::IdKind;

use super::atoms::AtomId;
use super::ids::Ids;
use super::peer_classes::{ClassId, Token};
use super::port_functions::{Flattening, Function, Outcome};
use crate::hash::HashMap;
use crate::model::{PortMatch, Ports, Protocol, RuleId};

/// A policy set as the kernel knows it. Never used twice.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct SetId(pub(crate) u32);

impl SetId {
    /// Not isolated.
    pub(crate) const NOT_ISOLATED: Self = Self(0);
}

/// A (protocol, port name) that rules use.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct NameId(pub(crate) u32);

/// The ports of a rule as far as they are known without the peer.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum RulePorts {
    /// Every port of every protocol.
    All,
    /// These.
    Some {
        /// Protocol, first, last.
        ranges: Vec<(u8, u16, u16)>,
        /// Names, resolved at the peer (egress only).
        names: Vec<NameId>,
    },
}

impl RulePorts {
    /// True when no packet can be on these ports.
    pub(crate) fn is_nothing(&self) -> bool {
        matches!(self, Self::Some { ranges, names } if ranges.is_empty() && names.is_empty())
    }

    /// The names resolved at the peer.
    pub(crate) fn names(&self) -> &[NameId] {
        match self {
            Self::All => &[],
            Self::Some { names, .. } => names,
        }
    }

    /// The ports of a rule. `named` says what a name becomes: port numbers known here, or an id
    /// to resolve at the peer.
    pub(crate) fn of(ports: &Ports, mut named: impl FnMut(Protocol, &str) -> Named) -> Self {
        let Ports::Any(items) = ports else {
            return Self::All;
        };
        let mut ranges = Vec::new();
        let mut names = Vec::new();
        for item in items {
            match item {
                PortMatch::Protocol(protocol) => ranges.push((protocol.0, 0, u16::MAX)),
                PortMatch::Range {
                    protocol,
                    first,
                    last,
                } => ranges.push((protocol.0, *first, *last)),
                PortMatch::Named { protocol, name } => match named(*protocol, name) {
                    Named::Here(ports) => {
                        ranges.extend(ports.into_iter().map(|port| (protocol.0, port, port)));
                    }
                    Named::AtPeer(id) => names.push(id),
                },
            }
        }
        ranges.sort_unstable();
        ranges.dedup();
        names.sort_unstable();
        names.dedup();
        Self::Some { ranges, names }
    }
}

/// What a port name becomes in a set.
#[derive(Clone, Debug)]
pub(crate) enum Named {
    /// Resolved at the endpoint.
    Here(Vec<u16>),
    /// To be resolved at the peer.
    AtPeer(NameId),
}

/// One rule of a set.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct SetRule {
    /// Which.
    pub(crate) rule: RuleId,
    /// Whom it admits; `None` means everyone.
    pub(crate) atom: Option<AtomId>,
    /// On which ports.
    pub(crate) ports: Arc<RulePorts>,
}

/// A set's rules in precedence order; none means isolated without a rule.
pub(crate) type SetRules = Arc<[SetRule]>;

/// The port function of a set's rules for addresses with these tokens.
pub(crate) fn function(
    rules: &[SetRule],
    tokens: &[Token],
    protocol_of: impl Fn(NameId) -> u8,
) -> Function {
    let mut flattening = Flattening::default();
    for rule in rules {
        if flattening.is_complete() {
            break;
        }
        let admits = rule
            .atom
            .is_none_or(|atom| tokens.binary_search(&Token::Atom(atom)).is_ok());
        if !admits {
            continue;
        }
        let outcome = Outcome::admitted(rule.rule.0);
        match &*rule.ports {
            RulePorts::All => flattening.say_everywhere(outcome),
            RulePorts::Some { ranges, names } => {
                for (protocol, first, last) in ranges {
                    flattening.say(*protocol, *first, *last, outcome);
                }
                for name in names {
                    let from = tokens.partition_point(|token| *token < Token::Port(*name, 0));
                    for token in tokens.get(from..).unwrap_or_default() {
                        match token {
                            Token::Port(found, port) if found == name => {
                                flattening.say(protocol_of(*name), *port, *port, outcome);
                            }
                            Token::Port(..) | Token::Atom(_) => break,
                        }
                    }
                }
            }
        }
    }
    flattening.finish(Outcome::NO_RULE)
}

/// A set in use.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    /// What the set is.
    pub(crate) rules: SetRules,
    /// (endpoint, direction) pairs that want it.
    pub(crate) wanted: usize,
    /// (endpoint, direction) pairs that are published with it.
    pub(crate) published: usize,
    /// Classes it may have a row for.
    pub(crate) rows: BTreeSet<ClassId>,
}

/// The sets in use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sets {
    by_rules: HashMap<SetRules, SetId>,
    by_id: HashMap<SetId, Set>,
}

impl Sets {
    /// The set that has these rules and is given to endpoints that come to want them.
    pub(crate) fn find(&self, rules: &SetRules) -> Option<SetId> {
        self.by_rules.get(rules).copied()
    }

    /// A new set, from now on the one that [`Self::find`] finds.
    pub(crate) fn make(&mut self, rules: SetRules, ids: &mut Ids) -> SetId {
        let id = SetId(ids.take(IdKind::Set));
        self.by_rules.insert(Arc::clone(&rules), id);
        let set = Set {
            rules,
            wanted: 0,
            published: 0,
            rows: BTreeSet::new(),
        };
        self.by_id.insert(id, set);
        id
    }

    /// A set by id; `None` for set 0 and for those of an earlier agent.
    pub(crate) fn get(&self, id: SetId) -> Option<&Set> {
        self.by_id.get(&id)
    }

    /// See [`Self::get`].
    pub(crate) fn get_mut(&mut self, id: SetId) -> Option<&mut Set> {
        self.by_id.get_mut(&id)
    }

    /// Forgets the set if no endpoint wants it or is published with it.
    pub(crate) fn take_unused(&mut self, id: SetId) -> Option<Set> {
        let set = self.by_id.get(&id)?;
        if set.wanted > 0 || set.published > 0 {
            return None;
        }
        let set = self.by_id.remove(&id)?;
        if self.by_rules.get(&set.rules) == Some(&id) {
            self.by_rules.remove(&set.rules);
        }
        Some(set)
    }

    /// Sets in use.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }
}
