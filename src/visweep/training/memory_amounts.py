"""What a trial holds in memory, in amounts that each have a price on a device.

A run's peak is the most that is held at one of some moments; what is held at a moment is a sum of
amounts, each times its price. On a GPU a captured step keeps its memory while the next graph, that
of an evaluation, takes its own. On the CPU a run takes up to twice what its tensors do. The C
library often does not fit a tensor into the place of one of its size that is gone: an aligned
piece wants some bytes more, and those beside it may serve small objects by then. So what a step
makes and drops again is counted, too. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from visweep import maskless
from visweep.config import ConvNetConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.training.amounts import EVALUATED, LANES, padded
from visweep.training.counts import Convolution, convolutions, hidden_width, norms, num_params

_BYTES = {"bfloat16": 2, "float32": 4, "float64": 8}


def memory_amounts(
    model: ModelConfig,
    train: TrainConfig,
    precision: str,
    device: str,
    *,
    threads: int = 1,
    lanes: int = LANES,
    divided: bool = False,
    at_once: int | None = None,
) -> list[dict[str, float]]:
    """Bytes that a trial holds at each moment that may be its peak: in a training step (on a GPU
    also in the evaluation that follows it), in an evaluation, and while its checkpoint is written.

    Args:
        threads, lanes: see `visweep.training.amounts.amounts`.
        divided, at_once: see `visweep.training.estimate.step_memory`.
    """
    replicas, size = len(train.seeds), _BYTES[precision]
    together = at_once or replicas
    stacked, evaluated = together * train.batch_size, together * EVALUATED[device]
    on_cpu = device == "cpu"
    counted = (
        _stored_by_convnet(model, lanes)
        if isinstance(model, ConvNetConfig)
        else _stored_by_vit(
            model,
            on_cpu=on_cpu,
            precision=precision,
            # Parts of batches have masks, as all has on a GPU.
            dropping=None if divided or not on_cpu else (train.batch_size, threads),
        )
    )
    pixels = model.in_chans * model.image_size**2
    weight = replicas * max(4, size)
    parameters = float(weight * num_params(model))
    none = dict.fromkeys((*_OF_A_STEP, "matrix", "evaluated", "written"), 0.0)
    always = {**none, "process": 1.0, "parameters": parameters}
    evaluation = {"evaluated": float(evaluated * counted.evaluated * size)}
    # Parts of batches are not captured, and of a few replicas at a time the step is alone. Images
    # as each replica sees them have another graph than those that all see alike.
    every = together == replicas and train.train_curves
    beside = 0 if on_cpu or divided else 1 + every
    captured = {name: beside * amount for name, amount in evaluation.items()}
    steps = [
        {
            "stored": float(stacked * (step.stored + pixels) * size),
            "added": float(stacked * step.added * size),
            "widest": float(stacked * step.widest * size),
            # A GPU's allocator serves one tensor from the place of another.
            "dropped": float(on_cpu * stacked * step.dropped * size),
            "later": float(on_cpu * stacked * step.later * size),
            "even": float(on_cpu * stacked * step.even * size),
            "matrix": float(on_cpu * together * max(4, size) * counted.matrix),
        }
        for step in counted.steps
    ]
    writing = {**always, "written": parameters}
    in_steps = ({**always, **step, **captured} for step in steps)
    return [*in_steps, {**always, **evaluation}, writing]


_OF_A_STEP = ("stored", "added", "widest", "dropped", "later", "even")


@dataclass(frozen=True, kw_only=True)
class _Step:
    """Elements per image at a moment of a step.

    Attributes:
        stored: what layers keep for the backward pass, which has not come to them yet.
        added: what dropout adds to it.
        widest: the largest tensor, of which there are some at a time.
        dropped: what layers make on their way forward that nothing keeps.
        later: what later layers kept: the places of it serve what follows in part.
        even: `widest` where its channels fill vectors, which other kernels compute.
    """

    stored: int
    added: int = 0
    widest: int
    dropped: int
    later: int = 0
    even: int = 0


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """What a model holds.

    Attributes:
        steps: the moments of a step that may be its peak.
        evaluated: elements per image, the most that a forward pass alone holds at a time.
        matrix: weights of the largest layer, of which a product keeps copies in its own order.
    """

    steps: tuple[_Step, ...]
    evaluated: int
    matrix: int


def _stored_by_vit(
    model: ViTConfig, *, on_cpu: bool, precision: str, dropping: tuple[int, int] | None
) -> _Stored:
    """
    Args:
        precision: that it computes in.
        dropping: images and threads where some is dropped without masks.
    """
    width, tokens, hidden = model.embed_dim, model.num_tokens, hidden_width(model)
    all_scores = model.num_heads * tokens**2
    narrow = precision == "bfloat16"
    whole_words = precision == "float32" and model.embed_dim // model.num_heads % 4 == 0
    # A GPU's attention without dropout makes none (see `visweep.models.layers.attention`), where
    # torch has a kernel for that.
    fused = not on_cpu and (narrow or whole_words)
    scores = 0 if fused and not model.attn_drop else all_scores
    # Of each block: the norms' inputs and outputs, query (also as it was scaled), key, value, and
    # what attention gave.
    block = tokens * ((5 + 2 * norms(model)) * width + 2 * hidden) + scores
    # And what nothing keeps: query, key and value as they were before they were copied; the
    # attention of the heads, then of all, and what the MLP gave; the scores.
    passing = 6 * tokens * width + scores
    if on_cpu and narrow and 8 <= tokens < 32:  # see `visweep.models.layers.softmax`
        block += 2 * scores
        passing += 2 * scores

    def mask(count: int) -> int:
        if dropping is None:
            return count
        images, threads = dropping
        return 0 if maskless.pays(images * count, threads) else count

    masks = 0
    if model.drop:
        masks += 2 * mask(tokens * width) + mask(tokens * hidden)
        # What the shortcut was added to.
        passing += tokens * 2 * width
    if model.attn_drop:
        masks += mask(scores) + scores
    outside = 3 * tokens * width
    widest = max(tokens * hidden, 3 * tokens * width, scores)
    step = _Step(
        stored=model.depth * block + outside,
        added=model.depth * masks,
        widest=widest,
        dropped=model.depth * passing,
    )
    return _Stored(
        steps=(step,),
        evaluated=tokens * 4 * width + (0 if fused else 2 * all_scores),
        matrix=width * hidden,
    )


def _stored_by_convnet(model: ConvNetConfig, lanes: int) -> _Stored:
    layers = list(convolutions(model))
    largest = max(layer.outputs for layer in layers)
    copied = max(layer.size**2 * padded(layer.channels, lanes) for layer in layers)
    # Before the last convolution of a block: the shortcut, the input with and without its norm or
    # ReLU, and the output.
    held = 3 if model.block == "late_relu" else 4
    return _Stored(
        steps=tuple(_backward_through(model, stage, lanes) for stage in range(len(model.widths))),
        evaluated=held * largest + copied,
        matrix=max(layer.weights for layer in layers),
    )


def _backward_through(model: ConvNetConfig, stage: int, lanes: int) -> _Step:
    """While the backward pass is in a stage, with all later ones behind it."""
    kept = [_kept_of(model, of) for of in range(len(model.widths))]
    last = _layers(model, stage)[-1]
    return _Step(
        stored=sum(kept[: stage + 1]),
        widest=last.outputs,
        dropped=_dropped_of(model, stage),
        later=sum(kept[stage + 1 :]),
        even=0 if last.channels % lanes else last.outputs,
    )


def _kept_of(model: ConvNetConfig, stage: int) -> int:
    """Elements per image that a stage keeps for the backward pass."""
    layers = _layers(model, stage)
    # A norm keeps its input, and what follows it its own; a shortcut is added at once.
    kept = sum((int(layer.normed) + int(layer.kernel > 1)) * layer.outputs for layer in layers)
    # In other blocks the ReLU before the sum keeps its own, and what follows the sum that.
    return kept if model.block == "basic" else kept + model.depths[stage] * layers[-1].outputs


def _dropped_of(model: ConvNetConfig, stage: int) -> int:
    """Elements per image: what norms and sums give to a ReLU or a sum, and what a ReLU is given
    by a convolution."""
    layers = _layers(model, stage)
    # The norms of the stem, and of the shortcuts.
    stem = layers[0].outputs if stage == 0 else 0
    shortcuts = sum(layer.outputs for layer in layers if layer.kernel == 1)
    times = {"basic": 3, "late_relu": 1, "preadd_relu": 2}[model.block]
    return stem + shortcuts + times * model.depths[stage] * layers[-1].outputs


def _layers(model: ConvNetConfig, stage: int) -> list[Convolution]:
    return [layer for layer in convolutions(model) if layer.stage == stage]
