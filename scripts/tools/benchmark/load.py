"""`scripts/load.py`: prior-embed serve under load."""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from ..built import BINARY, ROOT
from ..cache import cache_folder, exclusive
from .captions import captions
from .children import BenchError, child_environment
from .report import table
from .runs import PriorEmbed
from .shapes import ensure_model

OHA = "1.16.0"
CLIENTS = (1, 8, 64, 256)
PROMPTS = 2000
IDLE = 2000
BARS = {
    "karlo": {"rows/s of 64 clients over 1": 2.3, "rows/s of 64 clients over the command line": 0.9},
    "builtin": {"rows/s of 64 clients over the command line": 0.8},
}
"""What is to be reached at least; on every model at most `OVERHEAD_MS` a request and `IDLE_MB` for idle connections."""
OVERHEAD_MS, IDLE_MB = 1.0, 100.0


def say(message):
    """Tells what is under way."""
    print(f"load: {message}", file=sys.stderr, flush=True)


def oha():
    """The load generator, built if it is not there."""
    root = cache_folder() / f"oha-{OHA}"
    program = root / "bin" / "oha"
    root.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(root.with_name("oha.lock"), lambda: say("another run is building oha; waiting for it")):
        if not program.is_file():
            say(f"building oha {OHA} into {root}, once")
            command = ["cargo", "install", "oha", "--version", OHA, "--locked", "--quiet", "--root", root]
            if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode != 0:
                raise BenchError("oha could not be built")
    return program


def free_port():
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A server in a process of its own, ready to answer."""

    def __init__(self, name, command, port, seconds=600):
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([str(word) for word in command], **quiet, env=child_environment())
        end = time.monotonic() + seconds
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > end:
                raise BenchError(f"the server of {name} did not begin")
            time.sleep(0.05)

    def is_ready(self):
        """Whether it answers."""
        try:
            return urllib.request.urlopen(f"{self.url}/health", timeout=5).status == 200
        except OSError:
            return False

    def metrics(self):
        """The values of Prometheus' text, by name with labels."""
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=60).read().decode()
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def memory(self):
        """Resident bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def stop(self):
        """Ends it."""
        self.process.terminate()
        self.process.wait(60)


@contextlib.contextmanager
def ours(options, *more):
    """prior-embed serve without its cache, which prompts sent again would come from."""
    port = free_port()
    model = [] if options.model == "builtin" else ["--model", ensure_model(options.model)]
    command = [options.binary, "serve", *model, "--port", port, "--cache-mb", 0, "--threads", options.threads, *more]
    server = Server("prior-embed serve", command, port)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def fastapi(options):
    """A FastAPI server around diffusers."""
    port, packages = free_port(), cache_folder() / "fastapi"
    model = ROOT / "assets" / "emoji" if options.model == "builtin" else ensure_model(options.model)
    if not (packages / "uvicorn").is_dir():
        say(f"installing fastapi and uvicorn into {packages}, once")
        # The reference's own environment is without pip, and stays as it is.
        pip = [getattr(sys, "_base_executable", sys.executable), "-m", "pip", "install", "--quiet", "--target", packages]
        subprocess.run([*pip, "fastapi", "uvicorn"], check=True)
    command = [sys.executable, "-m", "tools.benchmark.fastapi_server", model, port, options.threads, packages]
    server = Server("FastAPI and diffusers", command, port)
    try:
        yield server
    finally:
        server.stop()


def bodies(options, folder):
    """A file with a request's body a line."""
    path = folder / "bodies.jsonl"
    lines = [{"prompts": [prompt], "seed": seed} for seed, prompt in enumerate(captions(PROMPTS))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def press(server, clients, options, path, requests=None):
    """`(rows a second, p50, p99)` of so many clients; seconds."""
    amount = ["-n", str(requests)] if requests else ["-z", f"{options.seconds}s", "--wait-ongoing-requests-after-deadline"]
    command = [oha(), "--no-tui", "--output-format", "json", "-c", clients, *amount, "-m", "POST", "-T", "application/json",
               "-H", "Accept: application/x-npy", "-Z", path, f"{server.url}/prior"]  # fmt: skip
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    codes = found["statusCodeDistribution"]
    if set(codes) != {"200"} or found["errorDistribution"]:
        raise BenchError(f"{server.name}, {clients} clients: {codes} {found['errorDistribution']}")
    seconds, latency = found["summary"]["total"], found["latencyPercentiles"]
    return codes["200"] / seconds, latency["p50"], latency["p99"]


def command_line(options):
    """Rows a second of one run of the program over many prompts, the loading of the model left out."""
    model = [] if options.model == "builtin" else ["--model", ensure_model(options.model)]
    count = {"builtin": PROMPTS, "tiny": PROMPTS}.get(options.model, 128)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in captions(count)), encoding="utf-8")
        command = [
            options.binary, *model, "-f", folder / "prompts.txt", "-o", folder / "e.npy", "--stats", folder / "stats.json",
            "--batch-size", 64, "--threads", options.threads, "--quiet",
        ]  # fmt: skip
        subprocess.run([str(word) for word in command], check=True, env=child_environment())
        seconds = json.loads((folder / "stats.json").read_text(encoding="utf-8"))["seconds"]
    # Not the sum of the parts: pipelines run side by side.
    return count / (seconds["total"] - seconds["load"])


def overhead(server, options, path):
    """Milliseconds of one client's request beyond the computation of its row, queue included."""
    total = lambda name: server.metrics().get(f"prior_embed_{name}", 0.0)
    before = total("compute_seconds_sum"), total("compute_seconds_count")
    rate, _, _ = press(server, 1, options, path)
    seconds, batches = total("compute_seconds_sum") - before[0], total("compute_seconds_count") - before[1]
    return 1000 * (1 / rate - seconds / batches)


def idle(server):
    """Megabytes that idle connections take."""
    host, port = server.url.removeprefix("http://").split(":")
    before = server.memory()
    open_ones = [socket.create_connection((host, int(port))) for _ in range(IDLE)]
    # Each has been served once, as a client's pool of connections would have been.
    for one in open_ones:
        one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        one.recv(4096)
    taken = server.memory() - before
    for one in open_ones:
        one.close()
    return taken / 1e6


def verdict(name, value, bound, at_most=False):
    """A line of the table of what is to be reached."""
    met = value <= bound if at_most else value >= bound
    return [name, f"{value:.2f}", f"{'at most' if at_most else 'at least'} {bound:g}", "yes" if met else "NO"], met


def measure(server, options, path, clients, title="", requests=None):
    """`(rows a second, line of the table)`."""
    say(f"{server.name}{title}, {clients} clients")
    rate, *latency = press(server, clients, options, path, requests)
    return rate, [f"{server.name}{title}", str(clients), f"{rate:.4g}", *(f"{1000 * time:.4g}" for time in latency)]


def report(options):
    """Measures all, prints the tables; whether everything was reached."""
    lines, rates = [], {}
    with tempfile.TemporaryDirectory() as folder:
        path = bodies(options, Path(folder))
        with ours(options) as server:
            # Loads the networks.
            press(server, 1, options, path, requests=2)
            for clients in options.clients:
                rates[clients], line = measure(server, options, path, clients)
                lines.append(line)
            say("overhead and idle connections")
            cost, taken = overhead(server, options, path), idle(server)
        with ours(options, "--max-batch-size", 1) as server:
            for clients in options.clients:
                lines.append(measure(server, options, path, clients, ", one row at a time")[1])
        if not options.no_fastapi:
            with fastapi(options) as server:
                for clients in (1, 8):
                    requests = options.reference_requests * clients
                    lines.append(measure(server, options, path, clients, requests=requests)[1])
        say("the command line")
        batches = command_line(options)
        lines.append(["prior-embed --prompts, batches of 64", "—", f"{batches:.4g}", "—", "—"])
    print(table(["server", "clients", "rows/s", "p50, ms", "p99, ms"], lines), "\n")
    found = {
        "rows/s of 64 clients over 1": rates.get(64, 0.0) / rates[1],
        "rows/s of 64 clients over the command line": rates.get(64, 0.0) / batches,
    }
    verdicts = [verdict(name, found[name], bound) for name, bound in BARS.get(options.model, {}).items()]
    verdicts.append(verdict("ms of HTTP, queue and JSON a request", cost, OVERHEAD_MS, at_most=True))
    verdicts.append(verdict(f"MB of {IDLE} idle connections", taken, IDLE_MB, at_most=True))
    print(table(["figure", "found", "asked for", "reached"], [line for line, _ in verdicts]))
    if options.json:
        figures = {"lines": lines, **found, "overhead_ms": cost, "idle_mb": taken}
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return all(met for _, met in verdicts)


class Mixed(threading.Thread):
    """A client that sends anything: short and long requests, bad ones, and some whose answer it does not wait for."""

    def __init__(self, url, seed, stop):
        super().__init__(daemon=True)
        self.host, port = url.removeprefix("http://").split(":")
        self.port, self.rng, self.stop, self.sent, self.wrong = int(port), random.Random(seed), stop, 0, []

    def run(self):
        """Until it is told to stop."""
        prompts = captions(PROMPTS)
        while not self.stop.is_set():
            kind = self.rng.random()
            body = {"prompts": self.rng.choices(prompts, k=64 if kind < 0.05 else 1), "seed": self.rng.randrange(2**32)}
            expected = {200, 429}
            if 0.05 <= kind < 0.15:
                body["steps"], expected = self.rng.choice([0, -1, 10**9, "many"]), {400, 413, 422, 429}
            try:
                self.send(json.dumps(body).encode(), expected, leaves=0.15 <= kind < 0.25)
            except OSError as error:
                self.wrong.append(str(error))
            self.sent += 1

    def send(self, body, expected, leaves):
        """One request on a connection of its own."""
        head = ("POST /prior HTTP/1.1", "Host: localhost", "Connection: close", "Content-Type: application/json",
                f"Content-Length: {len(body)}", "", "")  # fmt: skip
        with socket.create_connection((self.host, self.port), timeout=120) as connection:
            connection.sendall("\r\n".join(head).encode() + body)
            if leaves:
                return
            answer = b""
            while part := connection.recv(1 << 16):
                answer += part
        status = int(answer.split(b" ", 2)[1])
        if status not in expected:
            self.wrong.append(f"{status} to {body[:200]!r}: {answer[-200:]!r}")


def soak(options):
    """Keeps the server under mixed load; whether its memory stayed flat and all answers were as expected."""
    stop, samples = threading.Event(), []
    with ours(options, "--cache-mb", "16") as server:
        clients = [Mixed(server.url, seed, stop) for seed in range(32)]
        for client in clients:
            client.start()
        begin = time.monotonic()
        while (at := time.monotonic() - begin) < 60 * options.soak:
            time.sleep(min(30, 60 * options.soak / 10))
            samples.append((at, server.memory() / 1e6))
            say(f"{at / 60:.1f} min, {sum(client.sent for client in clients)} requests, {samples[-1][1]:.1f} MB")
        stop.set()
        for client in clients:
            client.join()
        wrong = [line for client in clients for line in client.wrong]
        connections = server.metrics()["prior_embed_connections"]
    third, mean = len(samples) // 3, lambda part: sum(memory for _, memory in part) / len(part)
    early, late = mean(samples[third : 2 * third]), mean(samples[2 * third :])
    sent = sum(client.sent for client in clients)
    print(f"{sent} requests in {options.soak:g} minutes, {len(wrong)} answered otherwise than expected")
    print(f"memory: {early:.1f} MB in the second third, {late:.1f} MB in the last; {connections:g} connections at the end")
    print("\n".join(wrong[:5]))
    return not wrong and late < 1.05 * early


def main(arguments):
    """Exit status 0 if all that is asked for was reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin", choices=["builtin", "karlo", "tiny"],
                        help="the one in the program, or a random one of this shape")  # fmt: skip
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--seconds", type=float, default=10, help="of load for each number of clients")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each server")
    parser.add_argument("--no-fastapi", action="store_true", help="without the server around diffusers")
    parser.add_argument("--reference-requests", type=int, default=2,
                        help="requests a client to the server around diffusers")  # fmt: skip
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="mixed load in place of the tables")
    parser.add_argument("--binary", type=Path, default=BINARY)
    parser.add_argument("--json", type=Path, help="where all figures go")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return 0 if (soak(options) if options.soak else report(options)) else 1
    except (BenchError, subprocess.CalledProcessError) as error:
        say(str(error))
        return 1
