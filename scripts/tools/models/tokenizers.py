"""CLIP's vocabulary and the tokenizer folders that are made from it."""

import gzip
import json
from importlib.metadata import distribution
from pathlib import Path

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def byte_symbols():
    """The printable stand-ins for the 256 bytes, in the order in which byte-level vocabularies list them."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(rest))]


def clip_merges(count=49152 - 256 - 2):
    """The first merges of CLIP's byte pair encoding, from the data file of open_clip (the package is not imported)."""
    package = distribution("open_clip_torch")
    path = next(
        Path(package.locate_file(file)) for file in package.files if file.name == "bpe_simple_vocab_16e6.txt.gz"
    )
    # The first line is a heading, and CLIP leaves the file's last merges out.
    return gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : 1 + count]


def vocabulary(merges):
    """Token to id: bytes, bytes that end a word, merged pairs, and the two special tokens."""
    symbols = byte_symbols()
    tokens = (
        symbols + [symbol + "</w>" for symbol in symbols] + ["".join(merge.split(" ")) for merge in merges] + [BOS, EOS]
    )
    assert len(set(tokens)) == len(tokens)
    return {token: index for index, token in enumerate(tokens)}


def write_vocabulary(folder, merges):
    """`vocab.json` and `merges.txt`, as on the hub."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(vocabulary(merges), ensure_ascii=False, separators=(",", ":"))
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def added_token(content, **flags):
    """A token with its flags, in the order in which transformers 4 wrote them."""
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False} | flags


def legacy_config(pad_token=EOS, max_length=77):
    """`tokenizer_config.json` as in openai/clip-vit-large-patch14."""
    special = {"__type": "AddedToken"}
    return {
        "unk_token": special | added_token(EOS),
        "bos_token": special | added_token(BOS),
        "eos_token": special | added_token(EOS),
        "pad_token": pad_token,
        "add_prefix_space": False,
        "errors": "replace",
        "do_lower_case": True,
        "name_or_path": "openai/clip-vit-base-patch32",
        "model_max_length": max_length,
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
    }


def legacy_special_tokens(pad_token=EOS):
    """`special_tokens_map.json` as in openai/clip-vit-large-patch14."""
    return {
        "bos_token": added_token(BOS),
        "eos_token": added_token(EOS),
        "unk_token": added_token(EOS),
        "pad_token": pad_token,
    }


def encode(tokenizer, texts, length=77):
    """Token ids and masks as diffusers' pipelines ask for them."""
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True)
