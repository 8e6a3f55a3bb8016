"""Attention of one new slot of each row over a cache, which it extends."""

from __future__ import annotations

import numpy as np
from numpy import float32

from isoform.compiled import inlined, reordering_kernel
from isoform.runtimes.backends.torch.kernels.memory import exponential, halves_at, rounded, widened


@reordering_kernel
def attend_one(
    q: int,
    q_row: int,
    k: int,
    k_row: int,
    v: int,
    v_row: int,
    keys: int,
    values: int,
    cache_row: int,
    slots: int,
    bias: int,
    bias_row: int,
    rows: int,
    heads: int,
    kv_heads: int,
    dim: int,
    scale: float,
    out: int,
) -> None:
    """Write k and v (rows, kv_heads * dim) behind `slots` slots of the cache, and attend to all of them with q.

    keys and values (rows, capacity, kv_heads, dim), bias (rows, slots + 1) or 0 for none, out (rows, heads * dim), all
    of them bf16. Names that end in `_row` are what lies between rows.
    """
    shared, width, count = heads // kv_heads, kv_heads * dim, slots + 1
    scores = np.empty(count, np.float32)
    sums = np.empty(dim, np.float32)
    query = np.empty(dim, np.float32)
    for n in range(rows):
        kept_k, kept_v = keys + 2 * n * cache_row, values + 2 * n * cache_row
        _copy(k + 2 * n * k_row, kept_k + 2 * slots * width, width)
        _copy(v + 2 * n * v_row, kept_v + 2 * slots * width, width)
        hidden = halves_at(bias + 2 * n * bias_row, count)
        for head in range(heads):
            begin = 2 * (head // shared * dim)
            asked = halves_at(q + 2 * (n * q_row + head * dim), dim)
            made = halves_at(out + 2 * (n * heads + head) * dim, dim)
            for i in range(dim):
                query[i] = widened(asked[i]) * float32(scale)
                sums[i] = float32(0.0)
            most = float32(-np.inf)
            for slot in range(count):
                key = halves_at(kept_k + 2 * slot * width + begin, dim)
                score = float32(0.0)
                for i in range(dim):
                    score += query[i] * widened(key[i])
                if bias != 0:
                    score += widened(hidden[slot])
                scores[slot] = score
                most = max(most, score)
            total = float32(0.0)
            for slot in range(count):
                scores[slot] = exponential(scores[slot] - most)
                total += scores[slot]
            for slot in range(count):
                weight = scores[slot]
                value = halves_at(kept_v + 2 * slot * width + begin, dim)
                for i in range(dim):
                    sums[i] += weight * widened(value[i])
            for i in range(dim):
                made[i] = rounded(sums[i] / total)


@inlined
def _copy(source: int, target: int, count: int) -> None:
    given, made = halves_at(source, count), halves_at(target, count)
    for i in range(count):
        made[i] = given[i]
