"""The page about an exported model, its README.md: what it reached, and how it was chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from optuna.trial import TrialState

from visweep import text
from visweep.cli.facts import CARD, Facts, versions_of_training
from visweep.config import to_json
from visweep.training.counts import num_params
from visweep.training.exported import CONFIG, WEIGHTS
from visweep.training.onnx_file import INPUT, ONNX, OUTPUT

_MOST_NAMES = 20
_KINDS = {"vit": "Vision Transformer", "convnet": "ConvNet"}
_OF_THE_INPUT = ("kind", "image_size", "in_chans", "num_classes")


def card(facts: Facts) -> str:
    """The page, in Markdown."""
    chosen = facts.chosen
    kind, name = _KINDS[chosen.model.kind], chosen.specification.data.name
    sections = [
        "---\nlibrary_name: visweep\npipeline_tag: image-classification\n---",
        f"# {kind} for {name}",
        _summary(facts, kind),
        "## How good it is",
        _table(("", ""), _accuracies(facts)),
        _caution(facts),
        "## How to use it",
        _usage(facts),
        "## How it was trained",
        _table(("", ""), _training(facts)),
        _table(("hyperparameter", "value"), _hyperparameters(facts)),
        "## What is in this folder",
        _table(("file", "what it is"), _FILES.items()),
    ]
    return "\n\n".join(sections) + "\n"


def _summary(facts: Facts, kind: str) -> str:
    pixels = facts.preprocessing
    colour = "grey" if pixels.channels == 1 else "RGB"
    names = [_escaped(name) for name in facts.classes[:_MOST_NAMES]]
    if len(facts.classes) > _MOST_NAMES:
        names.append(f"{len(facts.classes) - _MOST_NAMES} more, which `{CONFIG}` lists")
    return (
        f"A {kind} with {num_params(facts.chosen.model):,} parameters that sorts {colour} "
        f"images of {pixels.image_size}×{pixels.image_size} pixels into {len(facts.classes)} "
        f"classes: {text.listing(names)}. It is trial {facts.chosen.trial.number} of the search "
        f"`{facts.chosen.wanted.study}`."
    )


def _accuracies(facts: Facts) -> Iterator[tuple[str, str]]:
    n, seeds = f"{facts.val_images:,}", facts.chosen.train.seeds
    yield "validation accuracy, of these files (float32)", _of(facts.now, facts.val_images)
    yield (
        f"validation accuracy when it was trained ({facts.chosen.train.precision})",
        _of(facts.then, facts.val_images),
    )
    mean = "" if len(seeds) == 1 else f", mean over its {len(seeds)} seeds"
    yield f"validation accuracy that the study has of the trial{mean}", text.percent(facts.stored)
    if len(seeds) > 1 and "val_accuracy_per_seed" in facts.measured:
        each = facts.measured["val_accuracy_per_seed"]
        said = (f"{text.percent(a)} ({s})" for s, a in zip(seeds, each, strict=True))
        yield "validation accuracy of each seed", ", ".join(said)
    if "train_accuracy" in facts.measured:
        yield f"training accuracy{mean}", text.percent(facts.measured["train_accuracy"])
    yield f"standard error that {n} images alone leave, at least", f"{_error(facts):.1f} points"


def _caution(facts: Facts) -> str:
    chosen = facts.chosen
    completed = sum(t.state == TrialState.COMPLETE for t in chosen.ranked)
    of = f"{text.plural(len(chosen.ranked), 'finished trial')} ({completed} of them completed)"
    if chosen.wanted.trial is None:
        how = f"It was chosen as the best of {of} by its validation accuracy"
    else:
        place = 1 + [t.number for t in chosen.ranked].index(chosen.trial.number)
        how = (
            f"It was asked for by its number; by validation accuracy it is number {place} of {of}"
        )
    seeds = len(chosen.train.seeds)
    if seeds > 1 and chosen.wanted.seed is None:
        how += f", and of its {seeds} seeds the best one was taken, by the same measure"
    elif seeds > 1:
        how += f"; of its {seeds} seeds, seed {facts.seed} was asked for"
    again = (
        " Its weights are not those of the search: it was trained again with the same "
        "configuration and seeds."
        if chosen.wanted.checkpoint is not None
        else ""
    )
    return (
        f"{how}.{again} **The best of many is flattered by chance: the accuracy of such a choice "
        "is optimistic.** Expect less on new images, and measure it on images that no choice has "
        f"seen before you rely on it. {_of_the_test_images(facts)}"
    )


def _of_the_test_images(facts: Facts) -> str:
    tested = facts.chosen.tested
    if not tested:
        return "The data set's test images, where it has some, were not looked at."
    low, high = tested["low"], tested["high"]
    between = "" if low is None else f" (95 %: {text.percent(low)} to {text.percent(high)})"
    said = (
        f"A race of the search's leaders took {_escaped(tested['arm'])}, whose "
        f"{text.plural(len(tested['seeds']), 'run')} reached {text.percent(tested['accuracy'])}"
        f"{between} on the data set's {tested['images']:,} test images, measured once"
    )
    if tested["arm"] == facts.chosen.arm:
        return f"{said}: expect about that of this model, which is of the same configuration."
    return f"{said}; this model is **not** of that configuration."


def _usage(facts: Facts) -> str:
    pixels = facts.preprocessing
    shape = f"(batch, {pixels.channels}, {pixels.image_size}, {pixels.image_size})"
    border = f"A black border of {pixels.padding} pixels and the" if pixels.padding else "The"
    are = "are" if pixels.padding else "is"
    mode = "L" if pixels.channels == 1 else "RGB"
    array = "[None, None]" if pixels.channels == 1 else ".transpose(2, 0, 1)[None]"
    return f"""\
With visweep: `visweep predict FOLDER image.png`, which makes any image upright, grey or RGB, and
square (the shorter side resized to {pixels.image_size} pixels, the longer one cropped about its \
centre).

Without: `{ONNX}` takes `{INPUT}`, uint8 {shape} with pixels from 0 to 255, and gives
`{OUTPUT}`, float32 (batch, {len(facts.classes)}). {border} scaling to zero mean and unit deviation
{are} part of it.

```python
import numpy, onnxruntime
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("image.png")).convert("{mode}")
image = ImageOps.fit(image, ({pixels.image_size}, {pixels.image_size}), Image.Resampling.BILINEAR)
session = onnxruntime.InferenceSession("{ONNX}")
(logits,) = session.run(None, {{"{INPUT}": numpy.asarray(image){array}}})
print(logits.argmax(1))
```"""


def _training(facts: Facts) -> Iterator[tuple[str, str]]:
    specification, trial = facts.chosen.specification, facts.chosen.trial
    where = trial.user_attrs.get("provenance", {})
    yield "data set", specification.data.name
    yield "images for training, for validation", f"{facts.train_images:,}, {facts.val_images:,}"
    yield "fingerprint of the images", f"`{specification.fingerprint}`"
    yield "seeds of the trial", ", ".join(map(str, facts.chosen.train.seeds))
    yield "seed of this model", str(facts.seed)
    yield "sampler, pruner", f"{specification.sampler}, {specification.pruner}"
    if trial.datetime_complete is not None:
        yield "finished", f"{trial.datetime_complete:%Y-%m-%d %H:%M} UTC"
    if "device" in where:
        yield "trained on", _escaped(f"{where['device']} ({where.get('machine', '')})")
    versions = versions_of_training(facts)
    known = [f"{n} {versions[n]}" for n in ("visweep", "trainer", "torch") if n in versions]
    if known:
        yield "versions", ", ".join(known)


def _hyperparameters(facts: Facts) -> Iterator[tuple[str, str]]:
    searched = {name.partition(".")[0] for name in facts.chosen.trial.params}
    for config in (facts.chosen.model, facts.chosen.train):
        for name, value in to_json(config).items():
            if name not in (*_OF_THE_INPUT, "seeds"):
                yield f"{name} (searched)" if name in searched else name, str(value)


_FILES = {
    f"`{WEIGHTS}`": "the weights, float32; each has a leading axis of length 1 (one replica)",
    f"`{ONNX}`": "the model with its preprocessing, for any ONNX runtime",
    f"`{CONFIG}`": "the model's configuration, classes, preprocessing, origin and versions",
    f"`{CARD}`": "this page",
}


def _of(accuracy: float, images: int) -> str:
    return f"{text.percent(accuracy)} ({round(accuracy * images):,} of {images:,} images)"


def _error(facts: Facts) -> float:
    """In points. Images that share a source are no independent evidence, so it may be more."""
    return 100 * math.sqrt(facts.now * (1 - facts.now) / facts.val_images)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(name: str) -> str:
    """A name as Markdown shows it, also in a table."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in " ".join(name.split()))
