//! A list's bytes, as they come, to the bytes of its items: nobody holds a whole list in memory,
//! and one item that cannot be read costs none of the others.

use std::mem;

/// An item larger than this ends the list. No API server takes a larger object: what it is sent may
/// have 3 MiB, and takes up to six times that once `<` and `&` have been escaped.
pub(super) const MAX_ITEM_BYTES: usize = 32 << 20;
/// The same for everything beside the items.
const MAX_ENVELOPE_BYTES: usize = 1 << 20;
/// The field that holds the items.
const ITEMS: &[u8] = b"\"items\"";

/// Why bytes are not a list.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum NoList {
    /// An item, or what surrounds the items, is larger than any that an API server takes.
    #[error("a part of the list is larger than {} MiB", MAX_ITEM_BYTES >> 20)]
    TooLarge,
    /// It is no JSON object, or something else than objects is in `items`.
    #[error("the answer is no list of objects")]
    Malformed,
    /// It ended before its end.
    #[error("the list ended in its middle")]
    CutShort,
}

/// Takes a list apart.
#[derive(Debug, Default)]
pub(super) struct Items {
    /// How many objects and arrays are open.
    depth: u32,
    string: InString,
    /// True between the brackets of `items`.
    is_inside: bool,
    /// Bytes of the item that is open.
    item: Vec<u8>,
    /// Everything but the items.
    envelope: Vec<u8>,
    /// Where in the envelope its last string on the first level begins: the field's name, when an
    /// array follows.
    last_string: usize,
    is_done: bool,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum InString {
    #[default]
    No,
    Yes,
    /// The next byte is one of the string whatever it is.
    Escaped,
}

impl Items {
    /// Takes in more bytes; `found` gets each item that they complete.
    pub(super) fn feed<E: From<NoList>>(
        &mut self,
        bytes: &[u8],
        mut found: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = bytes;
        while !rest.is_empty() {
            // All bytes up to one that means something belong where the first one does.
            let run = match self.string {
                InString::No => rest.iter().position(|byte| b"\"{}[]".contains(byte)),
                InString::Yes => rest.iter().position(|byte| b"\"\\".contains(byte)),
                InString::Escaped => Some(0),
            };
            let (run, after) = rest.split_at(run.unwrap_or(rest.len()));
            self.keep(run)?;
            let Some((&byte, after)) = after.split_first() else {
                break;
            };
            self.keep(&[byte])?;
            self.step(byte, &mut found)?;
            rest = after;
        }
        Ok(())
    }

    fn step<E: From<NoList>>(
        &mut self,
        byte: u8,
        found: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match (self.string, byte) {
            (InString::Escaped, _) => self.string = InString::Yes,
            (InString::Yes, b'\\') => self.string = InString::Escaped,
            (InString::Yes, _) => self.string = InString::No,
            (InString::No, b'"') => {
                self.string = InString::Yes;
                if self.depth == 1 {
                    self.last_string = self.envelope.len() - 1;
                }
            }
            (InString::No, b'{' | b'[') => {
                if byte == b'[' && self.depth == 1 && self.is_named_items() {
                    self.is_inside = true;
                }
                self.depth += 1;
            }
            (InString::No, _) => return self.close(byte, found),
        }
        Ok(())
    }

    /// The list without its items, when it came whole.
    pub(super) fn finish(self) -> Result<Vec<u8>, NoList> {
        if self.is_done {
            Ok(self.envelope)
        } else {
            Err(NoList::CutShort)
        }
    }

    fn close<E: From<NoList>>(
        &mut self,
        byte: u8,
        found: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.depth = self.depth.checked_sub(1).ok_or(NoList::Malformed)?;
        match self.depth {
            0 => self.is_done = true,
            1 if self.is_inside => {
                // It was the list's own bracket; `keep` took it for a byte between items.
                self.is_inside = false;
                self.envelope.push(byte);
            }
            2 if self.is_inside => {
                let item = mem::take(&mut self.item);
                found(&item)?;
                // One buffer for all, unless a single large one would keep its size for ever.
                if item.capacity() <= MAX_ENVELOPE_BYTES {
                    self.item = item;
                    self.item.clear();
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Puts bytes where they belong: one, or several without brackets and quotes.
    fn keep(&mut self, bytes: &[u8]) -> Result<(), NoList> {
        if self.is_inside && (self.depth > 2 || bytes == b"{") {
            if self.item.len() + bytes.len() > MAX_ITEM_BYTES {
                return Err(NoList::TooLarge);
            }
            self.item.extend_from_slice(bytes);
            return Ok(());
        }
        let is_blank = |byte: &u8| byte.is_ascii_whitespace();
        if self.is_inside {
            let is_between = |byte: &u8| is_blank(byte) || b",]".contains(byte);
            return all(bytes, is_between);
        }
        if self.is_done || self.depth == 0 && bytes != b"{" {
            return all(bytes, is_blank);
        }
        if self.envelope.len() + bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(NoList::TooLarge);
        }
        self.envelope.extend_from_slice(bytes);
        Ok(())
    }

    fn is_named_items(&self) -> bool {
        let name = self.envelope.get(self.last_string..).unwrap_or_default();
        name.strip_prefix(ITEMS).is_some_and(|rest| {
            let mut rest = rest.iter().filter(|byte| !byte.is_ascii_whitespace());
            rest.next() == Some(&b':') && rest.next() == Some(&b'[') && rest.next().is_none()
        })
    }
}

/// Nothing else may stand there.
fn all(bytes: &[u8], may_stand: impl Fn(&u8) -> bool) -> Result<(), NoList> {
    if bytes.iter().all(may_stand) {
        Ok(())
    } else {
        Err(NoList::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Feeds text in pieces of a size; the items and the rest.
    fn cut(text: &str, piece: usize) -> Result<(Vec<String>, String), NoList> {
        let mut items = Items::default();
        let mut found = Vec::new();
        for bytes in text.as_bytes().chunks(piece) {
            items.feed(bytes, |item| {
                found.push(String::from_utf8(item.to_vec()).unwrap());
                Ok::<(), NoList>(())
            })?;
        }
        let envelope = String::from_utf8(items.finish()?).unwrap();
        Ok((found, envelope))
    }

    #[test]
    fn items_and_what_surrounds_them_come_apart_wherever_the_bytes_are_divided() {
        let text = r#" {"kind":"PodList","metadata":{"resourceVersion":"7","items":[1]},
            "items" : [ {"a":"]}\"{"} , {"b":[{"items":[]}]},{}],"x":["items",[2]]} "#;
        for piece in 1..text.len() {
            let (found, envelope) = cut(text, piece).unwrap();
            assert_eq!(
                found,
                [r#"{"a":"]}\"{"}"#, r#"{"b":[{"items":[]}]}"#, "{}"],
                "in pieces of {piece}"
            );
            let envelope: Value = serde_json::from_str(&envelope).unwrap();
            assert_eq!(
                envelope,
                json!({"kind": "PodList", "metadata": {"resourceVersion": "7", "items": [1]},
                       "items": [], "x": ["items", [2]]})
            );
        }
    }

    #[test]
    fn a_list_of_nothing_has_no_items_however_it_says_so() {
        for text in [
            r#"{"items":[]}"#,
            r#"{"items":null}"#,
            r#"{"metadata":{}}"#,
            "{}",
        ] {
            assert_eq!(cut(text, 1).unwrap().0, Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn what_is_no_list_or_no_whole_one_is_said_to_be_none() {
        for (text, problem) in [
            ("", NoList::CutShort),
            (r#"{"items":[{"a":1}"#, NoList::CutShort),
            (r#"{"items":[{"a":1}]"#, NoList::CutShort),
            ("404 page not found", NoList::Malformed),
            ("<html>", NoList::Malformed),
            ("[]", NoList::Malformed),
            (r#"{"items":[1]}"#, NoList::Malformed),
            (r#"{"items":["a"]}"#, NoList::Malformed),
            (r#"{"items":[[]]}"#, NoList::Malformed),
            ("{}{}", NoList::Malformed),
            ("{}}", NoList::Malformed),
        ] {
            assert_eq!(cut(text, 3), Err(problem), "{text}");
        }
    }

    #[test]
    fn an_item_without_end_is_not_collected_for_ever() {
        let mut items = Items::default();
        let mut feed = |bytes: &[u8]| items.feed(bytes, |_| Ok::<(), NoList>(()));
        feed(br#"{"items":[{"a":""#).unwrap();
        let piece = vec![b'x'; 1 << 20];
        let fed = (0..1000).map(|_| feed(&piece)).position(|fed| fed.is_err());
        assert_eq!(fed, Some((MAX_ITEM_BYTES >> 20) - 1));
    }

    proptest! {
        #[test]
        fn any_items_come_out_as_they_went_in(
            texts in prop::collection::vec(".{0,20}", 0..5),
            piece in 1_usize..40,
        ) {
            let items: Vec<Value> = texts
                .iter()
                .map(|text| json!({text.as_str(): [text, {"items": [text]}]}))
                .collect();
            let list = json!({"a": texts, "items": items, "z": {"items": texts}});
            let (found, envelope) = cut(&list.to_string(), piece).unwrap();
            let found: Vec<Value> = found
                .iter()
                .map(|item| serde_json::from_str(item).unwrap())
                .collect();
            prop_assert_eq!(found, items);
            let envelope: Value = serde_json::from_str(&envelope).unwrap();
            prop_assert_eq!(envelope, json!({"a": texts, "items": [], "z": {"items": texts}}));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut items = Items::default();
            let fed = items.feed(&bytes, |_| Ok::<(), NoList>(()));
            let is_list = fed.is_ok() && items.finish().is_ok();
            prop_assert!(!is_list || bytes.contains(&b'{'), "a list of nothing at all");
        }
    }
}
