"""A rewritten step as text: what is updated, by which rule, and how it is stored."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from baoc_compile.kernels.launch.fused_update import Launch
from baoc_compile.passes.rewrite.replay import Replay


def step_text(gm: fx.GraphModule) -> str:
    """Return the step as text: a paragraph per program, a line per parameter, and the prelude's calls as they are."""
    lines = ["def step(gradients, scalars):"]
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        work = node.meta.get("baoc")
        if isinstance(work, Launch):
            lines += [f"    {line}" for line in _launch_lines(work)]
        elif isinstance(work, Replay):
            lines += [f"    {work.__name__}(...)  # not elementwise: {work.reason}"]
        else:
            lines.append(f"    {node.format_node()}")
    return "\n".join(lines)


def _launch_lines(launch: Launch) -> Iterator[str]:
    graph = launch.graph
    verb = "fused_average" if graph.folds else "fused_update"
    yield f"{verb}[rule {graph.rule.key}](  # one launch over {len(launch.parameters)} parameters"
    stored = {k: c for k, c in graph.configuration.items() if not graph.folds or k in graph.rule.averaged}
    for key, codec in stored.items():
        numel = sum(shape.numel() for shape in launch.shapes)
        per_element = sum(codec.storage_bytes(shape) for shape in launch.shapes) / max(numel, 1)
        yield f"    {key}: stored as {codec.name}, {per_element:.4g} bytes an element"
    names = {i.name for i in graph.rule.inputs_of("scalar")}
    first = {name: value for name, value in (launch.numbers[0] if launch.numbers else {}).items() if name in names}
    if first:
        yield f"    scalars: {', '.join(f'{name} = {value:.6g}' for name, value in first.items())}"
    width = max(map(len, launch.parameters), default=0)
    for name, shape, block in zip(launch.parameters, launch.shapes, launch.blocks, strict=True):
        state = sum(codec.storage_bytes(shape) for codec in stored.values())
        yield f"    {name:<{width}}  {list(shape)!s:<14} {state} bytes of state{f', block {block!r}' if block else ''}"
    yield ")"
