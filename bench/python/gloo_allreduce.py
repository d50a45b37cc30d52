"""A rank of torch.distributed over gloo, which averages with all_reduce; see member.py for what it is told and says."""

import contextlib
import datetime
import os

import torch
import torch.distributed as dist

import member


class Rank:
    """All tensors lie in one buffer, as data parallel training lays them: gloo is slower with many small ones."""

    def __init__(self, elements, peers):
        self.buffer = torch.zeros(sum(elements), dtype=torch.float32)
        self.peers = peers

    @contextlib.contextmanager
    def tensors(self):
        yield [self.buffer]

    def prepare(self):
        dist.barrier()

    def average(self):
        dist.all_reduce(self.buffer)
        self.buffer.div_(self.peers)


def main():
    parser = member.options()
    parser.add_argument("--interface", required=True, help="name of the network interface")
    parser.add_argument("--address", required=True, help="of the first rank")
    parser.add_argument("--port", type=int, required=True, help="of the first rank's store; 0 for a free one")
    arguments = parser.parse_args()
    os.environ["GLOO_SOCKET_IFNAME"] = arguments.interface
    torch.set_num_threads(1)
    patience = datetime.timedelta(minutes=10)
    store = dist.TCPStore(
        arguments.address, arguments.port, None, arguments.rank == 0, patience, wait_for_workers=False
    )
    if arguments.rank == 0:
        # The others can only come once they know the port.
        member.say(port=store.port)
    dist.init_process_group(
        "gloo", store=store, rank=arguments.rank, world_size=arguments.peers, timeout=patience
    )
    member.say(ready=True)
    member.serve(Rank(arguments.elements, arguments.peers), arguments.rank)


if __name__ == "__main__":
    main()
