"""`with_budget`: an optimizer class whose instances are prepared when they are made, for whatever takes a class."""

from __future__ import annotations

import copy
import copyreg
import functools
from typing import Any

from baoc_compile.core.errors import OptionError
from baoc_compile.prepare import prepare
from baoc_compile.state.request import Request

#: The attributes of a made class: what it was made from, and with which options.
MADE_FROM, REQUEST, OPTIONS = "_baoc_made_from", "_baoc_request", "_baoc_options"


def with_budget(optimizer_class: Any, memory_budget: str | int | None = None, **options: Any) -> Any:
    """Return a subclass of an optimizer class whose instances are prepared when they are made.

    It goes wherever a class goes: `Trainer(optimizer_cls_and_kwargs=(with_budget(torch.optim.AdamW, "15%"), {...}))`. It
    has the name and the signature of the class given; its instances step, save and resume as those of `prepare` do. The
    class and its instances can be pickled. The same call returns the same class.

    optimizer_class: a subclass of `torch.optim.Optimizer`, or a class with `param_groups`, `state` and `step` like it.
    memory_budget: as in `prepare`.
    options: the other options of `prepare`, but for the model. Once there is an optimizer, `prepare(optimizer, model=model)`
        names it.

    Raises OptionError for a bad option and for a class that has other options already, and PlanError for a bad plan. What
    only an instance shows (a budget that can't be met, parameters that share memory) is raised when one is made.
    """
    if not isinstance(optimizer_class, type) or not hasattr(optimizer_class, "step"):
        raise OptionError(
            f"optimizer_class: expected an optimizer class, got {_named(optimizer_class)}; an optimizer that exists is "
            "prepared by baoc_compile.prepare(optimizer, ...)"
        )
    if "model" in options:
        raise OptionError(
            "model: a class is for any model; leave it out, and call baoc_compile.prepare(optimizer, model=model) once there "
            "is an optimizer"
        )
    given = {"memory_budget": memory_budget, **options}
    options = {name: copy.deepcopy(value) for name, value in given.items() if value is not None}
    request = Request.parse(options)
    if hasattr(optimizer_class, REQUEST):
        if getattr(optimizer_class, REQUEST) == request:
            return optimizer_class
        raise OptionError(
            f"optimizer_class: {optimizer_class!r} has options already; give {getattr(optimizer_class, MADE_FROM)!r}"
        )
    made: list[Any] = optimizer_class.__subclasses__()
    known = next((c for c in made if vars(c).get(REQUEST) == request), None)
    return known or _make(optimizer_class, request, options)


def _make(optimizer_class: type, request: Request, options: dict[str, Any]) -> type:
    metaclass = _metaclass(type(optimizer_class))

    @functools.wraps(optimizer_class.__init__)  # type: ignore[misc]
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super(made, self).__init__(*args, **kwargs)
        prepare(self, **options)

    made = metaclass(
        optimizer_class.__name__,
        (optimizer_class,),
        {
            "__init__": __init__,
            "__doc__": optimizer_class.__doc__,
            "__module__": optimizer_class.__module__,
            "__qualname__": optimizer_class.__qualname__,
            MADE_FROM: optimizer_class,
            REQUEST: request,
            OPTIONS: options,
        },
    )
    return made


@functools.cache
def _metaclass(base: type) -> Any:
    """Return the metaclass of classes made from those of metaclass `base`: it knows how they are shown and pickled.

    A class is pickled by its name, under which only the class that it was made from is found. So each is made again.
    """
    made = type("ClassWithBudget", (base,), {"__repr__": _shown, "__module__": __name__})
    copyreg.pickle(made, _reduced)  # type: ignore[arg-type]
    return made


def _shown(made: Any) -> str:
    if REQUEST not in vars(made):
        return type.__repr__(made)
    options = dict(getattr(made, OPTIONS))
    budget = [repr(options.pop("memory_budget"))] if "memory_budget" in options else []
    base = getattr(made, MADE_FROM)
    given = ", ".join([f"{base.__module__}.{base.__qualname__}", *budget, *(f"{k}={v!r}" for k, v in options.items())])
    return f"<class baoc_compile.with_budget({given})>"


def _reduced(made: Any) -> Any:
    if REQUEST not in vars(made):
        return made.__qualname__  # a subclass that somebody has written is found by its name
    return _made_again, (getattr(made, MADE_FROM), getattr(made, OPTIONS))


def _named(given: Any) -> str:
    return repr(given) if isinstance(given, type) else f"an object of the class {type(given).__name__}"


def _made_again(optimizer_class: type, options: dict[str, Any]) -> Any:
    return with_budget(optimizer_class, **options)
