#!/usr/bin/env python3
"""Holds gradmesh's chain code against Bittensor's own: bittensor and bittensor_core, from PyPI.

    scripts/chain_oracle.py [--only keys|timelock|chain] [--keep]

keys      Keyfiles that bittensor_core writes (plain and $NACL, from a phrase, a seed and a URI) open here with the same
          address, and wallets that are made here open there; signatures made on one side hold on the other.
timelock  A payload encrypted here decrypts there with the pulse of quicknet's round 1000, and the other way round.
chain     The Python SDK against the development chain: connect, register, metagraph, set_weights, read back, and the same
          error for a second call that comes too early.

The packages go into a virtual environment in the user's cache directory, made once. Our side is built with cargo: the
example `oracle` of gradmesh-chain, and `gradmesh-devchain`.

Exit codes: 0 all equal, or PyPI does not answer (the last line then starts with "skipped"); 1 a difference, or anything
else that went wrong. Keys are made for this run and thrown away.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import types
import venv

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
BITTENSOR = "bittensor==11.3.0"
BITTENSOR_CORE = "bittensor-core==0.1.5"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "gradmesh"
ENVIRONMENT = CACHE / "oracle-bittensor-11.3.0"

# The user's own; that of the run is a scratch directory.
HOME = os.environ.get("HOME", "")

# Signature of quicknet's round 1000, as drand published it.
ROUND = 1000
SIGNATURE = "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125e342b73a8dd2bacbe47e4b6b63ed5e39"

PASSWORD = "throw-away"

# What pip says when it reached nobody; anything else it fails for is an error.
UNREACHABLE = re.compile(
    r"connection broken by|Temporary failure in name resolution|Network is unreachable|Connection refused"
    r"|ConnectTimeout|ReadTimeout|ProxyError"
)


class Mismatch(Exception):
    """The two sides differ."""


def main():
    parser = argparse.ArgumentParser(description="Holds gradmesh's chain code against Bittensor's own.")
    parser.add_argument("--only", choices=sorted(PARTS), help="one part instead of all three")
    parser.add_argument("--keep", action="store_true", help="keep the directory with the files that were made")
    arguments = parser.parse_args()
    if sys.prefix == sys.base_prefix or pathlib.Path(sys.prefix).resolve() != ENVIRONMENT.resolve():
        if not environment_ready() and not make_environment():
            return 0
        os.execv(python(), [str(python()), __file__, *sys.argv[1:]])
    directory = tempfile.mkdtemp(prefix="gradmesh-oracle-")
    # Nothing of the SDK may read or write this user's own wallets and caches.
    os.environ.update(HOME=directory, BITTENSOR_RUNTIME_CACHE_DIR=os.path.join(directory, "runtime-cache"))
    try:
        for name in [arguments.only] if arguments.only else PARTS:
            PARTS[name](pathlib.Path(directory))
    except Mismatch as mismatch:
        print(f"MISMATCH {mismatch}", file=sys.stderr)
        return 1
    finally:
        if arguments.keep:
            print(f"files are in {directory}")
        else:
            shutil.rmtree(directory)
    return 0


# The environment.


def python():
    return ENVIRONMENT / "bin" / "python"


def environment_ready():
    probe = "import bittensor, bittensor_core; assert bittensor.__version__ == '11.3.0'"
    try:
        return subprocess.run([python(), "-c", probe], capture_output=True).returncode == 0
    except OSError:
        return False


def make_environment():
    """True once the packages are there; False, having said so, if PyPI does not answer."""
    print(f"installing {BITTENSOR} into {ENVIRONMENT}", flush=True)
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    pip = [python(), "-m", "pip", "--disable-pip-version-check", "install", "--retries", "2", "--timeout", "30"]
    done = subprocess.run([*pip, BITTENSOR, BITTENSOR_CORE], capture_output=True, text=True)
    if done.returncode == 0:
        return True
    output = done.stdout + done.stderr
    if UNREACHABLE.search(output):
        print(output.strip())
        print("skipped: PyPI does not answer, so that there is nothing to compare with")
        return False
    sys.exit(f"pip could not install {BITTENSOR}:\n{output}")


# Our side.


def cargo(*arguments):
    """Path of the program that cargo built, with the features of the whole workspace, as tests and demo are built."""
    command = [os.environ.get("CARGO", "cargo"), "build", "--locked", "--workspace"]
    command += ["--message-format=json-render-diagnostics", *arguments]
    env = dict(os.environ, HOME=HOME)
    done = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, env=env, check=True, text=True)
    built = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return next(message["executable"] for message in reversed(built) if message.get("executable"))


class Ours:
    """The example `oracle`, one process per question."""

    def __init__(self):
        self.program = cargo("--example", "oracle")

    def __call__(self, *arguments, password=None):
        env = dict(os.environ)
        env.pop("ORACLE_PASSWORD", None)
        if password is not None:
            env["ORACLE_PASSWORD"] = password
        done = subprocess.run([self.program, *map(str, arguments)], capture_output=True, text=True, env=env)
        if done.returncode != 0:
            raise Mismatch(f"ours fails at {arguments[0]} {arguments[1]}: {done.stderr.strip()}")
        return json.loads(done.stdout)


def equal(what, ours, theirs):
    if ours != theirs:
        raise Mismatch(f"{what}: ours {ours!r}, theirs {theirs!r}")
    print(f"  equal: {what}", flush=True)


# Part 1.


def keys(directory):
    import bittensor_core as core
    from bittensor.keyfiles import Keyfile
    from bittensor.wallet import Wallet

    print("keys: bittensor_core 0.1.5", flush=True)
    ours = Ours()

    def written(name, keypair, password=None):
        path = directory / "theirs" / name
        Keyfile(path).set_keypair(keypair, encrypt=password is not None, password=password)
        return path

    phrase = core.Keypair.generate_mnemonic(12)
    for name, keypair in {
        "phrase of 12 words": core.Keypair.create_from_mnemonic(phrase),
        "phrase of 24 words": core.Keypair.create_from_mnemonic(core.Keypair.generate_mnemonic(24)),
        "seed": core.Keypair.create_from_seed(os.urandom(32)),
        "URI with a hard junction": core.Keypair.create_from_uri(f"{phrase}//hard//0"),
        "URI with a soft junction": core.Keypair.create_from_uri(f"{phrase}//hard/soft"),
    }.items():
        plain = written(name.replace(" ", "-"), keypair)
        equal(f"address of a key from a {name}", ours("key", plain), keypair.ss58_address)
        message = os.urandom(64)
        signature = bytes.fromhex(ours("sign", plain, message.hex()))
        equal(f"its signature by us, checked by them ({name})", keypair.verify(message, signature), True)
        signature = bytes(keypair.sign(message)).hex()
        verified = ours("verify", keypair.ss58_address, message.hex(), signature)
        equal(f"its signature by them, checked by us ({name})", verified, True)

    keypair = core.Keypair.create_from_mnemonic(phrase)
    sealed = written("encrypted", keypair, PASSWORD)
    equal("address in an encrypted file", ours("key", sealed, password=PASSWORD), keypair.ss58_address)
    variable = Keyfile(sealed).env_var_name()
    core.save_password_to_environment(variable, "not ASCII: pässwörd")
    # The core sets the variable of the process, which Python's os.environ does not see.
    value = subprocess.run(["printenv", variable], capture_output=True, text=True).stdout.strip()
    other = written("encrypted-other", keypair, "not ASCII: pässwörd")
    other.rename(sealed)
    with variables({variable: value}):
        equal("address in an encrypted file, password from the environment", ours("key", sealed), keypair.ss58_address)

    for password in [None, PASSWORD]:
        name = "plain" if password is None else "encrypted"
        made = ours("wallet", directory / "ours", name, "default", password=password)
        wallet = Wallet(name, "default", str(directory / "ours"))
        for which in ["coldkey", "hotkey"]:
            account = made[which]["account"]
            opened = getattr(wallet, f"get_{which}")(password)
            equal(f"{name} wallet: {which} that we made, opened by them", account, opened.ss58_address)
            public = getattr(wallet, f"{which}pub")
            equal(f"{name} wallet: public half of the {which}", account, public.ss58_address)
            again = core.Keypair.create_from_mnemonic(made[which]["phrase"])
            equal(f"{name} wallet: {which} from its phrase", account, again.ss58_address)
        equal(f"{name} wallet: coldkey encrypted", password is not None, wallet.coldkey_file.is_encrypted())


@contextlib.contextmanager
def variables(values):
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]


# Part 2.


def timelock(_directory):
    import bittensor_core as core

    print(f"timelock: bittensor_core 0.1.5, round {ROUND} of quicknet", flush=True)
    ours = Ours()
    for length in [0, 1, 15, 16, 17, 1000]:
        message = os.urandom(length)
        sealed, round_number = core.encrypt_at_round(message, ROUND)
        equal("round of their envelope", ROUND, round_number)
        inner = bytes(core.inner_ciphertext(sealed))
        equal(f"their {length} bytes, decrypted by us", ours("decrypt", inner.hex(), SIGNATURE), message.hex())
        inner = bytes.fromhex(ours("encrypt", ROUND, message.hex()))
        opened = bytes(core.decrypt_with_signature(envelope(inner), SIGNATURE))
        equal(f"our {length} bytes, decrypted by them", message, opened)


def envelope(ciphertext):
    """The core wraps what the chain takes: SCALE of (bytes, round as u64)."""
    assert 64 <= len(ciphertext) < 2**14
    return (len(ciphertext) << 2 | 1).to_bytes(2, "little") + ciphertext + ROUND.to_bytes(8, "little")


# Part 3.


def chain(_directory):
    print("chain: bittensor 11.3.0 against gradmesh-devchain", flush=True)
    with development_chain() as url:
        asyncio.run(use_chain(url))


@contextlib.contextmanager
def development_chain():
    program = cargo("--bin", "gradmesh-devchain")
    command = [program, "--listen", "127.0.0.1:0", "--block-ms", "250", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            started = process.stdout.readline()
            if not started:
                raise Mismatch("gradmesh-devchain does not start")
            yield json.loads(started)["url"]
        finally:
            process.terminate()


async def use_chain(url):
    import bittensor

    subtensor, admin = bittensor.calls.SubtensorModule, bittensor.calls.AdminUtils
    storage = bittensor.storage.SubtensorModule
    owner, member = wallet("Alice"), wallet("Bob")
    async with bittensor.Client(url, fallback_endpoints=[], archive_endpoints=[]) as client:

        async def submit(call, signer, key="coldkey"):
            """The name of the error, or "Success"."""
            result = await client.submit_call(call, signer, signer=key)
            return "Success" if result.success else result.error.name or result.message

        async def succeed(what, call, signer, key="coldkey"):
            equal(what, await submit(call, signer, key), "Success")

        netuid = await client.query(storage.TotalNetworks)
        await succeed("register_network", subtensor.register_network(owner.hotkey.ss58_address), owner)
        equal("owner of the new subnet", await client.query(storage.SubnetOwner, [netuid]), owner.coldkey.ss58_address)
        await succeed("start_call", subtensor.start_call(netuid), owner)
        hotkey = member.hotkey.ss58_address
        too_low = await submit(subtensor.register_limit(netuid, hotkey, 1), member)
        equal("register_limit below the price: RegistrationPriceLimitExceeded", too_low, "RegistrationPriceLimitExceeded")
        await succeed("register_limit", subtensor.register_limit(netuid, hotkey, 10**12), member)
        equal("uid of the member", await client.query(storage.Uids, [netuid, hotkey]), 1)
        certificate = b"\x01" + bytes(range(32))
        axon = subtensor.serve_axon_tls(netuid, 1, int.from_bytes([192, 0, 2, 7]), 8091, 4, 0, 0, 0, certificate)
        await succeed("serve_axon_tls, hotkey without TAO", axon, member, "hotkey")

        graph = await client.subnets.metagraph(netuid)
        equal("metagraph: owner", graph.owner_hotkey, owner.hotkey.ss58_address)
        equal("metagraph: hotkeys", graph.hotkeys, [owner.hotkey.ss58_address, hotkey])
        equal("metagraph: coldkeys", graph.coldkeys, [owner.coldkey.ss58_address, member.coldkey.ss58_address])
        equal("metagraph: axons", [neuron.axon for neuron in graph.neurons], [None, "192.0.2.7:8091"])

        weights = subtensor.set_weights(netuid, [0, 1], [1, 3], 0)
        enabled = await submit(weights, owner, "hotkey")
        equal("set_weights under commit-reveal: CommitRevealEnabled", enabled, "CommitRevealEnabled")
        off = admin.sudo_set_commit_reveal_weights_enabled(netuid, False)
        await succeed("commit-reveal off, by the owner", off, owner)
        for limit, expected in [(0, "Success"), (1000, "SettingWeightsTooFast")]:
            inner = await client.compose(admin.sudo_set_weights_set_rate_limit(netuid, limit))
            await succeed(f"weights at most every {limit} blocks, by sudo", bittensor.calls.Sudo.sudo(inner), wallet("Alice"))
            equal("that limit, read back", await client.query(storage.WeightsSetRateLimit, [netuid]), limit)
            equal(f"set_weights: {expected}", await submit(weights, owner, "hotkey"), expected)
        stored = [tuple(pair) for pair in await client.query(storage.Weights, [netuid, 0])]
        equal("weights, read back (scaled up to 65535)", stored, [(0, 21845), (1, 65535)])


def wallet(name):
    """`//NAME` and `//NAME//hot` of the development phrase, in the shape that the SDK takes for a wallet."""
    import bittensor_core as core

    coldkey, hotkey = (core.Keypair.create_from_uri(uri) for uri in [f"//{name}", f"//{name}//hot"])
    keys = {"coldkey": coldkey, "coldkeypub": coldkey, "hotkey": hotkey, "hotkeypub": hotkey}
    return types.SimpleNamespace(name=name, hotkey_str="hot", **keys)


PARTS = {"keys": keys, "timelock": timelock, "chain": chain}

if __name__ == "__main__":
    sys.exit(main())
