"""Checks the dependencies: python3 scripts/check_dependencies.py. Ends with 1 if one is not as it should be.

Licences, banned crates, registries and wildcard versions as in deny.toml; a rust-version no newer than ours; no yanked
version; and none of the program's crates in the library alone (`--no-default-features`). Where cargo-deny is installed it
runs too, which also knows the advisories. CI does not install it: that takes more processor time than all of our code.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib

from tools.built import ROOT

# What the library must do without.
PROGRAM_CRATES = {"clap", "hf-hub", "indicatif", "parquet", "ureq"}


def cargo(*arguments):
    """What a cargo command prints; ends the script if it fails."""
    result = subprocess.run(["cargo", *arguments], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"check_dependencies: cargo {arguments[0]} failed: {result.stderr.strip()}")
    return result.stdout, result.stderr


def is_allowed(expression, allowed):
    """Whether an SPDX expression can be met with these licences. `/` is an old form of OR."""
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))

    def alternatives():
        met = conjunction()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            met = conjunction() or met
        return met

    def conjunction():
        met = licence()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            met = licence() and met
        return met

    def licence():
        name = tokens.pop(0)
        if name == "(":
            met = alternatives()
            tokens.pop(0)
            return met
        if tokens[:1] == ["WITH"]:
            name = f"{name} WITH {tokens[1]}"
            del tokens[:2]
        return name in allowed

    return alternatives()


def version(text):
    """`1.89` as numbers."""
    return tuple(int(part) for part in text.split("."))


def problems(packages, rules):
    """A line for each dependency that breaks a rule."""
    own = next(package for package in packages if package["source"] is None)
    exceptions = {entry["crate"]: set(entry["allow"]) for entry in rules["licenses"]["exceptions"]}
    registries = {f"registry+{url}" for url in rules["sources"]["allow-registry"]}
    for package in packages:
        if package is own:
            continue
        name = f"{package['name']} {package['version']}"
        allowed = set(rules["licenses"]["allow"]) | exceptions.get(package["name"], set())
        if not is_allowed(package["license"] or "none", allowed):
            yield f"{name}: its licence is {package['license']}"
        if package["source"] not in registries:
            yield f"{name}: comes from {package['source']}"
        if package["name"] in rules["bans"]["deny"]:
            yield f"{name}: is banned"
        if package["rust_version"] and version(package["rust_version"]) > version(own["rust_version"]):
            yield f"{name}: needs Rust {package['rust_version']}, and we promise {own['rust_version']}"
    for dependency in own["dependencies"]:
        if dependency["req"] == "*":
            yield f"{dependency['name']}: any version would do"
    if not own["rust_version"]:
        yield "Cargo.toml has no rust-version"


def yanked():
    """Lines on yanked versions in Cargo.lock: cargo warns of them when it makes a package."""
    _, messages = cargo("package", "--locked", "--no-verify", "--allow-dirty")
    return [line.strip() for line in messages.splitlines() if "yanked" in line]


def library_crates():
    """The names of the crates that the library is built with."""
    command = ("tree", "--locked", "--no-default-features", "--edges", "normal", "--prefix", "none", "--format", "{p}")
    return {line.split()[0] for line in cargo(*command)[0].splitlines() if line}


def main():
    """Checks all, and tells."""
    rules = tomllib.loads((ROOT / "deny.toml").read_text(encoding="utf-8"))
    packages = json.loads(cargo("metadata", "--format-version", "1", "--locked")[0])["packages"]
    found = [*problems(packages, rules), *yanked()]
    found += [f"{name}: the library alone needs it" for name in sorted(PROGRAM_CRATES & library_crates())]
    if shutil.which("cargo-deny"):
        if subprocess.run(["cargo", "deny", "check"], cwd=ROOT).returncode:
            found.append("cargo deny check failed")
    for line in found:
        print(f"check_dependencies: {line}", file=sys.stderr)
    print(f"{len(packages) - 1} dependencies, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
