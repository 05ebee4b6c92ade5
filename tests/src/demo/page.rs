//! How the demo looks: words and colours on a terminal, words alone elsewhere.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use agent::dto::{Explanation, Judgement, VerdictWord};
use anyhow::Result;

use super::paths::{self, Cell, Paths, Reach};
use super::story::{SERVICES, SOURCES};

/// Width of the page.
const WIDTH: usize = 116;
/// Width of the first column of the grid and of the notes below it.
const LABEL: usize = 24;
/// Width of a column of the grid.
const COLUMN: usize = 9;
/// Width of the word before a note.
const WORD: usize = 10;
/// Length of a full bar.
const BAR: usize = 40;

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
    terminal: bool,
}

impl Page {
    /// Standard output: in colour on a terminal, unless `NO_COLOR` says otherwise.
    pub fn open() -> Self {
        let terminal = io::stdout().is_terminal();
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let forced = std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0");
        Self {
            colours: forced || (terminal && !set("NO_COLOR")),
            terminal,
        }
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
        let rule = WIDTH.saturating_sub(title.chars().count() + 12);
        self.line("")?;
        self.line("")?;
        self.line(&format!(
            "  {} {}  {}",
            self.ink(Ink::Dim, &format!("{number}/{of}")),
            self.ink(Ink::Bold, title),
            self.ink(Ink::Dim, &"─".repeat(rule)),
        ))?;
        for line in wrapped(text, WIDTH - 8) {
            self.line(&format!("      {line}"))?;
        }
        Ok(())
    }

    /// A note: a word at the margin, then lines.
    pub fn note(&self, word: &str, ink: Ink, lines: &[String]) -> Result<()> {
        for (place, line) in lines.iter().enumerate() {
            let word = if place == 0 { word } else { "" };
            let word = self.ink(ink, &format!("{word:<WORD$}"));
            self.line(&format!("      {word}{line}"))?;
        }
        Ok(())
    }

    /// The reachability matrix, with what changed since `before` set off.
    pub fn grid(&self, paths: &Paths, before: Option<&Paths>) -> Result<()> {
        self.line("")?;
        let head = |cell: fn(usize) -> &'static str| {
            (0..SERVICES.len()).fold(String::new(), |mut line, column| {
                write!(line, "{:>width$} ", cell(column), width = COLUMN - 1)
                    .expect("a String takes everything");
                line
            })
        };
        let titles = head(|column| SERVICES.get(column).map_or("", |service| service.title));
        let subtitles = head(|column| SERVICES.get(column).map_or("", |service| service.subtitle));
        let indent = " ".repeat(LABEL + 4);
        self.line(&format!("{indent}{}", self.ink(Ink::Bold, &titles)))?;
        self.line(&format!("{indent}{}", self.ink(Ink::Dim, &subtitles)))?;
        for (row, source) in SOURCES.iter().enumerate() {
            let mut line = format!("      {source:<width$}", width = LABEL - 2);
            for column in 0..SERVICES.len() {
                line.push_str(&self.cell((row, column), paths, before));
            }
            self.line(&line)?;
        }
        self.line("")
    }

    fn cell(&self, cell: Cell, paths: &Paths, before: Option<&Paths>) -> String {
        let margin = " ".repeat(COLUMN - 3);
        let Some(reach) = paths.get(&cell) else {
            return format!("{margin}{}", self.ink(Ink::Dim, " · "));
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
        format!("{margin}{}", self.ink(ink, &format!("{mark}{glyph} ")))
    }

    /// How many of the paths work, as a bar.
    pub fn bar(&self, word: &str, ink: Ink, part: usize, whole: usize, text: &str) -> Result<()> {
        let filled = (part * BAR).div_ceil(whole.max(1)).min(BAR);
        let bar = self.ink(ink, &"█".repeat(filled));
        let rest = self.ink(Ink::Dim, &"░".repeat(BAR - filled));
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
            explanation.from, explanation.to, explanation.protocol
        );
        let refused = explanation
            .observed
            .as_ref()
            .map_or(0, |observed| observed.denied_packets);
        if refused > 0 {
            let packets = if refused == 1 { "packet" } else { "packets" };
            head.push_str(&self.ink(Ink::Dim, &format!("   {refused} {packets} refused")));
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
            Egress => format!("leaving {}", explanation.from),
            Ingress => format!("entering {}", explanation.to),
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
        // A rule that nothing speaks for is not near.
        let near = judgement.nearest.first();
        if let Some(near) = near.filter(|near| near.conditions.iter().any(|each| each.holds)) {
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

/// Text in lines of at most `width` characters.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
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
