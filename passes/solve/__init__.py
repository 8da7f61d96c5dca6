"""Stage 6, solve: a multiple-choice knapsack under a memory and a time budget. Pure numpy; knows no optimizer."""

if __name__ != "baoc_compile.passes.solve":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.passes.solve")
