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
