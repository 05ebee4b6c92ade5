//! Picket as the cluster has it: installed as it is, with components, and taken out again.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::deploy::{Overlay, deploy};

use super::namespace::kubectl;

fn apply(how: &str, what: &str) -> Result<()> {
    kubectl(&["apply", how, what], "")?;
    rolled_out()
}

fn path(part: &str) -> Result<String> {
    let path = deploy(part).into_os_string().into_string().ok();
    path.with_context(|| format!("{part}: its path is not UTF-8"))
}

fn picket(args: &[&str]) -> Result<String> {
    kubectl(&[&["--namespace", "picket-system"], args].concat(), "")
}

fn rolled_out() -> Result<()> {
    picket(&["rollout", "status", "daemonset/picket", "--timeout=180s"]).map(drop)
}

/// Other agents of the same version.
pub(crate) fn restart() -> Result<()> {
    picket(&["rollout", "restart", "daemonset/picket"])?;
    rolled_out()
}

/// As `deploy/picket.yaml` has it, which all other tests expect.
pub(crate) fn install() -> Result<()> {
    apply("-f", &path("picket.yaml")?)
}

/// Out of every node's kernel and network; what waits in the agents' place stays.
pub(crate) fn uninstall() -> Result<()> {
    apply("-k", &path("kustomize/overlays/uninstall")?)
}

/// Asks the agent of this network namespace's node.
pub(crate) fn is_ready() -> Result<()> {
    let agent = SocketAddr::from(([127, 0, 0, 1], 9911));
    let mut stream = TcpStream::connect_timeout(&agent, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    Ok(())
}

/// Another installation, until the value goes: then it is again what others expect.
pub(crate) struct Changed {
    overlay: Overlay,
}

impl Changed {
    /// By steps as [`Overlay::of`] takes them.
    pub(crate) fn to(components: &[&str], steps: &[Value]) -> Result<Self> {
        let overlay = Overlay::of(components, steps)?;
        let changed = Self { overlay };
        apply("-k", &changed.overlay.path().to_string_lossy())?;
        Ok(changed)
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        // A test that fails because of the installation shall not take the others with it.
        drop(uninstall());
        let of_components = ["delete", "--ignore-not-found", "-k"];
        let overlay = self.overlay.path().to_string_lossy();
        drop(kubectl(
            &[of_components.as_slice(), &[&*overlay]].concat(),
            "",
        ));
        drop(install());
    }
}
