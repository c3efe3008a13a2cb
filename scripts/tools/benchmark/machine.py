"""The machine that figures belong to, without its name."""

import os
import platform
from pathlib import Path

FLAGS = {
    "avx2": ("avx2",),
    "avx512f": ("avx512f",),
    "avx512_bf16": ("avx512_bf16",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "amx": ("amx_tile",),
}


def usable_cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cpu_info():
    """The first processor's entries of /proc/cpuinfo; empty where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def describe():
    """Processor, cores, memory and instruction sets."""
    info = cpu_info()
    flags = set(info.get("flags", "").split())
    model = info.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in info:
        # Virtual machines often hide the model's number; family and model tell the generation.
        model += f" (family {info['cpu family']}, model {info['model']})"
    return {
        "cpu": model,
        "cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "isa": {name: any(flag in flags for flag in wanted) for name, wanted in FLAGS.items()},
        "system": f"{platform.system()} {platform.machine()}",
    }
