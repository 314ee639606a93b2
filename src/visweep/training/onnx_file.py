"""A classifier as an ONNX file, and whether that file computes the same.

Input `images`: uint8 (batch, channels, image_size, image_size), as an image file's pixels are;
scaling and padding are part of the graph. Output `logits`: float32 (batch, classes).
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor

from visweep.errors import ExportError
from visweep.training.exported import Exported

ONNX = "model.onnx"
INPUT, OUTPUT = "images", "logits"
TOLERANCE = 1e-4
"""How far a logit may be off, as a fraction of the largest (of 1, if all are smaller)."""


def write_onnx(exported: Exported, path: Path) -> None:
    """Write the file; its metadata name the classes."""
    preprocessing = exported.preprocessing
    size = preprocessing.image_size
    # Of two images, since one would be taken for a constant.
    example = torch.zeros(2, preprocessing.channels, size, size, dtype=torch.uint8)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            exported.classifier,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    proto: ModelProto = program.model_proto
    _forget_sources(proto)
    _describe(proto, {"classes": json.dumps(exported.classes, ensure_ascii=False)})
    path.write_bytes(proto.SerializeToString())


def require_same(exported: Exported, path: Path, images: Tensor) -> float:
    """See that onnxruntime computes what torch does: the largest difference of a logit.

    Args:
        exported: the model.
        path: the ONNX file.
        images: (N, channels, image_size, image_size) uint8; they are given in batches of several
            sizes.

    Raises:
        ExportError: it does not.
    """
    try:
        computed = onnx_logits(path, images)
    except Exception as e:  # onnxruntime's errors share no other base
        reason = " ".join(str(e).split())
        raise ExportError(f"{ONNX}: onnxruntime cannot run it ({reason})") from e
    expected = exported.logits(images).numpy()
    off = float(np.abs(computed - expected).max())
    # Not `off > …`, which NaN is not.
    if not off <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ExportError(f"{ONNX}: a logit is off by {off:.2g} in onnxruntime; nothing is kept")
    return off


def onnx_logits(path: Path, images: Tensor) -> npt.NDArray[np.float32]:
    """(N, classes) for (N, …) uint8 images, by onnxruntime, in batches of 1, 2, 3 and so on."""
    session = _session(path)
    parts = [
        session.run([OUTPUT], {INPUT: part.numpy()})[0]
        for part in torch.split(images, _sizes(len(images)))
    ]
    return np.concatenate(parts)


def _sizes(count: int) -> list[int]:
    """1, 2, 3, …, and what is left over."""
    sizes: list[int] = []
    while count:
        sizes.append(min(len(sizes) + 1, count))
        count -= sizes[-1]
    return sizes


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )


def _forget_sources(proto: ModelProto) -> None:
    """The exporter tells of each node from which line of which file of this machine it comes."""
    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in proto.graph.value_info:
        value.ClearField("metadata_props")
    proto.graph.ClearField("metadata_props")
    proto.ClearField("metadata_props")


def _describe(proto: ModelProto, properties: Mapping[str, str]) -> None:
    for name, value in properties.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, value


@contextmanager
def _quiet() -> Iterator[None]:
    """What the exporter has to say is about its own parts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
