"""Plans as JSON text. An error in a text names the field that is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from baoc_compile.core.errors import PlanError
from baoc_compile.kernels.codecs.catalogue import is_known, known_choices

VERSION = 5
OLDEST = 3

PLAN_FIELDS = {"default", "parameters", "seed", "memory_budget", "certificate"}
PARAMETER_FIELDS = {"index", "name", "shape", "slots", "block"}


def to_text(fields: Mapping[str, Any]) -> str:
    """Return the fields of a plan as JSON text. Its parameters are a list of dictionaries."""
    return json.dumps({"format": "baoc-plan", "version": VERSION, **fields}, indent=2)


def from_text(text: str) -> dict[str, Any]:
    """Return the fields of a plan, with its parameters by index. Names of codecs are left to `check`.

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
    fields = data if version == VERSION else _from_version_4(data)
    fields = {name: value for name, value in fields.items() if name not in ("format", "version")}
    unknown, missing = set(fields) - PLAN_FIELDS, PLAN_FIELDS - set(fields)
    if unknown:
        raise PlanError(f"the plan has unknown fields {sorted(unknown)}")
    if missing:
        raise PlanError(f"the plan lacks the fields {sorted(missing)}")
    for name, kind in (("default", dict), ("seed", int), ("memory_budget", str), ("certificate", str)):
        _typed(fields[name], kind, name)
    return {**fields, "parameters": _parameters(_typed(fields["parameters"], list, "parameters"))}


def check(default: Mapping[Any, Any], slots: Mapping[int, Mapping[Any, Any]]) -> None:
    """Raise PlanError for an unknown format or codec."""
    for slot, choice in default.items():
        _check_choice(choice, f"default[{slot!r}]", _typed(slot, str, "default: a slot"))
    for index, choices in slots.items():
        for slot, choice in choices.items():
            _check_choice(choice, f"parameter {index} slots[{slot!r}]", slot)


def _from_version_4(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of version 3 or 4 as those of version 5, which has no factors on updates.

    They are `update_scale`, or `gain` in version 3, which names no blocks either.
    """
    scale = "gain" if data["version"] == 3 else "update_scale"

    def without_scale(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
        if fields.get(scale, 1.0) != 1.0:
            raise PlanError(
                f"{where}{scale}: {fields[scale]!r} is not supported any more; set it to 1, and multiply the learning rate "
                "of the parameters' group instead"
            )
        return {name: value for name, value in fields.items() if name != scale}

    entries = data.get("parameters")
    if isinstance(entries, list):
        oldest = {"block": ""} if data["version"] == 3 else {}
        entries = [
            {**oldest, **without_scale(e, f"parameters[{position}].")} if isinstance(e, dict) else e
            for position, e in enumerate(entries)
        ]
    return without_scale(data, "") | {"parameters": entries}


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
