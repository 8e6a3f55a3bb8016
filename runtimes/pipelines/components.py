"""The folder that a pipeline reads its settings from, with a tokenizer or processor of another origin put in.

A component is a folder, a Hub id, or an object with `save_pretrained`: a tokenizer or processor of transformers, or one
that a pipeline of isoform has. transformers is not imported: its objects write the files that are read here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from isoform.errors import InputError, IsoformError
from isoform.json_files import read_object
from isoform.sentence_modules import modules_root

TOKENIZER_FILES = (
    "added_tokens.json",
    "additional_chat_templates",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "normalizer.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
VOCABULARIES = (
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
"""The files of which a tokenizer has one at least."""
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")

FILES: Mapping[str, tuple[str, ...]] = {
    "tokenizer": TOKENIZER_FILES,
    "feature_extractor": PROCESSOR_FILES,
    "image_processor": PROCESSOR_FILES,
    "processor": (*TOKENIZER_FILES, *PROCESSOR_FILES),
}
FACTS: Mapping[str, tuple[str, ...]] = {
    "tokenizer": ("tokenizer", "characters"),
    "feature_extractor": (),
    "image_processor": ("image_processor",),
    "processor": ("tokenizer", "characters", "image_processor"),
}
"""The facts of a folder's classes (`reference.classes`) that come with each component."""

AS_SAVED: Mapping[str, Any] = {"tokens": {}, "padding_side": "right"}
"""How the tokenizer.json of an object is read: as it stands, because it holds what the object's class does."""
_STILL = ("end_of_word", "refused")
"""The facts of the object's class that hold all the same."""

_SETTINGS = ("clean_up_tokenization_spaces", "model_max_length", "padding_side", "truncation_side")
_SETTABLE = (
    *_SETTINGS,
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    "chat_template",
)
_USELESS = ("use_fast", "trust_remote_code", "legacy", "_from_pipeline")


@dataclass(frozen=True, slots=True)
class Component:
    """Where the files of a component lie, and the facts of its classes."""

    folder: Path
    facts: Mapping[str, Any]


class StagedFolder:
    """A temporary folder of links to a model's small files, of which components replace some. Close it."""

    def __init__(self, folder: Path) -> None:
        self._staging = TemporaryDirectory(prefix="isoform-")
        self.folder = Path(self._staging.name) / "model"
        self.folder.mkdir()
        if (root := modules_root(folder)) is not None and root != folder:  # the older layout: the model is inside
            _link_small(root, self.folder, without=folder)
            self.folder /= folder.name
            self.folder.mkdir()
        _link_small(folder, self.folder)

    def space(self, name: str) -> Path:
        """A new empty folder beside the model's."""
        path = Path(self._staging.name) / name
        path.mkdir()
        return path

    def put(self, name: str, source: Path) -> None:
        """Replace the files of a component by those in `source`. InputError where it holds none of them."""
        found = [file for file in FILES[name] if (source / file).exists()]
        needed = {"tokenizer": VOCABULARIES}.get(name, FILES[name])
        if not any(file in needed for file in found):
            shown = ", ".join(needed)
            raise InputError(f"{name}={str(source)!r} holds none of {shown}; give the folder that has them")
        replaced = FILES[name] if name == "tokenizer" else PROCESSOR_FILES
        if name == "processor" and any(file in VOCABULARIES for file in found):
            replaced = FILES[name]
        for file in replaced:
            target = self.folder / file
            target.unlink(missing_ok=True)
            if (source / file).exists():
                _link(source / file, target)

    def close(self) -> None:
        self._staging.cleanup()


def _link_small(source: Path, target: Path, without: Path | None = None) -> None:
    """Links to the folders and small files in a folder."""
    for path in source.iterdir():
        if path != without and (path.is_dir() or path.suffix in (".json", ".jinja", ".model", ".txt", ".md")):
            _link(path, target / path.name)


def _link(source: Path, target: Path) -> None:
    """A link to a file or folder; a copy where the system has no links."""
    try:
        target.symlink_to(source.resolve())
    except OSError:
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)


def is_object(value: Any) -> bool:
    """Whether a component is an object that can write its files."""
    return callable(getattr(value, "save_pretrained", None))


def open_component(
    name: str,
    given: Any,
    space: Callable[[str], Path],
    fetch: Callable[[str], Path],
    class_facts: Callable[[Path], Mapping[str, Any]],
    rebuilt: Callable[[Path], Mapping[str, str] | None],
) -> Component:
    """The files of a component. `space` makes a folder to write to, `fetch` gets those of a Hub id.

    `class_facts` reads the facts of a folder's classes, `rebuilt` gives the tokenizer.json of one that has a vocabulary
    only.

    A pair (name, settings) is a folder or an id, and settings of the tokenizer. Raises InputError for anything else.
    """
    settings: Mapping[str, Any] = {}
    if isinstance(given, tuple):
        if len(given) != 2 or not isinstance(given[1], Mapping):
            raise InputError(f"{name}={given!r:.60} is no pair of a name and a dict of settings")
        given, settings = given
        _check_settings(name, settings)
    if isinstance(given, str | PathLike):
        found = _folder(name, given, fetch)
        component = Component(found, _facts(name, class_facts(found)))
    elif is_object(given):
        component = _saved(name, given, space(name), class_facts)
    else:
        raise InputError(
            f"{name}={given!r:.60} is not a folder, a Hub id, or an object of transformers with save_pretrained()"
        )
    if "tokenizer" in FACTS[name] and (files := rebuilt(component.folder)) is not None:
        target = _copied(name, component.folder, space(f"{name}-rebuilt"))
        for file, content in files.items():
            (target / file).write_text(content, encoding="utf-8")
        component = Component(target, _facts(name, class_facts(target)))
    changed = {key: value for key, value in settings.items() if key not in _USELESS}
    if not changed:
        return component
    target = _copied(name, component.folder, space(f"{name}-set"))
    _write_settings(target, changed)
    return Component(target, component.facts)


def _copied(name: str, source: Path, target: Path) -> Path:
    """The files of a component, and the config.json that may tell its class, in a folder that may be changed."""
    for file in (*FILES[name], "config.json"):
        if (source / file).is_dir():
            shutil.copytree(source / file, target / file)
        elif (source / file).is_file():
            shutil.copyfile(source / file, target / file)
    return target


def _folder(name: str, given: str | PathLike[str], fetch: Callable[[str], Path]) -> Path:
    path = Path(given).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise InputError(f"{name}={str(path)!r} is a file; give its folder")
    try:
        return fetch(str(given))
    except IsoformError as error:
        raise type(error)(f"{name}: {error}") from error.__cause__


def _saved(name: str, given: Any, folder: Path, class_facts: Callable[[Path], Mapping[str, Any]]) -> Component:
    """The files that an object writes."""
    try:
        given.save_pretrained(str(folder))
    except IsoformError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{name}: the {type(given).__name__} cannot be saved ({reason:.120}); give its folder instead"
        ) from error
    facts = dict(_facts(name, class_facts(folder)))
    tokenizer = given if name == "tokenizer" else getattr(given, "tokenizer", None)
    if tokenizer is not None and (folder / "tokenizer_config.json").is_file():
        stated = {key: getattr(tokenizer, key, None) for key in _SETTINGS}
        _write_settings(folder, {key: value for key, value in stated.items() if value is not None})
    if (folder / "tokenizer.json").is_file() and "tokenizer" in facts:
        still = {fact: value for fact, value in facts["tokenizer"].items() if fact in _STILL}
        facts["tokenizer"] = {**AS_SAVED, **still}
    return Component(folder, facts)


def _facts(name: str, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    return {kind: facts[kind] for kind in FACTS[name] if kind in facts}


def _check_settings(name: str, settings: Mapping[str, Any]) -> None:
    known = _SETTABLE if name == "tokenizer" else ()
    for key in settings:
        if key not in (*known, *_USELESS):
            raise InputError(f"{name} has no setting {key!r} here; it has {', '.join(known) or 'none'}")


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**read_object(path), **settings}, indent=2) + "\n", encoding="utf-8")
