import pytest

from bimba.training.loggers import CsvLogger, has_wandb_key, wandb_logger


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, "")  # so that the variable, which Lightning sets, is put back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_no_key(no_key):
    assert not has_wandb_key()


def test_key_in_the_environment(no_key, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_wandb_key()


def test_key_in_netrc_for_this_server_only(no_key, monkeypatch):
    no_key.write_text("machine api.wandb.ai\n  login user\n  password " + "0" * 40 + "\n")
    no_key.chmod(0o600)
    assert has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_wandb_key()


def test_a_broken_netrc_is_no_key_and_says_so(no_key, caplog):
    no_key.write_text("machine\n")
    assert not has_wandb_key()
    assert "netrc" in caplog.text


def test_wandb_is_offline_without_a_key_and_logs_all_the_same(no_key, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = wandb_logger(tmp_path, project="test")
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.experiment.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_wandb_is_online_with_a_key_and_as_wandb_mode_says(no_key, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert not wandb_logger(tmp_path, project="test")._offline
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert not wandb_logger(tmp_path, project="test")._offline


def test_the_csv_file_lies_directly_in_the_run_folder(tmp_path):
    logger = CsvLogger(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,train/loss", "0,1.0"]


def test_new_columns_may_come_later(tmp_path):
    logger = CsvLogger(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.log_metrics({"val/loss": 2.0}, step=0)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,train/loss,val/loss", "0,1.0,", "0,,2.0"]


def log_steps(logger, steps, **metrics):
    for step in steps:
        logger.log_metrics(metrics, step=step)


def test_a_resumed_run_goes_on_where_it_resumed(tmp_path):
    log_steps(CsvLogger(tmp_path), [0, 1, 2], **{"train/loss": 1.0})
    again = CsvLogger(tmp_path, resume="last.ckpt")
    log_steps(again, [2], **{"train/loss": 0.5})
    log_steps(again, [2], **{"val/loss": 2.0})
    expected = ["step,train/loss,val/loss", "0,1.0,", "1,1.0,", "2,0.5,", "2,,2.0"]
    assert (tmp_path / "metrics.csv").read_text().splitlines() == expected


def test_a_new_run_in_the_same_folder_starts_a_new_file(tmp_path):
    log_steps(CsvLogger(tmp_path), [0, 1, 2], **{"train/loss": 1.0})
    log_steps(CsvLogger(tmp_path), [0], **{"val/loss": 0.5})
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,val/loss", "0,0.5"]
