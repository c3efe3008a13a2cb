"""What `bench.py cost` works out of what it has measured."""

import unittest
from types import SimpleNamespace

from ..benchmark.cost import ALONE, BUSY, Measured, hours, our_rate, their_rate, worked_out_table


def run(prompts, seconds, **details):
    """A run of a program."""
    return SimpleNamespace(prompts=prompts, seconds=seconds, details=details)


# Two processes are the better way for prior-embed, one for diffusers.
FOUND = Measured(
    shape="built-in",
    dim=192,
    load_seconds=4.0,
    ours={ALONE: 100.0, BUSY[0]: 150.0, BUSY[1]: 180.0},
    theirs={ALONE: 2.0, BUSY[0]: 4.0, BUSY[1]: 3.0},
    error=0.0,
    runs=[],
)


class CostTest(unittest.TestCase):
    def test_rates_leave_loading_out(self):
        # Two workers of 1 s each load side by side.
        self.assertEqual(our_rate(run(90, {"total": 10.0, "load": 2.0}, stats_workers=2)), 10.0)

    def test_diffusers_is_scaled_to_all_steps(self):
        few = run(8, {"text": 1.0, "prior": 7.5}, step_seconds=[3.5, 1.0, 3.0])
        self.assertEqual(their_rate(few, 25), 8 / 76)
        self.assertEqual(their_rate(run(8, {"text": 1.0, "prior": 3.0}), None), 2.0)

    def test_a_core_counts_as_it_is_with_both_busy(self):
        self.assertEqual((FOUND.each(FOUND.ours), FOUND.scaling(FOUND.ours)), (90.0, 0.9))
        self.assertEqual((FOUND.each(FOUND.theirs), FOUND.scaling(FOUND.theirs)), (2.0, 1.0))

    def test_every_process_reads_all_captions(self):
        # 4 s of loading, 9 million times 4 us, and 100,000 s of work on 100 cores.
        self.assertAlmostEqual(hours(FOUND, 4e-6, 9_000_000, 100), (4 + 36 + 1000) / 3600)

    def test_the_table_has_core_hours_or_their_price(self):
        options = SimpleNamespace(captions=[9_000_000], cores=[100])
        row = worked_out_table([FOUND], 4e-6, options).splitlines()[-1]
        self.assertEqual(row, "| built-in, 9,000,000 captions | 6.91 GB | 1,250 | 28.9 (0.289 h) |")
        row = worked_out_table([FOUND], 4e-6, options, price=2.0).splitlines()[-1]
        self.assertEqual(row, "| built-in, 9,000,000 captions | 6.91 GB | 2,500 | 57.8 (0.289 h) |")
