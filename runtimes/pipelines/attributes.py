"""The attributes of a pipeline that scripts read, under transformers' names.

They are made when they are read: none costs a pipeline anything that is only called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from isoform.errors import InputError
from isoform.runtimes.generation.settings import model_settings
from isoform.runtimes.pipelines.model_view import ConfigView, GenerationView, ModelView
from isoform.runtimes.preprocess.settings_view import ProcessorView
from isoform.runtimes.preprocess.text.facade.characters import CharactersFacade
from isoform.runtimes.preprocess.text.facade.tokenizer import TokenizerFacade
from isoform.whole import whole_folder

if TYPE_CHECKING:
    from isoform.runtimes.pipelines.origin import Origin
    from isoform.runtimes.preprocess.text.ctc_vocabulary import CtcVocabulary
    from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer
    from isoform.runtimes.session import Session


class Attributes:
    """What a pipeline is made of, as transformers' pipelines show it."""

    hears: ClassVar[bool] = False  # it has a feature extractor
    sees: ClassVar[bool] = False  # it has an image processor
    framework: ClassVar[str] = "pt"
    modelcard: ClassVar[None] = None
    binary_output: ClassVar[bool] = False

    session: Session
    folder: Path
    facts: Mapping[str, Any]
    config: Mapping[str, Any]
    origin: Origin
    text_tokenizer: TextTokenizer
    characters: CtcVocabulary

    def __repr__(self) -> str:
        origin = self.origin
        name = origin.name or str(self.folder)
        return f"{type(self).__name__}(model={name!r}, device={origin.device!r}, dtype={origin.dtype!r})"

    @cached_property
    def model(self) -> ModelView:
        """The configurations, device and dtype of the model."""
        origin = self.origin
        name = origin.name or str(self.folder)
        config = ConfigView(self.config, name, dtype=origin.torch_dtype, typed=origin.config)
        own = getattr(self, "settings", None)
        settings = own if isinstance(own, dict) else None
        return ModelView(origin, config, GenerationView(settings, model_settings(self.folder)), self.session)

    @property
    def generation_config(self) -> GenerationView:
        return self.model.generation_config

    @property
    def device(self) -> Any:
        """The torch device that the model runs on."""
        return self.origin.torch_device

    @property
    def dtype(self) -> Any:
        """The torch dtype that the model computes in."""
        return self.origin.torch_dtype

    @property
    def torch_dtype(self) -> Any:
        return self.dtype

    @cached_property
    def tokenizer(self) -> TokenizerFacade | CharactersFacade | None:
        """The tokenizer with transformers' methods; None for a model that reads and writes no text."""
        if hasattr(self, "characters"):
            return CharactersFacade(self.characters, self.folder, self.origin.name or str(self.folder))
        if not hasattr(self, "text_tokenizer"):
            return None
        return TokenizerFacade(
            self.text_tokenizer,
            self.folder,
            name_or_path=self.origin.name or str(self.folder),
            input_names=self.origin.inputs,
            template=getattr(self, "chat_template", None),
        )

    @cached_property
    def feature_extractor(self) -> ProcessorView | None:
        """The settings of a sound model's features; None for others."""
        return ProcessorView.read(self.folder, "feature_extractor") if self.hears else None

    @cached_property
    def image_processor(self) -> ProcessorView | None:
        """The settings of a picture model's processor; None for others."""
        defaults = self.facts.get("image_processor")
        return ProcessorView.read(self.folder, "image_processor", defaults) if self.sees else None

    @property
    def processor(self) -> None:
        """None: isoform's pipelines have a tokenizer and processors, as transformers' have where they need no more."""

    def predict(self, X: Any) -> Any:
        """The same as calling the pipeline."""
        return self(X)  # type: ignore[operator]

    def transform(self, X: Any) -> Any:
        """The same as calling the pipeline."""
        return self(X)  # type: ignore[operator]

    @contextmanager
    def device_placement(self) -> Iterator[None]:
        """Nothing: the model is where it runs."""
        yield

    def save_pretrained(self, save_directory: str | PathLike[str], **options: Any) -> None:
        """Write the model with its tokenizer and processor into a new or empty folder, whole or not at all.

        A checkpoint is written in its stored dtype, or in the one that the pipeline was made with, as safetensors; a
        bundle is copied. `options` are transformers': `push_to_hub` is refused, the others change no number.
        """
        for name, value in options.items():
            if name not in ("max_shard_size", "push_to_hub", "safe_serialization", "save_jinja_files"):
                raise InputError(f"save_pretrained has no option {name!r}; give it a folder alone")
            if name == "push_to_hub" and value:
                raise InputError("push_to_hub=True: isoform writes folders; upload this one with `hf upload`")
        folder = Path(save_directory).expanduser()
        if folder.is_file():
            raise InputError(f"{folder} is a file; give a folder to save into")
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder} is there already and not empty; give a new folder")
        if self.origin.save is None:
            raise InputError("this pipeline was built over an open session, so there is nothing to save it from")
        with whole_folder(folder) as part:
            self.origin.save(part)
            tokenizer = self.__dict__.get("tokenizer")
            if tokenizer is not None and tokenizer.changed:
                tokenizer.save_pretrained(part)
