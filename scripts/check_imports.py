"""Checks that no files of src use each other, and none one of a room above: python3 scripts/check_imports.py. Ends with 1 if so.

The rooms of src and their order are those that CONTRIBUTING.md names. What tests use does not count. A name that a
`mod.rs` passes on is followed to its file.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"

# From top to bottom; a room uses those below it. Rooms that are not named are leaves, below all of these.
ROOMS = (
    ("cli", "prior"), ("serve",), ("job",), ("rows", "output"), ("convert",), ("hub",), ("pipeline",), ("tokenizer", "images"),
    ("diffusion",), ("nn",), ("weights",), ("kernels",),
)  # fmt: skip
LEVELS = {name: level for level, names in enumerate(ROOMS) for name in names}
# The library's face names what is in all rooms.
ABOVE_ALL = (("lib",), ("main",))

Module = tuple[str, ...]


def modules():
    """The file of each module, but for those of tests."""
    found = {}
    for path in sorted(SRC.rglob("*.rs")):
        module = path.relative_to(SRC).with_suffix("").parts
        if "tests" not in module and module not in ABOVE_ALL:
            found[module[:-1] if module[-1] == "mod" else module] = path
    return found


def without_tests(text):
    """The source without comments, and without what only a test build has."""
    text = re.sub(r"//[^\n]*", "", text)
    kept, rest = [], text
    while match := re.search(r"#\[cfg\((?:test|all\(test\b[^\]]*)\)\]\s*", rest):
        kept.append(rest[: match.start()])
        rest = rest[match.end() :]
        indentation = re.search(r"[^\n]*$", kept[-1]).group()
        # rustfmt ends a block where it begins.
        end = rf"^{indentation}\}};?\n" if re.match(r"[^;{]*\{\n", rest) else ";"
        end = re.search(end, rest, re.MULTILINE)
        rest = rest[end.end() :] if end else ""
    return "".join(kept) + rest


def paths(tree):
    """The paths of a `use`: `a::{b, c::d}` is `a::b` and `a::c::d`."""
    head, brace, inner = tree.strip().partition("{")
    if not brace:
        yield re.sub(r"\s+as\s+\w+$", "", head).strip()
        return
    depth, part = 0, ""
    for character in inner.rstrip().removesuffix("}") + ",":
        if character == "," and depth == 0:
            if part.strip():
                yield from (head + path for path in paths(part))
            part = ""
        else:
            depth += {"{": 1, "}": -1}.get(character, 0)
            part += character


class Imports:
    """What each module uses."""

    def __init__(self):
        self.modules = modules()
        # Whether it is passed on, and the path from the root.
        self.uses = {module: list(self.read(module, path)) for module, path in self.modules.items()}

    def read(self, module, path):
        """The paths that a module names of this crate."""
        text = without_tests(path.read_text(encoding="utf-8"))
        use = re.compile(r"^\s*(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);", re.MULTILINE)
        named = [(bool(match.group(1)), name) for match in use.finditer(text) for name in paths(match.group(2))]
        # Beside those of `use`, what is written out where it is needed.
        named += [(False, name) for name in re.findall(r"(?<!in )\b(?:crate|super)(?:::\w+)+", use.sub("", text))]
        for is_passed_on, name in named:
            parts, place = name.split("::"), None
            if parts[0] == "crate":
                place, parts = (), parts[1:]
            elif parts[0] in ("self", "super"):
                place = module
                while parts and parts[0] in ("self", "super"):
                    place, parts = place[:-1] if parts[0] == "super" else place, parts[1:]
            elif (*module, parts[0]) in self.modules:
                place = module
            if place is not None:
                yield is_passed_on, (*place, *(part for part in parts if part != "self"))

    def file_of(self, path, seen=()):
        """The module whose file has what a path names."""
        length = next(length for length in range(len(path), -1, -1) if path[:length] in self.modules or length == 0)
        module, rest = path[:length], path[length:]
        if rest and path not in seen:
            for is_passed_on, target in self.uses.get(module, ()):
                if is_passed_on and target and target[-1] == rest[0]:
                    return self.file_of((*target, *rest[1:]), (*seen, path))
        return module

    def graph(self):
        """The other files that each file uses."""
        graph = {}
        for module, uses in self.uses.items():
            found = {self.file_of(path) for _, path in uses}
            graph[module] = sorted(found - {module, ()})
        return graph


def circle(graph):
    """Modules of which each uses the next and the last the first, if there are any."""
    done, way = set(), []

    def visit(module):
        if module in way:
            return way[way.index(module) :]
        if module in done:
            return None
        way.append(module)
        found = next((found for other in graph.get(module, ()) if (found := visit(other))), None)
        way.pop()
        done.add(module)
        return found

    return next((found for module in graph if (found := visit(module))), None)


def level(module):
    """How far down its room is."""
    return LEVELS.get(module[0], len(ROOMS))


def main():
    """Checks, and prints what is wrong."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    imports = Imports()
    graph = imports.graph()

    def name(module):
        return str(imports.modules[module].relative_to(ROOT))

    wrong = [
        f"{name(module)} uses {name(other)}, which is in a room above"
        for module, others in graph.items()
        for other in others
        if level(other) < level(module)
    ]
    if found := circle(graph):
        wrong.append("a circle: " + " uses ".join(name(module) for module in [*found, found[0]]))
    if wrong:
        sys.exit("".join(f"check_imports: {line}\n" for line in wrong).rstrip())
    print(f"{len(graph)} files, {sum(map(len, graph.values()))} imports, no circle")


if __name__ == "__main__":
    main()
