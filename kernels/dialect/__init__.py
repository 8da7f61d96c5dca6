"""The dialect: the operations that rules and codecs are written in, and tracing codecs into it."""

if __name__ != "baoc_compile.kernels.dialect":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.kernels.dialect")
