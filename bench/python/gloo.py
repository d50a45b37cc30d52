"""How ranks of torch.distributed meet over gloo."""

import datetime
import os

import torch.distributed as dist

PATIENCE = datetime.timedelta(minutes=10)


def store(address, port, rank):
    """Where ranks find each other. Rank 0 serves it, at a free port if `port` is 0; the others connect to it."""
    return dist.TCPStore(address, port, None, rank == 0, PATIENCE, wait_for_workers=False)


def join(store, rank, peers, interface):
    """Waits until all ranks are there. `interface`: name of the network interface that gloo uses."""
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    dist.init_process_group("gloo", store=store, rank=rank, world_size=peers, timeout=PATIENCE)
