"""DecodedView: a view of compressed optimizer state, to be read.

A step that reads the state of another optimizer may do so through views (`state["exp_avg"].flatten()`), and so may whoever logs
or checks state. What is written to a view would be lost, and raises StateError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from baoc_compile.core.errors import StateError
from baoc_compile.core.torch_private import no_torch_function, tree_leaves, tree_map_only, wrapper_tensor
from baoc_compile.state.eager_state import EagerState, makes_view, written_arguments


class DecodedView(Tensor):
    """A view of state, which is decoded anew by every operation: it shows what the state is now, as a view does.

    state: the state.
    show: returns the view of the state's values.
    """

    state: EagerState
    show: Callable[[Tensor], Tensor]

    @staticmethod
    def __new__(cls, shown: Tensor, state: EagerState, show: Callable[[Tensor], Tensor]) -> DecodedView:
        self = wrapper_tensor(cls, tuple(shown.shape), shown.dtype, shown.device, shown.stride())
        self.state, self.show = state, show
        return self

    @classmethod
    def of(cls, state: EagerState, show: Callable[[Tensor], Any]) -> Any:
        """Return one view of a state tensor, or several.

        show: returns plain views of its values.
        """
        shown = show(state.decode())
        if isinstance(shown, Tensor):
            return cls(shown, state, show)
        return [cls(each, state, _one_of(show, k)) for k, each in enumerate(shown)]

    def plain(self) -> Tensor:
        """Return what the view shows now."""
        return self.show(self.state.decode())

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"DecodedView({self.state!r}, shape={tuple(self.shape)})"

    __torch_function__ = no_torch_function  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        written = tree_leaves(written_arguments(func, args, kwargs))
        refused = next((t for t in written if isinstance(t, DecodedView)), None)
        if refused is not None:
            raise StateError(
                f"{func} on a view of compressed optimizer state ({refused.state!r}), which would be written without effect; "
                "use operations on the whole tensor, or .decode(), and put the result in its place"
            )
        if makes_view(func) and isinstance(args[0], DecodedView):
            seen, rest = args[0], args[1:]
            return cls.of(seen.state, lambda values: func(seen.show(values), *rest, **kwargs))
        args, kwargs = tree_map_only(DecodedView, DecodedView.plain, (args, kwargs))
        return func(*args, **kwargs)


def _one_of(show: Callable[[Tensor], Any], position: int) -> Callable[[Tensor], Tensor]:
    return lambda values: show(values)[position]
