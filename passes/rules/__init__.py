"""Stage 2, rules: components -> canonical update rules, and what can be proven about their slots."""

if __name__ != "baoc_compile.passes.rules":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.passes.rules")
