"""Stage 3, blocks: parameters are grouped by their places in the model's forward graph."""

if __name__ != "baoc_compile.passes.blocks":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.passes.blocks")
