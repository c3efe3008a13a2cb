"""Pipelines with random weights: the one place where scripts, benchmarks and tests get them from.

    pipelines    priors with their text and image encoders: `Spec`, `save_pipeline`, and diffusers' runs of them
    one_step     the same for one-step priors
    shap_e       the same for Shap-E
    stable       the same for StableUnCLIPPipeline's prior
    decoders     the decoders behind them
    adapters     LoRAs for priors
    elsewhere    components in the place of a pipeline's own
    precise      a pipeline in float64
    tokenizers   CLIP's vocabulary and tokenizer folders
    weights      the random numbers
    texts        texts that are hard to tokenize
    random_runs  pipelines of random shapes
    files        files that are the same byte for byte
"""

import os

# Read when the libraries are imported, so set before anything here imports them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
