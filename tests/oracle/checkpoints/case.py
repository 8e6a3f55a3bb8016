"""One checkpoint being written: its model with redrawn weights, its tokenizer and processors, its golden outputs."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as T
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

GOLDEN_ELEMENTS = 400_000  # a larger tensor is not stored
TRAINED_BUFFERS = ("running_mean", "running_var", "embed", "embed_sum", "cluster_size", "final_logits_bias")

# transformers 5 writes some checkpoints under newer names than the Hub's files have: they get the Hub's spelling.
_WEIGHT_NORM = (
    (r"parametrizations\.weight\.original0$", "weight_g"),
    (r"parametrizations\.weight\.original1$", "weight_v"),
)
_CLIP_VISION = ((r"^", "vision_model."),)
_VISION_TOWER = ((r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),)
HUB_KEYS: dict[str, tuple[tuple[str, str], ...]] = {
    "bark": _WEIGHT_NORM,
    "bert": ((r"LayerNorm\.weight$", "LayerNorm.gamma"), (r"LayerNorm\.bias$", "LayerNorm.beta")),
    "encodec": _WEIGHT_NORM,
    "clip_vision": _CLIP_VISION,
    "kosmos2": ((r"^vision_model\.(?!model\.)", "vision_model.model."),),
    "llava": _VISION_TOWER,
    "llava_onevision": _VISION_TOWER,
    "musicgen": _WEIGHT_NORM,
    "wav2vec2": _WEIGHT_NORM,
    "wav2vec2_ctc": _WEIGHT_NORM,
    "wav2vec2_large": _WEIGHT_NORM,
}

IMNET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLIPN = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(high: int, *shape: int, seed: int = 2, lo: int = 5) -> Tensor:
    return torch.randint(lo, high, shape, generator=torch.Generator().manual_seed(seed))


def labels(count: int, prefix: str = "LABEL_") -> dict[str, Any]:
    return named(*(f"{prefix}{i}" for i in range(count)))


def named(*names: str) -> dict[str, Any]:
    """id2label and label2id of a config."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def write_json(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# ------------------------------------------------------------------ weights
def redrawn(name: str, tensor: Tensor) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
    last = name.rsplit(".", 1)[-1]
    if last == "running_var":
        return 1 + 0.3 * noise.abs()
    if last == "running_mean":
        return 0.1 * noise
    if last in ("embed", "embed_sum"):
        return noise
    if last == "cluster_size":
        return torch.ones_like(noise)
    if last in ("weight_g", "original0"):
        return tensor.abs().mean() * (1 + 0.1 * noise)
    if tensor.ndim == 0:
        return tensor + 0.1 * noise
    if tensor.ndim == 1:
        return 0.1 * noise if "bias" in last else 1 + 0.2 * noise
    if "embed" in name or "position" in name or "token" in last:
        return 0.5 * noise
    return noise * min(0.7, 1.2 / (tensor.numel() / tensor.shape[0]) ** 0.5)


@torch.no_grad()
def redraw(model: nn.Module) -> None:
    """Redraw every parameter and trained buffer from a generator that its own name seeds.

    So norms and biases are neither 1 nor 0, and a tensor under a wrong name always shows.
    """
    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)  # not fixed tables of sinusoids
    buffers = ((name, b) for name, b in model.named_buffers() if name.rsplit(".", 1)[-1] in TRAINED_BUFFERS)
    for group in (trained, buffers):
        for name, tensor in group:
            if tensor.is_floating_point():
                tensor.copy_(redrawn(name, tensor).to(tensor.dtype))
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # type: ignore[operator]
    for module in model.modules():  # Mimi computes embed = embed_sum / cluster_size once, on first use
        if hasattr(module, "_embed"):
            module._embed = None  # type: ignore[assignment]


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value.detach().cpu().contiguous().clone()
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _leaves(f"{name}.{i}", item)
    elif hasattr(value, "items"):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}", item)


def flat(name: str, value: Any) -> dict[str, Tensor]:
    """The tensors inside nested lists and mappings, by dotted path."""
    return dict(_leaves(name, value))


def largest_gap(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Largest difference of two outputs, in units of 1 or of the tensor's largest value if that is more."""
    gaps = [
        float((x.double() - other[key].double()).abs().nan_to_num().max() / max(1.0, float(x.abs().max())))
        for key, x in one.items()
        if key in other and x.shape == other[key].shape and x.numel()
    ]
    return max(gaps, default=0.0)


# ------------------------------------------------------------------ cases
class Case:
    """The checkpoint `name` in the new folder `out`/`name`."""

    def __init__(self, name: str, out: Path) -> None:
        self.name, self.folder = name, out / name
        self.info: dict[str, Any] = {}  # what was written, and what is wrong with it
        self.m: Any = None
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def model(self, cls: str | Any, config: Any, **generation: Any) -> Any:
        """Build, redraw and save a model; `generation` are settings of its generation config."""
        torch.manual_seed(0)
        cls = getattr(T, cls) if isinstance(cls, str) else cls
        model = cls(config).float().eval()
        redraw(model)
        for key, value in generation.items():
            setattr(model.generation_config, key, value)
        model.save_pretrained(self.folder)
        self._spell(HUB_KEYS.get(self.name.partition("@")[0], ()))
        self.m = model
        parameters = sum(p.numel() for p in model.parameters())
        self.info.update(model_type=model.config.model_type, arch=cls.__name__, params=parameters)
        return model

    def _spell(self, rules: tuple[tuple[str, str], ...]) -> None:
        if not rules:
            return
        file = self.folder / "model.safetensors"
        renamed = {}
        for key, tensor in load_file(file).items():
            for pattern, replacement in rules:
                key = re.sub(pattern, replacement, key)
            renamed[key] = tensor.clone()
        save_file(renamed, file, metadata={"format": "pt"})

    def tok(self, tokenizer: Any, cls: str | None = None) -> Any:
        """Save a tokenizer, under the class name `cls` if that is not its own."""
        tokenizer.save_pretrained(self.folder)
        settings = json.loads((self.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        own = settings.get("tokenizer_class")
        settings["tokenizer_class"] = cls or ("PreTrainedTokenizerFast" if own == "TokenizersBackend" else own)
        write_json(self.folder, "tokenizer_config.json", settings)
        return tokenizer

    def pre(self, **settings: Any) -> None:
        write_json(self.folder, "preprocessor_config.json", settings)

    def image_processor(self, kind: str, **settings: Any) -> None:
        self.pre(image_processor_type=kind, do_resize=True, do_rescale=True, do_normalize=True, **settings)

    def proc(self, **settings: Any) -> None:
        write_json(self.folder, "processor_config.json", settings)

    def vproc(self, **settings: Any) -> None:
        write_json(self.folder, "video_preprocessor_config.json", settings)

    @torch.no_grad()
    def golden(
        self,
        inputs: dict[str, Any],
        generation: dict[str, Any] | None = None,
        reload: bool = True,
        gen_inputs: dict[str, Any] | None = None,
    ) -> None:
        """Store inputs and outputs; a forward pass after reloading must give what one before saving gave."""
        torch.manual_seed(0)
        out = self.m(**inputs)
        if reload:
            again, loading = type(self.m).from_pretrained(self.folder, dtype=torch.float32, output_loading_info=True)
            again.eval()
            kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
            bad = {kind: sorted(loading[kind])[:4] for kind in kinds if loading.get(kind)}
            if bad:
                self.info["load_issues"] = bad
            torch.manual_seed(0)
            self.info["reload_maxdiff"] = largest_gap(flat("o", out), flat("o", again(**inputs)))
        kept = (
            {key: value for key, value in out.items() if not hasattr(value, "get_seq_length")}
            if hasattr(out, "items")
            else {"0": out}
        )
        tensors = flat("in", inputs) | flat("out", kept)
        if generation is not None:
            torch.manual_seed(0)
            tensors |= flat("gen", {"out": self.m.generate(**(gen_inputs or inputs), **generation)})
        self.store(tensors)

    def store(self, tensors: dict[str, Tensor]) -> None:
        """Write golden.safetensors."""
        bad = [key for key, tensor in tensors.items() if tensor.is_floating_point() and torch.isnan(tensor).any()]
        if bad:
            self.info["nan"] = bad[:3]
        small = {key: tensor for key, tensor in tensors.items() if tensor.numel() < GOLDEN_ELEMENTS}
        save_file(small, self.folder / "golden.safetensors")


Make = Callable[[Case], None]
CASES: dict[str, Make] = {}


def case(make: Make) -> Make:
    CASES[make.__name__] = make
    return make
