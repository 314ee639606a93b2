"""Random draws that depend on nothing but their key.

Every draw is keyed by (replica seed, moment, place): the moment is an epoch, a step or the
look at the training images after an epoch ("probe"), the place names who draws ("order", "shift",
"blocks.3.mlp.drop1"). No generator is carried from one moment to the next, so neither a replica
beside it nor a resume in between can shift a draw, and a checkpoint need not store any random
state.

On a GPU each replica has a generator that is keyed by (replica seed, moment) and drawn from place
by place, in the order of its own model: a captured step can be replayed with other seeds, but
cannot seed anew for every place.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from visweep import dropping, maskless
from visweep.masks import Row, beginning, drawn_mask, mask_of_part


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
        self._by_place = _seeds_for_every_place(device)
        count = 1 if self._by_place else len(self._seeds)
        self.generators = [torch.Generator(device) for _ in range(count)]
        # Shared by all copies.
        self._kept_columns: dict[tuple[tuple[float, ...], torch.dtype], tuple[Tensor, Tensor]] = {}
        self._begin()

    def __len__(self) -> int:
        return len(self._streams)

    def at(self, *moment: int | str) -> Draws:
        """The same replicas' draws at another moment."""
        return self._changed(_streams=tuple((seed, *moment) for seed in self._seeds))._begin()

    def at_each(self, what: str, numbers: Sequence[int]) -> Draws:
        """The same replicas' draws, each at a moment of its own: the epoch or step of its run."""
        pairs = zip(self._seeds, numbers, strict=True)
        streams = tuple((seed, what, number) for seed, number in pairs)
        return self._changed(_streams=streams)._begin()

    def of(self, part: Part) -> Draws:
        """The same draws for a part of the batch: what is drawn per image is drawn for the whole
        batch, so that an image's draws do not depend on how the batch is divided."""
        return self._changed(_part=part)._begin()

    def rows(self, rows: Sequence[int]) -> Draws:
        """The draws of some of the replicas alone."""
        if list(rows) == list(range(len(self))):
            return self
        generators = self.generators
        return self._changed(
            _seeds=tuple(self._seeds[row] for row in rows),
            _streams=tuple(self._streams[row] for row in rows),
            generators=generators if self._by_place else [generators[row] for row in rows],
        )

    def _changed(self, **attributes: object) -> Draws:
        other = copy.copy(self)
        vars(other).update(attributes)
        return other

    def _begin(self) -> Draws:
        """On a GPU: go to the start of this moment's draws."""
        if not self._by_place:
            for generator, stream in zip(self.generators, self._streams, strict=True):
                generator.manual_seed(key(*stream))
        return self

    def generator(self, replica: int, place: str) -> torch.Generator:
        """A generator at the start of the stream of this replica and place; use it at once,
        before the next one is asked for.

        On the CPU torch seeds with the low 32 bits of the key, so that among the many streams of
        a long run two may be equal; nothing compares or subtracts them. Masks are not drawn so.
        """
        if not self._by_place:
            return self.generators[replica]
        self.generators[0].manual_seed(key(*self._streams[replica], place))
        return self.generators[0]

    def _halfwords(self, count: int, rates: Sequence[float], place: str) -> Tensor:
        """Independent uniform 16-bit words, (K, count) int16; where the rate is zero none are
        drawn, and any are kept."""
        words = torch.empty(len(rates), -(-count // 4), dtype=torch.int64, device=self.device)
        for replica, rate in enumerate(rates):
            if rate:
                # Without the lower bound torch leaves the sign bit of every word at zero.
                generator = self.generator(replica, place)
                words[replica].random_(-(2**63), None, generator=generator)
        return words.view(torch.int16)[:, :count]

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

        On the CPU each element costs one random byte, see `visweep.kernels`; on a GPU two, which
        split at the nearest multiple of 1/65536.
        """
        if not self._by_place:
            drawn = self._of_part(self._halfwords(self._whole(prod(shape)), rates, place))
            least, factors = self._columns(tuple(rates), dtype)
            return torch.ge(drawn, least).to(dtype).mul_(factors).view(len(self), *shape)
        rows, count = self._dropped_rows(rates, place), prod(shape)
        if self._part is None:
            mask = drawn_mask(rows, count, dtype)
        else:
            images, of = self._part.images, self._part.of
            mask = mask_of_part(rows, self._whole(count), dtype, images, of)
        return mask.view(len(self), *shape)

    def _columns(self, rates: tuple[float, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Of each rate, where a 16-bit number splits, and the factor of what is kept: (K, 1) each.

        They stay on the device for as long as these draws are used: a captured step may not copy
        anything there.
        """
        if (rates, dtype) not in self._kept_columns:
            # Not -32768 + 65536, which no such number reaches.
            splits = [[min(round(rate * 65536) - 32768, 32767)] for rate in rates]
            factors = [[1.0 / (1.0 - rate)] for rate in rates]
            self._kept_columns[rates, dtype] = (
                torch.tensor(splits, dtype=torch.int16, device=self.device),
                torch.tensor(factors, dtype=dtype, device=self.device),
            )
        return self._kept_columns[rates, dtype]

    def dropped(
        self, x: Tensor, rates: Sequence[float], place: str, *, inplace: bool = False
    ) -> Tensor:
        """`x` (K, …) times the mask of this place.

        Args:
            inplace: overwrite `x`, which nothing else may need any more.
        """
        if self._without_mask(x):
            return dropping.dropped(x, self._dropped_rows(rates, place), inplace=inplace)
        mask = self.dropout_mask(tuple(x.shape[1:]), rates, x.dtype, place)
        return x.mul_(mask) if inplace else x * mask

    def dropped_gelu(self, x: Tensor, rates: Sequence[float], place: str) -> Tensor:
        """GELU(x) times the mask of this place."""
        if self._without_mask(x) and dropping.knows_gelu(x.dtype):
            return dropping.dropped_gelu(x, self._dropped_rows(rates, place))
        return self.dropped(F.gelu(x), rates, place, inplace=True)

    def _without_mask(self, x: Tensor) -> bool:
        """Whether that can be, and pays."""
        if x.device.type != "cpu" or self._part is not None or not x.is_contiguous():
            return False
        return maskless.pays(x[0].numel(), torch.get_num_threads())

    def _dropped_rows(self, rates: Sequence[float], place: str) -> list[Row]:
        pairs = zip(self._streams, rates, strict=True)
        return [Row(beginning(*stream, place), rate) for stream, rate in pairs]


def _seeds_for_every_place(device: torch.device) -> bool:
    """Whether a generator is seeded anew for every place, or only for every moment."""
    return device.type == "cpu"
