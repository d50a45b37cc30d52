"""A rank of torch.distributed over gloo, which averages with all_reduce; see member.py for what it is told and says."""

import contextlib

import torch
import torch.distributed as dist

import gloo
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
    torch.set_num_threads(1)
    store = gloo.store(arguments.address, arguments.port, arguments.rank)
    if arguments.rank == 0:
        # The others can only come once they know the port.
        member.say(port=store.port)
    gloo.join(store, arguments.rank, arguments.peers, arguments.interface)
    member.say(ready=True)
    member.serve(Rank(arguments.elements, arguments.peers), arguments.rank)


if __name__ == "__main__":
    main()
