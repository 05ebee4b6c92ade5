//! A watch's bytes, as they come, to its lines: one event each.

use super::items::{MAX_ITEM_BYTES, NoList};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// Everything before this was looked through for an end of line, or taken.
    looked: usize,
    /// Where the next line begins.
    start: usize,
}

impl Lines {
    /// Takes in more bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next line that is whole.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, NoList> {
        loop {
            let rest = self.bytes.get(self.looked..).unwrap_or_default();
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                self.bytes.drain(..self.start);
                self.start = 0;
                self.looked = self.bytes.len();
                // One large event must not keep its memory for as long as the watch lasts.
                if self.bytes.is_empty() && self.bytes.capacity() > 1 << 20 {
                    self.bytes = Vec::new();
                }
                return if self.bytes.len() > MAX_ITEM_BYTES {
                    Err(NoList::TooLarge)
                } else {
                    Ok(None)
                };
            };
            let end = self.looked + end;
            let line = self.bytes.get(self.start..end).unwrap_or_default().to_vec();
            self.start = end + 1;
            self.looked = self.start;
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_wherever_the_bytes_are_divided() {
        let text = b"one\n\n{\"a\":\"b\\n\"}\r\nthree\nrest";
        for piece in 1..=text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for bytes in text.chunks(piece) {
                lines.push(bytes);
                while let Some(line) = lines.next().unwrap() {
                    found.push(String::from_utf8(line).unwrap());
                }
            }
            assert_eq!(found, ["one", "{\"a\":\"b\\n\"}\r", "three"], "{piece}");
            assert_eq!(lines.bytes, b"rest");
        }
    }

    #[test]
    fn a_line_without_end_is_not_collected_for_ever() {
        let mut lines = Lines::default();
        let piece = vec![b'x'; 1 << 20];
        let mut pushed = 0;
        while lines.next().is_ok() {
            lines.push(&piece);
            pushed += 1;
            assert!(pushed < 100, "it is collected for ever");
        }
    }
}
