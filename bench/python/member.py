"""One member of a group whose averaging is measured: tensors, commands, the end.

A script calls `serve(member)` with an object that can `prepare()` a round and `average()` the tensors in place. Commands
come as lines on standard input, each is answered by one line of JSON on standard output:

    prepare N   fills the tensors for round N and meets the other members     {"prepared": N}
    go          averages                                                       {"started": s, "ended": s}
    root        hashes the tensors                                             {"root": "..."}

Times are those of the monotonic clock, which all processes of a machine share. When standard input ends, however that
comes about, the whole process group is killed: the libraries start processes of their own.
"""

import argparse
import hashlib
import json
import os
import queue
import signal
import sys
import threading
import time

import torch


def options():
    """A parser of the options that every member has; a script adds its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--peers", type=int, required=True)
    parser.add_argument("--elements", type=counts, required=True, help="of each tensor, separated by commas")
    return parser


def counts(text):
    return [int(count) for count in text.split(",")]


def tensors(elements):
    """Tensors of these numbers of elements, to be filled in `serve`."""
    return [torch.zeros(count, dtype=torch.float32) for count in elements]


def fill(targets, rank, number):
    """Values that differ between ranks and rounds: normal, mean 0, deviation 1."""
    generator = torch.Generator().manual_seed(number << 16 | rank)
    for target in targets:
        target.normal_(generator=generator)


def root(targets):
    """Two members whose tensors are equal bit for bit have the same."""
    digest = hashlib.blake2b(digest_size=32)
    for target in targets:
        digest.update(target.numpy().data)
    return digest.hexdigest()


def say(**answer):
    print(json.dumps(answer), flush=True)


def commands():
    """The lines of standard input; reading goes on during a round, so that the end is seen at once."""
    lines = queue.Queue()

    def read():
        for line in sys.stdin:
            lines.put(line.split())
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


def serve(member, rank):
    """Answers commands until the process is killed."""
    for command, *words in commands():
        if command == "prepare":
            number = int(words[0])
            with member.tensors() as targets:
                fill(targets, rank, number)
            member.prepare()
            say(prepared=number)
        elif command == "go":
            started = time.monotonic()
            member.average()
            say(started=started, ended=time.monotonic())
        elif command == "root":
            with member.tensors() as targets:
                say(root=root(targets))
        else:
            raise ValueError(f"no such command: {command}")
