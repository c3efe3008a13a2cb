"""One process of the program that keeps a model loaded: rows go in as JSON lines, embeddings come out as base64.

Rows are answered in the order in which they were sent, so each has a ticket in a queue, and any number of threads may
send rows and wait for theirs. Two threads of this module's read what the process writes, so that it never waits for a
reader.

The process ends with its standard input: also when this one is killed. It is in a session of its own, so that Ctrl-C in
a terminal reaches Python alone, which then ends it.
"""

from __future__ import annotations

import binascii
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from typing import Any

from . import _program
from ._errors import PriorError, PriorInputError
from ._libtorch import Unavailable

logger = logging.getLogger("prior_embed")

CHUNK = 1 << 18
PATIENCE = 5.0  # seconds that a process has to end when it is asked to


class Ticket:
    """A row that was sent: its answer, once that is there."""

    __slots__ = ("answer", "error")

    def __init__(self) -> None:
        self.answer: dict[str, Any] | None = None
        self.error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        """Whether there is an answer, or never will be."""
        return self.answer is not None or self.error is not None


def start(arguments: list[str], folder: str, stdin: int, stderr: Any = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """Start the program in a folder, with pipes."""
    try:
        path, environment = _program.command()
        # Without buffers: there is nothing to flush where this is forgotten, and no lock in closing.
        return subprocess.Popen(
            [path, *arguments],
            env=environment,
            cwd=folder,
            bufsize=0,
            start_new_session=True,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    except Unavailable as error:
        raise PriorError(str(error)) from None
    except OSError as error:
        raise PriorError(f"{error.filename or 'the program'} cannot be run ({error.strerror})") from None


def run(arguments: list[str], folder: str) -> bytes:
    """What the program prints on standard output."""
    with start(arguments, folder, subprocess.DEVNULL) as child:
        try:
            out, err = child.communicate()
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0:
        raise failure(child.returncode, err.decode(errors="replace").strip().rpartition("\n")[2])
    return out


def failure(exit_code: int | None, line: str) -> PriorError:
    """The exception for a process that ended, whose last line this is."""
    text = line.removeprefix("prior-embed: ").removeprefix("error: ")
    if exit_code == 2:
        return PriorInputError(text or "the program refused its input", exit_code)
    if exit_code is not None and exit_code < 0:
        try:
            name = signal.Signals(-exit_code).name
        except ValueError:
            name = f"signal {-exit_code}"
        text = f"the prior-embed process was ended by {name}" + (f"; its last words: {text}" if text else "")
    return PriorError(text or f"the prior-embed process ended with exit code {exit_code}", exit_code)


class Process:
    """A running program with a model."""

    def __init__(self, arguments: list[str], folder: str) -> None:
        self._child = start(arguments, folder, subprocess.PIPE)
        self._tickets: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._last_line = ""
        self._error: PriorError | None = None
        self._is_closing = False
        self._listener = threading.Thread(target=self._listen, name="prior-embed-log", daemon=True)
        self._reader = threading.Thread(target=self._read, name="prior-embed-answers", daemon=True)
        self._listener.start()
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process."""
        return self._child.pid

    @property
    def is_alive(self) -> bool:
        """Whether rows can be sent."""
        return self._error is None and not self._is_closing

    @property
    def pending(self) -> int:
        """Rows that are not answered yet."""
        return len(self._tickets)

    def send(self, lines: list[bytes], answers: int = 1) -> list[Ticket]:
        """Send rows, each a line without its end, and each with so many answers. May wait while the process is busy;
        raises nothing if it is gone, which the tickets tell."""
        tickets = [Ticket() for _ in lines for _ in range(answers)]
        with self._sending:
            with self._changed:
                if not self.is_alive:
                    error = self._error or PriorError("the pipeline is closed")
                    for ticket in tickets:
                        ticket.error = error
                    return tickets
                self._tickets.extend(tickets)
            data = memoryview(b"\n".join([*lines, b""]))
            assert self._child.stdin is not None
            try:
                while data:
                    data = data[self._child.stdin.write(data) or 0 :]
            except (BrokenPipeError, ValueError):
                pass  # The reader finds out why.
            except BaseException:
                # A signal's exception: half a line may be written, and no other can follow it.
                self.kill()
                raise
        return tickets

    def wait(self, ticket: Ticket) -> dict[str, Any]:
        """The answer to a row. Raises why there is none."""
        with self._changed:
            while not ticket.is_done:
                self._changed.wait()
        if ticket.error is not None:
            raise ticket.error
        assert ticket.answer is not None
        return ticket.answer

    def drop(self, tickets: list[Ticket]) -> None:
        """Nobody waits for these any more. If nobody waits for others either, the process ends: its work may be
        long."""
        with self._changed:
            waiting = [ticket for ticket in tickets if not ticket.is_done]
            is_idle = waiting and len(waiting) == len(self._tickets)
        if is_idle:
            self.close()

    def _read(self) -> None:
        assert self._child.stdout is not None
        rest = b""
        try:
            while chunk := os.read(self._child.stdout.fileno(), CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                answers = [decode(line) for line in lines]
                with self._changed:
                    for answer in answers:
                        self._tickets.popleft().answer = answer
                    self._changed.notify_all()
        except (OSError, ValueError, LookupError) as error:
            self._last_line = f"the program's answer cannot be read: {error}"
            self.kill()
        self._listener.join()
        exit_code = self._child.wait()
        with self._changed:
            self._error = (
                PriorError("the pipeline is closed") if self._is_closing else failure(exit_code, self._last_line)
            )
            for ticket in self._tickets:
                ticket.error = self._error
            self._tickets.clear()
            self._changed.notify_all()

    def _listen(self) -> None:
        """Passes on what the program says."""
        assert self._child.stderr is not None
        rest = b""
        try:
            while chunk := os.read(self._child.stderr.fileno(), CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._tell(line.decode(errors="replace").removeprefix("prior-embed: "))
        except (OSError, ValueError):
            pass
        if rest:
            self._tell(rest.decode(errors="replace"))

    def _tell(self, line: str) -> None:
        self._last_line = line or self._last_line
        if line.startswith("warning: "):
            logger.warning(line.removeprefix("warning: "))
        elif line.startswith("downloading "):
            print(f"prior-embed: {line}", file=sys.stderr, flush=True)
        else:
            logger.info(line)

    def close(self) -> None:
        """End the process, at once if it is idle and else within a denoising step, and wait for its end."""
        with self._changed:
            self._is_closing = True
            is_idle = not self._tickets
        if is_idle and self._sending.acquire(timeout=PATIENCE):
            try:
                self._child.stdin.close()  # type: ignore[union-attr]
            finally:
                self._sending.release()
        elif self._child.poll() is None:
            self._child.terminate()
        try:
            self._child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            self._child.wait()
        if threading.current_thread() is not self._reader:
            self._reader.join(PATIENCE)
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            pipe.close()  # type: ignore[union-attr]

    def kill(self) -> None:
        """End the process without asking."""
        if self._child.poll() is None:
            self._child.kill()

    def forget(self) -> None:
        """In a forked child: the process belongs to the parent. Lets go of its pipes, which would keep it alive."""
        self._error = PriorError("the process belongs to the parent of this one")
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            pipe.close()  # type: ignore[union-attr]
        # It is no child of this process, which need not wait for it.
        self._child.returncode = 0


def decode(line: bytes) -> dict[str, Any]:
    """An answer, its arrays as bytes of float32."""
    answer: dict[str, Any] = json.loads(line)
    for name in ("image_embeds", "negative_image_embeds"):
        if name in answer:
            answer[name] = binascii.a2b_base64(answer[name])
    return answer
