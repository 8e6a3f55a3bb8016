"""Faults in encoder-decoders of text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tests.mutants.faults.planted import (
    SINGLE,
    Fault,
    forward,
    left_out,
    on,
    part,
    setting,
)
from tests.mutants.planting import Checkpoint, Definition


def begins_with_another_token(module: nn.Module) -> None:
    part(module, "").start = 5


def biased_by_nothing(path: str) -> Callable[[nn.Module], None]:
    """Cross-attention of a layer over the padding of the encoder states too."""

    def change(module: nn.Module) -> None:
        cross = part(module, path)
        honest = cross.attend
        cross.attend = lambda x, states, bias=None, cache=None: honest(x, states, None, cache)

    return change


def first_end(module: nn.Module) -> None:
    """The first of several end tokens is classified."""
    whole: Any = module

    def run(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        (states,) = whole.encoder(input_ids, attention_mask)
        x = whole.decoder(whole.moved(input_ids, attention_mask), attention_mask, states)
        ends = (input_ids == whole.head.end).to(attention_mask.dtype) * attention_mask
        return (
            whole.classifier(
                x.gather(1, ends.argmax(1).unsqueeze(-1).unsqueeze(-1).expand(-1, 1, x.shape[-1])).squeeze(1)
            ),
        )

    whole.forward = run


def not_moved(module: nn.Module) -> None:
    whole: Any = module
    whole.moved = lambda input_ids, attention_mask: input_ids


def slower(found: Any, whole: nn.Module) -> Callable[..., Any]:
    honest = found.forward
    return lambda positions: honest(positions) * 0.5


def one_late(found: Any, whole: nn.Module) -> Callable[..., Any]:
    honest = found.forward
    return lambda positions: honest(positions + 1)


ENCODER, DECODER = (f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder"))


SEQUENCES = ("onnx f32", "torchscript f32")


FAULTS: tuple[Fault, ...] = (
    Fault(
        "begins with another token, T5 that classifies",
        "tiny t5_seqcls",
        Definition(begins_with_another_token),
        (r"decoder\.layers\.0\.attn_norm", r"decoder\.layers\.0"),
        SINGLE,
    ),
    Fault(
        "tied head unscaled, T5 in GGUF",
        "tiny t5",
        Checkpoint(config=lambda config: config.update(scale_decoder_outputs=False)),
        (r"head",),
        ("gguf f32", "gguf q8_0"),
        "it is a fault of the file that llama.cpp's own converter writes",
    ),
    Fault(
        "distances of two heads swapped, T5 in GGUF",
        "tiny t5",
        Checkpoint(
            on("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", lambda table: table.flip(1))
        ),
        (r"decoder\.layers\.0\.attn\.distance_embed",),
        ("gguf f32", "gguf q8_0"),
    ),
    # encoder-decoders
    Fault(
        "the rows before the positions are read, BART",
        "tiny bart",
        Checkpoint(on("model.decoder.embed_positions.weight", lambda x: x.roll(2, 0))),
        (r"^position_embed(\.weight)?$", r"goes into embed_norm"),
        SEQUENCES,
    ),
    Fault(
        "no norm after the embeddings, BART",
        "tiny bart_b",
        Definition(left_out("embed_norm"), "encoder"),
        (r"^embed_norm\.weight$", r"goes into layers\.0\.attn\.q"),
        SEQUENCES,
    ),
    Fault(
        "embeddings unscaled, BART",
        "tiny bart_b",
        Checkpoint(config=setting(scale_embedding=False)),
        (r"^embed$", r"^embed_norm$", r"goes into embed_norm"),
        SEQUENCES,
    ),
    Fault(
        "no bias of the logits, BART",
        "tiny bart_b",
        Definition(left_out("logits_bias"), "decoder"),
        (r"^logits_bias$", r"^logits", r"logits_bias\.bias"),
        SEQUENCES,
    ),
    Fault(
        "cross-attention over padding, BART",
        "tiny bart",
        Definition(biased_by_nothing("layers.1.cross"), "decoder"),
        (r"layers\.1(\.cross|$)",),
        SEQUENCES,
    ),
    Fault(
        "cross-attention over padding, mBART",
        "tiny mbart",
        Definition(biased_by_nothing("layers.0.cross"), "decoder"),
        (r"layers\.0(\.cross|$)",),
        SEQUENCES,
    ),
    Fault(
        "no last norm, mBART",
        "tiny mbart_50",
        Definition(left_out("norm"), "decoder"),
        (r"^norm\.weight$", r"goes into head"),
        SEQUENCES,
    ),
    Fault(
        "sinusoids one late, Marian",
        "tiny marian",
        Definition(forward("position_embed", one_late), "encoder"),
        (r"^position_embed", r"goes into layers\.0", r"^layers\.0$"),
        SEQUENCES,
    ),
    Fault(
        "the encoder's table of embeddings is the decoder's, Marian",
        "tiny marian_b",
        Checkpoint(lambda tensors: tensors.update({ENCODER: tensors[DECODER].clone()})),
        (r"^embed(\.weight)?$",),
        SEQUENCES,
    ),
    Fault(
        "positions from the id of padding, M2M-100",
        "tiny m2m_100",
        Checkpoint(config=setting(pad_token_id=2)),
        (r"^position_embed", r"goes into layers\.0", r"^layers\.0$"),
        SEQUENCES,
    ),
    Fault(
        "sinusoids of the wrong length, NLLB",
        "tiny nllb",
        Definition(forward("position_embed", slower), "decoder"),
        (r"^position_embed", r"goes into layers\.0", r"^layers\.0$"),
        SEQUENCES,
    ),
    Fault(
        "stored sinusoids in another order, Pegasus",
        "tiny pegasus",
        Checkpoint(on("model.encoder.embed_positions.weight", lambda x: x.flip(1))),
        (r"^position_embed(\.weight)?$",),
        SEQUENCES,
    ),
    Fault(
        "the first end is classified, BART",
        "tiny bart_mnli",
        Definition(first_end),
        (r"goes into classifier", r"^classifier"),
        SEQUENCES,
    ),
    Fault(
        "the decoder reads the text in its place, BART",
        "tiny bart_qa",
        Definition(not_moved),
        (r"^decoder\.embed$", r"goes into decoder\.embed_norm"),
        SEQUENCES,
    ),
)
