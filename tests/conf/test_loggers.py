"""``logger=`` with a package that is not installed."""

import importlib.util

import pytest


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_logger_that_is_not_installed_says_what_to_install_before_the_model_is_loaded(
    name, train_config, train_script, monkeypatch
):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "bimba.training.loggers.base.find_spec", lambda package: None if package == name else find_spec(package)
    )
    monkeypatch.setattr("bimba.training.build_model", lambda *_: pytest.fail("the model is loaded"))
    with pytest.raises(SystemExit) as stop:
        train_script.main(train_config(f"logger={name}"))
    assert f"logger={name} needs the package {name}, which is not installed: pip install {name}" in stop.value.code
