"""Short vectors for Numba kernels: four 64-bit lanes or 32 bytes as one value with operators.

Compiled, a vector is an LLVM vector, which LLVM lowers to whatever the CPU has: one AVX2 register, two SSE2 or
NEON registers. With the JIT off (``NUMBA_DISABLE_JIT=1``) the very same kernels run on NumPy arrays of 4 or 32
elements: the body of each function below is its plain NumPy equivalent, the decorator's last argument builds
the LLVM instructions that replace it. Operators (+ - * / & | ~) are NumPy's own or their LLVM counterparts.

Nothing here checks its arguments; loads and stores take an array (or ``pointer(array)``) and an element index.

This is the only module that builds LLVM instructions. It does so through ``numba.extending`` and llvmlite, which may
change with every release of Numba: ``TESTED_NUMBA`` says with which releases the tests have run.
"""

from __future__ import annotations

import inspect
import operator
import warnings
from collections.abc import Callable
from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

TESTED_NUMBA: Final = ((0, 62), (0, 68))
"""Oldest and newest release of Numba that all of these instructions were tested with; pyproject.toml asks for these."""


def check_numba(version: str) -> None:
    """Refuse a Numba that is too old for these instructions, and warn of one that is newer than any tested."""
    oldest, newest = (".".join(map(str, release)) for release in TESTED_NUMBA)
    release = tuple(int(number) for number in version.split(".")[:2])
    if release < TESTED_NUMBA[0]:
        raise ImportError(
            f"Numba {version} is installed, but the vector kernels need {oldest} or newer: "
            f"pip install 'numba>={oldest}'"
        )
    if release > TESTED_NUMBA[1]:
        warnings.warn(
            f"Numba {version} is newer than {newest}, the newest release that the vector kernels were tested "
            f"with: if compiling fails, pip install 'numba<={newest}.*'",
            RuntimeWarning,
            stacklevel=2,
        )


check_numba(numba.__version__)


class Vector(types.Type):
    """`lanes` numbers of the Numba type `element`."""

    def __init__(self, element: Any, lanes: int) -> None:
        self.element, self.lanes = element, lanes
        super().__init__(name=f"Vector({element} x {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, ir.VectorType(_LLVM[vector.element], vector.lanes))


_I8, _I32, _I64, _DOUBLE = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.DoubleType()
_LLVM = {types.float64: _DOUBLE, types.int64: _I64, types.uint8: _I8}
_F = Vector(types.float64, 4)
_I = Vector(types.int64, 4)
_B = Vector(types.uint8, 32)

PLAIN: dict[str, Callable[..., Any]] = {}
"""The plain NumPy function behind every instruction, by name."""


def _instruction(typing: Any, build: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function as the LLVM instructions of `build`; with the JIT off it stays the function it is.

    `typing` is a Numba signature or a function from argument types to one. ``build(builder, *values)`` returns
    the result; where it takes `scope`, that is (context, signature).
    """

    def decorate(plain: Callable[..., Any]) -> Any:
        PLAIN[plain.__name__] = plain
        if numba.config.DISABLE_JIT:
            return plain
        wants_scope = "scope" in inspect.signature(build).parameters

        def typed(typingctx: Any, *args: Any) -> Any:
            sig = typing(*args) if inspect.isfunction(typing) else typing

            def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
                extra = {"scope": (context, sig)} if wants_scope else {}
                result = build(builder, *values, **extra)
                if isinstance(result, list):
                    return context.make_tuple(builder, sig.return_type, result)
                return context.get_dummy_value() if sig.return_type == types.void else result

            return sig, codegen

        own = list(inspect.signature(plain).parameters.values())
        context = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in own]
        typed.__signature__ = inspect.Signature([context, *bare])
        typed.__name__ = typed.__qualname__ = plain.__name__
        typed.__doc__ = plain.__doc__
        return intrinsic(typed)

    return decorate


def _splat(builder: Any, scalar: Any, lanes: int = 4) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    vector = builder.insert_element(undefined, scalar, _I32(0))
    return _pick(builder, vector, undefined, [0] * lanes)


def _pick(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """Lanes of a (0, 1, ...) and b (len(a), ...), in the order given."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def _constant(like: Any, values: Any) -> Any:
    count = like.type.count
    return ir.Constant(like.type, values if isinstance(values, list) else [values] * count)


# Operators ---------------------------------------------------------------------------------------------------


def _operator(op: Callable[..., Any], names: dict[Any, str]) -> None:
    @type_callable(op)
    def type_operator(context: Any) -> Any:
        def typer(a: Any, b: Any) -> Any:
            if isinstance(a, Vector) and a.element in names:
                if b == a:
                    return a(a, a)
                if isinstance(b, types.Number):
                    return a(a, a.element)
            return None

        return typer

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = args
        if not isinstance(sig.args[1], Vector):
            b = _splat(builder, b, sig.args[0].lanes)
        return getattr(builder, names[sig.args[0].element])(a, b)

    lower_builtin(op, Vector, Vector)(lower)
    lower_builtin(op, Vector, types.Number)(lower)


_operator(operator.add, {types.float64: "fadd", types.int64: "add"})
_operator(operator.sub, {types.float64: "fsub", types.int64: "sub"})
_operator(operator.mul, {types.float64: "fmul"})
_operator(operator.truediv, {types.float64: "fdiv"})
_operator(operator.and_, {types.int64: "and_", types.uint8: "and_"})
_operator(operator.or_, {types.int64: "or_", types.uint8: "or_"})


@type_callable(operator.invert)
def _type_invert(context: Any) -> Any:
    def typer(a: Any) -> Any:
        return _I(_I) if a == _I else None

    return typer


@lower_builtin(operator.invert, Vector)
def _lower_invert(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.not_(args[0])


# Memory ------------------------------------------------------------------------------------------------------


def _address(builder: Any, scope: Any, array: Any, index: Any, pointee: Any) -> Any:
    """Pointer to `array[index]`, the first argument of the instruction in `scope`."""
    return _address_of(builder, scope[0], scope[1].args[0], array, index, pointee)


def _address_of(builder: Any, context: Any, array_type: Any, array: Any, index: Any, pointee: Any) -> Any:
    if isinstance(array_type, types.Array):
        array = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(array, [index]), pointee.as_pointer())


@_instruction(
    lambda array: types.CPointer(array.dtype)(array),
    lambda builder, array, scope: scope[0].make_array(scope[1].args[0])(scope[0], builder, array).data,
)
def pointer(array: Any) -> Any:
    """The bare address of a contiguous array's first element, to be indexed like a flat array.

    Numba counts the references to an array at every slice and many calls. The count is an atomic addition, which
    waits for all stores in flight: it halved the speed of a kernel that stores its output past the caches.
    """
    return array.reshape(-1)


def _pointing(element: Any) -> Any:
    def build(builder: Any, memory: Any, byte: Any, scope: Any) -> Any:
        array = scope[0].make_array(scope[1].args[0])(scope[0], builder, memory).data
        return builder.bitcast(builder.gep(array, [byte]), _LLVM[element].as_pointer())

    return lambda memory, byte: types.CPointer(element)(memory, types.int64), build


@_instruction(*_pointing(types.int64))
def words_in(memory: Any, byte: Any) -> Any:
    """The address of the int64 that begin at a byte of `memory`; a view of it takes half a second to compile."""
    return memory[byte : byte + (len(memory) - byte) // 8 * 8].view(np.int64)


@_instruction(*_pointing(types.float64))
def floats_in(memory: Any, byte: Any) -> Any:
    """The address of the float64 that begin at a byte of `memory`."""
    return memory[byte : byte + (len(memory) - byte) // 8 * 8].view(np.float64)


@_instruction(*_pointing(types.uint8))
def bytes_in(memory: Any, byte: Any) -> Any:
    """The address of a byte of `memory`."""
    return memory[byte:]


def _loading(vector: Vector) -> Any:
    def build(builder: Any, array: Any, i: Any, scope: Any) -> Any:
        kind = scope[0].get_value_type(vector)
        return builder.load(_address(builder, scope, array, i, kind), align=vector.element.bitwidth // 8)

    return (lambda array, i: vector(array, types.intp)), build


@_instruction(*_loading(_F))
def load_f(array: Any, i: int) -> Any:
    """Four float64 from index i on."""
    return array[i : i + 4].copy()


@_instruction(*_loading(_I))
def load_i(array: Any, i: int) -> Any:
    """Four int64 from index i on."""
    return array[i : i + 4].copy()


@_instruction(*_loading(_B))
def load_b(array: Any, i: int) -> Any:
    """32 uint8 from index i on."""
    return array[i : i + 32].copy()


def _build_store(builder: Any, array: Any, i: Any, vector: Any, scope: Any) -> None:
    address = _address(builder, scope, array, i, vector.type)
    builder.store(vector, address, align=scope[1].args[2].element.bitwidth // 8)


@_instruction(lambda array, i, vector: types.void(array, types.intp, vector), _build_store)
def store(array: Any, i: int, vector: Any) -> None:
    """Write the lanes of a vector from index i on."""
    array[i : i + len(vector)] = vector


def _build_store_nontemporal(builder: Any, array: Any, i: Any, vector: Any, scope: Any) -> None:
    written = builder.store(vector, _address(builder, scope, array, i, vector.type), align=32)
    written.set_metadata("nontemporal", builder.module.add_metadata([_I32(1)]))


@_instruction(lambda array, i, vector: types.void(array, types.intp, vector), _build_store_nontemporal)
def store_nontemporal(array: Any, i: int, vector: Any) -> None:
    """``store`` to an address that is a multiple of 32, past the caches: the old bytes are never fetched.

    Other threads see it only after ``fence()``.
    """
    array[i : i + len(vector)] = vector


def _build_prefetch(builder: Any, array: Any, i: Any, scope: Any) -> None:
    address = _address(builder, scope, array, i, _I8)
    kind = ir.FunctionType(ir.VoidType(), [address.type, _I32, _I32, _I32])
    wanted = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
    # To read, in all caches, data.
    builder.call(wanted, [address, _I32(0), _I32(3), _I32(1)])


@_instruction(lambda array, i: types.void(array, types.intp), _build_prefetch)
def prefetch(array: Any, i: int) -> None:
    """Let the CPU fetch element i, which will be read soon; an index outside the array is harmless."""


@_instruction(types.void(), lambda builder: builder.fence("seq_cst") and None)
def fence() -> None:
    """Finish every store before it, also as other threads see them, before anything after it begins."""


def _loading_bars(columns: int) -> Any:
    def build(builder: Any, bars: Any, i: Any, scope: Any) -> list[Any]:
        kind = ir.VectorType(_DOUBLE, 4)
        v = [
            builder.load(_address(builder, scope, bars, builder.add(i, _I64(4 * k)), kind), align=8)
            for k in range(columns)
        ]
        # Joined to one vector; the lanes that fill it up are never picked.
        while len(v) > 1:
            v = [
                _pick(builder, v[k], v[min(k + 1, len(v) - 1)], list(range(2 * v[0].type.count)))
                for k in range(0, len(v), 2)
            ]
        lanes = [[f + columns * k for k in range(4)] for f in range(columns)]
        return [_pick(builder, v[0], v[0], four) for four in lanes]

    return (lambda bars, i: types.UniTuple(_F, columns)(bars, types.intp)), build


@_instruction(*_loading_bars(5))
def load_bars(bars: Any, i: int) -> Any:
    """Four rows of five float64 from index i on, as five vectors: one a column."""
    return tuple(bars[i : i + 20].reshape(4, 5).T.copy())


@_instruction(*_loading_bars(6))
def load_wide_bars(bars: Any, i: int) -> Any:
    """Four rows of six float64 from index i on, as six vectors: one a column."""
    return tuple(bars[i : i + 24].reshape(4, 6).T.copy())


# Four float64 ------------------------------------------------------------------------------------------------


@_instruction(_F(types.float64), _splat)
def splat_f(x: float) -> Any:
    """Four times x."""
    return np.full(4, x)


@_instruction(_F(_F, _F), lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))
def lower_of(a: Any, b: Any) -> Any:
    """``a`` where a < b, else ``b``: so ``b`` where one is NaN. One instruction, as ``min`` of CPUs is."""
    return np.where(a < b, a, b)


@_instruction(_F(_F, _F), lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
def higher_of(a: Any, b: Any) -> Any:
    """``a`` where a > b, else ``b``: so ``b`` where one is NaN."""
    return np.where(a > b, a, b)


def _build_absolute(builder: Any, a: Any) -> Any:
    bits = builder.bitcast(a, ir.VectorType(_I64, 4))
    return builder.bitcast(builder.and_(bits, _constant(bits, 0x7FFFFFFFFFFFFFFF)), a.type)


@_instruction(_F(_F), _build_absolute)
def absolute(a: Any) -> Any:
    """|a|"""
    return np.abs(a)


@_instruction(
    _F(_F, _F, _F), lambda builder, a, yes, no: builder.select(builder.fcmp_unordered("uno", a, a), yes, no)
)
def where_nan(a: Any, yes: Any, no: Any) -> Any:
    """``yes`` where a is NaN, else ``no``."""
    return np.where(np.isnan(a), yes, no)


@_instruction(
    _F(_F, _F, _F, _F),
    lambda builder, a, b, yes, no: builder.select(builder.fcmp_ordered(">", a, b), yes, no),
)
def where_higher(a: Any, b: Any, yes: Any, no: Any) -> Any:
    """``yes`` where a > b, else ``no``."""
    return np.where(a > b, yes, no)


@_instruction(_I(_F), lambda builder, a: builder.bitcast(a, ir.VectorType(_I64, 4)))
def bits_of(a: Any) -> Any:
    """The 64 bits of each float64 as an int64."""
    return a.view(np.int64)


# Four int64 --------------------------------------------------------------------------------------------------


@_instruction(_I(types.int64), _splat)
def splat(n: int) -> Any:
    """Four times n."""
    return np.full(4, n, np.int64)


@_instruction(
    _I(types.int64),
    lambda builder, n: builder.add(_splat(builder, n), ir.Constant(ir.VectorType(_I64, 4), [0, 1, 2, 3])),
)
def count_from(n: int) -> Any:
    """n, n + 1, n + 2, n + 3"""
    return np.arange(n, n + 4)


def _build_shift(direction: str) -> Callable[..., Any]:
    def build(builder: Any, v: Any, n: Any, scope: Any) -> Any:
        if "+avx2" in scope[0].codegen().magic_tuple()[2].split(","):
            # AVX2's own shift means exactly this, and LLVM does not always see it in the select below.
            name = {"shl": "psllv", "lshr": "psrlv"}[direction]
            kind = ir.FunctionType(v.type, (v.type, v.type))
            function = builder.module.globals.get(f"llvm.x86.avx2.{name}.q.256") or ir.Function(
                builder.module, kind, f"llvm.x86.avx2.{name}.q.256"
            )
            return builder.call(function, (v, n))
        inside = builder.icmp_unsigned("<", n, _constant(n, 64))
        return builder.select(inside, getattr(builder, direction)(v, n), _constant(v, 0))

    return build


@_instruction(_I(_I, _I), _build_shift("shl"))
def shift_up(v: Any, n: Any) -> Any:
    """v << n, lane by lane; 0 where n is negative or above 63."""
    return np.where((n >= 0) & (n < 64), v << (n & 63), 0)


@_instruction(_I(_I, _I), _build_shift("lshr"))
def shift_down(v: Any, n: Any) -> Any:
    """v >> n of the unsigned lanes; 0 where n is negative or above 63."""
    return np.where((n >= 0) & (n < 64), (v.view(np.uint64) >> (n & 63).view(np.uint64)).view(np.int64), 0)


@_instruction(
    _I(_I, _I, _I, _I), lambda builder, a, b, yes, no: builder.select(builder.icmp_signed(">", a, b), yes, no)
)
def where_above(a: Any, b: Any, yes: Any, no: Any) -> Any:
    """``yes`` where a > b, else ``no``."""
    return np.where(a > b, yes, no)


def _build_interleave(builder: Any, a: Any, b: Any, c: Any) -> list[Any]:
    ab = _pick(builder, a, b, list(range(8)))
    c8 = _pick(builder, c, c, list(range(8)))
    return [_pick(builder, ab, c8, [k % 3 * 4 + k // 3 for k in range(4 * j, 4 * j + 4)]) for j in range(3)]


@_instruction(types.UniTuple(_I, 3)(_I, _I, _I), _build_interleave)
def interleave(a: Any, b: Any, c: Any) -> Any:
    """a0 b0 c0 a1, b1 c1 a2 b2, c2 a3 b3 c3"""
    return tuple(np.stack([a, b, c], 1).reshape(3, 4))


def _build_chain(builder: Any, before: Any, a: Any, b: Any, c: Any, d: Any) -> list[Any]:
    zero = _constant(a, 0)

    def pick(v: Any, lanes: list[int]) -> Any:
        return _pick(builder, v, zero, lanes)

    ends = _pick(builder, _pick(builder, a, b, [0, 1, 2, 3]), c, [3, 4, 4, 4])
    ends = pick(_pick(builder, a, c, [4, 1, 2, 3]), [3, 4, 5, 0])
    return [
        builder.or_(pick(before, [2, 3, 4, 5]), pick(a, [4, 0, 1, 2])),
        builder.or_(b, ends),
        builder.or_(pick(c, [1, 2, 3, 4]), pick(d, [4, 5, 0, 1])),
    ]


@_instruction(types.UniTuple(_I, 3)(_I, _I, _I, _I, _I), _build_chain)
def chain(before: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """OR vectors that begin three lanes apart: a in lane 1 of 12, b in 4, c in 7, d in 10.

    `before` begins in lane -2, and the last two lanes of d do not fit: it is the next call's `before`.
    """
    row = np.zeros(16, np.int64)
    for first, v in zip((-2, 1, 4, 7, 10), (before, a, b, c, d), strict=True):
        row[2 + first : 6 + first] |= v
    return tuple(row[2:14].reshape(3, 4))


# 32 bytes ----------------------------------------------------------------------------------------------------


def _build_ink(builder: Any, plane: Any, mask: Any) -> Any:
    return builder.sext(builder.icmp_unsigned("==", builder.and_(plane, mask), mask), plane.type)


@_instruction(_B(_B, _B), _build_ink)
def ink(plane: Any, mask: Any) -> Any:
    """255 where `plane` has all bits of `mask`, else 0."""
    return np.where((plane & mask) == mask, np.uint8(255), np.uint8(0))


def _repeat(builder: Any, count: Any, body: Callable[[Any], Any]) -> None:
    """Build a loop that runs the instructions of ``body(k)`` for k = 0 to count - 1."""
    before = builder.block
    loop, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.cbranch(builder.icmp_signed(">", count, _I64(0)), loop, after)
    builder.position_at_end(loop)
    k = builder.phi(_I64)
    body(k)
    following = builder.add(k, _I64(1))
    k.add_incoming(_I64(0), before)
    k.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    builder.position_at_end(after)


def _build_store_planes(
    builder: Any, words: Any, i: Any, groups: Any, planes: Any, at: Any, width: Any, copies: Any, scope: Any
) -> None:
    context, sig = scope
    two_words = ir.VectorType(_I8, 16)

    def pair(k: int) -> Any:
        return builder.load(
            _address_of(builder, context, sig.args[0], words, builder.add(i, _I64(k)), two_words), align=8
        )

    # Transpose 32 words of 8 bytes. A vector holds columns k, k+1 in its lower and k+16, k+17 in its upper half.
    v = [_pick(builder, pair(k), pair(k + 16), list(range(32))) for k in range(0, 16, 2)]
    zipped = [8 * (p % 2) + p // 2 for p in range(16)]
    v = [_pick(builder, x, x, zipped + [16 + p for p in zipped]) for x in v]

    def zip_half(a: Any, b: Any, size: int, upper: int) -> Any:
        """Interleave units of `size` bytes of the lower or upper quarter of each half: one unpack instruction."""
        lanes = []
        for half in (0, 16):
            for unit in range(8 // size):
                start = half + 8 * upper + unit * size
                lanes += [*range(start, start + size), *range(32 + start, 32 + start + size)]
        return _pick(builder, a, b, lanes)

    twos = [[zip_half(v[k], v[k + 1], 2, u) for u in (0, 1)] for k in range(0, 8, 2)]
    fours = [[zip_half(twos[k][u], twos[k + 1][u], 4, w) for u in (0, 1) for w in (0, 1)] for k in (0, 2)]
    eights = [zip_half(fours[0][k], fours[1][k], 8, w) for k in range(4) for w in (0, 1)]

    def store_copy(plane: Any, start: Any) -> Callable[[Any], Any]:
        def body(k: Any) -> None:
            further = builder.gep(start, [builder.mul(k, width)])
            builder.store(plane, builder.bitcast(further, plane.type.as_pointer()), align=1)

        return body

    stride = builder.mul(width, copies)
    target = _address_of(builder, context, sig.args[3], planes, at, _I8)
    done = builder.append_basic_block("done")
    for g in range(8):
        plane = eights[7 - g]
        if g:
            more = builder.append_basic_block("more")
            builder.cbranch(builder.icmp_signed(">", groups, _I64(g)), more, done)
            builder.position_at_end(more)
        copy = target
        for _ in range(2):
            builder.store(plane, builder.bitcast(copy, plane.type.as_pointer()), align=1)
            copy = builder.gep(copy, [width])
        _repeat(builder, builder.sub(copies, _I64(2)), store_copy(plane, copy))
        target = builder.gep(target, [stride])
    builder.branch(done)
    builder.position_at_end(done)


@_instruction(
    lambda words, i, groups, planes, at, width, copies: types.void(
        words, types.intp, types.intp, planes, types.intp, types.intp, types.intp
    ),
    _build_store_planes,
)
def store_planes(words: Any, i: int, groups: int, planes: Any, at: int, width: int, copies: int) -> None:
    """Byte g, most significant first, of 32 words to planes[at + g * copies * width:][:32], for g < groups.

    Each plane is written `copies` times, `width` bytes apart.
    """
    by_group = words[i : i + 32].astype(">i8").view(np.uint8).reshape(32, 8).T
    for g in range(groups):
        for copy in range(copies):
            start = at + (g * copies + copy) * width
            planes[start : start + 32] = by_group[g]


def _build_store_swapped(builder: Any, words: Any, i: Any, packed: Any, at: Any, scope: Any) -> None:
    kind = ir.VectorType(_I8, 32)
    v = builder.load(_address(builder, scope, words, i, kind), align=8)
    v = _pick(builder, v, v, [k - k % 8 + 7 - k % 8 for k in range(32)])
    builder.store(v, _address_of(builder, scope[0], scope[1].args[2], packed, at, kind), align=1)


@_instruction(
    lambda words, i, packed, at: types.void(words, types.intp, packed, types.intp), _build_store_swapped
)
def store_swapped(words: Any, i: int, packed: Any, at: int) -> None:
    """Four words as 32 bytes, each word's most significant byte first."""
    packed[at : at + 32] = words[i : i + 4].astype(">i8").view(np.uint8)


def _build_store_word(builder: Any, packed: Any, at: Any, word: Any, scope: Any) -> None:
    builder.store(builder.bswap(word), _address(builder, scope, packed, at, _I64), align=1)


@_instruction(lambda packed, at, word: types.void(packed, types.intp, types.uint64), _build_store_word)
def store_word(packed: Any, at: int, word: Any) -> None:
    """A uint64 as 8 bytes, most significant first."""
    packed[at : at + 8] = np.array([word], ">u8").view(np.uint8)


def _build_load_word(builder: Any, packed: Any, at: Any, scope: Any) -> Any:
    return builder.bswap(builder.load(_address(builder, scope, packed, at, _I64), align=1))


@_instruction(lambda packed, at: types.uint64(packed, types.intp), _build_load_word)
def load_word(packed: Any, at: int) -> Any:
    """8 bytes, most significant first, as a uint64."""
    return packed[at : at + 8].copy().view(">u8").astype(np.uint64)[0]
