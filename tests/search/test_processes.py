"""What processes that train are started with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

CACHED = 7 * sum(size + 8 for size in range(104, 1000, 16))
SETTINGS = ("tcache_count=0", "mxfast=0", "hugetlb=1")
CHILD = """
import ctypes, json, os
from visweep.search.processes import context_with_torch

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]

def answer(pipe):
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Heap
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    sizes = [size for size in range(104, 1000, 16) for _ in range(20)]
    pieces = [libc.malloc(size) for size in sizes]
    before = libc.mallinfo2()
    for piece in pieces:
        libc.free(piece)
    after = libc.mallinfo2()
    taken = sum(size + 8 for size in sizes)
    kept = after.uordblks - before.uordblks + taken, after.fsmblks - before.fsmblks
    pipe.send((os.environ["GLIBC_TUNABLES"], kept))

def main():
    context = context_with_torch()
    ours, theirs = context.Pipe()
    process = context.Process(target=answer, args=(theirs,))
    process.start()
    print(json.dumps({"own": os.environ.get("GLIBC_TUNABLES"), "child": ours.recv()}))
    process.join()

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def started(tmp_path: Any) -> Any:
    script = tmp_path / "script.py"
    script.write_text(CHILD)

    def run(given: str | None) -> Any:
        environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
        if given is not None:
            environment["GLIBC_TUNABLES"] = given
        out = subprocess.run(
            [sys.executable, script], env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(out.stdout)

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="they are settings of glibc")
def test_the_c_library_keeps_no_small_pieces_there(started: Any) -> None:
    found = started(None)
    assert found["own"] is None
    settings, kept = found["child"]
    assert settings == ":".join(f"glibc.malloc.{each}" for each in SETTINGS)
    # Some for what ctypes itself needs meanwhile; a cache would keep seven pieces of each size.
    assert kept[0] < CACHED / 10
    assert kept[1] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="they are settings of glibc")
def test_what_the_user_has_set_stays(started: Any) -> None:
    given = "glibc.malloc.arena_max=2:glibc.malloc.tcache_count=7"
    found = started(given)
    assert found["own"] == given
    settings, kept = found["child"]
    assert settings == f"{given}:glibc.malloc.mxfast=0:glibc.malloc.hugetlb=1"
    assert kept[0] > CACHED / 2
