"""A program: BIMBA's compressors where nothing is installed but torch and what torch requires.

    python -S tests/release/torch_only.py FOLDER SITE [EXAMPLE.py ...]

FOLDER holds ``bimba/``, SITE is the site-packages folder that torch is in; other packages there cannot be found. The
examples are run, and what was computed is printed as one line of JSON.
"""

from __future__ import annotations

import importlib.machinery
import json
import re
import runpy
import shutil
import sys
from importlib.metadata import MetadataPathFinder, distributions


def requirements(name: str, site: str) -> set[str]:
    """The names of a distribution and of all that it requires here, directly or not."""
    found: set[str] = set()
    left = [name]
    installed = {normal(dist.metadata["Name"]): dist for dist in distributions(path=[site])}
    while left:
        one = normal(left.pop())
        if one in found or one not in installed:  # not there: of another platform, or an extra's
            continue
        found.add(one)
        for line in installed[one].requires or []:
            if "extra ==" not in line:
                left.append(re.match(r"[\w.-]+", line)[0])
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class OnlyThese(importlib.machinery.PathFinder):
    """Python's own finder, which does not see other top-level modules than these."""

    names: frozenset[str] = frozenset()

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        top = fullname.partition(".")[0]
        if top not in cls.names and not top.startswith("_sysconfigdata"):  # the standard library's, named by platform
            return None
        return super().find_spec(fullname, path, target)

    find_distributions = MetadataPathFinder.find_distributions


def hide_all_but_torch(folder: str, site: str) -> None:
    """Makes ``import`` find the standard library, torch with its requirements, and ``folder``'s bimba."""
    allowed = requirements("torch", site)
    modules = set()
    for dist in distributions(path=[site]):
        if normal(dist.metadata["Name"]) in allowed:
            tops = {file.parts[0] for file in dist.files or [] if file.suffix in (".py", ".so")}
            modules |= {top.partition(".")[0] for top in tops}
    OnlyThese.names = frozenset({*sys.stdlib_module_names, *modules, "bimba"})
    sys.meta_path[:] = [importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, OnlyThese]
    sys.path[:] = [folder, *(entry for entry in sys.path[1:] if "site-packages" not in entry), site]
    sys.path_importer_cache.clear()


def compute() -> dict[str, object]:
    """Every compressor forwards and backwards; Mamba's with each scan backend that runs on a CPU."""
    import torch

    from bimba.model.compressor import build_compressor, names
    from bimba.model.selection import selection_map, watch

    torch.set_num_threads(1)
    tokens = torch.randn(1, 4, 4, 4, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def pooled(frames: int, rows: int) -> torch.Tensor:
        """(1, 4, 4, 4, C) -> (1, T', Q', C)."""
        channels_first = torch.nn.functional.avg_pool3d(tokens.detach().movedim(-1, 1), (frames, rows, rows))
        return channels_first.movedim(1, -1).flatten(2, 3)

    queries = pooled(2, 2)
    kinds, scans = {}, {}
    for name in names():
        torch.manual_seed(0)
        compressor = build_compressor({"name": name}, hidden_size=16)
        given = pooled(*(compressor.fixed_reduction or (2, 2))).requires_grad_()
        compressor(tokens, given).square().sum().backward()
        kinds[name] = bool(torch.isfinite(tokens.grad if given.grad is None else given.grad).all())
    has_compiler = shutil.which("c++") or shutil.which("g++")
    for backend in ("chunked", "cpp") if has_compiler else ("chunked",):
        torch.manual_seed(0)
        compressor = build_compressor({"name": "mamba", "num_layers": 2, "scan_backend": backend}, hidden_size=16)
        for layer in compressor.layers:  # zero at first, and then no gradient would reach the scan
            torch.nn.init.normal_(layer.mixer.out_proj.weight)
        tokens.grad = None
        refined = compressor(tokens, queries)
        refined.square().sum().backward()
        scans[backend] = {
            "outputs": refined.flatten().tolist(),
            "gradients": [*tokens.grad.flatten().tolist(), *compressor.layers[0].mixer.A_log.grad.flatten().tolist()],
        }
    with watch(compressor) as seen, torch.no_grad():
        compressor(tokens, queries)
    return {"kinds": kinds, "scans": scans, "map": list(selection_map(seen[0]).total.shape)}


def message_of_missing() -> str:
    """What the names that need more than torch say."""
    import bimba

    try:
        return str(bimba.VideoQA)
    except bimba.types.BimbaError as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    code, torchs_place, *examples = sys.argv[1:]
    hide_all_but_torch(code, torchs_place)
    result = compute()
    for example in examples:
        runpy.run_path(example)
    result["examples"] = len(examples)
    result["modules"] = sorted(sys.modules)
    result["missing"] = message_of_missing()
    result["file"] = sys.modules["bimba"].__file__
    print(json.dumps(result))
