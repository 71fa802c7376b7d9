"""How much is computed at once: as measured to be fast, and when it does not fit. Which rows: pure."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence

import torch

from trial_worker.engine.batches import split_by_length
from trial_worker.engine.climb import Climb

# What one more micro-step costs in tokens: its fixed work per layer against the work per token.
_OVERHEAD = {"cpu": 64, "cuda": 4096}
_TOKENS = {"cpu": 2048, "cuda": 16384}
_MOST_TOKENS = 131_072  # in one micro-step, however much memory there is
_FLOATS_OF_LOGITS = 1 << 26  # at most 256 MiB of float32 logits at once
_FOR_ADAPTERS = 0.4  # of the free memory; the rest is for activations

Group = Mapping[int, Sequence[int]]  # slot -> positions among the rows that it waits for


class Capacity:
    """Chooses the rows of micro-steps; shrinks, for all later units too, when something did not fit.

    No size here changes a number beyond rounding: sums over a batch are divided once, by the whole batch.
    """

    def __init__(self, device: torch.device, *, streams: bool, vocabulary: int = 0) -> None:
        self._cuda = device.type == "cuda"
        self._overhead = _OVERHEAD.get(device.type, 4096)
        self._streams = streams
        self.most_rows = 4096
        self.most_tokens = _TOKENS.get(device.type, 16384)
        most = _MOST_TOKENS
        if vocabulary:
            most = max(256, _FLOATS_OF_LOGITS // vocabulary)
            self.most_tokens = min(self.most_tokens, most)
        # On a CPU more tokens at once are no faster (docs/log.md), and where rows are padded a bound is rarely met.
        self._climb = Climb(self.most_tokens, most) if self._cuda and streams else None

    def groups(self, lengths: Mapping[int, Sequence[int]], bounds: Mapping[int, int | None]) -> list[Group]:
        """Rows to compute now, in one or several goes.

        lengths: slot -> tokens of each row it waits for. bounds: slot -> rows it may have in one go; None: any.

        Returns:
            A share of every slot's rows where rows form a stream; else all rows, those of like length together.
        """
        if self._streams:
            return [share(lengths, bounds, self.most_tokens, self.most_rows)]
        places = [(slot, position) for slot, own in lengths.items() for position in range(len(own))]
        bound = min([self.most_rows, *(rows for slot in lengths if (rows := bounds[slot]) is not None)])
        split = split_by_length([lengths[s][p] for s, p in places], bound, self.most_tokens, self._overhead)
        return [_by_slot([places[i] for i in group]) for group in split]

    def measured(self, tokens: int, seconds: float) -> None:
        """A micro-step of so many tokens took so long: the next ones have more while that is faster and fits."""
        if self._climb is not None:
            used = torch.cuda.max_memory_allocated() / torch.cuda.get_device_properties().total_memory
            self.most_tokens = self._climb.after(tokens, seconds, used)

    def shrink(self, rows: int, tokens: int) -> bool:
        """Halve what is computed at once after so much did not fit; False: one row was already too much."""
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()
        if rows == 1:
            return False
        self.most_rows = min(self.most_rows, max(rows // 2, 1))
        if self._streams:
            self.most_tokens = min(self.most_tokens, max(tokens // 2, 1))
        self._climb = None
        return True


def free_bytes(device: torch.device) -> int | None:
    """Memory of a GPU that tensors may still take, what torch keeps for them included; None: not asked on a CPU."""
    if device.type != "cuda":
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def slots_within(most: int, bytes_each: int, free: int | None) -> int:
    """How many slots' adapters, gradients and moments fit beside activations; at least one. free: None: no bound."""
    return most if free is None else max(1, min(most, int(_FOR_ADAPTERS * free) // max(bytes_each, 1)))


def share(
    lengths: Mapping[int, Sequence[int]], bounds: Mapping[int, int | None], most_tokens: int, most_rows: int
) -> Group:
    """A fair part of a micro-step for every slot: who needs less than an equal share leaves the rest to others.

    Rows are taken from the front. Each slot gets a row as long as there is room for rows at all: one that waited for
    the others to finish would keep its device memory and its lease for nothing.
    """
    chosen: dict[int, list[int]] = {}
    tokens, rows = most_tokens, most_rows
    waiting = sorted(lengths, key=lambda slot: (sum(lengths[slot]), slot))
    for number, slot in enumerate(waiting):
        left = len(waiting) - number
        limit = min(rows, max(rows // left, 1), bounds[slot] or rows)
        room, taken = tokens / left, 0
        mine: list[int] = []
        for position, length in enumerate(lengths[slot][:limit]):
            if mine and taken + length > room:
                break
            if not mine and chosen and length > tokens:
                break  # its turn comes when there is room, which the first slot always has
            mine.append(position)
            taken += length
        if mine:
            chosen[slot] = mine
            tokens, rows = tokens - taken, rows - len(mine)
    return {slot: chosen[slot] for slot in sorted(chosen)}


def _by_slot(places: Sequence[tuple[int, int]]) -> Group:
    group: dict[int, list[int]] = {}
    for slot, position in sorted(places):
        group.setdefault(slot, []).append(position)
    return group
