"""Names under which checkpoints of version 0.1 find compressed state: a pickle names the module of what it calls."""

from baoc_compile.state.state_tensor import StateTensor, rebuild_state_tensor

__all__ = ["StateTensor", "rebuild_state_tensor"]
