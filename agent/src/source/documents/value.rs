//! The content of one document, built strictly and within a budget, whatever format it is in: no
//! key twice, no number that JSON does not have, no more memory than said.

use std::cell::Cell;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Memory that one document may take while it is read: a list of pods that fills the largest file
/// takes about 550 MiB, and made of mappings with one key each the same file would take 6 GiB.
const MAX_MEMORY: usize = 768 << 20;
/// What a value takes beside its text: itself, its share of the list it is in, its allocation.
const VALUE: usize = 80;
/// What a mapping takes for every so many entries.
const MAPPING: usize = 640;
/// Entries of a mapping that share one allocation, when it is badly filled.
const SHARED_BY: usize = 6;

/// A document as what is made of it: the value itself is gone before the next one is read.
#[derive(Debug)]
pub(super) struct Strict<T>(pub(super) T);

impl<'de, T: From<Value>> Deserialize<'de> for Strict<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let left = Cell::new(MAX_MEMORY);
        let value = Builder { left: &left }.deserialize(deserializer)?;
        Ok(Self(T::from(value)))
    }
}

/// Builds one value; all of a document share what is left.
#[derive(Clone, Copy)]
struct Builder<'a> {
    left: &'a Cell<usize>,
}

impl Builder<'_> {
    fn spend<E: Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(bytes).ok_or_else(|| {
            E::custom(format!(
                "the document takes more than {} MiB of memory: split it",
                MAX_MEMORY >> 20
            ))
        })?;
        self.left.set(left);
        Ok(())
    }

    fn leaf<E: Error>(self, value: impl Into<Value>) -> Result<Value, E> {
        self.spend(VALUE)?;
        Ok(value.into())
    }
}

impl<'de> DeserializeSeed<'de> for Builder<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Builder<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what JSON can say")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.leaf(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.leaf(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.leaf(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.leaf(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.leaf(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        // Not null, which would read as a field that is absent.
        let number = Number::from_f64(value);
        let number =
            number.ok_or_else(|| E::custom(format!("{value} is no number that JSON has")))?;
        self.leaf(number)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        self.spend(text.len())?;
        self.leaf(text)
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        self.spend(text.len())?;
        self.leaf(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.spend(VALUE)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.spend(VALUE)?;
        let mut fields = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            self.spend(key.len())?;
            if fields.len().is_multiple_of(SHARED_BY) {
                self.spend(MAPPING)?;
            }
            if fields.contains_key(&key) {
                // The last would count, or the first: whoever wrote it meant one of them.
                return Err(A::Error::custom(format!("{key:?} stands twice")));
            }
            fields.insert(key, entries.next_value_seed(self)?);
        }
        Ok(Value::Object(fields))
    }
}
