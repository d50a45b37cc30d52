//! Device classes, and how far honest machines of two of them are apart.

use super::TorchSettings;
use super::device::Device;
use crate::model::Precision;

/// What equal bits depend on, beside the program and the model: kind of device and its instructions, threads, number format
/// and micro-batch. Two peers of one class, with the same program, are expected to compute the same bits.
///
/// For example `cpu x86_64 avx2 t1 f32 mb64`; at most 128 bytes.
pub fn device_class(settings: &TorchSettings, threads: u16) -> String {
    let precision = match settings.precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    };
    let micro_batch = settings.micro_batch;
    match settings.device {
        Device::Cpu => format!(
            "cpu {} {} t{threads} {precision} mb{micro_batch}",
            std::env::consts::ARCH,
            instructions()
        ),
        Device::Cuda(_) => format!("cuda {precision} mb{micro_batch}"),
    }
}

/// The widest instructions that libtorch has kernels for, on this processor.
#[cfg(target_arch = "x86_64")]
fn instructions() -> &'static str {
    if std::arch::is_x86_feature_detected!("avx512f") {
        "avx512"
    } else if std::arch::is_x86_feature_detected!("avx2") {
        "avx2"
    } else {
        "sse"
    }
}

/// One class for each other architecture.
#[cfg(not(target_arch = "x86_64"))]
fn instructions() -> &'static str {
    "base"
}
