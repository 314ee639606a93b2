"""`--help` says of everything what it does, its default, and an example."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from visweep.cli.app import app

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"
SCRIPTS = ("vit_search", "convnet_search", "report_ablation")


def sweep_app(script: str) -> typer.Typer:
    from visweep.cli.sweep import command_of

    spec = importlib.util.spec_from_file_location(script, SWEEPS / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = typer.Typer(add_completion=False)
    made.command(help=module.__doc__)(command_of(getattr(module, "SEARCH", None) or module.REPORT))
    return made


def commands() -> dict[str, Any]:
    visweep = typer.main.get_command(app)
    return {
        **{f"visweep {n}": c for n, c in visweep.commands.items()},  # type: ignore[attr-defined]
        **{n: typer.main.get_command(sweep_app(n)) for n in SCRIPTS},
    }


COMMANDS = commands()
OPTIONS = [
    pytest.param(option, id=f"{name} {option.opts[0]}")
    for name, command in COMMANDS.items()
    for option in command.params
    if option.param_type_name == "option" and option.opts[0] != "--help"
]


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_explained(option: Any) -> None:
    assert option.help, "no help"
    if option.is_flag:
        return  # what it does is its example, and its default is not to
    shown = option.default is not None and option.show_default
    assert shown or "[default: " in option.help, "no default"
    assert re.search(r"such as \S|: vit or convnet", option.help), "no example"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_explained(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    for argument in command.params:
        if argument.param_type_name == "argument":
            assert argument.help


SWEEP_OPTIONS = {
    "--trials", "--study", "--storage", "--artifacts", "--dataset", "--data-dir", "--image-size",
    "--train-size", "--epochs", "--batch-size", "--lr", "--weight-decay", "--train-curves",
    "--space", "--seeds", "--device", "--workers", "--pack", "--sampler", "--pruner",
    "--duplicates", "--timeout", "--seed", "--max-params", "--max-flops", "--max-epoch-seconds",
    "--dry-run",
}  # fmt: skip


@pytest.mark.parametrize("name", ["vit_search", "convnet_search"])
def test_a_sweep_has_the_options_that_all_have(name: str) -> None:
    found = {o.opts[0] for o in COMMANDS[name].params} - {"--help"}
    assert found == SWEEP_OPTIONS


HELP = """
import contextlib, io, runpy, sys
from visweep.cli.app import app
from visweep.cli.errors import call

def said(function):
    file = io.StringIO()
    try:
        with contextlib.redirect_stdout(file):
            function()
    except SystemExit as e:
        assert not e.code, e.code
    return file.getvalue()

COMMANDS = "status report trials stop resume worker delete train export predict shift"
for command in COMMANDS.split():
    shown = said(lambda: call(app, [command, "--help"]))
    assert "such as" in shown, shown
    assert "--storage" in shown or command == "predict", shown
listed = said(lambda: call(app, ["--help"]))
assert "Usage" in listed and "export" in listed and "predict" in listed, listed
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    shown = said(lambda: runpy.run_path(script, run_name="__main__"))
    assert "--trials" in shown and "50" in shown and "halving" in shown, shown
    assert "python sweeps/" in shown, shown
loaded = {"torch", "torchvision", "onnx", "onnxruntime", "sklearn", "scipy"} & set(sys.modules)
assert not loaded, loaded
"""


def test_help_is_shown_without_torch(environment: dict[str, str]) -> None:
    scripts = [str(SWEEPS / name) for name in ("vit_search.py", "convnet_search.py")]
    shown = subprocess.run(
        [sys.executable, "-c", HELP, *scripts],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.stderr == ""
    assert shown.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_tells_and_writes_nothing(launcher: Any, tmp_path: Path) -> None:
    """It probes the machine, which takes about a minute on an idle one."""
    url = f"sqlite:///{tmp_path}/studies.db"
    arguments = ["--dry-run", "--train-size", "300", "--trials", "7", "--storage", url]
    shown = launcher.start(SWEEPS / "convnet_search.py", *arguments, cwd=tmp_path).wait(400)
    assert (shown.status, shown.stderr) == (0, "")
    assert "study convnet-cluttered-digits-small, 7 trials" in shown.stdout
    for words in (
        "smallest", "middle", "largest", "fingerprint", "halving", "widths.0     8, 12 or 16",
        "drop         0 to 0.5", "images     300 for training", "32×32 pixels, 1 channel",
        "7 trials like the middle one",
    ):  # fmt: skip
        assert words in shown.stdout
    assert list(tmp_path.iterdir()) == []
    # Shorter than what is timed.
    short = ["--dry-run", "--train-size", "128", "--epochs", "1", "--storage", url]
    assert launcher.start(SWEEPS / "vit_search.py", *short).wait(400).status == 0
