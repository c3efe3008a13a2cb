"""Times prior-embed and diffusers on the same random model.

Models are made once and kept in the cache (4.6 GB for karlo). Close other programs first. Ends with 1 if embeddings
differ or a run fails. Arguments after `--` go to prior-embed as they are.
"""

import argparse
import json
import os
from pathlib import Path

from ..built import BINARY
from ..command_line import number, parse_with_extra
from . import machine
from .children import BenchError, exit_status
from .floor import best_of, probe, step_weights
from .report import agreement_table, floor_entries, floor_table, machine_line, main_table, quietness
from .rows import ROWS, Bench
from .shapes import ONE_STEP, SHAPES, ensure_model


def row_names(text):
    """The rows of a comma-separated list."""
    names = [name for name in text.split(",") if name]
    unknown = set(names) - {row.name for row in ROWS}
    if unknown or not names:
        known = ", ".join(row.name for row in ROWS)
        raise argparse.ArgumentTypeError(f"no such row: {', '.join(sorted(unknown))}; there are {known}")
    return names


def parse(program, arguments):
    """The command line."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = machine.usable_cores()
    parser.add_argument("--shape", choices=[name for name in SHAPES if name not in ONE_STEP.values()], default="karlo", help="size of the model (default karlo)")
    parser.add_argument("--rows", type=row_names, help="some rows only: " + ",".join(row.name for row in ROWS))
    parser.add_argument("--quick", action="store_true", help="no 64 prompts, no repeats")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything measured, for programs")
    parser.add_argument("--binary", type=Path, default=BINARY, help="default: what cargo build --release made")
    parser.add_argument("--threads", type=number(1, cores), default=cores, help="of both programs (default: all cores)")
    parser.add_argument("--steps", type=number(2), default=25, help="denoising steps (default 25)")
    # With several prompts diffusers would need an hour; its steps all take the same time.
    parser.add_argument(
        "--reference-prompts", type=number(1, 64), default=8, help="diffusers' batch in rows of several (default 8)"
    )
    parser.add_argument(
        "--reference-steps", type=number(2), default=3, help="diffusers' steps in these rows, scaled (default 3)"
    )
    options = parse_with_extra(parser, arguments)
    # Found now and not after a quarter of an hour.
    if options.json and not options.json.resolve().parent.is_dir():
        parser.error(f"--json {options.json}: its folder is not there")
    options.repeats = 1 if options.quick else 3
    return options


def chosen_rows(options):
    """The rows asked for, in the table's order."""
    rows = [row for row in ROWS if row.kind != "one-step" or options.shape in ONE_STEP]
    if options.rows:
        return [row for row in rows if row.name in options.rows]
    return [row for row in rows if row.prompts < 64 or not options.quick]


def settings(bench):
    """What a reader has to know to measure the same again; no paths."""
    names = ("shape", "threads", "steps", "repeats", "reference_prompts", "reference_steps", "extra")
    versions = next((run.details["versions"] for run in bench.done.values() if "versions" in run.details), {})
    return {name: getattr(bench.options, name) for name in names} | {
        "versions": versions | {"binary": bench.ours.version}
    }


def write_json(path, value):
    """A report that appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise BenchError(f"--json {path}: {error.strerror}") from error


def report(bench, about, results, probed):
    """All that was measured, for JSON."""
    rows = [
        {
            **vars(result.row),
            "diffusers": result.diffusers,
            "prior_embed": result.prior_embed,
            "ratio": result.ratio,
            "to_weights": result.to_weights,
            "diffusers_to_weights": result.theirs_to_weights,
            "reached": result.verdict(),
            "note": result.note,
        }
        for result in results
    ]
    return {
        "machine": about,
        "settings": settings(bench),
        "rows": rows,
        "agreement": bench.agreements(),
        "probes": {name: probed[name] for name in ("bandwidth", "gemm")},
        "floor": floor_entries(bench, step_weights(bench.model), probed),
        "runs": [run.summary() for run in bench.done.values()],
    }


def print_tables(bench, found, results, probed):
    """The report for people."""
    versions = found["settings"]["versions"]
    against = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "binary")
    print(f"\n## {found['settings']['shape']}: {versions['binary']} against {against}\n")
    print(main_table(results))
    print("\n" + quietness(bench.done.values()))
    print("\n## Where the time goes\n")
    print(floor_table(found["floor"], probed))
    print("\n## Agreement\n")
    print(agreement_table(found["agreement"]))


def run(options):
    """Measures and reports; whether all embeddings agree."""
    about = machine.describe()
    print(machine_line(about, options.threads), flush=True)
    bench = Bench(ensure_model(options.shape), options)
    probes = [probe(bench.model, bench.prompts, options.threads)]
    bench.warm_up()
    results = [bench.measure(row) for row in chosen_rows(options)]
    # Before and after, so that a neighbour's work at one time does not raise the floor of all.
    probes.append(probe(bench.model, bench.prompts, options.threads))
    machine_best = best_of(probes)
    found = report(bench, about, results, machine_best)
    print_tables(bench, found, results, machine_best)
    if options.json:
        write_json(options.json, found)
    return all(entry["agreed"] for entry in found["agreement"])


def main(program, arguments):
    """Exit status 0 if both programs ran and agree."""
    return exit_status(lambda: run(parse(program, arguments)))
