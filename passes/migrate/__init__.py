"""Stage 8, migrate: bring optimizer state into the form that the plan asks for."""

if __name__ != "baoc_compile.passes.migrate":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.passes.migrate")
