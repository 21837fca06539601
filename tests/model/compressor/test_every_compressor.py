"""What every compressor promises, checked of every file there is: a new one is covered as it is added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import bimba.model.compressor
from bimba.checkpoint import load_pretrained, save_pretrained
from bimba.model.compressor import Compressor, build_compressor, complete, reduction_of
from bimba.model.config import BimbaConfig
from bimba.model.mamba import cast
from bimba.model.queries import pool_queries
from bimba.training.flops import Work, count_flops
from bimba.types import BimbaError
from tests.tiny_checkpoint import IMAGE_SIZE, tiny_model

ROOT = Path(__file__).parents[3]
FILES = {path.stem: path for path in sorted((ROOT / "conf/model/compressor").glob("*.yaml"))}
HIDDEN = 16
CONFIGS = {name: yaml.safe_load(path.read_text()) for name, path in FILES.items()}
CONFIGS |= {
    f"{name}, question": {**config, "question_conditioned": True}
    for name, config in CONFIGS.items()
    if "question_conditioned" in complete(config)
}
every = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def make(config: dict[str, Any], trained: bool = False) -> Any:
    """As at the start of a training, or as after some steps: nothing is zero any more."""
    torch.manual_seed(0)
    compressor: Any = build_compressor(config, HIDDEN)
    if trained:
        for parameter in compressor.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return compressor


def inputs(config: dict[str, Any], grid: tuple[int, int, int] = (4, 4, 6), batch: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(1)
    tokens = torch.randn(batch, *grid, HIDDEN)
    given = {"space_time_tokens": tokens}
    given["queries"] = pool_queries(tokens, reduction_of(config) or (2, 2)).flatten(2, 3)
    if config.get("question_conditioned"):
        given["question"] = torch.randn(batch, 3, HIDDEN)
    return given


def test_there_is_one_yaml_for_each_file_and_it_names_every_option() -> None:
    folder = Path(bimba.model.compressor.__path__[0])
    assert set(FILES) == {path.stem for path in folder.glob("[!_]*.py")}
    for name, path in FILES.items():
        config = yaml.safe_load(path.read_text())
        assert config["name"] == name
        assert set(config) == set(complete(config)), name
        assert path.read_text().startswith("# ")


@every
@pytest.mark.parametrize("grid", [(4, 4, 6), (5, 3, 3), (2, 7, 1)], ids=str)
def test_as_many_tokens_come_out_as_queries_go_in(config: dict[str, Any], grid: tuple[int, int, int]) -> None:
    compressor, given = make(config, trained=True), inputs(config, grid, batch=1)
    assert isinstance(compressor, Compressor)
    with torch.no_grad():
        output = compressor(**given)
    assert output.shape == given["queries"].shape
    assert output.isfinite().all()


@every
def test_samples_do_not_mix(config: dict[str, Any]) -> None:
    compressor, given = make(config, trained=True), inputs(config)
    with torch.no_grad():
        together = compressor(**given)
        alone = torch.cat([compressor(**{key: x[i : i + 1] for key, x in given.items()}) for i in range(2)])
    torch.testing.assert_close(together, alone)


@every
def test_a_fresh_one_with_weights_returns_the_pooled_queries(config: dict[str, Any]) -> None:
    compressor, given = make(config), inputs(config)
    if any(True for _ in compressor.parameters()):
        assert torch.equal(compressor(**given), given["queries"])


@every
def test_gradients_reach_what_comes_in_and_every_weight(config: dict[str, Any]) -> None:
    compressor, given = make(config), {key: x.requires_grad_() for key, x in inputs(config).items()}
    target = torch.randn(given["queries"].shape)
    optimizer = torch.optim.SGD([*compressor.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    for _ in range(2):  # the second: a fresh out_proj of zeros lets nothing through
        optimizer.zero_grad()
        (compressor(**given) * target).square().sum().backward()
        optimizer.step()
    silent = [name for name, p in compressor.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    # A pooled query is made of tokens: a compressor that returns the queries gives them their gradient that way.
    reached = [x.grad is not None and bool(x.grad.any()) for x in given.values()]
    assert all(reached) or (not list(compressor.parameters()) and any(reached))


@every
def test_the_result_has_the_queries_type_whatever_the_weights_have(config: dict[str, Any]) -> None:
    given = inputs(config)
    for weights, queries in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        compressor = cast(make(config, trained=True), weights)
        with torch.no_grad():
            output = compressor(**{key: x.to(queries) for key, x in given.items()})
        assert output.dtype == queries


@every
def test_the_question_decides_where_it_is_asked_and_is_refused_elsewhere(config: dict[str, Any]) -> None:
    compressor, given = make(config, trained=True), inputs(config)
    with torch.no_grad():
        if not config.get("question_conditioned"):
            with pytest.raises(BimbaError, match="built without question_conditioned"):
                compressor(**given, question=torch.randn(2, 3, HIDDEN))
            return
        other = compressor(**{**given, "question": torch.randn(2, 5, HIDDEN)})
        assert not torch.allclose(compressor(**given), other)
        with pytest.raises(BimbaError, match="at least one token; received none"):
            compressor(given["space_time_tokens"], given["queries"])


@every
def test_an_unknown_option_is_explained(config: dict[str, Any]) -> None:
    with pytest.raises(BimbaError, match=r"has no option strides; its options are: .*reduction"):
        build_compressor({**config, "strides": 2}, HIDDEN)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    save_pretrained(*tiny_model(), folder)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_a_model_with_it_is_saved_loaded_counted_and_read(name: str, base: Path, tmp_path: Path) -> None:
    model, processor = load_pretrained(base, compressor=CONFIGS[name])
    with torch.no_grad():
        for parameter in model.compressor.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    save_pretrained(model, processor, tmp_path / "trained")
    again, counts = load_pretrained(tmp_path / "trained")
    weights, saved = model.compressor.state_dict(), again.compressor.state_dict()
    assert list(weights) == list(saved) and all(torch.equal(weights[key], saved[key]) for key in weights)
    video = torch.randn(4, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        tokens = again.encode_video(video)
    assert len(tokens) == counts.num_video_tokens(4) == processor.num_video_tokens(4)
    plain = count_flops(load_pretrained(base, compressor=None)[0], Work([], 0, [4]), backward=False)
    more = count_flops(model, Work([], 0, [4]), backward=False) - plain
    assert more > 0 if weights or name == "tome" else more == 0  # which multiplies tokens with each other


@pytest.mark.parametrize("name", FILES)
def test_transformers_gives_its_weights_the_start_it_asks_for(name: str) -> None:
    from bimba.model.bimba import BimbaForConditionalGeneration

    sizes = {key: value for key, value in tiny_model()[0].config.to_dict().items() if key.endswith("_config")}
    config = BimbaConfig(**sizes, compressor=CONFIGS[name], num_frames=4)
    model = BimbaForConditionalGeneration(config)
    assert type(model.compressor).__name__ in model._no_split_modules
    tokens = torch.randn(1, 4, 4, 4, 32)
    queries = pool_queries(tokens, config.reduction).flatten(2, 3)
    if any(True for _ in model.compressor.parameters()):
        assert torch.equal(model.compressor(tokens, queries), queries)
