"""Parameters that the user edits in the answer: made on what was shown, and made again on what will run.

The patch is JSON Merge Patch (https://www.rfc-editor.org/rfc/rfc7396), so what the browser never touched stays exact.
Redis and the browser know masked parameters only; the agent has the real ones, and runs exactly what was approved.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent_sse import events, json_schema, merge_patch
from agent_sse.decisions import PermissionDecision, PermissionRequest, sha256
from agent_sse.errors import ApiError, InvalidEvent, SchemaUnusable
from agent_sse.masking import Masker
from agent_sse.store import Store


@dataclass(frozen=True, slots=True)
class Edit:
    """An edit that was checked: what the answer says beyond yes, as ``"name":value`` fragments."""

    fragments: bytes


async def prepare_edit(store: Store, session_id: str, request_id: str, patch: object, masker: Masker) -> Edit | None:
    """Check a patch against the open request; None when it is not open any more, or the patch changes nothing.

    Raises ApiError 422: ``not_editable``, ``masked_value``, ``invalid_parameters``, and 404, 413.
    """
    if ":" in request_id:
        return None
    key = store.keyspace.session(session_id).requests
    event, schema = await store.backend.command("HMGET", key, f"e:{request_id}", f"s:{request_id}")
    if event is None:
        return None  # unknown or settled: the decision says which
    data = json.loads(event)["data"]
    if not data.get("editable"):
        raise ApiError(422, "not_editable", "parameters_patch: this request takes yes or no; leave the patch out")
    edited = _patched(data["parameters"], patch, data.get("masked", ()))
    if events.canonical(edited) == events.canonical(data["parameters"]):
        return None
    if events.canonical(masker.mask(edited)) != events.canonical(edited):
        raise ApiError(
            422,
            "masked_value",
            "parameters_patch: it holds what looks like a secret, and would not be shown; leave it out",
        )
    # In a thread: the schema comes from any server, and may take the better part of a second.
    wrong = await asyncio.to_thread(_violation, json.loads(schema) if schema else None, edited, data.get("masked", ()))
    if wrong is not None:
        raise ApiError(422, "invalid_parameters", f"parameters_patch: {wrong}")
    said = {"parameters_patch": patch, "edited_parameters": edited, "edited_digest": sha256(edited)}
    fragments = events.encode(said)[1:-1]
    if len(fragments) > store.settings.max_event_bytes // 2:
        limit = store.settings.max_event_bytes // 2
        raise ApiError(413, "edit_too_large", f"parameters_patch: patch and result are larger than {limit} bytes")
    return Edit(fragments)


def _patched(shown: object, patch: object, masked: Any) -> Any:
    if not isinstance(patch, dict):
        raise ApiError(422, "invalid_field", "parameters_patch: a JSON Merge Patch of parameters is an object")
    touched = merge_patch.touches(patch, masked)
    if touched is not None:
        raise ApiError(422, "masked_value", f"parameters_patch: {touched} is hidden and cannot be edited; leave it out")
    if merge_patch.contains_mask(patch):
        raise ApiError(422, "masked_value", "parameters_patch: it writes •••• where a real value belongs; leave it out")
    try:
        return merge_patch.apply(shown, patch)
    except InvalidEvent as error:
        raise ApiError(422, "invalid_field", f"parameters_patch: {error}") from None


def _violation(schema: Mapping[str, Any] | None, value: object, masked: Any) -> str | None:
    if schema is None:
        return None
    try:
        return json_schema.violation(schema, value, masked)
    except SchemaUnusable as error:
        return f"the tool's schema cannot be checked, so nothing can be edited: {error}"


def approved_parameters(
    decision: PermissionDecision, more: Mapping[str, Any], request: PermissionRequest, frozen: bytes, masker: Masker
) -> PermissionDecision:
    """Return the decision with the parameters that may run: the frozen ones, or these with the user's edit.

    ``frozen`` is their JSON as it was when the user was asked. Whatever does not come out as it was
    approved becomes a decision that is no approval.
    """
    if not decision.approved:
        return decision
    parameters = json.loads(frozen)
    patch = more.get("parameters_patch")
    if patch is None:
        return replace(decision, parameters=parameters)
    edited = merge_patch.apply(parameters, patch)
    if sha256(masker.mask(edited)) != more.get("edited_digest"):
        return _refused(decision, "the edited parameters are not those that were approved")
    wrong = _violation(request.schema, edited, ())
    if wrong is not None:
        return _refused(decision, f"the edited parameters do not fit the tool: {wrong}")
    return replace(decision, parameters=edited, edited=True)


def _refused(decision: PermissionDecision, reason: str) -> PermissionDecision:
    return replace(decision, approved=False, reason=reason, outcome="cancelled", resolved_by="agent")
