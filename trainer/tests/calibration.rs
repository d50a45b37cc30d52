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

/// Less than the demo's 8 sequences of 128, to be quick: the sums behind a gradient are shorter, and so are their errors.
const SEQUENCES: usize = 4;
const SEQ_LEN: usize = 64;

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

/// One test: the number of threads is the process's.
#[test]
fn honest_machines_never_fail_each_others_audits() {
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
    let base = setup(F32, 64, 1);
    let pairs = [
        (base.clone(), base.clone(), 0),
        (base.clone(), setup(F32, 64, 2), FLOOR_F32_PPB),
        (setup(F32, 3, 2), base.clone(), FLOOR_F32_PPB),
        (setup(Bf16, 64, 1), base, FLOOR_BF16_PPB),
        (setup(Bf16, 64, 1), setup(Bf16, 3, 2), FLOOR_BF16_PPB),
    ];
    let (machines, tolerances): (Vec<_>, Vec<_>) = pairs
        .into_iter()
        .map(|(first, second, tolerance)| ((first, second), u64::from(tolerance)))
        .unzip();
    let mut audits = 0;
    for (steps, segments) in LENGTHS {
        let mut errors = vec![Vec::new(); machines.len()];
        let measured = calibrate(
            &model,
            [1; 32],
            &mut batches,
            &machines,
            segments,
            steps,
            &mut |progress| errors[progress.pair].push(progress.error_ppb),
        )
        .expect("calibration");
        for (row, tolerance) in measured.iter().zip(&tolerances) {
            println!(
                "H {steps:2}: {:40} {:40} {:10} ppb of {} segments",
                row.first, row.second, row.largest_ppb, row.segments
            );
            assert!(row.largest_ppb <= *tolerance, "{row:?}");
        }
        for ((errors, row), tolerance) in errors.iter().zip(&measured).zip(&tolerances) {
            println!("{errors:?}");
            assert_eq!(errors.len(), segments as usize);
            assert_eq!(errors.iter().max(), Some(&row.largest_ppb));
            let fails = |error: &&u64| judge(**error, *tolerance) == Outcome::Failed;
            assert_eq!(errors.iter().find(fails), None, "{row:?}");
            audits += errors.len();
        }
    }
    assert_eq!(audits, 200);
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
