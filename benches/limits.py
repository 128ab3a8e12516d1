"""Measures the limits of this machine, rates of matrix products and of reading memory; called by benches/processors.py.

Reads its settings as JSON from the first argument (threads, seconds for each number, sizes to read in bytes); prints
one JSON object. Each number is the best of several tries: another program can only make a machine look slower.
"""

import json
import mmap
import sys
import time

import torch

settings = json.loads(sys.argv[1])
torch.set_num_threads(settings["threads"])
torch.set_grad_enabled(False)


def best(act):
    """Returns the seconds of the fastest call of `act` within the time for one number, after two calls to warm up."""
    seconds = [0.0, 0.0]
    began = time.perf_counter()
    while len(seconds) < 5 or time.perf_counter() - began < settings["seconds"]:
        at = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - at)
    return min(seconds[4:])


def product(rows, inner, columns, dtype):
    """Returns GFLOP/s of a layer's matrix product."""
    x, weight = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    return 2 * rows * inner * columns / best(lambda: torch.nn.functional.linear(x, weight)) / 1e9


def read(size):
    """Returns GB/s of reading `size` bytes in large pages, by a sum or by a product with a vector, whichever is
    faster."""
    rows = size // 4 // 4096
    memory = mmap.mmap(-1, rows * 4096 * 4 + (4 << 20))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    matrix = torch.frombuffer(memory, dtype=torch.float32, count=rows * 4096).view(rows, 4096).fill_(1)
    vector = torch.ones(4096)
    return matrix.numel() * 4 / min(best(lambda: matrix.sum()), best(lambda: torch.mv(matrix, vector))) / 1e9


SHAPES = {"square": (1024, 1024, 1024), "rows": (512, 576, 1536)}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
print(json.dumps({
    "products": {d: {s: product(*shape, dtype) for s, shape in SHAPES.items()} for d, dtype in DTYPES.items()},
    "read": {size: read(size) for size in settings["sizes"]},
}))
