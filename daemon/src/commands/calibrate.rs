//! `gradmesh doctor --calibrate FILE`: how far honest ways to compute are apart on this machine, as a table that a run file
//! names.
//!
//! Measured are pairs of what a miner and a validator may have here: other thread counts, other micro-batches, the number format
//! of the run against the other one, and, where there is one, the GPU against the CPU. Machines of other kinds are calibrated
//! there, and the tables put together.

use std::path::Path;

use anyhow::Context;
use gradmesh_protocol::audit::judgement::tolerance_of_spread;
use gradmesh_protocol::manifest::ModelDtype;
use gradmesh_trainer::data::Corpus;
use gradmesh_trainer::model::Precision;
use gradmesh_trainer::torch::calibrate::{Measured, Setup, calibrate};
use gradmesh_trainer::torch::device::{self, Device};
use gradmesh_trainer::torch::{TorchSettings, version_check};
use gradmesh_trainer::{Architecture, InnerOptimizer};
use indicatif::{ProgressBar, ProgressStyle};

use super::print_json;
use crate::machine::cores;
use crate::run_file::MODEL_PRESETS;
use crate::terminal::{say, table};
use crate::tolerances::{CalibratedPair, ToleranceFile};
use crate::worker::MICRO_BATCH;

/// Segments of each pair. A fourth of them begin with an optimizer that knows nothing, where rounding shows most.
const SEGMENTS: u32 = 40;
/// Steps of a segment: the fewest, which tolerate least.
const STEPS: u32 = 1;
/// Tokens of a sequence, and sequences of a step.
const SEQUENCE: usize = 64;
const BATCH: usize = 8;
/// The text of a calibration: this file, several times over. What it says matters little to how numbers round.
const TEXT: &str = include_str!("calibrate.rs");

/// Measures, writes the table to `file` and shows it.
///
/// # Errors
/// What libtorch, or the operating system, said.
pub(super) async fn run(file: &Path, device: &str, json: bool) -> anyhow::Result<()> {
    let device = device.to_owned();
    let measured = tokio::task::spawn_blocking(move || measure(&device));
    let measured = measured.await.context("the calibration was broken off")??;
    let pairs: Vec<CalibratedPair> = measured.iter().map(pair).collect();
    let written = ToleranceFile { pairs };
    let text = serde_json::to_string_pretty(&written).context("the table as JSON")?;
    std::fs::write(file, text + "\n")
        .with_context(|| format!("--calibrate {}: cannot be written", file.display()))?;
    if json {
        return print_json(&written);
    }
    let rows: Vec<_> = written
        .pairs
        .iter()
        .map(|pair| {
            vec![
                pair.first.clone(),
                pair.second.clone(),
                format!("{:.1e}", f64::from(pair.largest_ppb) / 1e9),
                format!("{:.1e}", f64::from(pair.tolerance_ppb) / 1e9),
            ]
        })
        .collect();
    say(&table(
        &["worked", "audited", "largest error", "tolerance"],
        &rows,
    ));
    say(&format!(
        "written to {}: name it in a run file as audit.tolerances",
        file.display()
    ));
    Ok(())
}

fn pair(measured: &Measured) -> CalibratedPair {
    let bf16 = |class: &str| class.split(' ').any(|word| word == "bf16");
    let dtype = match bf16(&measured.first) || bf16(&measured.second) {
        true => ModelDtype::Bf16,
        false => ModelDtype::F32,
    };
    CalibratedPair {
        first: measured.first.clone(),
        second: measured.second.clone(),
        tolerance_ppb: tolerance_of_spread(measured.largest_ppb, dtype),
        largest_ppb: u32::try_from(measured.largest_ppb).unwrap_or(u32::MAX),
        segments: measured.segments,
    }
}

fn measure(device: &str) -> anyhow::Result<Vec<Measured>> {
    version_check()?;
    let choice = device::select(device.parse()?)?;
    let (_, config) = MODEL_PRESETS.first().context("there is a preset")?;
    let model = Architecture::from_json(config.as_bytes())?;
    let corpus = Corpus::from_bytes(TEXT.repeat(8).into_bytes());
    let windows = corpus.windows(SEQUENCE)?;
    let mut batches = |step: u32| {
        let first = u64::from(step) * BATCH as u64;
        let indices = (first..first + BATCH as u64).map(|window| window % windows.training());
        let indices: Vec<u64> = indices.collect();
        windows
            .training_batch(&indices)
            .map_err(|error| error.to_string())
    };
    let pairs = pairs(choice.device);
    let length = pairs.len() as u64 * u64::from(SEGMENTS);
    let bar = ProgressBar::new(length).with_style(
        ProgressStyle::with_template("{bar:30} {pos:>4}/{len} segments, {eta} to go")
            .expect("a constant template"),
    );
    let measured = calibrate(
        &model,
        [1; 32],
        &mut batches,
        &pairs,
        SEGMENTS,
        STEPS,
        &mut |_| {
            bar.inc(1);
        },
    );
    bar.finish_and_clear();
    Ok(measured?)
}

/// What is measured against what.
fn pairs(device: Device) -> Vec<(Setup, Setup)> {
    let setup = |device, precision, threads, micro_batch| Setup {
        settings: TorchSettings {
            optimizer: InnerOptimizer::default(),
            precision,
            device,
            micro_batch,
        },
        threads,
    };
    let (f32, bf16) = (Precision::F32, Precision::Bf16);
    let most = u16::try_from(cores()).unwrap_or(u16::MAX);
    let one = |precision| setup(Device::Cpu, precision, 1, MICRO_BATCH);
    let several = |precision| setup(Device::Cpu, precision, most.max(2), MICRO_BATCH);
    let pieces = |precision| setup(Device::Cpu, precision, 1, BATCH / 2);
    let mut pairs = vec![
        (one(f32), one(f32)),
        (one(f32), several(f32)),
        (one(f32), pieces(f32)),
        (one(bf16), one(bf16)),
        (one(bf16), several(bf16)),
        (one(bf16), pieces(bf16)),
        (one(bf16), one(f32)),
    ];
    if device != Device::Cpu {
        let gpu = |precision| setup(device, precision, 1, MICRO_BATCH);
        pairs.push((gpu(f32), one(f32)));
        pairs.push((gpu(bf16), one(bf16)));
        pairs.push((gpu(bf16), gpu(bf16)));
    }
    pairs
}
