//! Who is measured, by the names that the command line and the JSON use.

use crate::harness::environment::Library;

/// Who exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum System {
    Gradmesh,
    Rival(Rival),
}

/// A system that gradmesh is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Rival {
    /// torch.distributed over gloo
    Gloo,
    /// hivemind's DecentralizedAverager
    Hivemind,
}

impl Rival {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Rival::Gloo => "gloo",
            Rival::Hivemind => "hivemind",
        }
    }

    /// What its peers import.
    pub(super) const fn library(self) -> Library {
        match self {
            Rival::Gloo => Library::Torch,
            Rival::Hivemind => Library::Hivemind,
        }
    }
}

impl System {
    pub(super) const fn name(self) -> &'static str {
        match self {
            System::Gradmesh => "gradmesh",
            System::Rival(rival) => rival.name(),
        }
    }
}
