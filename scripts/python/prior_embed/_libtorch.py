"""libtorch in the per-user cache: which wheels it is made of, and how it is fetched, once, verified by hash.

Only the standard library is imported, and little of it: the launcher of the program looks here at every start.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Callable, NamedTuple

from ._cache import cache_folder, exclusive

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = "2.13.0"
MANIFEST = "manifest.txt"
PAUSES = (5, 20)  # seconds before the second and the third attempt at a download
GB = 1e9

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

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(wheel.size for wheel in self.wheels)


# fmt: off
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
# fmt: on

Say = Callable[[str], None]
Download = Callable[[Wheel, Path], Path]


class Unavailable(Exception):
    """Why there is no libtorch, in one line."""


def write_manifest(folder: Path) -> None:
    """List every file with its size, so that damage is noticed later."""
    lines = sorted(
        f"{path.stat().st_size} {path.relative_to(folder)}\n"
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    )
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")


def intact(folder: Path, part: str = "") -> bool:
    """Whether the folder, or a part of it, holds what its manifest lists. Sizes only: this runs every time."""
    prefix = f"{folder}{os.sep}"
    try:
        with open(prefix + MANIFEST, encoding="utf-8") as manifest:
            entries = [line.rstrip("\n").split(" ", 1) for line in manifest]
        wanted = [(size, path) for size, path in entries if path.startswith(part)]
        return bool(wanted) and all(os.stat(prefix + path).st_size == int(size) for size, path in wanted)
    except (OSError, ValueError):
        return False


def download(wheel: Wheel, scratch: Path, pauses: Sequence[float], say: Say) -> Path:
    """Fetch one wheel with pip, which has its index, proxy and certificates configured.

    It checks the hash, which only a requirements file can tell it.
    """
    from ._pip import PipFailed, pip_target, run_pip

    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    try:
        run_pip(
            [
                "download",
                "--no-deps",
                "--require-hashes",
                *pip_target(wheel.tag),
                "--dest",
                str(scratch),
                "--requirement",
                str(requirements),
            ],
            scratch,
            pauses,
            say,
        )
    except PipFailed as error:
        raise Unavailable(f"pip failed: {error}") from None
    name, version = wheel.requirement.replace("-", "_").split("==")
    found = next(scratch.glob(f"{name}-{version}-*.whl"), None)
    if found is None or found.stat().st_size != wheel.size:
        raise Unavailable(f"pip did not download {wheel.requirement} as a wheel of {wheel.size:,} bytes")
    return found


def destination(member: str) -> str | None:
    """Where a file of a wheel goes, if it is needed: `torch/lib/libc10.so` -> `lib/libc10.so`."""
    import re

    if member.startswith("torch/include/") and not member.endswith("/"):
        return member[len("torch/") :]
    folder, _, name = member.rpartition("/")
    # In torch/lib, but only for CUDA, for Python, or for Python's worker processes. The
    # Linux libtorch.so is among them: it does nothing but load libtorch_cuda.so.
    unwanted = re.search(r"cuda|nvrtc|nvshmem|python|shm|global_deps|^libtorch\.so$", name)
    if folder == "torch/lib" and re.search(r"\.(so|dylib)\b", name) and not unwanted:
        return f"lib/{name}"
    if folder == "nvidia/cu13/lib" and name in WANTED_OF_CUDA:
        return f"lib/{name}"
    return None


def unpack(wheel: Path, folder: Path) -> None:
    """Take what is needed out of a wheel."""
    import shutil
    import zipfile

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


def prepare_cpu(build: Build, folder: Path, scratch: Path, download: Download, say: Say) -> None:
    """Fill `folder` with what work on the CPU needs."""
    for wheel in build.wheels:
        path = download(wheel, scratch)
        say(f"unpacking {wheel.requirement}")
        unpack(path, folder)
        path.unlink()
    (folder / "build-version").write_text(f"{VERSION}\n", encoding="utf-8")


def check_machine(root: Path, needed: float) -> None:
    """Find out before a long download, not after it, what would make it useless."""
    import platform
    import shutil

    libc, version = platform.libc_ver()
    if platform.system() == "Linux" and (libc != "glibc" or [int(part) for part in version.split(".")] < [2, 28]):
        raise Unavailable(
            "libtorch needs glibc 2.28 or newer, which this system has not; set LIBTORCH to another build"
        )
    free = shutil.disk_usage(root).free
    if free < needed:
        raise Unavailable(
            f"{root} has {free / GB:.1f} GB free, and {needed / GB:.1f} GB are needed; make room, "
            "or set PRIOR_EMBED_CACHE to a folder on another disk"
        )


def install(folder: Path, prepare: Callable[[Path, Path], None]) -> None:
    """Have libtorch prepared in a folder beside `folder`, and move it there when it is whole. The lock is held."""
    import shutil
    import tempfile

    root = folder.parent
    # So whoever made these is dead.
    for leftover in root.glob("libtorch-*.part-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=root))
    try:
        new, scratch = part / "new", part / "scratch"
        new.mkdir()
        scratch.mkdir()
        prepare(new, scratch)
        write_manifest(new)
        if folder.exists():
            folder.rename(part / "old")
        new.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def ensure(variant: str, make: Callable[[Path], None], say: Say, complete: Callable[[Path], bool] = intact) -> Path:
    """The folder of a libtorch in the cache, which `make` fills or repairs first if need be, one process at a time."""
    root = cache_folder()
    folder = root / f"libtorch-{VERSION}-{variant}"
    if not complete(folder):
        root.mkdir(parents=True, exist_ok=True)
        with exclusive(root / "libtorch.lock", lambda: say("another run is preparing libtorch; waiting for it")):
            if not complete(folder):
                if folder.exists() and not intact(folder):
                    say(f"{folder} is damaged; making it again")
                make(folder)
    return folder
