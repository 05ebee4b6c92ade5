//! Keeps the plugin in the node's network while the agent runs: when the CNI writes its list anew,
//! ours is put behind it again. Never at once and never fast: whoever writes it as often as we do is
//! not fought, and how often it was written is told.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use super::install::{InstallError, Installed, Installer};
use crate::inotify::is_of_reading;

/// So long after each look nothing is written, whatever happens.
const REST: Duration = Duration::from_secs(3);
/// Without any sign it is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How the plugin stands in the node's network.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Standing {
    /// The list that names it.
    pub list: Option<String>,
    /// How often the list was written since the agent started.
    pub writes: u64,
    /// Why it is not in it.
    pub problem: Option<String>,
}

/// Puts the plugin in and keeps it there, until nobody wants to know how it stands.
pub async fn keep(mut installer: Installer, standing: watch::Sender<Standing>) {
    let changed = Arc::new(Notify::new());
    loop {
        // Before the look, so that nothing comes between it and the watch.
        let watcher = watcher(installer.networks(), &changed);
        let install = move || {
            let installed = installer.install();
            (installer, installed)
        };
        let Ok((back, installed)) = tokio::task::spawn_blocking(install).await else {
            // Only at the process's end.
            return;
        };
        installer = back;
        tell(&standing, installed);
        tokio::time::sleep(REST).await;
        tokio::select! {
            () = standing.closed() => return,
            // Nothing heard is a reason to look, too.
            _ = timeout(LOOK_AGAIN, changed.notified()) => {}
        }
        drop(watcher);
    }
}

fn tell(standing: &watch::Sender<Standing>, installed: Result<Installed, InstallError>) {
    let before = standing.borrow().clone();
    let mut now = before.clone();
    match installed {
        Ok(Installed { list, is_changed }) => {
            now.list = Some(list.display().to_string());
            now.problem = None;
            if is_changed {
                now.writes += 1;
                info!(
                    list = now.list,
                    writes = now.writes,
                    "CNI plugin put into the network"
                );
            }
        }
        Err(error) => {
            let problem = error.to_string();
            if before.problem.as_ref() != Some(&problem) {
                warn!(problem, "the CNI plugin is not in the node's network");
            }
            now.list = None;
            now.problem = Some(problem);
        }
    }
    standing.send_replace(now);
}

/// Signs of change; without them, the next look tells.
fn watcher(directory: &Path, changed: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let changed = Arc::clone(changed);
    let watcher = notify::recommended_watcher(move |event| {
        if !is_of_reading(&event) {
            changed.notify_one();
        }
    });
    let watching = watcher.and_then(|mut watcher| {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watching.ok()
}
