"""For mkdocs: README, CONTRIBUTING and the like become pages, and so does every file of the code that a page links to.

Pages are written for readers of the repository, with links relative to their own file. On the site these lead to pages,
so that it is complete in itself: no address of a repository is needed, and no network.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Pages that lie outside docs/: file -> page.
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "results.md",
    "tests/golden/README.md": "golden.md",
}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cpp": "cpp", ".toml": "toml", ".sbatch": "bash"}
WIDE = "---\nhide: [navigation, toc]\n---\n"
FENCE = re.compile(r"^[ ]*```.*?^[ ]*```$", re.M | re.S)
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, target in ELSEWHERE.items():
        hidden = WIDE.replace(", toc", "") if target == "index.md" else ""
        files.append(File.generated(config, target, content=hidden + (ROOT / source).read_text()))
    for page in [file for file in files if file.src_uri.endswith(".md")]:
        origin = origin_of(page.src_uri)
        for target, _ in LINK.findall(FENCE.sub("", page.content_string)):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
            uri = page_of(path)
            if files.get_file_from_path(uri) is None and (ROOT / path).is_file():
                files.append(new_file(config, path, uri))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings are written for help(), in its convention; what is not Markdown in them goes."""
    if page.file.src_uri != "api.md":
        return html
    return re.sub(r":(?:attr|class|func|meth|mod):(?=<code)", "", html).replace("::</p>", ":</p>")


def new_file(config: MkDocsConfig, path: str, uri: str) -> File:
    """A page with the text of a file, or a picture as it is."""
    if not uri.endswith(".md"):
        return File.generated(config, uri, abs_src_path=str(ROOT / path))
    text = (ROOT / path).read_text()
    fence = "`" * 4
    language = LANGUAGES.get(Path(path).suffix, "text")
    return File.generated(config, uri, content=f"{WIDE}# {path}\n\n{fence}{language}\n{text}{fence}\n")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the site has them; those in code are left alone."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown
    origin, here = posixpath.dirname(origin_of(uri)), posixpath.dirname(uri)

    def moved(match: re.Match[str]) -> str:
        there = page_of(posixpath.normpath(posixpath.join(origin, match[1])))
        return f"]({posixpath.relpath(there, here or '.')}{match[2] or ''})"

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(moved, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(moved, markdown[end:])])


def origin_of(uri: str) -> str:
    """The file of the repository that a page of the site is made of."""
    return {page: file for file, page in ELSEWHERE.items()}.get(uri, f"docs/{uri}")


def page_of(path: str) -> str:
    """The page of the site that shows a file of the repository."""
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    inside = path.removeprefix("docs/")
    is_text = Path(path).suffix in LANGUAGES or Path(path).suffix == ".csv"
    return f"source/{path}.md" if is_text else inside
