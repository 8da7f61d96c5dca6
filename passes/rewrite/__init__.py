"""Stage 9, rewrite: the captured step -> one fused-update node per program, bound to tensors."""

if __name__ != "baoc_compile.passes.rewrite":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.passes.rewrite")
