"""Stage 1, capture: turn the traced step into a flat graph with roles, split into one component per parameter."""

if __name__ != "baoc_compile.passes.capture":  # a second copy would define its classes twice
    raise ImportError("import it as baoc_compile.passes.capture")
