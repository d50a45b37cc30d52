#!/usr/bin/env python3
"""Lays libtorch where the build looks for it: the link `libtorch` in the root of the checkout.

Order of choice:

1. LIBTORCH in the environment: a libtorch directory with `include` and `lib`. Nothing is downloaded.
2. LIBTORCH_USE_PYTORCH in the environment: the torch of `python3`. Nothing is downloaded.
3. A real directory `libtorch` in the checkout: used as it is.
4. CACHE/gradmesh/libtorch-2.11.0, shared by every checkout of this user; CACHE is XDG_CACHE_HOME or ~/.cache.
   If it is not there yet, three wheels (544 MB) are fetched with pip and unpacked into it (480 MB).

Wheels are pinned by SHA-256. Which Python runs this script does not matter: the C++ libraries in the wheels of all
Python versions are the same, and pip is asked for the pinned ones by name. Wheels that already lie in
CACHE/gradmesh/wheels (copied there from another machine, say) are used instead of the network. They are deleted
once unpacked: nothing reads them again.

libtorch_cuda.so stays out of the directory on purpose: torch-sys links whatever lies there, and a binary linked
against it does not start without the whole CUDA runtime. Two small CUDA runtime libraries are needed all the same,
because libtorch_cpu.so of this wheel names them.

Never installs a Python package, never changes the environment, needs nothing but the standard library and pip.
"""

import argparse
import fcntl
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile

VERSION = "2.11.0"
CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
LINK = CHECKOUT / "libtorch"

# File name and SHA-256, as PyPI publishes them. The name and version that pip is asked for are read off the name.
WHEELS = {
    "x86_64": {
        "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl":
            "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
        "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl":
            "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl":
            "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    },
    "aarch64": {
        "torch-2.11.0-cp311-cp311-manylinux_2_28_aarch64.whl":
            "d91aac77f24082809d2c5a93f52a5f085032740a1ebc9252a7b052ef5a4fddc6",
        "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl":
            "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
        "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_aarch64.whl":
            "796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151",
    },
}

# The newest glibc that a wheel above asks for (manylinux_2_28).
GLIBC_MIN = (2, 28)

# Libraries of the torch wheel that are not taken: the CUDA backend and the Python bindings. All others are what
# libtorch_cpu.so needs, which differs between the platforms.
LEFT_OUT = (
    "libtorch_cuda",
    "libtorch_nvshmem",
    "libtorch_python",
    "libc10_cuda",
    "libcaffe2_nvrtc",
)
CUDA_LIBRARIES = ("libcudart.so.13", "libcupti.so.13")

PYTHON_MIN = (3, 10)

# What must be there for an unpacked directory to count as complete.
REQUIRED = (
    "include/torch/csrc/api/include/torch/torch.h",
    "lib/libc10.so",
    "lib/libtorch.so",
    "lib/libtorch_cpu.so",
    *(f"lib/{name}" for name in CUDA_LIBRARIES),
)

# Wheels (544 MB) and what is unpacked from them (480 MB) lie side by side for a moment; the rest is slack.
FREE_BYTES_MIN = 1_200_000_000

# Temporary directories begin with this; the holder of the lock deletes those of a killed run.
PARTIAL = ".partial-"

USE_ANOTHER = f"""\
To use a libtorch {VERSION} that you have, set one of these and run make again:
  export LIBTORCH=/path/to/libtorch      a directory with include/ and lib/
  export LIBTORCH_USE_PYTORCH=1          the torch {VERSION} installed for python3"""


class Failure(Exception):
    """A message for the person at the terminal: what happened, to what, and what to do."""


def say(message):
    print(f"libtorch: {message}", flush=True)


def cache_dir():
    # The XDG specification says that a relative path is to be ignored.
    configured = os.environ.get("XDG_CACHE_HOME", "")
    base = pathlib.Path(configured) if os.path.isabs(configured) else pathlib.Path.home() / ".cache"
    return base / "gradmesh"


def from_environment():
    """The directories (root, lib) that the environment names, or None. Raises Failure when they are not usable."""
    if os.environ.get("LIBTORCH_USE_PYTORCH") is not None:
        return from_python()
    configured = os.environ.get("LIBTORCH")
    if configured is None:
        return None
    if not os.path.isabs(configured):
        # The build script resolves it in another directory.
        raise Failure(f"LIBTORCH is set to '{configured}'; make it an absolute path, or unset it to download")
    root = pathlib.Path(configured)
    lib = pathlib.Path(os.environ.get("LIBTORCH_LIB", root)) / "lib"
    if not (lib / "libtorch_cpu.so").exists():
        raise Failure(f"LIBTORCH={configured} gives no {lib}/libtorch_cpu.so; correct it, or unset it to download")
    version_file = root / "build-version"
    version = version_file.read_text().strip() if version_file.exists() else None
    check_version(version, f"LIBTORCH={configured}")
    return root, lib


def from_python():
    # The same interpreter that the build script of torch-sys asks.
    python = "python" if os.environ.get("VIRTUAL_ENV") else "python3"
    code = "import torch; print(torch.__version__); print(torch.__path__[0])"
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["no output"])[-1]
        raise Failure(f"LIBTORCH_USE_PYTORCH is set, but {python} cannot import torch: {reason}")
    version, root = answer.stdout.strip().splitlines()[-2:]
    check_version(version, f"torch of {python}")
    return pathlib.Path(root), pathlib.Path(root) / "lib"


def check_version(version, source):
    """The build refuses another version anyway, but minutes later. An unknown version (None) is let through."""
    bypass = os.environ.get("LIBTORCH_BYPASS_VERSION_CHECK") is not None
    if version is not None and version.split("+")[0] != VERSION and not bypass:
        raise Failure(
            f"{source} is version {version}; the build needs {VERSION} "
            "(LIBTORCH_BYPASS_VERSION_CHECK=1 builds with it all the same)"
        )


def is_complete(root):
    version_file = root / "build-version"
    if not version_file.is_file() or version_file.read_text().strip() != VERSION:
        return False
    return all((root / name).is_file() for name in REQUIRED)


def host_wheels():
    """The wheels for this machine. Raises Failure where there are none that could run."""
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in WHEELS:
        raise Failure(
            f"there are libtorch wheels for Linux on x86_64 and aarch64; this is {platform.system()} on {machine}\n"
            + USE_ANOTHER
        )
    library, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if library != "glibc" or numbers < GLIBC_MIN:
        needed = ".".join(map(str, GLIBC_MIN))
        raise Failure(
            f"the libtorch wheels need glibc {needed} or newer; this system has {library or 'another C library'} "
            f"{version}\n" + USE_ANOTHER
        )
    return WHEELS[machine]


def digest(path):
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return sha256.hexdigest()


def fetch(wheels, directory):
    """Brings every wheel into `directory`, each whole and with the pinned hash or not at all."""
    directory.mkdir(exist_ok=True)
    missing = []
    for name, expected in wheels.items():
        path = directory / name
        if path.exists() and digest(path) != expected:
            say(f"{path} is not the wheel it claims to be (SHA-256 differs); fetching it again")
            path.unlink()
        if path.exists():
            say(f"using {path}")
        else:
            missing.append(name)
    if not missing:
        return
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode != 0:
        raise Failure(
            f"{sys.executable} has no pip, which downloads libtorch; install it (on Debian and Ubuntu: apt install "
            "python3-pip)\n" + USE_ANOTHER
        )
    for name in missing:
        pip_download(name, wheels[name], directory)


def pip_download(name, expected, directory):
    package, version, _, abi, platforms = name.removesuffix(".whl").split("-")
    requirement = f"{package.replace('_', '-')}=={version}"
    command = [
        sys.executable, "-m", "pip", "download", requirement,
        "--no-deps", "--only-binary=:all:", "--disable-pip-version-check",
        # The wheel is kept by us until it is unpacked; a second copy in pip's cache would be 530 MB for nothing.
        "--no-cache-dir",
        "--implementation", "cp", "--python-version", "3.11", "--abi", abi if abi != "none" else "cp311",
    ]
    for tag in platforms.split("."):
        command += ["--platform", tag]
    if not sys.stdout.isatty():
        command += ["--progress-bar", "off"]
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=directory) as partial:
        # pip collects the file in TMPDIR first, and /tmp is often a small RAM disk. Nothing is installed, so a
        # configured demand for a virtual environment does not apply.
        environment = os.environ | {"TMPDIR": partial, "PIP_REQUIRE_VIRTUALENV": "0"}
        say(f"downloading {name}")
        answer = subprocess.run([*command, "--dest", partial], env=environment, stdin=subprocess.DEVNULL, check=False)
        wheel = pathlib.Path(partial) / name
        if answer.returncode != 0 or not wheel.exists():
            raise Failure(
                f"pip could not download {requirement}; its messages are above. No network, or an index without this "
                f"wheel? A copy of {name} laid into {directory} is used instead\n" + USE_ANOTHER
            )
        found = digest(wheel)
        if found != expected:
            raise Failure(f"{name} from the package index has SHA-256 {found}, expected {expected}; not used")
        os.replace(wheel, directory / name)


def member_path(member):
    """Where a file of a wheel goes below the libtorch directory, or None when it is left out."""
    parts = pathlib.PurePosixPath(member).parts
    if parts[:2] == ("torch", "include"):
        return pathlib.Path(*parts[1:])
    is_library = parts[:2] == ("torch", "lib") or parts[:1] == ("torch.libs",)
    if is_library and ".so" in parts[-1] and not parts[-1].startswith(LEFT_OUT):
        return pathlib.Path("lib", parts[-1])
    if parts[:1] == ("nvidia",) and parts[-1] in CUDA_LIBRARIES:
        return pathlib.Path("lib", parts[-1])
    return None


def unpack(paths, root):
    """Unpacks into a directory beside `root` and renames it, so that `root` is whole whenever it exists."""
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=root.parent) as partial:
        fresh = pathlib.Path(partial) / "fresh"
        for path in paths:
            say(f"unpacking {path.name}")
            with zipfile.ZipFile(path) as wheel:
                for member in wheel.infolist():
                    below = None if member.is_dir() else member_path(member.filename)
                    if below is None:
                        continue
                    target = fresh / below
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with wheel.open(member) as source, target.open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
        (fresh / "build-version").write_text(f"{VERSION}\n")
        if not is_complete(fresh):
            lost = [name for name in REQUIRED if not (fresh / name).is_file()]
            raise Failure(f"the wheels do not hold {', '.join(lost)}")
        # Data before name: after a power cut a renamed directory must not hold empty files.
        os.sync()
        if root.exists():
            os.replace(root, pathlib.Path(partial) / "replaced")
        os.replace(fresh, root)


def ensure_cached():
    """Returns the complete unpacked directory in the cache, made now if need be."""
    cache = cache_dir()
    root = cache / f"libtorch-{VERSION}"
    if is_complete(root):
        return root
    wheels = host_wheels()
    cache.mkdir(parents=True, exist_ok=True)
    # Holds until the process ends, however it ends.
    lock = (cache / "libtorch.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another make is preparing libtorch; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    if is_complete(root):
        return root
    directory = cache / "wheels"
    for abandoned in [*cache.glob(PARTIAL + "*"), *directory.glob(PARTIAL + "*")]:
        shutil.rmtree(abandoned, ignore_errors=True)
    free = shutil.disk_usage(cache).free
    if free < FREE_BYTES_MIN:
        raise Failure(
            f"{cache} has {free / 1e9:.1f} GB free; libtorch needs {FREE_BYTES_MIN / 1e9:.1f} GB while it is unpacked. "
            "Free some, or set XDG_CACHE_HOME to a larger disk\n" + USE_ANOTHER
        )
    fetch(wheels, directory)
    unpack([directory / name for name in wheels], root)
    for name in wheels:
        (directory / name).unlink()
    say(f"ready in {root}")
    return root


def lay_link(root):
    """Points the link of the checkout at `root`, in one step: a build beside us sees the old or the new one."""
    if LINK.is_symlink() and os.readlink(LINK) == str(root):
        return
    fresh = CHECKOUT / f".libtorch-{os.getpid()}"
    fresh.symlink_to(root)
    os.replace(fresh, LINK)


def provide():
    """Sees to it that the build finds a libtorch; returns its library directory."""
    chosen = from_environment()
    if chosen is not None:
        name = "LIBTORCH" if os.environ.get("LIBTORCH_USE_PYTORCH") is None else "LIBTORCH_USE_PYTORCH"
        say(f"using {chosen[0]} ({name} is set)")
        return chosen[1]
    if LINK.is_dir() and not LINK.is_symlink():
        if not (LINK / "lib" / "libtorch_cpu.so").exists():
            raise Failure(f"{LINK} is a directory without lib/libtorch_cpu.so; remove it to have libtorch downloaded")
        say(f"using {LINK} (a directory of its own)")
        return LINK / "lib"
    root = ensure_cached()
    lay_link(root)
    say(f"using {root}")
    return root / "lib"


def main():
    parser = argparse.ArgumentParser(description="Lays libtorch where the build looks for it.")
    parser.add_argument(
        "--lib-dir", action="store_true", help="only print the library directory in use; download nothing"
    )
    arguments = parser.parse_args()
    try:
        if sys.version_info < PYTHON_MIN:
            raise Failure(f"Python {platform.python_version()} is too old; {'.'.join(map(str, PYTHON_MIN))} is needed")
        if arguments.lib_dir:
            chosen = from_environment()
            print(chosen[1] if chosen is not None else LINK / "lib")
        else:
            provide()
    except Failure as failure:
        print(f"libtorch: {failure}", file=sys.stderr)
        return 1
    except (OSError, zipfile.BadZipFile) as error:
        print(f"libtorch: {error}\n{USE_ANOTHER}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("libtorch: interrupted; nothing half-done is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
