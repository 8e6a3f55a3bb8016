"""A text of our own that models are measured on: plain English prose with some speech, some numbers and a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isoform.errors import InputError
from isoform.validators.cases.case import Row
from isoform.validators.cases.text import positions, tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from isoform.reference.model import Model

ROWS = 8  # of the text at most: small vocabularies cut it into many tokens
WINDOW = 128  # tokens that a model reads at once: enough for context to matter, and seconds even for large models

TEXT = """\
The ferry left the island every morning at twenty past six, whether or not anyone was on board. Old Marten had \
steered it for thirty-one years, and in all that time he had missed only two crossings: one when his daughter was \
born, and one when the fog was so thick that he could not find the ferry. People set their clocks by the sound of \
its horn. The baker took his second batch of bread out of the oven when he heard it, and the schoolteacher put the \
kettle on.

In the spring of that year a letter came from the mainland. The county had decided to build a bridge. It would be \
two kilometres long, it would carry two lanes of traffic and a path for bicycles, and it would be finished in four \
years. The mayor read the letter aloud in the hall behind the church, and then nobody said anything for a while.

"Well," said the baker at last, "I suppose we shall be able to buy our flour cheaper."

"And the doctor could come at night," said a young woman with a child on her arm.

"And what will become of Marten?" asked the schoolteacher. Everyone turned round to look at him, but he was sitting \
by the window, as he always did, watching the water.

"I am sixty-three," he said. "In four years I shall be sixty-seven. The ferry is older than I am. We will both be \
glad of a rest." He thought about it for a moment, and then he added: "But somebody will have to tell the seals."

It is true that there were seals. They lay on the long sandbank in the middle of the strait, forty or fifty of them, \
and they lifted their heads when the ferry went by. A biologist from the university had once spent a summer counting \
them. She found that their number rose and fell with the herring, that most of the young were born in June, and that \
the oldest animal, a grey female with a torn flipper, must have been there before the war. Her report was eighty \
pages long. It ended with the words: "They do not seem to mind us, provided that we are punctual."

The engineers arrived in autumn. They measured the depth of the channel, which was 14.5 metres at its deepest, and \
the speed of the current, which reached 2.3 metres per second at spring tide. They drilled into the rock on both \
shores. In the evenings they came to the inn, and because it was the only one, they met everybody there. Before long \
they knew who was related to whom, what had happened in the winter of 1962, and how to cook mussels. The recipe is \
simple. You wash one kilogram of mussels in cold water and throw away those that do not close when you tap them. You \
chop an onion and two cloves of garlic, cook them in butter until they are soft, pour in a glass of white wine, and \
add the mussels. Then you put on the lid and wait for five minutes. Those that have not opened by then should not be \
eaten.

When the plans were finished they were pinned to the wall of the hall. There were three of them. The first was cheap \
and ugly. The second was beautiful and cost twice as much. The third went straight across the sandbank, and the \
engineers explained that it would save eleven months. The people of the island looked at the drawings for a long \
time, walking slowly from one to the next with their hands behind their backs.

It was a small girl who asked the question. She wanted to know where the seals would go.

Nobody knew. So the schoolteacher wrote to the university, and the biologist came back, older now and with grey in \
her own hair. She stood at the rail of the ferry with her notebook, and Marten slowed the engine without being \
asked. As they came closer, one head after another rose out of the sand. She counted under her breath. Then she \
stopped, put away her pencil and laughed, for at the very edge of the water lay an enormous grey animal with a torn \
flipper, looking at her as if she were late.
"""


def read_text(path: Path) -> str:
    """A text file to measure on. Raises InputError for one that cannot be read, or holds nothing."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8"
        raise InputError(f"{path} cannot be read ({reason}); give a text file") from None
    if not text:
        raise InputError(f"{path} holds no text; give a file with some pages of it")
    return text


def prose_rows(model: Model, text: str = TEXT) -> list[Row]:
    """The text in at most `ROWS` rows of `WINDOW` tokens, each begun as the checkpoint's tokenizer begins a text.

    None when the checkpoint has no tokenizer, ids that the model has no row for, or when it takes more than a text.
    """
    import numpy as np

    found = tokenizer(model)
    if found is None or "embed.weight" not in model.weights:
        return []
    window = min(WINDOW, positions(model))
    ids = found.encode(text, add_special_tokens=False).ids
    around = found.encode("", add_special_tokens=True).ids
    vocabulary = model.weights["embed.weight"].shape[0]
    if not ids or max((*ids, *around)) >= vocabulary or len(around) >= window:
        return []
    first, last = (around[:1], around[1:]) if not model.signature.states else (around, [])
    step = window - len(around)
    rows = [np.array([*first, *ids[start : start + step], *last], np.int64) for start in range(0, len(ids), step)]
    kept = [row for row in rows if len(row) > window // 2 or len(rows) == 1]
    return [Row(row, np.zeros_like(row)) for row in kept[:ROWS]]
