"""Runs chat templates, which are untrusted code: jinja2's immutable sandbox, with limits on time and on sizes.

Python cannot interrupt a template from outside, in every thread and on every system. So the template interrupts itself:
each turn of a loop, call, filter, test, attribute and piece of output is counted, and the processor time of the thread
is looked at after some of them. What one operation makes is measured before it is made, since C code looks at no clock.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from itertools import islice
from time import thread_time
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError

if TYPE_CHECKING:
    from jinja2 import Environment, Template

SECONDS = 2.0
"""Processor time that a template may take; real ones take milliseconds."""

_MAX_TEXT = 2**26  # characters that a template may write
_MAX_VALUE = 2**23  # characters of one value, with all that it holds
_MAX_ITEMS = 10**6  # values in one value
_MAX_SIZE = 10**6  # of a repetition or a width
_MAX_INDENT = 16  # characters
_MAX_SLOW = 10**5  # characters of what a filter takes that is written in Python
_STEPS = 2000  # between two looks at the clock

_EACH, _WEIGHED, _JOINED = "isoform_each", "isoform_weighed", "isoform_joined"  # filters that we put into templates


class Endless(Exception):
    """A template that takes too long."""


class Budget:
    """What is left of the limits while a template runs."""

    def __init__(self) -> None:
        self.until = thread_time() + SECONDS
        self.steps = _STEPS
        self.text = _MAX_TEXT

    def look(self) -> None:
        """Raise `Endless` when the time is over."""
        self.steps = _STEPS
        if thread_time() > self.until:
            raise Endless(f"after {SECONDS:g} seconds; it does not seem to end")


_running = threading.local()


def render(source: str, values: Mapping[str, Any]) -> str:
    """The text that a template writes. InputError for one that is no template, fails, or goes beyond the limits."""
    from jinja2 import TemplateError

    template = _compiled(source)
    before, _running.budget = getattr(_running, "budget", None), Budget()
    try:
        return "".join(template.generate(dict(values)))
    except Endless as error:
        raise InputError(f"the chat template was stopped {error}") from None
    except TemplateError as error:
        raise InputError(f"the chat template refuses this conversation: {error.message or error}") from error
    except (RecursionError, MemoryError, OverflowError) as error:
        raise InputError(f"the chat template was stopped: {error}") from error
    except Exception as error:
        raise InputError(f"the chat template fails on this conversation ({type(error).__name__}: {error})") from error
    finally:
        _running.budget = before


# ------------------------------------------------------------------ limits
def _refuse(message: str) -> None:
    from jinja2.exceptions import SecurityError

    raise SecurityError(f"a chat template may not {message}")


def _count(steps: int = 1) -> None:
    budget = getattr(_running, "budget", None)
    if budget is not None:
        budget.steps -= steps
        if budget.steps < 0:
            budget.look()


def _weigh(value: Any) -> int:
    """How many characters a value and all that it holds have; refused beyond the limits. Shared parts count again."""
    if isinstance(value, str):
        if len(value) > _MAX_VALUE:
            _refuse(f"make a text of {len(value):,} characters")
        return len(value)
    if not isinstance(value, _CONTAINERS):
        return 0
    characters = items = 0
    pending = [iter(value.items() if isinstance(value, dict) else value)]
    while pending:
        seen = items
        for one in pending[-1]:
            items += 1
            if isinstance(one, str):
                characters += len(one)
            elif isinstance(one, _CONTAINERS):
                pending.append(iter(one.items() if isinstance(one, dict) else one))
                break
        else:
            pending.pop()
        if items > _MAX_ITEMS or characters > _MAX_VALUE:
            _refuse(f"make a value of more than {_MAX_ITEMS:,} items or {_MAX_VALUE:,} characters")
        _count(1 + (items - seen) // 4)
    return characters


_CONTAINERS: tuple[type[Any], ...] = (list, tuple, dict, type({}.keys()), type({}.values()), type({}.items()))


def _at_most(size: int, limit: int = _MAX_VALUE) -> None:
    if size > limit:
        _refuse(f"make {size:,} characters in one operation")


def _bounded(*sizes: Any) -> None:
    for size in sizes:
        if isinstance(size, int) and abs(size) > _MAX_SIZE:
            _refuse(f"ask for a size of {size:.4g}")


class Each:
    """The items of a loop, counted."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            _count()
            yield item


# ------------------------------------------------------------------ what an operation makes
def _replaced(text: Any, old: Any, new: Any, *rest: Any, **options: Any) -> None:
    text, old = str(text), str(old)
    _at_most(len(text) + (text.count(old) if old else len(text) + 1) * len(str(new)))


def _joined_by(items: Any, separator: Any = "", *rest: Any, **options: Any) -> None:
    count = len(items) if hasattr(items, "__len__") else 0
    _at_most(_weigh(items) + count * len(str(separator)))


def _formatted(text: Any, *values: Any, **named: Any) -> None:
    text = str(text)
    if re.search(r"[%{][^%{}]*(\d{5,}|\*)|\{[^{}]*:[^{}]*\{", text):
        _refuse("format to such a width")
    whole = sum(map(_weigh, (*values, *named.values())))
    _at_most(len(text) + (text.count("%") + text.count("{")) * (whole + 32))


def _indented(text: Any, width: Any = 4, *rest: Any, **options: Any) -> None:
    size = len(width) if isinstance(width, str) else int(width)
    _at_most(len(str(text)) + (str(text).count("\n") + 1) * size)


def _wrapped(text: Any, width: Any = 79, breaks: Any = True, wrapstring: Any = None, *rest: Any, **o: Any) -> None:
    _slow(text)
    _at_most(len(str(text)) * (1 + len(str(wrapstring or ""))))


def _slow(text: Any, *rest: Any, **options: Any) -> None:
    if (size := _weigh(text)) > _MAX_SLOW or (isinstance(text, _CONTAINERS) and len(text) > _MAX_SLOW // 10):
        _refuse(f"do that with a value of {size:,} characters")
    for one in (*rest, *options.values()):
        _at_most(_weigh(one), 1000)


def _summed(items: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        _refuse("sum up anything but numbers")


def _expanded(text: str, size: int = 8) -> None:
    _at_most(len(text) + text.count("\t") * size)


def _translated(text: str, table: Any) -> None:
    longest = max((len(str(one)) for one in table.values()), default=1) if isinstance(table, dict) else 1
    _at_most(len(text) * max(longest, 1))


_METHODS: Mapping[str, Callable[..., None]] = {
    "expandtabs": _expanded,
    "join": lambda text, items: _joined_by(items, text),
    "replace": _replaced,
    "translate": _translated,
}
"""Methods of texts that may make much of little -> what measures that."""

_FILTERS: Mapping[str, Callable[..., None]] = {
    "format": _formatted,
    "indent": _indented,
    "join": _joined_by,
    "pprint": _slow,
    "replace": _replaced,
    "sum": _summed,
    "urlize": _slow,
    "wordwrap": _wrapped,
    "xmlattr": _slow,
}
"""Filters of that kind."""

_SIZED = ("batch", "center", "indent", "round", "slice", "truncate", "wordwrap")
"""Filters whose numbers are sizes."""


def _binary(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation of two values that makes too much."""
    if operator == "**" and not (isinstance(right, int | float) and abs(right) <= 64 and _small(left)):
        _refuse(f"compute {left!r:.20} ** {right!r:.20}")
    if operator == "*":
        for some, times in ((left, right), (right, left)):
            if isinstance(some, str) and isinstance(times, int):
                _bounded(len(some) * times)
            if isinstance(some, list | tuple) and isinstance(times, int):
                _bounded(len(some) * times)
                _at_most(_weigh(some) * max(times, 0))
        if isinstance(left, int) and isinstance(right, int) and not (_small(left) and _small(right)):
            _refuse("multiply such large numbers")
    if operator == "+":
        if isinstance(left, str) and isinstance(right, str):
            _at_most(len(left) + len(right))
        if isinstance(left, list | tuple) and isinstance(right, list | tuple):
            _bounded(len(left) + len(right))
            _count((len(left) + len(right)) // 16)
    if operator == "%" and isinstance(left, str):
        _formatted(left, right)


def _small(number: Any) -> bool:
    return isinstance(number, float) or (isinstance(number, int) and abs(number) < 2**256)


# ------------------------------------------------------------------ jinja2
@lru_cache(maxsize=16)
def _compiled(source: str) -> Template:
    import jinja2

    try:
        return _environment().from_string(source)
    except (RecursionError, MemoryError):
        raise InputError("the chat template is nested too deeply; pass another with chat_template=") from None
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"the chat template is not valid jinja2: {error.message} (line {error.lineno}); fetch the model again, or "
            "pass another with chat_template="
        ) from None
    except (SyntaxError, TypeError, ValueError, jinja2.TemplateError) as error:  # Python's compiler has limits as well
        raise InputError(f"the chat template cannot be compiled ({error}); pass another with chat_template=") from None


@lru_cache(maxsize=1)
def _environment() -> Environment:
    import jinja2
    from jinja2 import nodes, pass_context
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.runtime import markup_join, str_join
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace
    from jinja2.visitor import NodeTransformer

    class Counted(NodeTransformer):
        """Puts filters that count and measure where jinja2 asks nobody."""

        def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
            return nodes.Const(node.data, lineno=node.lineno)  # so that it is output like any other value

        def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
            self.generic_visit(node)
            return _filter(nodes.List(node.nodes, lineno=node.lineno), _JOINED)

        def visit_For(self, node: nodes.For) -> nodes.Node:
            self.generic_visit(node)
            node.iter = _filter(node.iter, _EACH)
            return node

        def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
            self.generic_visit(node)
            node.expr = _weighed(node.expr)
            for operand in node.ops:
                operand.expr = _weighed(operand.expr)
            return node

        def visit_List(self, node: nodes.List) -> nodes.Node:
            self.generic_visit(node)
            return node if all(isinstance(item, nodes.Const) for item in node.items) else _filter(node, _WEIGHED)

        def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
            self.generic_visit(node)
            plain = node.ctx != "load" or all(isinstance(item, nodes.Const) for item in node.items)
            return node if plain else _filter(node, _WEIGHED)

        def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
            self.generic_visit(node)
            return _filter(node, _WEIGHED)

    def _filter(node: Any, name: str) -> nodes.Expr:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def _weighed(node: nodes.Expr) -> nodes.Expr:
        return node if isinstance(node, nodes.Const) else _filter(node, _WEIGHED)

    class Sandbox(ImmutableSandboxedEnvironment):
        """The sandbox, with limits on what one operation can make."""

        intercepted_binops = frozenset(("+", "*", "**", "%"))

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            tree = super()._parse(source, name, filename)
            Counted().visit(tree)
            tree.set_environment(self)
            return tree

        def getattr(self, obj: Any, attribute: str) -> Any:
            _count()
            return super().getattr(obj, attribute)

        def getitem(self, obj: Any, argument: Any) -> Any:
            _count(1 + len(obj) // 64 if isinstance(argument, slice) and hasattr(obj, "__len__") else 1)
            _weigh(argument)
            return super().getitem(obj, argument)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _count()
            _binary(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, method: Any, /, *args: Any, **kwargs: Any) -> Any:
            _count()
            owner = getattr(method, "__self__", None)
            if isinstance(owner, str):
                args = tuple(_settled(one) for one in args)
                _bounded(*args, *kwargs.values())
                if measure := _METHODS.get(getattr(method, "__name__", "")):
                    measure(owner, *args, **kwargs)
            for one in (*args, *kwargs.values()):
                _weigh(one)
            return super().call(context, method, *args, **kwargs)

        def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
            wrapped = super().wrap_str_format(value)
            if wrapped is None:
                return None
            original, text = wrapped, value.__self__

            @wraps(original)
            def formatted(*args: Any, **kwargs: Any) -> str:
                _formatted(text, *args, **kwargs)
                return original(*args, **kwargs)

            return formatted

    class Generation(Extension):
        """{% generation %} … {% endgeneration %} marks what the assistant wrote; here it is just its content."""

        tags = {"generation"}  # noqa: RUF012  jinja2's own declaration

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

        def _content(self, caller: Callable[[], str]) -> str:
            return caller()

    def check_name(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a chat template may not store {name!r} on a namespace")

    class SafeNamespace(Namespace):
        """A namespace without underscored attributes, which shows nothing of what it holds."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, args = args[0], args[1:]
            attributes = dict(*args, **kwargs)
            for name in attributes:
                check_name(name)
            Namespace.__init__(self, attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            check_name(name)
            Namespace.__setitem__(self, name, value)

        def __repr__(self) -> str:
            return "<Namespace>"

    class Dict:
        """`dict(…)` without the attributes of the type."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args, **kwargs)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        x: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        _bounded(indent)
        for one in (indent, *(separators or ())):
            if (len(one) if isinstance(one, str) else one or 0) > _MAX_INDENT:
                _refuse(f"indent or separate JSON by more than {_MAX_INDENT} characters")
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(format: str) -> str:
        _at_most(len(format), 1000)
        return datetime.now().strftime(format)

    def limited(
        original: Callable[..., Any], measure: Callable[..., None] | None = None, sized: bool = False
    ) -> Callable[..., Any]:
        """A filter or test that counts, and measures what it is given."""
        first = getattr(getattr(original, "jinja_pass_arg", None), "name", None)

        @wraps(original)
        def counted(context: Any, /, *args: Any, **kwargs: Any) -> Any:
            _count()
            for one in (*args, *kwargs.values()):
                _weigh(one)
            if sized:
                _bounded(*args[1:], *kwargs.values())
            if measure is not None:
                args = (*(_settled(one) for one in args[:1]), *args[1:])
                measure(*args, **kwargs)
            if first is None:
                return original(*args, **kwargs)
            given = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
            return original(given[first], *args, **kwargs)

        return pass_context(counted)

    @pass_context
    def joined(context: Any, parts: Sequence[Any]) -> Any:
        _count(len(parts))
        _at_most(_weigh(parts))
        return (markup_join if context.eval_ctx.autoescape else str_join)(parts)

    @pass_context
    def weighed(context: Any, value: Any) -> Any:
        _weigh(value)
        return value

    @pass_context
    def each(context: Any, value: Any) -> Each:
        _count()
        return Each(value)

    @pass_context
    def finalize(context: Any, value: Any) -> Any:
        _count()
        budget = getattr(_running, "budget", None)
        if budget is not None:
            budget.text -= _weigh(value)
            if budget.text < 0:
                _refuse(f"write more than {_MAX_TEXT:,} characters")
        return value

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], finalize=finalize
    )
    environment.filters["tojson"] = tojson
    originals: dict[str, Any] = environment.filters
    environment.filters = {name: limited(one, _FILTERS.get(name), name in _SIZED) for name, one in originals.items()}
    environment.filters |= {_EACH: each, _WEIGHED: weighed, _JOINED: joined}
    tests: dict[str, Any] = environment.tests
    environment.tests = {name: limited(one) for name, one in tests.items()}
    environment.globals.pop("lipsum", None)
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": Dict(),
        "namespace": SafeNamespace,
    }
    return environment


def _settled(value: Any) -> Any:
    """A list of what an iterator gives, so that it can be measured; others as they are."""
    return list(islice(Each(value), _MAX_ITEMS)) if hasattr(value, "__next__") else value
