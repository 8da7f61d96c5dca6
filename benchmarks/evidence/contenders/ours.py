"""The baseline, and ours: uniform formats, and budgets in bytes a parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import baoc_compile
from evidence.contenders.contender import BASELINE, OURS, Contender, Setting
from evidence.rules import ADAMW, LION, SGD

RULES = (ADAMW.name, SGD.name, LION.name)


def _exact(setting: Setting) -> Any:
    return setting.rule.make(setting.parameters, setting.lr, **setting.rule.fused)


def _prepared(**options: Any) -> Callable[[Setting], Any]:
    def make(setting: Setting) -> Any:
        optimizer = setting.rule.make(setting.parameters, setting.lr)
        baoc_compile.prepare(optimizer, model=setting.model, seed=setting.seed, **options)
        return optimizer

    return make


def _ours(
    name: str, about: str, rules: tuple[str, ...] = RULES, factors: tuple[float, ...] = (1.0,), **options: Any
) -> Contender:
    make = dict.fromkeys(rules, _prepared(**options))
    return Contender(name, about, make, OURS, factors=factors, bytes=baoc_compile.state_bytes)


def _budget(text: str, rules: tuple[str, ...] = RULES) -> Contender:
    return _ours(text, f"a plan of ours within a budget of {text}", rules, memory_budget=text)


def _slots(exp_avg: str, exp_avg_sq: str) -> dict[str, Any]:
    return {"plan": {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, "rules": (ADAMW.name,)}


REFERENCE = Contender(
    "fp32",
    "torch's own step with state in full precision",
    dict.fromkeys(RULES, _exact),
    BASELINE,
    factors=(1.0,),
)

FORMATS = (
    _ours("8bit", "our format of 8 bits for all state", plan="8bit"),
    _ours("4bit", "our format of 4 bits for all state", plan="4bit"),
    _ours("4bit m, factored v", "our 4-bit momentum with a factored second moment", **_slots("4bit", "factored")),
)
BUDGETS = (
    _budget("2.1 B/param", (ADAMW.name,)),
    _budget("1.1 B/param"),
    _budget("0.75 B/param"),
    _budget("0.5 B/param"),
    _budget("0.3 B/param"),
    _budget("15%"),
    _budget("4 B/param", (ADAMW.name,)),
)
OTHER_FORMATS = (
    _ours("8bit m, factored v", "our 8-bit momentum with a factored second moment", **_slots("8bit", "factored")),
    _ours("8bit m, 4bit v", "our 8-bit momentum with a 4-bit second moment", **_slots("8bit", "4bit")),
    _ours("8bit-learned", "8 bits with levels learned from each tensor", plan="8bit-learned"),
    _ours("4bit-learned", "4 bits with levels learned from each tensor", plan="4bit-learned"),
    _ours("bf16", "our bf16, rounded stochastically", plan="bf16"),
    _ours(
        "no m, factored v",
        "a factored second moment alone",
        factors=(0.3, 1.0),  # without momentum the updates are longer: at 0.3 they are about as long as with it
        **_slots("dropped", "factored"),
    ),
)
