"""One benchmark from its folder to its last video: what is there, what was put right, what is left to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bimba.types import BimbaError
from lmms_eval_plugin.prepare import hub, questions
from lmms_eval_plugin.prepare.completion import Completion, Plan
from lmms_eval_plugin.prepare.home import default_home, elsewhere, folder_of, free_bytes
from lmms_eval_plugin.prepare.options import Options
from lmms_eval_plugin.prepare.report import Report, below, listing, size
from lmms_eval_plugin.prepare.rows import cache_folder
from lmms_eval_plugin.prepare.sources import Source, table_of
from lmms_eval_plugin.prepare.videos import Videos, look_up, unreadable

Rows = list[dict[str, Any]]


def prepare(source: Source, options: Options) -> Report:
    """Checks a benchmark's data; links, extracts and downloads what is missing, as far as ``options`` let it."""
    return _Preparation(source, options).run()


class _Preparation:
    def __init__(self, source: Source, options: Options):
        self.source, self.options = source, options
        self.table = table_of(source)
        self.folder = folder_of(source, options.home)
        self.report = Report(source.name)
        self.elsewhere = elsewhere(source, options.home, options.named)
        # With the data in another HF_HOME, a download to this one is hardly what was meant, unless it was named.
        may_fetch = options.may_fetch and (self.elsewhere is None or options.chosen)
        self.completion = Completion(self.folder, self.table, options, may_fetch)

    def run(self) -> Report:
        self._home()
        rows = self._questions()
        if rows is not None:
            self._videos(rows)
            self._subtitles(rows)
        self._token()
        if self.completion.problems:
            self.report.add("problems", "\n".join(self.completion.problems), ok=self.report.ready)
        free = size(free_bytes(self.folder))
        self.report.add("disk", f"{free} free; {'; '.join(self.completion.done) or 'nothing was changed'}")
        return self.report

    def _home(self) -> None:
        home, export = self.options.home, f"export HF_HOME={self.options.home}"
        if self.elsewhere is not None:
            state = f"{home} has nothing of {self.source.name}, {self.elsewhere} has"
            there = folder_of(self.source, self.elsewhere)
            todo = f"export HF_HOME={self.elsewhere}, or link the videos that are there: --from {there}"
            self.report.add("HF_HOME", state, todo, ok=self.options.chosen)
        else:
            state = str(home) if home.is_dir() else f"{home}, which does not exist"
            self.report.add("HF_HOME", state, "" if self.options.named == str(home) else export)

        cache = cache_folder(home)
        if self.table is not None and cache != home / "datasets":
            todo = f"`export LMMS_EVAL_DATASETS_CACHE={home / 'datasets'}` if it should be there"
            self.report.add("cache", f"the harness keeps questions in {cache}, not below HF_HOME", todo)

    def _questions(self) -> Rows | None:
        try:
            rows, copy = self._read_questions()
        except BimbaError as error:
            self.report.add("questions", str(error), self._how_to_get_questions(), ok=False)
            return None
        state = f"{len(rows):,}"
        if copy is None:
            self.report.add("questions", state)
        elif self.options.dry_run:
            self.report.add(
                "questions", f"{state} in {copy} alone", "without --dry-run they are brought over", ok=False
            )
        else:
            self.report.add("questions", f"{state}, brought over from {copy}")
        return rows

    def _read_questions(self) -> tuple[Rows, Path | None]:
        completion, dry_run = self.completion, self.options.dry_run
        if self.table is None:
            snapshot = hub.snapshot_of(questions.VNBENCH_REPOSITORY, self.options.home)
            return questions.of_vnbench(self.folder, [*completion.copies, *([snapshot] if snapshot else [])], dry_run)
        try:
            return questions.from_hub(self.table, self.options.home, completion.copies, dry_run)
        except BimbaError:
            if not completion.fetch(hub.NOT_ROWS):
                raise
            return questions.from_hub(self.table, self.options.home, completion.copies, dry_run)

    def _how_to_get_questions(self) -> str:
        if self.table is None:
            from lmms_eval_plugin.tasks.vnbench.annotations import ANNOTATION

            command = f"hf download {questions.VNBENCH_REPOSITORY} {ANNOTATION} --repo-type dataset"
            return f"for academic use: `{command} --local-dir {self.folder}`, or give a folder that has it with --from"
        return self._how_to_fetch("questions")

    def _how_to_fetch(self, what: str) -> str:
        """Of a benchmark whose data is on the hub."""
        if self.elsewhere is not None and not self.options.chosen:
            return "set HF_HOME as above; to download all the same, name this one: --hf-home"
        if self.completion.problems:
            return "see problems below"
        repository = self.table.repository if self.table else ""
        gated = f"{hub.ask_for_access(repository)}; " if self.source.gated and not hub.has_token() else ""
        again = "without --dry-run" if self.options.dry_run else "where there is a network, without --offline"
        of_what = f" ({self.source.size})" if what == "videos" else ""
        return (
            f"{gated}run it {again} to download {repository}{of_what}, or give a folder that has the {what} with --from"
        )

    def _videos(self, rows: Rows) -> None:
        videos = look_up(self.source, rows)
        plan = Plan()
        if videos.wanted:
            plan = self.completion.plan(videos.wanted, self.source.suffixes)
            if plan.unfound and self.completion.fetch(hub.SOUND):
                plan = self.completion.plan(videos.wanted, self.source.suffixes)
            if not self.options.dry_run:
                self.completion.carry_out(plan)
                videos = look_up(self.source, rows)
        state = f"{len(videos.present):,} of {videos.total:,} in {self.folder}"
        missing = [below(Path(name), self.folder) for name in videos.missing]
        broken = [f"{below(Path(name), self.folder)} ({why})" for name, why in videos.broken.items()]
        if missing:
            state += f"\n{len(missing):,} missing: {listing(missing)}"
        if broken:
            state += f"\n{len(broken):,} broken: {listing(broken)}"
        todo = self._how_to_complete(videos, plan)
        self.report.add("videos", state, todo, ok=not videos.wanted, names=[*missing, *broken])
        if self.options.probe:
            self._probe(videos)

    def _how_to_complete(self, videos: Videos, plan: Plan) -> str:
        if not videos.wanted:
            return ""
        steps = [f"without --dry-run it would {plan}"] if self.options.dry_run and plan.moves else []
        if plan.unfound:
            if self.table is None:
                steps.append(
                    "the VideoNIAH project serves them (the link is in the README of joez17/VideoNIAH): unpack its "
                    f"archive into {self.folder}, or name a folder that has them: --from"
                )
            else:
                steps.append(self._how_to_fetch("videos"))
        return "; ".join(steps) or "see problems below"

    def _probe(self, videos: Videos) -> None:
        bad = unreadable(videos)
        state = f"{len(videos.present) - len(bad):,} of {len(videos.present):,} can be opened"
        if bad:
            state += f"\n{listing(list(bad.values()))}"
        self.report.add("probe", state, "replace these files" if bad else "", ok=not bad, names=list(bad.values()))

    def _subtitles(self, rows: Rows) -> None:
        subtitles = self.source.subtitles
        if subtitles is None:
            return
        names = list(dict.fromkeys(subtitles.path(row) for row in rows))
        missing = self._missing(names)
        plan = Plan()
        if missing and self.options.subtitles:
            plan = self.completion.plan(missing)
            if plan.unfound and len(plan.unfound) == len(names) and self.completion.fetch(hub.SOUND):
                plan = self.completion.plan(missing)
            if not self.options.dry_run:
                self.completion.carry_out(plan)
                missing = self._missing(names)
        state = f"{len(names) - len(missing):,} of {len(names):,}"
        enough = not missing if subtitles.of_every_video else len(missing) < len(names)
        if not self.options.subtitles:
            todo = "" if enough else f"only for {', '.join(subtitles.tasks)}: --subtitles gets them"
            self.report.add("subtitles", state, todo)
            return
        if missing and subtitles.of_every_video:
            state += f"\nmissing: {listing(missing)}"
        todo = "" if enough else f"without --dry-run it would {plan}" if plan.moves else self._how_to_fetch("subtitles")
        self.report.add("subtitles", state, todo, ok=enough, names=missing if subtitles.of_every_video else ())

    def _missing(self, names: list[str]) -> list[str]:
        paths = {name: self.folder / name for name in names}
        return [name for name, path in paths.items() if not path.is_file() or path.stat().st_size == 0]

    def _token(self) -> None:
        if self.table is None:
            return
        gated = f"; {self.table.repository} is gated" if self.source.gated else ""
        if hub.has_token():
            self.report.add("token", f"there is one{gated}")
            return
        ready = self.report.ready
        other = default_home() / "token"
        todo = "with everything here set HF_HUB_OFFLINE=1: otherwise the harness wants one, even for open data sets"
        if not ready and self.source.gated:
            todo = hub.ask_for_access(self.table.repository)
        if other.is_file() and other.parent != self.options.home:
            todo += f"; the one in {other} is not read with this HF_HOME"
        self.report.add("token", f"none{gated}", todo, ok=ready or not self.source.gated)
