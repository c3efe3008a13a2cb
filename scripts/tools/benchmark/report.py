"""The figures as Markdown."""

from .floor import floor
from .rows import TOLERANCE, plural

# Cores that others may take while something is measured: what counting in hundredths of a second can get wrong.
QUIET = 0.25


def table(head, rows):
    """A Markdown table; all columns but the first are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(value, unit=""):
    """Three digits, or a dash for what was not measured."""
    if value is None:
        return "—"
    digits = f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
    return digits + unit


def machine_line(machine, threads):
    """The machine on one line."""
    isa = ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in machine["isa"].items())
    memory = machine["memory_bytes"] / 2**30
    return (
        f"{machine['cpu']}, {plural(machine['cores'], 'core')}, {memory:.1f} GiB; {isa}; {machine['system']}; "
        f"{plural(threads, 'thread')}"
    )


def target(row, value):
    """A target as the table gives it."""
    if value is None:
        return "—"
    if row.kind in ("memory", "best-of"):
        return f"≤ {value:g}x" + (" weights" if row.kind == "memory" else "")
    return f"{value:g}x"


def result_cells(result, mark):
    """One line of the main table."""
    row = result.row
    if row.kind == "memory":
        sides = [None if value is None else value / 2**30 for value in (result.diffusers, result.prior_embed)]
        unit = " GiB"
    else:
        sides, unit = [result.diffusers, result.prior_embed], " s"
    theirs, ours = (figure(side, "" if side is None else unit) for side in sides)
    if result.to_weights is not None:
        theirs += f" ({result.theirs_to_weights:.2f}x weights)"
        ours += f" ({result.to_weights:.2f}x weights)"
    ratio = figure(result.ratio, "x" if result.ratio else "")
    targets = [target(row, row.at_least), target(row, row.aim)]
    return [row.title + mark, theirs, ours, ratio, *targets, result.verdict()]


def main_table(results):
    """Both programs side by side, with notes on how it was measured."""
    notes, rows = [], []
    for result in results:
        mark = ""
        if result.note:
            if result.note not in notes:
                notes.append(result.note)
            mark = f" [{notes.index(result.note) + 1}]"
        rows.append(result_cells(result, mark))
    head = ["measurement", "diffusers", "prior-embed", "ratio", "at least", "aim", "reached"]
    lines = [table(head, rows), *(f"[{index}] {note}." for index, note in enumerate(notes, 1))]
    return "\n\n".join(lines)


def quietness(runs):
    """Whether other programs disturbed the runs; threads that wait for each other lose far more than their share."""
    shares = [run.details["other_cores"] for run in runs if run.details.get("other_cores") is not None]
    if not shares:
        return "How busy the machine was otherwise is not known here."
    if max(shares) <= QUIET:
        return f"Other programs took {max(shares):.2f} cores at most while something was measured."
    disturbed = sum(share > QUIET for share in shares)
    return (
        f"**The machine was busy: other programs took up to {max(shares):.2f} cores, and more than {QUIET:g} during "
        f"{disturbed} of {len(shares)} runs. These figures do not count.**"
    )


def agreement_table(agreements):
    """How far the embeddings agree."""
    rows = [
        [
            entry["prior_embed"],
            entry["diffusers"],
            str(entry["steps"]),
            str(entry["rows"]),
            f"{entry['relative_error']:.1e}",
            f"{entry['mean_cosine']:.6f}",
            f"{entry['min_cosine']:.6f}",
            "yes" if entry["agreed"] else "NO",
        ]
        for entry in agreements
    ]
    head = ["prior-embed", "diffusers", "steps", "rows compared", "error", "mean cosine", "least", "agreed"]
    return table(head, rows) + (
        f"\n\nError: the largest difference over the largest value; f32 has to stay within {TOLERANCE:g}."
    )


def floor_entries(bench, weights, machine):
    """Every run of prior-embed with all steps, against its floor."""
    entries = []
    for run in bench.done.values():
        if run.program != bench.ours.name or run.steps != bench.options.steps or not run.seconds:
            continue
        least = floor(weights, run.dtype, machine["tokens"][: run.prompts], run.steps, machine)
        if least:
            entries.append(
                {"dtype": run.dtype, "prompts": run.prompts, **vars(least), "measured": run.seconds["prior"]}
            )
    return entries


def floor_table(entries, machine):
    """Where the time goes."""
    rows = [
        [
            f"{plural(entry['prompts'], 'prompt')}, {entry['dtype']}",
            figure(entry["passes"] / entry["prompts"]),
            figure(entry["step_bytes"] / 1e9, " GB"),
            *(figure(entry[name] / entry["prompts"], " s") for name in ("reading", "gemm", "least", "measured")),
            figure(entry["measured"] / entry["least"], "x"),
        ]
        for entry in entries
    ]
    head = ["run", "token passes", "weights a step", "reading", "GEMM", "floor", "measured", "measured / floor"]
    rates = ", ".join(f"{dtype} {rate / 1e9:.0f} G/s" for dtype, rate in machine["gemm"].items() if rate is not None)
    return table(head, rows) + (
        "\n\nToken passes and seconds are a prompt's share of its run. The floor is, phase by phase, the larger of "
        f"reading the weights once and of the arithmetic. Measured here: reading "
        f"{machine['bandwidth'] / 1e9:.1f} GB/s; GEMM operations {rates or 'not known'}."
    )
