//! Lines of a page: how wide they are, and where they break.

/// Characters that are seen: escape sequences take no room.
pub(super) fn seen(text: &str) -> usize {
    let (mut seen, mut is_escape) = (0, false);
    for each in text.chars() {
        match (each, is_escape) {
            ('\x1b', _) => is_escape = true,
            ('m', true) => is_escape = false,
            (_, true) => {}
            (_, false) => seen += 1,
        }
    }
    seen
}

/// A line broken at blanks, continued below its own start.
pub(super) fn broken(line: &str, width: usize) -> Vec<String> {
    if seen(line) <= width {
        return vec![line.to_owned()];
    }
    let indent = line.len() - line.trim_start().len();
    let mut lines = vec![" ".repeat(indent)];
    let mut owed = 0;
    // Blanks inside a line are kept, so that columns stay.
    for word in line.trim_start().split(' ') {
        let room = lines.last().map_or(0, |last| seen(last)) + owed + seen(word) <= width;
        match lines.last_mut() {
            Some(last) if room || last.trim().is_empty() => {
                last.push_str(&" ".repeat(owed));
                last.push_str(word);
            }
            _ => lines.push(format!("{}{word}", " ".repeat(indent + 2))),
        }
        owed = 1;
    }
    lines
}

/// Text in lines of at most `width` characters.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() < width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_broken_at_blanks_below_its_start_and_colour_takes_no_room() {
        let line = "  \x1b[31m✗\x1b[0m one two  three four";
        assert_eq!(seen(line), 23);
        assert_eq!(broken(line, 23), [line]);
        assert_eq!(
            broken("  ✗ one two  three four", 14),
            ["  ✗ one two ", "    three four"]
        );
        assert_eq!(broken("unbreakable", 4), ["unbreakable"]);
    }
}
