//! What the compiler says of each (set, class): which function holds, and which rows that takes.

use std::collections::BTreeSet;
use std::sync::Arc;

use agent_common::maps::Service;

use super::Compiler;
use super::peer_classes::{ClassId, Token};
use super::policy_sets::{self, SetId, SetRules};
use super::port_functions::FunctionId;

impl Compiler {
    /// The function that holds for a set and class; set 0 passes everything.
    pub(crate) fn function(&self, set: SetId, class: ClassId) -> Option<FunctionId> {
        if set == SetId::NOT_ISOLATED {
            Some(self.open)
        } else {
            self.rows.function(set, class)
        }
    }

    /// True when a packet may be judged differently by (set, class) before and after.
    pub(crate) fn judges_differently(
        &self,
        before: (SetId, ClassId),
        after: (SetId, ClassId),
    ) -> bool {
        let shape = |(set, class)| {
            self.function(set, class)
                .and_then(|function| self.functions.shape(function))
        };
        shape(before) != shape(after)
    }

    /// True when a set lets what is sent to a Service through to all that is behind it.
    pub(crate) fn passes_to_service(&self, set: SetId, protocol: u8, service: &Service) -> bool {
        let Ok(count) = usize::try_from(service.count) else {
            return false;
        };
        let backends = service.backends.get(..count);
        backends.is_some_and(|backends| {
            backends.iter().all(|backend| {
                self.function(set, ClassId(backend.class))
                    .is_some_and(|function| self.functions.passes(function, protocol, backend.port))
            })
        })
    }

    /// Classes that the rules may judge otherwise than class 0.
    pub(super) fn classes_of(&self, rules: &SetRules) -> BTreeSet<ClassId> {
        let mut classes = BTreeSet::new();
        for rule in &**rules {
            match rule.atom {
                Some(atom) => {
                    if let Some(atom) = self.atoms.get(atom) {
                        classes.extend(&atom.classes);
                    }
                }
                None => {
                    for name in rule.ports.names() {
                        classes.extend(self.names.classes(*name));
                    }
                }
            }
        }
        classes
    }

    pub(super) fn judge(&mut self, rules: &SetRules, tokens: &[Token]) -> FunctionId {
        let names = &self.names;
        let function = policy_sets::function(rules, tokens, |name| names.protocol(name));
        self.functions.hold(function, &mut self.ids)
    }

    /// Adds the row if it differs from the one for class 0.
    pub(super) fn add_row(&mut self, set: SetId, rules: &SetRules, class: ClassId) {
        let Some(tokens) = self
            .classes
            .get(class)
            .map(|class| Arc::clone(&class.tokens))
        else {
            return;
        };
        let function = self.judge(rules, &tokens);
        if self.rows.function(set, ClassId::NOTHING) == Some(function) {
            // Not the last holder: the row for class 0 has it too.
            self.functions.release(function);
            return;
        }
        self.rows.insert(set, class, function);
        if let Some(set) = self.sets.get_mut(set) {
            set.rows.insert(class);
        }
        if let Some(class) = self.classes.get_mut(class) {
            class.rows.insert(set);
        }
    }

    pub(super) fn remove_row(&mut self, set: SetId, class: ClassId) {
        let Some(removed) = self.rows.remove(set, class) else {
            return;
        };
        if removed.is_written {
            self.retired.rows.push(removed);
        } else {
            let ports = self.functions.release(removed.function);
            self.retired.ports.extend(ports);
        }
    }
}
