//! What can be written, read back, and refused with a remedy.

use super::*;

fn read(text: &str) -> Result<Reference, ReferenceError> {
    text.parse()
}

#[expect(clippy::unnecessary_wraps, reason = "as a Reference has it")]
fn tcp(port: u16) -> Option<PortReference> {
    Some(PortReference {
        protocol: Protocol::TCP,
        port: PortName::Number(port),
    })
}

#[test]
fn addresses_are_read_in_every_form() {
    let v4 = Who::Address("10.0.0.7".parse().unwrap());
    let v6 = Who::Address("fd00::7".parse().unwrap());
    for (text, who, port) in [
        ("10.0.0.7", &v4, None),
        ("ip:10.0.0.7", &v4, None),
        ("10.0.0.7:443", &v4, tcp(443)),
        ("ip:10.0.0.7:443", &v4, tcp(443)),
        ("fd00::7", &v6, None),
        ("[fd00::7]", &v6, None),
        ("[fd00::7]:443", &v6, tcp(443)),
        ("ip:[fd00::7]:443", &v6, tcp(443)),
    ] {
        assert_eq!(
            read(text),
            Ok(Reference {
                who: who.clone(),
                port
            }),
            "{text}"
        );
    }
}

#[test]
fn pods_workloads_and_ports_are_read() {
    let named = |namespace: Option<&str>, name: &str| Who::Named {
        namespace: namespace.map(str::to_owned),
        name: name.to_owned(),
    };
    let deploy = |namespace: Option<&str>| Who::Workload {
        namespace: namespace.map(str::to_owned),
        kind: "Deployment",
        name: "api".to_owned(),
    };
    let dns = Some(PortReference {
        protocol: Protocol::UDP,
        port: PortName::Name("dns".to_owned()),
    });
    for (text, who, port) in [
        ("shop/api-0", named(Some("shop"), "api-0"), None),
        ("shop/api-0:80", named(Some("shop"), "api-0"), tcp(80)),
        ("api-0", named(None, "api-0"), None),
        ("deploy/api", deploy(None), None),
        ("shop/deploy/api:8080", deploy(Some("shop")), tcp(8080)),
        (
            "shop/Deployment/api:8080/tcp",
            deploy(Some("shop")),
            tcp(8080),
        ),
        ("shop/api-0:dns/UDP", named(Some("shop"), "api-0"), dns),
    ] {
        assert_eq!(read(text), Ok(Reference { who, port }), "{text}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    for text in [
        "10.0.0.7",
        "10.0.0.7:443",
        "fd00::7",
        "[fd00::7]:443",
        "shop/api-0",
        "api-0:80",
        "shop/deploy/api:8080",
        "deploy/api",
        "shop/api-0:dns/UDP",
        "node:node-a",
        "node:node-a:443",
    ] {
        assert_eq!(read(text).unwrap().to_string(), text);
    }
}

#[test]
fn what_cannot_be_read_says_what_to_write() {
    for (text, said) in [
        ("", "names nobody"),
        (":80", "names nobody"),
        ("a//b", "no endpoint"),
        ("a/b/c/d", "no endpoint"),
        ("shop/deplyo/api", "unknown kind \"deplyo\""),
        ("shop/svc/api:80", "name the workload"),
        ("world", "write namespace/pod"),
        ("dns:pay.example:443", "write namespace/pod"),
        ("ns:shop,app=api:80", "write namespace/pod"),
        ("node:", "no endpoint"),
        ("ip:nonsense", "no IP address"),
        ("[fd00::7", "no IP address"),
        ("shop/api:0", "no port"),
        ("shop/api:65536", "no port"),
        ("shop/api:", "no port"),
        ("shop/api:80/GRE", "protocol \"GRE\" is unknown"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
}

#[test]
fn matrix_ports_are_read_and_zero_is_none() {
    assert_eq!(
        "tcp/80".parse(),
        Ok(PortArg {
            protocol: Protocol::TCP,
            port: 80
        })
    );
    assert_eq!(
        "SCTP/3868".parse::<PortArg>().map(|port| port.to_string()),
        Ok("SCTP/3868".to_owned())
    );
    for wrong in ["80", "TCP/0", "TCP/65536", "ICMP/1", "TCP/http"] {
        assert!(wrong.parse::<PortArg>().is_err(), "{wrong}");
    }
}
