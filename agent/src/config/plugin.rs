//! The chained CNI plugin: whether the agent puts it into the node's network, and how it behaves.

use std::time::Duration;

use super::{ConfigError, Options, absolute, duration};
use crate::plugin::{Entry, LONGEST_WAIT, OnTimeout, Places};

/// Whether the agent puts the plugin into the node's network.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Plugin {
    /// The network is left as it is.
    #[default]
    Off,
    /// It is put there, and kept there.
    Install,
}

impl std::str::FromStr for Plugin {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        match word {
            "off" => Ok(Self::Off),
            "install" => Ok(Self::Install),
            _ => Err(ConfigError::Plugin(word.to_owned())),
        }
    }
}

impl std::str::FromStr for OnTimeout {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        match word {
            "start" => Ok(Self::Start),
            "fail" => Ok(Self::Fail),
            _ => Err(ConfigError::OnTimeout(word.to_owned())),
        }
    }
}

/// Where the plugin is put and what its entry says; nothing where it is not.
pub(super) fn of(options: &Options) -> Result<Option<(Places, Entry)>, ConfigError> {
    absolute("--cni-conf-dir", &options.cni_places.conf)?;
    absolute("--cni-bin-dir", &options.cni_places.bin)?;
    let wait = duration(&options.cni_wait)
        .filter(|wait| (Duration::from_millis(1)..=LONGEST_WAIT).contains(wait))
        .ok_or_else(|| ConfigError::PluginWait(options.cni_wait.clone()))?;
    let entry = Entry {
        socket: options.socket.clone(),
        wait_millis: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        on_timeout: options.cni_on_timeout,
    };
    Ok(match options.cni_plugin {
        Plugin::Off => None,
        Plugin::Install => Some((options.cni_places.clone(), entry)),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn of(change: impl FnOnce(&mut Options)) -> Result<Option<(Places, Entry)>, ConfigError> {
        let mut options = Options::new("/");
        change(&mut options);
        Config::new(options).map(|config| config.plugin)
    }

    #[test]
    fn the_nodes_network_is_left_alone_unless_asked_for() {
        assert_eq!(of(|_| {}), Ok(None));
        let (places, entry) = of(|options| options.cni_plugin = Plugin::Install)
            .unwrap()
            .unwrap();
        assert_eq!(places.conf.to_str(), Some("/etc/cni/net.d"));
        assert_eq!(
            (entry.wait_millis, entry.on_timeout),
            (5_000, OnTimeout::Start)
        );
    }

    #[test]
    fn a_pod_is_held_up_for_five_seconds_at_most() {
        let of = |wait: &str| {
            of(|options| {
                options.cni_plugin = Plugin::Install;
                options.cni_wait = wait.to_owned();
            })
        };
        assert_eq!(of("1500ms").unwrap().unwrap().1.wait_millis, 1_500);
        for wrong in ["0s", "6s", "soon"] {
            assert_eq!(of(wrong), Err(ConfigError::PluginWait(wrong.to_owned())));
        }
    }
}
