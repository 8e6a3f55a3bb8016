"""What `isoform chat` does: opens a model, and answers in the terminal or once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.chat import figures
from isoform.chat.settings import read_settings
from isoform.errors import InputError

if TYPE_CHECKING:
    from isoform.runtimes.conversation import Conversation


def chat(
    model: str,
    settings: list[str],
    *,
    system: str | None,
    tools: Path | None,
    documents: Path | None,
    template: str | None,
    save_folder: Path,
    once: str | None,
    as_json: bool,
    verbose: bool,
    opening: dict[str, Any],
) -> None:
    """See `isoform chat --help`. `opening` are options of `isoform.pipeline`."""
    interactive = once is None and sys.stdin.isatty()
    if as_json and interactive:
        raise InputError("--json prints one answer; give the message with --once, or on standard input")
    message = once if interactive or once is not None else sys.stdin.read()
    if message is not None and not message.strip():
        raise InputError("the message is empty; give it with --once, or on standard input")
    parameters: dict[str, Any] = read_settings(settings)
    if tools is not None:
        parameters["tools"] = _listed(tools, "--tools", "tools, each as a JSON schema")
    if documents is not None:
        parameters["documents"] = _listed(documents, "--documents", "documents, each with 'title' and 'text'")
    if template is not None:
        parameters["chat_template"] = _template(template)
    from isoform import api, show

    with show.progress() as progress:
        pipe = api.pipeline("text-generation", model, progress=progress, **opening)
    with pipe:
        if verbose:
            print(pipe.chosen, file=sys.stderr)
        templates = pipe.chat_template.templates  # type: ignore[attr-defined]
        if not templates and template is None:
            raise InputError(
                f"{model} has no chat template, so it takes no messages; give one with --chat-template FILE, or have "
                f"a text go on: isoform run text-generation {model} TEXT"
            )
        talk: Conversation = pipe.conversation(system, **parameters)  # type: ignore[attr-defined]
        if message is None:
            from isoform.chat.session import ChatSession

            ChatSession(talk, model, f"{pipe.session.backend}", save_folder, show.out).run()
        else:
            _once(talk, message.removesuffix("\n"), as_json)


def _once(talk: Conversation, message: str, as_json: bool) -> None:
    """Print the answer to one message."""
    from isoform import show
    from isoform.chat.session import plain

    if as_json:
        talk.ask(message)
        show.json(figures.answer_json(talk))
    else:
        plain(talk.say(message), show.out)


def _listed(path: Path, option: str, what: str) -> list[Any]:
    """The list of a JSON file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{option} {path} cannot be read ({error.strerror})") from None
    except ValueError:
        raise InputError(f"{option} {path} is not JSON; it holds a list of {what}") from None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise InputError(f"{option} {path} holds no list of {what}")
    return found


def _template(given: str) -> str:
    """The text of a file, or the name of a template of the model."""
    path = Path(given).expanduser()
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else given
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--chat-template {given} cannot be read ({error})") from None
