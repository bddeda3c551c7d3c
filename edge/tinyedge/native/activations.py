"""What goes into each weight matrix while a model runs: the sums of the squares of its inputs, column by column.

ggml's scheduler asks a callback about every node of the graph and calls it again when a node that it wanted is computed
(ggml_backend_sched_eval_callback). Which nodes and which sums: tools/imatrix/imatrix.cpp, `IMatrixCollector::collect_imatrix`.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tinyedge.errors import ImatrixError, NativeError
from tinyedge.native import library
from tinyedge.native.context import Context, ContextSettings
from tinyedge.native.interrupt import Interruptible
from tinyedge.native.model import Model

Floats: TypeAlias = npt.NDArray[np.float32]
Counts: TypeAlias = npt.NDArray[np.int64]

FEWEST_ROWS = 16  # a multiplication with fewer is left out, as llama-imatrix does

_F32 = 0  # GGML_TYPE_F32
_SCRATCH_BYTES = 1 << 20


class _Tensor(ctypes.Structure):
    """ggml.h, struct ggml_tensor."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


class _InitParameters(ctypes.Structure):
    """ggml.h, struct ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


@dataclass(frozen=True, slots=True)
class _Operations:
    """ggml's numbers of the two operations that multiply with weights."""

    mul_mat: int
    mul_mat_id: int


@functools.cache
def _operations() -> _Operations:
    """The operations' numbers; raises NativeError when the installed ggml lays its tensors out otherwise than `_Tensor`."""
    start = library.function("ggml_init", ctypes.c_void_p, _InitParameters)
    end = library.function("ggml_free", None, ctypes.c_void_p)
    new = library.function("ggml_new_tensor_4d", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, *[ctypes.c_int64] * 4)
    multiply = library.function("ggml_mul_mat", *[ctypes.c_void_p] * 4)
    name = library.function("ggml_set_name", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
    data = library.function("ggml_get_data", ctypes.c_void_p, ctypes.c_void_p)
    operation = library.function("ggml_op_name", ctypes.c_char_p, ctypes.c_int)
    context = start(_InitParameters(_SCRATCH_BYTES, None, False))
    try:
        weights, inputs = new(context, _F32, 32, 3, 2, 1), new(context, _F32, 32, 5, 2, 1)
        product = multiply(context, weights, inputs)
        name(weights, b"blk.0.weight")
        first, result = _tensor(weights), _tensor(product)
        number = result.op
        fits = (
            first.name == b"blk.0.weight"
            and (first.type, list(first.ne), list(first.nb)) == (_F32, [32, 3, 2, 1], [4, 128, 384, 768])
            and list(result.src) == [weights, inputs, *[None] * 8]
            and (list(result.ne), result.data) == ([3, 5, 2, 1], data(product))
            and 0 < number < 1000
            and (operation(number), operation(number + 1)) == (b"MUL_MAT", b"MUL_MAT_ID")
        )
    finally:
        end(context)
    if not fits:
        raise NativeError(
            "the installed ggml lays its tensors out in a way that is not known here",
            "use llama-cpp-python 0.3.36 to collect an importance matrix",
        )
    return _Operations(number, number + 1)


def _tensor(address: int) -> Any:
    return _Tensor.from_address(address)


class InputSquares:
    """Sums of squares by the name of the weight, with the rows they go over, of all that ran since the last `take`.

    Of the matrices outside the blocks only `output.weight` is looked at, and that only with `process_output`. An exception,
    which cannot pass through ggml, is kept in `failed`; after it, and once a signal asks to stop, nothing more is collected.
    """

    def __init__(self, *, process_output: bool = False) -> None:
        self._operations = _operations()
        self._output = b"output.weight" if process_output else None
        self._sums: dict[str, Floats] = {}
        self._counts: dict[str, Counts] = {}
        self._last: tuple[int, Floats] | None = None  # q, k and v, and gate and up, have the same input
        self._is_host = library.function("ggml_backend_buffer_is_host", ctypes.c_bool, ctypes.c_void_p)
        self._size = library.function("ggml_nbytes", ctypes.c_size_t, ctypes.c_void_p)
        self._get = library.function("ggml_backend_tensor_get", None, *[ctypes.c_void_p] * 2, *[ctypes.c_size_t] * 2)
        self.interrupt = Interruptible()
        self.failed: BaseException | None = None

    def take(self) -> dict[str, tuple[Floats, Counts]]:
        """What was collected: sums float32 (matrices * columns,), counts int64 (experts,) or (1,). It begins anew with this."""
        taken = {name: (sums, self._counts[name]) for name, sums in self._sums.items()}
        self._sums, self._counts = {}, {}
        return taken

    def forget_input(self) -> None:
        """To be called before each graph: its tensors lie where those of the last one lay."""
        self._last = None

    def __call__(self, address: int, ask: bool, _data: object) -> bool:
        """ggml_backend_sched_eval_callback: whether the node is wanted, then whether the graph should go on."""
        if self.failed is not None or self.interrupt.requested:
            return ask  # asked, it wants the next node, after which it ends the graph
        try:
            node = _tensor(address)
            if ask:
                return node.op in (self._operations.mul_mat, self._operations.mul_mat_id) and self._wanted(node)
            self._collect(node)
        except BaseException as error:
            self.failed = error
            return False
        return True

    def _wanted(self, node: Any) -> bool:
        inputs, name = _tensor(node.src[1]), _weight_name(_tensor(node.src[0]).name)
        if not name.startswith(b"blk.") and name != self._output:
            return False
        rows = inputs.ne[1] if node.op == self._operations.mul_mat else FEWEST_ROWS
        return bool(inputs.type == _F32 and rows >= FEWEST_ROWS)

    def _collect(self, node: Any) -> None:
        weights, inputs = _tensor(node.src[0]), _tensor(node.src[1])
        name = _weight_name(weights.name).decode("utf-8", "replace")
        if node.op == self._operations.mul_mat:
            self._add_dense(name, weights, inputs, node.src[1])
        else:
            self._add_experts(name, weights, inputs, node.src[1], node.src[2])
        if not np.isfinite(self._sums[name]).all():
            raise ImatrixError(
                f"the inputs of {name} are NaN, infinite or too large",
                "the model is damaged, or its training diverged: take another file of it",
            )

    def _add_dense(self, name: str, weights: Any, inputs: Any, address: int) -> None:
        matrices = int(weights.ne[2] * weights.ne[3])
        columns, rows = inputs.ne[0], inputs.ne[1] * inputs.ne[2] * inputs.ne[3]
        sums, counts = self._room(name, matrices * columns, 1)
        if matrices == 1:
            if self._last is None or self._last[0] != address:
                values = self._values(inputs, address)
                self._last = address, np.einsum("abij,abij->j", values, values)
            sums += self._last[1]
        else:
            table_sums = sums.reshape(weights.ne[3], weights.ne[2], columns)
            for outer, plane in enumerate(self._values(inputs, address)):
                for inner, table in enumerate(plane):
                    table_sums[outer % weights.ne[3], inner % weights.ne[2]] += np.einsum("ij,ij->j", table, table)
        counts += rows // matrices

    def _add_experts(self, name: str, weights: Any, inputs: Any, address: int, choice_address: int) -> None:
        """Inputs are (tokens, experts used or 1, columns); the choice is (tokens, experts used)."""
        experts, columns = int(weights.ne[2]), int(inputs.ne[0])
        sums, counts = self._room(name, experts * columns, experts)
        values = self._values(inputs, address)[0]
        choice = self._values(_tensor(choice_address), choice_address, "i4")[0, 0]
        for place in range(choice.shape[1]):
            rows = values[:, place % values.shape[1]]
            for expert in np.unique(choice[:, place]):
                chosen = rows[choice[:, place] == expert]
                sums.reshape(experts, columns)[expert] += np.einsum("ij,ij->j", chosen, chosen)
                counts[expert] += len(chosen)

    def _room(self, name: str, values: int, counts: int) -> tuple[Floats, Counts]:
        if name not in self._sums:
            self._sums[name] = np.zeros(values, dtype=np.float32)
            self._counts[name] = np.zeros(counts, dtype=np.int64)
        return self._sums[name], self._counts[name]

    def _values(self, tensor: Any, address: int, dtype: str = "f4") -> npt.NDArray[Any]:
        """The elements as (ne3, ne2, ne1, ne0): a view of ggml's memory while the callback lasts, or a copy from a GPU."""
        size = self._size(address)
        if self._is_host(tensor.buffer):
            raw: Any = (ctypes.c_char * size).from_address(tensor.data)
        else:
            raw = (ctypes.c_char * size)()
            self._get(address, raw, 0, size)
        values: npt.NDArray[Any] = np.ndarray(tuple(tensor.ne)[::-1], np.dtype(dtype), raw, strides=tuple(tensor.nb)[::-1])
        return values


def _weight_name(name: bytes) -> bytes:
    """The tensor's name without what a copy to another device adds: `CUDA0#blk.0.attn_k.weight#0`."""
    parts = name.split(b"#", 2)
    return parts[1] if len(parts) > 1 else name


class CalibrationContext(Context):
    """A context that gives the logits of every token and collects `squares` from all that it computes."""

    def __init__(self, model: Model, settings: ContextSettings, *, process_output: bool = False) -> None:
        self.squares = InputSquares(process_output=process_output)
        super().__init__(model, settings)

    def _parameters(self, settings: ContextSettings) -> Any:
        parameters = super()._parameters(settings)
        self._eval_callback = self._llama.ggml_backend_sched_eval_callback(self.squares)
        parameters.cb_eval = self._eval_callback
        return parameters

    def read(self, tokens: list[int]) -> Floats:
        """Appends at most `settings.outputs` tokens; their logits, (tokens, vocabulary), which the next call overwrites.

        Ctrl-C ends it within one multiplication. Raises ImatrixError when the model computes something that is no number, and
        NativeError when a signal came whose handler did not raise.
        """
        squares = self.squares
        squares.forget_input()
        with squares.interrupt:
            try:
                self.decode_rows(tokens)
                self.wait()
            finally:
                failed, squares.failed = squares.failed, None
            if failed is not None:
                raise failed
            pointer = self._llama.llama_get_logits_ith(self.pointer, 0)
        if squares.interrupt.requested:  # whoever handled the signal wants to go on, but the graph was cut short
            raise NativeError("a signal interrupted the reading of a text", "read it again")
        if not pointer:
            raise NativeError("llama.cpp gave no logits for this text")
        shape = (len(tokens), self._vocabulary_size)
        row: Any = (ctypes.c_float * (shape[0] * shape[1])).from_address(ctypes.addressof(pointer.contents))
        logits: Floats = np.frombuffer(row, dtype=np.float32).reshape(shape)
        return logits
