//! What many pods have in common is kept once: labels, ports, their node's and workload's names. A
//! deployment's pods differ in name, UID and addresses, and in little else.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::Arc;

use crate::hash::HashSet;
use crate::model::{ContainerPort, Pod};

/// So many values are kept whoever has them.
const FIRST_SWEEP: usize = 64;

/// Values of a cluster's pods, each once.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    labels: Pool<BTreeMap<String, String>>,
    ports: Pool<[ContainerPort]>,
    words: Pool<str>,
}

impl Shared {
    /// The pod refers to what others have already, where it is equal.
    ///
    /// Of two that know the same pods neither learns what no pod has any more: one of them has to
    /// go with what it was for.
    pub fn share(&mut self, pod: &mut Pod) {
        self.labels.share(pod.labels.shared());
        self.labels.share(pod.annotations.shared());
        self.ports.share(&mut pod.ports);
        self.words.share(&mut pod.node);
        self.words.share(&mut pod.workload);
        self.words.share(&mut pod.name.namespace);
    }

    /// What no pod has any more goes.
    #[cfg(test)]
    pub(super) fn sweep(&mut self) {
        self.labels.sweep();
        self.ports.sweep();
        self.words.sweep();
    }
}

/// Values of one type.
#[derive(Debug)]
struct Pool<T: ?Sized> {
    values: HashSet<Arc<T>>,
    /// At this size those that nobody has any more are dropped.
    sweep_at: usize,
}

impl<T: ?Sized> Clone for Pool<T> {
    fn clone(&self) -> Self {
        Self {
            values: self.values.clone(),
            sweep_at: self.sweep_at,
        }
    }
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self {
            values: HashSet::default(),
            sweep_at: FIRST_SWEEP,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn share(&mut self, value: &mut Arc<T>) {
        if let Some(known) = self.values.get(value) {
            *value = Arc::clone(known);
            return;
        }
        if self.values.len() >= self.sweep_at {
            self.sweep();
        }
        self.values.insert(Arc::clone(value));
    }

    /// Drops values that nobody else has.
    fn sweep(&mut self) {
        self.values.retain(|known| Arc::strong_count(known) > 1);
        self.sweep_at = (self.values.len() * 2).max(FIRST_SWEEP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_those_of_nobody_go() {
        let mut pool = Pool::default();
        let mut first: Arc<str> = Arc::from("web");
        let mut second: Arc<str> = Arc::from("web");
        pool.share(&mut first);
        pool.share(&mut second);
        assert!(Arc::ptr_eq(&first, &second));
        for number in 0..1000 {
            pool.share(&mut Arc::from(number.to_string()));
        }
        assert!(pool.values.len() <= 65, "{}", pool.values.len());
        assert!(pool.values.contains("web"));
    }
}
