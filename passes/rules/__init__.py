"""Stage 2, rules: turn components into canonical update rules, and prove properties of their slots."""

if __name__ != "baoc_compile.passes.rules":  # a second copy would define its classes twice
    raise ImportError("import it as baoc_compile.passes.rules")
