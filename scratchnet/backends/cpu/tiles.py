"""Inner loops that keep a tile of sums in vector registers: all of convolution is built on them.

    product_tile    c[r, :] (+)= sum_k a[r, k] * b[k, :]       dense products and direct convolution
    scaled_tile     c[t, :] +=   sum_e value[e] * b[e, t, :]   sums over the winners of a pooling
    linear_map      c[r, :] =    sum_k matrix[r][k] * a[k, :]  Winograd's transforms

The compiler vectorises a loop, but keeps its sums in memory; a tile of sums in registers lets each
number that is loaded serve many multiply-adds. So the loops are written in LLVM's language: one
vector is 64 bytes (16 float32, 8 float64), which is a register of AVX-512; elsewhere the compiler
splits it. Where a row of `a`, `b` or `c` starts is read from a table, so that the rows may be
pixels of an image, taps of a window or rows of a matrix alike: no window is ever copied. Arrays are
one-dimensional and contiguous; bounds are not checked.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

VECTOR_BYTES = 64
ROWS = 4  # of a product tile, two vectors wide: eight sums hide the latency of a multiply-add
COLUMNS = {4: 32, 8: 16}  # of a product tile, by the bytes of a number
INDEX = ir.IntType(64)


class _Builder:
    """Loads, stores and multiply-adds of vectors, on the arrays of one call."""

    def __init__(self, context, builder, signature, arguments):
        self.context, self.builder = context, builder
        self.signature, self.arguments = signature, arguments
        element = signature.args[0].dtype
        self.lanes = VECTOR_BYTES * 8 // element.bitwidth
        self.scalar = context.get_value_type(element)
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.align = element.bitwidth // 8
        name = f"llvm.fma.v{self.lanes}f{element.bitwidth}"
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        self.fma_function = cgutils.get_or_insert_function(builder.module, kind, name)

    def data(self, i):
        """The first element of argument i, an array."""
        kind = self.signature.args[i]
        return self.context.make_array(kind)(self.context, self.builder, self.arguments[i]).data

    def element(self, data, index):
        return self.builder.load(self.builder.gep(data, [index]))

    def pointer(self, data, index, v):
        """To vector number v after data[index]."""
        first = self.builder.add(index, INDEX(v * self.lanes))
        return self.builder.bitcast(self.builder.gep(data, [first]), self.vector.as_pointer())

    def load(self, data, index, v):
        return self.builder.load(self.pointer(data, index, v), align=self.align)

    def store(self, value, data, index, v):
        self.builder.store(value, self.pointer(data, index, v), align=self.align)

    def splat(self, number):
        """The number in every lane."""
        undefined = ir.Constant(ir.VectorType(number.type, self.lanes), ir.Undefined)
        one = self.builder.insert_element(undefined, number, ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(one, undefined, mask)

    def splat_bytes(self, number):
        """The number's lowest byte in every lane."""
        return self.splat(self.builder.trunc(number, ir.IntType(8)))

    def fma(self, a, b, c):
        return self.builder.call(self.fma_function, [a, b, c])

    def zeros(self, count):
        """Sums on the stack, which the compiler moves to registers: their indices are constants."""
        zero = ir.Constant(self.vector, None)
        return [cgutils.alloca_once_value(self.builder, zero) for _ in range(count)]


@intrinsic(prefer_literal=True)
def product_tile(
    typing_context, a, a0, rows, r0, steps, run, stride, b, b0, b_row, c, c0, c_row, more, R, V
):
    """c[c0 + r*c_row + :] (+)= sum_{s,e} a[a0 + rows[r0+r] + steps[s] + e*stride] * b[k, :].

    for r < R, columns of V vectors; e < run, k = s*run + e, b[k, :] = b[b0 + k*b_row + :].
    R, V   constants
    more   add to c instead of setting it
    """
    R, V = R.literal_value, V.literal_value

    def generate(context, builder, signature, arguments):
        at = _Builder(context, builder, signature, arguments)
        _, a0, _, r0, _, run, stride, _, b0, b_row, _, c0, c_row, more, _, _ = arguments
        a, rows, steps, b, c = (at.data(i) for i in (0, 2, 4, 7, 10))
        sums = [at.zeros(V) for _ in range(R)]
        with builder.if_then(more):
            for r in range(R):
                row = builder.add(c0, builder.mul(INDEX(r), c_row))
                for v in range(V):
                    builder.store(at.load(c, row, v), sums[r][v])
        starts = [builder.add(a0, at.element(rows, builder.add(r0, INDEX(r)))) for r in range(R)]
        count = context.make_array(signature.args[4])(context, builder, arguments[4]).nitems
        with cgutils.for_range(builder, count) as outer:
            step = at.element(steps, outer.index)
            firsts = [builder.gep(a, [builder.add(start, step)]) for start in starts]
            k = builder.mul(outer.index, run)
            with cgutils.for_range(builder, run) as inner:
                e = builder.mul(inner.index, stride)
                b_first = builder.add(b0, builder.mul(builder.add(k, inner.index), b_row))
                columns = [at.load(b, b_first, v) for v in range(V)]
                for r in range(R):
                    number = at.splat(at.element(firsts[r], e))
                    for v in range(V):
                        total = at.fma(number, columns[v], builder.load(sums[r][v]))
                        builder.store(total, sums[r][v])
        for r in range(R):
            row = builder.add(c0, builder.mul(INDEX(r), c_row))
            for v in range(V):
                at.store(builder.load(sums[r][v]), c, row, v)
        return context.get_dummy_value()

    i = types.intp
    table = types.Array(i, 1, "C")
    sizes = types.literal(R), types.literal(V)
    arguments = (a, i, table, i, table, i, i, b, i, i, c, i, i, types.boolean, *sizes)
    return types.void(*arguments), generate


@intrinsic(prefer_literal=True)
def scaled_tile(typing_context, values, starts, first, last, b, b0, b_rows, c, c0, c_rows, T, V):
    """c[c0 + c_rows[t] + :] += sum_e values[e] * b[b0 + starts[e] + b_rows[t] + :].

    for t < T, columns of V vectors; first <= e < last
    T, V   constants
    """
    T, V = T.literal_value, V.literal_value

    def generate(context, builder, signature, arguments):
        at = _Builder(context, builder, signature, arguments)
        first, last, b0, c0 = (arguments[i] for i in (2, 3, 5, 8))
        values, starts, b, b_rows, c, c_rows = (at.data(i) for i in (0, 1, 4, 6, 7, 9))
        sums = [at.zeros(V) for _ in range(T)]
        taps = [builder.add(b0, at.element(b_rows, INDEX(t))) for t in range(T)]
        with cgutils.for_range(builder, builder.sub(last, first)) as loop:
            e = builder.add(first, loop.index)
            number = at.splat(at.element(values, e))
            start = at.element(starts, e)
            for t in range(T):
                row = builder.add(start, taps[t])
                for v in range(V):
                    total = at.fma(number, at.load(b, row, v), builder.load(sums[t][v]))
                    builder.store(total, sums[t][v])
        for t in range(T):
            row = builder.add(c0, at.element(c_rows, INDEX(t)))
            for v in range(V):
                total = builder.fadd(at.load(c, row, v), builder.load(sums[t][v]))
                at.store(total, c, row, v)
        return context.get_dummy_value()

    i = types.intp
    table = types.Array(i, 1, "C")
    sizes = types.literal(T), types.literal(V)
    return types.void(values, table, i, i, b, i, table, c, i, table, *sizes), generate


def linear_map(matrix: tuple[tuple[float, ...], ...]):
    """The compiled function that multiplies a constant matrix with a column of vectors.

        map(a, a0, a_step, c, c0, c_step)
        c[c0 + r*c_step + :] = sum_k matrix[r][k] * a[a0 + k*a_step + :]

    one vector wide; zeros of the matrix cost nothing
    """

    @intrinsic
    def apply(typing_context, a, a0, a_step, c, c0, c_step):
        def generate(context, builder, signature, arguments):
            at = _Builder(context, builder, signature, arguments)
            _, a0, a_step, _, c0, c_step = arguments
            a, c = at.data(0), at.data(3)
            column = [
                at.load(a, builder.add(a0, builder.mul(INDEX(k), a_step)), 0)
                for k in range(len(matrix[0]))
            ]
            for r, row in enumerate(matrix):
                total = ir.Constant(at.vector, None)
                for number, vector in zip(row, column, strict=True):
                    if number:
                        total = at.fma(at.splat(at.scalar(number)), vector, total)
                at.store(total, c, builder.add(c0, builder.mul(INDEX(r), c_step)), 0)
            return context.get_dummy_value()

        i = types.intp
        return types.void(a, i, i, c, i, i), generate

    return apply


@intrinsic
def pooled_vector(typing_context, z, z0, z_step, z_row, size, bias, b0, y, argmax, y0):
    """One vector of a max pooling: y, argmax [y0 + :] of z[z0 + u*z_row + v*z_step + :] + bias.

    u, v < size; y is cut off below 0, and argmax size * size where nothing is above 0
    """

    def generate(context, builder, signature, arguments):
        at = _Builder(context, builder, signature, arguments)
        _, z0, z_step, z_row, size, _, b0, _, _, y0 = arguments
        z, bias, y, argmax = (at.data(i) for i in (0, 5, 7, 8))
        bytes_ = ir.VectorType(ir.IntType(8), at.lanes)
        zero = ir.Constant(at.vector, None)
        lowest = at.splat(at.scalar(float("-inf")))
        best = cgutils.alloca_once_value(builder, lowest)
        winner = cgutils.alloca_once_value(builder, ir.Constant(bytes_, None))
        with cgutils.for_range(builder, size) as u, cgutils.for_range(builder, size) as v:
            step = builder.add(builder.mul(u.index, z_row), builder.mul(v.index, z_step))
            value = at.load(z, builder.add(z0, step), 0)
            tap = builder.add(builder.mul(u.index, size), v.index)
            larger = builder.or_(  # a NaN must not hide behind a number
                builder.fcmp_ordered(">", value, builder.load(best)),
                builder.fcmp_unordered("uno", value, value),
            )
            builder.store(builder.select(larger, value, builder.load(best)), best)
            taps = at.splat_bytes(tap)
            builder.store(builder.select(larger, taps, builder.load(winner)), winner)
        value = builder.fadd(builder.load(best), at.load(bias, b0, 0))
        at_most_zero = builder.fcmp_ordered("<=", value, zero)  # a NaN is not, and stays
        at.store(builder.select(at_most_zero, zero, value), y, y0, 0)
        above = builder.fcmp_ordered(">", value, zero)
        closed = at.splat_bytes(builder.mul(size, size))
        taps = builder.select(above, builder.load(winner), closed)
        into = builder.bitcast(builder.gep(argmax, [y0]), bytes_.as_pointer())
        builder.store(taps, into, align=1)
        return context.get_dummy_value()

    i = types.intp
    return types.void(z, i, i, i, i, bias, i, y, argmax, i), generate


@intrinsic
def spread_vector(typing_context, dy, argmax, y0, tap, dz, z0):
    """dz[z0 + :] = dy[y0 + :] where argmax[y0 + :] is tap, else 0: one vector."""

    def generate(context, builder, signature, arguments):
        at = _Builder(context, builder, signature, arguments)
        _, _, y0, tap, _, z0 = arguments
        dy, argmax, dz = (at.data(i) for i in (0, 1, 4))
        bytes_ = ir.VectorType(ir.IntType(8), at.lanes)
        source = builder.bitcast(builder.gep(argmax, [y0]), bytes_.as_pointer())
        wins = builder.icmp_unsigned("==", builder.load(source, align=1), at.splat_bytes(tap))
        zero = ir.Constant(at.vector, None)
        at.store(builder.select(wins, at.load(dy, y0, 0), zero), dz, z0, 0)
        return context.get_dummy_value()

    i = types.intp
    return types.void(dy, argmax, i, i, dz, i), generate
