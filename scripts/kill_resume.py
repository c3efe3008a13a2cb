"""Kills runs at random moments, resumes them, and compares bytes: python3 scripts/kill_resume.py --kills 50.

For each format, a job is killed with SIGKILL again and again, resumed each time, and must end with the bytes of an
undisturbed run. Prints a table with the most disk that was found in use after a kill, as a multiple of the output; exits
with 1 if a byte differs or a resumed run fails.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.built import BINARY

FILES = ("npy", "npz", "safetensors", "jsonl", "parquet", "ipadpt")
FORMS = {form: ("--out", f"embs.{form}") for form in FILES} | {"folder": ("--out-dir", "embs")}


def disk(paths):
    """Bytes on disk below some paths, however they are written."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    return sum(file.stat().st_blocks * 512 for file in files if file.is_file())


def contents(path):
    """The bytes of a file, or of all files in a folder by name, hidden ones included."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


class Job:
    """The same prompts and settings, in one format."""

    def __init__(self, arguments, folder, form):
        self.option, name = FORMS[form]
        self.target, self.whole = folder / name, folder / f"whole-{name}"
        self.command = [
            arguments.binary, "--prompts", folder / "prompts.jsonl", "--steps", arguments.steps, "--batch-size", "16",
            "--rows-per-file", max(arguments.rows // 3, 1), "--quiet",
        ]  # fmt: skip

    def start(self, target, *options):
        """Starts a run that writes to `target`."""
        command = [*self.command, self.option, target, *options]
        return subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)

    def finish(self, target, *options):
        """Runs to the end, and gives the seconds it took."""
        begin = time.monotonic()
        process = self.start(target, *options)
        _, message = process.communicate()
        if process.returncode:
            raise SystemExit(f"kill_resume: a run ended with {process.returncode}: {message.strip()}")
        return time.monotonic() - begin

    def is_done(self):
        """Whether the output is in its place, and nothing is left beside it."""
        return self.target.exists() and not any(folder.exists() for folder in self.hidden())

    def hidden(self):
        """Where rows are gathered, of a folder and of a file."""
        return self.target / ".prior-embed", self.target.parent / f".{self.target.name}.prior-embed"

    def disk(self):
        """Bytes on disk of the target and the hidden folder beside it."""
        return disk([self.target, self.hidden()[1]])


def torture(job, kills, random_number):
    """Kills and resumes; returns seconds undisturbed, kills, completed jobs, disk over output, and differences."""
    seconds = job.finish(job.whole)
    expected = contents(job.whole)
    done = finished = different = peak = 0
    while done < kills:
        process = job.start(job.target, "--resume")
        # Some moments are before the first row, some after the last.
        time.sleep(random_number.uniform(0, 0.6 * seconds))
        process.kill()
        _, message = process.communicate()
        peak = max(peak, job.disk())
        if process.returncode == -9:
            done += 1
        elif process.returncode:
            raise SystemExit(f"kill_resume: a resumed run ended with {process.returncode}: {message.strip()}")
        if job.is_done():
            finished += 1
            different += contents(job.target) != expected
            remove(job.target)
    job.finish(job.target, "--resume")
    finished += 1
    different += contents(job.target) != expected
    return seconds, done, finished, peak / disk([job.whole]), different


def remove(path):
    """Removes a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_prompts(path, rows, random_number):
    """Prompts of many lengths, some with options of their own."""
    words = "red blue old small two three apple cat house tree rain clock on under beside a the happy".split()
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            prompt = " ".join(random_number.choices(words, k=random_number.randint(1, 20)))
            more = ', "negative_prompt": "rain"' if row % 7 == 0 else ""
            file.write(f'{{"prompt": "{prompt}", "id": {row}{more}}}\n')


def main():
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=BINARY)
    parser.add_argument("--kills", type=int, default=50, help="kills for each format")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    arguments = parser.parse_args()
    print("| format | seconds undisturbed | kills | times completed | disk / output | different |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    wrong = 0
    for form in arguments.forms:
        random_number = random.Random(f"{arguments.seed} {form}")
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            write_prompts(folder / "prompts.jsonl", arguments.rows, random_number)
            job = Job(arguments, folder, form)
            seconds, kills, finished, peak, different = torture(job, arguments.kills, random_number)
        print(f"| {form} | {seconds:.1f} | {kills} | {finished} | {peak:.2f} | {different} |", flush=True)
        wrong += different
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
