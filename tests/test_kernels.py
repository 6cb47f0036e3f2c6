"""Every Triton kernel compiles for an NVIDIA GPU, also on a machine that has none."""

import pytest
import torch

from polyvera.train.fleet import adamw

triton = pytest.importorskip("triton")
fused, decode_kernel, adamw_kernel = MODULES = [
    pytest.importorskip(f"polyvera.{name}")
    for name in ("adapter.fused", "engine.generation.decode_kernel", "train.fleet.adamw_kernel")
]
GPUTarget, JITFunction = triton.backends.compiler.GPUTarget, triton.runtime.jit.JITFunction
HOPPER = GPUTarget("cuda", 90, 32)
INLINED = {"_slot", "_tile"}  # into the kernels that call them
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


class Driver:
    """A driver with a device to compile for and none to run on."""

    def get_current_target(self) -> GPUTarget:
        return HOPPER

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the kernels that were compiled instead of launched."""
    names: set[str] = set()

    def compile_only(self: JITFunction, grid: tuple[int, ...]) -> object:
        def run(*args: object, **kwargs: object) -> None:
            assert self.run(*args, grid=grid, warmup=True, **kwargs).asm["cubin"]
            names.add(self.fn.__name__)

        return run

    monkeypatch.setattr(JITFunction, "__getitem__", compile_only)
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    return names


@each_dtype
def test_every_kernel_compiles(compiled: set[str], dtype: torch.dtype) -> None:
    adapter_kernels(dtype)
    decode_kernels(dtype)
    adamw_kernels(dtype)
    every = {name for module in MODULES for name, kernel in vars(module).items() if isinstance(kernel, JITFunction)}
    assert compiled == every - INLINED


def adapter_kernels(dtype: torch.dtype) -> None:
    x, y, w = torch.zeros(64, 32, dtype=dtype), *torch.zeros(2, 64, 48, dtype=dtype)
    B, index = torch.zeros(48, 32, dtype=dtype), torch.zeros(4, dtype=torch.int64)
    d, b, m, norm = torch.zeros(3, 32), *torch.zeros(3, 3, 48)
    for rows in (None, index):
        fused.scale_rows(x, d, rows, dtype)
        fused.scale_and_sum(x, x, d, rows, 1.0, dtype)
        fused.add_rows(y, w, b, None, None, None, rows, 1.0)
        fused.add_rows(y, w, None, None, None, None, rows, 1.0)
        fused.add_rows(y, w, b, m, norm, w[0], rows, 1.0)
        fused.expand_rows(y, x, B, d, b, rows, 1.0)
        fused.expand_rows(y[:20], x[:20], B, None, None, rows, 1.0)
    fused.scaled_basis(B, b[0], d[0], 1.0)
    fused.basis_sums(B, B, b[0], d[0], 1.0)


def decode_kernels(dtype: torch.dtype) -> None:
    for tokens in (1, 300):
        q, cache = torch.zeros(tokens, 8, 64, dtype=dtype), torch.zeros(4, 48, 2, 64, dtype=dtype)
        at = torch.zeros(tokens, dtype=torch.int64)
        decode_kernel.attend(q, cache, cache, at, at, at, 0.1)


def adamw_kernels(dtype: torch.dtype) -> None:
    tensors = adamw.SlotTensors(*(torch.zeros(3, 64) for _ in range(4)))
    rows, scalars, settings = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4), adamw.AdamSettings()
    adamw_kernel._launch(tensors, adamw.ParamGroup(0, 64, 1e-3), rows, scalars, settings)
