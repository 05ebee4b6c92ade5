//! How answers look: colour, glyphs, tables in kubectl's taste, and JSON. No wording of its own.

use std::fmt::Write as _;
use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write};

use clap::ValueEnum;
use serde::Serialize;

use crate::dto::VerdictWord;

/// `--color`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal only.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// `-o` of commands that answer once.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// The API's objects.
    Json,
}

/// `-o` of commands that answer with many records.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum StreamFormat {
    /// For people.
    #[default]
    Table,
    /// One document.
    Json,
    /// One object a line.
    Jsonl,
}

/// What a colour stands for; nothing else is coloured.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Paint {
    /// As it is.
    #[default]
    Plain,
    /// Allow: green.
    Allow,
    /// Deny: red.
    Deny,
    /// Audit: yellow.
    Audit,
    /// Cannot tell: magenta.
    Unknown,
    /// Detail.
    Dim,
    /// Headline.
    Bold,
}

impl Paint {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Allow => "\x1b[32m",
            Self::Deny => "\x1b[31m",
            Self::Audit => "\x1b[33m",
            Self::Unknown => "\x1b[35m",
            Self::Dim => "\x1b[2m",
            Self::Bold => "\x1b[1m",
        }
    }

    /// The colour of a verdict.
    pub(crate) const fn of(verdict: VerdictWord) -> Self {
        match verdict {
            VerdictWord::Allow => Self::Allow,
            VerdictWord::Deny => Self::Deny,
            VerdictWord::Audit => Self::Audit,
            VerdictWord::Unknown => Self::Unknown,
        }
    }
}

/// What the output may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terminal {
    /// Escape sequences are welcome.
    pub(crate) color: bool,
    /// Glyphs outside ASCII are welcome.
    pub(crate) unicode: bool,
    /// Columns, when standard output is a terminal; never cut anything otherwise.
    pub(crate) width: Option<usize>,
}

impl Terminal {
    /// No colour, all glyphs, no width: what tests and pipes see.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self {
        color: false,
        unicode: true,
        width: None,
    };

    /// Looks at the environment and standard output.
    pub(crate) fn detect(choice: ColorChoice) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let color = match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            // https://no-color.org, https://bixense.com/clicolors: the user's word comes first.
            ColorChoice::Auto if is_set("NO_COLOR") => false,
            ColorChoice::Auto if is_set("CLICOLOR_FORCE") => true,
            ColorChoice::Auto => {
                is_terminal && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
            }
        };
        // POSIX.1-2024 §8.2: LC_ALL before LC_CTYPE before LANG; unset means "C", but a pipe in a
        // container has none of them and reads UTF-8 all the same.
        let unicode = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .filter_map(|name| std::env::var(name).ok())
            .find(|value| !value.is_empty())
            .is_none_or(|locale| {
                let locale = locale.to_ascii_lowercase();
                locale.contains("utf-8") || locale.contains("utf8")
            });
        let width = if is_terminal {
            rustix::termios::tcgetwinsize(io::stdout())
                .ok()
                .map(|size| usize::from(size.ws_col))
                .filter(|columns| *columns > 0)
        } else {
            None
        };
        Self {
            color,
            unicode,
            width,
        }
    }

    /// Text in a colour, when colours are welcome.
    pub(crate) fn paint(&self, paint: Paint, text: &str) -> String {
        if self.color && paint != Paint::Plain {
            format!("{}{text}\x1b[0m", paint.code())
        } else {
            text.to_owned()
        }
    }

    /// The sign of a verdict; the word always stands beside it somewhere.
    pub(crate) const fn glyph(&self, verdict: VerdictWord) -> &'static str {
        match (verdict, self.unicode) {
            (VerdictWord::Allow, true) => "✓",
            (VerdictWord::Allow, false) => "+",
            (VerdictWord::Deny, true) => "✗",
            (VerdictWord::Deny, false) => "x",
            (VerdictWord::Audit, _) => "~",
            (VerdictWord::Unknown, _) => "?",
        }
    }

    /// From one endpoint to another.
    pub(crate) const fn arrow(&self) -> &'static str {
        if self.unicode { "→" } else { "->" }
    }

    /// Says on standard error why a command failed.
    pub(crate) fn complain(&self, message: &str) {
        self.say(&format!("picket: {message}"));
    }

    /// One line on standard error; losing it is better than failing for it.
    #[expect(
        clippy::unused_self,
        reason = "said through the terminal, whatever it looks like"
    )]
    pub(crate) fn say(&self, message: &str) {
        let mut stderr = io::stderr().lock();
        if writeln!(stderr, "{message}").is_err() {
            tracing::debug!("standard error is closed");
        }
    }
}

/// Standard output, buffered. Call [`Write::flush`] at the end: dropping would hide an error.
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(1 << 16, io::stdout().lock())
}

/// One JSON document, readable.
pub(crate) fn write_json(out: &mut impl Write, document: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, document).map_err(io::Error::from)?;
    out.write_all(b"\n")?;
    Ok(())
}

/// One JSON object on one line.
pub(crate) fn write_json_line(out: &mut impl Write, object: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *out, object).map_err(io::Error::from)?;
    out.write_all(b"\n")?;
    Ok(())
}

/// One cell of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    paint: Paint,
}

impl Cell {
    /// A cell in a colour.
    pub(crate) fn painted(paint: Paint, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            paint,
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            paint: Paint::Plain,
        }
    }
}

/// A column's heading and alignment.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Column {
    /// Text.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
    /// Names that may be cut in the middle when the terminal is narrow.
    Name(&'static str),
}

impl Column {
    const fn heading(self) -> &'static str {
        match self {
            Self::Left(heading) | Self::Right(heading) | Self::Name(heading) => heading,
        }
    }
}

/// Upper-case headings, two spaces between columns, no borders, no wrapping.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    has_headings: bool,
}

/// Shortest a name is cut to.
const SHORTEST_NAME: usize = 12;

impl Table {
    /// An empty table.
    pub(crate) fn new(columns: Vec<Column>) -> Self {
        Self {
            columns,
            rows: Vec::new(),
            has_headings: true,
        }
    }

    /// `--no-headers`.
    pub(crate) fn without_headings(mut self, without: bool) -> Self {
        self.has_headings = !without;
        self
    }

    /// Adds a row; missing cells are empty.
    pub(crate) fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// True when it has no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes it.
    pub(crate) fn write(&self, out: &mut impl Write, terminal: &Terminal) -> io::Result<()> {
        let widths = self.widths(terminal);
        if self.has_headings {
            let headings: Vec<Cell> = self
                .columns
                .iter()
                .map(|column| column.heading().into())
                .collect();
            self.write_row(out, terminal, &widths, &headings)?;
        }
        for row in &self.rows {
            self.write_row(out, terminal, &widths, row)?;
        }
        Ok(())
    }

    fn widths(&self, terminal: &Terminal) -> Vec<usize> {
        let mut widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(place, column)| {
                let heading = if self.has_headings {
                    column.heading().chars().count()
                } else {
                    0
                };
                let cells = self.rows.iter().filter_map(|row| row.get(place));
                cells
                    .map(|cell| cell.text.chars().count())
                    .fold(heading, usize::max)
            })
            .collect();
        let Some(limit) = terminal.width else {
            return widths;
        };
        let total: usize = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        let mut excess = total.saturating_sub(limit);
        while excess > 0 {
            // The widest name gives one column at a time, so that they end up alike.
            let widest = self
                .columns
                .iter()
                .zip(widths.iter_mut())
                .filter(|(column, width)| {
                    matches!(column, Column::Name(_)) && **width > SHORTEST_NAME
                })
                .map(|(_, width)| width)
                .max_by_key(|width| **width);
            let Some(width) = widest else { break };
            *width -= 1;
            excess -= 1;
        }
        widths
    }

    fn write_row(
        &self,
        out: &mut impl Write,
        terminal: &Terminal,
        widths: &[usize],
        row: &[Cell],
    ) -> io::Result<()> {
        let mut line = String::new();
        // Blanks that nothing follows are not written.
        let mut owed = 0;
        for ((cell, column), width) in row.iter().zip(&self.columns).zip(widths) {
            let text = if matches!(column, Column::Name(_)) {
                cut_middle(&cell.text, *width, terminal.unicode)
            } else {
                cell.text.clone()
            };
            let pad = width.saturating_sub(text.chars().count());
            let (before, after) = if matches!(column, Column::Right(_)) {
                (pad, 0)
            } else {
                (0, pad)
            };
            if text.is_empty() {
                owed += before + after + 2;
                continue;
            }
            owed += before;
            line.extend(std::iter::repeat_n(' ', owed));
            line.push_str(&terminal.paint(cell.paint, &text));
            owed = after + 2;
        }
        line.push('\n');
        out.write_all(line.as_bytes())
    }
}

/// A name cut in the middle, where replica hashes differ least.
pub(crate) fn cut_middle(text: &str, width: usize, unicode: bool) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let sign = if unicode { "…" } else { "~" };
    let kept = width.saturating_sub(1);
    let head = kept.div_ceil(2);
    let mut cut: String = text.chars().take(head).collect();
    cut.push_str(sign);
    cut.extend(text.chars().skip(length - (kept - head)));
    cut
}

/// `4118` as `4,118`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How long ago, as kubectl says it: `3s`, `14m`, `9h`, `12d`.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Adds to a text in place.
pub(crate) fn append(text: &mut String, more: std::fmt::Arguments<'_>) {
    // A String takes everything, unless a Display of ours lies.
    if text.write_fmt(more).is_err() {
        tracing::debug!("a text could not be completed");
    }
}

/// `1 policy`, `2 policies`.
pub(crate) fn counted(number: usize, one: &str, many: &str) -> String {
    let mut text = grouped(number as u64);
    let noun = if number == 1 { one } else { many };
    append(&mut text, format_args!(" {noun}"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(vec![
            Column::Name("POD"),
            Column::Right("DROPS"),
            Column::Left("WHY"),
        ]);
        table.push(vec![
            "shop/api-7d4f9c6b5-x2k1p".into(),
            "1,204".into(),
            "".into(),
        ]);
        table.push(vec![
            "shop/db-0".into(),
            "3".into(),
            Cell::painted(Paint::Deny, "no rule"),
        ]);
        table
    }

    fn written(table: &Table, terminal: &Terminal) -> String {
        let mut out = Vec::new();
        table.write(&mut out, terminal).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn tables_look_like_kubectl_and_end_without_blanks() {
        let expected = "\
POD                       DROPS  WHY
shop/api-7d4f9c6b5-x2k1p  1,204
shop/db-0                     3  no rule
";
        assert_eq!(written(&table(), &Terminal::PLAIN), expected);
    }

    #[test]
    fn long_names_are_cut_in_the_middle_to_a_terminals_width_and_never_in_a_pipe() {
        let narrow = Terminal {
            width: Some(32),
            ..Terminal::PLAIN
        };
        let expected = "\
POD               DROPS  WHY
shop/api…5-x2k1p  1,204
shop/db-0             3  no rule
";
        assert_eq!(written(&table(), &narrow), expected);
        assert!(written(&table(), &Terminal::PLAIN).contains("shop/api-7d4f9c6b5-x2k1p"));
    }

    #[test]
    fn colour_never_shifts_a_column() {
        let coloured = Terminal {
            color: true,
            ..Terminal::PLAIN
        };
        let plain = written(&table(), &coloured)
            .replace("\x1b[31m", "")
            .replace("\x1b[0m", "");
        assert_eq!(plain, written(&table(), &Terminal::PLAIN));
    }

    #[test]
    fn numbers_ages_and_counts_read_well() {
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [3, 840, 33_000, 1_036_800].map(age),
            ["3s", "14m", "9h", "12d"]
        );
        assert_eq!(counted(1, "policy", "policies"), "1 policy");
        assert_eq!(counted(0, "policy", "policies"), "0 policies");
    }
}
