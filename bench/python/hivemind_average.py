"""A peer of hivemind, which averages with DecentralizedAverager; see member.py for what it is told and says.

A group is formed before the clock starts: matchmaking waits by design, and a peer that trains does it in the background.
"""

import pathlib
import time

import hivemind
import torch
from hivemind.averaging.control import AveragingStage
from hivemind.compression import NoCompression
from hivemind.p2p import P2P

import member

# The longest that a group may take to form.
MATCHMAKING_S = 120


class Peer:
    def __init__(self, elements, peers, dht):
        self.step = None
        self.averager = hivemind.DecentralizedAverager(
            averaged_tensors=member.tensors(elements),
            dht=dht,
            prefix="exchange",
            target_group_size=peers,
            min_group_size=peers,
            # Below its default of 5 s, which would only make the run longer: it ends once all peers have met.
            min_matchmaking_time=2.0,
            request_timeout=1.0,
            compression=NoCompression(),
            allow_state_sharing=False,
            start=True,
        )

    def tensors(self):
        return self.averager.get_tensors()

    def prepare(self):
        self.step = self.averager.step(wait=False, require_trigger=True, timeout=MATCHMAKING_S)
        while self.step.stage != AveragingStage.AWAITING_TRIGGER:
            if self.step.done():
                # Says why it failed.
                self.step.result()
            time.sleep(0.01)

    def average(self):
        self.step.allow_allreduce()
        self.step.result()


def main():
    parser = member.options()
    parser.add_argument("--address", required=True, help="where this peer listens")
    parser.add_argument("--join", action="append", help="multiaddress of the first peer; absent for that peer itself")
    parser.add_argument("--sockets", required=True, type=pathlib.Path, help="directory for sockets, with a short path")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # They would stay behind in /tmp when the process is killed.
    P2P._UNIX_SOCKET_PREFIX = f"/unix{arguments.sockets}/{arguments.rank}-"
    dht = hivemind.DHT(
        start=True,
        initial_peers=arguments.join,
        host_maddrs=[f"/ip4/{arguments.address}/tcp/0"],
        # Nobody but these peers is asked for anything.
        use_ipfs=False,
        use_relay=False,
        auto_nat=False,
        nat_port_map=False,
    )
    maddrs = [str(maddr) for maddr in dht.get_visible_maddrs()]
    peer = Peer(arguments.elements, arguments.peers, dht)
    member.say(ready=True, maddrs=maddrs)
    member.serve(peer, arguments.rank)


if __name__ == "__main__":
    main()
