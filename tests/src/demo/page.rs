//! How the demo looks: words and colours on a terminal, words alone elsewhere.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use agent::dto::{Explanation, Judgement, NearRule, Party, VerdictWord};
use anyhow::Result;

use super::lines::{broken, seen, wrapped};
use super::paths::{self, Cell, Paths, Reach};
use super::story::{INTERNET, OUTSIDE, SERVICES, SOURCES, Service};

/// Width of the page where it is no terminal, and the most of one that is used.
const WIDTH: usize = 118;
/// Narrower than this, lines are left to the terminal to break.
const NARROWEST: usize = 72;
/// Margin of notes.
const MARGIN: usize = 6;
/// Width of the first column of the grid and of the notes below it.
const LABEL: usize = 24;
/// Width of a column of the grid.
const COLUMN: usize = 9;
/// Width of a column whose head is a number, where the terminal is too narrow for names.
const NUMBERED: usize = 4;
/// Width of the word before a note.
const WORD: usize = 10;
/// Length of a full bar, and on a page too narrow for it.
const BAR: usize = 40;
const SHORT_BAR: usize = 20;

/// How a piece of text is set off.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ink {
    /// As it comes.
    Plain,
    /// Headings.
    Bold,
    /// Detail.
    Dim,
    /// Allowed.
    Green,
    /// Denied.
    Red,
    /// Allowed since this step.
    NewGreen,
    /// Denied since this step.
    NewRed,
}

impl Ink {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Green => "32",
            Self::Red => "31",
            Self::NewGreen => "1;97;42",
            Self::NewRed => "1;97;41",
        }
    }
}

/// Where the demo is told.
#[derive(Debug)]
pub struct Page {
    colours: bool,
    /// Lines can be written anew.
    terminal: bool,
    width: usize,
}

impl Page {
    /// Standard output: in colour on a terminal, unless `NO_COLOR` says otherwise.
    pub fn open() -> Self {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        // A dumb terminal shows escape sequences instead of following them.
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let is_terminal = io::stdout().is_terminal();
        let is_forced = std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0");
        let columns = is_terminal
            .then(|| rustix::termios::tcgetwinsize(io::stdout()).ok())
            .flatten()
            .map(|size| usize::from(size.ws_col))
            .filter(|columns| *columns > 0);
        Self {
            colours: !is_set("NO_COLOR") && (is_forced || (is_terminal && !is_dumb)),
            terminal: is_terminal && !is_dumb,
            width: columns.unwrap_or(WIDTH).clamp(NARROWEST, WIDTH),
        }
    }

    /// What the signs mean, as this page can show them.
    pub fn legend(&self) -> String {
        let changed = if self.colours {
            "on colour"
        } else {
            "with a *"
        };
        format!(
            "✓ reached over IPv4 and IPv6 (4, 6: over that one only)  ✗ not reached  · itself; \
             {changed}: changed by this step"
        )
    }

    fn ink(&self, ink: Ink, text: &str) -> String {
        if self.colours && ink != Ink::Plain {
            format!("\x1b[{}m{text}\x1b[0m", ink.code())
        } else {
            text.to_owned()
        }
    }

    /// Writes a line.
    pub fn line(&self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        if self.terminal {
            write!(out, "\r\x1b[K")?;
        }
        Ok(writeln!(out, "{}", text.trim_end())?)
    }

    /// Says what is going on, on a line that the next one replaces. Nothing where that cannot be.
    pub fn progress(&self, text: &str) -> Result<()> {
        if !self.terminal {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        write!(out, "\r\x1b[K  {}", self.ink(Ink::Dim, text))?;
        Ok(out.flush()?)
    }

    /// The head of the whole.
    pub fn title(&self, title: &str, subtitle: &str) -> Result<()> {
        self.line("")?;
        self.line(&format!(
            "  {}  {}",
            self.ink(Ink::Bold, title),
            self.ink(Ink::Dim, subtitle)
        ))
    }

    /// The head of a step.
    pub fn heading(&self, number: usize, of: usize, title: &str, text: &str) -> Result<()> {
        let rule = self.width.saturating_sub(title.chars().count() + 12);
        self.line("")?;
        self.line("")?;
        self.line(&format!(
            "  {} {}  {}",
            self.ink(Ink::Dim, &format!("{number}/{of}")),
            self.ink(Ink::Bold, title),
            self.ink(Ink::Dim, &"─".repeat(rule)),
        ))?;
        for line in wrapped(text, self.width - MARGIN) {
            self.line(&format!("      {line}"))?;
        }
        Ok(())
    }

    /// A note: a word at the margin, then lines.
    pub fn note(&self, word: &str, ink: Ink, lines: &[String]) -> Result<()> {
        let mut word = word;
        for line in lines {
            for part in broken(line, self.width - MARGIN - WORD) {
                let start = self.ink(ink, &format!("{word:<WORD$}"));
                self.line(&format!("{:MARGIN$}{start}{part}", ""))?;
                word = "";
            }
        }
        Ok(())
    }

    /// Items in as few lines as they fit into.
    pub fn gathered(&self, items: &[String]) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for item in items {
            match lines.last_mut() {
                Some(line) if seen(line) + seen(item) + 3 <= self.width - MARGIN - WORD => {
                    line.push_str(" · ");
                    line.push_str(item);
                }
                _ => lines.push(item.clone()),
            }
        }
        lines
    }

    /// The reachability matrix, with what changed since `before` set off.
    pub fn grid(&self, paths: &Paths, before: Option<&Paths>) -> Result<()> {
        self.line("")?;
        let is_numbered = self.width < LABEL + 4 + SERVICES.len() * COLUMN;
        let column = if is_numbered { NUMBERED } else { COLUMN };
        let indent = " ".repeat(LABEL + 4);
        let head = |cell: &dyn Fn(usize, &Service) -> String| {
            let cells = SERVICES.iter().enumerate();
            cells.fold(indent.clone(), |mut line, (place, service)| {
                write!(
                    line,
                    "{:>width$} ",
                    cell(place, service),
                    width = column - 1
                )
                .expect("a String takes everything");
                line
            })
        };
        let number = |place: usize, _: &Service| (place + 1).to_string();
        if is_numbered {
            self.line(&self.ink(Ink::Bold, &head(&number)))?;
        } else {
            let title = |_, service: &Service| service.title.to_owned();
            let subtitle = |_, service: &Service| service.subtitle.to_owned();
            self.line(&self.ink(Ink::Bold, &head(&title)))?;
            self.line(&self.ink(Ink::Dim, &head(&subtitle)))?;
        }
        for (row, source) in SOURCES.iter().enumerate() {
            let mut line = format!("{:MARGIN$}{source:<width$}", "", width = LABEL - 2);
            for place in 0..SERVICES.len() {
                line.push_str(&" ".repeat(column - 3));
                line.push_str(&self.cell((row, place), paths, before));
            }
            self.line(&line)?;
        }
        if is_numbered {
            let names = SERVICES
                .iter()
                .enumerate()
                .map(|(place, service)| {
                    format!(
                        "{} {} {}",
                        number(place, service),
                        service.title,
                        service.subtitle
                    )
                })
                .collect::<Vec<_>>();
            self.note("", Ink::Plain, &self.gathered(&names))?;
        }
        self.line("")
    }

    fn cell(&self, cell: Cell, paths: &Paths, before: Option<&Paths>) -> String {
        let Some(reach) = paths.get(&cell) else {
            return self.ink(Ink::Dim, " · ");
        };
        let changed = before.is_some_and(|before| before.get(&cell) != Some(reach));
        let glyph = match reach {
            Reach::Open => "✓",
            Reach::Closed => "✗",
            Reach::OnlyV4 => "4",
            Reach::OnlyV6 => "6",
        };
        let ink = match (reach.is_open(), changed) {
            (true, true) => Ink::NewGreen,
            (false, true) => Ink::NewRed,
            (true, false) => Ink::Green,
            // Red is for what hurts: a closed path that nobody needs is as it should be.
            (false, false) if paths::is_needed(cell) => Ink::Red,
            (false, false) => Ink::Dim,
        };
        let mark = if changed && !self.colours { "*" } else { " " };
        self.ink(ink, &format!("{mark}{glyph} "))
    }

    /// How many of the paths work, as a bar.
    pub fn bar(&self, word: &str, ink: Ink, part: usize, whole: usize, text: &str) -> Result<()> {
        // Neither full nor empty unless it is.
        let length = if self.width < WIDTH { SHORT_BAR } else { BAR };
        let filled = match part {
            0 => 0,
            part if part >= whole => length,
            part => (part * length / whole).clamp(1, length - 1),
        };
        let bar = self.ink(ink, &"█".repeat(filled));
        let rest = self.ink(Ink::Dim, &"░".repeat(length - filled));
        self.note(
            word,
            Ink::Bold,
            &[format!("{bar}{rest}  {part} of {whole} {text}")],
        )
    }

    /// Why a path is denied, in lines.
    pub fn reasons(&self, explanation: &Explanation) -> Vec<String> {
        let port = explanation
            .port
            .map(|port| format!("/{port}"))
            .unwrap_or_default();
        let mut head = format!(
            "{} → {}  {}{port}",
            name(&explanation.from),
            name(&explanation.to),
            explanation.protocol
        );
        let refused = explanation
            .observed
            .as_ref()
            .map_or(0, |observed| observed.denied_packets);
        if refused > 0 {
            let packets = if refused == 1 { "packet" } else { "packets" };
            head.push_str(&self.ink(Ink::Dim, &format!("   {refused} {packets} refused so far")));
        }
        let mut lines = vec![head];
        for judgement in &explanation.judgements {
            if judgement.verdict == VerdictWord::Deny {
                lines.extend(self.judgement(explanation, judgement));
            }
        }
        lines
    }

    fn judgement(&self, explanation: &Explanation, judgement: &Judgement) -> Vec<String> {
        use agent::dto::DirectionWord::{Egress, Ingress};
        let place = match judgement.direction {
            Egress => format!("leaving {}", name(&explanation.from)),
            Ingress => format!("entering {}", name(&explanation.to)),
        };
        let policies: Vec<&str> = judgement
            .isolated_by
            .iter()
            .map(|isolating| isolating.policy.as_str())
            .collect();
        let mut lines = vec![format!(
            "  {} {place}: isolated by {}; no rule admits it",
            self.ink(Ink::Red, "✗"),
            policies.join(", "),
        )];
        if let Some(near) = near(judgement) {
            lines.push(format!("    nearest rule {}", near.rule));
            for condition in &near.conditions {
                let has = condition.has.as_ref().filter(|_| !condition.holds);
                let (glyph, ink) = if condition.holds {
                    ("✓", Ink::Green)
                } else {
                    ("✗", Ink::Red)
                };
                lines.push(format!(
                    "      {} {:<12}wants {}{}",
                    self.ink(ink, glyph),
                    condition.condition,
                    condition.wants,
                    has.map(|has| format!("; {has}")).unwrap_or_default(),
                ));
            }
        }
        lines
    }
}

/// Why a path is denied, a line a side: the isolating policies, and the nearest rule.
pub fn brief(explanation: &Explanation) -> Vec<String> {
    explanation
        .judgements
        .iter()
        .filter(|judgement| judgement.verdict == VerdictWord::Deny)
        .map(|judgement| {
            let short = |name: &str| name.split_once('/').map_or(name, |(_, it)| it).to_owned();
            let policies: Vec<String> = judgement
                .isolated_by
                .iter()
                .map(|isolating| short(&isolating.policy))
                .collect();
            let near = near(judgement)
                .map_or_else(String::new, |near| format!("; near {}", short(&near.rule)));
            format!(
                "{} isolated by {}{near}",
                judgement.direction.as_label(),
                policies.join(", ")
            )
        })
        .collect()
}

/// The nearest rule; one that nothing speaks for is not near.
fn near(judgement: &Judgement) -> Option<&NearRule> {
    let nearest = judgement.nearest.first();
    nearest.filter(|near| near.conditions.iter().any(|each| each.holds))
}

/// The name an end has in the story.
fn name(party: &Party) -> String {
    let name = party.to_string();
    if INTERNET.contains(&name.as_str()) {
        return format!("{OUTSIDE} ({name})");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_gathered_into_lines_that_fit() {
        let page = Page {
            colours: true,
            terminal: false,
            width: 80,
        };
        let items = ["a".repeat(30), "b".repeat(30), "c".repeat(30)];
        let lines = page.gathered(&items);
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| seen(line) <= 64), "{lines:?}");
    }
}
