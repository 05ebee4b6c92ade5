//! A lab with a dataplane: pods, ip and tc, somebody else's program. The kernel takes it away with
//! the test's thread, also when the test panics.

#![expect(
    unreachable_pub,
    clippy::unused_self,
    reason = "a test's own module; the node is asked even where its thread is what counts"
)]

use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use agent::dataplane::{Dataplane, Method, Options};
use aya::programs::tc::TcAttachType;
use tests::lab::Lab;
use tests::lab::foreign::{Foreign, Place};
use tests::lab::pins::PINS;

/// The pods' port that knocks go to.
const PORT: u16 = 4000;

/// Every way of attaching that this kernel has.
pub fn methods() -> Vec<Method> {
    let best = std::thread::spawn(|| Node::new().open().method());
    match best.join().expect("opening a dataplane") {
        Method::Tcx => vec![Method::Tcx, Method::Clsact],
        Method::Clsact => vec![Method::Clsact],
    }
}

/// One node.
pub struct Node {
    lab: Lab,
}

impl Node {
    /// Moves this thread to a new node.
    pub fn new() -> Self {
        Self {
            lab: Lab::enter().unwrap(),
        }
    }

    /// Where the pins are.
    pub fn pins(&self) -> &Path {
        Path::new(PINS)
    }

    pub fn options(&self) -> Options {
        Options::new(PathBuf::from(PINS))
    }

    pub fn open(&self) -> Dataplane {
        Dataplane::open(&self.options()).unwrap()
    }

    /// A pod at 10.9.0.2 and so on; its host-side interface's index and name.
    pub fn pod(&mut self, name: &str) -> (u32, String) {
        let number = u8::try_from(self.lab.places().len()).unwrap();
        let address = IpAddr::from([10, 9, 0, 2 + number]);
        self.lab.add_pod(name, &[address]).unwrap();
        let ifindex = self.lab.place(name).unwrap().veth;
        (ifindex, format!("pod{ifindex}"))
    }

    /// Sends the pod a datagram from the node; true when it arrives.
    pub fn knock(&self, pod: &str) -> bool {
        let address = self.lab.place(pod).unwrap().addresses[0];
        let inside = self.socket(pod, PORT);
        inside
            .set_read_timeout(Some(Duration::from_millis(150)))
            .unwrap();
        let outside = UdpSocket::bind("0.0.0.0:0").unwrap();
        outside.send_to(b"knock", (address, PORT)).unwrap();
        inside.recv(&mut [0; 8]).is_ok()
    }

    /// A socket of the pod's, at its address.
    pub fn socket(&self, pod: &str, port: u16) -> UdpSocket {
        let place = self.lab.place(pod).unwrap();
        let bind = || Ok(UdpSocket::bind((place.addresses[0], port))?);
        place.namespace.enter(bind).unwrap()
    }

    /// Sends a datagram from the pod, which waits for no answer.
    pub fn send(&self, pod: &str, to: &str) {
        let inside = self.socket(pod, 0);
        inside.send_to(b"out", (to, PORT)).unwrap();
    }

    /// Runs ip(8).
    pub fn ip(&self, arguments: &[&str]) -> String {
        run("ip", arguments)
    }

    /// Runs tc(8).
    pub fn tc(&self, arguments: &[&str]) -> String {
        run("tc", arguments)
    }

    /// Somebody else's filter in the interface's clsact qdisc, of a program nobody holds.
    pub fn foreign_filter(&self, interface: &str) {
        let place = Place::Filter(7);
        let filter = Foreign::attach(interface, TcAttachType::Ingress, place);
        filter.unwrap().leave();
    }

    /// Somebody else's program at the interface's TCX ingress hook, where the kernel has one.
    pub fn foreign(&self, interface: &str) -> Option<Foreign> {
        Foreign::attach(interface, TcAttachType::Ingress, Place::Tcx).ok()
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    String::from_utf8(output.stdout).unwrap()
}
