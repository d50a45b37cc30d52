//! Where a report goes: to the terminal, to a file of JSON, to a page.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

/// The options of every command that reports.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Output {
    /// Write the results as JSON to this file; `-` prints them instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with plots to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl Output {
    /// Writes what is asked for, and prints `text` unless JSON takes its place.
    ///
    /// # Errors
    /// The option whose file cannot be written.
    pub(crate) fn write(
        &self,
        text: String,
        json: &Value,
        html: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        let mut said = text;
        if let Some(path) = &self.json {
            let json = serde_json::to_string_pretty(json)? + "\n";
            if path == Path::new("-") {
                said = json;
            } else {
                fs::write(path, json).with_context(|| format!("--json {}", path.display()))?;
            }
        }
        if let Some(path) = &self.html {
            fs::write(path, html()).with_context(|| format!("--html {}", path.display()))?;
        }
        let mut stdout = std::io::stdout().lock();
        stdout
            .write_all(said.as_bytes())
            .and_then(|()| stdout.flush())
            .context("writing to stdout")
    }
}
