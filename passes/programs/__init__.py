"""Stage 4, programs: a rule and a configuration -> decode, rule, encode as one graph; what it moves and how long it takes."""

if __name__ != "baoc_compile.passes.programs":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.passes.programs")
