//! What the cluster keeps per namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::labels::{LabelIndex, SelectorIndex};
use crate::model::{Labels, Namespace, Policy};

/// Where a pod is kept.
pub(super) type PodSlot = u32;

/// A namespace and what lives in it.
#[derive(Clone, Debug)]
pub(super) struct Home {
    /// The object, or what is certain about it while it was not seen.
    pub(super) namespace: Namespace,
    /// True when the object was seen.
    pub(super) is_known: bool,
    /// Every pod.
    pub(super) pods: BTreeSet<PodSlot>,
    /// Pods that selectors may select.
    pub(super) labels: LabelIndex<PodSlot>,
    /// Policies by name.
    pub(super) policies: BTreeMap<Arc<str>, Arc<Policy>>,
    /// The same by what they may select.
    pub(super) policy_selectors: SelectorIndex<Arc<str>>,
}

impl Home {
    pub(super) fn new(name: &Arc<str>) -> Self {
        Self {
            namespace: implied(name),
            is_known: false,
            pods: BTreeSet::new(),
            labels: LabelIndex::default(),
            policies: BTreeMap::new(),
            policy_selectors: SelectorIndex::default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.is_known && self.pods.is_empty() && self.policies.is_empty()
    }
}

/// What is certain about a namespace that was not seen: the API server sets this label on every
/// namespace and refuses to change it.
pub(super) fn implied(name: &Arc<str>) -> Namespace {
    Namespace {
        name: Arc::clone(name),
        labels: Labels::from([("kubernetes.io/metadata.name".to_owned(), name.to_string())]),
        annotations: Labels::new(),
    }
}
