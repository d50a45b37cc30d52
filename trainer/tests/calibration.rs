//! How far honest machines are apart, on the demo's model. Takes minutes; the table that it prints is the measurement:
//!
//! ```text
//! cargo test -p gradmesh-trainer --features torch --test calibration -- --nocapture
//! ```
#![cfg(feature = "torch")]

use gradmesh_protocol::audit::judgement::{FLOOR_BF16_PPB, FLOOR_F32_PPB, judge};
use gradmesh_protocol::audit::verdict::Outcome;
use gradmesh_trainer::data::{Corpus, assignment};
use gradmesh_trainer::model::Precision;
use gradmesh_trainer::torch::TorchSettings;
use gradmesh_trainer::torch::calibrate::{Setup, calibrate, device_class};
use gradmesh_trainer::{Architecture, InnerOptimizer};

/// Less than the demo's 8 sequences of 128, to be quick. Gradients of few tokens have more noise.
const SEQUENCES: usize = 4;
const SEQ_LEN: usize = 32;

/// Segments of how many steps, and how many of them for each of five pairs: 200 audits in all.
const LENGTHS: [(u32, u32); 4] = [(1, 20), (5, 12), (15, 5), (30, 3)];

fn settings(precision: Precision, micro_batch: usize) -> TorchSettings {
    let optimizer = InnerOptimizer {
        learning_rate: 3e-3,
        warmup_steps: 36,
        ..InnerOptimizer::default()
    };
    TorchSettings {
        precision,
        micro_batch,
        ..TorchSettings::cpu(optimizer)
    }
}

fn setup(precision: Precision, micro_batch: usize, threads: u16) -> Setup {
    Setup {
        settings: settings(precision, micro_batch),
        threads,
    }
}

/// Two machines, and what their audits may tolerate: the most for any segment, and the most for one that carries the inner
/// state of the one before on.
struct Pair {
    machines: (Setup, Setup),
    all_ppb: u64,
    carried_ppb: u64,
}

fn pair(first: Setup, second: Setup, all_ppb: u32, carried_ppb: u32) -> Pair {
    Pair {
        machines: (first, second),
        all_ppb: all_ppb.into(),
        carried_ppb: carried_ppb.into(),
    }
}

/// One test: the number of threads is the process's.
#[test]
fn honest_machines_with_other_thread_counts_never_fail_each_others_audits() {
    use Precision::{Bf16, F32};
    let model = Architecture::from_json(include_bytes!("../../daemon/assets/demo-1m.json"));
    let model = model.expect("the demo's model");
    // The source of this crate: real text.
    let text = [
        include_str!("../src/checkpoint.rs"),
        include_str!("../src/model.rs"),
        include_str!("../src/reference.rs"),
        include_str!("../src/replica/tests.rs"),
    ];
    let corpus = Corpus::from_bytes(text.concat().into_bytes());
    let windows = corpus.windows(SEQ_LEN).expect("windows");
    let mut batches = |step| {
        let indices = assignment(
            b"calibration",
            &[1; 32],
            step,
            SEQUENCES,
            windows.training(),
        );
        let batch = windows.training_batch(&indices);
        batch.map_err(|error| error.to_string())
    };
    let base = || setup(F32, 64, 1);
    let floor = FLOOR_F32_PPB;
    let pairs = [
        pair(base(), base(), 0, 0),
        pair(base(), setup(F32, 64, 2), floor, floor),
        pair(setup(Bf16, 64, 1), setup(Bf16, 64, 1), 0, 0),
        pair(
            setup(Bf16, 64, 1),
            setup(Bf16, 64, 2),
            FLOOR_BF16_PPB,
            FLOOR_BF16_PPB,
        ),
        // Daemons all use one micro-batch. What another one does to an early, unsteady training is measured for the table alone.
        pair(setup(F32, 3, 1), base(), u32::MAX, u32::MAX),
    ];
    let machines = pairs.each_ref().map(|pair| pair.machines.clone());
    let (mut audits, mut failed) = (0, Vec::new());
    for (steps, segments) in LENGTHS {
        let measured = calibrate(
            &model,
            [1; 32],
            &mut batches,
            &machines,
            segments,
            steps,
            &mut |progress| {
                audits += 1;
                let pair = &pairs[progress.pair];
                let tolerance = match progress.restart {
                    true => pair.all_ppb,
                    false => pair.carried_ppb,
                };
                if judge(progress.error_ppb, tolerance) == Outcome::Failed {
                    failed.push((steps, progress));
                }
            },
        )
        .expect("calibration");
        for row in measured {
            println!(
                "H {steps:2}: {:33} {:33} {:10} ppb, {:10} carried, of {}",
                row.first, row.second, row.largest_ppb, row.largest_carried_ppb, row.segments
            );
            assert!(row.largest_carried_ppb <= row.largest_ppb);
            assert_eq!(row.segments, segments);
        }
    }
    assert_eq!(audits, 200);
    assert_eq!(failed, []);
}

#[test]
fn a_class_says_what_bits_depend_on() {
    let base = device_class(&settings(Precision::F32, 64), 1);
    let arch = std::env::consts::ARCH;
    assert!(base.starts_with(&format!("cpu {arch} ")), "{base}");
    assert!(base.ends_with(" t1 f32 mb64"), "{base}");
    for other in [
        device_class(&settings(Precision::F32, 64), 2),
        device_class(&settings(Precision::Bf16, 64), 1),
        device_class(&settings(Precision::F32, 63), 1),
    ] {
        assert_ne!(base, other);
    }
    let longest = device_class(&settings(Precision::Bf16, usize::MAX), u16::MAX);
    assert!(longest.len() <= 128, "{longest}");
}
