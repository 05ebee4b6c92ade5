//! The demo's story: a shop, and the way from a flat network to one where every path is meant.

use agent_policy::model::Protocol;

/// Pods and namespaces of the shop.
pub const CLUSTER: &str = include_str!("../../manifests/demo/cluster.yaml");
/// An address of the internet, one a family: customers come from there, cards are charged there.
pub const INTERNET: [&str; 2] = ["203.0.113.80", "2001:db8:203::80"];
/// The name of [`INTERNET`] in the story.
pub const OUTSIDE: &str = "internet";

/// Who opens connections, in the order of the grid's rows.
pub const SOURCES: [&str; 10] = [
    OUTSIDE,
    "ingress/gateway",
    "web/portal",
    "shop/api",
    "shop/worker",
    "shop/nightly-report",
    "data/db",
    "kube-system/dns",
    "monitoring/prometheus",
    "sandbox/rogue",
];

/// Something that is served; a column of the grid.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// `namespace/pod`, or [`OUTSIDE`].
    pub at: &'static str,
    /// First line of the column's head.
    pub title: &'static str,
    /// Second line.
    pub subtitle: &'static str,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
    /// Who needs it for the shop to work.
    pub needed_by: &'static [&'static str],
}

/// What is served, in the order of the grid's columns.
pub const SERVICES: [Service; 10] = [
    tcp("ingress/gateway", "gateway", "8443", 8443, &[OUTSIDE]),
    tcp("web/portal", "portal", "8080", 8080, &["ingress/gateway"]),
    tcp(
        "web/portal",
        "portal",
        "metrics",
        9090,
        &["monitoring/prometheus"],
    ),
    tcp("shop/api", "api", "8080", 8080, &["web/portal"]),
    tcp(
        "shop/api",
        "api",
        "metrics",
        9090,
        &["monitoring/prometheus"],
    ),
    tcp(
        "shop/worker",
        "worker",
        "metrics",
        9090,
        &["monitoring/prometheus"],
    ),
    tcp(
        "data/db",
        "db",
        "5432",
        5432,
        &["shop/api", "shop/worker", "shop/nightly-report"],
    ),
    Service {
        at: "kube-system/dns",
        title: "dns",
        subtitle: "53/udp",
        protocol: Protocol::UDP,
        port: 53,
        needed_by: &[
            "ingress/gateway",
            "web/portal",
            "shop/api",
            "shop/worker",
            "shop/nightly-report",
            "data/db",
            "monitoring/prometheus",
            "sandbox/rogue",
        ],
    },
    tcp("monitoring/prometheus", "promet.", "9090", 9090, &[]),
    tcp(OUTSIDE, OUTSIDE, "443", 443, &["shop/worker"]),
];

const fn tcp(
    at: &'static str,
    title: &'static str,
    subtitle: &'static str,
    port: u16,
    needed_by: &'static [&'static str],
) -> Service {
    Service {
        at,
        title,
        subtitle,
        protocol: Protocol::TCP,
        port,
        needed_by,
    }
}

/// A manifest: file name and content.
pub type File = (&'static str, &'static str);

/// One step of the way.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What is done.
    pub title: &'static str,
    /// Why, and what to look at.
    pub text: &'static str,
    /// Files that come or change.
    pub writes: &'static [File],
    /// Files that go.
    pub removes: &'static [&'static str],
}

macro_rules! manifest {
    ($name:literal) => {
        ($name, include_str!(concat!("../../manifests/demo/", $name)))
    };
    ($name:literal from $source:literal) => {
        (
            $name,
            include_str!(concat!("../../manifests/demo/", $source)),
        )
    };
}

/// The way.
pub const STEPS: &[Step] = &[
    Step {
        title: "A flat network",
        text: "No policy exists. Every pod reaches every other, and so does the rogue one.",
        writes: &[],
        removes: &[],
    },
    Step {
        title: "DNS and monitoring first",
        text: "They are what rollouts break. A policy isolates the pods it selects at once, so \
               `open-for-now` comes along: nobody notices anything.",
        writes: &[
            manifest!("open-for-now.yaml"),
            manifest!("allow-dns.yaml"),
            manifest!("allow-monitoring.yaml"),
        ],
        removes: &[],
    },
    Step {
        title: "Default deny",
        text: "`default-deny` takes the place of `open-for-now`. Only DNS and scrapes are left, \
               and the shop is down until its own paths are admitted, one by one.",
        writes: &[manifest!("default-deny.yaml")],
        removes: &["open-for-now.yaml"],
    },
    Step {
        title: "Customers reach the portal",
        text: "The gateway admits the internet but no pod (an ipBlock with an except); the \
               portal's port is admitted by its name.",
        writes: &[manifest!("customers.yaml")],
        removes: &[],
    },
    Step {
        title: "The portal reaches the API",
        text: "Two namespaces, two isolated pods: it takes a rule on either side.",
        writes: &[manifest!("api.yaml")],
        removes: &[],
    },
    Step {
        title: "The database, with a mistake",
        text: "The rule wants a label that the API's pods do not carry. The worker gets through, \
               the API does not, and Picket says which condition failed.",
        writes: &[manifest!("database.yaml" from "database-mistaken.yaml")],
        removes: &[],
    },
    Step {
        title: "The mistake mended, cards charged",
        text: "The label is corrected while everything runs, and the worker may call the payment \
               provider outside.",
        writes: &[manifest!("database.yaml"), manifest!("payments.yaml")],
        removes: &[],
    },
    Step {
        title: "The CronJob everybody forgot",
        text: "The nightly report would have failed at three in the morning. It is in the list of \
               denied flows above, so it gets its rule today.",
        writes: &[manifest!("report.yaml")],
        removes: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_needs_a_service_is_a_source() {
        for service in SERVICES {
            assert!(SOURCES.contains(&service.at), "{}", service.at);
            for source in service.needed_by {
                assert!(SOURCES.contains(source), "{source}");
            }
        }
    }

    #[test]
    fn what_goes_came_before() {
        let mut there = Vec::new();
        for step in STEPS {
            for file in step.removes {
                assert!(there.contains(file), "{file} was never written");
            }
            there.extend(step.writes.iter().map(|(name, _)| *name));
        }
    }
}
