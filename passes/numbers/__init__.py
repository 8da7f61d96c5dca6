"""Numbers: Python numbers that remember how they were computed, and their functions, compiled."""

if __name__ != "baoc_compile.passes.numbers":  # a second copy would define its classes twice
    raise ImportError("import it as baoc_compile.passes.numbers")
