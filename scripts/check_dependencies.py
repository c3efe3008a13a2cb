"""Checks the dependencies: python3 scripts/check_dependencies.py. Ends with 1 if one is not as it should be.

cargo-deny checks licences, sources, bans and, where GitHub can be reached, advisories, as deny.toml has them. Beside it: a
rust-version no newer than ours, no yanked version, and none of the program's crates in the library alone
(`--no-default-features`).
"""

import json
import shutil
import subprocess
import sys

from tools.built import ROOT

# What the library must do without.
PROGRAM_CRATES = {"axum", "clap", "hf-hub", "hyper", "indicatif", "parquet", "tokio", "ureq"}


def cargo(*arguments):
    """What a cargo command prints; ends the script if it fails."""
    result = subprocess.run(["cargo", *arguments], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"check_dependencies: cargo {arguments[0]} failed: {result.stderr.strip()}")
    return result.stdout, result.stderr


def version(text):
    """`1.89` as numbers."""
    return tuple(int(part) for part in text.split("."))


def too_new():
    """Lines on packages that need a newer Rust than Cargo.toml's rust-version."""
    packages = json.loads(cargo("metadata", "--format-version", "1", "--locked")[0])["packages"]
    own = next(package for package in packages if package["source"] is None)["rust_version"]
    for package in packages:
        needed = package["rust_version"]
        if needed and version(needed) > version(own):
            yield f"{package['name']} {package['version']} needs Rust {needed}, and Cargo.toml promises {own}"


def yanked():
    """Lines on yanked versions in Cargo.lock: cargo warns of them when it makes a package."""
    _, messages = cargo("package", "--locked", "--no-verify", "--allow-dirty")
    return [line.strip() for line in messages.splitlines() if "yanked" in line]


def library_crates():
    """The names of the crates that the library is built with."""
    command = ("tree", "--locked", "--no-default-features", "--edges", "normal", "--prefix", "none", "--format", "{p}")
    return {line.split()[0] for line in cargo(*command)[0].splitlines() if line}


def denied():
    """Lines on what cargo-deny finds; its own messages go to standard error."""
    if not shutil.which("cargo-deny"):
        return ["cargo-deny is missing: cargo install cargo-deny --locked --debug"]
    lines = []
    if subprocess.run(["cargo", "deny", "check", "licenses", "bans", "sources"], cwd=ROOT).returncode:
        lines.append("cargo deny: see above")
    advisories = subprocess.run(["cargo", "deny", "check", "advisories"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if "failed to fetch advisory database" in advisories.stderr:
        print("check_dependencies: advisories are not checked: GitHub cannot be reached", file=sys.stderr)
    elif advisories.returncode:
        lines.append(f"cargo deny: {advisories.stderr}")
    return lines


def main():
    """Checks all, and tells."""
    found = [*denied(), *too_new(), *yanked()]
    found += [f"the library alone needs {name}" for name in sorted(PROGRAM_CRATES & library_crates())]
    for line in found:
        print(f"check_dependencies: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
