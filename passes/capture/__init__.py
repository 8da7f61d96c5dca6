"""Stage 1, capture: run the step once on stand-ins, and write down what it computes."""

if __name__ != "baoc_compile.passes.capture":  # a second copy would define its classes twice
    raise ImportError("import it as baoc_compile.passes.capture")
