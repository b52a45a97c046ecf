"""The device of the tests that need a GPU, and arithmetic that can be compared with that of a CPU."""

import os

import pytest
import torch

# Read by cuBLAS when it starts, and asked for by torch where results must be the same each time.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(scope="session")
def device():
    """``cuda``, or ``cpu`` where that is to try the tests out."""
    name = os.environ.get("LIT_FT_GPU", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU; LIT_FT_GPU=cpu tries it on a CPU")
    return name


@pytest.fixture(autouse=True)
def _exact():
    """Float32 as such, where no trainer of lit_ft asks for TF32, and kernels that give the same each time."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    torch.use_deterministic_algorithms(False)
