"""Program graph -> torch operations: the reference, and the fallback for devices without a lowering."""

if __name__ != "baoc_compile.kernels.eager":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.kernels.eager")
