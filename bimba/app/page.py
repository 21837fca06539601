"""What is on the page, and what happens when something on it is used."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from bimba.app import drawing
from bimba.app.asking import ask, check_asked, checked_options
from bimba.app.models import Models
from bimba.app.reading import read
from bimba.app.sessions import Sessions
from bimba.types import BimbaError

READERS, ASKERS, QUEUE = 8, 16, 128  # sessions that read at a time, questions that wait for the model, and for those
# What changes by itself is read out, politely; Gradio's components take no such attribute.
ON_LOAD = """() => {
  for (const id of ["stages", "answers"]) document.getElementById(id)?.setAttribute("aria-live", "polite");
  document.documentElement.lang = "en";
}"""
Update = tuple[Any, ...]


def build(models: Models, sessions: Sessions, max_upload_bytes: int) -> gr.Blocks:
    """The page of these models."""

    def on_upload(path: str, request: gr.Request) -> Iterator[Update]:
        try:
            reading = sessions.open(_session(request), Path(path))
        except FileNotFoundError:  # another session with the same file went at this very moment
            yield drawing.stages(None, "The file is gone; drop it again."), "", ""
            return
        before = None
        for _ in read(reading, models):
            shown = (len(reading.pictures), dict(reading.maps))
            frames = drawing.frames(reading, models) if shown != before else gr.skip()
            before = shown
            yield drawing.stages(reading), frames, drawing.answers(reading)

    def on_clear(request: gr.Request) -> Update:
        sessions.close(_session(request))
        return drawing.stages(None), "", ""

    def on_ask(question: str, options: str, short: bool, request: gr.Request) -> Iterator[Update]:
        reading = sessions.get(_session(request))
        try:
            listed = checked_options(options)
            asked = check_asked(reading, question)
        except BimbaError as error:
            yield gr.skip(), gr.skip(), drawing.answers(reading, str(error))
            return
        field: Any = ""  # emptied once, for the next question may be in it already
        before = dict(asked.maps)
        for _ in ask(asked, models, question, listed, short):
            frames = drawing.frames(asked, models) if asked.maps != before else gr.skip()
            before = dict(asked.maps)
            yield field, frames, drawing.answers(asked)
            field = gr.skip()

    def on_unload(request: gr.Request) -> None:
        sessions.close(_session(request))

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    with gr.Blocks(title="BIMBA", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(_header(models), elem_id="header")
        with gr.Row(elem_id="work", equal_height=False):
            with gr.Column(min_width=300):
                video = gr.Video(
                    label=f"Video, at most {max_upload_bytes / 2**20:g} MB",
                    sources=["upload"],
                    elem_id="video",
                    height=300,
                )
                stages = gr.HTML(drawing.stages(None), elem_id="stages")
            with gr.Column(min_width=300):
                question = gr.Textbox(
                    label="Question", placeholder="What happens after the goal?", elem_id="question", max_lines=4
                )
                options = gr.Textbox(
                    label="Options, one a line",
                    info="Leave empty for an answer in words. With 2 to 26 options you see how likely each is.",
                    lines=4,
                    max_lines=8,
                    elem_id="options",
                )
                short = gr.Checkbox(label="Ask for a single word or phrase", elem_id="short")
                button = gr.Button("Ask", variant="primary", elem_id="ask")
                answers = gr.HTML(elem_id="answers")
        frames = gr.HTML(elem_id="frames")

        shown = [stages, frames, answers]
        video.upload(on_upload, video, shown, concurrency_limit=READERS, trigger_mode="multiple", **quiet)
        video.clear(on_clear, None, shown, **quiet)
        gr.on(
            [question.submit, button.click],
            on_ask,
            [question, options, short],
            [question, frames, answers],
            concurrency_limit=ASKERS,
            trigger_mode="multiple",
            **quiet,
        )
        blocks.unload(on_unload)
    blocks.queue(max_size=QUEUE)
    return blocks


def look() -> dict[str, Any]:
    """Theme, styles and scripts, as ``gr.mount_gradio_app`` takes them; all of it from this machine."""
    fonts, mono = ["system-ui", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"], ["ui-monospace", "monospace"]
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", radius_size="md", font=fonts, font_mono=mono)
    theme.set(  # at least 4.5:1 on what is behind them
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        input_placeholder_color="*neutral_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
    )
    return {"theme": theme, "css": (files("bimba.app") / "templates" / "style.css").read_text(), "js": ON_LOAD}


def _header(models: Models) -> str:
    return drawing.header([model.label for model in models.all], str(models.all[0].engine.model.device))


def _session(request: gr.Request) -> str:
    if request.session_hash is None:
        raise BimbaError("A request came without a session; use the page in a browser.")
    return str(request.session_hash)
