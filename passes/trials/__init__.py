"""Trials: run the user's own step on copies of a few parameters, to find out what their state bears.

They serve the stages that choose how state is stored.
"""

if __name__ != "baoc_compile.passes.trials":  # a second copy would define its classes twice
    raise ImportError("import it as baoc_compile.passes.trials")
