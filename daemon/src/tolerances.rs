//! The table of tolerances: a file that `gradmesh doctor --calibrate` writes and a run file names.
//!
//! JSON, so that people can read, merge and publish it. What the manifest takes of it is the pair of classes and the
//! tolerance; the measurements behind them are for readers.

use std::path::Path;

use gradmesh_protocol::manifest::Tolerance;
use serde::{Deserialize, Serialize};

/// The longest file that is read: a hundred times the longest table.
const BYTES_MAX: u64 = 1 << 20;

/// See the module documentation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToleranceFile {
    /// One entry for each pair of device classes.
    pub pairs: Vec<CalibratedPair>,
}

/// Two device classes, and how far apart they were.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibratedPair {
    /// A device class, as headers have it.
    pub first: String,
    /// Another one, or the same.
    pub second: String,
    /// What an audit of one by the other tolerates: error of an update relative to the update, parts per billion.
    pub tolerance_ppb: u32,
    /// The largest error that was measured.
    pub largest_ppb: u32,
    /// How many segments were measured.
    pub segments: u32,
}

impl ToleranceFile {
    /// Reads the table at `path`.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read(path: &Path) -> Result<ToleranceFile, String> {
        let length =
            std::fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
        if length.len() > BYTES_MAX {
            return Err(format!("{}: longer than {BYTES_MAX} bytes", path.display()));
        }
        let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        serde_json::from_slice(&text).map_err(|error| {
            format!(
                "{}: {error}; write it with gradmesh doctor --calibrate",
                path.display()
            )
        })
    }

    /// What a manifest says of it, in its order.
    pub fn tolerances(&self) -> Vec<Tolerance> {
        let tolerance = |pair: &CalibratedPair| {
            let (first, second) = if pair.first <= pair.second {
                (&pair.first, &pair.second)
            } else {
                (&pair.second, &pair.first)
            };
            Tolerance {
                first: first.clone(),
                second: second.clone(),
                error_ppb: pair.tolerance_ppb,
            }
        };
        let mut tolerances: Vec<_> = self.pairs.iter().map(tolerance).collect();
        tolerances.sort();
        tolerances
    }
}
