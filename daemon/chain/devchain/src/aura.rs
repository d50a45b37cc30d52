//! Stand-in for Aura: only the constant that tells clients the block time. Nobody authors here; the node seals blocks.

#![allow(unreachable_pub)] // `frame_support::pallet` makes its items `pub` whatever the module is.

pub use pallet::*;

#[frame_support::pallet]
mod pallet {
    use frame_support::traits::Get;

    #[pallet::pallet]
    pub struct Pallet<T>(_);

    #[pallet::config]
    pub trait Config: frame_system::Config {
        /// Time between two blocks, in milliseconds.
        #[pallet::constant]
        type SlotDuration: Get<u64>;
    }
}
