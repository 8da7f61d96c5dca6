"""Stage 4, programs: compose decode, rule and encode into one graph, compile it, and find its bytes and its time."""

if __name__ != "baoc_compile.passes.programs":  # a second copy would define its classes twice
    raise ImportError("import it as baoc_compile.passes.programs")
