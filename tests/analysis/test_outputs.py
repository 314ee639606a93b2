"""`visweep report`: what it writes and attaches; all of it, or nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna_dashboard import get_note

from visweep.analysis.contents import figures, sheets
from visweep.analysis.images import NoBrowser, require_browser
from visweep.analysis.report import document
from visweep.cli.report import Wanted, report
from visweep.errors import UsageError
from visweep.storage.opening import open_storage

NAME = "vit-cluttered-digits"

try:
    require_browser("--figures")
    BROWSER = True
except NoBrowser:
    BROWSER = False

needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome is installed")


@pytest.fixture
def url(sweep: optuna.Study, tmp_path: Path) -> str:
    """A storage that may be changed."""
    (tmp_path / "storage").mkdir()
    path = tmp_path / "storage" / "studies.db"
    shutil.copyfile(str(sweep._storage._backend.engine.url.database), path)  # type: ignore[attr-defined]
    return f"sqlite:///{path}"


@pytest.fixture
def no_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "chrome"))


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@needs_browser
@pytest.mark.slow
def test_everything_at_once(sweep: optuna.Study, url: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    said = list(
        report(
            Wanted(
                NAME,
                output=out / "page.html",
                markdown=out / "report.md",
                figures=out / "figures",
                tables=out / "tables",
                attach=True,
                storage=url,
            )
        )
    )
    contents = document(sweep)
    images = {f"figures/{name}.{kind}" for name in figures(contents) for kind in ("png", "svg")}
    written = {f"tables/{name}.csv" for name in sheets(contents)}
    assert "tables/trials.csv" in written
    assert files(out) == {"page.html", "report.md", *images, *written}
    shown = re.findall(r"\]\((figures/[^)]*)\)", (out / "report.md").read_text("utf-8"))
    assert len(shown) == len(figures(contents))
    assert all((out / address).is_file() for address in shown)
    assert said[:4] == [
        f"wrote {out}/figures: {len(images)} files",
        f"wrote {out}/tables: {len(written)} files",
        f"wrote {out}/page.html",
        f"wrote {out}/report.md",
    ]
    assert said[4] == f"attached {len(figures(contents)) + 1} files and a note to {NAME}"
    assert said[5] == (
        f"see them: optuna-dashboard {url} --artifact-dir {tmp_path}/storage/artifacts"
    )
    attached = attached_to(url)
    assert set(attached) == {"report.html", *(f"{name}.png" for name in figures(contents))}
    assert attached["report.html"] == (out / "page.html").read_bytes()
    assert attached["history.png"] == (out / "figures" / "history.png").read_bytes()


def attached_to(url: str) -> dict[str, bytes]:
    storage = open_storage(url)
    try:
        study = optuna.load_study(study_name=NAME, storage=storage)
        folder = Path(url.removeprefix("sqlite:///")).parent / "artifacts"
        note = get_note(study)
        assert "# vit-cluttered-digits" in note
        assert "<details>" not in note
        return {
            meta.filename: (folder / meta.artifact_id).read_bytes()
            for meta in get_all_artifact_meta(study)
        }
    finally:
        storage.close()


def test_the_suffix_chooses(url: str, tmp_path: Path) -> None:
    assert list(report(Wanted(NAME, output=tmp_path / "r.md", storage=url))) == [
        f"wrote {tmp_path}/r.md"
    ]
    assert (tmp_path / "r.md").read_text("utf-8").startswith("# vit-cluttered-digits\n")
    list(report(Wanted(NAME, output=tmp_path / "r.html", storage=url)))
    assert (tmp_path / "r.html").read_text("utf-8").startswith("<!DOCTYPE html>")


def test_a_folder_keeps_what_else_it_has(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    wanted = Wanted(NAME, output=tmp_path / "r.md", tables=folder, storage=url)
    list(report(wanted))
    sheet = sorted(folder.glob("*.csv"))[0]
    first = sheet.read_text("utf-8")
    sheet.write_text("old")
    (folder / "mine.txt").write_text("mine")
    list(report(wanted))
    assert sheet.read_text("utf-8") == first
    assert (folder / "mine.txt").read_text() == "mine"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_without_a_browser_nothing_is_written(url: str, tmp_path: Path, no_browser: None) -> None:
    wanted = Wanted(
        NAME, output=tmp_path / "r.html", figures=tmp_path / "f", tables=tmp_path / "t",
        attach=True, storage=url,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"--figures: .*apt install chromium"):
        list(report(wanted))
    assert files(tmp_path) == {"storage/studies.db"}


def test_a_failure_leaves_no_folder(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    wanted = Wanted(NAME, output=tmp_path / "r.md", tables=tmp_path / "t", storage=url)
    with pytest.raises(UsageError, match=r"cannot write .*/t: No space left on device"):
        list(report(wanted))
    assert files(tmp_path) == {"storage/studies.db"}


def test_without_a_browser_the_page_and_the_note_are_attached(
    url: str, tmp_path: Path, no_browser: None
) -> None:
    said = list(report(Wanted(NAME, output=tmp_path / "r.html", attach=True, storage=url)))
    assert said[1].startswith("the figures are attached within the page only: figures are drawn")
    assert said[2] == f"attached 1 file and a note to {NAME}"
    assert attached_to(url) == {"report.html": (tmp_path / "r.html").read_bytes()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"figures": "storage/studies.db"}, "--figures: .*is a file"),
        ({"tables": "no/tables"}, "--tables: there is no folder"),
        ({"markdown": "storage"}, "--markdown: .*is a folder"),
        ({"markdown": "r.md"}, "--markdown: .* is the file of --output already"),
        ({"output": "no/r.md"}, "--output: there is no folder"),
    ],
)
def test_bad_places_are_named(
    url: str, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    places = {name: tmp_path / place for name, place in {"output": "r.md", **change}.items()}
    with pytest.raises(UsageError, match=message):
        list(report(Wanted(NAME, storage=url, **places)))  # type: ignore[arg-type]
    assert files(tmp_path) == {"storage/studies.db"}


def test_no_torch_and_no_browser_are_loaded_for_a_page(url: str, tmp_path: Path) -> None:
    code = (
        "import sys; from visweep.cli.app import app; from visweep.cli.errors import call\n"
        "try: call(app, sys.argv[1:])\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "loaded = {'torch', 'kaleido', 'choreographer', 'optuna_dashboard'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    page = str(tmp_path / "r.html")
    command = [sys.executable, "-c", code, "report", NAME, "-o", page, "--storage", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
