"""Asks `prior-embed serve` with real clients: python3 scripts/check_clients.py. Ends with 1 if one does not get on with it.

OpenAI's package, huggingface_hub's InferenceClient and LlamaIndex's TextEmbeddingsInference, which are clients of
text-embeddings-inference, and curl, if it is there, get the numbers of the command line; Prometheus' parser reads the
counters; the description of the routes is valid OpenAPI, and what they answer is as it says. The packages come from PyPI into
a virtual environment in the project's cache.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from tools import environments
from tools.built import BINARY, SCRIPTS
from tools.problem import Problem

TEXTS = ["a red apple", "two cats", "rain over a house by the sea"]
KEY = "check-clients"


@contextmanager
def server(binary):
    """The address of a server that is ready."""
    command = [binary, "serve", "--port", "0", "--quiet", "--api-key", KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().removeprefix("listening on ").strip()
            while status(f"{url}/health") != 200:
                assert process.poll() is None, "the server has ended"
            yield url
        finally:
            process.terminate()
    assert process.returncode == 0, f"the server ended with {process.returncode}"


def status(url):
    """The status code of a GET."""
    try:
        with urllib.request.urlopen(url) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def post(url, body, accept="application/json"):
    """The status code, media type and body of what a POST gives."""
    headers = {"Content-Type": "application/json", "Accept": accept, "Authorization": f"Bearer {KEY}"}
    try:
        reply = urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers))
    except urllib.error.HTTPError as error:
        reply = error
    with reply:
        return reply.status, reply.headers["Content-Type"], reply.read()


def expected(binary):
    """The embeddings by the command line."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.npy"
        prompts = [argument for text in TEXTS for argument in ("-p", text)]
        subprocess.run([binary, *prompts, "-o", out, "--quiet"], check=True)
        return np.load(out)


def check_openai(url, embeddings):
    """OpenAI's own package, which asks for base64 unless it is told not to."""
    import numpy as np
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    (model,) = client.models.list().data
    for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        reply = client.embeddings.create(model=model.id, input=TEXTS, **options)
        found = [item.embedding for item in reply.data]
        if isinstance(found[0], str):
            import base64

            found = [np.frombuffer(base64.b64decode(text), "<f4") for text in found]
        assert np.allclose(found, embeddings, rtol=0, atol=1e-5), options
        assert reply.usage.prompt_tokens == reply.usage.total_tokens > 10
    for error, options in (
        (openai.NotFoundError, {"model": "another"}),
        (openai.BadRequestError, {"input": [[1, 2, 3]]}),
        (openai.BadRequestError, {"dimensions": 3}),
    ):
        try:
            client.embeddings.create(**{"model": model.id, "input": "a", **options})
        except error as refused:
            assert refused.body["message"] and refused.request_id, refused
        else:
            raise AssertionError(f"{options} is not refused")
    try:
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
    except openai.AuthenticationError as refused:
        assert refused.code == "invalid_api_key"
    else:
        raise AssertionError("a wrong key is not refused")


def check_hugging_face(url, embeddings):
    """huggingface_hub's client of text-embeddings-inference."""
    import numpy as np
    from huggingface_hub import InferenceClient

    client = InferenceClient(f"{url}/embed", token=KEY)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    found = client.feature_extraction(TEXTS[0])
    assert found.shape == (1, embeddings.shape[1]) and np.allclose(found, unit[:1], rtol=0, atol=1e-6)
    found = client.feature_extraction(TEXTS, normalize=False, truncate=True)
    assert np.allclose(found, embeddings, rtol=0, atol=1e-5)


def check_llama_index(url, embeddings):
    """LlamaIndex's client of text-embeddings-inference: by batches, and side by side."""
    import asyncio

    import numpy as np
    from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

    client = TextEmbeddingsInference(model_name="emoji", base_url=url, auth_token=KEY, embed_batch_size=2)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    # Each of these is the first row of its request.
    for found in (client.get_text_embedding(TEXTS[0]), client.get_query_embedding(TEXTS[0])):
        assert np.allclose(found, unit[0], rtol=0, atol=1e-6)
    # Of two rows and one, so the last has the seed of a first row.
    by_batches = client.get_text_embedding_batch(TEXTS)
    assert np.allclose(by_batches[:2], unit[:2], rtol=0, atol=1e-6)
    side_by_side = asyncio.run(client.aget_text_embedding_batch(TEXTS))
    assert np.allclose(side_by_side, by_batches, rtol=0, atol=1e-6)
    assert np.allclose(client.get_text_embedding(TEXTS[2]), by_batches[2], rtol=0, atol=1e-6)


def check_curl(url, embeddings):
    """curl, into numpy."""
    import io

    import numpy as np

    headers = ["content-type: application/json", "accept: application/x-npy", f"authorization: Bearer {KEY}"]
    headers = [argument for header in headers for argument in ("--header", header)]
    command = ["curl", "--silent", "--fail", *headers, "--data", json.dumps({"prompts": TEXTS}), f"{url}/prior"]
    reply = subprocess.run(command, check=True, capture_output=True).stdout
    assert np.allclose(np.load(io.BytesIO(reply)), embeddings, rtol=0, atol=1e-5)


def check_metrics(url):
    """The parser of Prometheus' client."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"{url}/metrics") as reply:
        families = {family.name: family for family in text_string_to_metric_families(reply.read().decode())}
    assert families["prior_embed_rows"].type == "counter" and families["prior_embed_rows"].samples[0].value > 0
    assert families["process_resident_memory_bytes"].samples[0].value > 1e7
    histograms = [family for family in families.values() if family.type == "histogram"]
    assert len(histograms) == 4
    for family in histograms:
        buckets = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
        (count,) = (sample.value for sample in family.samples if sample.name.endswith("_count"))
        assert buckets == sorted(buckets) and buckets[-1] == count, family
    statuses = {(sample.labels["route"], sample.labels["status"]) for sample in families["prior_embed_requests"].samples}
    assert {("/v1/embeddings", "200"), ("/v1/embeddings", "400"), ("/v1/models", "401")} <= statuses, statuses


def check_openapi(url):
    """The description, and that answers are as it says."""
    import openapi_spec_validator
    from jsonschema import Draft202012Validator

    with urllib.request.urlopen(f"{url}/openapi.json") as reply:
        description = json.load(reply)
    openapi_spec_validator.validate(description)
    asked = 0
    for path, field in (("/v1/embeddings", "input"), ("/embed", "inputs"), ("/prior", "prompts")):
        responses = description["paths"][path]["post"]["responses"]
        bodies = [{field: TEXTS}, {field: "a"}, {}, {field: 3}, {field: ["a"] * 3000}]
        if path == "/v1/embeddings":
            bodies += [{field: "a", "model": "another"}, {field: "a", "encoding_format": "base64"}]
        for body in bodies:
            code, media_type, text = post(url + path, body)
            response = responses[str(code)]
            if "$ref" in response:
                response = description["components"]["responses"][response["$ref"].rsplit("/", 1)[1]]
            schema = response["content"][media_type]["schema"]
            Draft202012Validator({**schema, "components": description["components"]}).validate(json.loads(text))
            asked += 1
    line = {"$ref": "#/components/schemas/PriorLine", "components": description["components"]}
    code, media_type, text = post(f"{url}/prior", {"prompts": TEXTS}, "application/x-ndjson")
    assert (code, media_type) == (200, "application/x-ndjson")
    for row in text.splitlines():
        Draft202012Validator(line).validate(json.loads(row))
    return asked


def check(binary):
    """All clients; runs inside the environment."""
    embeddings = expected(binary)
    with server(binary) as url:
        check_openai(url, embeddings)
        check_hugging_face(url, embeddings)
        check_llama_index(url, embeddings)
        clients = "openai, huggingface_hub and llama_index"
        if shutil.which("curl"):
            check_curl(url, embeddings)
            clients = "openai, huggingface_hub, llama_index and curl"
        asked = check_openapi(url)
        check_metrics(url)
    print(f"{clients} get the numbers of the command line; {asked} answers are as /openapi.json says; /metrics is read")
    return 0


def main():
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=BINARY)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments.binary)
    try:
        python = environments.clients().ensure(lambda message: print(f"check_clients: {message}", file=sys.stderr))
    except Problem as problem:
        sys.exit(f"check_clients: {problem}")
    command = [python, __file__, "--check", "--binary", arguments.binary]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(SCRIPTS)}).returncode


if __name__ == "__main__":
    sys.exit(main())
