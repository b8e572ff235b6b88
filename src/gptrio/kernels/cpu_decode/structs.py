"""The arguments of the compiled step: addresses and sizes, as rows of numpy tables. Addresses are int64, 0 for none."""

from __future__ import annotations

import numpy as np

FLOAT32, BFLOAT16, FLOAT16, INT8, INT4 = range(5)  # how a weight is stored
FLOATS = (FLOAT32, BFLOAT16, FLOAT16)
NONE, RELU, GELU_TANH, GELU_ERF, SILU = range(5)  # activations
LANES = 16  # floats that are taken together: all widths are multiples of it

# One matrix product y = x @ W + b.
PRODUCT = np.dtype(
    [
        ("format", np.int64),  # of the weight: FLOAT32 ... INT4
        ("is_in_out", np.int64),  # 1 if the weight is stored (in, out), else 0
        ("tiled", np.int64),  # 1 if the processor can multiply it by tiles
        ("weight", np.int64),
        ("scale", np.int64),  # float32 (out,) of int8; bfloat16 (out, in / group) of int4
        ("group", np.int64),
        ("bias", np.int64),  # float32 (out,)
        ("inputs", np.int64),
        ("outputs", np.int64),
        ("offset", np.int64),  # of the first output in its row
        ("updates", np.int64),  # address of UPDATE rows
        ("num_updates", np.int64),
    ],
    align=True,
)

# A low-rank update of a product: y += scaling * ((x @ A.T) @ B.T).
UPDATE = np.dtype(
    [
        ("format", np.int64),  # of A and B: FLOAT32, BFLOAT16 or FLOAT16
        ("a", np.int64),  # (rank, inputs)
        ("b", np.int64),  # (outputs, rank)
        ("rank", np.int64),
        ("scaling", np.float64),
    ],
    align=True,
)

# The products of a block, by their slots: q, k, v (or one for all three, and two that are not run), and the others.
QKV, ATTENTION_OUTPUT, MLP_UP, MLP_DOWN, NUM_PRODUCTS = 0, 3, 4, 5, 6

# One block.
LAYER = np.dtype(
    [
        ("products", np.int64),  # address of PRODUCT rows
        ("projections", np.int64),  # 1 or 3: rows that make q, k and v
        ("inner", np.int64),  # width of the MLP
        ("activation", np.int64),  # NONE ... SILU
        ("parallel", np.int64),  # 1: attention and MLP side by side
        ("norm1_weight", np.int64),  # float32 (C,), as the other norms' vectors
        ("norm1_bias", np.int64),
        ("norm1_eps", np.float64),
        ("norm2_weight", np.int64),
        ("norm2_bias", np.int64),
        ("norm2_eps", np.float64),
        ("keys", np.int64),  # (B, H, capacity, D)
        ("values", np.int64),
        ("capacity", np.int64),
        ("first", np.int64),  # slot of the first position that is seen
        ("slot", np.int64),  # of the new position
        ("dropped", np.int64),  # positions before the first slot
        ("scale", np.float64),  # of the scores
    ],
    align=True,
)

# The model and one step of it.
MODEL = np.dtype(
    [
        ("layers", np.int64),  # address of LAYER rows
        ("num_layers", np.int64),
        ("head", np.int64),  # address of one PRODUCT row
        ("norm_weight", np.int64),
        ("norm_bias", np.int64),
        ("norm_eps", np.float64),
        ("width", np.int64),
        ("heads", np.int64),
        ("head_width", np.int64),
        ("k_offset", np.int64),  # of the first head's key in a row of q, k, v; its query is at 0
        ("v_offset", np.int64),
        ("head_stride", np.int64),  # floats from head to head
        ("rotated", np.int64),  # R, or 0
        ("cache_format", np.int64),
        ("rows", np.int64),  # B
        ("x", np.int64),  # (B, C) residual stream, as all that follows in float32
        ("cosines", np.int64),  # (turns, R / 2), where turns is 1 or B
        ("sines", np.int64),
        ("turns", np.int64),
        ("starts", np.int64),  # int64 (B,), first position of each row that is seen
        ("logits", np.int64),  # (B, V)
        # The workspace; `workspace.sizes` says how large each buffer is. A stride is the bytes from thread to thread.
        ("normed", np.int64),  # for each thread (2, B, C)
        ("normed_stride", np.int64),
        ("qkv", np.int64),  # (B, 3 * C)
        ("attended", np.int64),  # (B, C)
        ("hidden", np.int64),  # (B, I), where I is the layer's own
        ("scores", np.int64),  # for each thread (positions,)
        ("scores_stride", np.int64),
        ("workspace", np.int64),  # for each thread the working memory of products: first 16 sums
        ("workspace_stride", np.int64),
    ],
    align=True,
)
