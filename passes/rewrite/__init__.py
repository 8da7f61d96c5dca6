"""Stage 9, rewrite: turn the captured step into one fused-update node per program, bound to tensors."""

if __name__ != "baoc_compile.passes.rewrite":  # a second copy would define its classes twice
    raise ImportError("import it as baoc_compile.passes.rewrite")
