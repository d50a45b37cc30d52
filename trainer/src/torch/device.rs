//! Which device trains.
//!
//! One binary serves machines with and without a GPU: it links `libtorch_cpu.so` only, and [`select`] opens
//! `libtorch_cuda.so` from the same directory when it lies there. libtorch asks for its CUDA half once and remembers
//! the answer, so `select` must run before the first tensor is made.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Where tensors live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    Cpu,
    Cuda(usize),
}

impl Device {
    pub(super) fn to_tch(self) -> tch::Device {
        match self {
            Self::Cpu => tch::Device::Cpu,
            Self::Cuda(index) => tch::Device::Cuda(index),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// What the operator asked for: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Request {
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
}

impl FromStr for Request {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_owned());
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                index.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

/// Why no device was chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error("device {0:?} is not one of auto, cpu, cuda, cuda:N")]
    Unknown(String),
    #[error(
        "cuda:{index} was asked for, but {reason}; use device = \"cpu\" or \"auto\" to train without it"
    )]
    Unavailable { index: usize, reason: String },
}

/// The device and one line for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceChoice {
    pub device: Device,
    /// For example `cpu: libtorch_cuda.so not found beside /opt/libtorch/lib/libtorch_cpu.so`.
    pub why: String,
}

/// Chooses the device. Call at start, before the first tensor.
///
/// # Errors
/// [`DeviceError::Unavailable`] only when a CUDA device was asked for by name; `auto` falls back to the CPU.
pub fn select(request: Request) -> Result<DeviceChoice, DeviceError> {
    let cpu = |why: String| DeviceChoice {
        device: Device::Cpu,
        why: format!("cpu: {why}"),
    };
    let index = match request {
        Request::Cpu => return Ok(cpu("asked for".to_owned())),
        Request::Auto => 0,
        Request::Cuda(index) => index,
    };
    match cuda_devices() {
        Ok(count) if index < count => Ok(DeviceChoice {
            device: Device::Cuda(index),
            why: format!("cuda:{index}: {count} CUDA device(s) found"),
        }),
        Ok(count) => {
            let reason = format!("libtorch sees {count} CUDA device(s)");
            unavailable(request, reason, cpu)
        }
        Err(reason) => unavailable(request, reason, cpu),
    }
}

fn unavailable(
    request: Request,
    reason: String,
    cpu: impl Fn(String) -> DeviceChoice,
) -> Result<DeviceChoice, DeviceError> {
    match request {
        Request::Cuda(index) => Err(DeviceError::Unavailable { index, reason }),
        Request::Auto | Request::Cpu => Ok(cpu(reason)),
    }
}

/// Number of CUDA devices, at least one, or why there is none.
fn cuda_devices() -> Result<usize, String> {
    open_cuda_half()?;
    if !tch::Cuda::is_available() {
        return Err("libtorch_cuda.so is loaded but finds no usable GPU or driver".to_owned());
    }
    Ok(usize::try_from(tch::Cuda::device_count()).unwrap_or(0))
}

/// Opens `libtorch_cuda.so` once and keeps it for the life of the process: its static initialisers register CUDA
/// with the rest of libtorch.
fn open_cuda_half() -> Result<(), String> {
    static OPENED: OnceLock<Result<Library, String>> = OnceLock::new();
    OPENED
        .get_or_init(|| {
            let cpu_half = loaded_library("libtorch_cpu.so").ok_or_else(|| {
                "libtorch_cpu.so is not among the loaded libraries (/proc/self/maps)".to_owned()
            })?;
            let path = cpu_half.with_file_name("libtorch_cuda.so");
            if !path.exists() {
                return Err(format!(
                    "libtorch_cuda.so not found beside {}",
                    cpu_half.display()
                ));
            }
            open(&path)
        })
        .as_ref()
        .map(|_library| ())
        .map_err(String::clone)
}

#[allow(unsafe_code)]
fn open(path: &Path) -> Result<Library, String> {
    // SAFETY: opening runs the library's initialisers. It is the CUDA half of the very libtorch this process already
    // runs, found in the same directory, and it is never closed.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
        .map_err(|error| format!("{} does not open: {error}", path.display()))
}

/// Path of a library that this process has mapped.
fn loaded_library(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines()
        .filter_map(|line| line.find('/').and_then(|at| line.get(at..)))
        .map(Path::new)
        .find(|path| path.file_name().is_some_and(|file| file == name))
        .map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_parse_and_unknown_ones_are_named() {
        assert_eq!("auto".parse(), Ok(Request::Auto));
        assert_eq!("cuda".parse(), Ok(Request::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(Request::Cuda(3)));
        for text in ["", "cuda:", "cuda:-1", "gpu"] {
            assert_eq!(
                text.parse::<Request>(),
                Err(DeviceError::Unknown(text.to_owned()))
            );
        }
    }

    #[test]
    fn every_choice_says_why() {
        let cpu = select(Request::Cpu).expect("the CPU is always there");
        assert_eq!(
            (cpu.device, cpu.why.as_str()),
            (Device::Cpu, "cpu: asked for")
        );
        let auto = select(Request::Auto).expect("auto falls back");
        assert!(
            auto.why.starts_with(&format!("{}: ", auto.device)),
            "{}",
            auto.why
        );
        let far = select(Request::Cuda(10_000)).expect_err("no machine has that many");
        assert!(far.to_string().contains("cuda:10000"), "{far}");
    }
}
