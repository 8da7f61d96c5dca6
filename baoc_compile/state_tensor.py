"""Where checkpoints of version 0.1 look for compressed state: pickles name the module of what they call."""

from baoc_compile.state.state_tensor import StateTensor, rebuild_state_tensor

__all__ = ["StateTensor", "rebuild_state_tensor"]
