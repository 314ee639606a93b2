"""What becomes of a step that cannot be captured; the graphs themselves need a GPU."""

import logging

import pytest
import torch

from visweep.training import graphs


def test_what_cannot_be_captured_is_told_once_and_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[int] = []

    class Refused:
        def __init__(self, *_: object) -> None:
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel …")

    monkeypatch.setattr(graphs, "Graph", Refused)
    monkeypatch.setattr(graphs, "_told", set())
    with caplog.at_level(logging.WARNING):
        assert graphs.captured(lambda: done.append(1), torch.device("cpu")) is None
        assert graphs.captured(lambda: done.append(1), torch.device("cpu")) is None
    assert [record.getMessage() for record in caplog.records] == [
        "trained without CUDA graphs, more slowly: operation not permitted when stream is "
        "capturing"
    ]
    assert not done
