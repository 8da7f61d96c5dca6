"""Stage 5, risk: from sampled gradients to the expected damage of every configuration of every block."""

if __name__ != "baoc_compile.passes.risk":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.passes.risk")
