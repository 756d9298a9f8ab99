"""What a policy is, and how it decides about a tool call: allow, ask or deny. Pure: reads no file, asks nobody.

An `allow` rule has to prove that a call is what its author meant, an `ask` or `deny` rule only has to find something:
where arguments cannot be judged, the first does not match and the others do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from agent_sse.policy_paths import TEXT_LIMIT, Path, Unjudgeable
from agent_sse.policy_patterns import Names, ValuePattern
from agent_sse.terminal import summary

Decision = Literal["allow", "ask", "deny"]

_CACHE_LIMIT = 2048  # pairs of server and tool
_DESTRUCTIVE = "the server says that this tool is destructive"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done about one call, and why.

    ``rule`` is the deciding rule's name, ``"rule 3"`` for one without, or ``"default"``; ``timeout`` is in seconds,
    None = the caller's own; ``editable`` tells whether the user may change the parameters in the answer.
    """

    decision: Decision
    risk_level: str
    rule: str
    reason: str | None = None
    timeout: float | None = None
    editable: bool = True


def risk_level(annotations: Mapping[str, Any] | None, *, trusted: bool) -> str:
    """Return the risk of a tool by its server's own account: ``low``, ``medium`` or ``high``.

    A hint that is missing or no boolean counts as MCP's default, under which a tool may destroy. Only a trusted
    server can bring the level below ``medium``.
    https://modelcontextprotocol.io/specification/2025-06-18/schema#toolannotations
    """
    if _hint(annotations, "readOnlyHint") is True:
        return "low" if trusted else "medium"
    return "medium" if _hint(annotations, "destructiveHint") is False else "high"


def _claims_destruction(annotations: Mapping[str, Any] | None, *, trusted: bool) -> bool:
    """Tell whether the server warns of its tool in so many words; a hint left out is no warning."""
    return _hint(annotations, "destructiveHint") is True and not (
        trusted and _hint(annotations, "readOnlyHint") is True
    )


def _hint(annotations: object, name: str) -> object:
    return annotations.get(name) if isinstance(annotations, Mapping) else None


class Miss(NamedTuple):
    """Why an argument condition does not hold."""

    why: str
    text: str | None = None


@dataclass(frozen=True, slots=True)
class ArgumentCondition:
    """What a path selects in the arguments, held against a pattern."""

    path: Path
    pattern: ValuePattern

    def miss(self, arguments: dict[str, Any], *, every: bool) -> Miss | None:
        """Return None when the condition holds.

        ``every``: all selected values, and at least one, have to match as a whole (`allow`); otherwise one that
        matches is enough. What cannot be judged does not match in the first case and does in the second.
        """
        try:
            texts = self._texts(arguments)
            return self._miss_of_all(texts) if every else self._miss_of_any(texts)
        except (Unjudgeable, UnicodeEncodeError) as error:
            return Miss(f"cannot be judged: {error}") if every else None

    def doubt(self, arguments: dict[str, Any]) -> str | None:
        """Return why the values cannot be judged; None when they can."""
        try:
            for text in self._texts(arguments):
                self.pattern.finds(text)
        except (Unjudgeable, UnicodeEncodeError) as error:
            return f"{self.path} cannot be judged: {error}"
        return None

    def _texts(self, arguments: dict[str, Any]) -> list[str]:
        return self.path.texts(arguments, min(TEXT_LIMIT, self.pattern.longest))

    def _miss_of_all(self, texts: list[str]) -> Miss | None:
        for text in texts:
            if not self.pattern.covers(text):
                return Miss("selects a value that does not match", text)
        return None if texts else Miss("selects nothing")

    def _miss_of_any(self, texts: list[str]) -> Miss | None:
        for text in texts:
            if self.pattern.finds(text):
                return None
        return Miss("selects nothing that matches", texts[0]) if texts else Miss("selects nothing")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; all of its conditions have to hold, and one that is None or empty always does.

    ``label`` is what :attr:`Verdict.rule` says. ``risks`` are compared with :func:`risk_level`.
    """

    label: str
    decision: Decision
    tools: Names | None = None
    servers: Names | None = None
    risks: frozenset[str] = frozenset()
    arguments: tuple[ArgumentCondition, ...] = ()
    set_risk: str | None = None
    reason: str | None = None
    timeout: float | None = None
    editable: bool = True

    def names(self, server: str, tool: str) -> bool:
        """Tell whether the rule is about this tool at all."""
        return (self.tools is None or self.tools.matches(tool)) and (
            self.servers is None or self.servers.matches(server)
        )

    def fits(self, risk: str, arguments: dict[str, Any]) -> bool:
        """Tell whether the conditions that depend on the call hold."""
        if self.risks and risk not in self.risks:
            return False
        every = self.decision == "allow"
        return all(condition.miss(arguments, every=every) is None for condition in self.arguments)

    def takes_all(self) -> bool:
        """Tell whether no call gets past this rule."""
        return (
            (self.tools is None or self.tools.everything)
            and (self.servers is None or self.servers.everything)
            and not self.risks
            and not self.arguments
        )

    def misses(self, server: str, tool: str, risk: str, arguments: dict[str, Any]) -> list[str]:
        """Return one sentence for each condition that does not hold; none when the rule matches."""
        found = []
        if self.tools is not None and not self.tools.matches(tool):
            found.append(f'the tool "{tool}" is not {self.tools}')
        if self.servers is not None and not self.servers.matches(server):
            found.append(f'the server "{server}" is not {self.servers}')
        if self.risks and risk not in self.risks:
            found.append(f"the risk is {risk}, not {' or '.join(sorted(self.risks))}")
        for condition in self.arguments:
            miss = condition.miss(arguments, every=self.decision == "allow")
            if miss is not None:
                value = "" if miss.text is None else f": {summary(miss.text, 80)}"
                found.append(f"{condition.path} {miss.why} ({condition.pattern}){value}")
        return found


class Policy:
    """Rules in their order, of which the first that matches decides; else ``default``, or what is built in.

    Built in is: allow what a trusted server annotates as read-only, ask about everything else. ``trusted_servers``
    are exact names.
    """

    __slots__ = ("_by_name", "_trusted", "default", "rules")

    def __init__(
        self, rules: Iterable[Rule] = (), *, default: Decision | None = None, trusted_servers: Iterable[str] = ()
    ) -> None:
        self.rules = tuple(rules)
        self.default = default
        self._trusted = frozenset(trusted_servers)
        self._by_name: dict[tuple[str, str], tuple[Rule, ...]] = {}

    def decide(
        self,
        *,
        server: str,
        tool: str,
        arguments: Mapping[str, Any] | None,
        annotations: Mapping[str, Any] | None,
        trusted: bool = False,
    ) -> Verdict:
        """Decide about a call. Does not raise for anything that a server or a model may send.

        ``arguments`` are as parsed from JSON; ``annotations`` are the tool's, as on the wire; ``trusted`` marks the
        server as trusted, as ``[servers.NAME]`` in the policy does.
        """
        trusted = trusted or server in self._trusted
        risk = risk_level(annotations, trusted=trusted)
        known = _as_dict(arguments)
        for rule in self._about(server, tool):
            if rule.fits(risk, known):
                named = bool(rule.risks) or (rule.tools is not None and rule.tools.spells_out(tool))
                if rule.decision == "allow" and not named and _claims_destruction(annotations, trusted=trusted):
                    return Verdict("ask", rule.set_risk or risk, rule.label, _DESTRUCTIVE)
                return Verdict(
                    rule.decision, rule.set_risk or risk, rule.label, rule.reason, rule.timeout, rule.editable
                )
        return self._by_default(risk, annotations, trusted=trusted)

    def _by_default(self, risk: str, annotations: Mapping[str, Any] | None, *, trusted: bool) -> Verdict:
        if self.default == "allow" and _claims_destruction(annotations, trusted=trusted):
            return Verdict("ask", risk, "default", _DESTRUCTIVE)
        # Low is what a trusted server calls read-only, and nothing else.
        return Verdict(self.default or ("allow" if risk == "low" else "ask"), risk, "default")

    def _about(self, server: str, tool: str) -> Sequence[Rule]:
        """Return the rules about a tool; names are matched once, since they come with every call."""
        rules = self._by_name.get((server, tool))
        if rules is None:
            rules = tuple(rule for rule in self.rules if rule.names(server, tool))
            if len(self._by_name) >= _CACHE_LIMIT:
                self._by_name.clear()
            self._by_name[server, tool] = rules
        return rules

    def explain(
        self,
        *,
        server: str,
        tool: str,
        arguments: Mapping[str, Any] | None,
        annotations: Mapping[str, Any] | None,
        trusted: bool = False,
    ) -> list[str]:
        """Return a line for each rule up to the one that decides, or to the default. Not escaped for a terminal."""
        trusted = trusted or server in self._trusted
        risk = risk_level(annotations, trusted=trusted)
        known = _as_dict(arguments)
        verdict = self.decide(server=server, tool=tool, arguments=arguments, annotations=annotations, trusted=trusted)
        lines: list[str] = []
        for number, rule in enumerate(self.rules, 1):
            title = rule.label if rule.label == f"rule {number}" else f"rule {number} ({rule.label})"
            misses = rule.misses(server, tool, risk, known)
            if not misses:
                doubts = [doubt for condition in rule.arguments if (doubt := condition.doubt(known))]
                why = f" ({'; '.join(doubts)})" if doubts else ""
                return [*lines, f"{title} matches{why}: {_outcome(rule.decision, verdict)}"]
            lines.append(f"{title} does not match: {'; '.join(misses)}")
        by_default = self.default or verdict.decision
        return [*lines, f"no rule matches, the default decides: {_outcome(by_default, verdict)}"]


def _outcome(decision: str, verdict: Verdict) -> str:
    if decision == verdict.decision:
        return decision
    return (
        f"{decision}, raised to {verdict.decision}: {_DESTRUCTIVE}, and the rule spells out neither its name nor a risk"
    )


def _as_dict(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    return arguments if isinstance(arguments, dict) else dict(arguments or {})


DEFAULT_POLICY = Policy()
