"""Which device and number format are chosen, and what is refused."""

import platform
from pathlib import Path

import pytest
import torch

from visweep.config import TrainConfig
from visweep.errors import UsageError
from visweep.training.device import (
    compute_dtype,
    master_dtype,
    peak_memory,
    reset_peak_memory,
    resolve_device,
    resolve_precision,
    use,
)
from visweep.training.memory import trim

CPU = torch.device("cpu")


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize(
    "name", ["gpu", "cuda:", "cuda:x", "CPU", "", "cuda:-1", "cuda:07", "cuda:٣", "cpu\n", "mps"]
)
def test_an_unknown_device_is_refused_with_what_is_accepted(name: str) -> None:
    with pytest.raises(UsageError) as refusal:
        resolve_device(name)
    line = str(refusal.value)
    assert line.startswith(f"--device: unknown device {name!r}; accepted: auto, cpu")
    assert "\n" not in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "cuda:256", "cuda:99999999999"])
def test_a_missing_gpu_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"^--device {name}: no CUDA device here; accepted: au"):
        resolve_device(name)


def test_a_precision_asked_for_is_kept() -> None:
    for name, master in (
        ("float32", torch.float32),
        ("bfloat16", torch.float32),
        ("float64", torch.float64),
    ):
        config = TrainConfig(precision=name)  # type: ignore[arg-type]
        assert compute_dtype(config, CPU) == getattr(torch, name)
        assert master_dtype(compute_dtype(config, CPU)) == master


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").exists() or platform.machine() != "x86_64",
    reason="asks the Linux kernel what an x86 processor can do",
)
def test_auto_on_a_cpu_is_bfloat16_exactly_where_it_has_instructions_for_it() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    expected = "bfloat16" if flags & {"avx512_bf16", "amx_bf16"} else "float32"
    assert resolve_precision("auto", CPU) == expected


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks the Linux kernel")
def test_peak_memory_is_what_the_kernel_counted() -> None:
    held = torch.ones(2**24)  # 64 MiB
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
    )
    now, peak = (int(status[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    slack = 2**23  # the kernel counts per core, and adds up now and then
    assert peak >= now >= held.nbytes
    assert peak_memory(CPU) > peak - slack


def test_peak_memory_begins_anew_for_each_run() -> None:
    held = torch.ones(40_000_000)  # 160 MB
    with_tensor = peak_memory(CPU)
    del held
    trim()  # training in this process may have had the C library keep it
    reset_peak_memory(CPU)
    assert peak_memory(CPU) < with_tensor - 100e6


@pytest.mark.parametrize(("name", "number"), [("cuda", 0), ("cuda:1", 1)])
def test_torch_is_given_the_number_of_the_gpu(
    monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    """It refuses a device without one."""
    given: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_device", given.append)
    use(torch.device(name))
    use(torch.device("cpu"))
    assert given == [number]
