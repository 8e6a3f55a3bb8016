"""Semantic operations: the few that every fast backend has as one kernel.

Each is a plain function with a plain torch body; that body is the ground truth. An exporter that wants one node per
operation registers its own operator for each name in `OPS` and installs it with `lowered_by` while it traces; then
the same call emits that node. Without a lowering (eager runs, TorchScript) the body runs.

Heads are packed: a tensor of H heads of size D is (B, T, H*D), head-major, as a projection leaves it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from inspect import Parameter, Signature
from typing import Any, Generic, NamedTuple, TypeVar, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor

_F = TypeVar("_F", bound=Callable[..., Any])
_lowering: ContextVar[Mapping[str, Callable[..., Any]] | None] = ContextVar("lowering", default=None)

OPS: dict[str, Callable[..., Any]] = {}
"""Name -> body, for exporters to register; every argument is positional, and a tensor (or None), an int, a float, or a
list of ints."""


@contextmanager
def lowered_by(table: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Within this block (and thread) a call of a semantic operation goes to `table[name]` instead of its body."""
    token = _lowering.set(table)
    try:
        yield
    finally:
        _lowering.reset(token)


def semantic(body: _F) -> _F:
    name = body.__name__
    OPS[name] = body

    @wraps(body)
    def call(*args: Any) -> Any:
        table = _lowering.get()
        return body(*args) if table is None else table[name](*args)

    return call  # type: ignore[return-value]


@semantic
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last axis, computed in float32 or wider. https://arxiv.org/abs/1910.07467

    Shapes: x (..., C), weight (C,) -> (..., C), in x's dtype.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * weight).to(x.dtype)


@semantic
def rotary(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotate the two halves of every head by an angle per position ("half-split", as the Hub stores it).

    Su et al. 2021, https://arxiv.org/abs/2104.09864. Shapes: x (B, T, heads*D), cos and sin (B, T, R) in x's dtype. Of
    heads with more channels than there are angles for, the first 2 R are rotated.
    """
    pairs = cos.shape[-1]
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    if x.shape[-1] == 2 * pairs * heads:
        a, b = x.unflatten(-1, (heads, 2, -1)).unbind(-2)
        return torch.stack((a * cos - b * sin, b * cos + a * sin), -2).flatten(-3)
    each = x.unflatten(-1, (heads, -1))
    a, b = each[..., :pairs], each[..., pairs : 2 * pairs]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, each[..., 2 * pairs :]), -1).flatten(-2)


@semantic
def partial_rotary(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotate neighbouring channels by an angle per position, of every head as many as there are angles for.

    Shapes: x (B, T, heads*D), cos and sin (B, T, R) in x's dtype, 2 R at most D.
    """
    each = x.unflatten(-1, (heads, -1))
    count = 2 * cos.shape[-1]
    a, b = each[..., 0:count:2], each[..., 1:count:2]
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    rotated = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    return torch.cat((rotated, each[..., count:]), -1).flatten(-2)


_T = TypeVar("_T")


class AttentionArguments(NamedTuple, Generic[_T]):
    """What `attention` takes, in order; the exporters' lowerings read theirs through it.

    Shapes: q (B, T, heads*D), k and v (B, T or S, kv_heads*D), bias (B or 1, 1 or heads, T or 1, S) in q's dtype, past
    (B, kv_heads, P, D), `switch` bool (1,). With weights (kv_heads*D, M) and their biases, k and v are the encoder
    states (B, S, M) that these project.
    """

    q: _T
    k: _T
    v: _T
    bias: _T | None
    past_k: _T | None
    past_v: _T | None
    switch: _T | None
    k_weight: _T | None
    k_bias: _T | None
    v_weight: _T | None
    v_bias: _T | None
    heads: int
    kv_heads: int
    scale: float
    softcap: float


def _takes(arguments: type[tuple[Any, ...]]) -> Callable[[_F], Callable[..., Any]]:
    """A body over one named tuple of tensors as a function of its fields, with a signature that torch can read."""
    plain = {_T: Tensor, _T | None: Tensor | None}
    fields = [
        Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=plain.get(hint, hint))
        for name, hint in get_type_hints(arguments).items()
    ]

    def decorate(body: _F) -> Callable[..., Any]:
        @wraps(body)
        def call(*args: Any) -> Any:
            return body(arguments(*args))

        call.__signature__ = Signature(fields, return_annotation=get_type_hints(body)["return"])  # type: ignore[attr-defined]
        return call

    return decorate


class ExpertArguments(NamedTuple, Generic[_T]):
    """What `routed_experts` takes, in order.

    Shapes: x (B, T, C), scores (B, T, E), gate and up (E, I, C), down (E, C, I), their biases (E, I), (E, I) and (E, C)
    or None. `limit`: what is activated is at most that, and what it gates at most that far from 0; 0 means none.
    """

    x: _T
    scores: _T
    gate: _T
    up: _T
    down: _T
    gate_bias: _T | None
    up_bias: _T | None
    down_bias: _T | None
    used: int
    normalize: int
    alpha: float
    shift: float
    limit: float


@semantic
@_takes(ExpertArguments)
def routed_experts(a: ExpertArguments[Tensor]) -> Tensor:
    """For each token the gated MLPs of the `used` experts with the highest scores, added by the softmax of the scores.

    The softmax is over all experts, in float32 or wider; with `normalize` the weights of the chosen ones are divided by
    their sum, which is the softmax over the chosen alone. Each expert is down @ (g * sigmoid(alpha * g) * (u + shift)),
    for g = gate @ x and u = up @ x: alpha 1 and shift 0 are a SiLU's gate.
    """
    return _branch(_routed)(*a)


def _routed(
    x: Tensor,
    scores: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    used: int,
    normalize: int,
    alpha: float,
    shift: float,
    limit: float,
) -> Tensor:
    """Each expert that is taken, over its tokens. A tensor without data takes none, and only has a shape."""
    tokens = x.flatten(0, 1)
    y = torch.zeros_like(tokens)
    if not x.is_meta:
        wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
        chances = torch.softmax(scores.flatten(0, 1), -1, dtype=wide)
        weights, chosen = chances.topk(used, -1)
        if normalize != 0:
            weights = weights / weights.sum(-1, keepdim=True)
        weights = weights.to(x.dtype)
        taken = torch.bincount(chosen.flatten(), minlength=gate.shape[0]).nonzero()
        for n in range(taken.shape[0]):
            expert = int(taken[n])
            found = (chosen == expert).nonzero()
            rows, ranks = found[:, 0], found[:, 1]
            part = tokens[rows]
            g = F.linear(part, gate[expert], None if gate_bias is None else gate_bias[expert])
            u = F.linear(part, up[expert], None if up_bias is None else up_bias[expert])
            if limit > 0:
                g, u = g.clamp(max=limit), u.clamp(min=-limit, max=limit)
            inner = (F.silu(g) if alpha == 1 else g * torch.sigmoid(alpha * g)) * (u if shift == 0 else u + shift)
            z = F.linear(inner, down[expert], None if down_bias is None else down_bias[expert])
            y.index_add_(0, rows, z * weights[rows, ranks].unsqueeze(-1))
    return y.unflatten(0, x.shape[:2])


@semantic
@_takes(AttentionArguments)
def attention(a: AttentionArguments[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled dot-product attention with grouped heads and an additive bias, if any, over a cache of keys and values.

    Returns (B, T, heads*D), and the key and value (B, kv_heads, slots, D) to keep. The cache is one of four:
    - None: every slot is new.
    - Growing (a past): P slots of the past before the T new ones. The bias must hide the future, and backends may
      assume that it does.
    - Switched (a past and a switch): the same without padding; the future is hidden here, and while the switch is off
      the past counts as empty. A bias spans all P+T slots; while the switch is off its last T columns count.
    - Encoder states (a past, a switch and weights): while the switch is off key and value are projected from the
      encoder states; while it is on they are the past, and what is returned for them is empty. The past may have B/n
      rows, each shared by n neighbouring rows of q, as beams do. A bias has a row for each of those, and hides the same
      slots from all queries: (B/n or 1, 1 or heads, 1, slots).

    Scores become softcap * tanh(scores / softcap) before the bias is added (Gemma 2, arXiv 2408.00118); 0 means none.
    """
    if a.past_k is None or a.past_v is None:
        k, v = _split(a.k, a.kv_heads), _split(a.v, a.kv_heads)
        return _attend(a.q, k, v, a.bias, False, a.heads, a.kv_heads, a.scale, a.softcap), k, v
    if a.switch is None:
        k = torch.cat((a.past_k, _split(a.k, a.kv_heads)), 2)
        v = torch.cat((a.past_v, _split(a.v, a.kv_heads)), 2)
        return _attend(a.q, k, v, a.bias, False, a.heads, a.kv_heads, a.scale, a.softcap), k, v
    settings = a.heads, a.kv_heads, a.scale, a.softcap
    if a.k_weight is None or a.v_weight is None:
        return _branch(_switched)(a.q, a.k, a.v, a.past_k, a.past_v, a.switch, a.bias, *settings)
    projections = a.k_weight, a.k_bias, a.v_weight, a.v_bias
    return _branch(_crossed)(a.q, a.k, a.v, *projections, a.past_k, a.past_v, a.switch, a.bias, *settings)


@semantic
def local_bias(mask: Tensor, like: Tensor, window: int) -> Tensor:
    """The bias of `local_attention`: it hides padding, and what is `window` or more slots away on either side.

    Texts of up to four blocks have one row for each query: mask (B, T) -> (B, 1, T, T) in the dtype of `like`. For a
    longer one there are rows for the queries of one block, over the keys of that block and the two beside it:
    (B * blocks, 1, block, 3 * block). `block_of` says how long a block is.
    """
    hidden = torch.finfo(like.dtype).min / 2
    return _branch(_local_bias)(mask, like, window, block_of(window), dense_length(window), hidden)


@semantic
def local_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, window: int, heads: int, scale: float) -> Tensor:
    """Attention to the tokens that are less than `window` slots away, with the bias that `local_bias` gives.

    Long texts are computed block by block, so that a token costs the same however long its text is. Beltagy et al.
    2020, https://arxiv.org/abs/2004.05150. Shapes: q, k and v (B, T, heads*D) -> (B, T, heads*D).
    """
    return _branch(_local)(q, k, v, bias, block_of(window), dense_length(window), heads, scale)


@semantic
def sampled_attention(value: Tensor, locations: Tensor, weights: Tensor, heads: int, method: int) -> Tensor:
    """Weighted sums of a map's values at the points that each query and head choose: one level of deformable attention.

    Zhu et al. 2020, https://arxiv.org/abs/2010.04159. A point is x and y, from 0 to 1 between the edges of the map.
    Method 0 interpolates between the four cells around it; cells beyond an edge are zeros. Method 1 takes the cell at
    x * W and y * H, rounded, or the one at the edge for a point beyond it ("discrete", https://arxiv.org/abs/2407.17140).
    Interpolates and adds in float32 or wider. Levels are added by the caller, whose weights sum to 1 over all of them.

    Shapes: value (B, H, W, heads*D), locations (B, T, heads, P, 2), weights (B, T, heads, P) -> (B, T, heads*D).
    """
    wide = torch.promote_types(value.dtype, torch.float32)
    batch, height, width = value.shape[0], value.shape[1], value.shape[2]
    points = locations.to(wide).transpose(1, 2).flatten(0, 1)  # (B * heads, T, P, 2)
    if method == 0:
        maps = value.to(wide).unflatten(-1, (heads, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)
        found = F.grid_sample(maps, 2 * points - 1, "bilinear", "zeros", False)  # (B * heads, D, T, P)
    else:
        maps = value.to(wide).unflatten(-1, (heads, -1)).permute(0, 3, 4, 1, 2).flatten(3).flatten(0, 1)
        column = (points[..., 0] * width + 0.5).clamp(0, width - 1).to(torch.int64)
        row = (points[..., 1] * height + 0.5).clamp(0, height - 1).to(torch.int64)
        cells = (row * width + column).flatten(1).unsqueeze(1).expand(-1, maps.shape[1], -1)
        found = maps.gather(2, cells).unflatten(2, (points.shape[1], points.shape[2]))
    shares = weights.to(wide).transpose(1, 2).flatten(0, 1).unsqueeze(1)
    y = (found * shares).sum(-1).unflatten(0, (batch, heads))  # (B, heads, D, T)
    return y.flatten(1, 2).transpose(1, 2).to(value.dtype)


def block_of(window: int) -> int:
    """The slots of a block: a window reaches no farther than into the blocks on both sides."""
    return max(window - 1, 16)


def dense_length(window: int) -> int:
    """The slots up to which a text is computed at once: the blocks of its keys would be three times as many."""
    return 4 * block_of(window)


def _local_bias(mask: Tensor, like: Tensor, window: int, block: int, dense: int, hidden: float) -> Tensor:
    length = mask.shape[1]
    padding = (mask == 0).to(like.dtype) * hidden
    if length <= dense:
        slots = torch.arange(length, device=mask.device)
        far = (slots.unsqueeze(1) - slots.unsqueeze(0)).abs() >= window
        return far.to(like.dtype) * hidden + padding.unsqueeze(1).unsqueeze(1)
    blocks = (length + block - 1) // block
    padding = F.pad(padding, [block, (blocks + 1) * block - length], value=hidden).unfold(1, 3 * block, block)
    queries = torch.arange(block, device=mask.device) + block
    far = (queries.unsqueeze(1) - torch.arange(3 * block, device=mask.device).unsqueeze(0)).abs() >= window
    return far.to(like.dtype) * hidden + padding.flatten(0, 1).unsqueeze(1).unsqueeze(1)


def _local(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, block: int, dense: int, heads: int, scale: float) -> Tensor:
    batch, length, width = q.shape[0], q.shape[1], q.shape[2]
    if length <= dense:
        k, v = k.unflatten(-1, (heads, -1)).transpose(1, 2), v.unflatten(-1, (heads, -1)).transpose(1, 2)
        return _attend(q, k, v, bias, False, heads, heads, scale, 0.0)
    blocks = (length + block - 1) // block
    behind = blocks * block - length
    q = F.pad(q, [0, 0, 0, behind]).reshape(batch * blocks, block, width)
    # Views of overlapping blocks: (B * blocks, heads, D, 3 * block), the channels of a slot beside each other.
    k = F.pad(k, [0, 0, block, behind + block]).unfold(1, 3 * block, block).flatten(0, 1)
    v = F.pad(v, [0, 0, block, behind + block]).unfold(1, 3 * block, block).flatten(0, 1)
    k, v = k.unflatten(1, (heads, -1)).transpose(2, 3), v.unflatten(1, (heads, -1)).transpose(2, 3)
    out = _attend(q, k, v, bias, False, heads, heads, scale, 0.0)
    return out.reshape(batch, blocks * block, width)[:, :length]


@semantic
def transport(scores: Tensor, dustbin: Tensor, source: Tensor, target: Tensor, iterations: int) -> Tensor:
    """Which row goes to which column, by Sinkhorn's iterations: the masses of rows and columns are kept in turn.

    Cuturi 2013, https://arxiv.org/abs/1306.0895. One more row and column, whose scores are `dustbin`, take what matches
    nothing. Computed in float32 or wider.

    Shapes: scores (B, M, N), dustbin (), source (B, M+1) and target (B, N+1), masses from 0 on -> masses (B, M, N).
    """
    wide = torch.promote_types(scores.dtype, torch.float32)
    low, deep, least = kernel_bounds()
    found = _branch(_transported)(
        scores.to(wide), dustbin.to(wide), source.to(wide), target.to(wide), iterations, low, deep, least
    )
    return found.to(scores.dtype)


def kernel_bounds() -> tuple[float, float, float]:
    """What is no score but hides a pair; how far scores may be below their row's best; the least sum of a row.

    Within these bounds `transport` computes with exp(scores), else with their logarithms.
    """
    return -1e30, 80.0, 1e-25


def _transported(
    scores: Tensor,
    dustbin: Tensor,
    source: Tensor,
    target: Tensor,
    iterations: int,
    low: float,
    deep: float,
    least: float,
) -> Tensor:
    """Products with exp(scores) are the iterations, 16 times as fast as sums of exponentials.

    They are right while none of the numbers leaves the range of float32, which is looked at in the end.
    """
    batch, rows, columns = scores.shape
    every = torch.cat((scores, dustbin.expand(batch, rows, 1)), 2)
    every = torch.cat((every, dustbin.expand(batch, 1, columns + 1)), 1)
    below = every.amax(2, keepdim=True) - every
    kernel = torch.exp(-below)
    turned = kernel.transpose(1, 2)
    source, target = source.unsqueeze(2), target.unsqueeze(2)
    begin = (target > 0).to(target.dtype)  # a column without mass takes part in no sum
    u, v = torch.ones_like(source), begin
    sent, taken = u, v
    for _ in range(iterations):
        sent = kernel @ v
        u = source / sent
        taken = turned @ u
        v = target / taken
    depth = torch.where(every > low, below, torch.zeros_like(below)).amax()
    fits = (depth < deep) & (sent.amin() > least) & (taken.amin() > least)
    fits = fits & (sent.amax() < 1 / least) & (taken.amax() < 1 / least)
    if fits.is_meta or bool(fits):  # a skeleton without data is traced, too
        found = u * kernel * v.transpose(1, 2)
    else:
        f, g = torch.zeros_like(source), begin.log().transpose(1, 2)
        for _ in range(iterations):
            f = source.log() - torch.logsumexp(every + g, 2, keepdim=True)
            g = target.transpose(1, 2).log() - torch.logsumexp(every + f, 1, keepdim=True)
        found = (every + f + g).exp()
    return found[:, :rows, :columns]


def _branch(body: _F) -> _F:
    """`body`, or its script while torch traces: a trace follows one side of an `if`, a script keeps both."""
    return _scripted(body) if torch._C._is_tracing() else body


@cache
def _scripted(body: Callable[..., Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there is no other writer of this format
        return torch.jit.script(body)


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads*D) -> (B, heads, T, D)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _switched(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_k: Tensor,
    past_v: Tensor,
    switch: Tensor,
    bias: Tensor | None,
    heads: int,
    kv_heads: int,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Over the past, which counts as empty while the switch is off, and the new slots behind it."""
    if not bool(switch):
        past_k, past_v = past_k[:, :, :0], past_v[:, :, :0]
    k = torch.cat((past_k, k.unflatten(-1, (kv_heads, -1)).transpose(1, 2)), 2)
    v = torch.cat((past_v, v.unflatten(-1, (kv_heads, -1)).transpose(1, 2)), 2)
    if bias is not None:
        bias = bias[..., bias.shape[-1] - k.shape[2] :]
    return _attend(q, k, v, bias, True, heads, kv_heads, scale, softcap), k, v


def _crossed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_weight: Tensor,
    k_bias: Tensor | None,
    v_weight: Tensor,
    v_bias: Tensor | None,
    past_k: Tensor,
    past_v: Tensor,
    switch: Tensor,
    bias: Tensor | None,
    heads: int,
    kv_heads: int,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Over the keys and values of encoder states: the past, or projected while the switch is off.

    What is given for them is empty where the past has them already.
    """
    if bool(switch):
        k, v = past_k, past_v
        new_k, new_v = past_k[:, :, :0], past_v[:, :, :0]
    else:
        k = F.linear(k, k_weight, k_bias).unflatten(-1, (kv_heads, -1)).transpose(1, 2)
        v = F.linear(v, v_weight, v_bias).unflatten(-1, (kv_heads, -1)).transpose(1, 2)
        new_k, new_v = k, v
    shape = q.shape
    q = q.reshape(k.shape[0], -1, shape[-1])  # rows that share a past are one: all their queries see the same slots
    out = _attend(q, k, v, bias, False, heads, kv_heads, scale, softcap)
    return out.reshape(shape), new_k, new_v


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    causal: bool,
    heads: int,
    kv_heads: int,
    scale: float,
    softcap: float,
) -> Tensor:
    """`causal` hides the future of T queries that stand at the end of S slots."""
    q = q.unflatten(-1, (heads, -1)).transpose(1, 2)
    length, slots = q.shape[2], k.shape[2]
    if causal and length > 1:
        seen = torch.ones((length, slots), dtype=torch.bool, device=q.device).tril(slots - length)
        if bias is None and softcap == 0:
            bias = seen
        else:
            below = torch.zeros((length, slots), dtype=q.dtype, device=q.device) if bias is None else bias
            bias = below.masked_fill(~seen, float("-inf"))
    if softcap == 0:
        out = F.scaled_dot_product_attention(q, k, v, bias, scale=scale, enable_gqa=kv_heads != heads)
    else:
        if kv_heads != heads:
            k, v = k.repeat_interleave(heads // kv_heads, 1), v.repeat_interleave(heads // kv_heads, 1)
        scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap)
        if bias is not None:
            scores = scores + bias
        wide = torch.promote_types(scores.dtype, torch.float32)
        out = torch.softmax(scores, -1, dtype=wide).to(q.dtype) @ v
    return out.transpose(1, 2).flatten(-2)
