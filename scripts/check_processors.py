"""Runs the tests whose numbers depend on the processor as if it were another: python3 scripts/check_processors.py

Each runs under the environment variables by which libtorch, oneDNN and MKL choose other kernels, and as other processors in
qemu's emulation (Debian's qemu-user). Prints a table; ends with 1 if a test fails. --quick leaves out what takes minutes.

qemu emulates no AVX-512, so that its processors newer than Haswell differ from that in their maker and caches, by which MKL
and oneDNN choose too: "Icelake-Server" is an Intel with AVX2, "EPYC-Milan" an AMD with AVX2. "max" is all that it emulates.
AVX-512 is tested where the machine has it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tools.built import ROOT

VARIABLES = [
    "",
    "MKL_CBWR=COMPATIBLE",
    "MKL_CBWR=AVX2",
    "ATEN_CPU_CAPABILITY=default",
    "ATEN_CPU_CAPABILITY=avx2",
    "ONEDNN_MAX_CPU_ISA=SSE41",
    "ONEDNN_MAX_CPU_ISA=AVX",
    "ONEDNN_MAX_CPU_ISA=AVX2",
    "ONEDNN_MAX_CPU_ISA=AVX2_VNNI_2",
    "ONEDNN_MAX_CPU_ISA=AVX512_CORE",
    "ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI",
    "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16",
    "MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41",
]
# The newest of each maker last.
PROCESSORS = ["Nehalem", "SandyBridge", "Haswell", "EPYC", "EPYC-Milan", "Icelake-Server", "max"]
NEWER = ["EPYC-Genoa", "EPYC-Turin", "SapphireRapids", "GraniteRapids"]

LIBRARY = ["diffusion::", "kernels::", "nn::layers::", "weights::precision::"]
# Emulated, it takes minutes.
QUICK_LIBRARY = [*LIBRARY, "--skip", "at_any_width"]
GOLDEN = ["golden::"]
PROPERTIES = ["properties::"]
QUICK_GOLDEN = [f"golden::{part}::" for part in ("clip", "ddpm", "noise", "prior", "samplers", "scheduler")]
QUICK_SCHEDULES = [f"golden::{part}::" for part in ("ddpm", "noise", "samplers", "scheduler")]
QUICK_PROCESSORS = ["Nehalem", "Haswell"]


def output_of(command, **options):
    """What a command prints; ends the script if it fails."""
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **options)
    if result.returncode:
        raise SystemExit(f"check_processors: {command[0]} ended with {result.returncode}")
    return result.stdout


def build():
    """Builds the library's tests; gives the program's path."""
    command = "cargo test --release --locked --lib --no-run --message-format json"
    environment = {**os.environ, "LIBTORCH": output_of([sys.executable, "scripts/libtorch.py"]).strip()}
    lines = output_of(command.split(), env=environment).splitlines()
    return next(message["executable"] for message in map(json.loads, lines) if message.get("executable"))


def known_processors(qemu):
    """Those of ours that this qemu knows."""
    # It ends with 1, having helped.
    listed = subprocess.run([qemu, "-cpu", "help"], check=False, stdout=subprocess.PIPE, text=True).stdout
    names = set(re.findall(r"^\s*x86 (\S+)", listed, re.MULTILINE)) | set(listed.split())
    return [name for name in PROCESSORS + NEWER if name in names]


def plan(quick, qemu):
    """What to run: (setting, the command before the program, variables, what the table calls the tests, the tests)."""
    for setting in VARIABLES:
        variables = dict(pair.split("=") for pair in setting.split())
        yield setting or "as it is", [], variables, "library", LIBRARY
        yield setting or "as it is", [], variables, "golden", QUICK_GOLDEN if quick else GOLDEN
        if not quick:
            yield setting or "as it is", [], variables, "properties", PROPERTIES
    for processor in QUICK_PROCESSORS if quick else known_processors(qemu):
        emulator = [qemu, "-cpu", processor]
        yield processor, emulator, {}, "library", QUICK_LIBRARY if quick else LIBRARY
        yield processor, emulator, {}, "golden", QUICK_SCHEDULES if quick else GOLDEN
        if not quick:
            yield processor, emulator, {}, "properties", PROPERTIES


def run(job, program):
    """Runs one of them; gives its line of the table, and what failed."""
    setting, emulator, variables, name, tests = job
    begin = time.monotonic()
    command = [*emulator, program, "--test-threads=1", *tests]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    result = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.monotonic() - begin
    counts = re.search(r"^test result: \S+ (\d+) passed; (\d+) failed", result.stdout, re.MULTILINE)
    # Filters that no test answers to would pass for ever.
    is_right = result.returncode == 0 and counts and int(counts[1]) > 0
    passed, failed = (counts[1], counts[2]) if counts else ("-", f"exit {result.returncode}")
    print(f"| {setting} | {name} | {passed} | {failed} | {seconds:.0f} |", flush=True)
    return None if is_right else f"{setting}, {name}:\n{result.stdout[-4000:]}"


def main():
    """Parses the command line, runs all and tells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a part of the tests and two emulated processors")
    parser.add_argument("--only", metavar="TEXT", default="", help="settings whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many run side by side (all cores)")
    arguments = parser.parse_args()
    qemu = shutil.which("qemu-x86_64")
    if not qemu:
        raise SystemExit("check_processors: qemu-x86_64 is missing; apt-get install qemu-user")
    program = build()
    jobs = [job for job in plan(arguments.quick, qemu) if arguments.only in job[0]]
    print("| setting or processor | tests | passed | failed | seconds |\n| --- | --- | ---: | ---: | ---: |")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        failures = [failure for failure in pool.map(lambda job: run(job, program), jobs) if failure]
    print("\n".join(failures), file=sys.stderr)
    sys.exit(1 if failures or not jobs else 0)


if __name__ == "__main__":
    main()
