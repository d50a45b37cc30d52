"""A rank that trains with DistributedDataParallel over gloo; bench/src/overhead/cluster.rs says what it is told and says.

Gradients travel as torch has them by default: in buckets, while the backward pass goes on.
"""

import argparse
import contextlib
import json
import pathlib
import time

import torch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

import gloo
import member
from decoder import Decoder

# As in cluster.rs: the second step regroups the buckets.
WARM_UP = 2


class Rank:
    def __init__(self, task, dir, rank):
        self.task, self.dir, self.rank = task, dir, rank
        theta = dir / "theta.f32"
        theta = torch.from_file(str(theta), size=theta.stat().st_size // 4, dtype=torch.float32)
        self.decoder = Decoder(task["model"], theta, task["sequence_tokens"])
        shape = (task["steps"], task["shares"], task["batch_sequences"], task["sequence_tokens"] + 1)
        tokens = str(dir / f"tokens-{rank}.u32")
        # Ids are far below 2^31.
        self.tokens = torch.from_file(tokens, size=torch.Size(shape).numel(), dtype=torch.int32).view(shape)
        settings = task["optimizer"]
        self.clip_norm = settings["clip_norm"]
        matrices = [parameter for parameter in self.decoder.parameters() if parameter.dim() >= 2]
        vectors = [parameter for parameter in self.decoder.parameters() if parameter.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": settings["weight_decay"]},
                {"params": vectors, "weight_decay": 0.0},
            ],
            betas=(settings["beta1"], settings["beta2"]),
            eps=settings["epsilon"],
            fused=True,
        )

    def wrap(self):
        """Once all ranks are there."""
        self.ddp = DistributedDataParallel(self.decoder, gradient_as_bucket_view=True)
        self.ddp.register_comm_hook(self, Rank.send)
        for _ in range(WARM_UP):
            self.gradient(0)

    def send(self, bucket):
        """What DDP does without a hook. The last bucket is the end of the backward pass."""
        self.computed = time.perf_counter()
        return default_hooks.allreduce_hook(None, bucket)

    def gradient(self, step):
        """Leaves the mean gradient of all ranks; own mean loss."""
        self.optimizer.zero_grad()
        losses = []
        shares = self.tokens[step].long()
        for number, share in enumerate(shares, 1):
            last = number == len(shares)
            with contextlib.nullcontext() if last else self.ddp.no_sync():
                loss = self.ddp(share)
                (loss / len(shares)).backward()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def step(self, step, began):
        start = time.perf_counter()
        loss = self.gradient(step)
        averaged = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.task["learning_rates"][step]
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), self.clip_norm, error_if_nonfinite=True)
        self.optimizer.step()
        ended = time.perf_counter()
        compute_s = self.computed - start + ended - averaged
        member.say(step=step, loss=loss.item(), compute_s=compute_s, ended_s=ended - began)

    def finish(self):
        flat = self.decoder.flat()
        if self.rank == 0:
            flat.numpy().tofile(self.dir / "trained.f32")
        member.say(hash=member.root([flat]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("dir", type=pathlib.Path, help="with the task")
    parser.add_argument("rank", type=int)
    parser.add_argument("--address", required=True, help="of this rank")
    parser.add_argument("--interface", required=True, help="name of the network interface")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = json.loads((arguments.dir / "task.json").read_text())
    rank = Rank(task, arguments.dir, arguments.rank)
    served = gloo.store(arguments.address, 0, 0) if arguments.rank == 0 else None
    member.say(port=served.port if served else None)
    for command, *words in member.commands():
        if command == "meet":
            address, port = words[0].rsplit(":", 1)
            store = served or gloo.store(address, int(port), arguments.rank)
            gloo.join(store, arguments.rank, task["members"], arguments.interface)
            rank.wrap()
            member.say(ready=True)
        elif command == "go":
            began = time.perf_counter()
            for step in range(task["steps"]):
                rank.step(step, began)
        elif command == "finish":
            rank.finish()
        else:
            raise ValueError(f"no such command: {command}")


if __name__ == "__main__":
    main()
