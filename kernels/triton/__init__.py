"""Program graph -> Triton."""

if __name__ != "baoc_compile.kernels.triton":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.kernels.triton")
