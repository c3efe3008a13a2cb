"""How the built-in model is made. `train` (scripts/train-emoji) runs it all; the model card is assets/emoji/README.md.

    packages                         npm and PyPI packages, pinned
    sources, wordnet, lexicon        emoji and their words; what other English words may mean
    pictures, drawing                the emoji's pictures in all styles, and how they are put onto a canvas
    wordings, english, vocabulary    captions of single emoji, and the tokenizer
    views                            style, pose and background of a single emoji, which captions tell or leave open
    scenes, scene_templates          scenes of several things and their captions
    batches, split                   training batches; what is kept from training
    clip, decoder                    the networks; the prior is diffusers'
    train_*, refine_prior, training  a stage of training each, and what they share
    pool, bank                       the trained image tower's embeddings, which later stages learn from
    trained_clip, export             trained parts loaded, and written to assets/
    from_assets                      checkpoints of what is in assets/, to be trained on
    autoregressive, export_*         the paper's other prior: its definition, and how it is written to assets/
    evaluate, evaluation             figures on what training never saw (scripts/evaluate.py)
    attributes, judged, few_steps    what embeddings tell by probes; decoded pictures by a classifier; few steps
    gallery                          assets/gallery.png
    test_emoji                       tests
    test_autoregressive              of the autoregressive prior
"""
