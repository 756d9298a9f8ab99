"""The form of a policy file (TOML): what may stand in it, and every problem of a text with its line, rule and key.

Reads no file; what the rules then mean is `policy`'s.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from agent_sse.errors import ConfigurationError
from agent_sse.policy import ArgumentCondition, Decision, Policy, Rule
from agent_sse.policy_lines import Lines, Location
from agent_sse.policy_paths import Path
from agent_sse.policy_patterns import Glob, Names, Regex
from agent_sse.terminal import summary

RULES_LIMIT = 1000
CONDITIONS_LIMIT = 100  # of one rule
TIMEOUT_LIMIT = 7 * 24 * 3600  # seconds
_SHOWN = 60  # characters of a wrong value

_TOML_LINE = re.compile(r" \(at line (\d+), column \d+\)")


class InvalidPolicy(ConfigurationError):
    """A policy cannot be used. Attributes: ``problems``, one line of text for each of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


# -- values -----------------------------------------------------------------------------------------------------------


def _strings(value: object, what: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("must not be empty, since the rule could never match: leave the key out to match all")
    if not all(isinstance(item, str) for item in values):
        raise ValueError(f"must be {what} in quotes or a list of them, not {summary(value, _SHOWN)}")
    return tuple(values)


def _version(value: object) -> int:
    if type(value) is not int or value != 1:  # True is an int, and equals 1
        raise ValueError(f"must be 1, the only one that this release reads, not {summary(value, _SHOWN)}")
    return value


def _names(value: object) -> Names:
    globs = _strings(value, "a glob")
    if "" in globs:
        raise ValueError('must not be "", which is nobody\'s name: leave the key out to match all')
    return Names(globs)


def _glob(value: object) -> Glob:
    return Glob(_strings(value, "a glob"))


def _regex(value: object) -> Regex:
    if not isinstance(value, str):
        raise ValueError(f"must be one regular expression in quotes, not {summary(value, _SHOWN)}; a|b is either")
    return Regex(value)


def _path(value: object) -> Path:
    if not isinstance(value, str):
        raise ValueError(f'must be a JSON path in quotes, such as "$.path", not {summary(value, _SHOWN)}')
    return Path(value)


def _risks(value: object) -> frozenset[str]:
    risks = _strings(value, "a risk level")
    if "critical" in risks:
        raise ValueError('cannot be "critical": annotations never say so, only set_risk does')
    if wrong := [risk for risk in risks if risk not in ("low", "medium", "high")]:
        raise ValueError(f"must be low, medium or high, not {summary(wrong[0], _SHOWN)}")
    return frozenset(risks)


def _exact(name: str) -> str:
    if not name or re.search(r"[*?\[]", name):
        raise ValueError("must be a server's exact name, since trust is not given by pattern")
    return name


def _as_list(value: object) -> object:
    if value == []:
        raise ValueError("must not be empty: give a condition, or leave the key out")
    return [value] if isinstance(value, dict) else value


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


class _Condition(_Form):
    path: Annotated[Path, PlainValidator(_path)]
    glob: Annotated[Glob | None, PlainValidator(_glob)] = None
    regex: Annotated[Regex | None, PlainValidator(_regex)] = None

    @model_validator(mode="after")
    def _check(self) -> _Condition:
        if (self.glob is None) == (self.regex is None):
            raise ValueError("needs exactly one of glob and regex")
        return self

    def build(self) -> ArgumentCondition:
        pattern = self.regex if self.glob is None else self.glob
        if pattern is None:
            raise AssertionError("_check lets no such condition pass")
        return ArgumentCondition(self.path, pattern)


class _Rule(_Form):
    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    tool: Annotated[Names | None, PlainValidator(_names)] = None
    server: Annotated[Names | None, PlainValidator(_names)] = None
    risk: Annotated[frozenset[str], PlainValidator(_risks)] = frozenset()
    arguments: Annotated[list[_Condition], Field(max_length=CONDITIONS_LIMIT), BeforeValidator(_as_list)] = []
    decision: Decision
    set_risk: Literal["low", "medium", "high", "critical"] | None = None
    reason: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    timeout: Annotated[float, Field(gt=0, le=TIMEOUT_LIMIT)] | None = None
    editable: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> _Rule:
        name = self.name or "ok"
        if not name.isprintable() or re.fullmatch(r"default|rule \d+", name):
            raise ValueError('cannot have this name: "default" and "rule 1" are taken, and control characters hide')
        if self.decision != "ask" and (self.timeout, self.editable) != (None, None):
            raise ValueError('cannot have timeout or editable: they are for decision = "ask"')
        return self

    def build(self, number: int) -> Rule:
        return Rule(
            label=self.name or f"rule {number}",
            decision=self.decision,
            tools=self.tool,
            servers=self.server,
            risks=self.risk,
            arguments=tuple(condition.build() for condition in self.arguments),
            set_risk=self.set_risk,
            reason=self.reason,
            timeout=self.timeout,
            editable=self.editable is not False,
        )


class _Server(_Form):
    trusted: bool


class _File(_Form):
    version: Annotated[int, PlainValidator(_version)]
    default: Decision | None = None
    servers: dict[Annotated[str, AfterValidator(_exact)], _Server] = {}
    rules: Annotated[list[Any], Field(max_length=RULES_LIMIT)] = []


_EXAMPLES = {
    "version": "version = 1",
    "decision": 'decision = "ask" (or "allow", or "deny")',
    "path": 'path = "$.path"',
    "trusted": "trusted = true",
}
_INNER: dict[object, type[_Form]] = {"arguments": _Condition, "servers": _Server}
_Any = TypeVar("_Any", bound=_Form)


# -- problems ---------------------------------------------------------------------------------------------------------


class _Problems:
    """What is wrong with a text, and where."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._lines = Lines(text)
        self._found: list[tuple[int, str]] = []

    def add(self, location: Location, message: str) -> None:
        """Note a problem with what stands at ``location``: ``("rules", 2, "tool")``."""
        line = self._lines.find(location) or 0
        place = f"{self._name}:{line}" if line else self._name
        words = [f"{part} {number + 1}" if isinstance(number, int) else str(part) for part, number in _pairs(location)]
        self._found.append((line, ": ".join([place, *([", ".join(words)] if words else []), message])))

    def check(self, form: type[_Any], value: object, prefix: Location = ()) -> _Any | None:
        """Return what ``form`` makes of the value; None when it finds problems, which are then noted."""
        try:
            return form.model_validate(value)
        except ValidationError as error:
            for item in error.errors():
                location = tuple(item["loc"])
                self.add((*prefix, *location), _message(form, location, item["type"], item["msg"], item))
            return None

    def raise_any(self) -> None:
        """Raise :class:`InvalidPolicy` with all problems in the order of their lines, if there are any."""
        if self._found:
            raise InvalidPolicy([text for _, text in sorted(self._found, key=lambda found: found[0])])


def _pairs(location: Location) -> Iterator[tuple[str | int, str | int | None]]:
    """Yield each name of a location with the index behind it: ``rules 2``, ``arguments 0``, ``glob``."""
    for part, following in zip(location, (*location[1:], None), strict=True):
        if isinstance(part, str) and part != "[key]":  # as pydantic marks what is wrong with a key itself
            yield ("rule" if part == "rules" and isinstance(following, int) else part), following


def _message(form: type[_Form], location: Location, kind: str, text: str, item: Any) -> str:
    if kind == "extra_forbidden":
        keys = list(_INNER.get(location[0], form).model_fields if len(location) > 1 else form.model_fields)
        close = difflib.get_close_matches(str(location[-1]), keys, 1)
        return f"unknown key; did you mean {close[0]}?" if close else f"unknown key; the keys are {', '.join(keys)}"
    if kind == "missing":
        return f"is missing: write {_EXAMPLES[str(location[-1])]}"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    shown = summary(item["input"], _SHOWN)
    if kind == "literal_error":
        return f"must be {item['ctx']['expected']}, not {shown}"
    if kind in ("model_type", "dict_type"):
        return f"must be a table, not {shown}"
    return f"{text.replace('Input should', 'must').replace('must be a valid', 'must be a')}, not {shown}"


# -- the whole --------------------------------------------------------------------------------------------------------


def parse_policy(text: str, name: str = "policy.toml") -> Policy:
    """Return the policy that a TOML text describes. Raises :class:`InvalidPolicy` with all of its problems.

    ``name`` is the file's, for the messages.
    """
    document = _toml(text, name)
    problems = _Problems(name, text)
    file = problems.check(_File, document)
    written = document.get("rules")
    rules: list[tuple[int, Rule]] = []
    for index, raw in enumerate(written[:RULES_LIMIT] if isinstance(written, list) else ()):
        form = problems.check(_Rule, raw, ("rules", index))
        if form is not None:
            rules.append((index, form.build(index + 1)))
    _check_together(rules, problems)
    problems.raise_any()
    if file is None:
        raise AssertionError("a form that cannot be built has problems")
    trusted = [server for server, form in file.servers.items() if form.trusted]
    return Policy((rule for _, rule in rules), default=file.default, trusted_servers=trusted)


def _toml(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = _TOML_LINE.search(str(error))
        place = f"{name}:{line[1]}" if line else name
        raise InvalidPolicy([f"{place}: is not TOML: {_TOML_LINE.sub('', str(error))}"]) from None
    except RecursionError:
        raise InvalidPolicy([f"{name}: is nested too deeply"]) from None


def _check_together(rules: Sequence[tuple[int, Rule]], problems: _Problems) -> None:
    """Note names that two rules have, and rules that none of the calls can reach."""
    names: dict[str, int] = {}
    last: int | None = None
    for index, rule in rules:
        other = names.setdefault(rule.label, index)
        if other != index:
            problems.add(("rules", index, "name"), f"{summary(rule.label)} is already the name of rule {other + 1}")
        if last is not None:
            problems.add(("rules", index), f"can never decide, since rule {last + 1} matches every call: swap them")
        elif rule.takes_all():
            last = index
