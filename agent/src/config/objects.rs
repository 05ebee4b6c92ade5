//! Where objects come from: exactly one place.

use std::fmt;
use std::path::PathBuf;

use super::{ConfigError, Options};
use crate::source::Access;

/// Where objects come from.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Objects {
    /// A watched directory of manifests.
    Directory(PathBuf),
    /// A Kubernetes API.
    Api(Access),
}

impl Objects {
    pub(super) fn of(options: &Options) -> Result<Self, ConfigError> {
        match (&options.manifests, &options.kubeconfig) {
            (Some(_), Some(_)) => Err(ConfigError::TwoSources),
            (Some(directory), None) if !directory.is_dir() => {
                Err(ConfigError::Manifests(directory.clone()))
            }
            (Some(directory), None) => Ok(Self::Directory(directory.clone())),
            (None, Some(file)) if file.is_dir() || !file.exists() => {
                Err(ConfigError::Kubeconfig(file.clone()))
            }
            (None, Some(file)) => Ok(Self::Api(Access::Kubeconfig(file.clone()))),
            (None, None) if options.is_in_cluster => Ok(Self::Api(Access::InCluster)),
            (None, None) => Err(ConfigError::NoSource),
        }
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "manifests in {}", path.display()),
            Self::Api(Access::Kubeconfig(path)) => write!(f, "the API of {}", path.display()),
            Self::Api(Access::InCluster) => f.write_str("the API of this cluster"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    #[test]
    fn objects_come_from_exactly_one_place() {
        let nowhere = || PathBuf::from("/nowhere/at/all");
        let of = |manifests: Option<&str>, kubeconfig: Option<&str>, is_in_cluster| {
            let mut options = Options::new("/");
            options.manifests = manifests.map(Into::into);
            options.kubeconfig = kubeconfig.map(Into::into);
            options.is_in_cluster = is_in_cluster;
            Config::new(options).map(|config| config.objects)
        };
        let api = |access| Ok(Objects::Api(access));
        let file = "/proc/self/status";
        for is_in_cluster in [false, true] {
            assert_eq!(
                of(Some("/"), None, is_in_cluster),
                Ok(Objects::Directory("/".into()))
            );
            assert_eq!(
                of(None, Some(file), is_in_cluster),
                api(Access::Kubeconfig(file.into()))
            );
            assert_eq!(
                of(Some("/"), Some(file), is_in_cluster),
                Err(ConfigError::TwoSources)
            );
            assert_eq!(
                of(Some("/nowhere/at/all"), None, is_in_cluster),
                Err(ConfigError::Manifests(nowhere()))
            );
            assert_eq!(
                of(None, Some("/nowhere/at/all"), is_in_cluster),
                Err(ConfigError::Kubeconfig(nowhere()))
            );
            assert_eq!(
                of(None, Some("/"), is_in_cluster),
                Err(ConfigError::Kubeconfig("/".into()))
            );
        }
        assert_eq!(of(None, None, true), api(Access::InCluster));
        assert_eq!(of(None, None, false), Err(ConfigError::NoSource));
    }
}
