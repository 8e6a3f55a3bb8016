"""The arguments with which a pipeline is made, in any spelling that transformers accepts, as isoform's own.

What changes no answer here is accepted. What would change one, and cannot be done, is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any

from isoform.errors import InputError
from isoform.formats import FLOATS
from isoform.runtimes.devices import check_device

FORM = re.compile(r"(f32|f16|bf16)-portable|int8-portable|int[48]w?|mxfp4\w*|(i|t)?q\d[\w-]*")
"""The names of forms that are no float dtype, or say how their graph is written."""

DTYPES: Mapping[str, str] = {
    **{name: name for name in (*FLOATS, "auto")},
    **{name: short for short, name in FLOATS.items()},
    "float": "f32",
    "fp32": "f32",
    "half": "f16",
    "fp16": "f16",
}
"""Names of dtypes -> isoform's. A torch dtype is known by its text, "torch.float16"."""

KERNELS = (None, "eager", "sdpa")
"""Attention implementations of transformers that compute what isoform's own attention does."""

_SEVERAL = ("auto", "balanced", "balanced_low_0", "sequential")  # device maps that spread a model over what there is
_OTHER_DEVICES = ("hpu", "mlu", "mps", "musa", "npu", "tpu", "xla", "xpu")

_HARMLESS = frozenset(
    (
        "_commit_hash",
        "_from_pipeline",
        "args_parser",
        "code_revision",  # of remote code, which never runs
        "low_cpu_mem_usage",
        "modelcard",
        "num_workers",  # of a loader of batches: isoform's threads follow the cores
        "offload_buffers",
        "offload_folder",
        "offload_state_dict",
        "output_attentions",
        "output_hidden_states",
        "resume_download",
        "return_dict",
        "use_cache",
        "use_safetensors",
        "weights_only",
    )
)
"""Options that change how a model is loaded, and no answer."""

_NEUTRAL: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "adapter_kwargs": ((None, {}), "merge the adapter into its model first, or write it with `isoform lora`"),
    "force_download": ((None, False), "fetch the files again with `hf download --force-download`"),
    "gguf_file": ((None,), "give the path of the .gguf file as model"),
    "ignore_mismatched_sizes": ((None, False), "isoform invents no weights"),
    "load_in_4bit": ((None, False), "export a quantized form: `isoform export --to gguf --gguf-type q4_k_m`"),
    "load_in_8bit": ((None, False), "export a quantized form: `isoform export --to onnx --onnx-type int8`"),
    "max_memory": ((None,), "a model runs on one device; choose it with device="),
    "quantization_config": (
        (None,),
        "export a quantized form: `isoform export --to onnx --onnx-type int8`, or --to gguf --gguf-type q4_k_m",
    ),
    "subfolder": ((None, ""), "give the path of the folder itself as model"),
    "tp_plan": ((None,), "a model runs on one device; choose it with device="),
    "variant": ((None, ""), "give the path of a folder with those weights as model"),
}
"""Option -> (the values that change nothing, the way out for others)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """How a model is opened.

    `dtype` is one of `FLOATS`, the name of another form, "auto" for the stored one, or None where none was given.
    `hub` goes to the opening of a checkpoint; `notes` are warnings for the caller; `given_device`: somebody asked for
    the device.
    """

    device: str = "cpu"
    given_device: bool = False
    dtype: str | None = None
    hub: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_request(
    *,
    device: Any,
    device_map: Any,
    dtype: Any,
    revision: Any,
    token: Any,
    framework: Any,
    use_fast: Any,
    trust_remote_code: Any,
    model_kwargs: Any,
    pipeline_class: Any,
    gpus: Callable[[], int],
    loose: dict[str, Any],
) -> Request:
    """The request that the arguments of a pipeline mean; `gpus` counts those that the backend can use.

    `loose` are the keyword arguments without a place of their own. Those of loading are taken out; what is left are
    parameters of the pipeline. Raises InputError for a wrong type, a contradiction, or what isoform cannot do.
    """
    if pipeline_class is not None:
        raise InputError("pipeline_class= would run a class of transformers; isoform has its own, so leave it out")
    if framework not in (None, "pt", "torch"):
        raise InputError(f"framework={framework!r} is not torch; leave it out, or pass 'pt'")
    _flag("use_fast", use_fast)
    options = _options(model_kwargs)
    _once(options, "trust_remote_code", trust_remote_code)
    for name in ("torch_dtype", "cache_dir", "local_files_only", "offline", "attn_implementation"):
        if name in loose:
            _once(options, name, loose.pop(name))
    for name in [name for name in loose if name in _HARMLESS or name in _NEUTRAL]:
        _once(options, name, loose.pop(name))
    for name, value in {
        "revision": revision,
        "token": token,
        "device_map": device_map,
        "dtype": None if dtype == "auto" and not _no_dtype(options) else dtype,
    }.items():
        _once(options, name, value)
    _check(options)
    place, notes = device_name(device, options.get("device_map"), gpus)
    given = device is not None or options.get("device_map") is not None
    return Request(device=place, given_device=given, dtype=_dtype(options), hub=_hub(options), notes=notes)


def _options(given: Any) -> dict[str, Any]:
    """`model_kwargs` as a dict of its own."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise InputError(f"model_kwargs={given!r:.60} is not a dict of options by name")
    return dict(given)


def _once(options: dict[str, Any], name: str, value: Any) -> None:
    """Add an option that may be in model_kwargs as well. InputError where both say something, and not the same."""
    if value is None:
        return
    if (other := options.get(name)) is not None and other != value:
        raise InputError(f"{name} is given twice, as {value!r:.40} and in model_kwargs as {other!r:.40}; give it once")
    options[name] = value


def _no_dtype(options: Mapping[str, Any]) -> bool:
    return options.get("dtype") is None and options.get("torch_dtype") is None


def _check(options: Mapping[str, Any]) -> None:
    """InputError for an option that nobody knows, or that would change an answer."""
    for name, value in options.items():
        if name in _HARMLESS or name in ("cache_dir", "device_map", "dtype", "torch_dtype"):
            continue
        if name in ("revision", "token", "local_files_only", "offline"):
            continue
        if name == "trust_remote_code":
            _flag(name, value)
            if value:
                raise InputError(
                    "trust_remote_code=True would run Python code of the model's repository, which isoform never "
                    "does: each architecture is a definition of its own; leave it out"
                )
        elif name == "attn_implementation":
            if value not in KERNELS:
                raise InputError(
                    f"attn_implementation={value!r}: isoform has its own attention, equal to 'eager' and 'sdpa'; "
                    "leave it out"
                )
        elif name in _NEUTRAL:
            neutral, way_out = _NEUTRAL[name]
            if value not in neutral:
                raise InputError(f"{name}={value!r:.60} is not supported; {way_out}")
        else:
            raise InputError(
                f"model_kwargs has no option {name!r} here; it has attn_implementation, cache_dir, device_map, dtype, "
                "local_files_only, revision, token and trust_remote_code"
            )


def _flag(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{name}={value!r:.40} is not True or False")


# ------------------------------------------------------------------ dtype
def dtype_name(value: Any, name: str = "dtype") -> str | None:
    """isoform's name of a dtype ("f32", "bf16", "auto"), given as a text or a torch dtype; None for None.

    The name of a quantized or portable form ("int8", "q4w") stays: the backend or the bundle says whether it has it.
    """
    if value is None:
        return None
    text = value if isinstance(value, str) else str(value) if type(value).__name__ == "dtype" else ""
    found = DTYPES.get(text.removeprefix("torch."))
    if found is None and isinstance(value, str) and FORM.fullmatch(value):
        return value
    if found is None:
        raise InputError(
            f"{name}={value!r:.40} is not a dtype that models run in; choose from {', '.join(FLOATS.values())} (a "
            "text or a torch dtype), 'auto', the stored one, or the name of a form (int8, q8_0, q4w, …)"
        )
    return found


def _dtype(options: Mapping[str, Any]) -> str | None:
    dtype, old = dtype_name(options.get("dtype")), dtype_name(options.get("torch_dtype"), "torch_dtype")
    if dtype not in (None, "auto") and old not in (None, "auto", dtype):
        raise InputError(f"dtype is {dtype} and torch_dtype {old}; torch_dtype is the old name of dtype, give one")
    return old if dtype in (None, "auto") and old is not None else dtype


# ------------------------------------------------------------------ device
def device_name(device: Any, device_map: Any, gpus: Callable[[], int]) -> tuple[str, tuple[str, ...]]:
    """The one device that `device` or `device_map` means ("cpu", "cuda:N"), and warnings.

    A number is a GPU, or the CPU when it is negative. Where there is no GPU at all, a number means the CPU, as it does
    for transformers.
    """
    if device is not None and device_map is not None:
        raise InputError(f"device={device!r:.40} and device_map={device_map!r:.40} exclude each other; give one")
    if device_map is not None:
        return _mapped(device_map, gpus), ()
    if device is None:
        return "cpu", ()
    if isinstance(device, int) and not isinstance(device, bool) and device >= 0 and gpus() == 0:
        return "cpu", (f"device={device} asks for a GPU and there is none here, so the pipeline runs on the CPU",)
    return _one_device("device", device), ()


def _mapped(device_map: Any, gpus: Callable[[], int]) -> str:
    if isinstance(device_map, str) and device_map in _SEVERAL:
        return "cuda:0" if gpus() else "cpu"
    if not isinstance(device_map, Mapping):
        return _one_device("device_map", device_map)
    places = {_one_device("device_map", value) for value in device_map.values()}
    if len(places) != 1:
        shown = f"{device_map!r:.60}"
        raise InputError(f"device_map={shown} is not one device; isoform runs a model on one: {{'': 'cuda:0'}}")
    return places.pop()


def _one_device(name: str, value: Any) -> str:
    """A device as a text, a number or a torch device."""
    if isinstance(value, int) and not isinstance(value, bool):
        return "cpu" if value < 0 else f"cuda:{value}"
    kind = getattr(value, "type", None)
    if isinstance(kind, str):
        index = getattr(value, "index", None)
        value = kind if index is None or kind == "cpu" else f"{kind}:{index}"
    if not isinstance(value, str):
        raise InputError(f"{name}={value!r:.60} is not a device; give 'cpu', 'cuda', 'cuda:N' or the number of a GPU")
    text = "cpu" if value == "cpu:0" else value
    if text.partition(":")[0] in _OTHER_DEVICES:
        raise InputError(f"{name}={value!r}: isoform runs on CPUs and NVIDIA GPUs; pass 'cpu', 'cuda' or 'cuda:N'")
    try:
        check_device(text)
    except InputError:
        raise InputError(
            f"{name}={value!r:.40} is not a device that models run on; give 'cpu', 'cuda', 'cuda:N' or the number of "
            "a GPU (and with backend='openvino' 'gpu', 'gpu:N' or 'npu')"
        ) from None
    return text


# ------------------------------------------------------------------ the Hub
def _hub(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of opening a Hub id that were given."""
    hub: dict[str, Any] = {}
    for name, kinds, what in (
        ("revision", (str,), "a branch, a tag or a commit"),
        ("token", (str, bool), "a text, True (the stored one) or False"),
        ("cache_dir", (str, PathLike), "a folder"),
    ):
        value = options.get(name)
        if value is None:
            continue
        if not isinstance(value, kinds):
            raise InputError(f"{name}={value!r:.40} is not {what}")
        hub[name] = fspath(value) if isinstance(value, PathLike) else value
    for name in ("local_files_only", "offline"):
        _flag(name, options.get(name))
        if options.get(name):
            hub["offline"] = True
    return hub
