"""Errors as a person sees them: one line on stderr, and a status that tells whose they are."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from visweep.errors import UsageError, VisweepError
from visweep.storage.url import mask

USAGE, FAILURE, INTERRUPTED = 2, 1, 130


class StoppedAtOnce(VisweepError):
    """A second Ctrl-C: nothing was waited for."""


def call(app: typer.Typer, arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit.

    Bad input ends with one line and status 2, a failure at run time with one line and status 1;
    an error of our own making keeps its traceback.
    """
    try:
        status = app(args=arguments, standalone_mode=False)
    except UsageError as e:
        _end(str(e), USAGE)
    except StoppedAtOnce as e:
        _end(str(e), INTERRUPTED)
    except VisweepError as e:
        _end(str(e), FAILURE)
    except TyperException as e:
        _end(_message(e, sys.argv[1:] if arguments is None else arguments), USAGE)
    except (KeyboardInterrupt, typer.Abort):
        _end("stopped", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone (as `| head` does); Python would complain once more.
        sys.stderr.close()
        sys.exit(FAILURE)
    sys.exit(status if isinstance(status, int) else 0)


def _message(error: TyperException, arguments: Sequence[str]) -> str:
    """Typer's own word, with the value that it leaves out."""
    options = getattr(getattr(error, "param", None), "opts", [])
    given = None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = argument.partition("=")
        if name in options:
            given = value if equals else following
    if given is None:
        return error.format_message()
    if "valid integer" in error.message:
        return f"{options[0]}: {given!r} is not a whole number; accepted: such as 8"
    if "valid number" in error.message:
        return f"{options[0]}: {given!r} is not a number; accepted: such as 0.5"
    reason = error.message[:1].lower() + error.message[1:]
    return f"{options[0]}: {given!r} is not accepted: {reason}"


def _end(message: str, status: int) -> None:
    line = mask(" ".join(message.split()))
    print(f"error: {line}", file=sys.stderr)
    sys.exit(status)
