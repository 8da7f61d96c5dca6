"""Plans as JSON text. An error in a text names the field that is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from baoc_compile.core.errors import PlanError
from baoc_compile.kernels.codecs.catalogue import is_known, known_choices

VERSION = 4
OLDEST = 3

PLAN_FIELDS = {"default", "parameters", "seed", "memory_budget", "update_scale", "certificate"}
PARAMETER_FIELDS = {"index", "name", "shape", "slots", "update_scale", "block"}


def to_text(fields: Mapping[str, Any]) -> str:
    """Return the fields of a plan as JSON text. Its parameters are a list of dictionaries."""
    return json.dumps({"format": "baoc-plan", "version": VERSION, **fields}, indent=2)


def from_text(text: str) -> dict[str, Any]:
    """Return the fields of a plan, with its parameters by index. Names of codecs, and scales, are left to `check`.

    Raises PlanError for anything that is not a plan of a version between OLDEST and VERSION.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise PlanError(f"the plan is not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != "baoc-plan":
        raise PlanError('the plan has no "format": "baoc-plan"')
    version = data.get("version")
    if isinstance(version, bool) or version not in range(OLDEST, VERSION + 1):
        raise PlanError(f"the plan has version {version!r}, this release reads {OLDEST} to {VERSION}")
    fields = _from_version_3(data) if version == 3 else data
    fields = {name: value for name, value in fields.items() if name not in ("format", "version")}
    unknown, missing = set(fields) - PLAN_FIELDS, PLAN_FIELDS - set(fields)
    if unknown:
        raise PlanError(f"the plan has unknown fields {sorted(unknown)}")
    if missing:
        raise PlanError(f"the plan lacks the fields {sorted(missing)}")
    for name, kind in (("default", dict), ("seed", int), ("memory_budget", str), ("certificate", str)):
        _typed(fields[name], kind, name)
    return {**fields, "parameters": _parameters(_typed(fields["parameters"], list, "parameters"))}


def check(default: Mapping[Any, Any], update_scale: Any, slots: Mapping[int, Mapping[Any, Any]]) -> None:
    """Raise PlanError for an unknown format or codec, or an update scale that is not a positive number."""
    check_update_scale(update_scale, "update_scale")
    for slot, choice in default.items():
        _check_choice(choice, f"default[{slot!r}]", _typed(slot, str, "default: a slot"))
    for index, choices in slots.items():
        for slot, choice in choices.items():
            _check_choice(choice, f"parameter {index} slots[{slot!r}]", slot)


def check_update_scale(value: Any, where: str) -> None:
    """Raise PlanError, which names the place `where`, unless `value` is a finite number > 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise PlanError(f"{where}: expected a number > 0, got {value!r}")


def _from_version_3(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return version 3's fields as those of version 4. Version 3 calls the update scale `gain` and names no blocks."""

    def renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
        return {"update_scale" if name == "gain" else name: value for name, value in fields.items()}

    entries = data.get("parameters")
    if isinstance(entries, list):
        entries = [{"block": "", **renamed(e)} if isinstance(e, dict) else e for e in entries]
    return renamed(data) | {"parameters": entries}


def _parameters(entries: list[Any]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        where = f"parameters[{position}]"
        fields = dict(_typed(entry, dict, where))
        if set(fields) != PARAMETER_FIELDS:
            raise PlanError(f"{where} has fields {sorted(fields)}, expected {sorted(PARAMETER_FIELDS)}")
        index = _count(fields.pop("index"), f"{where}.index")
        if index in found:
            raise PlanError(f"{where}.index: parameter {index} is there twice")
        sizes = _typed(fields["shape"], list, f"{where}.shape")
        fields["shape"] = tuple(_count(size, f"{where}.shape") for size in sizes)
        for name, kind in (("name", str), ("slots", dict), ("block", str)):
            _typed(fields[name], kind, f"{where}.{name}")
        check_update_scale(fields["update_scale"], f"parameter {index} update_scale")
        found[index] = fields
    return found


def _typed(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PlanError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def _count(value: Any, where: str) -> int:
    if _typed(value, int, where) < 0:
        raise PlanError(f"{where}: expected a number >= 0, got {value}")
    return value


def _check_choice(choice: Any, where: str, slot: str) -> None:
    if not isinstance(choice, str) or not is_known(choice, slot):
        raise PlanError(f"{where}: unknown codec {choice!r}; known are {', '.join(known_choices(slot))}")
