//! What the rules of a NetworkPolicy say: peers, ports, selectors.

use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::policy::RuleParts;
use super::{Reader, cidr, syntax};
use crate::model::{Direction, NamespaceScope, Peer, Peers, PortMatch, Ports, Protocol, Rule};
use crate::selector::{Operator, Requirement, Selector};

/// What follows from an unreadable part of a rule.
pub(super) const THIS_RULE: &str = "until it is mended this rule allows nothing";

/// Reads a rule; one with an unreadable part admits nothing.
pub(super) fn rule(
    reader: &mut Reader,
    direction: Direction,
    field: &str,
    parts: &RuleParts,
) -> Rule {
    let peers_field = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    // Every part is read, so that every fault is found at once.
    let peers: Vec<Option<Peer>> = (0_usize..)
        .zip(&parts.peers)
        .map(|(index, part)| peer(reader, &format!("{field}.{peers_field}[{index}]"), part))
        .collect();
    let ports: Vec<Option<PortMatch>> = (0_usize..)
        .zip(&parts.ports)
        .map(|(index, part)| port(reader, &format!("{field}.ports[{index}]"), part))
        .collect();
    let (Some(peers), Some(ports)) = (
        peers.into_iter().collect::<Option<Vec<Peer>>>(),
        ports.into_iter().collect::<Option<Vec<PortMatch>>>(),
    ) else {
        return Rule::NOTHING;
    };
    Rule {
        peers: if peers.is_empty() {
            Peers::All
        } else {
            Peers::Any(peers)
        },
        ports: if ports.is_empty() {
            Ports::All
        } else {
            Ports::Any(ports)
        },
    }
}

fn peer(reader: &mut Reader, field: &str, part: &NetworkPolicyPeer) -> Option<Peer> {
    let namespaces = part.namespace_selector.as_ref();
    let pods = part.pod_selector.as_ref();
    match (&part.ip_block, namespaces, pods) {
        (None, None, None) => {
            reader.error(
                field,
                format!(
                    "names nobody: write podSelector, namespaceSelector or ipBlock; {THIS_RULE}"
                ),
            );
            None
        }
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            reader.error(
                field,
                format!("has ipBlock and a selector: make them two items of the list; {THIS_RULE}"),
            );
            None
        }
        (Some(block), None, None) => ip_block(reader, &format!("{field}.ipBlock"), block),
        (None, namespaces, pods) => {
            let namespaces = namespaces.map(|part| {
                let field = format!("{field}.namespaceSelector");
                selector(reader, &field, part, THIS_RULE)
            });
            let pods = pods.map(|part| {
                let field = format!("{field}.podSelector");
                selector(reader, &field, part, THIS_RULE)
            });
            Some(Peer::Pods {
                namespaces: match namespaces {
                    None => NamespaceScope::Own,
                    Some(namespaces) => NamespaceScope::Selected(namespaces?),
                },
                // A namespaceSelector alone means all pods of those namespaces.
                pods: pods.unwrap_or(Some(Selector::EVERYTHING))?,
            })
        }
    }
}

fn ip_block(reader: &mut Reader, field: &str, block: &IPBlock) -> Option<Peer> {
    let range = range(reader, &format!("{field}.cidr"), &block.cidr);
    let mut except = Some(Vec::new());
    for (index, text) in block.except.iter().flatten().enumerate() {
        let field = format!("{field}.except[{index}]");
        let hole = self::range(reader, &field, text);
        if let (Some(range), Some(hole)) = (range, hole)
            && (!range.contains(&hole) || range.prefix_len() == hole.prefix_len())
        {
            reader.error(
                field,
                format!(
                    "{text:?}: must be inside {:?} and smaller; {THIS_RULE}",
                    block.cidr
                ),
            );
            except = None;
        }
        match (&mut except, hole) {
            (Some(except), Some(hole)) => except.push(hole),
            (_, None) => except = None,
            (None, Some(_)) => {}
        }
    }
    let mut except = except?;
    except.sort_unstable();
    except.dedup();
    Some(Peer::Block {
        cidr: range?,
        except,
    })
}

fn range(reader: &mut Reader, field: &str, text: &str) -> Option<ipnet::IpNet> {
    match cidr::parse(text) {
        Ok(parsed) => {
            if parsed.had_host_bits {
                reader.warning(
                    field,
                    format!("{text:?}: means {0}, write {0}", parsed.network),
                );
            }
            Some(parsed.network)
        }
        Err(problem) => {
            reader.error(field, format!("{text:?}: {problem}; {THIS_RULE}"));
            None
        }
    }
}

fn port(reader: &mut Reader, field: &str, part: &NetworkPolicyPort) -> Option<PortMatch> {
    let protocol = match part.protocol.as_deref() {
        None => Some(Protocol::TCP),
        Some(name) => {
            let protocol = Protocol::from_name(name);
            if protocol.is_none() {
                reader.error(
                    format!("{field}.protocol"),
                    format!("{name:?}: must be TCP, UDP or SCTP; {THIS_RULE}"),
                );
            }
            protocol
        }
    };
    let end_field = format!("{field}.endPort");
    let port_field = format!("{field}.port");
    match (&part.port, part.end_port) {
        (None, None) => Some(PortMatch::Protocol(protocol?)),
        (None, Some(end)) => {
            reader.error(
                end_field,
                format!("{end}: needs port, the first of the range; {THIS_RULE}"),
            );
            None
        }
        (Some(IntOrString::String(name)), end) => {
            let validity = syntax::port_name(name);
            if let Err(problem) = validity {
                reader.error(port_field, format!("{name:?}: {problem}; {THIS_RULE}"));
            }
            if let Some(end) = end {
                reader.error(
                    end_field,
                    format!("{end}: cannot stand beside the port name {name:?}; {THIS_RULE}"),
                );
            }
            if validity.is_err() || end.is_some() {
                return None;
            }
            Some(PortMatch::Named {
                protocol: protocol?,
                name: name.clone(),
            })
        }
        (Some(IntOrString::Int(number)), end) => {
            let first = number_at(reader, port_field, *number);
            let last = match end {
                None => first,
                Some(end) => number_at(reader, end_field.clone(), end),
            };
            let (first, last) = (first?, last?);
            if last < first {
                reader.error(
                    end_field,
                    format!("{last}: must not be less than port {first}; {THIS_RULE}"),
                );
                return None;
            }
            Some(PortMatch::Range {
                protocol: protocol?,
                first,
                last,
            })
        }
    }
}

fn number_at(reader: &mut Reader, field: String, number: i32) -> Option<u16> {
    let port = syntax::port_number(number);
    if port.is_none() {
        reader.error(
            field,
            format!("{number}: must be from 1 to 65535; {THIS_RULE}"),
        );
    }
    port
}

/// Reads a selector; `None` when a part is unreadable, with `consequence` said.
pub(super) fn selector(
    reader: &mut Reader,
    field: &str,
    part: &LabelSelector,
    consequence: &str,
) -> Option<Selector> {
    let mut requirements = Some(Vec::new());
    let mut take = |requirement: Option<Requirement>| match (&mut requirements, requirement) {
        (Some(requirements), Some(requirement)) => requirements.push(requirement),
        (_, None) => requirements = None,
        (None, Some(_)) => {}
    };
    for (key, value) in part.match_labels.iter().flatten() {
        let validity = syntax::label_key(key).and_then(|()| syntax::label_value(value));
        take(match validity {
            Ok(()) => Some(Requirement {
                key: key.clone(),
                operator: Operator::In(vec![value.clone()]),
            }),
            Err(problem) => {
                reader.error(
                    format!("{field}.matchLabels[{key}]"),
                    format!("{value:?}: {problem}; {consequence}"),
                );
                None
            }
        });
    }
    for (index, part) in part.match_expressions.iter().flatten().enumerate() {
        let field = format!("{field}.matchExpressions[{index}]");
        take(requirement(reader, &field, part, consequence));
    }
    Some(Selector::new(requirements?))
}

fn requirement(
    reader: &mut Reader,
    field: &str,
    part: &LabelSelectorRequirement,
    consequence: &str,
) -> Option<Requirement> {
    let found = reader.count();
    if let Err(problem) = syntax::label_key(&part.key) {
        let key = &part.key;
        reader.error(
            format!("{field}.key"),
            format!("{key:?}: {problem}; {consequence}"),
        );
    }
    let values = part.values.clone().unwrap_or_default();
    for (index, value) in values.iter().enumerate() {
        if let Err(problem) = syntax::label_value(value) {
            reader.error(
                format!("{field}.values[{index}]"),
                format!("{value:?}: {problem}; {consequence}"),
            );
        }
    }
    let (wants_values, operator) = match part.operator.as_str() {
        "In" => (true, Operator::In(values.clone())),
        "NotIn" => (true, Operator::NotIn(values.clone())),
        "Exists" => (false, Operator::Exists),
        "DoesNotExist" => (false, Operator::DoesNotExist),
        other => {
            reader.error(
                format!("{field}.operator"),
                format!("{other:?}: must be In, NotIn, Exists or DoesNotExist; {consequence}"),
            );
            return None;
        }
    };
    if wants_values == values.is_empty() {
        let problem = if wants_values {
            format!("operator {} needs at least one", part.operator)
        } else {
            format!("{values:?}: operator {} takes none", part.operator)
        };
        reader.error(
            format!("{field}.values"),
            format!("{problem}; {consequence}"),
        );
    }
    (reader.count() == found).then(|| Requirement {
        key: part.key.clone(),
        operator,
    })
}
