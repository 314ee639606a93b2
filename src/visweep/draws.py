"""Random draws that depend on nothing but their key.

Every draw is keyed by (replica seed, moment, place): the moment is an epoch or a step, the place
names who draws ("order", "shift", "blocks.3.mlp.drop1"). No generator is carried from one draw to
the next, so neither a replica beside it nor a resume in between can shift a draw, and a
checkpoint need not store any random state.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np
import torch
from torch import Tensor


def key(*parts: int | str) -> int:
    """A 63-bit number that depends on every part; equal parts give an equal number anywhere."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class Part:
    """Some images of a batch.

    Attributes:
        images: (n,) int64, which ones.
        of: how many images the whole batch has.
    """

    images: Tensor
    of: int


class Draws:
    """The draws of K replicas, each at a moment of its own.

    Args:
        seeds: one per replica.
        device: where the drawn tensors live.
        moment: what the draws of all of them belong to, such as ("step", 17).
    """

    def __init__(
        self, seeds: Sequence[int], device: torch.device, moment: tuple[int | str, ...]
    ) -> None:
        self.device = device
        self._seeds = tuple(seeds)
        self._streams: tuple[tuple[int | str, ...], ...] = tuple((s, *moment) for s in seeds)
        self._part: Part | None = None
        self._generator = torch.Generator(device)

    def __len__(self) -> int:
        return len(self._streams)

    def at(self, *moment: int | str) -> Draws:
        """The same replicas' draws at another moment."""
        return self._changed(_streams=tuple((seed, *moment) for seed in self._seeds))

    def at_each(self, what: str, numbers: Sequence[int]) -> Draws:
        """The same replicas' draws, each at a moment of its own: the epoch or step of its run."""
        pairs = zip(self._seeds, numbers, strict=True)
        return self._changed(_streams=tuple((seed, what, number) for seed, number in pairs))

    def of(self, part: Part) -> Draws:
        """The same draws for a part of the batch: what is drawn per image is drawn for the whole
        batch, so that an image's draws do not depend on how the batch is divided."""
        return self._changed(_part=part)

    def rows(self, start: int, stop: int) -> Draws:
        """The draws of replicas [start, stop) alone."""
        if (start, stop) == (0, len(self)):
            return self
        seeds, streams = self._seeds[start:stop], self._streams[start:stop]
        return self._changed(_seeds=seeds, _streams=streams)

    def _changed(self, **attributes: object) -> Draws:
        other = copy.copy(self)
        vars(other).update(attributes)
        return other

    def generator(self, replica: int, place: str) -> torch.Generator:
        """A generator at the start of the stream of this replica and place; use it at once,
        before the next one is asked for.

        On the CPU torch seeds with the low 32 bits of the key, so that among the many streams of
        a long run two may be equal; nothing compares or subtracts them. Bytes are not drawn so.
        """
        self._generator.manual_seed(key(*self._streams[replica], place))
        return self._generator

    def random_bytes(self, count: int, place: str) -> Tensor:
        """Independent uniform bytes, (K, count) uint8."""
        words = -(-count // 8)
        drawn: dict[tuple[int | str, ...], Tensor] = {}
        for replica, stream in enumerate(self._streams):
            # Trials of a study have the same seeds, and may be at the same step.
            if stream not in drawn:
                drawn[stream] = self._words(replica, place, words)
        first = drawn[self._streams[0]]
        alone = len(self) == 1
        both = first[None] if alone else torch.stack([drawn[stream] for stream in self._streams])
        return both.view(torch.uint8)[:, :count]

    def _words(self, replica: int, place: str, count: int) -> Tensor:
        """Independent uniform 64-bit words, (count,) int64."""
        if self.device.type == "cpu":
            # SFC64 (Doty-Humphrey, https://pracrand.sourceforge.net) draws a word in a third of
            # the time of torch's Mersenne Twister.
            stream = np.random.SFC64(key(*self._streams[replica], place))
            return torch.from_numpy(stream.random_raw(count).view(np.int64))
        words = torch.empty(count, dtype=torch.int64, device=self.device)
        # Without the lower bound torch leaves the sign bit of every word at zero.
        return words.random_(-(2**63), None, generator=self.generator(replica, place))

    def _whole(self, count: int) -> int:
        """How many values the whole batch has where the part has `count`."""
        return count if self._part is None else count // len(self._part.images) * self._part.of

    def _of_part(self, drawn: Tensor) -> Tensor:
        """(K, values of the whole batch) to (K, values of the part)."""
        if self._part is None:
            return drawn
        return drawn.view(len(drawn), self._part.of, -1)[:, self._part.images].flatten(1)

    def integers(self, low: int, high: int, shape: tuple[int, ...], place: str) -> Tensor:
        """Uniform integers in [low, high), (K, *shape) int64; the first axis is of images."""
        count = self._whole(prod(shape))
        out = torch.empty((len(self), count), dtype=torch.int64, device=self.device)
        for replica in range(len(self)):
            out[replica].random_(low, high, generator=self.generator(replica, place))
        return self._of_part(out).view(len(self), *shape)

    def permutation(self, size: int, place: str) -> Tensor:
        """One random order of range(size) per replica, (K, size) int64."""
        return torch.stack(
            [
                torch.randperm(size, generator=self.generator(replica, place), device=self.device)
                for replica in range(len(self))
            ]
        )

    def dropout_mask(
        self, shape: tuple[int, ...], rates: Sequence[float], dtype: torch.dtype, place: str
    ) -> Tensor:
        """Inverted-dropout factors, 0 or 1/(1 - rate): (K, *shape) of `dtype`. The first axis is
        of images, or of images times tokens.

        Each element costs one random byte. A byte can only split at a multiple of 1/256, so the
        split is itself drawn, once per mask and replica, between the two nearest ones: over
        steps every element is dropped with exactly the rate asked for.
        """
        splits, factors = [], []
        for replica, rate in enumerate(rates):
            exact = rate * 256.0
            nudge = key(*self._streams[replica], place, "split") / 2.0**63
            splits.append(int(exact + nudge))
            factors.append(1.0 / (1.0 - rate))
        drawn = self._of_part(self.random_bytes(self._whole(prod(shape)), place))
        if self.device.type == "cpu":
            mask = _mask_by_rows(drawn, splits, factors, dtype)
        else:
            column = torch.tensor(splits, dtype=torch.int16, device=self.device)[:, None]
            scale = torch.tensor(factors, dtype=dtype, device=self.device)[:, None]
            mask = torch.ge(drawn, column).to(dtype).mul_(scale)
        return mask.view(len(self), *shape)


def _mask_by_rows(
    drawn: Tensor, splits: Sequence[int], factors: Sequence[float], dtype: torch.dtype
) -> Tensor:
    """(K, count) of `dtype`: a row's factor where its byte reaches its split, elsewhere 0.

    Torch converts and multiplies integers of 16 bits two to three times as fast as bfloat16, and
    0 or 1 times the bits of a factor is 0 or these bits.
    """
    kept = torch.empty(drawn.shape, dtype=torch.uint8)
    by_bits = dtype == torch.bfloat16
    for row, bytes_, split in zip(kept, drawn, splits, strict=True):
        # 256 is no byte: then all are dropped.
        row.zero_() if split > 255 else torch.ge(bytes_, split, out=row)
    mask = kept.to(torch.int16 if by_bits else dtype)
    for row, factor in zip(mask, factors, strict=True):
        row.mul_(_bits(factor) if by_bits else factor)
    return mask.view(dtype)


@cache
def _bits(factor: float) -> int:
    """Of the nearest bfloat16, as an integer of 16 bits."""
    return int(torch.tensor(factor, dtype=torch.bfloat16).view(torch.int16))
