"""The layers of the design hold, and what trains nothing does not wait for torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_module_imports_only_from_the_layers_above_it() -> None:
    found = lint_imports(ROOT)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 broken" in found.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("training/fit.py", "import visweep.search.watch"),
        ("models/vit.py", "import optuna"),
        ("storage/slots.py", "import torch"),
        ("errors.py", "import visweep.config"),
    ],
)
def test_the_contracts_notice_what_breaks_them(
    module: str, statement: str, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    broken = tmp_path / "src" / "visweep" / module
    broken.write_text(f"{broken.read_text()}\n{statement}\n")
    code = "import sys; sys.path.insert(0, 'src'); from importlinter.cli import lint_imports"
    found = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit(lint_imports(no_cache=True))"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1, found.stdout + found.stderr
    assert "1 broken" in found.stdout


LIGHT = """
import contextlib, io, sys
from visweep.cli.app import app
from visweep.cli.errors import call

url = sys.argv[1]
for arguments in (
    ["status"],
    ["status", "night-run"],
    ["trials", "night-run"],
    ["trials", "night-run", "--csv"],
    ["stop", "night-run"],
    ["delete", "night-run", "--yes"],
):
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            call(app, [*arguments, "--storage", url])
    except SystemExit as e:
        assert not e.code, (arguments, e.code)
    heavy = {"torch", "torchvision"} & set(sys.modules)
    assert not heavy, (arguments, heavy)
    if arguments == ["status", "night-run"]:
        assert "optuna" not in sys.modules, "status needs its own SQL alone"
"""


def test_looking_and_tidying_up_do_not_import_torch(
    launcher: Any, tiny_search: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    made = launcher.run(
        tiny_search, "--trials", 1, "--epochs", 1, "--train-size", 300, "--study", "night-run",
        "--storage", url,
    )  # fmt: skip
    assert (made.status, made.stderr) == (0, "")
    light = subprocess.run(
        [sys.executable, "-c", LIGHT, url],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert light.returncode == 0, light.stderr


WATCHED = """
import runpy, sys

for more in (["--trials", "1"], ["--trials", "3", "--workers", "2"]):
    sys.argv = [*command, *more]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as e:
        assert not e.code, (more, e.code)
    assert "torch" not in sys.modules, more
"""


def test_who_only_watches_workers_does_not_import_torch(
    launcher: Any, tiny_search: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    small = ["--epochs", "1", "--train-size", "300", "--storage", f"sqlite:///{tmp_path}/s.db"]
    made = launcher.run(tiny_search, *small, "--device", "cpu", "--trials", 1)
    assert (made.status, made.stderr) == (0, "")
    # Nothing is left to do; then two trials are, in processes of their own.
    code = f"command = {[str(tiny_search), *small, '--device', 'cpu']!r}\n{WATCHED}"
    watched = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (watched.returncode, watched.stderr) == (0, "")
    assert "[3/3]" in watched.stdout


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (["visweep"], ["torch", "optuna", "sqlalchemy"]),
        (["visweep.config", "visweep.errors"], ["torch", "optuna", "numpy"]),
        (["visweep.storage.slots", "visweep.storage.specification"], ["torch"]),
        (["visweep.storage.overview"], ["torch", "optuna"]),
        (["visweep.search.study", "visweep.search.live", "visweep.search.summary"], ["torch"]),
        (["visweep.cli.app", "visweep.cli.sweep", "visweep.cli.studies"], ["torch"]),
        (["visweep.cli.prepare", "visweep.cli.search", "visweep.cli.join"], ["torch"]),
        (["visweep.search.bounds", "visweep.search.expectation"], ["torch"]),
        (["visweep.analysis.statistics.words"], ["torch", "optuna", "sqlalchemy", "scipy.stats"]),
        (["visweep.training.counts", "visweep.training.estimate"], ["torch", "numpy"]),
        (["visweep.training.fit", "visweep.models", "visweep.data"], ["optuna", "sqlalchemy"]),
    ],
)
def test_what_a_module_does_not_load(modules: list[str], absent: list[str]) -> None:
    code = textwrap.dedent(f"""
        import importlib, sys
        for module in {modules!r}:
            importlib.import_module(module)
        print(*sorted(set({absent!r}) & set(sys.modules)))
    """)
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []
