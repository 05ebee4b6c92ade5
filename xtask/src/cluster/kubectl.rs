//! kubectl, as the cluster's administrator.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::process;
use super::state::State;

/// The variable that says where kubectl remembers the API.
pub(super) const CACHE: &str = "KUBECACHEDIR";

/// kubectl of one cluster.
#[derive(Debug)]
pub(super) struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

impl Kubectl {
    pub(super) fn new(state: &State, parts: &Path) -> Self {
        Self {
            program: parts.join("kubectl"),
            kubeconfig: state.kubeconfig(),
            cache: state.kubectl_cache(),
        }
    }

    /// What it prints.
    pub(super) fn output<A: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
    ) -> Result<String> {
        process::output(self.command().args(args))
    }

    /// What it prints as JSON.
    pub(super) fn json<const N: usize>(&self, args: [&str; N]) -> Result<Value> {
        let text = self.output(args.iter().chain(&["-o", "json"]))?;
        serde_json::from_str(&text).context("reading kubectl's JSON")
    }

    /// Applies these manifests.
    pub(super) fn apply(&self, manifests: &str) -> Result<()> {
        let mut child = self
            .command()
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all(manifests.as_bytes())
                .context("writing manifests to kubectl")?;
        }
        let output = child.wait_with_output().context("waiting for kubectl")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("kubectl apply: {}\n{}", output.status, said.trim_end());
        }
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env(CACHE, &self.cache)
            .stdin(Stdio::null());
        command
    }
}
