"""Vectors as values inside compiled functions: load, fma, store, spelled out.

The compiler vectorises one loop at a time and keeps its sums in memory where it cannot prove that
arrays do not overlap. A kernel written with these keeps a tile of sums in registers, whatever the
sizes. A vector of 16 float32 is one AVX-512 register, a longer one several; on a machine with
shorter registers the compiler splits them. The functions take an array that is one-dimensional and
contiguous, and check no bounds.
"""

import math
from decimal import Decimal

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model


class Vector(types.Type):
    """The type of `lanes` numbers of one float type."""

    def __init__(self, element: types.Float, lanes: int):
        self.element, self.lanes = element, lanes
        super().__init__(f"Vector({element}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        element = manager.lookup(vector.element).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.lanes))


@intrinsic(prefer_literal=True)
def load(typing_context, array, index, lanes):
    """array[index : index + lanes] as a vector; lanes is a constant."""
    vector = Vector(array.dtype, lanes.literal_value)

    def generate(context, builder, signature, arguments):
        pointer = pointer_to(context, builder, array, *arguments[:2], vector)
        return builder.load(pointer, align=alignment(vector))

    return vector(array, types.intp, lanes), generate


@intrinsic
def store(typing_context, array, index, vector):
    """array[index : index + lanes] = vector."""

    def generate(context, builder, signature, arguments):
        pointer = pointer_to(context, builder, array, *arguments[:2], vector)
        builder.store(arguments[2], pointer, align=alignment(vector))

    return types.void(array, types.intp, vector), generate


@intrinsic(prefer_literal=True)
def splat(typing_context, number, lanes):
    """The same number in every lane; lanes is a constant."""
    vector = Vector(number, lanes.literal_value)

    def generate(context, builder, signature, arguments):
        return splatted(builder, arguments[0], vector.lanes)

    return vector(number, lanes), generate


@intrinsic(prefer_literal=True)
def broadcast(typing_context, array, index, lanes):
    """array[index] in every lane; lanes is a constant."""
    vector = Vector(array.dtype, lanes.literal_value)

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        number = builder.load(builder.gep(data, [arguments[1]]))
        return splatted(builder, number, vector.lanes)

    return vector(array, types.intp, lanes), generate


@intrinsic
def fma(typing_context, a, b, c):
    """a * b + c in each lane, rounded once."""

    def generate(context, builder, signature, arguments):
        return fused(builder, a, *arguments)

    return a(a, a, a), generate


@intrinsic
def relu(typing_context, vector):
    """0 where a lane is <= 0, else the lane: a NaN stays."""

    def generate(context, builder, signature, arguments):
        value = arguments[0]
        zero = ir.Constant(value.type, None)
        return builder.select(builder.fcmp_ordered("<=", value, zero), zero, value)

    return vector(vector), generate


@intrinsic
def where_positive(typing_context, test, a, b):
    """The lanes of a where test is > 0, else those of b."""

    def generate(context, builder, signature, arguments):
        test_value, a_value, b_value = arguments
        zero = ir.Constant(test_value.type, None)
        return builder.select(builder.fcmp_ordered(">", test_value, zero), a_value, b_value)

    return a(test, a, b), generate


@intrinsic
def larger(typing_context, a, b):
    """The larger of the two in each lane; b where a is a NaN."""

    def generate(context, builder, signature, arguments):
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return a(a, a), generate


@intrinsic
def divide(typing_context, a, b):
    """a / b in each lane."""

    def generate(context, builder, signature, arguments):
        return builder.fdiv(*arguments)

    return a(a, a), generate


@intrinsic
def exp(typing_context, vector):
    """e to the power of each lane, for lanes <= 0: -inf gives 0, as does what would be subnormal.

    x = n * log(2) + r with a whole n leaves |r| <= log(2) / 2, where the Taylor series' next term
    is below the rounding error. 2^n is written into the bits of the exponent. log(2) is taken in
    two parts: n times the first, of few bits, is exact. A NaN stays.
    """
    bits = vector.element.bitwidth
    terms, mantissa, least, part = {32: (8, 23, -126, 16), 64: (14, 52, -1022, 40)}[bits]
    log2 = Decimal(2).ln()
    log2_high = math.floor(log2 * 2**part) / 2**part

    def generate(context, builder, signature, arguments):
        [x] = arguments
        integers = ir.VectorType(ir.IntType(bits), vector.lanes)

        def constant(number, kind=x.type):
            return ir.Constant(kind, [number] * vector.lanes)

        def select(comparison, a, b, yes, no):
            return builder.select(builder.fcmp_ordered(comparison, a, b), yes, no)

        lowest = constant(least * math.log(2))
        bounded = select("<", x, lowest, lowest, x)
        kind = ir.FunctionType(x.type, [x.type])
        rint = cgutils.get_or_insert_function(
            builder.module, kind, f"llvm.rint.v{vector.lanes}f{bits}"
        )
        n = builder.call(rint, [builder.fmul(bounded, constant(1 / math.log(2)))])
        n = select("==", n, n, n, constant(0.0))  # of a NaN there is no integer
        r = fused(builder, vector, n, constant(-log2_high), bounded)
        r = fused(builder, vector, n, constant(float(Decimal(log2_high) - log2)), r)
        series = constant(0.0)
        for k in reversed(range(terms)):
            series = fused(builder, vector, series, r, constant(1 / math.factorial(k)))
        exponent = builder.add(builder.fptosi(n, integers), constant(1 - least, integers))
        power = builder.bitcast(builder.shl(exponent, constant(mantissa, integers)), x.type)
        return select("<", x, lowest, constant(0.0), builder.fmul(series, power))

    return vector(vector), generate


@intrinsic
def first_lanes(typing_context, vector, count):
    """The first count lanes, and 0 in the others."""

    def generate(context, builder, signature, arguments):
        value, number = arguments
        number = builder.trunc(number, ir.IntType(32))
        wanted = builder.icmp_signed(
            "<", constant_mask(range(vector.lanes)), splatted(builder, number, vector.lanes)
        )
        return builder.select(wanted, value, ir.Constant(value.type, None))

    return vector(vector, types.intp), generate


@intrinsic
def lane_sum(typing_context, vector):
    """The sum of a vector's lanes, by halves while they are even in number, then one by one."""

    def generate(context, builder, signature, arguments):
        value, lanes = arguments[0], vector.lanes
        while lanes % 2 == 0:
            lanes //= 2
            low, high = (
                builder.shuffle_vector(value, value, constant_mask(range(first, first + lanes)))
                for first in (0, lanes)
            )
            value = builder.fadd(low, high)
        total, *others = (
            builder.extract_element(value, ir.Constant(ir.IntType(32), lane))
            for lane in range(lanes)
        )
        for lane in others:
            total = builder.fadd(total, lane)
        return total

    return vector.element(vector), generate


@intrinsic
def columns_to_rows(typing_context, a, a0, a_row, b, b0, b_row):
    """b[b0 + c*b_row + r] = a[a0 + r*a_row + c] for r < 16, c < 8."""

    def generate(context, builder, signature, arguments):
        column, row = Vector(a.dtype, 8), Vector(a.dtype, 16)
        parts = [
            builder.load(
                _row_pointer(context, builder, signature, arguments, 0, r, column),
                align=alignment(column),
            )
            for r in range(16)
        ]
        both = constant_mask(range(16))
        rows = [builder.shuffle_vector(parts[r], parts[r + 8], both) for r in range(8)]
        for c, value in enumerate(_transpose_halves(builder, rows)):
            into = _row_pointer(context, builder, signature, arguments, 3, c, row)
            builder.store(value, into, align=alignment(row))

    return types.void(a, types.intp, types.intp, b, types.intp, types.intp), generate


@intrinsic
def rows_to_columns(typing_context, a, a0, a_row, b, b0, b_row):
    """b[b0 + r*b_row + c] = a[a0 + c*a_row + r] for r < 16, c < 8."""

    def generate(context, builder, signature, arguments):
        column, row = Vector(a.dtype, 8), Vector(a.dtype, 16)
        rows = [
            builder.load(
                _row_pointer(context, builder, signature, arguments, 0, c, row),
                align=alignment(row),
            )
            for c in range(8)
        ]
        for r, value in enumerate(_transpose_halves(builder, rows)):
            for half in (0, 8):
                part = builder.shuffle_vector(value, value, constant_mask(range(half, half + 8)))
                into = _row_pointer(context, builder, signature, arguments, 3, r + half, column)
                builder.store(part, into, align=alignment(column))

    return types.void(a, types.intp, types.intp, b, types.intp, types.intp), generate


def _transpose_halves(builder, rows):
    """Of eight vectors of 16 lanes, the two squares of 8 x 8 side by side, each transposed.

    Blocks of 1, 2 and 4 lanes change places with those of as many rows below.
    """
    rows = list(rows)
    for block in (1, 2, 4):
        upper = [lane + 16 - block if lane & block else lane for lane in range(16)]
        lower = [lane + 16 if lane & block else lane + block for lane in range(16)]
        for r in (r for r in range(8) if not r & block):
            pair = rows[r], rows[r + block]
            rows[r] = builder.shuffle_vector(*pair, constant_mask(upper))
            rows[r + block] = builder.shuffle_vector(*pair, constant_mask(lower))
    return rows


def _row_pointer(context, builder, signature, arguments, i, row, vector):
    """To row number `row` of the matrix that arguments i, i + 1 and i + 2 tell of."""
    data = context.make_array(signature.args[i])(context, builder, arguments[i]).data
    step = builder.mul(arguments[i + 2], ir.Constant(ir.IntType(64), row))
    first = builder.gep(data, [builder.add(arguments[i + 1], step)])
    return builder.bitcast(first, context.get_value_type(vector).as_pointer())


def fused(builder, vector, a, b, c):
    name = f"llvm.fma.v{vector.lanes}f{vector.element.bitwidth}"
    kind = ir.FunctionType(a.type, [a.type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])


def splatted(builder, number, lanes):
    undefined = ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined)
    one = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, undefined, constant_mask([0] * lanes))


def pointer_to(context, builder, array_type, array, index, vector):
    data = context.make_array(array_type)(context, builder, array).data
    first = builder.gep(data, [index])
    return builder.bitcast(first, context.get_value_type(vector).as_pointer())


def alignment(vector):
    return vector.element.bitwidth // 8


def constant_mask(lanes):
    lanes = list(lanes)
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
