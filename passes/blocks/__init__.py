"""Stage 3, blocks: group parameters by their places in the model's forward graph."""

if __name__ != "baoc_compile.passes.blocks":  # a second copy would define its classes twice
    raise ImportError("import it as baoc_compile.passes.blocks")
