"""Embeddings of prompts from a running `prior-embed serve`."""

import json
import os
import urllib.error
import urllib.request

from ..problem import FAILED, Problem, first_line
from .embeddings import Embeddings, check, load

KEY = "PRIOR_EMBED_API_KEY"


def ask(url, prompts, seed):
    """The embeddings of prompts; row r draws its noise with the seed plus r."""
    name = f"the server {url}"
    body = json.dumps({"prompts": prompts, "seed": seed}).encode()
    headers = {"content-type": "application/json", "accept": "application/x-npy"}
    if key := os.environ.get(KEY):
        headers["authorization"] = f"Bearer {key}"
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}/prior", body, headers)
        with urllib.request.urlopen(request) as response:
            content = response.read()
    except urllib.error.HTTPError as error:
        raise Problem(f"{name} refuses: {reason(error)}" + (f"; {KEY} holds the key" if error.code == 401 else "")) from None
    except ValueError:
        raise Problem(f"--server {url} is no address; give one like http://localhost:8080") from None
    except OSError as error:
        why = first_line(getattr(error, "reason", error))
        raise Problem(f"{name} does not answer ({why}); is prior-embed serve running?", FAILED) from None
    if not content.startswith(b"\x93NUMPY"):
        raise Problem(f"{name} answers with something else than embeddings; is it prior-embed serve?", FAILED)
    return Embeddings(name, check(load(content, name), name), None)


def reason(error):
    """What the server says is wrong."""
    try:
        return json.load(error)["error"]["message"]
    except (ValueError, KeyError, TypeError, OSError):
        return f"status {error.code}"
