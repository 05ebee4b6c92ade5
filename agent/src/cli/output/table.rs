//! Tables in kubectl's taste: upper-case headings, two spaces between columns, no borders.

use std::io::{self, Write};

use super::{Paint, Terminal};

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
}
