#!/usr/bin/env python3
"""Runs the recipes of scripts/cluster: python3 scripts/check_cluster.py. Ends with 1 if one does not do what it says.

slurm.sbatch passes shellcheck and runs on a Slurm cluster of one node with daemons and a slurm.conf of its own: an array of
four shards with the built-in model, of which two are preempted and one comes to its time limit. kubernetes.yaml passes
Kubernetes' schemas, which refuse it with any field misspelt, and its container's command runs here as for each index of the
Job. The rows are those of a single run.

Needs Slurm and munge (Debian: apt-get install slurmctld slurmd slurm-client munge); --install installs them first, as root.
shellcheck and the schemas come from PyPI into a virtual environment in the project's cache.
"""

import argparse
import copy
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
from tools import environments  # noqa: E402
from tools.built import BINARY, SCRIPTS  # noqa: E402
from tools.problem import Problem  # noqa: E402

RECIPES = SCRIPTS / "cluster"
BATCH, MANIFEST = RECIPES / "slurm.sbatch", RECIPES / "kubernetes.yaml"
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "slurmstepd", "munged", "sbatch", "scancel", "scontrol", "sinfo")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
SHARDS = 4
# Of both recipes.
BLOCK = 64
ROWS = 30 * BLOCK + 7
# As many as make a block take a second.
STEPS = ("--steps", "60")
# backoffLimitPerIndex is on by default from here.
OLDEST_KUBERNETES = "1.29"
WORDS = "red blue old small two three apple cat house tree rain clock on under beside a the happy".split()

SLURM_CONF = """
ClusterName=check
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/socket
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
MpiDefault=none
# Without cgroups, which a container may not change.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=1,sched_interval=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000
PartitionName=low Nodes=ALL Default=YES PriorityTier=1
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


def say(message):
    """A line for the person at the terminal."""
    print(f"check_cluster: {message}", file=sys.stderr, flush=True)


def expect(condition, message):
    """Ends the check unless it is so."""
    if not condition:
        raise Problem(message)


def wait_for(condition, what, seconds=900):
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        expect(time.monotonic() < end, f"{what}: not so after {seconds} s")
        time.sleep(0.1)
    return found


class Place:
    """A folder with prompts, and the rows of a single run over them."""

    def __init__(self, folder, binary):
        folder.mkdir()
        self.folder, self.binary = folder, binary
        path = os.pathsep.join([str(binary.parent), os.environ.get("PATH", os.defpath)])
        self.environment = {**os.environ, "PATH": path}
        lines = (" ".join(WORDS[(row * step) % len(WORDS)] for step in (1, 5, 7, 11)) for row in range(ROWS))
        (folder / "captions.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def single(self, out, *options):
        """The output of one run over everything."""
        command = [self.binary, "-f", "captions.txt", "-o", out, "--batch-size", str(BLOCK), "--quiet", *options]
        subprocess.run(command, check=True, cwd=self.folder)
        return self.folder / out


def safe_rows(hidden):
    """Whether the run that works in this hidden folder has rows that are safe: its journal has more than a header."""
    try:
        return (hidden / "journal.jsonl").read_bytes().count(b"\n") > 1
    except OSError:
        return False


def check_script():
    """shellcheck has nothing to say, and does say something of a script with a mistake."""
    command = [Path(sys.executable).with_name("shellcheck"), "--shell", "bash", "-"]
    text = BATCH.read_text(encoding="utf-8")
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    expect(done.returncode == 0, f"shellcheck of {BATCH.name}:\n{done.stdout}{done.stderr}")
    spoilt = subprocess.run(command, input=text.replace('"$parts"', "$parts"), capture_output=True, text=True)
    expect(spoilt.returncode == 1 and "SC2086" in spoilt.stdout, "shellcheck misses an unquoted variable")
    print(f"{BATCH.name}: shellcheck has nothing to say")


def fields(value, path=()):
    """The paths of all fields of an object, but for those whose names are free."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if path[-1:] not in {("requests",), ("limits",), ("nodeSelector",)}:
                yield (*path, name)
            yield from fields(inner, (*path, name))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from fields(inner, (*path, place))


def misspelt(document, path):
    """A copy of a document with one field's name in the plural."""
    document = copy.deepcopy(document)
    inside = document
    for step in path[:-1]:
        inside = inside[step]
    inside[f"{path[-1]}s"] = inside.pop(path[-1])
    return document


def check_schemas(documents):
    """Kubernetes' schemas take the manifest, and refuse it with any field misspelt."""
    import kubernetes_validate

    newest = kubernetes_validate.latest_version()
    refused = 0
    for document in documents:
        for version in (OLDEST_KUBERNETES, newest):
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                place = ".".join(map(str, error.path))
                raise Problem(f"{MANIFEST.name}, Kubernetes {version}: {place}: {error.message}") from None
        for path in fields(document):
            try:
                kubernetes_validate.validate(misspelt(document, path), newest, strict=True)
            except (kubernetes_validate.ValidationError, KeyError):
                refused += 1
            else:
                raise Problem(f"a misspelt {'.'.join(map(str, path))} is not refused")
    versions = f"{OLDEST_KUBERNETES} and {newest}"
    print(f"{MANIFEST.name}: valid in Kubernetes {versions}; refused with any of {refused} fields misspelt")


def check_job(job):
    """What no schema checks: values, and what belongs together. The container, and the exit codes that end the Job."""
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    give_up, ignore = spec["podFailurePolicy"]["rules"]
    limits = container["resources"]["limits"]
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    # As Kubernetes' API checks them, and as the recipe means them.
    for what, found, wanted in (
        ("completionMode", spec["completionMode"], "Indexed"),
        ("restartPolicy beside a podFailurePolicy", pod["restartPolicy"], "Never"),
        ("podReplacementPolicy beside a podFailurePolicy", spec["podReplacementPolicy"], "Failed"),
        ("SHARDS", environment["SHARDS"], str(spec["completions"])),
        ("the action of exit codes", give_up["action"], "FailJob"),
        ("the operator of exit codes", give_up["onExitCodes"]["operator"], "In"),
        ("the container of exit codes", give_up["onExitCodes"]["containerName"], container["name"]),
        ("the action of disruptions", ignore["action"], "Ignore"),
        ("the condition", ignore["onPodConditions"], [{"type": "DisruptionTarget", "status": "True"}]),
        ("what is limited", sorted(limits), ["cpu", "memory"]),
        ("what is requested", container["resources"]["requests"], limits),
        ("the volumes", set(mounts), set(claims)),
        ("the working folder", container["workingDir"], mounts["data"]),
    ):
        expect(found == wanted, f"{MANIFEST.name}: {what} is {found!r}, not {wanted!r}")
    return container, give_up["onExitCodes"]["values"]


def container_process(container, index, place, **options):
    """The container's command, as Kubernetes starts it for an index."""
    variables = {"JOB_COMPLETION_INDEX": str(index)}
    for entry in container["env"]:
        variables[entry["name"]] = entry.get("value")
        if entry.get("valueFrom"):
            kind, resource = entry["valueFrom"]["resourceFieldRef"]["resource"].split(".")
            variables[entry["name"]] = container["resources"][kind][resource]
    # $(NAME) is a variable, $$ a $; what is not known stays as it is.
    expand = lambda found: "$" if found[0] == "$$" else variables.get(found[1], found[0])
    words = [re.sub(r"\$\$|\$\(([^)]*)\)", expand, word) for word in (*container["command"], *container["args"])]
    environment = {**place.environment, **variables}
    return subprocess.Popen(words, cwd=place.folder, env=environment, stderr=subprocess.PIPE, text=True, **options)


def check_pods(container, give_up, place):
    """The command of each index, one of them stopped and run again; a bad input."""
    import numpy

    # One core, so that a pod's blocks come one after the other.
    container = copy.deepcopy(container)
    container["resources"]["limits"]["cpu"] = "1"
    shards = int(next(entry["value"] for entry in container["env"] if entry["name"] == "SHARDS"))
    out = place.folder / "embs"
    for index in range(shards):
        if index == 1:
            process = container_process(container, index, place)
            wait_for(lambda: any(map(safe_rows, out.glob(".prior-embed*"))), "safe rows of a pod")
            process.terminate()
            said = process.communicate()[1]
            expect(process.returncode == 143, f"a pod that is stopped ends with {process.returncode}: {said}")
        process = container_process(container, index, place)
        said = process.communicate()[1]
        expect(process.returncode == 0, f"the pod of index {index} ends with {process.returncode}: {said}")
        if index == 1:
            expect("resuming after" in said, f"a pod that is started again begins again: {said}")
    expected = numpy.load(place.single("whole.npy"))
    of_shard = numpy.arange(ROWS) // BLOCK % shards
    found = [numpy.load(path) for path in sorted((out / "img_emb").glob("*.npy"))]
    expect(len(found) == shards, f"{len(found)} files of {shards} shards")
    for shard, rows in enumerate(found):
        same = numpy.array_equal(rows, expected[of_shard == shard])
        expect(same, f"the rows of shard {shard + 1} are not those of a single run")
    bad = Place(place.folder.parent / "bad", place.binary)
    (bad.folder / "captions.txt").write_bytes(b"\xff\xfe\xff")
    process = container_process(container, 0, bad)
    said = process.communicate()[1]
    expect(process.returncode in give_up, f"bad input ends with {process.returncode}, not one of {give_up}: {said}")
    rows = f"the command of {shards} pods, one of them stopped, gives the rows of a single run"
    print(f"{MANIFEST.name}: {rows}; bad input ends the Job")


class Slurm:
    """A cluster of one node of two cores, however many the machine has. Ends with its jobs."""

    def __init__(self, place):
        self.folder, self.home = place.folder, place.folder.parent / "slurm"
        self.environment = {**place.environment, "SLURM_CONF": str(self.home / "slurm.conf")}
        self.daemons = []

    def __enter__(self):
        try:
            self.start()
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind, *_):
        self.stop()
        if kind:
            self.show_logs()

    def start(self):
        """Starts the daemons."""
        self.home.mkdir()
        for name in ("state", "spool"):
            (self.home / name).mkdir()
        with socket.socket() as one, socket.socket() as other:
            for each in (one, other):
                each.bind(("127.0.0.1", 0))
            ports = [each.getsockname()[1] for each in (one, other)]
        host, user = socket.gethostname().split(".")[0], pwd.getpwuid(os.getuid()).pw_name
        text = SLURM_CONF.format(host=host, ports=ports, user=user, folder=self.home)
        (self.home / "slurm.conf").write_text(text, encoding="utf-8")
        (self.home / "key").touch(0o600)
        (self.home / "key").write_bytes(os.urandom(128))
        names = ("socket", "key-file", "pid-file", "log-file", "seed-file")
        files = [f"--{name}={self.home}/{name.removesuffix('-file')}" for name in names]
        # --force: what it asks of folders is meant for a service.
        self.daemon("munged", "--foreground", "--force", *files)
        wait_for((self.home / "socket").exists, "munged is ready", 30)
        self.daemon("slurmctld", "-D")
        self.daemon("slurmd", "-D")
        states = lambda: self.ask("sinfo", "--noheader", "--format=%T", may_fail=True)
        wait_for(lambda: states().startswith("idle"), "the node is idle", 120)

    def daemon(self, name, *options):
        """Starts one."""
        with (self.home / f"{name}.log").open("wb") as log:
            quiet = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self.daemons.append(subprocess.Popen([name, *options], env=self.environment, **quiet))

    def ask(self, *command, may_fail=False, **variables):
        """What a command of Slurm prints."""
        words, environment = [str(word) for word in command], {**self.environment, **variables}
        done = subprocess.run(words, env=environment, cwd=self.folder, capture_output=True, text=True)
        expect(may_fail or done.returncode == 0, f"{' '.join(words[:2])} failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def submit(self, *arguments, array=f"1-{SHARDS}"):
        """The number of an array job of the recipe, whose settings are made small enough for the node."""
        settings = ("--cpus-per-task=1", "--mem=500", "--time=30", f"--array={array}")
        return self.ask("sbatch", "--parsable", *settings, BATCH, *arguments, SHARDS=str(SHARDS))

    def then(self, job, command):
        """The number of a job that runs a command after another job has done well."""
        options = (f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes", "--mem=500", "--output=merge.log")
        return self.ask("sbatch", "--parsable", *options, "--wrap", command)

    def tasks(self, job):
        """The fields of a job's tasks that have begun, by their numbers; 0 is a job without an array."""
        lines = self.ask("scontrol", "--oneliner", "show", "job", job).splitlines()
        records = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines]
        return {int(number): record for record in records if (number := record.get("ArrayTaskId", "0")).isdecimal()}

    def task(self, job, number, field):
        """A field of a task, or None before it begins."""
        return self.tasks(job).get(number, {}).get(field)

    def wait_for_requeue(self, job, number):
        """Waits until a task is pending again, and lets it begin at once: Slurm gives it two minutes."""
        requeued = lambda: (self.task(job, number, "Restarts"), self.task(job, number, "JobState")) == ("1", "PENDING")
        wait_for(requeued, f"task {number} is requeued")
        self.ask("scontrol", "update", f"jobid={job}_{number}", "StartTime=now")

    def wait_for_end(self, job):
        """The state and exit code of each task."""

        def ends():
            records = self.tasks(job)
            is_over = all(record["JobState"] in OVER for record in records.values())
            return is_over and {number: (record["JobState"], record["ExitCode"]) for number, record in records.items()}

        return wait_for(ends, f"job {job} is over")

    def stop(self):
        """Ends jobs and daemons, and what is left of them."""
        if len(self.daemons) == 3:
            self.ask("scancel", "--full", "--signal=KILL", f"--user={os.getuid()}", may_fail=True)
            self.ask("scancel", f"--user={os.getuid()}", may_fail=True)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self.left():
            os.kill(process, signal.SIGKILL)

    def show_logs(self):
        """The last lines of daemons and jobs."""
        for path in [*sorted(self.home.glob("*.log")), *sorted(self.folder.glob("*.log"))]:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
            print(f"== {path.name}", *lines, sep="\n", file=sys.stderr)

    def left(self):
        """Processes of this cluster: all have the name of its configuration from its daemons."""
        mark = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found


def hidden(folder, number):
    """Where the rows of a task gather."""
    return folder / "parts" / f".{number}.npy.prior-embed"


def check_array(slurm, place):
    """An array of shards, two of them preempted and one at its time limit, and the merge that depends on it."""
    whole = place.single("whole-slurm.npy", *STEPS).read_bytes()
    job = slurm.submit("captions.txt", "parts", *STEPS)
    merge = slurm.then(job, "prior-embed merge parts/*.npy --out embs.npy")
    for number in (1, 2):
        wait_for(lambda: safe_rows(hidden(place.folder, number)), f"safe rows of task {number}")
    slurm.ask("sbatch", "--partition=high", "--cpus-per-task=2", "--mem=500", "--output=high.log", "--wrap", "true")
    for number in (1, 2):
        slurm.wait_for_requeue(job, number)
    wait_for(lambda: safe_rows(hidden(place.folder, 3)), "safe rows of task 3")
    # What --signal=B:USR1@120 sends two minutes before the time limit, to the batch shell alone.
    slurm.ask("scancel", "--batch", "--signal=USR1", f"{job}_3")
    slurm.wait_for_requeue(job, 3)
    ends = slurm.wait_for_end(merge)
    expect(ends == {0: ("COMPLETED", "0:0")}, f"the merge ends with {ends}; {(place.folder / 'merge.log').read_text()}")
    expect((place.folder / "embs.npy").read_bytes() == whole, "the merged shards have other bytes than a single run")
    for number in range(1, SHARDS + 1):
        log = (place.folder / f"prior-embed-{job}_{number}.log").read_text(encoding="utf-8")
        expect(("resuming after" in log) == (number < 4), f"task {number}: {log}")
    print(f"{BATCH.name}: {SHARDS} shards, two preempted, one at its time limit, merge into the bytes of a single run")
    return whole


def check_again(slurm, place, whole):
    """The array sent again: as a whole, which computes nothing, and two of its shards."""
    parts = [place.folder / "parts" / f"{number}.npy" for number in range(1, SHARDS + 1)]
    times = lambda: [path.stat().st_mtime_ns for path in parts]
    before = times()
    ends = slurm.wait_for_end(slurm.submit("captions.txt", "parts", *STEPS))
    expect(set(ends.values()) == {("COMPLETED", "0:0")}, f"the array sent again ends with {ends}")
    expect(times() == before, "the array sent again writes again")
    for path in (place.folder / "parts").glob("[24].npy*"):
        path.unlink()
    job = slurm.submit("captions.txt", "parts", *STEPS, array="2,4")
    ends = slurm.wait_for_end(slurm.then(job, "prior-embed merge parts/*.npy --out again.npy"))
    expect(ends == {0: ("COMPLETED", "0:0")}, f"the merge of two new shards ends with {ends}")
    expect((place.folder / "again.npy").read_bytes() == whole, "two shards sent again have other bytes")
    print(f"{BATCH.name}: sent again as a whole it computes nothing; two shards alone are the same shards again")


def check_refusals(slurm, place):
    """Bad input ends a task for good, and its merge never begins."""
    job = slurm.submit("nowhere.txt", "refused")
    merge = slurm.then(job, "prior-embed merge refused/*.npy --out refused.npy")
    ends = slurm.wait_for_end(job)
    expect(set(ends.values()) == {("FAILED", "2:0")}, f"tasks without prompts end with {ends}")
    ends = slurm.wait_for_end(merge)
    expect(ends[0][0] == "CANCELLED", f"the merge of failed tasks ends with {ends}")
    print(f"{BATCH.name}: bad input fails with 2 and is not sent again; the merge is cancelled")


def check_slurm(place):
    """The batch script on a cluster."""
    with Slurm(place) as slurm:
        slurm.ask("sbatch", "--test-only", "--cpus-per-task=1", "--mem=500", BATCH, "captions.txt", "parts")
        whole = check_array(slurm, place)
        check_again(slurm, place, whole)
        check_refusals(slurm, place)
    expect(not slurm.left(), "processes of Slurm are left")


def missing_programs():
    """What of Slurm is not on the PATH."""
    return [name for name in PROGRAMS if not shutil.which(name)]


def install():
    """Installs Debian's packages."""
    expect(os.geteuid() == 0, "--install needs root")
    for command in (["update", "-q"], ["install", "-qy", "--no-install-recommends", *PACKAGES]):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(["apt-get", *command], env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        expect(done.returncode == 0, f"apt-get {command[0]} failed")


def check(binary, without_slurm):
    """Everything; runs inside the environment."""
    import yaml

    documents = list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))
    check_script()
    check_schemas(documents)
    container, give_up = check_job(documents[-1])
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
        place = Place(Path(folder) / "data", binary)
        check_pods(container, give_up, place)
        skipped = ["a Kubernetes cluster", "the image, whose base comes from a registry of images"]
        if without_slurm:
            skipped.insert(0, "Slurm")
        else:
            check_slurm(place)
    print(f"not checked: {', '.join(skipped)}")


def main():
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=BINARY)
    parser.add_argument("--install", action="store_true", help="install Slurm with apt-get first, if it is missing")
    parser.add_argument("--without-slurm", action="store_true", help="leave out what needs Slurm")
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Daemons are there, and not everybody has it on the PATH.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    try:
        if options.check:
            check(options.binary.resolve(strict=True), options.without_slurm)
            return 0
        if options.install and missing_programs():
            install()
        missing = [] if options.without_slurm else missing_programs()
        packages = " ".join(PACKAGES)
        expect(not missing, f"{', '.join(missing)} missing; apt-get install {packages}, or --install, or --without-slurm")
        python = environments.cluster().ensure(say)
    except (Problem, OSError, subprocess.CalledProcessError) as problem:
        say(str(problem))
        return 1
    os.execv(python, [str(python), *sys.argv, "--check"])


if __name__ == "__main__":
    sys.exit(main())
