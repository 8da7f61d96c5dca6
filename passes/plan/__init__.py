"""Stage 7, plan: from candidates, their bytes, times and risks to how every slot is stored."""

if __name__ != "baoc_compile.passes.plan":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.passes.plan")
