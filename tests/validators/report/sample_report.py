"""A report with everything in it, made without a model: for the tests of what is made of reports."""

from __future__ import annotations

from math import sin

from isoform.validators.report.evidence import BINS, Evidence
from isoform.validators.report.layers import LayerProfile, ModuleShare
from isoform.validators.report.records import Report, Result, Skip
from isoform.validators.report.subject import Subject

FORMS = (
    ("onnxruntime", "onnx", "f32", 1.0),
    ("torchscript", "torchscript", "f32", 0.6),
    ("llamacpp", "gguf", "f32", 2.0),
    ("llamacpp", "gguf", "q8_0", 9),
)
CASES = (
    ("one row", "one row, length 7"),
    ("batch of 3", "batch of 3, length 7"),
    ("left padding", "left padding, rows of 7 1 24"),
    ("text", "text, right padding, rows of 9 26"),
)


def sample(*, failing: bool = True) -> Report:
    """Four forms, of which llama.cpp's f32 fails on left padding (or not), and q8_0 gives hidden states."""
    report = Report(
        about={
            "bundle": "out/a-model-with-a-long-name-that-a-narrow-screen-has-to-break",
            "source": "checkpoints/model",
            "family": "decoder",
            "task": "text-generation",
            "versions": {"isoform": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.31.1"},
            "seconds": 12.5,
        }
    )
    for number, (backend, form, dtype, factor) in enumerate(FORMS):
        report.results.append(
            Result(backend, "files", dtype, "files", "files, model", "changed", 0, 0, True, form=form)
        )
        if dtype == "q8_0":
            text = Subject(backend, "deployment", dtype, "text", "text, 8 rows", form=form)
            report.results.append(Result.of(text, "nmse", 9e-4, 1.1e-3, "noted"))
            report.evidence.append(Evidence(**text.fields(), port="last_hidden_state", seconds=1.5))
            report.skipped.append(Skip(backend, "graph", dtype, "", "", "activations are quantized too", form=form))
            continue
        for step, (group, case) in enumerate(CASES):
            subject = Subject(backend, "graph", dtype, group, case, form=form)
            bad = failing and backend == "llamacpp" and group == "left padding"
            share = 4.0 if bad else (0.1 + 0.2 * step) * min(factor, 1.4)
            note = "in present.0.key, by position" if bad else ""
            report.results.append(Result.of(subject, "rms", share * 1.5e-6, 1.5e-6, note))
            values = [sin(7.0 * n + step) * 5 for n in range(40)]
            counts = [3 * (number == 0), *[0] * (BINS - 1)]  # the first form has an error of 1e-12 or less
            for n in range(6):
                counts[8 + number + n] = 90 * (6 - abs(n - 3))
            report.evidence.append(
                Evidence(
                    **subject.fields(),
                    port="logits",
                    seconds=0.02 * (step + 1) * factor,
                    exact=200,
                    counts=tuple(counts),
                    points=tuple((value, value + 0.05 * factor * sin(3.0 * value)) for value in values),
                    kl=tuple((n, 1e-9 * factor * (n + 1)) for n in range(12)) if backend != "torchscript" else (),
                )
            )
    names = (f"layers.{n}.{name}" for n in range(3) for name in ("attn.q", "attn.out", "mlp"))
    modules = ["embed", *names, "norm", "head"]
    for backend, form, dtype, factor in FORMS[:3]:
        shares = tuple(ModuleShare(module, "out", round(0.05 * factor * n, 3)) for n, module in enumerate(modules, 1))
        if failing and backend == "llamacpp":
            shares = (*shares[:6], *(ModuleShare(module, "out", 4.0 + n) for n, module in enumerate(modules[6:])))
        report.layers.append(LayerProfile(backend, "layers", dtype, *CASES[2], shares, form=form))
    return report
