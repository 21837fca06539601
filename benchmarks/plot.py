"""The pictures of ``compressor.py --plot`` and ``scan.py --plot``, all axes logarithmic."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # after the choice of a backend that needs no screen


def plot(results: dict[str, dict[int, tuple[float, float]]], path: Path) -> None:
    """Time and memory against the number of frames; ``results``: candidate -> frames -> seconds, MiB."""
    figure, axes = pyplot.subplots(1, 2, figsize=(12.5, 4.5), layout="constrained")
    frames = sorted({f for of_name in results.values() for f in of_name})
    for name, of_name in results.items():
        if len(of_name) < 2:
            continue
        emphasis = {"linewidth": 2.5, "zorder": 3} if name in ("query-only", "streamed") else {"linewidth": 1.2}
        axes[0].loglog(list(of_name), [s * 1e3 for s, _ in of_name.values()], marker="o", label=name, **emphasis)
        axes[1].loglog(list(of_name), [max(mib, 1) for _, mib in of_name.values()], marker="o", label=name, **emphasis)
    for axis, title, unit in zip(axes, ("Time", "Peak memory"), ("ms", "MiB"), strict=True):
        axis.set_xticks(frames, [str(f) for f in frames], minor=False)
        axis.minorticks_off()
        axis.set(xlabel="frames of 27 x 27 patches", ylabel=unit, title=f"{title} of one compressor layer")
        axis.grid(alpha=0.3)
    axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def plot_scan(times_s: dict[int, dict[str, float]], title: str, path: Path) -> None:
    """Time against length; ``times_s``: length -> implementation, or floor in brackets -> seconds."""
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name in next(iter(times_s.values())):
        style = {"linestyle": "--", "color": "gray", "marker": "x"} if name.startswith("(") else {"marker": "o"}
        style |= {"linestyle": ":"} if name == "(copy floor)" else {}
        ms = [of_length[name] * 1e3 for of_length in times_s.values()]
        axes.loglog(list(times_s), ms, label=name, linewidth=2.5 if name == "cpp" else 1.2, **style)
    axes.set_xticks(list(times_s), [f"{length:,}" for length in times_s], minor=False)
    axes.minorticks_off()
    axes.set(xlabel="positions", ylabel="ms", title=f"Selective scan, {title}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
