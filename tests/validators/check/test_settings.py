"""isoform.toml: what it may hold, and one clear line for what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoform.errors import InputError
from isoform.validators.check.settings import duration, read_settings, size
from isoform.validators.truth import budgets
from isoform.validators.truth import tolerances as tolerance

WHOLE = """
[check]
bundles = ["out/small"]
budget = "1h30m"
memory = "1.5G"
jobs = 2
baseline = "parity.json"

[tolerances]
"graph.rms" = 3
"q8_0.kl" = 0.002

[[matrix]]
models = ["a", "b", "a"]
formats = ["onnx"]
quantizations = ["f32", "q8_0"]

[[matrix]]
models = ["c"]
"""


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "isoform.toml"
    path.write_text(WHOLE)
    settings = read_settings(path)
    assert (settings.seconds, settings.bytes, settings.jobs) == (5400, 1_500_000_000, 2)
    assert settings.baseline == tmp_path / "parity.json"
    assert settings.tolerances == {"graph.rms": 3, "q8_0.kl": 0.002}
    first, second = settings.matrix
    assert first.models == ("a", "b")
    assert second.formats == ("gguf", "onnx", "torchscript")
    assert second.quantizations == ("f32",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[chek]", "did you mean 'check'"),
        ("[check]\nbudgets = '1m'", "did you mean 'budget'"),
        ("check = 3", "is a table"),
        ("[check]\nbudget = '1x'", "no time"),
        ("[check]\nbudget = '0s'", "no time for anything"),
        ("[check]\nmemory = '4'", "500M or 4G"),
        ("[check]\njobs = 0", "1 or more"),
        ("[check]\njobs = true", "1 or more"),
        ("[check]\nbundles = 'x'", "list of texts"),
        ("[check]\nbundles = []", "is empty"),
        ("[check]\nbaseline = 3", "text in quotes"),
        ("[tolerances]\n'graph.rsm' = 1", "did you mean 'graph.rms'"),
        ("[tolerances]\ngraph.rms = 1", "in quotes"),
        ("[tolerances]\n'graph.rms' = -1", "0 or more"),
        ("[tolerances]\n'graph.rms' = nan", "0 or more"),
        ("[tolerances]\n'graph.rms' = 'x'", "times torch's own"),
        ("[matrix]\nmodels = ['a']", r"\[\[matrix\]\]"),
        ("[[matrix]]\nformats = ['onnx']", "names no models"),
        ("[[matrix]]\nmodels = ['a']\nformats = ['onx']", "did you mean 'onnx'"),
        ("[[matrix]]\nmodels = ['a']\nbackend = ['onnxruntime']", "did you mean 'backends'"),
        ("[check", "not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_the_file_and_the_way_out(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "isoform.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        read_settings(path)
    assert str(path) in str(caught.value)


def test_a_missing_or_unreadable_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not there"):
        read_settings(tmp_path / "isoform.toml")
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        read_settings(tmp_path / "x.toml")


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5m", 90)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(("text", "count"), [("500M", 500_000_000), ("4G", 4 * 10**9), ("1.5gb", 1_500_000_000)])
def test_sizes_are_read(text: str, count: int) -> None:
    assert size(text) == count


def test_a_chosen_tolerance_holds_while_it_lasts_and_names_are_unique() -> None:
    known = budgets.known()
    assert all(name == entry.name for name, entry in known.items())
    before = tolerance.GRAPH_RMS.value
    with tolerance.chosen({"graph.rms": 1.5}):
        assert tolerance.GRAPH_RMS.value == 1.5
        assert tolerance.GRAPH_RMS.is_chosen
        assert tolerance.GRAPH_MAX.value == tolerance.GRAPH_MAX.default
    assert tolerance.GRAPH_RMS.value == before
    assert not tolerance.GRAPH_RMS.is_chosen
