"""What may import what, and where a family may be named."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from isoform.reference.families import FAMILIES, modules

ROOT = Path(__file__).parents[2]
ROOMS = ("reference", "exporters", "runtimes", "validators", "src/isoform")
FORMATS = ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "gguf", "xllamacpp")

# room -> what it never imports (packages, and our own modules).
NEVER = {
    "reference": (
        *("transformers", *FORMATS),
        *("isoform.exporters", "isoform.runtimes", "isoform.validators", "isoform.api", "isoform.cli"),
    ),
    "exporters": ("transformers", "isoform.runtimes", "isoform.validators", "isoform.api", "isoform.cli"),
    "runtimes": ("transformers", "isoform.exporters", "isoform.validators", "isoform.api", "isoform.cli"),
    "validators": ("transformers", "isoform.api", "isoform.cli"),
    "src/isoform": ("transformers",),
}


@dataclass(frozen=True)
class Import:
    path: str  # relative to the root
    line: int
    module: str
    at_top: bool  # runs when the file is imported (not inside a function, nor for type checkers only)

    def within(self, *packages: str) -> bool:
        return any(self.module == p or self.module.startswith(p + ".") for p in packages)

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.module}"


def files(room: str) -> Iterator[Path]:
    """Python files of a room; the links in src/isoform are not followed."""
    pending = [ROOT / room]
    while pending:
        for path in sorted(pending.pop().iterdir()):
            if path.is_dir() and not path.is_symlink():
                pending.append(path)
            elif path.suffix == ".py":
                yield path


def imports(room: str) -> Iterator[Import]:
    for path in files(room):
        name = path.relative_to(ROOT).as_posix()

        def walk(node: ast.AST, at_top: bool, name: str = name) -> Iterator[Import]:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(name, node.lineno, alias.name, at_top)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}:{node.lineno} imports relatively"
                for alias in node.names:
                    yield Import(name, node.lineno, f"{node.module}.{alias.name}", at_top)
            later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
            for child in ast.iter_child_nodes(node):
                yield from walk(child, at_top and not later and not typing)

        yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_earlier_rooms(room: str) -> None:
    reads_gguf = re.compile(
        r"reference/checkpoints/gguf\w*\.py"
    )  # a .gguf file is also a checkpoint; gguf-py decodes its blocks
    wrong = [
        i
        for i in imports(room)
        if i.within(*NEVER[room]) and not (i.within("gguf") and not i.at_top and reads_gguf.fullmatch(i.path))
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_runtimes_know_the_reference_only_in_the_torch_backend() -> None:
    torch_backend = re.compile(r"runtimes/backends/torch\w*/")
    wrong = [
        i for i in imports("runtimes") if i.within("isoform.reference") and i.at_top and not torch_backend.match(i.path)
    ]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("room", ROOMS)
def test_backends_are_imported_on_first_use(room: str) -> None:
    wrong = [i for i in imports(room) if i.at_top and i.within("onnxruntime", "xllamacpp")]
    assert not wrong, "\n".join(map(str, wrong))


# ------------------------------------------------------------------ names of families
LIBRARY = re.compile(  # llama.cpp, the C library: its name, its symbols, its packages
    r"x?llama[._-]?cpp\w*|\bllama-quant(?:ize)?\b|\b(?:lib)?llama_\w*|\bLLAMA_\w*|\b(?:lib)?llama\.(?:h|so|dll|dylib)\b|\blibllama\b",
    re.IGNORECASE,
)
OTHERS = re.compile(  # names that other libraries gave: a file of sentence-transformers, classes of tokenizers
    r"sentence_bert_config\.json|\bBert(?:Normalizer|PreTokenizer)\b|\bRobertaProcessing\b"
)
WORD = re.compile(r"[A-Z]?[a-z]+\d*|[A-Z]+\d*")


def family_words(names: Iterator[str]) -> set[str]:
    """The words that betray a family: its names, with and without the version ("gemma3" and "gemma")."""
    single = {name.lower() for name in names if WORD.fullmatch(name)}
    return single | {bare for name in single if len(bare := name.rstrip("0123456789")) > 2}


def spoken(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Identifiers and string literals by line. Docstrings and comments are prose, which may name a family.

    Cutting values is left out: NumPy's `x.clip(…)` and `mode="clip"`, ONNX's operator "Clip".
    """
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    cutting = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    cutting |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "mode"}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in prose and node.value != "Clip" and not (id(node) in cutting and node.value == "clip"):
                yield line, node.value
        elif isinstance(node, ast.Attribute):
            if not (id(node) in cutting and node.attr == "clip"):
                yield line, node.attr
        else:
            for name in ("id", "arg", "name", "asname", "module"):
                if isinstance(value := getattr(node, name, None), str):
                    yield line, value


def named_families(text: str, names: set[str]) -> list[str]:
    """The identifiers and string literals of Python source that name a family, each as "line: what it says"."""
    found = []
    for line, said in spoken(ast.parse(text)):
        words = {w.lower() for w in WORD.findall(OTHERS.sub(" ", LIBRARY.sub(" ", said)))}
        if names & (words | {w.rstrip("0123456789") for w in words}):
            found.append(f"{line}: {said.strip()[:80]}")
    return found


def names() -> set[str]:
    return family_words(iter([*FAMILIES, *(module.rsplit(".", 1)[-1] for module in modules())]))


def test_no_family_is_named_where_mechanism_lives() -> None:
    known = names()
    wrong = [
        f"{path.relative_to(ROOT).as_posix()}:{line}"
        for room in ROOMS[1:]
        for path in files(room)
        for line in named_families(path.read_text(encoding="utf-8"), known)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("if family == 'llama': pass", True),
        ("LlamaForCausalLM", True),
        ("GEMMA3_WINDOW = 5", True),
        ("raise InputError(f'{model} is no Whisper')", True),
        ("def f(bert_layers): pass", True),
        ("from isoform.reference.text import gemma2", True),
        ('if family == "clip": pass', True),
        ("# as Gemma has it", False),
        ('def f():\n    """What Gemma does."""', False),
        ("import xllamacpp  # llama.cpp's llama_decode and LLAMA_ROPE_TYPE_NONE", False),
        ("say = 'the llamacpp backend reads llama.h and libllama.so'", False),
        ("name = 'sentence_bert_config.json'", False),
        ("alphabert = 1", False),
        ('graph.one("Clip", x); x.clip(0, 1); np.take(x, y, mode="clip")', False),
    ],
)
def test_the_search_for_names_sees_families_and_spares_the_library(source: str, named: bool) -> None:
    assert bool(named_families(source, names())) is named


# ------------------------------------------------------------------ what an import costs
@pytest.mark.parametrize("arguments", ["", "--version", "--help"])
def test_the_command_line_starts_without_torch_or_numpy(arguments: str) -> None:
    heavy = ("torch", "numpy", "transformers", "huggingface_hub", *FORMATS)
    program = f"""
import sys
import isoform, isoform.cli
if {arguments!r}:
    sys.argv = ["isoform", {arguments!r}]
    try:
        isoform.cli.main()
    except SystemExit as end:
        assert not end.code, end.code
print("loaded:", *[m for m in {heavy!r} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"
