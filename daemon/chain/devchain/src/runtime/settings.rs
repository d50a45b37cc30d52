//! Values that stay fixed on a real chain within one release and that tests want to change while this one runs.
//!
//! Each is a storage value outside all pallets: genesis writes it, and so may the node, or `Sudo.sudo(System.set_storage)`,
//! under the key that `X::key()` gives. They are read through [`Get`](frame_support::traits::Get) and so reach metadata
//! (`Aura.SlotDuration`, `System.Version`) as the constants they are elsewhere: metadata has to be asked for inside
//! externalities.

use frame_support::parameter_types;

use crate::subtensor::InitialParameters;

parameter_types! {
    /// Spec version that the runtime reports and that extrinsics must be signed for. Raising it is a runtime upgrade as
    /// a client sees it.
    pub storage SpecVersion: u32 = super::VERSION.spec_version;
    /// Time between two blocks, in milliseconds. Finney: 12,000.
    pub storage BlockTimeMs: u64 = 12_000;
    /// What a new subnet starts with.
    pub storage SubnetParameters: InitialParameters = InitialParameters::default();
    /// Whether a neuron may announce a loopback address. Finney: no.
    pub storage LoopbackAxons: bool = false;
    /// RAO that a block emits for all subnets together.
    pub storage BlockEmissionRao: u64 = 1_000_000_000;
}
