//! Checkpoints as directories that `transformers` loads as they are.
//!
//! | file | content |
//! |---|---|
//! | `config.json` | the model, [`Architecture::to_json`] |
//! | `model.safetensors` | one tensor per [`Architecture::parameters`], f32 or bf16 |
//! | `generation_config.json` | empty defaults |
//! | `tokenizer.json`, `tokenizer_config.json` | byte-level tokenizer, for models of 256 tokens only |
//! | `gradmesh.json` | [`Provenance`]: run, round, state root |
//!
//! **Writing** goes to a hidden directory beside the target, every file is synced, then one rename makes the checkpoint
//! appear whole; a crash leaves the hidden directory, which the next write of the same target replaces.
//!
//! **Reading** also takes directories that `transformers` wrote, in one `model.safetensors` with f32, bf16 or f16
//! values. Only safetensors is read: no other weight format is opened, and nothing in a checkpoint is executed.

mod tokenizer;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView, View};
use safetensors::{SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::architecture::Architecture;
use crate::model::{CONFIG_BYTES_MAX, ConfigError, ParameterSpec, Precision, elements};
use crate::optimizer::f32_values;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const GENERATION: &str = "generation_config.json";
const PROVENANCE: &str = "gradmesh.json";

/// Room for the safetensors header. A guess: 150 bytes per tensor of the largest allowed model (1024 layers of 9), twice.
const HEADER_BYTES_MAX: u64 = 4 << 20;

/// Where a checkpoint comes from. Hashes are 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Hash of the run's manifest.
    pub run: String,
    /// Rounds applied.
    pub round: u64,
    /// Root over theta and all replicated state after that round.
    pub state_root: String,
    /// The leaves of the state that name the residuals of owners, one per shard; none in a run whose owners keep none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub residual_leaves: Vec<String>,
}

/// A checkpoint in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    pub config: Architecture,
    /// Flat f32 in the order of [`Architecture::parameters`]; bf16 and f16 files are widened, which is exact.
    pub theta: Vec<f32>,
    /// Absent in a checkpoint that gradmesh did not write.
    pub provenance: Option<Provenance>,
}

/// Why a checkpoint was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: exists and is not empty: choose another directory, or move it away", .0.display())]
    Exists(PathBuf),
    #[error("{}: {source}", .path.display())]
    Config { path: PathBuf, source: ConfigError },
    #[error("{}: {got} bytes, at most {max} belong to this model: get the checkpoint again", .path.display())]
    TooLong { path: PathBuf, got: u64, max: u64 },
    #[error("{}: truncated or damaged ({reason}): get the checkpoint again", .path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "{}: not found, but model.safetensors.index.json is: checkpoints in several files are not read; save it again \
         with max_shard_size above its size",
        .0.display()
    )]
    Sharded(PathBuf),
    #[error("{}: tensor {name}: {reason}: weights and config.json are not of one model", .path.display())]
    Tensor {
        path: PathBuf,
        name: String,
        reason: String,
    },
    #[error("tensor {name}: element {index} is not finite{}", if *.stored { ": get the checkpoint again" } else { "" })]
    NotFinite {
        name: String,
        index: usize,
        /// True when it was read from a file.
        stored: bool,
    },
    #[error("theta has {got} elements, the model has {expected}")]
    Length { got: usize, expected: usize },
    #[error("{}: {reason}", .path.display())]
    Provenance { path: PathBuf, reason: String },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError + '_ {
    |source| CheckpointError::Io {
        path: path.to_path_buf(),
        source,
    }
}

/// Writes `theta` as a checkpoint directory that appears whole or not at all.
///
/// `dir` must not exist, or be an empty directory. Memory: one tensor beside `theta`.
///
/// # Errors
/// [`CheckpointError`]; nothing appears at `dir` then.
pub fn write(
    dir: &Path,
    config: &Architecture,
    theta: &[f32],
    precision: Precision,
    provenance: Option<&Provenance>,
) -> Result<(), CheckpointError> {
    config
        .validate()
        .map_err(|source| CheckpointError::Config {
            path: dir.join(CONFIG),
            source,
        })?;
    let specs = config.parameters();
    if theta.len() != elements(&specs) {
        return Err(CheckpointError::Length {
            got: theta.len(),
            expected: elements(&specs),
        });
    }
    let stored = stored_tensors(&specs, theta, precision)?;
    if !is_free(dir)? {
        return Err(CheckpointError::Exists(dir.to_path_buf()));
    }
    let partial = partial_dir(dir)?;
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(io_error(&partial))?;
    }
    fs::create_dir_all(&partial).map_err(io_error(&partial))?;

    put(&partial, CONFIG, &config.to_json(precision))?;
    put(&partial, GENERATION, "{}\n")?;
    if config.vocab() == crate::data::VOCAB {
        put(&partial, "tokenizer.json", &tokenizer::byte_level())?;
        put(
            &partial,
            "tokenizer_config.json",
            &tokenizer::config(config.positions()),
        )?;
    }
    if let Some(provenance) = provenance {
        let json = serde_json::to_string_pretty(provenance).expect("plain fields serialise");
        put(&partial, PROVENANCE, &format!("{json}\n"))?;
    }
    let weights = partial.join(WEIGHTS);
    // `transformers` refuses weights that do not name their framework.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(stored, Some(metadata), &weights).map_err(
        |error| match error {
            SafeTensorError::IoError(source) => io_error(&weights)(source),
            error => CheckpointError::Damaged {
                path: weights.clone(),
                reason: error.to_string(),
            },
        },
    )?;
    File::open(&weights)
        .and_then(|file| file.sync_all())
        .map_err(io_error(&weights))?;
    sync_dir(&partial)?;
    fs::rename(&partial, dir).map_err(io_error(dir))?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => Ok(()),
    }
}

/// Reads a checkpoint directory, checking names, shapes, types and values.
///
/// Memory: the weights file and theta at once.
///
/// # Errors
/// [`CheckpointError`], which names the file or tensor and what to do.
pub fn read(dir: &Path) -> Result<Checkpoint, CheckpointError> {
    let path = dir.join(CONFIG);
    let config = Architecture::from_json(&read_bounded(&path, CONFIG_BYTES_MAX as u64)?)
        .map_err(|source| CheckpointError::Config { path, source })?;
    let path = dir.join(WEIGHTS);
    if !path.exists() && dir.join("model.safetensors.index.json").exists() {
        return Err(CheckpointError::Sharded(path));
    }
    let specs = config.parameters();
    // A tied model may carry its head a second time, hence the table twice.
    let table = specs.first().map_or(0, ParameterSpec::elements);
    let bytes_max = (elements(&specs) + table) as u64 * 4 + HEADER_BYTES_MAX;
    let bytes = read_bounded(&path, bytes_max)?;
    let theta = parse_weights(&path, &bytes, &specs)?;
    Ok(Checkpoint {
        config,
        theta,
        provenance: read_provenance(&dir.join(PROVENANCE))?,
    })
}

fn parse_weights(
    path: &Path,
    bytes: &[u8],
    specs: &[ParameterSpec],
) -> Result<Vec<f32>, CheckpointError> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| CheckpointError::Damaged {
        path: path.to_path_buf(),
        reason: error.to_string(),
    })?;
    let wrong = |name: &str, reason: String| CheckpointError::Tensor {
        path: path.to_path_buf(),
        name: name.to_owned(),
        reason,
    };
    let mut theta = Vec::with_capacity(elements(specs));
    for spec in specs {
        let view = file
            .tensor(&spec.name)
            .map_err(|_| wrong(&spec.name, "missing".to_owned()))?;
        if view.shape() != spec.shape {
            let reason = format!(
                "shape {:?}, config.json says {:?}",
                view.shape(),
                spec.shape
            );
            return Err(wrong(&spec.name, reason));
        }
        let values = widen(&view)
            .ok_or_else(|| wrong(&spec.name, format!("type {} is not read", view.dtype())))?;
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(CheckpointError::NotFinite {
                name: spec.name.clone(),
                index,
                stored: true,
            });
        }
        theta.extend_from_slice(&values);
    }
    for name in file.names() {
        if specs.iter().any(|spec| spec.name == name) || name.ends_with("rotary_emb.inv_freq") {
            continue;
        }
        let copy = match (name, specs.first()) {
            ("lm_head.weight", Some(table)) => {
                let (head, table) = (file.tensor(name), file.tensor(&table.name));
                matches!((head, table), (Ok(head), Ok(table)) if head == table)
            }
            _ => false,
        };
        if !copy {
            return Err(wrong(name, "config.json knows no such tensor".to_owned()));
        }
    }
    Ok(theta)
}

/// Values as f32; none for a type that is not read.
fn widen(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let (halves, _) = view.data().as_chunks::<2>();
    match view.dtype() {
        Dtype::F32 => Some(f32_values(view.data())),
        Dtype::BF16 => Some(
            halves
                .iter()
                .map(|half| bf16::from_le_bytes(*half).to_f32())
                .collect(),
        ),
        Dtype::F16 => Some(
            halves
                .iter()
                .map(|half| f16::from_le_bytes(*half).to_f32())
                .collect(),
        ),
        _ => None,
    }
}

fn read_provenance(path: &Path) -> Result<Option<Provenance>, CheckpointError> {
    if !path.exists() {
        return Ok(None);
    }
    let wrong = |reason: String| CheckpointError::Provenance {
        path: path.to_path_buf(),
        reason,
    };
    let bytes = read_bounded(path, CONFIG_BYTES_MAX as u64)?;
    let provenance: Provenance =
        serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let leaves = provenance.residual_leaves.iter();
    let hashes = [
        ("run", &provenance.run),
        ("state_root", &provenance.state_root),
    ];
    for (name, value) in hashes
        .into_iter()
        .chain(leaves.map(|leaf| ("residual_leaves", leaf)))
    {
        let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if value.len() != 64 || !value.bytes().all(hex) {
            return Err(wrong(format!("{name} is not 64 lower-case hex digits")));
        }
    }
    Ok(Some(provenance))
}

/// One tensor on its way to the file.
struct Stored<'a> {
    shape: &'a [usize],
    values: &'a [f32],
    precision: Precision,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        match self.precision {
            Precision::F32 => Dtype::F32,
            Precision::Bf16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.data_len());
        for value in self.values {
            match self.precision {
                Precision::F32 => bytes.extend_from_slice(&value.to_le_bytes()),
                Precision::Bf16 => {
                    bytes.extend_from_slice(&bf16::from_f32(*value).to_le_bytes());
                }
            }
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        let width = match self.precision {
            Precision::F32 => 4,
            Precision::Bf16 => 2,
        };
        self.values.len() * width
    }
}

/// Cuts theta into named tensors; refuses values that the stored type cannot hold.
fn stored_tensors<'a>(
    specs: &'a [ParameterSpec],
    theta: &'a [f32],
    precision: Precision,
) -> Result<Vec<(&'a str, Stored<'a>)>, CheckpointError> {
    let mut rest = theta;
    let mut tensors = Vec::with_capacity(specs.len());
    for spec in specs {
        let (values, after) = rest.split_at(spec.elements());
        rest = after;
        let fits = |value: &f32| match precision {
            Precision::F32 => value.is_finite(),
            Precision::Bf16 => bf16::from_f32(*value).is_finite(),
        };
        if let Some(index) = values.iter().position(|value| !fits(value)) {
            return Err(CheckpointError::NotFinite {
                name: spec.name.clone(),
                index,
                stored: false,
            });
        }
        let stored = Stored {
            shape: &spec.shape,
            values,
            precision,
        };
        tensors.push((spec.name.as_str(), stored));
    }
    Ok(tensors)
}

/// True when nothing lies at `dir`, or an empty directory.
fn is_free(dir: &Path) -> Result<bool, CheckpointError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(error) => Err(io_error(dir)(error)),
    }
}

/// `.NAME.partial` beside `dir`: the same file system, so that a rename moves it.
fn partial_dir(dir: &Path) -> Result<PathBuf, CheckpointError> {
    let name = dir.file_name().ok_or_else(|| {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "path has no last part");
        io_error(dir)(source)
    })?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".partial");
    Ok(dir.with_file_name(hidden))
}

fn put(dir: &Path, name: &str, text: &str) -> Result<(), CheckpointError> {
    let path = dir.join(name);
    File::create(&path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .map_err(io_error(&path))
}

fn sync_dir(dir: &Path) -> Result<(), CheckpointError> {
    File::open(dir)
        .and_then(|open| open.sync_all())
        .map_err(io_error(dir))
}

fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, CheckpointError> {
    let file = File::open(path).map_err(io_error(path))?;
    let got = file.metadata().map_err(io_error(path))?.len();
    let too_long = |got| CheckpointError::TooLong {
        path: path.to_path_buf(),
        got,
        max: bytes_max,
    };
    if got > bytes_max {
        return Err(too_long(got));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(io_error(path))?;
    if bytes.len() as u64 > bytes_max {
        return Err(too_long(bytes.len() as u64));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;
    use crate::model::init;

    fn tiny(tied: bool) -> ModelConfig {
        ModelConfig {
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            vocab_size: 256,
            max_position_embeddings: 16,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            tie_word_embeddings: tied,
            head_dim: None,
            hidden_act: "silu".to_owned(),
        }
    }

    fn provenance() -> Provenance {
        Provenance {
            run: "ab".repeat(32),
            round: 7,
            state_root: "01".repeat(32),
            residual_leaves: vec!["23".repeat(32)],
        }
    }

    /// Name, type, shape and bytes of a tensor in a file.
    type Raw = (String, Dtype, Vec<usize>, Vec<u8>);

    /// A change that [`rewrite`] applies.
    type Change<'a> = &'a dyn Fn(&mut Vec<Raw>);

    struct Written {
        /// Removes the files when it goes.
        _home: tempfile::TempDir,
        dir: PathBuf,
        theta: Vec<f32>,
    }

    fn written(tied: bool, precision: Precision) -> Written {
        let home = tempfile::tempdir().expect("temporary directory");
        let dir = home.path().join("round-7");
        let theta = init(&tiny(tied), [2; 32]).expect("valid config");
        write(
            &dir,
            &tiny(tied).into(),
            &theta,
            precision,
            Some(&provenance()),
        )
        .expect("write");
        Written {
            _home: home,
            dir,
            theta,
        }
    }

    /// Rewrites the weights of `dir` with `change` applied to its tensors.
    fn rewrite(dir: &Path, change: impl FnOnce(&mut Vec<Raw>)) {
        let bytes = fs::read(dir.join(WEIGHTS)).expect("weights");
        let file = SafeTensors::deserialize(&bytes).expect("own file");
        let mut tensors: Vec<_> = file
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                (
                    name,
                    view.dtype(),
                    view.shape().to_vec(),
                    view.data().to_vec(),
                )
            })
            .collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (
                name,
                TensorView::new(*dtype, shape.clone(), data).expect("consistent tensor"),
            )
        });
        let bytes = safetensors::serialize(views, None::<HashMap<String, String>>).expect("bytes");
        fs::write(dir.join(WEIGHTS), bytes).expect("weights");
    }

    #[test]
    fn f32_checkpoint_comes_back_bit_for_bit() {
        for tied in [true, false] {
            let written = written(tied, Precision::F32);
            let checkpoint = read(&written.dir).expect("read");
            assert_eq!(
                checkpoint.config,
                Architecture::from(ModelConfig {
                    head_dim: Some(4),
                    ..tiny(tied)
                })
            );
            assert_eq!(checkpoint.theta, written.theta);
            assert_eq!(checkpoint.provenance, Some(provenance()));
        }
    }

    #[test]
    fn bf16_checkpoint_holds_the_nearest_values() {
        let written = written(true, Precision::Bf16);
        let checkpoint = read(&written.dir).expect("read");
        for (stored, original) in checkpoint.theta.iter().zip(&written.theta) {
            assert_eq!(*stored, bf16::from_f32(*original).to_f32());
        }
    }

    #[test]
    fn nothing_hidden_is_left_and_an_existing_checkpoint_is_kept() {
        let written = written(true, Precision::F32);
        let home = written.dir.parent().expect("parent");
        assert_eq!(fs::read_dir(home).expect("home").count(), 1);
        let error = write(
            &written.dir,
            &tiny(true).into(),
            &written.theta,
            Precision::F32,
            None,
        );
        assert!(matches!(error, Err(CheckpointError::Exists(_))));
        assert_eq!(
            read(&written.dir).expect("read").provenance,
            Some(provenance())
        );
    }

    #[test]
    fn a_partial_write_is_replaced_by_the_next() {
        let home = tempfile::tempdir().expect("temporary directory");
        let dir = home.path().join("c");
        let partial = home.path().join(".c.partial");
        fs::create_dir(&partial).expect("directory");
        fs::write(partial.join("junk"), "left by a crash").expect("file");
        let theta = init(&tiny(true), [2; 32]).expect("valid config");
        write(&dir, &tiny(true).into(), &theta, Precision::F32, None).expect("write");
        assert!(!partial.exists() && !dir.join("junk").exists());
        assert_eq!(read(&dir).expect("read").provenance, None);
    }

    #[test]
    fn every_truncation_of_the_weights_is_named_damaged() {
        let written = written(true, Precision::Bf16);
        let path = written.dir.join(WEIGHTS);
        let bytes = fs::read(&path).expect("weights");
        for length in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&path, &bytes[..length]).expect("weights");
            let error = read(&written.dir).expect_err("truncated");
            assert!(matches!(error, CheckpointError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("get the checkpoint again"));
        }
    }

    #[test]
    fn tensors_of_another_model_are_named() {
        let cases: [(&str, Change<'_>); 4] = [
            ("missing", &|tensors| {
                tensors.retain(|tensor| tensor.0 != "model.norm.weight")
            }),
            ("knows no such tensor", &|tensors| {
                tensors.push(("stray".to_owned(), Dtype::F32, vec![1], vec![0; 4]));
            }),
            ("shape", &|tensors| {
                for tensor in tensors
                    .iter_mut()
                    .filter(|tensor| tensor.0.contains("q_proj"))
                {
                    tensor.2 = vec![4, 16];
                }
            }),
            ("type", &|tensors| {
                for tensor in tensors
                    .iter_mut()
                    .filter(|tensor| tensor.0.contains("q_proj"))
                {
                    tensor.1 = Dtype::I32;
                }
            }),
        ];
        for (word, change) in cases {
            let written = written(true, Precision::F32);
            rewrite(&written.dir, change);
            let error = read(&written.dir).expect_err(word);
            assert!(matches!(error, CheckpointError::Tensor { .. }), "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn a_tied_model_may_carry_its_head_twice_only_if_equal() {
        let written = written(true, Precision::F32);
        let copy_head = |flip: u8| {
            rewrite(&written.dir, |tensors| {
                tensors.retain(|tensor| tensor.0 != "lm_head.weight");
                let table = tensors.iter().find(|tensor| tensor.0.contains("embed"));
                let mut head = table.expect("embedding").clone();
                head.0 = "lm_head.weight".to_owned();
                head.3[0] ^= flip;
                tensors.push(head);
            });
        };
        copy_head(0);
        assert_eq!(read(&written.dir).expect("read").theta, written.theta);
        copy_head(1);
        assert!(matches!(
            read(&written.dir),
            Err(CheckpointError::Tensor { .. })
        ));
    }

    #[test]
    fn values_that_are_not_finite_are_refused_both_ways() {
        let written = written(true, Precision::F32);
        rewrite(&written.dir, |tensors| {
            let norm = tensors
                .iter_mut()
                .find(|tensor| tensor.0 == "model.norm.weight");
            norm.expect("norm").3[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
        });
        assert!(matches!(
            read(&written.dir),
            Err(CheckpointError::NotFinite {
                index: 2,
                stored: true,
                ..
            })
        ));
        let mut theta = written.theta.clone();
        // The largest f32 rounds to infinity in bf16.
        theta[3] = f32::MAX;
        let target = written.dir.with_file_name("other");
        assert!(matches!(
            write(&target, &tiny(true).into(), &theta, Precision::Bf16, None),
            Err(CheckpointError::NotFinite {
                index: 3,
                stored: false,
                ..
            })
        ));
        assert!(!target.exists());
        write(&target, &tiny(true).into(), &theta, Precision::F32, None).expect("f32 holds it");
    }

    #[test]
    fn provenance_must_be_hex() {
        let written = written(true, Precision::F32);
        let path = written.dir.join(PROVENANCE);
        let text = fs::read_to_string(&path).expect("provenance");
        fs::write(&path, text.replace("ab", "zz")).expect("provenance");
        assert!(matches!(
            read(&written.dir),
            Err(CheckpointError::Provenance { .. })
        ));
    }
}
