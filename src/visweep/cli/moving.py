"""The commands that move a study between machines, and look whether it is sound."""

from pathlib import Path
from typing import Annotated

import typer

from visweep import text
from visweep.cli import options as opt
from visweep.cli.output import check_output, output_of
from visweep.errors import UsageError
from visweep.storage.url import check_folder, mask


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (pack, unpack, merge, check):
        app.command()(command)


def pack(
    study: opt.Study,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to write it, such as study.visweep. [default: STUDY.visweep]",
        ),
    ] = None,
    storage: opt.Storage = None,
    artifacts: opt.Artifacts = None,
) -> None:
    """Put a study into one file, to go on with it on another machine. It may be running."""
    from visweep.storage.pack import pack

    path = output_of(study, output, ".visweep")
    size = pack(_existing(storage), study, path, opt.artifacts_place(artifacts))
    typer.echo(f"packed {study} into {path} ({text.memory(size)})")
    typer.echo(f"on the other machine: visweep unpack {path.name}")


def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study packed by visweep pack.")],
    study: Annotated[
        str | None,
        typer.Option(
            "--study",
            metavar="NEWNAME",
            help="Call the study so here, such as night-run-2. [default: as it was called]",
        ),
    ] = None,
    storage: opt.Storage = None,
    artifacts: opt.Artifacts = None,
) -> None:
    """Add a packed study to a storage; then the command that began it goes on with it."""
    from visweep.storage.pack import unpack

    if study is not None and not study.strip():
        raise UsageError("--study: the name is empty; accepted: any other name")
    url = opt.storage_url(storage)
    folder = opt.missing_folder(url)
    if folder is not None:
        check_folder(folder.parent)
    done = unpack(file, url, study, missing=folder, artifacts=opt.artifacts_place(artifacts))
    how = "with proposals of its own"
    if done.compares:
        how = "with the same runs: what two copies train both counts once when they are merged"
    typer.echo(
        f"unpacked {done.study} with {text.plural(done.finished, 'finished trial')}; "
        f"it goes on as branch {done.branch}, {how}"
    )


def merge(
    first: Annotated[
        Path, typer.Argument(metavar="A.db", help="A database; its trials keep their numbers.")
    ],
    second: Annotated[
        Path, typer.Argument(metavar="B.db", help="Another one, of the same studies.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="C.db",
            help="The new database, such as merged/studies.db. [default: none, it is required]",
        ),
    ],
) -> None:
    """Unite studies that went on apart on two machines, in a new database."""
    from visweep.storage.merge import merge

    for path in (first, second):
        if ":/" in str(path):
            raise UsageError(
                f"merge: {mask(str(path))} is no file; accepted: SQLite files (pack a study of a "
                "server, and unpack it into one)"
            )
    # A folder of its own may be made for it.
    check_output(output if output.parent.exists() else output.parent)
    for found in merge(first, second, output):
        budget = "" if found.budget is None else f" of {found.budget}"
        said = f"{found.name}: {found.finished}{budget} trials finished"
        if went_on := found.set_aside - found.twice:
            said += (
                f"; {text.plural(went_on, 'trial')} that both went on with: the other copy is "
                "kept in set-aside"
            )
        if found.twice:
            said += (
                f"; {text.plural(found.twice, 'run')} trained twice, once in each file: one of "
                "them counts, the other is kept in set-aside"
            )
        typer.echo(said)
    typer.echo(f"wrote {output}")


def check(
    study: Annotated[
        str | None, typer.Argument(metavar="STUDY", help="Check this study only.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Do what would be done, after a backup.")
    ] = False,
    storage: opt.Storage = None,
    artifacts: opt.Artifacts = None,
) -> int:
    """See whether the studies are sound: database, slots, curves and checkpoints."""
    from visweep.storage.check import check
    from visweep.storage.check import repair as mend

    url = _existing(storage)
    place = opt.artifacts_place(artifacts)
    found = check(url, study, place)
    for finding in found:
        kind = "wrong" if finding.wrong else "stale"
        typer.echo(f"{kind}: {finding.what}; repair: {finding.remedy}")
    if repair:
        for backup in mend(url, study, place):
            typer.echo(f"backup: {backup}")
        found = check(url, study, place)
    wrong = [finding for finding in found if finding.wrong]
    if not wrong:
        stale = "; what is stale does no harm" if found and not repair else ""
        typer.echo("repaired, nothing is wrong" if repair else f"nothing is wrong{stale}")
        return 0
    if repair:
        typer.echo(f"still wrong: {wrong[0].what}")
    elif any(finding.can_be_mended for finding in wrong):
        again = f"visweep check{'' if study is None else f' {study}'} --repair"
        typer.echo(f"found {text.plural(len(wrong), 'fault')}; repair with: {again}")
    return 1


def _existing(storage: str | None) -> str:
    if opt.is_fresh(storage):
        raise UsageError("--storage: there are no studies yet; accepted: sqlite:///FILE")
    return opt.storage_url(storage)
