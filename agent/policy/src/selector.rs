//! Label selectors, exactly as apimachinery reads them.

use std::fmt;

use crate::model::Labels;

/// A label selector: all requirements must hold; none means everything.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Selector {
    /// Requirements and their values, sorted and deduplicated so that equal meaning compares
    /// equal ([`Selector::new`] does it).
    pub requirements: Vec<Requirement>,
}

/// One requirement on one label key.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// What its value must be.
    pub operator: Operator,
}

/// The four operators of `matchExpressions`; `matchLabels` is `In` with one value.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Operator {
    /// Present with one of these values.
    In(Vec<String>),
    /// Absent, or present with none of these values.
    NotIn(Vec<String>),
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
}

impl Requirement {
    /// True when the labels satisfy it.
    pub fn selects(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl fmt::Display for Requirement {
    /// As kubectl writes it: `app=web`, `tier in (a, b)`, `env`, `!env`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.operator {
            Operator::In(values) => match values.as_slice() {
                [value] => write!(f, "{key}={value}"),
                values => write!(f, "{key} in ({})", values.join(", ")),
            },
            Operator::NotIn(values) => match values.as_slice() {
                [value] => write!(f, "{key}!={value}"),
                values => write!(f, "{key} notin ({})", values.join(", ")),
            },
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
        }
    }
}

impl fmt::Display for Selector {
    /// Its requirements; the empty selector as an empty string.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl Selector {
    /// The empty selector, which selects everything.
    pub const EVERYTHING: Self = Self {
        requirements: Vec::new(),
    };

    /// Makes a selector of these requirements.
    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        for requirement in &mut requirements {
            match &mut requirement.operator {
                Operator::In(values) | Operator::NotIn(values) => {
                    values.sort();
                    values.dedup();
                }
                Operator::Exists | Operator::DoesNotExist => {}
            }
        }
        requirements.sort();
        requirements.dedup();
        Self { requirements }
    }

    /// True when the labels satisfy every requirement.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.requirements
            .iter()
            .all(|requirement| requirement.selects(labels))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::random;

    fn requirement(key: &str, operator: Operator) -> Requirement {
        Requirement {
            key: key.to_owned(),
            operator,
        }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn operators_read_absence_as_apimachinery_does() {
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            let pairs = pairs.iter();
            pairs
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        let with_a = labels(&[("app", "a")]);
        let with_empty = labels(&[("app", "")]);
        let without = labels(&[("tier", "a")]);
        for (operator, a, empty, absent) in [
            (Operator::In(words(&["a"])), true, false, false),
            (Operator::In(words(&["a", ""])), true, true, false),
            (Operator::NotIn(words(&["a"])), false, true, true),
            (Operator::Exists, true, true, false),
            (Operator::DoesNotExist, false, false, true),
        ] {
            let requirement = requirement("app", operator);
            let found = [&with_a, &with_empty, &without].map(|it| requirement.selects(it));
            assert_eq!(found, [a, empty, absent], "{requirement}");
        }
    }

    #[test]
    fn a_selector_reads_as_kubectl_writes_it() {
        let selector = Selector::new(vec![
            requirement("app", Operator::In(words(&["web"]))),
            requirement("tier", Operator::In(words(&["b", "a"]))),
            requirement("env", Operator::NotIn(words(&["dev"]))),
            requirement("owner", Operator::Exists),
            requirement("legacy", Operator::DoesNotExist),
        ]);
        assert_eq!(
            selector.to_string(),
            "app=web, env!=dev, !legacy, owner, tier in (a, b)"
        );
    }

    proptest! {
        #[test]
        fn every_requirement_must_hold_and_order_does_not_matter(
            selector in random::selector(),
            labels in random::labels(),
        ) {
            let mut requirements = selector.requirements.iter();
            prop_assert_eq!(
                selector.selects(&labels),
                requirements.all(|requirement| requirement.selects(&labels))
            );
            let mut reversed = selector.requirements.clone();
            reversed.reverse();
            reversed.extend(selector.requirements.clone());
            prop_assert_eq!(Selector::new(reversed), selector);
            prop_assert!(Selector::EVERYTHING.selects(&labels));
        }

        #[test]
        fn not_in_selects_exactly_what_in_does_not(
            values in proptest::collection::vec("[a-c]", 1..3),
            labels in random::labels(),
        ) {
            let is_in = requirement("app", Operator::In(values.clone())).selects(&labels);
            let is_not_in = requirement("app", Operator::NotIn(values)).selects(&labels);
            prop_assert_ne!(is_in, is_not_in);
        }
    }
}
