"""The topics of call forms, in the order in which the documentation shows them."""

from __future__ import annotations

from tests.migration.form import Form
from tests.migration.forms import generation, making, media, text

TOPICS: dict[str, tuple[Form, ...]] = {
    "Task and model": making.TASK_AND_MODEL,
    "Tokenizers, processors and configs": making.TOKENIZERS,
    "Devices and dtypes": making.DEVICES,
    "Other parameters of `pipeline`": making.OTHER_PARAMETERS,
    "What scripts read from a pipeline": making.ATTRIBUTES,
    "Generating text": generation.TEXT,
    "Settings of generation": generation.SETTINGS,
    "Chat": generation.CHAT,
    "Logits processors and stopping criteria": generation.PROCESSORS,
    "Streamers": generation.STREAMERS,
    "Classifying texts": text.CLASSIFICATION,
    "Classifying tokens": text.TOKENS,
    "Classifying texts without training": text.ZERO_SHOT,
    "Texts from texts": text.TEXT_TO_TEXT,
    "Filling masks": text.MASKS,
    "Extracting features": text.FEATURES,
    "Answering questions": text.ANSWERING,
    "Datasets, generators and threads": text.DATASETS,
    "Pictures": media.PICTURES,
    "Pictures and texts": media.PICTURES_AND_TEXTS,
    "Classifying sound": media.SOUND,
    "Recognizing speech": media.SPEECH,
}
