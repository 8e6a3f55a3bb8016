"""The attributes of pipelines, against those of transformers' pipelines over the same checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import isoform
from isoform.errors import InputError
from tests.exports import exported

Tiny = Callable[[str], Path]
MODELS = [
    ("text-classification", "bert_seqcls"),
    ("sentiment-analysis", "distilbert_seqcls"),
    ("token-classification", "bert_ner"),
    ("ner", "distilbert_ner"),
    ("fill-mask", "bert"),
    ("feature-extraction", "bert_b"),
    ("text-generation", "llama3_instruct"),
    ("text-generation", "gemma2"),
    ("image-classification", "vit_cls"),
    ("image-feature-extraction", "dinov2"),
    ("zero-shot-image-classification", "clip"),
    ("automatic-speech-recognition", "whisper"),
    ("automatic-speech-recognition", "wav2vec2_ctc"),
]


def ours(*arguments: Any, **options: Any) -> Any:
    return isoform.pipeline(*arguments, **options)


def theirs(task: str, folder: Path, **options: Any) -> Any:
    from transformers import pipeline

    return pipeline(task, str(folder), device="cpu", **options)


@pytest.mark.parametrize(("task", "name"), MODELS)
def test_a_pipeline_shows_what_transformers_shows(task: str, name: str, tiny: Tiny) -> None:
    with ours(task, str(tiny(name)), dtype="auto") as mine:
        other = theirs(task, tiny(name))
        for key in ("task", "device", "dtype", "torch_dtype", "binary_output"):
            assert getattr(mine, key) == getattr(other, key), key
        assert mine.framework == "pt"
        model, reference = mine.model, other.model
        for key in ("device", "dtype", "name_or_path"):
            assert getattr(model, key) == getattr(reference, key), key
        assert model.can_generate() == reference.can_generate()
        if task not in ("feature-extraction", "image-feature-extraction") and name != "wav2vec2_ctc":
            assert model.num_parameters() == reference.num_parameters()  # elsewhere it has some that nothing reads
        config, expected = model.config, reference.config
        for key in ("model_type", "architectures", "dtype", "name_or_path", "_name_or_path", "is_encoder_decoder"):
            assert getattr(config, key) == getattr(expected, key), key
        if config.get_text_config() is config and hasattr(expected, "vocab_size"):
            assert config.vocab_size == expected.vocab_size
        if ("classification" in task and "zero" not in task) or task in ("ner", "sentiment-analysis"):
            for key in ("id2label", "label2id", "num_labels", "problem_type"):
                assert getattr(config, key) == getattr(expected, key), key
        for kind in ("feature_extractor", "image_processor"):
            assert (getattr(mine, kind) is None) == (getattr(other, kind) is None), kind
        if mine.tokenizer is not None:
            assert mine.tokenizer("The small cat").data == other.tokenizer("The small cat").data
            assert mine.tokenizer.model_max_length == other.tokenizer.model_max_length


def test_the_settings_of_processors_are_read(tiny: Tiny) -> None:
    with ours("automatic-speech-recognition", tiny("whisper")) as mine:
        other = theirs("automatic-speech-recognition", tiny("whisper")).feature_extractor
        for key in ("sampling_rate", "feature_size", "hop_length", "chunk_length", "n_fft", "padding_value"):
            assert getattr(mine.feature_extractor, key) == getattr(other, key), key
        assert mine.feature_extractor.to_dict()["sampling_rate"] == other.sampling_rate
        assert mine.image_processor is None
    with ours("image-classification", tiny("vit_cls")) as mine:
        other = theirs("image-classification", tiny("vit_cls")).image_processor
        for key in ("image_mean", "image_std", "do_resize", "do_normalize", "rescale_factor"):
            value = getattr(other, key)
            assert getattr(mine.image_processor, key) == (list(value) if isinstance(value, tuple) else value), key
        assert mine.image_processor.size == dict(other.size)
        with pytest.raises(AttributeError, match="has no setting 'colour'"):
            mine.image_processor.colour  # noqa: B018
        with pytest.raises(InputError, match="size is read-only"):
            mine.image_processor.size = 3


def test_the_configuration_is_read_as_transformers_reads_it(tiny: Tiny) -> None:
    with ours("text-generation", tiny("llama3_instruct")) as mine:
        config = mine.model.config
        expected = theirs("text-generation", tiny("llama3_instruct")).model.config
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"):
            assert getattr(config, key) == getattr(expected, key), key
        for key in ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "rms_norm_eps"):
            assert getattr(config, key) == getattr(expected, key), key
        stored = config.to_dict()
        assert stored["vocab_size"] == expected.vocab_size
        assert stored["dtype"] == "float32"
        stored["vocab_size"] = 1
        assert config.vocab_size == expected.vocab_size, "a dict is a copy"
        with pytest.raises(AttributeError, match="no 'colour'"):
            config.colour  # noqa: B018
        config.pad_token_id = config.eos_token_id
        assert config.pad_token_id == expected.eos_token_id
        with pytest.raises(InputError, match="hidden_size is read-only"):
            config.hidden_size = 3


def test_labels_have_whole_numbers(tiny: Tiny) -> None:
    with ours("text-classification", tiny("bert_seqcls_b")) as mine:
        labels = mine.model.config.id2label
        assert list(labels) == list(range(len(labels)))
        assert mine.model.config.to_dict()["id2label"] == labels
        assert mine("a book")[0]["label"] in mine.model.config.label2id


def test_settings_of_generation_hold_for_later_calls(tiny: Tiny) -> None:
    options: dict[str, Any] = {"do_sample": False, "return_full_text": False}
    with ours("text-generation", tiny("llama"), **options) as mine:
        long = mine("The small cat", max_new_tokens=9)
        assert mine.model.generation_config is mine.generation_config
        assert mine.generation_config.max_new_tokens is None
        mine.model.generation_config.max_new_tokens = 9
        assert mine("The small cat") == long
        mine.generation_config.max_new_tokens = 2
        assert len(mine.tokenizer(mine("The small cat")[0]["generated_text"])["input_ids"]) < 9
        assert mine.generation_config.to_dict()["max_new_tokens"] == 2
        mine.generation_config.max_new_tokens = None
        with pytest.raises(InputError, match="no setting 'colour'"):
            mine.generation_config.colour = 3
        with pytest.raises(AttributeError, match="no setting 'colour'"):
            mine.generation_config.colour  # noqa: B018
    mine = ours("automatic-speech-recognition", tiny("whisper"))
    with mine, pytest.raises(InputError, match="give max_new_tokens= to the call"):
        mine.generation_config.max_new_tokens = 3


def test_a_script_gives_the_tokenizer_a_padding_token(tiny: Tiny) -> None:
    with ours("text-generation", tiny("llama"), max_new_tokens=4, do_sample=False) as mine:
        before = mine(["The small cat", "a"])
        mine.tokenizer.pad_token_id = mine.model.config.eos_token_id
        mine.tokenizer.padding_side = "left"
        assert mine.tokenizer.pad_token == mine.tokenizer.eos_token
        assert mine(["The small cat", "a"], batch_size=2) == before


def test_what_is_set_on_the_tokenizer_holds_for_the_pipeline(tiny: Tiny) -> None:
    text = "every teacher knows this: " * 6
    with ours("feature-extraction", tiny("bert")) as mine:
        mine.tokenizer.model_max_length = 7
        assert np.array(mine(text, truncation=True)).shape[1] == 7
    chat = [{"role": "user", "content": "hello"}]
    with ours("text-generation", tiny("llama"), max_new_tokens=3, do_sample=False) as mine:
        mine.tokenizer.chat_template = "{{ messages[0].content }} you"
        made = mine(chat)[0]["generated_text"][-1]["content"]
        assert made == mine("hello you", add_special_tokens=False, return_full_text=False)[0]["generated_text"]


def test_predict_and_transform_are_calls(tiny: Tiny) -> None:
    with ours("text-classification", tiny("bert_seqcls")) as mine:
        assert mine.predict(["a", "b"]) == mine.transform(["a", "b"]) == mine(["a", "b"])
        assert mine.predict("a") == mine("a")
        with mine.device_placement():
            assert mine("a") == mine.predict("a")
        assert repr(mine) == f"TextClassification(model={str(tiny('bert_seqcls'))!r}, device='cpu', dtype='f32')"


def test_a_model_stays_where_it_is(tiny: Tiny) -> None:
    with ours("text-classification", tiny("bert_seqcls")) as mine:
        assert mine.model.eval() is mine.model
        assert mine.model.to("cpu").to(torch.float32).to(device=torch.device("cpu")) is mine.model
        for place in ("cuda", torch.float16, "nowhere"):
            with pytest.raises(InputError, match="does not move"):
                mine.model.to(place)
        with pytest.raises(AttributeError, match="the torch module"):
            mine.model.generate()


def test_a_model_serves_another_pipeline(tiny: Tiny) -> None:
    with ours("text-classification", tiny("bert_seqcls")) as first:
        with ours("feature-extraction", first.model, tokenizer=first.tokenizer) as second:
            assert second("a book") == ours("feature-extraction", tiny("bert_seqcls"))("a book")
        assert sum(weight.numel() for weight in first.model.parameters()) == first.model.num_parameters()
        module = isoform.load(tiny("bert_seqcls"))
        with ours(model=module) as second, ours(model=second.model) as third:
            assert third("a book") == second("a book") == first("a book")
    with ours(model=exported("bert_seqcls")) as pipe:
        with pytest.raises(InputError, match="no single torch module"):
            pipe.model.parameters()
        with ours(model=pipe.model) as again:
            assert again("a book") == pipe("a book")


# ------------------------------------------------------------------ saving
def test_the_options_of_saving_are_read_by_name(tiny: Tiny, tmp_path: Path) -> None:
    with ours("fill-mask", tiny("bert")) as mine:
        for options in ({"push_to_hub": True}, {"colour": 1}):
            with pytest.raises(InputError, match=next(iter(options))):
                mine.save_pretrained(tmp_path / "no", **options)
        assert not list(tmp_path.iterdir()), "nothing is left of what is refused"
        mine.save_pretrained(tmp_path / "yes", safe_serialization=True, max_shard_size="5GB", push_to_hub=False)
    assert (tmp_path / "yes" / "model.safetensors").is_file()


def test_a_gguf_file_is_saved_as_a_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    (file,) = exported("llama").rglob("*f32.gguf")
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4}
    with ours(model=file) as mine:
        assert mine.tokenizer("The small cat").data == ours(model=tiny("llama")).tokenizer("The small cat").data
        assert mine.model.config.num_hidden_layers == 3
        expected = mine("The small cat", **options)
        mine.save_pretrained(tmp_path / "saved")
    with ours(model=tmp_path / "saved") as again:
        assert again("The small cat", **options) == expected


@pytest.mark.parametrize(("task", "name"), [("text-classification", "bert_seqcls"), ("text-generation", "qwen2_b")])
def test_a_saved_pipeline_answers_the_same_in_both(task: str, name: str, tiny: Tiny, tmp_path: Path) -> None:
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4} if task == "text-generation" else {}
    with ours(task, tiny(name), dtype="f32") as mine:
        expected = mine("The small cat", **options)
        mine.save_pretrained(tmp_path / "new" / "saved")
        with pytest.raises(InputError, match="not empty"):
            mine.save_pretrained(str(tmp_path / "new"))
    folder = tmp_path / "new" / "saved"
    assert json.loads((folder / "config.json").read_text())
    with ours(task, folder, dtype="f32") as again:
        assert again("The small cat", **options) == expected
    other = theirs(task, folder, dtype=torch.float32)("The small cat", **options)
    assert other[0].keys() == expected[0].keys()
    key = next(iter(expected[0]))
    assert other[0][key] == expected[0][key]


def test_the_stored_dtype_is_saved_unless_another_was_asked_for(tiny: Tiny, tmp_path: Path) -> None:
    from safetensors import safe_open

    def stored(folder: Path) -> str:
        with safe_open(folder / "model.safetensors", "pt") as file:
            return str(file.get_slice(next(iter(file.keys()))).get_dtype())

    assert stored(tiny("bert_seqcls")) == "F32"
    for dtype, expected in ((None, "F32"), ("auto", "F32"), ("bfloat16", "BF16")):
        with ours("text-classification", tiny("bert_seqcls"), dtype=dtype) as mine:
            mine.save_pretrained(tmp_path / str(dtype))
        assert stored(tmp_path / str(dtype)) == expected


def test_a_changed_tokenizer_is_saved_with_its_pipeline(tiny: Tiny, tmp_path: Path) -> None:
    with ours("text-generation", tiny("llama")) as mine:
        mine.tokenizer.pad_token = mine.tokenizer.eos_token
        mine.save_pretrained(tmp_path / "saved")
    with ours("text-generation", tmp_path / "saved") as again:
        assert again.tokenizer.pad_token == again.tokenizer.eos_token


def test_a_bundle_is_copied(tmp_path: Path) -> None:
    bundle = exported("bert_seqcls")
    with ours(model=bundle) as mine:
        assert mine.task == "text-classification"
        assert mine.model.config.num_labels == 2
        expected = mine("a book")
        mine.save_pretrained(tmp_path / "copy")
        with pytest.raises(InputError, match="cannot be counted"):
            mine.model.num_parameters()
    with ours(model=tmp_path / "copy") as again:
        assert again("a book") == expected


def test_nothing_is_saved_into_a_file(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with ours("fill-mask", tiny("bert")) as mine:
        for save in (mine.save_pretrained, mine.tokenizer.save_pretrained):
            with pytest.raises(InputError, match="is a file"):
                save(tmp_path / "file")
