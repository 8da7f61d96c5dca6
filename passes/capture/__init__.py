"""Stage 1, capture: the traced step -> a flat graph with roles, cut into one component per parameter."""

if __name__ != "baoc_compile.passes.capture":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.passes.capture")
