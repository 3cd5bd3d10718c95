"""A network as a table: layer, output shape, parameters, multiply-adds."""

from scratchnet.layers import Layer, Residual, Sequential


def summary(model: Layer, input_shape: tuple[int, ...]) -> str:
    """One line a layer, and the totals.

    input_shape   of one sample, without the batch axis
    raises        TypeError for what is no shape; ValueError where a layer does not take what the
                  one before puts out
    """
    if not isinstance(input_shape, tuple | list):
        raise TypeError(f"summary: input_shape must be such as (28, 28, 1), got {input_shape!r}")
    rows = [("input", _shape(input_shape), "", "")]
    rows += list(_rows(model, tuple(input_shape), 0))
    trainable = trainable_parameters(model)
    fixed = sum(p.value.size for p in model.parameters()) - trainable
    header = ("layer", "output shape", "parameters", "multiply-adds")
    total = ("total", "", f"{trainable:,}", f"{model.flops(tuple(input_shape)):,}")
    widths = [max(len(row[i]) for row in [header, *rows, total]) for i in range(4)]
    rule = "-" * (sum(widths) + 6)
    lines = [_line(header, widths), rule, *(_line(row, widths) for row in rows), rule]
    lines.append(_line(total, widths))
    if fixed:
        lines.append(f"and {fixed:,} values of running statistics, which are not trained")
    return "\n".join(lines)


def trainable_parameters(model: Layer) -> int:
    """How many numbers training changes."""
    return sum(p.value.size for p in model.parameters() if p.trainable)


def _rows(layer: Layer, input_shape: tuple[int, ...], depth: int):
    """The table's rows: containers as their parts, indented where they branch."""
    if isinstance(layer, Sequential):
        for part in layer.layers:
            yield from _rows(part, input_shape, depth)
            input_shape = part.output_shape(input_shape)
        return
    name = "Residual" if isinstance(layer, Residual) else repr(layer)
    yield (
        "  " * depth + name,
        _shape(layer.output_shape(input_shape)),
        f"{trainable_parameters(layer):,}",
        f"{layer.flops(input_shape):,}",
    )
    if isinstance(layer, Residual):
        for part in layer.parts.values():
            yield from _rows(part, input_shape, depth + 1)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    aligned = [cells[0].ljust(widths[0]), cells[1].ljust(widths[1])]
    aligned += [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join(aligned).rstrip()
