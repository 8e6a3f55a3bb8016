"""What guessing tokens gains on ONNX Runtime: prompt lookup on texts that quote, and a draft model a quarter as large.

    python -m benchmarks.speculative BUNDLE [--forms f32,q8_0] [--rounds 3] [--machine "…"]

BUNDLE is SmolLM2-135M-Instruct with these ONNX forms. It is asked to quote the sentences of three articles. The draft
has random weights, a quarter of the model's, and pays for all of its passes; what it says is forced: the model's next
token with a probability at which half of its guesses are accepted. CPU seconds of one thread, the best of the
rounds in which plain decoding and guessing alternate.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

RESULT = Path(__file__).parent / "results" / "speculative.json"
NEW = 96
LOOKUP = {"prompt_lookup_num_tokens": 8}
GUESSES, RIGHT = 2, 0.65
"""Tokens that the draft guesses in a step, and how often one is right: half of them are accepted then."""
STORY = "Tell a long story about a lighthouse keeper."  # goes on while the draft guesses
TASK = "Quote the three most important sentences of this text word for word, and nothing else.\n\n"
ARTICLES = (
    (
        "The city council voted on Tuesday to close the old harbour bridge for repairs that will last eighteen months. "
        "Engineers found cracks in three of the seven steel girders during an inspection in March. Mayor Helen Brandt "
        "said that the safety of residents comes first and that there was no alternative. Local shop owners fear that "
        "they will lose customers, because the bridge carries nine thousand cars every day. A temporary ferry will "
        "carry pedestrians and cyclists free of charge from the first of June."
    ),
    (
        "Researchers at the coast station have counted more seals this winter than in any year since records began. "
        "The animals rest on sandbanks that storms have made higher over the last decade. According to the biologist "
        "Anna Lund, cleaner water has brought back the fish that the seals live on. Fishermen ask for fences around "
        "their nets, which the government will pay for next year."
    ),
    (
        "The library of the university opens its new reading room on Monday after four years of construction. Six "
        "hundred seats and a glass roof replace the dark hall of 1931. The architect kept the oak shelves, because "
        "students had collected eleven thousand signatures for them. On weekends the room stays open until midnight."
    ),
)


class Forced:
    """A decoder of one row that computes everything, and then prefers the known next token, or another at times."""

    rewinds = "rows"

    def __init__(self, decoder: Any, text: Sequence[int]) -> None:
        self._decoder, self._text, self._held = decoder, text, 0
        self._random = np.random.default_rng(4)

    def step(self, tokens: Any, **options: Any) -> Any:
        logits = self._decoder.step(tokens, **options).copy()
        self._held += tokens.shape[1]
        after = self._text[min(self._held, len(self._text) - 1)]
        logits[0, after if self._random.random() < RIGHT else after + 1] = logits.max() + 9
        return logits

    def rewind(self, counts: Any) -> None:
        self._held -= int(np.sum(counts))
        self._decoder.rewind(counts)

    def select(self, rows: Any) -> None:
        self._decoder.select(rows)

    def join(self, other: Any) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        return 1


class Counted:
    """An assistant whose guesses are counted."""

    def __init__(self, assistant: Any) -> None:
        self._assistant, self.guessed, self.accepted = assistant, 0, 0

    def begin(self, lines: Any, config: Any) -> Any:
        self._proposer = self._assistant.begin(lines, config)
        return self

    def propose(self, texts: Any, most: Any) -> Any:
        found = self._proposer.propose(texts, most)
        self.guessed += sum(len(one.tokens) for one in found)
        return found

    def learn(self, accepted: Any) -> None:
        self.accepted += sum(accepted)
        self._proposer.learn(accepted)

    def select(self, rows: Any) -> None:
        self._proposer.select(rows)


def draft(bundle: Path, folder: Path, forms: Sequence[str]) -> Path:
    """A bundle of a model with the vocabulary of `bundle`, random weights and about a quarter of its parameters."""
    from benchmarks.harness import OURS, prepare
    from safetensors.numpy import save_file

    width, inner, layers, kv = 384, 1024, 9, 128
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "head_dim": 64}
    config |= {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True}
    shapes = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width)}
    shapes |= {"self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width)}
    shapes |= {"mlp.down_proj": (width, inner)}
    random = np.random.default_rng(0)
    weights = {"model.embed_tokens.weight": random.normal(size=(config["vocab_size"], width)) * 0.02}
    weights["model.norm.weight"] = np.ones(width)
    for n in range(layers):
        weights |= {f"model.layers.{n}.{k}.weight": random.normal(size=shape) * 0.02 for k, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{n}.{norm}.weight"] = np.ones(width)
    source, made = folder / "draft", folder / "bundle"
    if made.exists():
        return made
    source.mkdir(parents=True)
    save_file({name: value.astype(np.float32) for name, value in weights.items()}, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((bundle / name).read_bytes())
    options = ("--to", "onnx", "--onnx-type", ",".join(forms), "--no-check")
    if not prepare(made, *OURS, "export", source, "--out", made, *options):
        raise SystemExit("the draft cannot be exported")
    return made


def prompts(bundle: Path) -> list[list[int]]:
    """The ids of the articles with their task, and of the story."""
    from isoform.reference.classes import class_facts
    from isoform.runtimes.preprocess.text.chat import ChatTemplate
    from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer

    tokenizer = TextTokenizer(bundle, class_facts(bundle))
    template = ChatTemplate.read(bundle, tokenizer.special)
    asked = [*(TASK + article for article in ARTICLES), STORY]
    texts = [template.render([{"role": "user", "content": text}], add_generation_prompt=True) for text in asked]
    return [list(row.ids) for row in tokenizer.encode(texts, add_special_tokens=False)]


def made(session: Any, prompt: list[int], assistant: Any = None, **options: Any) -> tuple[list[int], float, int]:
    """New tokens, CPU seconds and steps."""
    from isoform.runtimes.generation.loop import steps
    from isoform.runtimes.generation.settings import resolve

    settings = resolve({"max_new_tokens": NEW, "eos_token_id": 2, **options})
    begin, count = time.process_time(), 0
    for rows in steps(session, [prompt], settings, assistant=assistant):  # noqa: B007
        count += 1
    return rows[0].made, time.process_time() - begin, count


def looked_up(session: Any, texts: Sequence[list[int]], rounds: int) -> list[str]:
    """Cells: seconds plain and guessing, the gain, tokens per step, of how many texts the text is the same."""
    plain, guessing, tokens, count, same = 0.0, 0.0, 0, 0, 0
    for prompt in texts:
        best = [np.inf, np.inf]
        for _ in range(rounds):
            wanted, seconds, _ = made(session, prompt)
            text, faster, steps = made(session, prompt, **LOOKUP)
            best = [min(best[0], seconds / len(wanted)), min(best[1], faster / len(text))]
        plain, guessing = plain + best[0] * len(wanted), guessing + best[1] * len(wanted)
        tokens, count, same = tokens + len(text), count + steps, same + (text == wanted)
    cells = [f"{plain:.2f}", f"{guessing:.2f}", f"{plain / guessing:.2f}", f"{tokens / count:.1f}"]
    return [*cells, f"{same} of {len(texts)}"]


def drafted(session: Any, small: Any, prompt: list[int], rounds: int) -> tuple[list[str], float]:
    """The same cells for one text, and the share of guesses that were accepted."""
    from isoform.runtimes.generation.draft import DraftModel

    best, options = [np.inf, np.inf], {"num_assistant_tokens": GUESSES, "assistant_confidence_threshold": 0.0}
    text, known = [], made(session, prompt)[0]
    for _ in range(3):  # several tokens at once may round otherwise, so that another text is the one that is known
        if text == known:
            break
        text = known
        told = partial(_told, small, [*prompt, *text])
        known = made(session, prompt, DraftModel(told), **options)[0]
    for _ in range(rounds):
        wanted, seconds, _ = made(session, prompt)
        assistant = Counted(DraftModel(told))
        text, faster, steps = made(session, prompt, assistant, **options)
        best = [min(best[0], seconds), min(best[1], faster)]
    cells = [f"{best[0]:.2f}", f"{best[1]:.2f}", f"{best[0] / best[1]:.2f}", f"{len(text) / steps:.1f}"]
    return [*cells, f"{int(text == wanted)} of 1"], assistant.accepted / assistant.guessed


def _told(small: Any, text: list[int], rows: Any) -> Forced:
    return Forced(small.decoder(1), text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--forms", default="f32,q8_0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draft", type=Path, help="a folder that keeps the draft for another run")
    parser.add_argument("--machine", default="")
    arguments = parser.parse_args()
    from benchmarks.machine import conditions

    from isoform.runtimes.open import open_path

    forms, state = arguments.forms.split(","), conditions(("onnxruntime",))
    *texts, story = prompts(arguments.bundle)
    rows = []
    with TemporaryDirectory() as temporary:
        small = draft(arguments.bundle, arguments.draft or Path(temporary), forms)
        for form in forms:
            session = open_path(arguments.bundle, "onnxruntime", dtype=form, threads=1)[0]
            guesser = open_path(small, "onnxruntime", dtype=form, threads=1)[0]
            with session, guesser:
                rows.append([form, f"prompt lookup, {LOOKUP['prompt_lookup_num_tokens']} tokens"])
                rows[-1] += looked_up(session, texts, arguments.rounds)
                cells, share = drafted(session, guesser, story, arguments.rounds)
                rows.append([form, f"a draft of a quarter, {GUESSES} tokens, {share:.0%} accepted", *cells])
    columns = ["form", "guesses", "plain, s", "guessing, s", "gain", "tokens per step", "same text"]
    print(f"| {' | '.join(columns)} |", *(f"| {' | '.join(row)} |" for row in rows), sep="\n")
    if arguments.machine:
        found = {
            "command": f"python -m benchmarks.speculative BUNDLE --forms {arguments.forms} --rounds {arguments.rounds}",
            "machine": arguments.machine,
            "date": datetime.now(UTC).date().isoformat(),
            "conditions": state,
            "columns": columns,
            "rows": rows,
        }
        RESULT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
