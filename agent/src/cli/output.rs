//! How answers look: what the terminal can show, colours and glyphs, tables, documents. No wording
//! of its own.

mod format;
mod table;
mod words;

use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;

use crate::dto::VerdictWord;

pub(crate) use format::{Format, StreamFormat, stdout, write_json, write_json_line, write_yaml};
pub(crate) use table::{Cell, Column, Table};
pub(crate) use words::{age, append, counted, grouped};

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
