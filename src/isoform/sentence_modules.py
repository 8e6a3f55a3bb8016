"""The modules that sentence-transformers puts after a model, as modules.json and their folders describe them.

modules.json lists them: Transformer (the model itself), then WeightedLayerPooling, Pooling, Dense, LayerNorm and
Normalize; Dropout does nothing outside training. sentence_bert_config.json says where texts are cut, and
config_sentence_transformers.json what is put before them. Nothing here computes: `reference` and the pipelines do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.json_files import is_there, read_list, read_object

NAME = "modules.json"
EMBEDDING = "feature-extraction"
"""The task of a model that modules.json is there for."""
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
TOKENS, SENTENCE = "token_embeddings", "sentence_embedding"
"""What a module reads and writes: the states (B, T, C), or one vector for each text (B, C)."""

ACTIVATIONS = ("ELU", "GELU", "Identity", "LeakyReLU", "ReLU", "SiLU", "Sigmoid", "Softplus", "Tanh")
"""Classes of torch.nn, with their defaults, that a Dense module may end with."""

EMBEDDER = "SentenceTransformer"
"""The model_type of config_sentence_transformers.json whose vectors are those of texts."""

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
"""How vectors are compared: the last two are distances below zero. Other names are those of other kinds of models."""

WEIGHTED = ("Dense", "LayerNorm", "Transformer", "WeightedLayerPooling")
"""The kinds of modules that have weights in their folders."""

_PREFIX = "sentence_transformers."
_OLD_KEYS = {  # of a pooling's config.json, one switch per mode
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """One vector for the states of a text; several modes are joined end to end.

    Without `include_prompt` the tokens of a prompt are left out.
    """

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True


@dataclass(frozen=True, slots=True)
class Dense:
    """activation(linear(x)), plus x or a projection of it where it is `residual`. Weights are in `folder`."""

    folder: str
    size_in: int
    size_out: int
    bias: bool = True
    activation: str = "Tanh"
    residual: bool = False
    source: str = SENTENCE
    target: str = SENTENCE


@dataclass(frozen=True, slots=True)
class Normalize:
    """Scales to length 1."""

    source: str = SENTENCE
    target: str = SENTENCE


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """A layer norm over the channels of the vector. Weights are in `folder`."""

    folder: str
    size: int


@dataclass(frozen=True, slots=True)
class LayerPooling:
    """The weighted mean of the states after the layers from `start` on (0: before the first) replaces the states."""

    folder: str
    start: int
    layers: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """The first `size` channels, which config_sentence_transformers.json asks for as `truncate_dim`."""

    size: int


Module = Pooling | Dense | Normalize | LayerNorm | LayerPooling | Truncate


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceModules:
    """The modules after a model. `root` is the folder of modules.json, `transformer` the model's folder in it.

    `refusal`: why the vector of a text cannot be computed, or ""; then `steps` is empty. `embeds`: the model is there
    for vectors of texts, and is no cross-encoder or sparse encoder.
    """

    root: Path
    transformer: str = ""
    steps: tuple[Module, ...] = (Pooling(),)
    refusal: str = ""
    embeds: bool = True
    max_length: int | None = None
    lowercase: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str = "cosine"  # one of `SIMILARITIES`

    @property
    def include_prompt(self) -> bool:
        """Whether pooling looks at the prompt's tokens."""
        return all(step.include_prompt for step in self.steps if isinstance(step, Pooling))

    def without_layers(self) -> SentenceModules:
        """Without WeightedLayerPooling, which does nothing unless config.json has `output_hidden_states`."""
        return replace(self, steps=tuple(step for step in self.steps if not isinstance(step, LayerPooling)))

    def size(self, states: int) -> int:
        """The channels of a text's vector, for states of so many. Raises CheckpointError where modules do not fit."""
        sizes = {TOKENS: states}
        for step in self.steps:
            if isinstance(step, Pooling):
                sizes[SENTENCE] = len(step.modes) * sizes[TOKENS]
            elif isinstance(step, Dense):
                self._fits(step.folder, step.size_in, sizes[step.source])
                sizes[step.target] = step.size_out
            elif isinstance(step, Normalize):
                sizes[step.target] = sizes[step.source]
            elif isinstance(step, LayerNorm):
                self._fits(step.folder, step.size, sizes[SENTENCE])
            elif isinstance(step, Truncate):
                sizes[SENTENCE] = min(step.size, sizes[SENTENCE])
        return sizes[SENTENCE]

    def _fits(self, folder: str, wanted: int, given: int) -> None:
        if wanted != given:
            raise CheckpointError(
                f"{self.root / folder}/config.json: the module takes {wanted} channels, the one before it gives {given}"
            )


def modules_root(folder: Path) -> Path | None:
    """The folder whose modules.json describes the model in `folder`: itself, or the one above ("0_Transformer")."""
    if is_there(folder / NAME):
        return folder
    above = folder.parent
    if is_there(above / NAME) and transformer_folder(above) == folder.name:
        return above
    return None


def transformer_folder(root: Path) -> str:
    """The folder of the model below that of modules.json, "" when it is the same; "" without such a file."""
    path = root / NAME
    if not is_there(path):
        return ""
    for module in read_list(path):
        if str(module.get("type", "")).rsplit(".", 1)[-1] == "Transformer":
            return inside(str(module.get("path") or ""), path)
    return ""


def module_folders(root: Path) -> dict[str, str]:
    """The folders below `root` that modules.json names, the model's among them, with the kinds of their modules."""
    path = root / NAME
    if not is_there(path):
        return {}
    kinds = {
        inside(str(module.get("path") or ""), path): str(module.get("type", "")).rsplit(".", 1)[-1]
        for module in read_list(path)
    }
    return {place: kind for place, kind in kinds.items() if place}


def read_sentence_modules(folder: Path) -> SentenceModules:
    """The modules after the model in `folder`; mean pooling without modules.json, like sentence-transformers."""
    root = modules_root(folder)
    settings = read_object((root or folder) / "config_sentence_transformers.json")
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise CheckpointError(f"{root or folder}/config_sentence_transformers.json: prompts is no object")
    values: dict[str, Any] = {
        "root": root or folder,
        "prompts": {name: text for name, text in prompts.items() if isinstance(text, str)},
        "default_prompt": settings.get("default_prompt_name"),
    }
    if (name := settings.get("similarity_fn_name")) is not None:
        if name not in SIMILARITIES:
            raise UnsupportedModel(
                f"{root or folder}/config_sentence_transformers.json: similarity_fn_name {name!r:.60} is none of "
                f"{', '.join(SIMILARITIES)}"
            )
        values["similarity"] = name
    if root is None:
        return SentenceModules(**values)
    path, steps, refusal = root / NAME, list[Module](), ""
    model_type = settings.get("model_type") or EMBEDDER
    if model_type != EMBEDDER:
        values["embeds"] = False
        refusal = f"{root} is a {model_type} of sentence-transformers, not a {EMBEDDER}"
    written = {TOKENS}
    for module in read_list(path):
        name = str(module.get("type", ""))
        place = inside(str(module.get("path") or ""), path)
        kind = name.rsplit(".", 1)[-1]
        if not name.startswith(_PREFIX):
            refusal = refusal or f"{path} lists {name or 'a module without a type'}, which is code of another package"
        elif kind == "Transformer":
            file, first = _transformer_settings(root / place)
            limit = first.get("max_seq_length")
            limited = limit is not None and not (type(limit) is int and limit <= 0)  # which means none
            values |= {
                "transformer": place,
                "max_length": _count(first, "max_seq_length", file) if limited else None,
                "lowercase": bool(first.get("do_lower_case")),
            }
            refusal = refusal or _other_transformer(first, file)
            task = first.get("transformer_task") or EMBEDDING
            if task != EMBEDDING:
                values["embeds"] = False
                refusal = refusal or f"{path}: the Transformer module runs {task}, not feature-extraction"
        elif kind not in _READERS:
            refusal = refusal or (
                f"{path} lists a {kind} module, which isoform does not compute; it computes Transformer, Dropout, "
                f"{', '.join(_READERS)} (feature-extraction gives the states of the tokens)"
            )
        else:
            try:
                step = _READERS[kind](place, root / place / "config.json")
            except UnsupportedModel as error:
                refusal = refusal or str(error)
                continue
            if step is None:
                continue
            steps.append(step)
            source, target = _ports(step)
            if source not in written:
                refusal = refusal or f"{path}: {kind} in {place} reads {source}, which no module before it gives"
            written.add(target)
    if not refusal and SENTENCE not in written:
        refusal = f"{path} lists no Pooling module, so that a text has no vector"
    if settings.get("truncate_dim") is not None:
        steps.append(Truncate(_count(settings, "truncate_dim", root / "config_sentence_transformers.json")))
    return SentenceModules(**values, steps=() if refusal else tuple(steps), refusal=refusal)


def inside(name: str, path: Path) -> str:
    """A folder that the file `path` of the repository names, checked not to leave it."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name:
        raise CheckpointError(f"{path} names the folder {name!r}, which lies outside the repository")
    return "" if not parts.parts else parts.as_posix()


def _transformer_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """sentence_bert_config.json, which old versions named after the model's type."""
    plain = folder / "sentence_bert_config.json"
    found = [plain] if plain.is_file() else sorted(folder.glob("sentence_*_config.json"))
    return (found[0], read_object(found[0])) if found else (plain, {})


_TRANSFORMER = ("max_seq_length", "do_lower_case", "transformer_task", "unpad_inputs")  # the last saves time alone
_USUAL = {
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": TOKENS,
}
"""Settings of a Transformer module -> what the library writes for a model whose states are its token embeddings."""


def _other_transformer(settings: Mapping[str, Any], path: Path) -> str:
    """Why the states would be other ones: a setting of the Transformer module that isoform does not know; or ""."""
    for key, value in settings.items():
        if value and key not in _TRANSFORMER and value != _USUAL.get(key):
            return f"{path}: {key} = {value!r:.60} is not known and may change the embeddings"
    return ""


def _ports(step: Module) -> tuple[str, str]:
    """What a step reads and writes."""
    if isinstance(step, Pooling):
        return TOKENS, SENTENCE
    if isinstance(step, LayerPooling):
        return TOKENS, TOKENS
    return (SENTENCE, SENTENCE) if isinstance(step, LayerNorm | Truncate) else (step.source, step.target)


def _pooling(place: str, path: Path) -> Pooling:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, which says how to pool; fetch the whole repository")
    config = _known(path, "pooling_mode", "include_prompt", *_SIZES, *_OLD_KEYS)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_KEYS.items() if config.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or any(mode not in MODES for mode in modes):
        raise UnsupportedModel(f"{path} asks for pooling {modes!r:.60}; isoform has {', '.join(MODES)}")
    return Pooling(tuple(modes), bool(config.get("include_prompt", True)))


def _dense(place: str, path: Path) -> Dense:
    config = _known(path, "in_features", "out_features", "bias", "activation_function", "use_residual", *_PORTS)
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = "Identity" if name is None else name
    kind = str(name).rsplit(".", 1)[-1]
    if kind not in ACTIVATIONS or not (str(name).startswith("torch.nn.") or name == kind == "Identity"):
        known = ", ".join(ACTIVATIONS)
        raise UnsupportedModel(f"{path}: activation_function {name!r:.80} is none of torch.nn's {known}")
    source, target = _names(config, path)
    return Dense(
        place,
        _count(config, "in_features", path),
        _count(config, "out_features", path),
        bool(config.get("bias", True)),
        kind,
        bool(config.get("use_residual", False)),
        source,
        target,
    )


def _normalize(place: str, path: Path) -> Normalize:
    return Normalize(*_names(_known(path, *_PORTS), path))


def _layer_norm(place: str, path: Path) -> LayerNorm:
    return LayerNorm(place, _count(_known(path, "dimension"), "dimension", path))


def _layer_pooling(place: str, path: Path) -> LayerPooling:
    config = _known(path, "num_hidden_layers", "layer_start", *_SIZES)
    return LayerPooling(
        place, _count(config, "layer_start", path, 4, least=0), _count(config, "num_hidden_layers", path, 12)
    )


_READERS: Mapping[str, Any] = {
    "Dense": _dense,
    "Dropout": lambda place, path: None,
    "LayerNorm": _layer_norm,
    "Normalize": _normalize,
    "Pooling": _pooling,
    "WeightedLayerPooling": _layer_pooling,
}


_PORTS = ("module_input_name", "module_output_name")
_SIZES = ("embedding_dimension", "word_embedding_dimension")  # of the states, which the model itself says


def _known(path: Path, *keys: str) -> dict[str, Any]:
    """The settings of a module. Raises UnsupportedModel for one that is set and none of `keys`, like the library."""
    config = read_object(path)
    if unknown := [key for key, value in config.items() if key not in keys and value not in (None, False)]:
        raise UnsupportedModel(
            f"{path}: {unknown[0]} = {config[unknown[0]]!r:.60} is not known for this module and may change its "
            "results; take the key out if it changes nothing"
        )
    return config


def _names(config: Mapping[str, Any], path: Path) -> tuple[str, str]:
    source = config.get("module_input_name") or SENTENCE
    target = config.get("module_output_name") or source
    for name in (source, target):
        if name not in (TOKENS, SENTENCE):
            raise UnsupportedModel(f"{path} names the features {name!r:.60}; isoform has {TOKENS} and {SENTENCE}")
    return source, target


def _count(config: Mapping[str, Any], key: str, path: Path, default: int | None = None, *, least: int = 1) -> int:
    value = config.get(key, default)
    if type(value) is not int or not least <= value < 2**31:
        raise CheckpointError(f"{path}: {key} is {value!r:.60}, not a whole number of at least {least}")
    return value
