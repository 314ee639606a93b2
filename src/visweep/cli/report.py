"""Writing the report of a study: as a page, as Markdown, in parts, and attached to the study."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import optuna

from visweep import text
from visweep.analysis.comma_separated import to_csv
from visweep.analysis.contents import figures, sheets
from visweep.analysis.document import Document
from visweep.analysis.images import NoBrowser, draw, require_browser
from visweep.analysis.markdown import to_markdown
from visweep.analysis.rendering import to_html
from visweep.analysis.report import document, write_text
from visweep.cli import options as opt
from visweep.cli.output import check_folder, check_output, output_of, write_files
from visweep.cli.studies import opened, place_above
from visweep.errors import UsageError
from visweep.storage import attached
from visweep.storage.engine import Storage
from visweep.storage.folder import Folder
from visweep.storage.place import Place
from visweep.storage.url import bare

_MARKDOWN = (".md", ".markdown")
_PAGES = (".html", ".htm")
_PAGE = "report.html"
"""What the page is called among the files that are attached."""
_ATTACHED = ("png",)
"""In which formats figures are attached. The dashboard serves them from its own origin, where a
script could do all that the dashboard can: an SVG may hold one, though ours do not, and a PNG
cannot. (The page holds scripts, and a policy by which only these run, and send nothing.)"""


@dataclass(frozen=True)
class Wanted:
    """What a call asks for.

    Attributes:
        study: its name.
        output: the page, or Markdown, by its suffix; None for a page named after the study.
        markdown: a Markdown file besides.
        figures, tables: folders for these; None for none.
        attach: whether to attach it to the study.
        storage: where the study lies; None for the usual place.
        artifacts: where this machine finds the study's artifacts; None for where it says.
    """

    study: str
    output: Path | None = None
    markdown: Path | None = None
    figures: Path | None = None
    tables: Path | None = None
    attach: bool = False
    storage: str | None = None
    artifacts: str | None = None


@dataclass(frozen=True)
class _Made:
    """What is to be written, all of it made before any of it is.

    Attributes:
        images: the figures, by file name; None where they are not wanted or cannot be drawn.
        undrawn: why they cannot be.
        folders: files by name, by their folder.
        files: text by file.
    """

    images: dict[str, bytes] | None
    undrawn: str | None
    folders: dict[Path, dict[str, bytes]]
    files: dict[Path, str]


def report(wanted: Wanted) -> Iterator[str]:
    """Write what is wanted; yields what is to be said of it.

    Raises:
        UsageError: an option is bad, there is no such study, or no browser where one is needed;
            then nothing was written.
        StorageError: the storage, or the place of the artifacts, fails.
    """
    output = _checked(wanted)
    where = opt.storage_arguments(opt.storage_url(wanted.storage))
    with opened(wanted.storage, wanted.study, to_change=wanted.attach) as (study, storage):
        contents = document(study, where)
        made = _make(contents, wanted, output)
        for folder, files in made.folders.items():
            _write_folder(folder, files)
            yield f"wrote {folder}: {text.plural(len(files), 'file')}"
        for path, page in made.files.items():
            write_text(page, path)
            yield f"wrote {path}"
        if wanted.attach:
            yield from _attach(contents, made, study, storage, wanted.artifacts)


def _checked(wanted: Wanted) -> Path:
    """The main file, once all can be written."""
    output = output_of(wanted.study, wanted.output, ".html")
    if output.suffix.lower() not in (*_PAGES, *_MARKDOWN):
        raise UsageError(
            f"--output: {output} is no page; accepted: a name that ends in .html or .md"
        )
    if wanted.markdown is not None:
        check_output(wanted.markdown, "--markdown")
        if wanted.markdown.absolute() == output.absolute():
            raise UsageError(f"--markdown: {wanted.markdown} is the file of --output already")
    for folder, option in ((wanted.figures, "--figures"), (wanted.tables, "--tables")):
        if folder is not None:
            check_folder(folder, option)
    if wanted.figures is not None:
        require_browser("--figures")
    return output


def _make(contents: Document, wanted: Wanted, output: Path) -> _Made:
    images, undrawn = _draw(contents, wanted)
    folders: dict[Path, dict[str, bytes]] = {}
    if wanted.figures is not None and images is not None:
        folders[wanted.figures] = dict(images)
    if wanted.tables is not None:
        written = {f"{name}.csv": to_csv(sheet) for name, sheet in sheets(contents).items()}
        files = folders.setdefault(wanted.tables, {})
        files.update({name: content.encode() for name, content in written.items()})
    pages = {}
    for path in (output, wanted.markdown):
        if path is None:
            continue
        if path is wanted.markdown or path.suffix.lower() in _MARKDOWN:
            pages[path] = to_markdown(contents, _between(path, wanted.figures))
        else:
            pages[path] = to_html(contents)
    return _Made(images, undrawn, folders, pages)


def _draw(contents: Document, wanted: Wanted) -> tuple[dict[str, bytes] | None, str | None]:
    """The figures as far as they are wanted, or why there are none."""
    if wanted.figures is not None:
        return draw(figures(contents), "--figures"), None
    if not wanted.attach:
        return None, None
    try:
        return draw(figures(contents), "--attach", _ATTACHED), None
    except NoBrowser as e:
        # The page holds them, too.
        return None, str(e).removeprefix("--attach: ")


def _between(file: Path, folder: Path | None) -> str | None:
    """How a file refers to a folder."""
    if folder is None:
        return None
    return Path(os.path.relpath(folder.absolute(), file.absolute().parent)).as_posix()


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    try:
        write_files(folder, files)
    except OSError as e:
        raise UsageError(f"report: cannot write {folder}: {e.strerror}") from e


def _attach(
    contents: Document, made: _Made, study: optuna.Study, storage: Storage, artifacts: str | None
) -> Iterator[str]:
    place = place_above(study, storage, opt.artifacts_place(artifacts))
    files = [attached.File(_PAGE, "text/html", to_html(contents).encode())]
    files += [
        attached.File(name, "image/png", image)
        for name, image in (made.images or {}).items()
        if Path(name).suffix.removeprefix(".") in _ATTACHED
    ]
    attached.attach(storage, study._study_id, place, files, _note(contents, made))
    if made.undrawn is not None:
        yield f"the figures are attached within the page only: {made.undrawn}"
    yield f"attached {text.plural(len(files), 'file')} and a note to {study.study_name}"
    yield _how_to_see(place, storage)


def _note(contents: Document, made: _Made) -> str:
    figures_too = ", and its figures as images" if made.images else ""
    what = f"The page itself is attached as {_PAGE}{figures_too}."
    return f"{to_markdown(contents, folded=False)}\n{what}\n"


def _how_to_see(place: Place, storage: Storage) -> str:
    url = bare(storage.engine.url.render_as_string(hide_password=False))
    if not isinstance(place, Folder):
        return f"they lie in {place.where}, where optuna-dashboard must be configured to look"
    command = ["optuna-dashboard", url, "--artifact-dir", str(place.folder.absolute())]
    return f"see them: {shlex.join(command)}"
