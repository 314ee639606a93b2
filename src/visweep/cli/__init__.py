"""The command line; it imports torch only where something is trained."""

from __future__ import annotations


def main() -> None:
    """The command `visweep`."""
    from visweep.cli.app import app
    from visweep.cli.errors import call

    call(app)
