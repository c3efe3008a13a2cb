#!/usr/bin/env python3
"""Put libtorch 2.13.0 into a per-user cache, once, and print where it is.

    scripts/libtorch.py [--cuda]

The folder printed holds include/ and lib/; nothing else goes to standard output.
On Linux the Python wheel of torch is a CUDA build whose dependencies are several GB.
Work on the CPU needs only a part of it: the headers, a few libraries, and an empty
libtorch.so in place of the one that pulls in CUDA. No Python package gets installed.

--cuda (Linux) installs the whole of torch beside it. That a program links with the
result and runs on a CPU is tested; on a GPU it has not been tried.

Environment: LIBTORCH is printed unchanged if set; PRIOR_EMBED_CACHE is the cache folder
(by default prior-embed in XDG_CACHE_HOME or ~/.cache); CXX is the C++ compiler.

The path of the CPU build also goes into .cargo/config.toml, so that plain cargo commands
find it. For another build: LIBTORCH=$(scripts/libtorch.py --cuda) cargo test.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import NamedTuple, NoReturn

from tools.cache import cache_folder, exclusive
from tools.environments import explain
from tools.problem import FAILED, Problem

VERSION = "2.13.0"
REPOSITORY = Path(__file__).resolve().parent.parent
MARKER = "# Written by scripts/libtorch.py, which replaces it when libtorch moves."
MANIFEST = "manifest.txt"
PAUSES = (5, 20)  # seconds before the second and the third attempt at a download
GB = 1e9

# In torch/lib, but only for CUDA, for Python, or for Python's worker processes. The
# Linux libtorch.so is among them: it does nothing but load libtorch_cuda.so.
UNWANTED = re.compile(r"cuda|nvrtc|nvshmem|python|shm|global_deps|^libtorch\.so$")
# libtorch_cpu.so was linked with the profiler's CUDA side and does not load without these.
WANTED_OF_CUDA = ("libcudart.so.13", "libcupti.so.13")


class Wheel(NamedTuple):
    requirement: str
    tag: str  # pip's name for the platform, so that it takes this wheel whatever Python runs it
    size: int
    sha256: str


class Build(NamedTuple):
    unpacked: int
    wheels: tuple[Wheel, ...]


BUILDS = {
    ("Linux", "x86_64"): Build(490_000_000, (
        Wheel(f"torch=={VERSION}", "manylinux_2_28_x86_64", 526_574_961,
              "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7"),
        Wheel("nvidia-cuda-runtime==13.0.96", "manylinux2014_x86_64", 2_243_632,
              "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
        Wheel("nvidia-cuda-cupti==13.0.85", "manylinux_2_25_x86_64", 10_715_597,
              "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"),
    )),
    ("Linux", "aarch64"): Build(350_000_000, (
        Wheel(f"torch=={VERSION}", "manylinux_2_28_aarch64", 427_199_369,
              "092790c696a760c729fd5722835f50b9d81fd7c8f141571f3f3cf4081a8f664c"),
        Wheel("nvidia-cuda-runtime==13.0.96", "manylinux2014_aarch64", 2_261_060,
              "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55"),
        Wheel("nvidia-cuda-cupti==13.0.85", "manylinux_2_25_aarch64", 10_310_827,
              "796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151"),
    )),
    ("Darwin", "arm64"): Build(390_000_000, (
        Wheel(f"torch=={VERSION}", "macosx_14_0_arm64", 111_187_938,
              "e76f9bcecc52b8ff711239a2f7547d5353df95878ab232f0773c1d95928b92f8"),
    )),
}
# With its dependencies: to download, and on disk at the peak (5 GB remain).
CUDA_DOWNLOAD, CUDA_SPACE = 3 * GB, 8 * GB


def say(message: str) -> None:
    print(f"libtorch: {message}", file=sys.stderr, flush=True)


def failure(message: str) -> Problem:
    """A problem that is not the caller's mistake."""
    return Problem(message, FAILED)


def this_build() -> Build:
    """The build for this machine."""
    system, machine = platform.system(), platform.machine()
    build = BUILDS.get((system, machine))
    if build is None:
        raise failure(f"no libtorch {VERSION} to fetch for {system} on {machine}; "
                      "set LIBTORCH to a folder that holds one")
    return build


def from_environment(folder: str) -> str:
    """Check the user's own LIBTORCH well enough to fail here and not in the linker."""
    path = Path(folder)
    libraries = [path / "lib" / name for name in ("libtorch_cpu.so", "libtorch_cpu.dylib")]
    if not (path / "include").is_dir() or not any(lib.is_file() for lib in libraries):
        raise Problem(f"LIBTORCH={folder} holds no include/ and lib/libtorch_cpu.so; "
                      "correct or unset it")
    return folder if path.is_absolute() else str(path.absolute())


def write_manifest(folder: Path) -> None:
    """List every file with its size, so that damage is noticed later."""
    lines = sorted(f"{path.stat().st_size} {path.relative_to(folder)}\n"
                   for path in folder.rglob("*") if path.is_file())
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")


def intact(folder: Path) -> bool:
    """Whether the folder holds what its manifest lists. Sizes only: this runs every time."""
    prefix = f"{folder}{os.sep}"
    try:
        with open(prefix + MANIFEST, encoding="utf-8") as manifest:
            entries = [line.rstrip("\n").split(" ", 1) for line in manifest]
        return bool(entries) and all(os.stat(prefix + path).st_size == int(size) for size, path in entries)
    except (OSError, ValueError):
        return False


def run_pip(arguments: list[str], scratch: Path) -> None:
    """Run pip, again if it fails; its progress goes to standard error if a person watches."""
    # pip downloads into TMPDIR first: /tmp may be small, and scratch gets removed in any case.
    # Its cache would keep a second copy of everything.
    environment = dict(os.environ, TMPDIR=str(scratch), PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0")
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check", "--no-cache-dir"]
    if not sys.stderr.isatty():
        command.append("--quiet")
    for pause in (*PAUSES, None):
        result = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr,
                                stderr=subprocess.PIPE, encoding="utf-8", errors="replace", check=False)
        if result.returncode == 0:
            return
        reason = explain(result.stderr)
        if pause is None or "DO NOT MATCH THE HASHES" in result.stderr:
            raise failure(f"pip failed: {reason}")
        say(f"pip failed: {reason}; trying again in {pause} s")
        time.sleep(pause)


def pip_target(*tags: str) -> list[str]:
    """pip's options for a platform and a Python other than those that run it."""
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11", "--abi", "cp311"]
    return options + [word for tag in tags for word in ("--platform", tag)]


def download(wheel: Wheel, scratch: Path) -> Path:
    """Fetch one wheel. pip checks the hash, which only a requirements file can tell it."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    run_pip(["download", "--no-deps", "--require-hashes", *pip_target(wheel.tag),
             "--dest", str(scratch), "--requirement", str(requirements)], scratch)
    name, version = wheel.requirement.replace("-", "_").split("==")
    found = next(scratch.glob(f"{name}-{version}-*.whl"), None)
    if found is None or found.stat().st_size != wheel.size:
        raise failure(f"pip did not download {wheel.requirement} as a wheel of {wheel.size:,} bytes")
    return found


def destination(member: str) -> str | None:
    """Where a file of a wheel goes, if it is needed: `torch/lib/libc10.so` -> `lib/libc10.so`."""
    if member.startswith("torch/include/") and not member.endswith("/"):
        return member[len("torch/"):]
    folder, _, name = member.rpartition("/")
    if folder == "torch/lib" and re.search(r"\.(so|dylib)\b", name) and not UNWANTED.search(name):
        return f"lib/{name}"
    if folder == "nvidia/cu13/lib" and name in WANTED_OF_CUDA:
        return f"lib/{name}"
    return None


def unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            target = destination(member.filename)
            if target is None:
                continue
            path = folder / target
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, open(path, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            mode = member.external_attr >> 16
            if mode:
                path.chmod(mode & 0o777 | 0o600)


def compiler() -> list[str]:
    """The C++ compiler as words of a command: CXX may hold several, as in `ccache g++`."""
    for candidate in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    raise failure("no C++ compiler (c++, g++ or clang++); install one (Debian: apt-get install g++), or set CXX")


def add_link_targets(lib: Path) -> None:
    """Add what the linker asks for by name: -ltorch, and -lgomp where there is no gcc to bring it."""
    gomp = lib / "libgomp.so"
    if not gomp.exists():
        gomp.symlink_to("libgomp.so.1")
    stub = lib / "libtorch.so"
    if not stub.exists():
        command = [*compiler(), "-shared", "-nostdlib", "-Wl,-soname,libtorch.so", "-x", "c++", os.devnull]
        result = subprocess.run([*command, "-o", str(stub)], stdin=subprocess.DEVNULL, capture_output=True,
                                encoding="utf-8", errors="replace", check=False)
        if result.returncode != 0:
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise failure(f"{command[0]} could not build a shared library: {reason}")


def prepare_cpu(build: Build, folder: Path, scratch: Path) -> None:
    """Fill `folder` with what work on the CPU needs."""
    for wheel in build.wheels:
        path = download(wheel, scratch)
        say(f"unpacking {wheel.requirement}")
        unpack(path, folder)
        path.unlink()
    (folder / "build-version").write_text(f"{VERSION}\n", encoding="utf-8")


def prepare_cuda(folder: Path, scratch: Path) -> None:
    """Install torch and its dependencies; libtorch is the folder `torch` among them."""
    machine = platform.machine()
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(28, 16, -1)]
    run_pip(["install", "--target", str(folder), "--no-compile", f"torch=={VERSION}",
             *pip_target(*tags, f"manylinux2014_{machine}")], scratch)
    (folder / "torch" / "build-version").write_text(f"{VERSION}\n", encoding="utf-8")


def check_machine(root: Path, needed: float) -> None:
    """Find out before a long download, not after it, what would make it useless."""
    if importlib.util.find_spec("pip") is None:
        raise failure(f"{sys.executable} has no pip; install it (Debian: apt-get install python3-pip), or set LIBTORCH")
    compiler()
    libc, version = platform.libc_ver()
    if platform.system() == "Linux" and (libc != "glibc" or [int(part) for part in version.split(".")] < [2, 28]):
        raise failure("libtorch needs glibc 2.28 or newer, which this system has not; set LIBTORCH to another build")
    free = shutil.disk_usage(root).free
    if free < needed:
        raise failure(f"{root} has {free / GB:.1f} GB free, and {needed / GB:.1f} GB are needed; make room, "
                      "or set PRIOR_EMBED_CACHE to a folder on another disk")


def install(build: Build, folder: Path, cuda: bool) -> None:
    """Prepare libtorch beside `folder` and move it there when it is whole."""
    root = folder.parent
    # We hold the lock, so whoever made these is dead.
    for leftover in root.glob("libtorch-*.part-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    size = sum(wheel.size for wheel in build.wheels)
    # pip keeps two copies of a wheel for a moment.
    check_machine(root, CUDA_SPACE if cuda else size + max(size, build.unpacked))
    what = f"about {CUDA_DOWNLOAD / GB:.0f} GB with CUDA" if cuda else f"{size / 1e6:.0f} MB, for the CPU"
    say(f"fetching libtorch {VERSION} ({what}) into {folder}, once")
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=root))
    try:
        new, scratch = part / "new", part / "scratch"
        new.mkdir()
        scratch.mkdir()
        if cuda:
            prepare_cuda(new, scratch)
        else:
            prepare_cpu(build, new, scratch)
        if platform.system() == "Linux":
            add_link_targets((new / "torch" if cuda else new) / "lib")
        write_manifest(new)
        if folder.exists():
            folder.rename(part / "old")
        new.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    say(f"libtorch {VERSION} is ready")


def cached(cuda: bool) -> Path:
    """The folder of libtorch in the cache, which is filled or repaired first if need be."""
    build, root = this_build(), cache_folder()
    if cuda and platform.system() != "Linux":
        raise Problem("--cuda is for Linux")
    folder = root / f"libtorch-{VERSION}-{'cuda' if cuda else 'cpu'}"
    if not intact(folder):
        root.mkdir(parents=True, exist_ok=True)
        with exclusive(root / "libtorch.lock", lambda: say("another run is preparing libtorch; waiting for it")):
            if not intact(folder):
                if folder.exists():
                    say(f"{folder} is damaged; making it again")
                install(build, folder, cuda)
    return folder / "torch" if cuda else folder


def write_cargo_config(libtorch: Path) -> None:
    """Tell plain `cargo build` where libtorch is; a file someone else wrote stays as it is."""
    config = REPOSITORY / ".cargo" / "config.toml"
    text = f"{MARKER}\n[env]\nLIBTORCH = {json.dumps(str(libtorch), ensure_ascii=False)}\n"
    try:
        old = config.read_text(encoding="utf-8", errors="replace") if config.exists() else ""
        if old == text:
            return
        if old and old.split("\n", 1)[0] != MARKER:
            if "LIBTORCH" not in old:
                say(f"{config} is not mine to change; plain cargo commands need LIBTORCH={libtorch}")
            return
        config.parent.mkdir(exist_ok=True)
        part = config.with_name(f"config.toml.{os.getpid()}")
        part.write_text(text, encoding="utf-8")
        part.replace(config)
    except OSError as error:
        say(f"cannot write {config} ({error.strerror}); plain cargo commands need LIBTORCH={libtorch}")


def stop(number: int, _frame: object) -> NoReturn:
    """Leave by an exception, so that temporary folders get removed."""
    raise SystemExit(128 + number)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cuda", action="store_true", help="the CUDA build (Linux; about 3 GB)")
    cuda = parser.parse_args(arguments).cuda
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, stop)
    try:
        own = os.environ.get("LIBTORCH")
        if own:
            print(from_environment(own))
            return 0
        libtorch = cached(cuda)
        if not cuda:  # plain cargo commands would rebuild everything at each change to and fro
            write_cargo_config(libtorch)
        print(libtorch)
        return 0
    except Problem as problem:
        say(str(problem))
        return problem.status
    except OSError as error:
        say(f"{error.strerror or error}: {error.filename or cache_folder()}; "
            "PRIOR_EMBED_CACHE can name another cache folder")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
