//! `matrix` for people: a grid for each port when it fits (rows from, columns to), else rows.

use std::collections::BTreeMap;
use std::io::{self, Write};

use agent_policy::matrix::{Matrix, Port, Row};
use agent_policy::model::Verdict;

use super::output::{Cell, Column, Paint, Table, Terminal, append};
use crate::dto::VerdictWord;

/// Width of a page that is no terminal.
const PAGE: usize = 120;

/// Writes every verdict.
pub(super) fn write(out: &mut impl Write, terminal: &Terminal, matrix: &Matrix) -> io::Result<()> {
    let names: Vec<String> = matrix.ends.iter().map(ToString::to_string).collect();
    let mut ports: BTreeMap<Port, Vec<&Row>> = BTreeMap::new();
    for row in &matrix.rows {
        ports.entry(row.port).or_default().push(row);
    }
    let grids: Vec<Grid<'_>> = ports
        .into_iter()
        .map(|(port, rows)| Grid::new(port, &rows, &names))
        .collect();
    let width = terminal.width.unwrap_or(PAGE);
    if grids.iter().all(|grid| grid.width_numbered() <= width) {
        for (place, grid) in grids.iter().enumerate() {
            if place > 0 {
                writeln!(out)?;
            }
            grid.write(out, terminal, width)?;
        }
        return Ok(());
    }
    write_rows(out, terminal, matrix, &names)
}

/// One port's verdicts.
struct Grid<'a> {
    port: Port,
    /// Sources, in the matrix's order.
    from: Vec<&'a str>,
    /// Destinations, in the matrix's order.
    to: Vec<&'a str>,
    /// By place in `from` and `to`; nothing where there is no row.
    verdicts: BTreeMap<(usize, usize), Verdict>,
}

impl<'a> Grid<'a> {
    fn new(port: Port, rows: &[&Row], names: &'a [String]) -> Self {
        let mut from = BTreeMap::new();
        let mut to = BTreeMap::new();
        for row in rows {
            from.insert(row.from, 0);
            to.insert(row.to, 0);
        }
        for places in [&mut from, &mut to] {
            for (number, place) in places.values_mut().enumerate() {
                *place = number;
            }
        }
        let verdicts = rows
            .iter()
            .filter_map(|row| Some(((*from.get(&row.from)?, *to.get(&row.to)?), row.verdict())))
            .collect();
        let named = |places: &BTreeMap<usize, usize>| {
            places
                .keys()
                .filter_map(|end| names.get(*end))
                .map(String::as_str)
                .collect()
        };
        Self {
            port,
            from: named(&from),
            to: named(&to),
            verdicts,
        }
    }

    fn widest_source(&self) -> usize {
        self.from
            .iter()
            .map(|name| name.chars().count())
            .max()
            .unwrap_or(0)
            .max("FROM".len())
    }

    /// With the destinations' names as headings.
    fn width_named(&self) -> usize {
        self.widest_source()
            + self
                .to
                .iter()
                .map(|name| name.chars().count() + 2)
                .sum::<usize>()
    }

    /// With numbers as headings.
    fn width_numbered(&self) -> usize {
        self.widest_source() + self.to.len() * (self.to.len().to_string().len() + 2)
    }

    fn write(&self, out: &mut impl Write, terminal: &Terminal, width: usize) -> io::Result<()> {
        let port = format!("{}/{}", self.port.protocol, self.port.number);
        let is_named = self.width_named() <= width;
        let headings: Vec<String> = if is_named {
            self.to.iter().map(|name| (*name).to_owned()).collect()
        } else {
            (1..=self.to.len())
                .map(|number| number.to_string())
                .collect()
        };
        writeln!(
            out,
            "{}",
            terminal.paint(Paint::Bold, &format!("{port}  from (rows) to (columns)"))
        )?;
        if !is_named {
            for (number, name) in headings.iter().zip(&self.to) {
                writeln!(out, "{number:>4}  {name}")?;
            }
        }
        let widest_number = self.to.len().to_string().len();
        let widths: Vec<usize> = headings
            .iter()
            .map(|heading| {
                if is_named {
                    heading.chars().count()
                } else {
                    widest_number
                }
            })
            .collect();
        let mut line = format!("{:<width$}", "FROM", width = self.widest_source());
        for (heading, width) in headings.iter().zip(&widths) {
            append(&mut line, format_args!("  {heading:<width$}"));
        }
        writeln!(out, "{}", line.trim_end())?;
        for (place, name) in self.from.iter().enumerate() {
            let mut line = format!("{name:<width$}", width = self.widest_source());
            let mut owed = 2;
            for (column, width) in widths.iter().enumerate() {
                match self.verdicts.get(&(place, column)) {
                    Some(verdict) => {
                        let word = VerdictWord::from(*verdict);
                        line.extend(std::iter::repeat_n(' ', owed));
                        line.push_str(&terminal.paint(Paint::of(word), terminal.glyph(word)));
                        owed = width + 1;
                    }
                    None => owed += width + 2,
                }
            }
            writeln!(out, "{line}")?;
        }
        Ok(())
    }
}

fn write_rows(
    out: &mut impl Write,
    terminal: &Terminal,
    matrix: &Matrix,
    names: &[String],
) -> io::Result<()> {
    let mut table = Table::new(vec![
        Column::Name("FROM"),
        Column::Name("TO"),
        Column::Left("PORT"),
        Column::Left("VERDICT"),
        Column::Left("EGRESS"),
        Column::Left("INGRESS"),
    ]);
    let cell = |verdict: Verdict| Cell::painted(Paint::of(verdict.into()), verdict.as_label());
    for row in &matrix.rows {
        let (Some(from), Some(to)) = (names.get(row.from), names.get(row.to)) else {
            continue;
        };
        table.push(vec![
            from.as_str().into(),
            to.as_str().into(),
            format!("{}/{}", row.port.protocol, row.port.number).into(),
            cell(row.verdict()),
            cell(row.egress),
            cell(row.ingress),
        ]);
    }
    table.write(out, terminal)
}

#[cfg(test)]
mod tests {
    use agent_policy::matrix::End;
    use agent_policy::model::Protocol;

    use super::*;

    fn matrix() -> Matrix {
        let end = |last| End::External(std::net::IpAddr::from([10, 0, 0, last]));
        let row = |from: usize, to: usize, number, ingress| Row {
            from,
            to,
            from_address: std::net::IpAddr::from([10, 0, 0, 1]),
            to_address: std::net::IpAddr::from([10, 0, 0, 2]),
            port: Port {
                protocol: Protocol::TCP,
                number,
            },
            ingress,
            egress: Verdict::Allow,
        };
        Matrix {
            ends: vec![end(1), end(2), end(3)],
            rows: vec![
                row(0, 1, 80, Verdict::Allow),
                row(0, 2, 80, Verdict::Deny),
                row(1, 2, 80, Verdict::Allow),
                row(2, 1, 80, Verdict::Deny),
                row(0, 1, 443, Verdict::Deny),
            ],
            findings: Vec::new(),
        }
    }

    fn written(terminal: &Terminal) -> String {
        let mut out = Vec::new();
        write(&mut out, terminal, &matrix()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_port_is_a_grid_with_nothing_from_an_end_to_itself() {
        let expected = "\
TCP/80  from (rows) to (columns)
FROM      10.0.0.2  10.0.0.3
10.0.0.1  ✓         ✗
10.0.0.2            ✓
10.0.0.3  ✗

TCP/443  from (rows) to (columns)
FROM      10.0.0.2
10.0.0.1  ✗
";
        assert_eq!(written(&Terminal::PLAIN), expected);
    }

    #[test]
    fn what_is_too_wide_for_names_is_numbered_and_then_rows() {
        let numbered = written(&Terminal {
            width: Some(20),
            ..Terminal::PLAIN
        });
        let expected = "\
TCP/80  from (rows) to (columns)
   1  10.0.0.2
   2  10.0.0.3
FROM      1  2
10.0.0.1  ✓  ✗
10.0.0.2     ✓
10.0.0.3  ✗
";
        assert!(numbered.starts_with(expected), "{numbered}");
        let rows = written(&Terminal {
            width: Some(10),
            ..Terminal::PLAIN
        });
        assert!(
            rows.starts_with("FROM      TO        PORT     VERDICT  EGRESS  INGRESS\n"),
            "{rows}"
        );
        assert!(
            rows.contains("10.0.0.1  10.0.0.3  TCP/80   deny     allow   deny\n"),
            "{rows}"
        );
    }
}
