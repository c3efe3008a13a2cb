"""Files that are byte for byte the same whenever they are written."""

import json
import shutil

from safetensors.torch import save


def fresh_folder(path):
    """An empty folder at `path`, so that a renamed fixture leaves no stale file behind."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def save_tensors(path, tensors, **metadata):
    """Writes a safetensors file whose bytes depend on its contents alone.

    The library keeps metadata in a hash map, so with two or more entries their order in the file is random; the header
    is written again here with the metadata sorted.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    raw = save(tensors, metadata={"format": "pt", **metadata})
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def write_json(path, value, indent=None):
    """Writes UTF-8 JSON as is: one line, or indented."""
    separators = (",", ":") if indent is None else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(value, ensure_ascii=False, indent=indent, separators=separators) + "\n", encoding="utf-8"
    )
