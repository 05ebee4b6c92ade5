//! `deploy/` as tests apply it, and Kustomize overlays as somebody would write them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// A file or directory of `deploy/`.
pub fn deploy(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(part)
}

/// A step of an overlay: the agent has this environment variable, too.
pub fn with_variable(name: &str, value: &str) -> Value {
    json!({
        "op": "add", "path": "/spec/template/spec/containers/0/env/-",
        "value": {"name": name, "value": value},
    })
}

/// A directory with a `kustomization.yaml`, gone with the value.
#[derive(Debug)]
pub struct Overlay(PathBuf);

impl Overlay {
    /// The base with these components, its `DaemonSet` changed by these steps (RFC 6902).
    pub fn of(components: &[&str], steps: &[Value]) -> Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("picket-overlay-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let overlay = Self(path.join("own"));
        fs::create_dir_all(&overlay.0)?;
        // Kustomize takes directories by relative paths only.
        let kustomize = deploy("kustomize").canonicalize()?;
        std::os::unix::fs::symlink(&kustomize, path.join("kustomize"))
            .with_context(|| format!("linking {}", kustomize.display()))?;
        let components: Vec<String> = components
            .iter()
            .map(|name| format!("../kustomize/components/{name}"))
            .collect();
        let mut patches = Vec::new();
        if !steps.is_empty() {
            patches.push(json!({
                "target": {"kind": "DaemonSet", "name": "picket"},
                "patch": Value::from(steps).to_string(),
            }));
        }
        let kustomization = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": ["../kustomize/base"], "components": components, "patches": patches,
        });
        let file = overlay.0.join("kustomization.yaml");
        fs::write(&file, kustomization.to_string())
            .with_context(|| format!("writing {}", file.display()))?;
        Ok(overlay)
    }

    /// What `kubectl apply -k` takes.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Some(path) = self.0.parent() {
            drop(fs::remove_dir_all(path));
        }
    }
}
