"""What other tools attach to a study lies where they say, and is theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact

from visweep.storage.attached import File, attach
from visweep.storage.check import check, repair
from visweep.storage.folder import Folder
from visweep.storage.whereabouts import artifact_folder


def test_a_repair_leaves_what_others_attached_elsewhere(tmp_path: Path, sweep: Any) -> None:
    (tmp_path / "here").mkdir()
    one = sweep(tmp_path / "here" / "studies.db")
    one.want(1)
    one.run()
    (tmp_path / "elsewhere").mkdir()
    source = tmp_path / "notes.txt"
    source.write_text("theirs")
    upload_artifact(
        artifact_store=FileSystemArtifactStore(tmp_path / "elsewhere"),
        file_path=str(source),
        study_or_trial=one.study,
        storage=one.storage,
    )
    assert check(one.url) == []
    above = Folder(artifact_folder(one.url))
    attach(one.storage, one.study._study_id, above, [File("page.html", "text/html", b"ours")], "")
    assert check(one.url) == []
    (path,) = [path for path in artifact_folder(one.url).iterdir() if path.is_file()]
    path.unlink()
    (finding,) = check(one.url)
    assert "page.html is attached to it, and the file is missing" in finding.what
    one.storage.close()
    repair(one.url)
    assert check(one.url) == []
    again = sweep(tmp_path / "here" / "studies.db")
    assert [meta.filename for meta in get_all_artifact_meta(again.study)] == ["notes.txt"]
