"""Wrappers that programs put around a model when they save it: prefixes of its keys, and heads of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

PREFIXES = {
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "_forward_module.": "Lightning",
    "_fsdp_wrapped_module.": "FSDP",
    "_orig_mod.": "torch.compile",
    "base_model.model.": "PEFT",
    "language_model.": "a model with a language model inside",
    "model.language_model.": "a model with a language model inside",
    "module.": "DistributedDataParallel",
    "pretrained_model.": "TRL",
    "model.": "a class with the model inside",
}
"""A prefix of keys -> who puts it there. Taken off where the key has no rule with it and one without it."""

INSIDE = ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "_orig_mod.")
"""Those that also stand within a key, where a part of the model was wrapped."""

LEFT_OUT = {"v_head.": "the value head of TRL's reinforcement learning, which predicts no token"}
"""Tensors that belong to no model of the Hub's classes -> what they are."""

ADAPTER = (".lora_A.", ".lora_B.", ".base_layer.")
"""Parts of keys that say that a PEFT adapter is in the model and not merged."""


def unwrapped(key: str) -> Iterator[tuple[str, str]]:
    """The key without one wrapper after the other, each with the prefix that went last."""
    for inside in INSIDE:
        if inside in key:
            key = key.replace(inside, "")
            yield key, inside
    while (prefix := next((one for one in PREFIXES if key.startswith(one)), None)) is not None:
        key = key.removeprefix(prefix)
        yield key, prefix


def left_out(key: str) -> str | None:
    """What a tensor is that is left out; None for any other."""
    return next((what for prefix, what in LEFT_OUT.items() if key.startswith(prefix)), None)


def notes(keys: Iterable[str], prefixes: Iterable[str]) -> tuple[str, ...]:
    """What a person should know: prefixes that were taken off, tensors that were left out."""
    off = [f"the prefix {prefix!r} ({PREFIXES[prefix]}) is taken off its keys" for prefix in dict.fromkeys(prefixes)]
    spare: dict[str, list[str]] = {}
    for key in keys:
        if (what := left_out(key)) is not None:
            spare.setdefault(what, []).append(key)
    return (*off, *(f"{', '.join(sorted(found))} left out: {what}" for what, found in spare.items()))
