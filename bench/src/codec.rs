//! `gradmesh-bench codec`: bytes, error and speed of every codec, on seeded noise and on updates of the demo's model.
//!
//! One sender with error feedback sends one frame per round for R rounds; a receiver decodes it. Its update is noise, N
//! independent values in one tensor, or what a round of training on real text changed in the matrices of the demo's
//! model ([`crate::update`]). Each round does this for all codecs on the same update, one after the other on one
//! thread, so that a machine that changes its speed changes it for all. From the second round on, sparse codecs see
//! what earlier frames left out, which is denser around the border of the top-k than the noise itself.
//!
//! # JSON
//!
//! ```text
//! benchmark   "codec"
//! machine     {cpu, cores, commit, date, debug_assertions}; null where the system does not tell
//! config      {parameters, rounds, beta, seed, threads}
//! results     one object per data and codec:
//!   data                            "normal", "laplace" or "demo"
//!   codec                           "sparse", "int4", "int8", "bf16" or "f32"
//!   k, value_bits                   of a sparse codec, else null
//!   bits_per_nonzero                8 * bytes of the frames / values other than zero in them
//!   bits_per_nonzero_bound          index_bits_bound + value_bits; of a dense codec the bits of its format
//!   index_bits                      per value, of the indices alone; null for a dense codec
//!   index_bits_bound                log2 of the choices of k of 4096 / k, summed over the tiles; null for a dense codec
//!   parameters                      elements of the update
//!   bits_per_parameter              8 * bytes of the frames / (parameters * rounds)
//!   rel_sq_error                    squared error of the values that are kept (sent as other than zero), divided by the
//!                                   sum of their squares before; mean of the rounds
//!   encode_params_per_s             parameters / median encode_s
//!   decode_nonzeros_per_s           values other than zero / decode_s, median
//!   samples                         one object per round, in order:
//!     frame_bytes, nonzeros, index_bits   whole frame
//!     rel_sq_error
//!     encode_s                            select, quantise, take out of the residual, write
//!     decode_s                            read and check the frame
//! zstd        one object for each payload, order of its bytes and level; only with the demo's updates, of whose last round
//!             the payloads are:
//!   codec                           "zstd PAYLOAD ORDER level LEVEL"
//!   payload, order, level           what was compressed; "bytes" as they lie, or "planes": the high bytes of the
//!                                   elements alone, as between peers
//!   ratio                           compressed bytes / bytes
//!   compress_bytes_per_s, decompress_bytes_per_s
//!                                   of the payload, taking it apart and together included; best of three
//! ```
//!
//! The bound on the indices holds on average when all sets of k indices are equally likely, as they are in noise. It leaves
//! out levels, header and padding, which `bits_per_nonzero` counts.

use std::hint::black_box;
use std::io::{IsTerminal, stderr};
use std::time::Instant;

use anyhow::Context;
use clap::builder::RangedU64ValueParser;
use gradmesh_compression::{
    Codec, DenseFormat, ErrorFeedback, Layout, TensorMode, TensorSpec, Tile, TopK, ValueBits,
    decode, encode,
};
use serde_json::{Value, json};

use crate::bound::log2_choose;
use crate::noise::{Distribution, Noise};
use crate::origin::Origin;
use crate::planes::{self, Payload, PlanesRow};
use crate::report::{self, Bar, Bars, Output, Page, Scale};
use crate::update::Updates;

/// Share of the residual that the next round still sends: the default of run files.
const BETA: f32 = 0.95;
const SEED: u64 = 1;
const TOP_KS: [TopK; 3] = [top_k(32), top_k(64), top_k(128)];

/// `gradmesh-bench codec`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Elements of the update; takes 44 bytes of memory for each
    #[arg(long, value_name = "N", default_value_t = 1 << 22, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 30))]
    parameters: usize,
    /// Frames per codec
    #[arg(long, value_name = "R", default_value_t = 10, value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    rounds: usize,
    #[command(flatten)]
    output: Output,
    /// Measure noise alone: no training of the demo's model, no zstd
    #[arg(long)]
    synthetic: bool,
}

const fn top_k(k: u16) -> TopK {
    match TopK::new(k) {
        Ok(k) => k,
        Err(_) => panic!("k of a tile"),
    }
}

/// Measures, prints, writes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let origin = Origin::here_and_now();
    let progress = Progress {
        shown: stderr().is_terminal(),
        rounds: args.rounds,
    };
    let mut rows = Vec::new();
    for distribution in [Distribution::Normal, Distribution::Laplace] {
        let noise = Source::Noise(distribution, Noise::new(SEED));
        rows.extend(measure(args, noise, &progress)?.0);
    }
    let mut zstd_rows = Vec::new();
    if !args.synthetic {
        let (of_demo, payloads) =
            measure(args, Source::Demo(Box::new(Updates::new()?)), &progress)?;
        rows.extend(of_demo);
        zstd_rows = planes::measure(&payloads)?;
    }
    progress.clear();

    let mut said = heading(args, &origin) + &report::table(2, &HEADS, &cells(&rows));
    if !zstd_rows.is_empty() {
        let cells: Vec<_> = zstd_rows.iter().map(PlanesRow::cells).collect();
        said += "\n";
        said += &report::table(2, &PlanesRow::HEADS, &cells);
    }
    let json = report(args, &origin, &rows, &zstd_rows);
    let html = || page(&origin, &rows, &zstd_rows);
    args.output.write(said, &json, html)
}

/// One line on stderr, overwritten, when somebody watches.
struct Progress {
    shown: bool,
    rounds: usize,
}

impl Progress {
    fn say(&self, data: &str, round: usize, codec: Codec) {
        if self.shown {
            let (codec, rounds) = (name(codec), self.rounds);
            eprint!("\r\x1b[K{data}: round {} of {rounds}, {codec}", round + 1);
        }
    }

    fn clear(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

/// What one frame cost.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    frame_bytes: usize,
    nonzeros: usize,
    index_bits: u64,
    rel_sq_error: f64,
    encode_s: f64,
    decode_s: f64,
}

/// Measurements of one codec on one kind of data.
#[derive(Debug, Clone)]
struct Row {
    data: &'static str,
    codec: Codec,
    parameters: usize,
    bound: Bound,
    samples: Vec<Sample>,
}

/// Bits per nonzero value that arithmetic asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bound {
    /// Of its index; `None` where all elements are sent.
    index_bits: Option<f64>,
    value_bits: u32,
}

impl Bound {
    fn new(codec: Codec, tiles: &[Tile]) -> Self {
        match codec {
            Codec::Sparse { k, value_bits } => {
                let (mut bits, mut entries) = (0.0, 0);
                // All tiles of one tensor but the last are alike.
                let mut last: Option<(usize, f64)> = None;
                for tile in tiles {
                    let kept = usize::from(k.for_tile(tile));
                    let of_tile = match last {
                        Some((len, of_tile)) if len == tile.len() => of_tile,
                        _ => log2_choose(tile.len(), kept),
                    };
                    last = Some((tile.len(), of_tile));
                    bits += of_tile;
                    entries += kept;
                }
                Self {
                    index_bits: Some(bits / entries as f64),
                    value_bits: value_bits.bits(),
                }
            }
            Codec::Dense(format) => Self {
                index_bits: None,
                value_bits: match format {
                    DenseFormat::F32 => 32,
                    DenseFormat::Bf16 => 16,
                    DenseFormat::Int8 => 8,
                    DenseFormat::Int4 => 4,
                },
            },
        }
    }

    fn bits_per_nonzero(self) -> f64 {
        self.index_bits.unwrap_or(0.0) + f64::from(self.value_bits)
    }
}

fn codecs() -> impl Iterator<Item = Codec> {
    let sparse = TOP_KS.into_iter().flat_map(|k| {
        [ValueBits::One, ValueBits::Two, ValueBits::Four]
            .map(|value_bits| Codec::Sparse { k, value_bits })
    });
    let dense = [
        DenseFormat::Int4,
        DenseFormat::Int8,
        DenseFormat::Bf16,
        DenseFormat::F32,
    ];
    sparse.chain(dense.map(Codec::Dense))
}

fn name(codec: Codec) -> String {
    match codec {
        Codec::Sparse { k, value_bits } => {
            format!("sparse k={} {} bit", k.get(), value_bits.bits())
        }
        Codec::Dense(format) => format!("dense {}", format_name(format)),
    }
}

const fn format_name(format: DenseFormat) -> &'static str {
    match format {
        DenseFormat::F32 => "f32",
        DenseFormat::Bf16 => "bf16",
        DenseFormat::Int8 => "int8",
        DenseFormat::Int4 => "int4",
    }
}

/// Where updates come from.
enum Source {
    Noise(Distribution, Noise),
    Demo(Box<Updates>),
}

impl Source {
    const fn name(&self) -> &'static str {
        match self {
            Self::Noise(distribution, _) => distribution.name(),
            Self::Demo(_) => "demo",
        }
    }

    fn layout(&self, parameters: usize) -> anyhow::Result<Layout> {
        match self {
            Self::Noise(..) => Layout::new(&[TensorSpec {
                elements: parameters,
                mode: TensorMode::Sparse,
            }])
            .context("--parameters"),
            Self::Demo(updates) => updates.layout(),
        }
    }

    /// Overwrites `update` with the next one.
    fn next(&mut self, update: &mut [f32]) -> anyhow::Result<()> {
        match self {
            Self::Noise(distribution, noise) => {
                noise.fill(*distribution, update);
                Ok(())
            }
            Self::Demo(updates) => updates.next(update),
        }
    }
}

/// The rows of one source; of the demo also what one might compress: the last frames, and the model as bf16.
fn measure(
    args: &Args,
    mut source: Source,
    progress: &Progress,
) -> anyhow::Result<(Vec<Row>, Vec<Payload>)> {
    let layout = source.layout(args.parameters)?;
    let parameters = layout.elements();
    let mut lanes = Vec::new();
    for codec in codecs() {
        let row = Row {
            data: source.name(),
            codec,
            parameters,
            bound: Bound::new(codec, layout.tiles()),
            samples: Vec::with_capacity(args.rounds),
        };
        lanes.push((row, ErrorFeedback::new(parameters, BETA)?));
    }
    let mut update = vec![0.0; parameters];
    let mut scratch = Scratch {
        before: vec![0.0; parameters],
        decoded: vec![0.0; parameters],
        frame: Vec::new(),
    };
    let mut payloads = Vec::new();
    for round in 0..args.rounds {
        source.next(&mut update)?;
        for (row, feedback) in &mut lanes {
            progress.say(row.data, round, row.codec);
            feedback.accumulate(0, &update)?;
            let sample = send(feedback, layout.tiles(), row.codec, &mut scratch)?;
            row.samples.push(sample);
            if round + 1 == args.rounds {
                payloads.push(Payload {
                    name: format!("frame {}", name(row.codec)),
                    bytes: scratch.frame.clone(),
                    element_bytes: element_bytes(row.codec),
                });
            }
        }
    }
    if let Source::Demo(updates) = &source {
        payloads.push(checkpoint(updates.theta())?);
    }
    Ok((lanes.into_iter().map(|(row, _)| row).collect(), payloads))
}

/// Of one element in a frame; 1 where elements share bytes.
const fn element_bytes(codec: Codec) -> usize {
    match codec {
        Codec::Dense(DenseFormat::F32) => 4,
        Codec::Dense(DenseFormat::Bf16) => 2,
        Codec::Dense(DenseFormat::Int8 | DenseFormat::Int4) | Codec::Sparse { .. } => 1,
    }
}

/// The elements of a bf16 checkpoint, which are those of a dense bf16 frame.
fn checkpoint(theta: &[f32]) -> anyhow::Result<Payload> {
    let layout = Layout::new(&[TensorSpec {
        elements: theta.len(),
        mode: TensorMode::Dense,
    }])?;
    let mut bytes = Vec::new();
    encode(
        theta,
        layout.tiles(),
        Codec::Dense(DenseFormat::Bf16),
        &mut bytes,
    )?;
    Ok(Payload {
        name: "checkpoint bf16".to_owned(),
        bytes,
        element_bytes: 2,
    })
}

/// Buffers that no round allocates anew.
struct Scratch {
    before: Vec<f32>,
    decoded: Vec<f32>,
    frame: Vec<u8>,
}

/// Takes a frame out of `feedback` and decodes it.
fn send(
    feedback: &mut ErrorFeedback,
    tiles: &[Tile],
    codec: Codec,
    scratch: &mut Scratch,
) -> anyhow::Result<Sample> {
    let residual = feedback.residual().expect("an update was taken in");
    scratch.before.copy_from_slice(residual);
    scratch.frame.clear();
    let start = Instant::now();
    let stats = feedback.take(0, tiles, codec, &mut scratch.frame)?;
    let encode_s = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let frame = black_box(decode(&scratch.frame, tiles, codec)?);
    let decode_s = start.elapsed().as_secs_f64();

    frame.dequantise_into(&mut scratch.decoded);
    let (nonzeros, rel_sq_error) = kept(&scratch.before, &scratch.decoded);
    Ok(Sample {
        frame_bytes: stats.frame_bytes,
        nonzeros,
        index_bits: stats.index_bits,
        rel_sq_error,
        encode_s,
        decode_s,
    })
}

/// How many values of `decoded` are not zero, and their squared error relative to the squares that they stand for.
fn kept(before: &[f32], decoded: &[f32]) -> (usize, f64) {
    let (mut nonzeros, mut error, mut whole) = (0, 0.0, 0.0);
    for (&before, &decoded) in before.iter().zip(decoded) {
        if decoded != 0.0 {
            nonzeros += 1;
            error += (f64::from(before) - f64::from(decoded)).powi(2);
            whole += f64::from(before).powi(2);
        }
    }
    (nonzeros, if nonzeros == 0 { 0.0 } else { error / whole })
}

impl Row {
    fn sum(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        self.samples.iter().map(of).sum()
    }

    fn nonzeros(&self) -> f64 {
        self.sum(|sample| sample.nonzeros as f64)
    }

    fn bits(&self) -> f64 {
        self.sum(|sample| sample.frame_bytes as f64 * 8.0)
    }

    fn bits_per_nonzero(&self) -> f64 {
        self.bits() / self.nonzeros()
    }

    /// Per value; `None` for a dense codec.
    fn index_bits(&self) -> Option<f64> {
        let bits = self.sum(|sample| sample.index_bits as f64);
        self.bound.index_bits.map(|_| bits / self.nonzeros())
    }

    fn bits_per_parameter(&self) -> f64 {
        self.bits() / (self.parameters as f64 * self.samples.len() as f64)
    }

    fn rel_sq_error(&self) -> f64 {
        self.sum(|sample| sample.rel_sq_error) / self.samples.len() as f64
    }

    fn encode_params_per_s(&self) -> f64 {
        median(
            self.samples
                .iter()
                .map(|s| self.parameters as f64 / s.encode_s),
        )
    }

    fn decode_nonzeros_per_s(&self) -> f64 {
        median(self.samples.iter().map(|s| s.nonzeros as f64 / s.decode_s))
    }

    fn to_json(&self) -> Value {
        let (codec, k, value_bits) = match self.codec {
            Codec::Sparse { k, value_bits } => ("sparse", Some(k.get()), Some(value_bits.bits())),
            Codec::Dense(format) => (format_name(format), None, None),
        };
        let samples = self.samples.iter().map(|sample| {
            json!({
                "frame_bytes": sample.frame_bytes,
                "nonzeros": sample.nonzeros,
                "index_bits": sample.index_bits,
                "rel_sq_error": sample.rel_sq_error,
                "encode_s": sample.encode_s,
                "decode_s": sample.decode_s,
            })
        });
        json!({
            "data": self.data,
            "parameters": self.parameters,
            "codec": codec,
            "k": k,
            "value_bits": value_bits,
            "bits_per_nonzero": self.bits_per_nonzero(),
            "bits_per_nonzero_bound": self.bound.bits_per_nonzero(),
            "index_bits": self.index_bits(),
            "index_bits_bound": self.bound.index_bits,
            "bits_per_parameter": self.bits_per_parameter(),
            "rel_sq_error": self.rel_sq_error(),
            "encode_params_per_s": self.encode_params_per_s(),
            "decode_nonzeros_per_s": self.decode_nonzeros_per_s(),
            "samples": samples.collect::<Vec<_>>(),
        })
    }
}

/// Of the rounds, of which there is at least one.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    report::median(values).unwrap_or(f64::NAN)
}

fn report(args: &Args, origin: &Origin, rows: &[Row], zstd_rows: &[PlanesRow]) -> Value {
    json!({
        "benchmark": "codec",
        "machine": origin.to_json(),
        "config": {
            "parameters": args.parameters,
            "rounds": args.rounds,
            "beta": f64::from((BETA * 1e6).round()) / 1e6,
            "seed": SEED,
            "threads": 1,
        },
        "results": rows.iter().map(Row::to_json).collect::<Vec<_>>(),
        "zstd": zstd_rows.iter().map(PlanesRow::to_json).collect::<Vec<_>>(),
    })
}

fn heading(args: &Args, origin: &Origin) -> String {
    let cores = origin.cores.map(|cores| cores.to_string());
    let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    let assertions = if cfg!(debug_assertions) {
        " with debug assertions"
    } else {
        ""
    };
    format!(
        "codec: {} parameters, {} rounds, one thread, error feedback beta {BETA}, seed {SEED}\n\
         machine: {}, cores: {}\n\
         commit: {}{assertions}, date: {}\n\
         bits and index are per value sent, each beside its bound; speeds are medians of the rounds\n\n",
        args.parameters,
        args.rounds,
        or_unknown(&origin.cpu),
        or_unknown(&cores),
        or_unknown(&origin.commit),
        or_unknown(&origin.date),
    )
}

const HEADS: [&str; 10] = [
    "data",
    "codec",
    "bits",
    "bound",
    "index",
    "bound",
    "bits/param",
    "rel sq error",
    "encode Mparam/s",
    "decode Mvalue/s",
];

fn cells(rows: &[Row]) -> Vec<Vec<String>> {
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
    let of_row = |row: &Row| {
        vec![
            row.data.to_owned(),
            name(row.codec),
            number(Some(row.bits_per_nonzero())),
            number(Some(row.bound.bits_per_nonzero())),
            number(row.index_bits()),
            number(row.bound.index_bits),
            number(Some(row.bits_per_parameter())),
            format!("{:.2e}", row.rel_sq_error()),
            format!("{:.1}", row.encode_params_per_s() / 1e6),
            format!("{:.1}", row.decode_nonzeros_per_s() / 1e6),
        ]
    };
    rows.iter().map(of_row).collect()
}

fn page(origin: &Origin, rows: &[Row], zstd_rows: &[PlanesRow]) -> String {
    let mut page = Page::new("gradmesh-bench codec", origin);
    page.paragraph(
        "Bits and index are per value sent, each beside its bound; speeds are medians of the rounds, on one thread.",
    );
    page.table(2, &HEADS, &cells(rows));
    type Values = fn(&Row) -> Vec<f64>;
    let plots: [(&str, &str, Scale, Values, bool); 4] = [
        (
            "Bits per value sent",
            "bits; the line is the bound",
            Scale::Linear,
            |row| vec![row.bits_per_nonzero()],
            true,
        ),
        (
            "Squared error of the values sent",
            "relative to their squares",
            Scale::Log,
            |row| row.samples.iter().map(|s| s.rel_sq_error).collect(),
            false,
        ),
        (
            "Encode",
            "parameters/s",
            Scale::Linear,
            |row| {
                let speed = |s: &Sample| row.parameters as f64 / s.encode_s;
                row.samples.iter().map(speed).collect()
            },
            false,
        ),
        (
            "Decode",
            "values/s",
            Scale::Log,
            |row| {
                let speed = |s: &Sample| s.nonzeros as f64 / s.decode_s;
                row.samples.iter().map(speed).collect()
            },
            false,
        ),
    ];
    for (title, axis, scale, samples, bounded) in plots {
        let bar = |row: &Row| Bar {
            label: name(row.codec),
            kind: row.data.to_owned(),
            samples: samples(row),
            bound: bounded.then(|| row.bound.bits_per_nonzero()),
        };
        let bars = Bars {
            axis: axis.to_owned(),
            scale,
            bars: rows.iter().map(bar).collect(),
        };
        page.heading(title);
        page.figure(&bars.to_svg(), "Dots are rounds, bars their median.");
    }
    if !zstd_rows.is_empty() {
        page.heading("zstd");
        page.paragraph("Of the demo's last round; planes: the high byte of every element alone, the others as they are.");
        let cells: Vec<_> = zstd_rows.iter().map(PlanesRow::cells).collect();
        page.table(2, &PlanesRow::HEADS, &cells);
    }
    page.into_html()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT: Progress = Progress {
        shown: false,
        rounds: 3,
    };

    fn small() -> Args {
        Args {
            parameters: 64 * 4096,
            rounds: 3,
            output: Output::default(),
            synthetic: true,
        }
    }

    fn noise_rows(distribution: Distribution) -> Vec<Row> {
        let noise = Source::Noise(distribution, Noise::new(SEED));
        measure(&small(), noise, &SILENT).unwrap().0
    }

    fn tiles(elements: usize) -> Layout {
        Layout::new(&[TensorSpec {
            elements,
            mode: TensorMode::Sparse,
        }])
        .unwrap()
    }

    #[test]
    fn the_bound_of_several_tiles_weighs_each_by_its_entries() {
        let k = top_k(64);
        let codec = Codec::Sparse {
            k,
            value_bits: ValueBits::Two,
        };
        let full = Bound::new(codec, tiles(3 * 4096).tiles());
        let of_tile = log2_choose(4096, 64) / 64.0;
        // Two roundings of a sum of three.
        assert!((full.index_bits.unwrap() - of_tile).abs() < 1e-12);
        assert_eq!(full.bits_per_nonzero(), full.index_bits.unwrap() + 2.0);
        // The short tile of 64 elements has one entry of 6 bits.
        let short = Bound::new(codec, tiles(4096 + 64).tiles());
        let expected = (log2_choose(4096, 64) + 6.0) / 65.0;
        assert!((short.index_bits.unwrap() - expected).abs() < 1e-12);
    }

    #[test]
    fn dense_values_are_bounded_by_their_format() {
        let layout = tiles(4096);
        for (format, bits) in [
            (DenseFormat::Int4, 4.0),
            (DenseFormat::Int8, 8.0),
            (DenseFormat::Bf16, 16.0),
            (DenseFormat::F32, 32.0),
        ] {
            let bound = Bound::new(Codec::Dense(format), layout.tiles());
            assert_eq!((bound.index_bits, bound.bits_per_nonzero()), (None, bits));
        }
    }

    #[test]
    fn the_error_counts_kept_values_only() {
        assert_eq!(kept(&[3.0, 4.0, -9.0], &[3.0, 2.0, 0.0]), (2, 4.0 / 25.0));
        assert_eq!(kept(&[1.0], &[0.0]), (0, 0.0));
    }

    #[test]
    fn every_codec_stays_above_its_bound_and_near_it() {
        for distribution in [Distribution::Normal, Distribution::Laplace] {
            for row in noise_rows(distribution) {
                let (bits, bound) = (row.bits_per_nonzero(), row.bound.bits_per_nonzero());
                // What may come on top. Index: a Rice code takes log2(x) + 1 + 1 / (e^x - 1) - log2(e) bits more than
                // the entropy of geometric gaps, x = 2^r / mean gap; with the best r that is at most 0.12, where
                // e^x = 1.618 makes two r equal. Such gaps take log2(2 pi k) / 2 bits more per tile than the choice of
                // k (Stirling). Level: 16 bits each per tile. Frame: a header of 112 bits and two paddings of 7.
                let slack = match row.codec {
                    Codec::Sparse { k, value_bits } => {
                        let kept = f64::from(k.get());
                        let tile = (std::f64::consts::TAU * kept).log2() / 2.0
                            + f64::from(16 * value_bits.bits());
                        0.12 + tile / kept + 126.0 / (64.0 * kept)
                    }
                    // A scale for each block, and values that round to zero: they take bits, but are none of those sent.
                    Codec::Dense(DenseFormat::Int8) => 0.25 + 0.5,
                    Codec::Dense(DenseFormat::Int4) => 0.25 + 2.0,
                    Codec::Dense(_) => 112.0 / 64.0 / 4096.0 + 0.001,
                };
                assert!(
                    (bound..bound + slack).contains(&bits),
                    "{row:?}: {bits} {bound}"
                );
                assert_eq!(row.samples.len(), 3);
            }
        }
    }

    #[test]
    fn two_levels_err_less_than_one_and_bf16_by_its_rounding() {
        let rows = noise_rows(Distribution::Laplace);
        let error = |codec: &str| {
            let row = rows.iter().find(|row| name(row.codec) == codec);
            row.unwrap().rel_sq_error()
        };
        assert!(error("sparse k=64 2 bit") < error("sparse k=64 1 bit"));
        // Round to nearest with 8 significant bits: at most 2^-8 of each value.
        assert!(error("dense bf16") > 0.0 && error("dense bf16") <= 2_f64.powi(-16));
        assert!(error("dense bf16") < error("dense int8"));
        assert!(error("dense int8") < error("dense int4"));
        assert_eq!(error("dense f32"), 0.0);
    }

    #[test]
    fn the_same_seed_gives_the_same_frames() {
        let sizes = || {
            let rows = noise_rows(Distribution::Normal);
            let samples = rows.into_iter().flat_map(|row| row.samples);
            samples
                .map(|s| (s.frame_bytes, s.nonzeros, s.index_bits))
                .collect::<Vec<_>>()
        };
        assert_eq!(sizes(), sizes());
    }

    #[test]
    fn the_report_has_what_its_specification_lists() {
        let rows = noise_rows(Distribution::Normal);
        let report = report(&small(), &Origin::here_and_now(), &rows, &[]);
        assert_eq!(report["benchmark"], "codec");
        assert_eq!(report["config"]["beta"], 0.95);
        let results = report["results"].as_array().unwrap();
        assert_eq!(results.len(), codecs().count());
        // One for each number of value bits.
        assert_eq!(results.iter().filter(|row| row["k"] == 64).count(), 3);
        assert_eq!(results[0]["samples"].as_array().unwrap().len(), 3);
        for (place, of) in [
            ("machine", &report),
            ("bits_per_nonzero_bound", &results[0]),
        ] {
            assert!(!of[place].is_null(), "{place}");
        }
    }
}
