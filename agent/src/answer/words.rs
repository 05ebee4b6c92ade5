//! Selectors, peers and ports in few words, as `kubectl get -l` writes them.

use agent_policy::model::{NamespaceScope, Peer, Peers, PortMatch, Ports};
use agent_policy::selector::{Operator, Requirement, Selector};

/// `app=api,tier in (a,b),!old`; `every pod` style wording is the caller's when it is empty.
pub(super) fn selector(selector: &Selector) -> Option<String> {
    if selector.requirements.is_empty() {
        return None;
    }
    let requirements: Vec<String> = selector.requirements.iter().map(requirement).collect();
    Some(requirements.join(","))
}

fn requirement(requirement: &Requirement) -> String {
    let key = &requirement.key;
    match &requirement.operator {
        Operator::In(values) => match values.as_slice() {
            [only] => format!("{key}={only}"),
            several => format!("{key} in ({})", several.join(",")),
        },
        Operator::NotIn(values) => match values.as_slice() {
            [only] => format!("{key}!={only}"),
            several => format!("{key} notin ({})", several.join(",")),
        },
        Operator::Exists => key.clone(),
        Operator::DoesNotExist => format!("!{key}"),
    }
}

/// Which pods a policy selects.
pub(super) fn pods(pods: &Selector) -> String {
    selector(pods).unwrap_or_else(|| "every pod".to_owned())
}

/// Who a rule's `from` or `to` speaks of.
pub(super) fn peers(peers: &Peers) -> String {
    match peers {
        Peers::All => "everyone".to_owned(),
        Peers::Any(peers) if peers.is_empty() => "no one".to_owned(),
        Peers::Any(peers) => peers.iter().map(peer).collect::<Vec<_>>().join(" or "),
    }
}

fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Pods { namespaces, pods } => {
            let who =
                selector(pods).map_or_else(|| "any pod".to_owned(), |pods| format!("pods {pods}"));
            match namespaces {
                NamespaceScope::Own => format!("{who} of the namespace"),
                NamespaceScope::Selected(namespaces) => match selector(namespaces) {
                    Some(namespaces) => format!("{who} in namespaces {namespaces}"),
                    None => format!("{who} in any namespace"),
                },
            }
        }
        Peer::Block { cidr, except } if except.is_empty() => cidr.to_string(),
        Peer::Block { cidr, except } => {
            let except: Vec<String> = except.iter().map(ToString::to_string).collect();
            format!("{cidr} except {}", except.join(", "))
        }
    }
}

/// On which ports.
pub(super) fn ports(ports: &Ports) -> String {
    match ports {
        Ports::All => "any".to_owned(),
        Ports::Any(ports) if ports.is_empty() => "none".to_owned(),
        Ports::Any(ports) => ports.iter().map(port).collect::<Vec<_>>().join(", "),
    }
}

fn port(port: &PortMatch) -> String {
    match port {
        PortMatch::Protocol(protocol) => protocol.to_string(),
        PortMatch::Range {
            protocol,
            first,
            last,
        } if first == last => format!("{protocol}/{first}"),
        PortMatch::Range {
            protocol,
            first,
            last,
        } => format!("{protocol}/{first}-{last}"),
        PortMatch::Named { protocol, name } => format!("{protocol}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use agent_policy::model::Protocol;

    use super::*;

    #[test]
    fn selectors_read_as_kubectl_writes_them() {
        let requirement = |key: &str, operator| Requirement {
            key: key.to_owned(),
            operator,
        };
        let several = Selector::new(vec![
            requirement("app", Operator::In(vec!["api".to_owned()])),
            requirement(
                "env",
                Operator::NotIn(vec!["dev".to_owned(), "test".to_owned()]),
            ),
            requirement("old", Operator::DoesNotExist),
            requirement("team", Operator::Exists),
        ]);
        assert_eq!(pods(&several), "app=api,env notin (dev,test),!old,team");
        assert_eq!(pods(&Selector::EVERYTHING), "every pod");
    }

    #[test]
    fn peers_and_ports_read_as_words() {
        let block = |except: &[&str]| Peer::Block {
            cidr: "10.0.0.0/8".parse().unwrap(),
            except: except.iter().map(|each| each.parse().unwrap()).collect(),
        };
        let anywhere = Peer::Pods {
            namespaces: NamespaceScope::Selected(Selector::EVERYTHING),
            pods: Selector::EVERYTHING,
        };
        assert_eq!(peers(&Peers::All), "everyone");
        assert_eq!(peers(&Peers::Any(Vec::new())), "no one");
        assert_eq!(
            peers(&Peers::Any(vec![block(&["10.1.0.0/16"]), anywhere])),
            "10.0.0.0/8 except 10.1.0.0/16 or any pod in any namespace"
        );
        let range = |first, last| PortMatch::Range {
            protocol: Protocol::TCP,
            first,
            last,
        };
        assert_eq!(
            ports(&Ports::Any(vec![range(80, 80), range(8000, 8080)])),
            "TCP/80, TCP/8000-8080"
        );
        assert_eq!(ports(&Ports::All), "any");
    }
}
