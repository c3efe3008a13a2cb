"""How the built-in emoji model is made: pictures and captions, a small CLIP, a prior, a decoder."""
