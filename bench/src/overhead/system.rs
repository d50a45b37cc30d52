//! Who trains, by the names that the command line and the JSON use.

use std::fmt;

use clap::ValueEnum;

use super::cluster::Engine;
use super::mesh::Setting;
use crate::harness::{CodecName, Plan};

/// A way to train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum System {
    /// One process does the work of all peers, and waits for nobody
    Alone,
    /// Synchronous data parallel, own ring all-reduce of f32 gradients, in the data centre
    Cluster,
    /// The same over the wide-area link
    ClusterWan,
    /// torch.distributed DDP over gloo, in the data centre
    Ddp,
    /// The same over the wide-area link
    DdpWan,
    /// gradmesh, f32 updates, gather
    Dense,
    /// The same, exchanged while the next round is trained
    DenseOverlap,
    /// gradmesh, sparse updates, gather
    Sparse,
    /// The same, exchanged while the next round is trained
    SparseOverlap,
    /// gradmesh, sparse updates, summed by owners
    Reduce,
    /// The same, exchanged while the next round is trained
    ReduceOverlap,
    /// gradmesh, bf16 inside two sites, sparse between them
    Hier,
    /// The same, exchanged while the next round is trained
    HierOverlap,
}

/// How a system trains.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Way {
    Alone,
    Cluster(Engine),
    Mesh(Setting),
}

/// Over which network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    DataCentre,
    /// Each peer a site.
    Wide,
    /// Two sites that share the peers.
    TwoSites,
}

impl System {
    pub(super) const ALL: [System; 13] = [
        System::Alone,
        System::Cluster,
        System::ClusterWan,
        System::Ddp,
        System::DdpWan,
        System::Dense,
        System::DenseOverlap,
        System::Sparse,
        System::SparseOverlap,
        System::Reduce,
        System::ReduceOverlap,
        System::Hier,
        System::HierOverlap,
    ];

    pub(super) fn way(self) -> Way {
        let sparse = CodecName::Sparse {
            k: 64,
            value_bits: 1,
        };
        let mesh = |codec, plan, overlap| {
            Way::Mesh(Setting {
                codec,
                plan,
                overlap,
            })
        };
        match self {
            System::Alone => Way::Alone,
            System::Cluster | System::ClusterWan => Way::Cluster(Engine::Own),
            System::Ddp | System::DdpWan => Way::Cluster(Engine::Ddp),
            System::Dense => mesh(CodecName::DENSE_F32, Plan::Gather, false),
            System::DenseOverlap => mesh(CodecName::DENSE_F32, Plan::Gather, true),
            System::Sparse => mesh(sparse, Plan::Gather, false),
            System::SparseOverlap => mesh(sparse, Plan::Gather, true),
            System::Reduce => mesh(sparse, Plan::Reduce, false),
            System::ReduceOverlap => mesh(sparse, Plan::Reduce, true),
            System::Hier => mesh(sparse, Plan::Hier, false),
            System::HierOverlap => mesh(sparse, Plan::Hier, true),
        }
    }

    pub(super) fn place(self) -> Where {
        match self {
            System::Alone | System::Cluster | System::Ddp => Where::DataCentre,
            System::Hier | System::HierOverlap => Where::TwoSites,
            System::ClusterWan
            | System::DdpWan
            | System::Dense
            | System::DenseOverlap
            | System::Sparse
            | System::SparseOverlap
            | System::Reduce
            | System::ReduceOverlap => Where::Wide,
        }
    }

    /// Whether Python torch is needed.
    pub(super) fn needs_torch(self) -> bool {
        self.way() == Way::Cluster(Engine::Ddp)
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}
