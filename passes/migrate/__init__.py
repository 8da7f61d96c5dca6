"""Stage 8, migrate: convert optimizer state to the form that a storage gives it."""

if __name__ != "baoc_compile.passes.migrate":  # a second copy would define its classes twice
    raise ImportError("import it as baoc_compile.passes.migrate")
