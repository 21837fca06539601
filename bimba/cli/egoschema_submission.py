"""``bimba egoschema-submission``: an evaluation's answers as a file for Kaggle."""

from __future__ import annotations

import argparse
from pathlib import Path

from bimba.cli.common import Commands, UsageError, add_command
from bimba.types import BimbaError


def add(commands: Commands) -> list[argparse.ArgumentParser]:
    submission = add_command(
        commands,
        "egoschema-submission",
        "answers of EgoSchema as the file for Kaggle",
        "Writes the answers of an evaluation as q_uid,answer with answers 0 to 4. Sends nothing.",
        ["bimba egoschema-submission outputs/evaluate/.../samples/bimba_egoschema.json submission.csv"],
    )
    submission.add_argument("samples", metavar="SAMPLES", help="the samples of the evaluation (.jsonl or .json)")
    submission.add_argument("destination", metavar="CSV", help="file to write; beside it the same as .json")
    submission.set_defaults(run=run)
    return [submission]


def run(arguments: argparse.Namespace) -> int:
    from lmms_eval_plugin.tasks.bimba_egoschema.submission import (
        FULL_SET,
        NO_ANSWER,
        read_predictions,
        write_submission,
    )

    samples, destination = Path(arguments.samples), Path(arguments.destination)
    if destination.suffix != ".csv":
        raise UsageError(f"The submission is to be {destination}; expected a name that ends in .csv.")
    if destination.with_suffix(".json").resolve() == samples.resolve():  # it holds the answers in the model's words
        raise UsageError(
            f"{destination} comes with {destination.with_suffix('.json')}, and that would take the place of the "
            "samples; give the submission another name or folder."
        )
    predictions = read_predictions(samples)
    try:
        write_submission(destination, predictions)
    except OSError as error:
        raise BimbaError(f"{destination} cannot be written ({error.strerror or error}); give another CSV.") from error
    unread = sum(index == NO_ANSWER for index in predictions.values())
    print(f"{len(predictions)} of {FULL_SET} answers are in {destination}; {unread} were no letter: {NO_ANSWER}.")
    return 0
