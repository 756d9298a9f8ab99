"""The text of a JSON Web Token: base64url and JSON, each only in the one spelling that is accepted. Knows no key.

What is wrong is said in words that quote nothing of it.
https://www.rfc-editor.org/rfc/rfc7515 · https://www.rfc-editor.org/rfc/rfc4648#section-5
"""

from __future__ import annotations

import binascii
import json
import math
import re
from typing import Any, NoReturn

_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
# By the length modulo 4: the last characters whose spare bits are zero. Looked up, because encoding the bytes again to
# compare the texts costs twice as much as decoding them.
_LAST = ("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", "", "AQgw", "AEIMQUYcgkosw048")
_TO_BASE64 = bytes.maketrans(b"-_", b"+/")


class Flaw(Exception):
    """What is wrong with a token or a key, in words that quote nothing of it."""


def decode_part(part: str) -> bytes:
    """Decode canonical base64url: one text per value, so no changed token stays the same token (RFC 7515 § 2).

    Raises :class:`Flaw` for padding, another alphabet, an impossible length, spare bits that are set, and no text.
    """
    if _BASE64URL.fullmatch(part) is None or len(part) % 4 == 1:
        raise Flaw("the token is not base64url")
    if part[-1] not in _LAST[len(part) % 4]:
        raise Flaw("the token is not canonical base64url")
    return binascii.a2b_base64(part.encode("ascii").translate(_TO_BASE64) + b"=" * (-len(part) % 4))


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object in which every name occurs once and every number is finite and at most 20 digits long.

    Raises :class:`Flaw` otherwise.
    """
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Flaw("the JSON in it is malformed") from None
    if not isinstance(value, dict):
        raise Flaw("the JSON in it is not an object")
    return value


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Flaw("a name occurs twice in the JSON in it")
    return value


def _refuse_number(_: str) -> NoReturn:
    raise Flaw("the JSON in it has a number that is not finite or is too long")


def _parse_int(text: str) -> int:
    return int(text) if len(text) <= 20 else _refuse_number(text)


def _parse_float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_number(text)


# Made once: with hooks `json.loads` makes a decoder for every call, which costs as much as the parsing.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_names, parse_constant=_refuse_number, parse_int=_parse_int, parse_float=_parse_float
)
