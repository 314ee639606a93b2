"""The random bytes of dropout masks, and what is made of them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from visweep import kernels
from visweep.masks import Row, beginning, drawn_mask, mask_of_part

FRACTION = 0.12549768131857153
DRAWN = [20, 223, 7, 148, 30, 184, 2, 8]
AT_A_TIME = kernels._PIECE
SIZES = st.integers(1, 40) | st.integers(AT_A_TIME - 9, 2 * AT_A_TIME + 9)
DTYPES = st.sampled_from([torch.bfloat16, torch.float32, torch.float64])


class NumPys:
    """NumPy's own SFC64, begun as a stream is."""

    def __init__(self, *key: int | str) -> None:
        self._source = np.random.SFC64(0)
        self._source.state = {
            "bit_generator": "SFC64",
            "state": {"state": beginning(*key)},
            "has_uint32": 0,
            "uinteger": 0,
        }
        self._source.random_raw(kernels.MIXED)

    def fraction(self) -> float:
        return float(self._source.random_raw() >> 11) / 2.0**53

    def draw(self, count: int) -> np.ndarray:
        return self._source.random_raw(-(-count // 8)).view(np.uint8)[:count]


def mask(seed: int, count: int, dtype: torch.dtype, rate: float = 0.3) -> torch.Tensor:
    return drawn_mask([Row(beginning(seed), rate)], count, dtype)[0]


def is_uniform(values: np.ndarray) -> bool:
    """By a chi-squared test of 256 bins, which uniform ones fail once in 5,000 times."""
    expected = values.size / 256
    observed = np.bincount(values.ravel(), minlength=256)
    statistic = float(np.square(observed - expected).sum() / expected)
    return 1e-4 < chi2.sf(statistic, 255) < 1 - 1e-4


class TestBytes:
    """Those of NumPy's generator; that ours are the same is tested below."""

    def test_are_uniform_at_every_position_of_a_word(self) -> None:
        drawn = NumPys(0, "here").draw(8 * 100_000).reshape(-1, 8)
        assert all(is_uniform(drawn[:, position]) for position in range(8))

    def test_at_the_beginning_of_like_streams_are_uniform_and_differ(self) -> None:
        """Keys of neighbouring steps: the first word of each, as masks of a few elements have."""
        first = np.stack([NumPys(0, "step", step, "drop").draw(16) for step in range(100_000)])
        assert all(is_uniform(first[:, position]) for position in range(16))
        assert is_uniform(first[1:] - first[:-1])
        assert len(np.unique(first, axis=0)) == len(first)

    def test_never_change(self) -> None:
        """Others for the same key would change every stored result."""
        begun = NumPys(3, "step", 17, "blocks.3.mlp.drop1")
        assert begun.fraction() == FRACTION
        assert begun.draw(8).tolist() == DRAWN


@given(SIZES, DTYPES, st.integers(0, 99), st.sampled_from([0.0, 0.001, 0.3, 0.999]))
def test_a_mask_is_that_of_the_bytes_of_numpys_generator(
    count: int, dtype: torch.dtype, seed: int, rate: float
) -> None:
    numpys = NumPys(seed)
    least = int(256 * rate + numpys.fraction())
    drawn = torch.from_numpy(numpys.draw(count).astype(np.int64))
    kept = torch.tensor(1 / (1 - rate), dtype=dtype)
    expected = torch.where(drawn >= least, kept, torch.zeros_like(kept))
    assert torch.equal(mask(seed, count, dtype, rate), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nothing_is_dropped_at_rate_zero(dtype: torch.dtype) -> None:
    for seed in range(50):
        drawn = mask(seed, 1000, dtype, 0.0)
        assert torch.equal(drawn, torch.ones_like(drawn))


def test_no_element_may_be_kept_in_a_step_where_nearly_all_are_dropped() -> None:
    masks = torch.stack([mask(seed, 1000, torch.float32, 0.999) for seed in range(50)])
    none = (masks == 0).all(dim=1).sum()
    assert 20 < none < 50  # the split is 256 in three of four


@given(st.data(), DTYPES, st.integers(1, 9), st.integers(1, 5))
def test_of_a_part_of_the_images_it_has_the_columns(
    data: st.DataObject, dtype: torch.dtype, of: int, each: int
) -> None:
    chosen = data.draw(st.lists(st.integers(0, of - 1), min_size=1, unique=True))
    rows = [Row(beginning(seed), rate) for seed, rate in enumerate((0.3, 0.0, 0.1))]
    part = mask_of_part(rows, of * each, dtype, torch.tensor(chosen), of)
    whole = drawn_mask(rows, of * each, dtype).view(3, of, each)
    assert torch.equal(part, whole[:, chosen].flatten(1))


DRAWING = """
import sys
import torch
from visweep.masks import Row, beginning, drawn_mask
for name in sys.argv[1:]:
    row = Row(beginning(7), 0.3)
    print(drawn_mask([row], 900, getattr(torch, name))[0].count_nonzero().item())
"""

DREW = "642\n"
"""How many of these are kept."""


def drawing(code: str, cache: Path, *dtypes: str) -> subprocess.Popen[str]:
    """A process that draws masks, with a cache of its own."""
    environment = {**os.environ, "VISWEEP_CACHE": str(cache), "NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", code, *dtypes]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


class TestCompiled:
    def test_they_need_no_folder_to_be_kept_in(self, tmp_path: Path) -> None:
        without = "from numba.core import caching\ncaching.CacheImpl._locator_classes = []\n"
        run = drawing(without + DRAWING, tmp_path, "float32")
        assert run.communicate() == (DREW, "")

    def test_where_they_cannot_be_kept_a_line_says_so(self, tmp_path: Path) -> None:
        full = (
            "from numba.core import caching\n"
            "def save(*_):\n    raise OSError(28, 'No space left on device')\n"
            "caching.IndexDataCacheFile.save = save\n"
        )
        out, said = drawing(full + DRAWING, tmp_path, "float32").communicate()
        assert out == DREW
        assert set(said.splitlines()) == {
            "a compiled loop is not kept for other processes: [Errno 28] No space left on device"
        }

    @pytest.mark.slow
    def test_processes_that_compile_them_at_the_same_time_do_not_mix_them_up(
        self, tmp_path: Path
    ) -> None:
        beginning_ = [drawing(DRAWING, tmp_path, name) for name in ("float32", "float64")]
        assert [run.communicate() for run in beginning_] == 2 * [(DREW, "")]
        later = drawing(DRAWING, tmp_path, "float32", "float64")
        assert later.communicate() == (2 * DREW, "")
        assert len(list(tmp_path.rglob("kernels.mask*.nbc"))) == 3  # nothing was compiled anew


def test_what_parts_need_is_there_before_memory_runs_short() -> None:
    """They are made where it does, and loading code then would end the process."""
    code = """if True:
        import torch
        from visweep import kernels
        from visweep.masks import Row, beginning

        kernels.ready(torch.float32)
        before = len(kernels.mask.signatures)
        Row(beginning(1), 0.5).kept(100)
        print(before, len(kernels.mask.signatures))
    """
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (out.returncode, out.stdout, out.stderr) == (0, "2 2\n", "")
