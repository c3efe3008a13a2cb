"""How the built-in model is made. `train` (scripts/train-emoji) runs it all; the model card is assets/emoji/README.md.

    sources, wordnet                 emoji, their pictures and words, from npm packages
    wordings, english, vocabulary    captions of single emoji, and the tokenizer
    scenes, scene_templates          scenes and their captions
    drawing, batches, bank, split    pictures, training batches, what is kept from training
    clip, decoder                    the networks; the prior is diffusers'
    train_*, refine_*, training      a stage of training each, and what they share
    trained_clip, export             trained parts loaded, and written to assets/
    autoregressive, export_*         the paper's other prior: its definition, and how it is written to assets/
    evaluate, evaluation             figures on what training never saw (scripts/evaluate.py)
    gallery                          assets/gallery.png
    test_emoji                       tests
    test_autoregressive              of the autoregressive prior
"""
