"""Program graph -> C++."""

if __name__ != "baoc_compile.kernels.cpp":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.kernels.cpp")
