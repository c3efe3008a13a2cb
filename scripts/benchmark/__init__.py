"""What scripts/bench.py and scripts/quality.py share.

Whoever measures imports neither torch nor diffusers: on Linux the peak memory of a process counts that of the process
which started it, up to its exec. What needs those libraries (models.py, reference.py, probe.py) runs as a child.
"""
