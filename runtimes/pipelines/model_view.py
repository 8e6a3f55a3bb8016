"""What scripts read of `pipe.model`: its configurations, device, dtype and size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Self

from isoform.errors import InputError
from isoform.runtimes.generation.settings import NAMES

if TYPE_CHECKING:
    from isoform.runtimes.pipelines.origin import Origin
    from isoform.runtimes.session import Session

_BASE: Mapping[str, Any] = {
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "problem_type", "architectures")),
    "is_encoder_decoder": False,
    "return_dict": True,
    "transformers_version": None,
}
"""The values that transformers' configurations have when the file states none."""
_SETTABLE = ("name_or_path", "pad_token_id", "return_dict", "use_cache")
"""What a script may set on a configuration, because it changes no answer."""
_DTYPES = ("dtype", "torch_dtype")


class ConfigView:
    """config.json with attributes, as transformers' configurations have them: `config.id2label[0]`.

    A key that the file leaves out has the default of its format. Only what changes no answer can be set.
    """

    _data: dict[str, Any]

    def __init__(
        self, data: Mapping[str, Any], name: str, *, dtype: Any = None, typed: Callable[[], Any] | None = None
    ) -> None:
        """`typed` gives an object whose attributes are the defaults of the format, `dtype` the model's."""
        fields: dict[str, Any] = {**deepcopy(dict(data)), "name_or_path": name}
        for key in (*_DTYPES, "_name_or_path"):
            fields.pop(key, None)
        labels = fields.get("id2label")
        if isinstance(labels, Mapping):
            fields["id2label"] = {int(key): value for key, value in labels.items()}
        elif "num_labels" in fields:
            fields["id2label"] = {n: f"LABEL_{n}" for n in range(int(fields.pop("num_labels")))}
        self.__dict__.update(_data=fields, _typed=typed, _dtype=dtype)

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("_data", {})
        if name in data:
            value = data[name]
            return ConfigView(value, "", dtype=self._dtype) if _is_section(name, value) else value
        if name in _DTYPES:
            return self.__dict__["_dtype"]
        if name == "_name_or_path":
            return data["name_or_path"]
        if name == "num_labels":
            return len(self.id2label)
        if name == "id2label":
            return {0: "LABEL_0", 1: "LABEL_1"}
        if name == "label2id":
            return {label: index for index, label in self.id2label.items()}
        typed = self.__dict__["_typed"]() if self.__dict__.get("_typed") is not None else None
        if not name.startswith("_") and hasattr(typed, name):
            return getattr(typed, name)
        if name in _BASE:
            return _BASE[name]
        raise AttributeError(f"config.json has no {name!r}; to_dict() shows what it has")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _SETTABLE:
            raise InputError(
                f"config.{name} is read-only here: the model is built already. Change config.json (or give "
                "generation settings to the call), and make the pipeline again"
            )
        self._data[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfigView) and self._data == other._data

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ConfigView({self._data!r})"

    def get_text_config(self, decoder: bool = False) -> Any:
        """The configuration of the text model, where there is one inside; else this one."""
        return self.text_config if "text_config" in self else self

    def to_dict(self) -> dict[str, Any]:
        """A copy of the file's object; the keys of `id2label` are whole numbers."""
        data = {key: value for key, value in self._data.items() if key != "name_or_path"}
        stated = str(self._dtype).removeprefix("torch.") if self._dtype is not None else None
        return deepcopy(data) | {"_name_or_path": self._data["name_or_path"], "dtype": stated}


def _is_section(name: str, value: Any) -> bool:
    return isinstance(value, Mapping) and (name.endswith("_config") or name in ("encoder", "decoder"))


class GenerationView:
    """The settings of generation that the model comes with; setting one changes the pipeline's later calls."""

    def __init__(self, settings: dict[str, Any] | None, shown: Mapping[str, Any]) -> None:
        """`settings` are those that the pipeline reads at every call; None where it has read them already."""
        self.__dict__.update(_settings=settings, _shown=shown)

    def __getattr__(self, name: str) -> Any:
        settings = self.__dict__.get("_settings")
        found = self.__dict__.get("_shown", {}) if settings is None else settings
        if name in found:
            return found[name]
        if name in NAMES:
            return None
        raise AttributeError(f"generation has no setting {name!r}; it has {', '.join(sorted(NAMES))}")

    def __setattr__(self, name: str, value: Any) -> None:
        if self._settings is None:
            raise InputError(f"generation_config.{name} cannot be set on this pipeline; give {name}= to the call")
        if name not in NAMES:
            raise InputError(f"generation has no setting {name!r}; it has {', '.join(sorted(NAMES))}")
        if value is None:
            self._settings.pop(name, None)
        else:
            self._settings[name] = value

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self.to_dict().items())

    def __repr__(self) -> str:
        return f"GenerationView({self.to_dict()!r})"

    def to_dict(self) -> dict[str, Any]:
        """The settings that are set, as generation_config.json has them."""
        return dict(self._shown if self._settings is None else self._settings)


class ModelView:
    """`pipe.model`: what scripts read of a model. It has no `forward` and no `generate`; call the pipeline.

    Given as the model of another pipeline, it is the same model.
    """

    def __init__(self, origin: Origin, config: ConfigView, generation: GenerationView, session: Session) -> None:
        self._session, self.origin = session, origin
        self.config, self.generation_config = config, generation

    @property
    def name_or_path(self) -> str:
        name: str = self.config.name_or_path
        return name

    @property
    def device(self) -> Any:
        """A torch device."""
        return self.origin.torch_device

    @property
    def dtype(self) -> Any:
        """The torch dtype that the model computes in."""
        return self.origin.torch_dtype

    def can_generate(self) -> bool:
        return bool(self._session.signature.states)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers this task's model has, tied ones once. None can be trained: this is for inference."""
        if only_trainable:
            return 0
        if exclude_embeddings or self.origin.count is None:
            raise InputError("the parameters of this model cannot be counted so; open the checkpoint with isoform.load")
        return self.origin.count()

    def parameters(self) -> Iterator[Any]:
        """The torch parameters; InputError where there is no torch module, or several."""
        module = getattr(self._session, "module", None)
        if module is None:
            raise InputError(
                f"this pipeline ({self._session.backend}) has no single torch module; num_parameters() counts, and "
                "isoform.load gives the module"
            )
        return iter(module.parameters())

    def eval(self) -> Self:
        return self

    def to(self, *places: Any, device: Any = None, dtype: Any = None) -> Self:
        """The model, if it is where and what it should be. InputError otherwise: it does not move."""
        import torch

        for place in (*places, device, dtype):
            if place is None or place == self.dtype:
                continue
            try:
                same = not isinstance(place, torch.dtype) and torch.device(place) == self.device
            except (RuntimeError, TypeError):
                same = False
            if not same:
                raise InputError(
                    f"the model does not move to {place}; make the pipeline with device= and dtype=, which place it"
                )
        return self

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"pipe.model has no {name!r}; it has config, device, dtype, generation_config, name_or_path and "
            "num_parameters(). isoform.load(…) gives the torch module"
        )
