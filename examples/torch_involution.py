"""Our involution in a PyTorch network: scratchnet's CUDA kernels as a torch.autograd.Function.

    pip install -e '.[gpu]' torch && python examples/torch_involution.py

Tensors go in and out without a copy, through `__cuda_array_interface__`. Both libraries work on the
GPU's default stream, so nothing has to wait; on another one PyTorch would not wait for ours, and
the function refuses. Channels are last: x is (N, H, W, C).
"""

import functools
import sys

from scratchnet.backends import BackendError, get_backend


def involution(x, kernel, stride: int = 1, dilation: int = 1):
    """x (N, H, W, C), kernel (N, Ho, Wo, G, K, K), float32 on the GPU  ->  y (N, Ho, Wo, C)."""
    return _function().apply(x, kernel, stride, dilation)


@functools.cache
def _function():
    import torch

    cuda = get_backend("cuda")

    def ready(tensor):
        """Its values in order, from an address that vectors can be read at."""
        if torch.cuda.current_stream() != torch.cuda.default_stream():
            raise RuntimeError("scratchnet's involution runs on PyTorch's default stream only")
        tensor = tensor.detach().contiguous()
        return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()

    class Involution(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, kernel, stride, dilation):
            x, kernel = ready(x), ready(kernel)
            ctx.save_for_backward(x, kernel)
            ctx.settings = stride, dilation
            y = cuda.involution_forward(x, kernel, stride, dilation)
            return torch.as_tensor(y, device=x.device)

        @staticmethod
        def backward(ctx, dy):
            need_dx = ctx.needs_input_grad[0]
            arrays = ready(dy), *ctx.saved_tensors
            dx, dkernel = cuda.involution_backward(*arrays, *ctx.settings, need_dx)
            dx = torch.as_tensor(dx, device=dy.device) if need_dx else None
            return dx, torch.as_tensor(dkernel, device=dy.device), None, None

    return Involution


def main() -> None:
    try:
        get_backend("cuda")
    except BackendError as error:
        sys.exit(str(error))
    import torch

    torch.manual_seed(0)
    x = torch.randn(2, 9, 7, 8, device="cuda", requires_grad=True)
    kernel = torch.randn(2, 9, 7, 2, 3, 3, device="cuda", requires_grad=True)
    dy = torch.randn(2, 9, 7, 8, device="cuda")
    ours = torch.autograd.grad(involution(x, kernel), (x, kernel), dy)
    windows = torch.nn.functional.unfold(x.permute(0, 3, 1, 2), 3, padding=1)
    windows = windows.view(2, 2, 4, 3, 3, 9, 7).permute(0, 5, 6, 1, 2, 3, 4)
    y = (windows * kernel[:, :, :, :, None]).sum((-2, -1)).flatten(3)
    theirs = torch.autograd.grad(y, (x, kernel), dy)
    for name, one, other in zip(("dx", "dkernel"), ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        print(f"{name} agrees with unfold's to {float((one - other).abs().max()):.1e}")


if __name__ == "__main__":
    main()
