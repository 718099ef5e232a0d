"""The catalogue of kernels: every operation that a program may call, and the contract that each executor keeps.

A kernel is a function on given arrays into given arrays: no result is allocated, nothing is remembered. The
contract of each stands in one line, for example ``"x dy -> dx"``: what is read, behind ``|`` what is updated in
place, behind ``->`` what is overwritten without being read. A call gives its operands in that order; ``?`` marks
one that may be absent. Matrices are row-major, (rows of the batch, features); ``weight`` is (in, out).

`gpumlp.kernels.reference` implements all of it with ``xp`` (NumPy or CuPy) and is the truth that every other
implementation is tested against. NaN goes through: a kernel that reads a NaN writes a NaN where its result
depends on it, so that a lost training shows in the loss.

Counters of the control block (int64, indexed by the constants below) are the only thing that changes from step
to step; whatever depends on the step reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

# The control block.
STEP = 0  # steps done in the life of the trainer: keys the masks of dropout and noise
UPDATE = 1  # updates done by the optimizer: its bias corrections
EPOCH = 2  # epochs done in the life of the trainer: keys the permutation
START = 3  # first position of this batch in the epoch's order of rows
SLOT = 4  # this step's place in the table of learning rates and in the ring of losses
SEED = 5
BAD_STEP = 6  # first step whose loss or gradients were not finite; -1 while there is none
POSITION = 7  # index of this step in its epoch
CONTROL_SIZE = 8


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """What a kernel reads, updates and overwrites, by name, in the order of its operands."""

    name: str
    reads: tuple[str, ...]
    updates: tuple[str, ...]
    writes: tuple[str, ...]
    optional: frozenset[str]
    scalars: tuple[str, ...]
    in_place: tuple[str, str] | None  # (written, read): the two may be the same memory
    doc: str

    @property
    def operands(self) -> tuple[str, ...]:
        return self.reads + self.updates + self.writes


CATALOGUE: dict[str, KernelSpec] = {}

FOR_GPUS: dict[str, KernelSpec] = {}
"""What executors on a GPU make of neighbouring calls; there is a reference of each, but no kernel for the CPU."""


def kernel_spec(name: str) -> KernelSpec:
    """Return the contract of a kernel of either table.

    Raises:
        KeyError: there is none of that name.
    """
    return CATALOGUE[name] if name in CATALOGUE else FOR_GPUS[name]


def _kernel(
    name: str,
    contract: str,
    doc: str,
    scalars: str = "",
    in_place: str = "",
    table: dict[str, KernelSpec] = CATALOGUE,
) -> None:
    left, _, written = contract.partition("->")
    read, _, updated = left.partition("|")
    names = [part.split() for part in (read, updated, written)]
    optional = frozenset(n.rstrip("?") for group in names for n in group if n.endswith("?"))
    reads, updates, writes = (tuple(n.rstrip("?") for n in group) for group in names)
    alias = tuple(in_place.split("=")) if in_place else None
    table[name] = KernelSpec(
        name,
        reads,
        updates,
        writes,
        optional,
        tuple(scalars.split()),
        (alias[0], alias[1]) if alias else None,
        doc,
    )


# --- batches -------------------------------------------------------------------------------------------------
_kernel("shuffle", "control rows -> index", "index = rows in the order of this epoch's random 64-bit keys")
_kernel("copy_rows", "rows -> index", "index = rows: an epoch in the order of the data")
_kernel("gather_rows", "control source index -> out", "out[i] = source[index[START + i]], a matrix of floats")
_kernel(
    "gather_labels", "control source index -> out", "out[i] = source[index[START + i]], a vector of int64"
)
_kernel(
    "gather_weights", "control source index -> out", "out[i] = source[index[START + i]], a vector of floats"
)

# --- products and biases -------------------------------------------------------------------------------------
_kernel("matmul", "a b -> c", "c = a b, either operand transposed on request", "transpose_a transpose_b")
_kernel("add_bias", "bias | x", "x += bias, on every row")
_kernel("column_sums", "dy -> db", "db = sums of the columns of dy")
_kernel("copy", "x -> y", "y = x")

ACTIVATIONS: dict[str, str] = {}
"""Element-wise kernels, and whether their gradient reads x or y."""

# --- activations: y = f(x); the gradient reads x or y, whichever it needs --------------------------------------
for _name, _saved, _scalars, _doc in (
    ("relu", "y", "", "max(x, 0)"),
    ("leaky_relu", "x", "negative_slope", "x where x > 0, else negative_slope x"),
    ("elu", "x", "alpha", "x where x > 0, else alpha (exp(x) - 1)"),
    ("selu", "x", "", "scaled ELU with the constants of Klambauer et al. 2017"),
    ("gelu", "x", "", "x Phi(x), with the error function; Hendrycks & Gimpel 2016"),
    ("gelu_tanh", "x", "", "the tanh approximation of gelu"),
    ("silu", "x", "", "x sigmoid(x)"),
    ("mish", "x", "", "x tanh(softplus(x)); Misra 2019"),
    ("softplus", "x", "beta", "log(1 + exp(beta x)) / beta"),
    ("sigmoid", "y", "", "1 / (1 + exp(-x))"),
    ("tanh", "y", "", "tanh(x)"),
):
    ACTIVATIONS[_name] = _saved
    _kernel(_name, "x -> y", f"y = {_doc}", _scalars, in_place="y=x")
    _kernel(f"{_name}_grad", f"{_saved} dy -> dx", f"dx = dy f'(x) for {_name}", _scalars, in_place="dx=dy")
_kernel("softmax", "x -> y", "y = exp(x) / sum(exp(x)), row by row", in_place="y=x")
_kernel("softmax_grad", "y dy -> dx", "dx = y (dy - sum(y dy)), row by row", in_place="dx=dy")

# --- noise, keyed by (seed, layer, step, row, column): no split of a batch matters -------------------------------
_kernel("dropout", "control x -> y", "y = x / (1 - rate) where kept, else 0", "rate layer", in_place="y=x")
_kernel("dropout_grad", "control dy -> dx", "the same mask on dy", "rate layer", in_place="dx=dy")
_kernel("gaussian_noise", "control x -> y", "y = x + std N(0, 1)", "std layer", in_place="y=x")

# --- normalisation -------------------------------------------------------------------------------------------
_kernel(
    "layer_norm", "x gamma? beta? -> y mean rstd", "each row to mean 0, variance 1, then gamma, beta", "eps"
)
_kernel("layer_norm_grad", "x gamma? mean rstd dy -> dx? dgamma? dbeta?", "gradients of layer_norm")
_kernel(
    "batch_norm", "x gamma? beta? -> y mean var rstd", "each column to mean 0, variance 1 of the batch", "eps"
)
_kernel("batch_norm_grad", "x gamma? mean rstd dy -> dx? dgamma? dbeta?", "gradients of batch_norm")
_kernel("batch_norm_fixed", "x gamma? beta? mean var -> y", "batch_norm with given statistics", "eps")
_kernel(
    "batch_norm_fixed_grad", "gamma? var dy -> dx", "gradient of batch_norm_fixed", "eps", in_place="dx=dy"
)
_kernel(
    "running_average",
    "control mean var | running_mean running_var",
    "running += momentum (batch - running), the variance unbiased; nothing on a flagged step",
    "momentum rows",
)

# --- losses: ring[SLOT] = (value, sum of weights); grad = gradient of the value -----------------------------------
for _name, _scalars, _doc in (
    ("mse", "", "(output - target)^2, the mean over the outputs"),
    ("mae", "", "|output - target|, the mean over the outputs"),
    ("huber", "delta", "e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2); Huber 1964"),
    ("binary_cross_entropy_logits", "clip", "-t log p - (1 - t) log(1 - p), p = sigmoid(output)"),
    ("binary_cross_entropy", "clip", "the same on probabilities, clipped to [clip, 1 - clip]"),
    ("softmax_cross_entropy_labels", "smoothing clip", "-log softmax(output)[label], with label smoothing"),
    ("softmax_cross_entropy", "smoothing clip", "-sum(t log softmax(output))"),
    ("kl_divergence_logits", "clip", "sum(t (log t - log softmax(output))), 0 log 0 = 0"),
    ("kl_divergence", "clip", "the same on probabilities, clipped to [clip, 1]"),
    ("softmax_mse", "", "(softmax(output) - target)^2, the mean over the outputs"),
):
    _kernel(_name, "control output target weight? | ring -> grad?", _doc, f"mean {_scalars}")
_kernel("check_loss", "ring | control", "BAD_STEP = STEP if the loss is not finite and no step was before")

# --- gradients and the optimizer: on flat ranges of the arenas; nothing on a flagged step ---------------------------
_kernel(
    "check_gradients",
    "gradients | control",
    "BAD_STEP = STEP if a gradient, or with `squared` its square, is not finite",
    "squared",
)
_kernel("clip_by_value", "| gradients", "gradients = clip(gradients, -limit, limit)", "limit")
_kernel("clip_by_norm", "| gradients", "gradients *= min(1, limit / (||gradients|| + 1e-6))", "limit")
for _name, _slots, _scalars in (
    ("sgd", "", ""),
    ("momentum", "velocity", "momentum dampening nesterov"),
    ("momentum_keras", "velocity", "momentum nesterov"),
    ("momentum_average", "velocity", "momentum"),
    ("adagrad", "accumulator", "lr_decay eps"),
    ("rmsprop", "square average? velocity?", "alpha eps momentum"),
    ("adam", "first second", "beta1 beta2 eps decoupled"),
):
    _kernel(
        _name,
        f"control rates gradients | parameters {_slots}",
        "parameters -= update of the rate rates[SLOT]; weight_decay adds to the gradients (L2)",
        f"weight_decay {_scalars}",
    )


# --- what rewrites make of neighbours: no layer writes these -------------------------------------------------------
for _name, _saved in ACTIVATIONS.items():
    _scalars = " ".join(CATALOGUE[_name].scalars)
    _contract = "bias x -> y" if _saved == "y" else "bias | x -> y"
    _kernel(f"bias_{_name}", _contract, f"add_bias, then {_name}, in one pass", _scalars, in_place="y=x")
    _doc = f"{_name}_grad and column_sums of what it gave, in one pass"
    _kernel(f"{_name}_grad_bias", f"{_saved} dy -> dx db", _doc, _scalars, in_place="dx=dy")

# --- products with an epilogue, and their operands in half the bytes -----------------------------------------------
for _name, _contract, _doc in (
    ("product_bias", "a b bias -> c", "matmul, then add_bias"),
    ("product_bias_relu", "a b bias -> c mask?", "matmul, add_bias, relu; mask has a bit for each c > 0"),
    ("product_bias_gelu_tanh", "a b bias -> c x?", "matmul, add_bias, gelu_tanh; x is what gelu_tanh read"),
    ("product_bias_grad", "a b -> c db", "matmul, and column_sums of b"),
    (
        "product_relu_grad",
        "a b mask -> c db?",
        "matmul, relu_grad by the mask, and column_sums of the result",
    ),
    (
        "product_gelu_tanh_grad",
        "a b x -> c db?",
        "matmul, gelu_tanh_grad at x, and column_sums of the result",
    ),
):
    _kernel(_name, _contract, _doc, "transpose_a transpose_b", table=FOR_GPUS)

PRODUCTS = frozenset(["matmul", *FOR_GPUS])
"""Names of all calls that are a product of matrices alone or with an epilogue, which a library may do."""

_kernel(
    "product_relu_slope",
    "a b y -> c",
    "matmul, then relu_grad, where y is what relu gave",
    "transpose_a transpose_b",
    table=FOR_GPUS,
)

IN_EPILOGUES = ("relu", "gelu_tanh")
"""Activations that a library for products does in an epilogue."""

NARROW = 16
"""Inner side, or columns of the result, up to which a product is no more work than reading what stands around it."""

for _name, _saved in ACTIVATIONS.items():
    _scalars = " ".join(CATALOGUE[_name].scalars)
    _contract = "bias? b added? x -> y? c" if _saved == "y" else "bias? b added? | x -> y? c"
    _doc = (
        f"bias_{_name}, then matmul of y and b, which has up to {NARROW} columns, and add_bias of added; "
        "without y nothing but c is written"
    )
    _kernel(f"bias_{_name}_narrow", _contract, _doc, _scalars, "y=x", FOR_GPUS)
    _doc = f"matmul of a and b, which is turned, with an inner side up to {NARROW}, then {_name}_grad"
    _kernel(f"narrow_{_name}_grad", f"a b {_saved} -> dx", _doc, _scalars, f"dx={_saved}", FOR_GPUS)
    if _saved == "y":  # which the gradient of the weight reads too
        _doc += "; matmul of y, which is turned, and a; column_sums of dx, and of a"
        _kernel(f"narrow_{_name}_grad_sums", "a b y -> dx dw db? da?", _doc, _scalars, "dx=y", FOR_GPUS)
_kernel(
    "cast_bf16",
    "x -> y",
    "y = x rounded to bfloat16, as uint16; matrices a and b may be such",
    table=FOR_GPUS,
)

UPDATES = tuple(name for name, spec in CATALOGUE.items() if "parameters" in spec.updates)
"""Names of the rules of optimizers."""

for _name in UPDATES:
    _spec = CATALOGUE[_name]
    _operands = " ".join(o + "?" * (o in _spec.optional) for o in _spec.updates)
    _kernel(
        f"{_name}_cast",
        f"{' '.join(_spec.reads)} | {_operands} -> copy",
        f"{_name}, and cast_bf16 of the parameters; nothing on a flagged step",
        " ".join(_spec.scalars),
        table=FOR_GPUS,
    )

BFLOAT16 = "uint16"
"""The type of arrays that hold bfloat16."""

IN_BFLOAT16: dict[str, frozenset[str]] = {
    "gather_rows": frozenset(["out"]),
    "dropout": frozenset("xy"),
    "dropout_grad": frozenset(["dy", "dx"]),
    "gaussian_noise": frozenset("xy"),
    "add_bias": frozenset("x"),
    "copy": frozenset("xy"),
    "column_sums": frozenset(["dy"]),
    "matmul": frozenset("abc"),
    **{
        name: frozenset(spec.operands)
        - ({"mask"} if name in PRODUCTS else {"bias", "added", "dw", "db", "da"})
        for name, spec in FOR_GPUS.items()
        if name in PRODUCTS or "narrow" in name
    },
}
"""Operands that may be bfloat16 on a GPU in programs of float32: a kernel computes in float32 and rounds
what it stores. The vectors of a product, and what it saves, are of the type of its result."""
for _name, _spec in CATALOGUE.items():
    if "ring" in _spec.updates:
        IN_BFLOAT16[_name] = frozenset(["grad"])
for _name in ACTIVATIONS:
    for _form in ("{}", "{}_grad", "bias_{}", "{}_grad_bias"):
        IN_BFLOAT16[_form.format(_name)] = frozenset(CATALOGUE[_form.format(_name)].operands) - {"bias", "db"}

MASK_COLUMNS = 128
"""Columns of a mask are rounded up to these many bits: the layout that cuBLASLt asks for."""


def mask_bytes(columns: int) -> int:
    """Return the bytes of a row of a mask with a bit for each of `columns`."""
    return -(-columns // MASK_COLUMNS) * MASK_COLUMNS // 8
