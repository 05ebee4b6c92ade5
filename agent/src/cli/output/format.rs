//! `-o`: the forms of an answer, and the one place that writes documents.

use std::io::{self, BufWriter, StdoutLock, Write};

use clap::ValueEnum;
use serde::Serialize;

/// `-o` of commands that answer once.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// The API's object.
    Json,
    /// The same, as YAML.
    Yaml,
}

/// `-o` of commands that answer with many records.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum StreamFormat {
    /// For people.
    #[default]
    Table,
    /// One document.
    Json,
    /// The same, as YAML.
    Yaml,
    /// One object a line.
    Jsonl,
}

impl Format {
    /// Writes an answer to standard output: in words by `table`, else the document.
    pub(crate) fn print(
        self,
        document: &impl Serialize,
        table: impl FnOnce(&mut BufWriter<StdoutLock<'static>>) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let mut out = stdout();
        match self {
            Self::Table => table(&mut out)?,
            Self::Json => write_json(&mut out, document)?,
            Self::Yaml => write_yaml(&mut out, document)?,
        }
        Ok(out.flush()?)
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

/// One YAML document, without a line of dashes.
pub(crate) fn write_yaml(out: &mut impl Write, document: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_saphyr::to_string(document)?;
    out.write_all(text.as_bytes())?;
    Ok(())
}
