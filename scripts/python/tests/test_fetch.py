"""How the package fetches libtorch without pip, and its launcher. Needs no program and no network."""

import base64
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import unittest
import zipfile
from pathlib import Path
from unittest import mock

from prior_embed import _fetch, _libtorch, _program
from prior_embed._libtorch import Build, Unavailable, Wheel, intact
from tools.built import SCRIPTS

FILES = {"torch/include/ATen/ATen.h": b"h", "torch/lib/libc10.so": b"c10", "torch/lib/libtorch_cpu.so": b"cpu",
         "torch/lib/libtorch_cuda.so": b"cuda", "torch/__init__.py": b""}  # fmt: skip


def make_wheel():
    """The bytes of a wheel, with files to keep and files to leave."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


class Index(http.server.BaseHTTPRequestHandler):
    """A package index of one file."""

    def do_GET(self):
        """Answers as the test says."""
        server = self.server
        server.paths.append(self.path)
        if (
            server.password
            and self.headers.get("Authorization") != f"Basic {base64.b64encode(server.password).decode()}"
        ):
            return self.send_error(401, "who is there?")
        if server.failures:
            server.failures -= 1
            return self.send_error(503, "not now")
        if self.path.endswith(".whl"):
            return self.answer("application/zip", server.content)
        sha256, name = server.sha256, "files/torch-2.13.0-cp311-cp311-any.whl"
        if server.speaks_json and "json" in self.headers["Accept"]:
            other = {"url": "other.whl", "hashes": {"sha256": "0" * 64}}
            page = {"files": [other, {"url": f"../../{name}", "hashes": {"sha256": sha256}}]}
            return self.answer("application/vnd.pypi.simple.v1+json", json.dumps(page).encode())
        wanted = f'<a href="../../{name}#sha256={sha256}" data-x="y">torch</a>'
        page = f'<a href="other.whl#sha256={"0" * 64}">x</a> {wanted}'
        return self.answer("text/html", page.encode())

    def answer(self, kind, content):
        """Sends a page."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) + self.server.lacking))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def log_message(self, *arguments):
        """Says nothing."""


class FetchTest(unittest.TestCase):
    """Against a small index."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)
        self.cache = self.folder / "cache"
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
        self.addCleanup(self.server.server_close)
        thread = threading.Thread(target=self.server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(self.server.shutdown)
        content = make_wheel()
        self.server.content, self.server.paths, self.server.failures = content, [], 0
        self.server.password, self.server.speaks_json, self.server.lacking = b"", True, 0
        self.server.sha256 = hashlib.sha256(content).hexdigest()
        self.wheel = Wheel("torch==2.13.0", "any", len(content), self.server.sha256)
        self.url = f"http://127.0.0.1:{self.server.server_port}/root/simple"
        self.lines = []
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
        for patch in (
            mock.patch.dict(os.environ, {**clean, "PRIOR_EMBED_CACHE": str(self.cache), "PIP_INDEX_URL": self.url,
                                         "no_proxy": "127.0.0.1"}, clear=True),
            mock.patch.object(_fetch, "PAUSES", (0, 0)),
            mock.patch.object(_fetch.importlib.util, "find_spec", lambda name: None),
        ):  # fmt: skip
            patch.start()
            self.addCleanup(patch.stop)

    def fetch(self):
        """The folder that was made."""
        machine = (os.uname().sysname, os.uname().machine)
        with mock.patch.object(_fetch, "BUILDS", {machine: Build(1, (self.wheel,))}):
            return _fetch.fetch_libtorch(self.lines.append)

    def assert_unavailable(self, words):
        """It says why, and leaves nothing."""
        with self.assertRaisesRegex(Unavailable, words):
            self.fetch()
        self.assertEqual([path.name for path in self.cache.iterdir()], ["libtorch.lock"])

    def test_it_takes_the_file_with_the_hash_whatever_the_index_speaks(self):
        for speaks_json in (True, False):
            with (
                self.subTest(speaks_json),
                mock.patch.dict(os.environ, PRIOR_EMBED_CACHE=str(self.cache / str(speaks_json))),
            ):
                self.server.speaks_json = speaks_json
                folder = self.fetch()
                self.assertTrue(intact(folder))
                self.assertEqual((folder / "lib" / "libtorch_cpu.so").read_bytes(), b"cpu")
                self.assertFalse((folder / "lib" / "libtorch_cuda.so").exists())
                self.assertEqual(
                    self.server.paths[-2:], ["/root/simple/torch/", "/root/files/torch-2.13.0-cp311-cp311-any.whl"]
                )
        calls = len(self.server.paths)
        with mock.patch.dict(os.environ, PRIOR_EMBED_CACHE=str(self.cache / "True")):
            self.fetch()
        self.assertEqual(len(self.server.paths), calls)

    def test_a_file_with_another_hash_is_refused(self):
        self.server.content = self.server.content[:-1] + b"x"
        self.assert_unavailable("does not have the hash of torch==2.13.0")
        self.server.sha256 = "1" * 64
        self.assert_unavailable("has no file with the hash")

    def test_failures_are_tried_again_and_then_told(self):
        self.server.failures = 2
        self.assertTrue(intact(self.fetch()))
        self.assertEqual(sum("trying again" in line for line in self.lines), 2)
        self.wheel = self.wheel._replace(requirement="torch==2.13.1")
        (self.cache / "libtorch-2.13.0-cpu" / "manifest.txt").unlink()
        self.server.failures = 3
        with self.assertRaisesRegex(
            Unavailable, "could not be fetched from http://127.0.0.1:.*: HTTP Error 503: not now"
        ):
            self.fetch()

    def test_a_connection_that_breaks_off_is_tried_again(self):
        self.server.content, whole = self.server.content[:100], self.server.content
        self.assert_unavailable("broke off after 100 of")
        self.server.content = whole
        self.assertTrue(intact(self.fetch()))

    def test_a_password_is_sent_and_never_shown(self):
        self.server.password = b"me:se@cret"
        os.environ["PIP_INDEX_URL"] = self.url.replace("127", "me:se%40cret@127")
        self.assertTrue(intact(self.fetch()))
        os.environ["PIP_INDEX_URL"] = self.url.replace("127", "me:wr%40ng@127")
        os.environ["PRIOR_EMBED_CACHE"] = str(self.cache / "other")
        with self.assertRaises(Unavailable) as raised:
            self.fetch()
        self.assertIn("127.0.0.1", str(raised.exception))
        self.assertNotIn("wr", str(raised.exception).replace("written", ""))

    def test_the_index_is_the_one_that_pip_or_uv_would_use(self):
        del os.environ["PIP_INDEX_URL"]
        os.environ["PIP_CONFIG_FILE"] = str(self.folder / "pip.conf")
        (self.folder / "pip.conf").write_text("[global]\nindex-url = https://of.the/file\n", encoding="utf-8")
        self.assertEqual(_fetch.index_url(), "https://of.the/file")
        os.environ["UV_DEFAULT_INDEX"] = "https://of.uv"
        self.assertEqual(_fetch.index_url(), "https://of.uv")
        os.environ["PIP_INDEX_URL"] = "https://of.pip"
        self.assertEqual(_fetch.index_url(), "https://of.pip")
        (self.folder / "pip.conf").write_text("not a file of pip", encoding="utf-8")
        del os.environ["PIP_INDEX_URL"], os.environ["UV_DEFAULT_INDEX"]
        self.assertTrue(_fetch.index_url().startswith("http"))

    def test_two_at_once_fetch_once(self):
        self.server.lacking = 0
        found = []
        threads = [threading.Thread(target=lambda: found.append(self.fetch())) for _ in range(2)]
        machine = (os.uname().sysname, os.uname().machine)
        with mock.patch.object(_fetch, "BUILDS", {machine: Build(1, (self.wheel,))}):
            with mock.patch.object(self, "fetch", lambda: _fetch.fetch_libtorch(self.lines.append)):
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        self.assertEqual(len(set(found)), 1)
        self.assertEqual(len(self.server.paths), 2)


class LauncherTest(unittest.TestCase):
    """The console script, in a package whose program is a stand-in."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)
        package = self.folder / "site" / "prior_embed"
        (package / "bin").mkdir(parents=True)
        for path in (SCRIPTS / "python" / "prior_embed").glob("*.py"):
            (package / path.name).write_bytes(path.read_bytes())
        info = self.folder / "site" / "prior_embed-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: prior-embed\nVersion: 1.2.3\n", encoding="utf-8")
        program = package / "bin" / "prior-embed"
        program.write_text('#!/bin/sh\necho "$0|$LD_LIBRARY_PATH|$LD_PRELOAD|$*"\nexit 7\n', encoding="utf-8")
        program.chmod(0o755)
        texts = {"": {"-h": "short", "--help": "long"}, "merge": {"-h": "merges", "--help": "merges well"}}
        (package / "bin" / "help.json").write_text(json.dumps(texts), encoding="utf-8")
        self.cache, self.program = self.folder / "cache", program

    def run_launcher(self, *arguments, **variables):
        """Its exit code, and what it prints."""
        code = ("import socket, sys\n"
                "def refuse(*arguments): raise AssertionError('it uses the network')\n"
                "socket.socket.connect = refuse\n"
                "from prior_embed._launcher import main\n"
                "assert 'numpy' not in sys.modules and 'importlib.metadata' not in sys.modules\n"
                "sys.exit(main())")  # fmt: skip
        clean = {name: value for name, value in os.environ.items()
                 if name not in ("LIBTORCH", "PRIOR_EMBED_PROGRAM", "LD_LIBRARY_PATH", "LD_PRELOAD")}  # fmt: skip
        environment = {**clean, "PRIOR_EMBED_CACHE": str(self.cache), "PYTHONPATH": str(self.folder / "site"),
                       "PYTHONDONTWRITEBYTECODE": "1", **variables}  # fmt: skip
        done = subprocess.run([sys.executable, "-S", "-c", code, *arguments], env=environment, capture_output=True,
                              encoding="utf-8", check=False)  # fmt: skip
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    def torch(self, version):
        """A folder with a torch of that version."""
        lib = self.folder / version / "torch" / "lib"
        lib.mkdir(parents=True)
        (lib / "libtorch_cpu.so").touch()
        (lib.parent / "__init__.py").touch()
        (lib.parent / "version.py").write_text(
            f"from typing import Optional\n__version__ = '{version}'\n", encoding="utf-8"
        )
        return f"{self.folder / 'site'}:{self.folder / version}"

    def fill_cache(self):
        """A libtorch in the cache."""
        folder = self.cache / f"libtorch-{_libtorch.VERSION}-cpu"
        (folder / "lib").mkdir(parents=True)
        (folder / "lib" / "libtorch_cpu.so").write_text("x", encoding="utf-8")
        _libtorch.write_manifest(folder)
        return str(folder / "lib")

    def test_the_version_and_help_fetch_nothing(self):
        for arguments, text in ((["--version"], "prior-embed 1.2.3"), (["-V"], "prior-embed 1.2.3"), (["-h"], "short"),
                                (["--help"], "long"), (["merge", "--help"], "merges well"), (["-q", "merge", "-h"],
                                "merges"), (["nonsense", "--help"], "long")):  # fmt: skip
            with self.subTest(arguments):
                self.assertEqual(self.run_launcher(*arguments), (0, text, ""))
        self.assertFalse(self.cache.exists())

    def test_it_becomes_the_program_with_the_first_libtorch_there_is(self):
        expected = lambda lib: (7, f"{self.program}|{lib}||-p a", "")  # noqa: E731
        cached = self.fill_cache()
        self.assertEqual(self.run_launcher("-p", "a"), expected(cached))
        self.assertEqual(self.run_launcher("-p", "a", LD_LIBRARY_PATH="/x"), expected(f"{cached}:/x"))
        for version in ("2.12.0", "2.13.1", "2.13.0a0", "2.13.0rc1"):
            self.assertEqual(self.run_launcher("-p", "a", PYTHONPATH=self.torch(version)), expected(cached), version)
        for version in ("2.13.0", "2.13.0+cpu"):
            path = self.torch(version)
            self.assertEqual(
                self.run_launcher("-p", "a", PYTHONPATH=path), expected(self.folder / version / "torch" / "lib")
            )
        own = self.folder / "own"
        (own / "lib").mkdir(parents=True)
        code, _, err = self.run_launcher("-p", "a", LIBTORCH=str(own))
        self.assertEqual(
            (code, err), (1, f"prior-embed: error: LIBTORCH={own} holds no lib/libtorch_cpu.so; correct or unset it")
        )
        (own / "lib" / "libtorch_cpu.so").touch()
        self.assertEqual(self.run_launcher("-p", "a", LIBTORCH=str(own), PYTHONPATH=path), expected(own / "lib"))
        # Damaged, and here there is no network to mend it.
        Path(cached, "libtorch_cpu.so").write_text("", encoding="utf-8")
        self.assertIn("it uses the network", self.run_launcher("-p", "a")[2])

    def test_cuda_is_loaded_where_there_is_a_gpu(self):
        lib = self.folder / "lib"
        lib.mkdir()
        for has_gpu, has_cuda, preload in (
            (True, False, None),
            (False, True, None),
            (True, True, f"{lib}/libtorch_cuda.so:/y"),
        ):
            if has_cuda:
                (lib / "libtorch_cuda.so").touch()
            with mock.patch.object(_program, "has_gpu", lambda: has_gpu), mock.patch.dict(os.environ, LD_PRELOAD="/y"):
                self.assertEqual(_program.environment(str(lib))["LD_PRELOAD"], preload or "/y")

    def test_a_package_without_a_program_says_so(self):
        self.program.unlink()
        code, _, err = self.run_launcher("-p", "a")
        self.assertEqual((code, len(err.splitlines())), (1, 1))
        self.assertIn("holds no program for this platform", err)


if __name__ == "__main__":
    unittest.main()
