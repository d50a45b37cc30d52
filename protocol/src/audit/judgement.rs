//! How far an update may be from one that was done again, and what follows from the distance.
//!
//! An error is the Euclidean norm of the difference of the two updates over that of the one that was done again, in parts
//! per billion. Never of weights: a peer that does nothing has nearly the right weights.
//!
//! Rule `half-is-grey`: up to half the tolerance an audit passes, up to the tolerance it is grey, above it fails. Grey counts
//! as passed.
//!
//! Rule `four-times`: a tolerance is four times the largest error that a calibration of two device classes saw between honest
//! updates, so that an honest peer is not even grey unless it is twice as far off as ever seen. It is never below the floor of
//! the number format, and never above [`TOLERANCE_PPB_MAX`].

use crate::manifest::{Audit, ModelDtype, TOLERANCE_PPB_MAX};

use super::verdict::Outcome;

/// The least tolerance for f32: 1e-5, for machines that sum alike. Others were measured beyond it (docs/validation.md, "Real
/// machines") and need an entry of the table.
pub const FLOOR_F32_PPB: u32 = 10_000;
/// The least tolerance for bf16: 2 %, likewise.
pub const FLOOR_BF16_PPB: u32 = 20_000_000;
/// Rule `four-times`.
const SPREADS: u64 = 4;

/// How two machines' work compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The same program on the same class of device: the same bits are expected. Judged by the pair's tolerance all the same:
    /// two processors of a class may differ in what their vendors' kernels choose.
    Exact,
    /// Anything else.
    Tolerance,
}

/// What a header or a validator says of its machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Machine {
    /// Version of the program.
    pub build: String,
    /// Device class.
    pub device: String,
}

impl Machine {
    /// How work of this machine and another compares.
    pub fn lane(&self, other: &Machine) -> Lane {
        if self == other {
            Lane::Exact
        } else {
            Lane::Tolerance
        }
    }
}

impl Audit {
    /// How far the updates of two device classes may be apart, in parts per billion: what the manifest has for the pair, in
    /// either order, within the bounds of rule `four-times`; the floor for a pair that it does not have.
    pub fn tolerance_ppb(&self, first: &str, second: &str, dtype: ModelDtype) -> u32 {
        let pair = (first.min(second), first.max(second));
        let entry = self
            .tolerances
            .iter()
            .find(|entry| (entry.first.as_str(), entry.second.as_str()) == pair);
        bounded(entry.map_or(0, |entry| entry.error_ppb.into()), dtype)
    }
}

/// The tolerance for a pair of device classes by rule `four-times`, in parts per billion.
///
/// `largest_ppb`: the largest error between honest updates that its calibration saw.
pub fn tolerance_of_spread(largest_ppb: u64, dtype: ModelDtype) -> u32 {
    bounded(largest_ppb.saturating_mul(SPREADS), dtype)
}

/// What follows from an error, by rule `half-is-grey`. Both in parts per billion.
pub fn judge(error_ppb: u64, tolerance_ppb: u64) -> Outcome {
    if error_ppb <= tolerance_ppb / 2 {
        Outcome::Passed
    } else if error_ppb <= tolerance_ppb {
        Outcome::Grey
    } else {
        Outcome::Failed
    }
}

fn bounded(tolerance_ppb: u64, dtype: ModelDtype) -> u32 {
    let floor = match dtype {
        ModelDtype::F32 => FLOOR_F32_PPB,
        ModelDtype::Bf16 => FLOOR_BF16_PPB,
    };
    let tolerance = u32::try_from(tolerance_ppb).unwrap_or(TOLERANCE_PPB_MAX);
    tolerance.clamp(floor, TOLERANCE_PPB_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{InnerState, Tolerance};

    fn audit(error_ppb: u32) -> Audit {
        Audit {
            segments: 5,
            coverage_ppm: 1,
            probation_rounds: 0,
            suspension_rounds: 8,
            loss_sequences: 64,
            loss_ppm: 0,
            inner: InnerState::Carried,
            tolerances: vec![Tolerance {
                first: "cpu".into(),
                second: "gpu".into(),
                error_ppb,
            }],
        }
    }

    #[test]
    fn a_pair_has_its_entry_in_either_order_and_others_have_the_floor() {
        let audit = audit(30_000);
        let of = |first, second| audit.tolerance_ppb(first, second, ModelDtype::F32);
        assert_eq!(of("cpu", "gpu"), 30_000);
        assert_eq!(of("gpu", "cpu"), 30_000);
        assert_eq!(of("cpu", "cpu"), FLOOR_F32_PPB);
        assert_eq!(of("tpu", ""), FLOOR_F32_PPB);
        let bf16 = audit.tolerance_ppb("tpu", "tpu", ModelDtype::Bf16);
        assert_eq!(bf16, FLOOR_BF16_PPB);
    }

    #[test]
    fn an_entry_is_kept_between_floor_and_cap() {
        let of = |error_ppb, dtype| audit(error_ppb).tolerance_ppb("cpu", "gpu", dtype);
        assert_eq!(of(9_999, ModelDtype::F32), 10_000);
        assert_eq!(of(10_001, ModelDtype::F32), 10_001);
        assert_eq!(of(10_001, ModelDtype::Bf16), 20_000_000);
        assert_eq!(of(u32::MAX, ModelDtype::F32), 50_000_000);
    }

    #[test]
    fn half_the_tolerance_passes_the_whole_is_grey_and_more_fails() {
        let of = |error| judge(error, 20_000_001);
        assert_eq!(of(0), Outcome::Passed);
        assert_eq!(of(10_000_000), Outcome::Passed);
        assert_eq!(of(10_000_001), Outcome::Grey);
        assert_eq!(of(20_000_001), Outcome::Grey);
        assert_eq!(of(20_000_002), Outcome::Failed);
        assert_eq!(of(u64::MAX), Outcome::Failed);
    }

    #[test]
    fn a_calibration_gives_four_times_its_largest_spread_within_bounds() {
        let of = tolerance_of_spread;
        assert_eq!(of(2_400, ModelDtype::F32), 10_000);
        assert_eq!(of(2_501, ModelDtype::F32), 10_004);
        assert_eq!(of(6_900_000, ModelDtype::Bf16), 27_600_000);
        assert_eq!(of(12_500_001, ModelDtype::Bf16), 50_000_000);
        assert_eq!(of(u64::MAX, ModelDtype::F32), 50_000_000);
        // Who is as far off as the calibration saw passes; twice as far is not yet grey.
        assert_eq!(
            judge(13_800_000, of(6_900_000, ModelDtype::Bf16).into()),
            Outcome::Passed
        );
    }

    #[test]
    fn the_same_build_on_the_same_device_is_the_exact_lane() {
        let machine = |build: &str, device: &str| Machine {
            build: build.into(),
            device: device.into(),
        };
        let one = machine("0.1.0", "cpu");
        assert_eq!(one.lane(&machine("0.1.0", "cpu")), Lane::Exact);
        assert_eq!(one.lane(&machine("0.1.1", "cpu")), Lane::Tolerance);
        assert_eq!(one.lane(&machine("0.1.0", "gpu")), Lane::Tolerance);
    }
}
