"""The commands of scripts/bench.py, and what they share.

Whoever measures memory imports neither torch nor diffusers: on Linux the peak memory of a process counts that of the
process that started it, up to its exec. What needs those libraries (models, reference, probe) runs as a child.
"""
