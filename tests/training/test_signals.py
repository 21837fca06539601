import os
import signal

import pytest

from bimba.training.signals import StopSignals, requeue

PREEMPTED = "JobId=7 JobName=train\n   JobState=RUNNING PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime={}\n"


@pytest.fixture
def signals():
    listening = StopSignals()
    listening.listen()
    yield listening
    listening.give_back()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_is_noted(signals, signum, capfd):
    os.kill(os.getpid(), signum)
    assert signals.received == signum
    assert "the run ends after this optimizer step" in capfd.readouterr().err


def test_a_second_ctrl_c_ends_the_run_at_once(signals):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_changes_nothing(signals):
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == signal.SIGUSR1


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    listening = StopSignals()
    listening.listen()
    assert signal.getsignal(signal.SIGTERM) != before
    listening.give_back()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """An scontrol that notes what it is asked, and says of each job what a test gives it."""
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncat {tmp_path}/said\n')
    program.chmod(0o755)
    (tmp_path / "said").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    return tmp_path


def asked(slurm):
    return (slurm / "asked").read_text().splitlines() if (slurm / "asked").exists() else []


def test_a_job_whose_time_is_up_is_queued_again(slurm):
    assert requeue(signal.SIGUSR1)
    assert asked(slurm) == ["requeue 7"]


def test_a_preempted_job_is_queued_again(slurm):
    (slurm / "said").write_text(PREEMPTED.format("2026-01-01T01:00:00"))
    assert requeue(signal.SIGTERM)
    assert asked(slurm) == ["show job 7", "requeue 7"]


def test_a_cancelled_job_is_not(slurm):
    (slurm / "said").write_text(PREEMPTED.format("None"))
    assert not requeue(signal.SIGTERM)
    assert asked(slurm) == ["show job 7"]


def test_a_job_of_an_array(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "6")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert requeue(signal.SIGUSR1)
    assert asked(slurm) == ["requeue 6_3"]


def test_ctrl_c_and_other_machines_do_not_ask_slurm(slurm, monkeypatch):
    assert not requeue(signal.SIGINT)
    monkeypatch.delenv("SLURM_JOB_ID")
    assert not requeue(signal.SIGUSR1)
    assert asked(slurm) == []


@pytest.mark.parametrize("program", ["#!/bin/sh\necho no such job >&2\nexit 1\n", None], ids=["refuses", "is_missing"])
def test_a_scontrol_that_fails_is_told_and_no_error(slurm, caplog, monkeypatch, program):
    if program is None:
        monkeypatch.setenv("PATH", str(slurm / "empty"))
    else:
        (slurm / "scontrol").write_text(program)
    assert not requeue(signal.SIGUSR1)
    assert "`scontrol requeue 7` failed" in caplog.text
