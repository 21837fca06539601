"""How often do intervals at 95 % hold? Simulated sweeps of which the true accuracy is known.

    python benchmarks/intervals.py

The logit of a right answer is one half, plus what the seed learned, plus how easy the question is, both normal. Truth
is the mean over all seeds and questions. Three intervals of the same answers: this package's
(``bimba.report.sweep.statistics.accuracy``), Wilson's of all answers as if they were independent, and Student's t over
the means of the seeds.
"""

from __future__ import annotations

import argparse
import statistics as plain

import numpy as np

from bimba.report.accuracy import wilson_interval
from bimba.report.sweep.statistics import accuracy, t_975

SPREADS = [(0.0, 0.0), (0.0, 1.5), (0.1, 1.5), (0.3, 1.5), (0.8, 1.5)]  # standard deviations of seeds, of questions
MEAN_LOGIT = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=240)
    options = parser.parse_args()
    print(f"{options.sweeps} sweeps of {options.seeds} seeds and {options.questions} questions: % that hold the truth")
    print("seeds  questions    right   these   all pooled   t over seeds")
    for of_seeds, of_questions in SPREADS:
        rng = np.random.default_rng(0)
        truth = float(right(MEAN_LOGIT + np.hypot(of_seeds, of_questions) * rng.standard_normal(1_000_000)).mean())
        holds = np.array([one_sweep(rng, of_seeds, of_questions, options, truth) for _ in range(options.sweeps)])
        these, pooled, over_seeds = 100 * holds.mean(0)
        print(
            f"{of_seeds:5}  {of_questions:9}  {100 * truth:5.1f} %  {these:5.1f}   {pooled:10.1f}   {over_seeds:12.1f}"
        )
    return 0


def right(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def one_sweep(
    rng: np.random.Generator, of_seeds: float, of_questions: float, options: argparse.Namespace, truth: float
) -> list[bool]:
    """Whether each of the three intervals holds the truth."""
    logits = (
        MEAN_LOGIT
        + of_seeds * rng.standard_normal((options.seeds, 1))
        + of_questions * rng.standard_normal((1, options.questions))
    )
    answers = (rng.random(logits.shape) < right(logits)).astype(float)
    ours = accuracy([{str(question): value for question, value in enumerate(seed)} for seed in answers])
    means = answers.mean(1)
    half_width = t_975(options.seeds - 1) * plain.stdev(means) / options.seeds**0.5
    intervals = [
        (ours.low, ours.high),
        wilson_interval(float(answers.sum()), answers.size),
        (means.mean() - half_width, means.mean() + half_width),
    ]
    return [bool(low <= truth <= high) for low, high in intervals]


if __name__ == "__main__":
    raise SystemExit(main())
