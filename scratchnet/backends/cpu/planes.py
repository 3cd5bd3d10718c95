"""Pixels of few channels, as one vector for each channel.

In memory a pixel's channels lie side by side, which suits a vector only where they fill one. Here
`lanes` neighbouring pixels become C vectors, loaded and stored in one go: what a pixel has once,
such as a kernel, is then one vector too, and a sum over channels is C multiplications. As many
planes as some given planes have are asked for by naming those, since the compiler must know C.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from scratchnet.backends.cpu.vectors import (
    Vector,
    alignment,
    constant_mask,
    fused,
    pointer_to,
    splatted,
)


class Planes(types.Type):
    """The type of C vectors of one kind."""

    def __init__(self, vector: Vector, C: int):
        self.vector, self.C = vector, C
        super().__init__(f"Planes({vector}, {C})")


@register_model(Planes)
class _PlanesModel(models.PrimitiveModel):
    def __init__(self, manager, planes):
        vector = manager.lookup(planes.vector).get_value_type()
        super().__init__(manager, planes, ir.ArrayType(vector, planes.C))


@intrinsic(prefer_literal=True)
def splat_each(typing_context, numbers, lanes):
    """For each number of a tuple a vector of it; lanes is a constant."""
    vector = Vector(numbers.dtype, lanes.literal_value)

    def generate(context, builder, signature, arguments):
        each = cgutils.unpack_tuple(builder, arguments[0], numbers.count)
        return _packed(builder, [splatted(builder, number, vector.lanes) for number in each])

    return Planes(vector, numbers.count)(numbers, lanes), generate


@intrinsic
def zeros_like(typing_context, planes):
    """0 in as many planes."""

    def generate(context, builder, signature, arguments):
        return ir.Constant(arguments[0].type, None)

    return planes(planes), generate


@intrinsic
def load_planes(typing_context, array, index, like):
    """array[:, index : index + lanes], where array has a row for each channel."""

    def generate(context, builder, signature, arguments):
        return _packed(
            builder,
            [
                builder.load(row, align=alignment(like.vector))
                for row in _rows(context, builder, array, *arguments[:2], like)
            ],
        )

    return like(array, types.intp, like), generate


@intrinsic
def store_planes(typing_context, array, index, planes):
    """array[:, index : index + lanes] = planes."""

    def generate(context, builder, signature, arguments):
        rows = _rows(context, builder, array, *arguments[:2], planes)
        for vector, row in zip(_unpacked(builder, arguments[2]), rows, strict=True):
            builder.store(vector, row, align=alignment(planes.vector))

    return types.void(array, types.intp, planes), generate


@intrinsic
def load_pixels(typing_context, array, index, count, like):
    """The pixels from element `index` on: only the first `count`, then 0.

    Of an array of another type the numbers are converted.
    """

    def generate(context, builder, signature, arguments):
        lanes, C = like.vector.lanes, like.C
        stored = Vector(array.dtype, lanes)
        zero = ir.Constant(context.get_value_type(stored), None)
        parts = []
        for place, wanted in _parts(context, builder, array, *arguments[:3], C, stored):
            part = _masked(builder, "load", stored, zero.type, place, wanted, zero)
            parts.append(_converted(context, builder, part, stored, like.vector))
        elements = [[divmod(e * C + c, lanes) for e in range(lanes)] for c in range(C)]
        return _packed(builder, [_gathered(builder, parts, places) for places in elements])

    return like(array, types.intp, types.intp, like), generate


@intrinsic
def store_pixels(typing_context, array, index, count, planes):
    """The opposite of load_pixels: the first `count` pixels are written, no others."""

    def generate(context, builder, signature, arguments):
        lanes, C = planes.vector.lanes, planes.C
        vectors = _unpacked(builder, arguments[3])
        stored = Vector(array.dtype, lanes)
        parts = _parts(context, builder, array, *arguments[:3], C, stored)
        for part, (place, wanted) in enumerate(parts):
            elements = range(part * lanes, (part + 1) * lanes)
            vector = _gathered(builder, vectors, [divmod(e, C)[::-1] for e in elements])
            vector = _converted(context, builder, vector, planes.vector, stored)
            _masked(builder, "store", stored, ir.VoidType(), place, wanted, vector)

    return types.void(array, types.intp, types.intp, planes), generate


@intrinsic
def prefetch_pixels(typing_context, array, index, like):
    """Have the memory of the pixels from element `index` on brought closer; it may end before."""

    def generate(context, builder, signature, arguments):
        numbers = [ir.Constant(ir.IntType(32), number) for number in (0, 2, 1)]  # read, L2, data
        for part in range(like.C):
            first = ir.Constant(arguments[1].type, part * like.vector.lanes)
            index = builder.add(arguments[1], first)
            place = pointer_to(context, builder, array, arguments[0], index, like.vector)
            kind = ir.FunctionType(ir.VoidType(), [place.type, *(n.type for n in numbers)])
            prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            builder.call(prefetch, [place, *numbers])

    return types.void(array, types.intp, like), generate


@intrinsic
def dot(typing_context, a, b, c):
    """c + the sum of a[plane] * b[plane] over the planes."""

    def generate(context, builder, signature, arguments):
        total = arguments[2]
        factors = zip(*(_unpacked(builder, planes) for planes in arguments[:2]), strict=True)
        for a_plane, b_plane in factors:
            total = fused(builder, c, a_plane, b_plane, total)
        return total

    return c(a, b, c), generate


@intrinsic
def fma_each(typing_context, a, b, c):
    """a * b[plane] + c[plane] for each plane."""

    def generate(context, builder, signature, arguments):
        pairs = zip(*(_unpacked(builder, planes) for planes in arguments[1:]), strict=True)
        return _packed(builder, [fused(builder, a, arguments[0], *pair) for pair in pairs])

    return c(a, b, c), generate


@intrinsic
def beside(typing_context, *parts):
    """Vectors or planes of one kind as planes, in this order."""
    vector = getattr(parts[0], "vector", parts[0])
    planes = Planes(vector, sum(getattr(part, "C", 1) for part in parts))

    def generate(context, builder, signature, arguments):
        vectors = []
        for part, value in zip(parts, cgutils.unpack_tuple(builder, arguments[0]), strict=True):
            vectors += [value] if isinstance(part, Vector) else _unpacked(builder, value)
        return _packed(builder, vectors)

    return planes(types.StarArgTuple(parts)), generate


@intrinsic(prefer_literal=True)
def half(typing_context, planes, which):
    """The first (0) or the second (1) half of the planes; which is a constant."""
    part = Planes(planes.vector, planes.C // 2)
    first = which.literal_value * part.C

    def generate(context, builder, signature, arguments):
        return _packed(builder, _unpacked(builder, arguments[0])[first : first + part.C])

    return part(planes, which), generate


@intrinsic
def where_wins(typing_context, x, best, a, b):
    """a where x is larger than best, or NaN; else b."""

    def generate(context, builder, signature, arguments):
        planes = []
        each = zip(*(_unpacked(builder, value) for value in arguments), strict=True)
        for x_c, best_c, a_c, b_c in each:
            larger = builder.fcmp_ordered(">", x_c, best_c)
            nan = builder.fcmp_unordered("uno", x_c, x_c)
            planes.append(builder.select(builder.or_(larger, nan), a_c, b_c))
        return _packed(builder, planes)

    return b(x, best, a, b), generate


@intrinsic
def where_equal(typing_context, a, b, values):
    """The values where a equals b, else 0."""

    def generate(context, builder, signature, arguments):
        planes = []
        each = zip(*(_unpacked(builder, value) for value in arguments), strict=True)
        for a_c, b_c, value in each:
            equal = builder.fcmp_ordered("==", a_c, b_c)
            planes.append(builder.select(equal, value, ir.Constant(value.type, None)))
        return _packed(builder, planes)

    return values(a, b, values), generate


def _packed(builder, vectors):
    planes = ir.Constant(ir.ArrayType(vectors[0].type, len(vectors)), ir.Undefined)
    for c, vector in enumerate(vectors):
        planes = builder.insert_value(planes, vector, c)
    return planes


def _unpacked(builder, planes):
    return [builder.extract_value(planes, c) for c in range(planes.type.count)]


def _rows(context, builder, array_type, array, index, planes):
    """Pointers to array[c, index] for each c."""
    shape = context.make_array(array_type)(context, builder, array).shape
    _, row = cgutils.unpack_tuple(builder, shape)
    for _ in range(planes.C):
        yield pointer_to(context, builder, array_type, array, index, planes.vector)
        index = builder.add(index, row)


def _parts(context, builder, array_type, array, index, count, C, stored):
    """Where each `lanes` elements of some pixels begin, and which are of the first `count`."""
    elements = builder.trunc(builder.mul(count, ir.Constant(count.type, C)), ir.IntType(32))
    elements = splatted(builder, elements, stored.lanes)
    for first in range(0, C * stored.lanes, stored.lanes):
        place = builder.add(index, ir.Constant(index.type, first))
        wanted = constant_mask(range(first, first + stored.lanes))
        wanted = builder.icmp_signed("<", wanted, elements)
        yield pointer_to(context, builder, array_type, array, place, stored), wanted


def _masked(builder, action, stored, result, place, wanted, vector):
    """A load or store of the wanted lanes only, the memory of others is not touched; a load takes
    them from `vector`.
    """
    letter = "f" if isinstance(stored.element, types.Float) else "i"
    name = f"llvm.masked.{action}.v{stored.lanes}{letter}{stored.element.bitwidth}.p0"
    align = ir.Constant(ir.IntType(32), alignment(stored))
    arguments = (
        [place, align, wanted, vector] if action == "load" else [vector, place, align, wanted]
    )
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _converted(context, builder, vector, source, target):
    """Between a float and an unsigned type."""
    kind = context.get_value_type(target)
    if source.element == target.element:
        return vector
    if isinstance(target.element, types.Float):
        return builder.uitofp(vector, kind)
    return builder.fptoui(vector, kind)


def _gathered(builder, vectors, places):
    """A vector of the lanes at places (number of the vector, lane), shuffled in one by one."""
    lanes = len(places)
    result = vectors[0]
    for number in range(1, len(vectors)):
        mask = [
            lanes + lane if source == number else lane if number == 1 else e
            for e, (source, lane) in enumerate(places)
        ]
        result = builder.shuffle_vector(result, vectors[number], constant_mask(mask))
    return result
