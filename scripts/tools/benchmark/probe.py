"""What the machine can do at best, and the prompts' lengths: `python -m tools.benchmark.probe JOB.json`.

Reading is a sum over a large tensor. A GEMM is a linear layer of the prior's size on as many tokens as 64 prompts run
a step, with the fastest kernel that libtorch has for the type.
"""

import json
import sys
import time

import torch

TOKENS, INPUTS, OUTPUTS = 256, 2048, 8192


def best_seconds(function, repeats=8):
    """The fastest of several calls, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def bandwidth():
    """Bytes a second that a sum over 1 GiB of float32 reads."""
    values = torch.ones(2**28)
    return values.numel() * values.element_size() / best_seconds(values.sum)


def plain(dtype):
    """PyTorch's own linear."""
    weight, x = torch.randn(OUTPUTS, INPUTS, dtype=dtype), torch.randn(TOKENS, INPUTS, dtype=dtype)
    return lambda: torch.nn.functional.linear(x, weight)


def packed(dtype):
    """oneDNN's linear on a weight in its own layout."""
    weight, x = torch.randn(OUTPUTS, INPUTS, dtype=dtype), torch.randn(TOKENS, INPUTS, dtype=dtype)
    weight = torch.ops.mkldnn._reorder_linear_weight(weight, TOKENS)
    return lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def packed_int8():
    """oneDNN's linear on 8-bit integers."""
    onednn = torch.ops.onednn
    weight = onednn.qlinear_prepack(torch.randint(-127, 127, (OUTPUTS, INPUTS), dtype=torch.int8), None)
    x = torch.randint(0, 255, (TOKENS, INPUTS), dtype=torch.uint8)
    scales, zeros = torch.full((OUTPUTS,), 1e-3), torch.zeros(OUTPUTS, dtype=torch.int32)
    return lambda: onednn.qlinear_pointwise(
        x, 1.0, 0, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


KERNELS = {
    "f32": {"plain": lambda: plain(torch.float32), "packed": lambda: packed(torch.float32)},
    "bf16": {"plain": lambda: plain(torch.bfloat16), "packed": lambda: packed(torch.bfloat16)},
    "int8": {"packed": packed_int8},
}


def gemm_rate(dtype, kernels):
    """Operations a second of the fastest kernel; None if the machine has none."""
    rates = []
    for name, prepare in kernels.items():
        try:
            rates.append(2 * TOKENS * INPUTS * OUTPUTS / best_seconds(prepare()))
        except (RuntimeError, AttributeError) as error:
            print(f"bench: no {name} {dtype} GEMM here: {str(error).splitlines()[0][:100]}", file=sys.stderr)
    return max(rates, default=None)


def token_counts(model, prompts):
    """Tokens of each prompt, with start and end, as the prior sees them."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(f"{model}/tokenizer")
    return [len(ids) for ids in tokenizer(prompts, truncation=True).input_ids]


@torch.no_grad()
def main():
    """Writes what it found as JSON."""
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    torch.set_num_threads(job["threads"])
    report = {
        "bandwidth": bandwidth(),
        "gemm": {dtype: gemm_rate(dtype, kernels) for dtype, kernels in KERNELS.items()},
        "tokens": token_counts(job["model"], job["prompts"]),
    }
    with open(job["report"], "w", encoding="utf-8") as file:
        json.dump(report, file)


if __name__ == "__main__":
    main()
