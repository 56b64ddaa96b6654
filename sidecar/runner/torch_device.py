"""Which device torch computes on, and why. `torch` is passed in: it exists only in the environments that have it."""

from typing import Any

# How runtimes without an exception class of their own say that memory is short.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")


def choose(torch: Any, wanted: str) -> tuple[str, str]:
    """(device, reason) for "auto", "cpu", "cuda" or "mps". A device is tried out, not only looked for."""
    if wanted == "cpu":
        return "cpu", "it is set to run on the CPU"
    # No build of torch has both.
    kind = ("mps" if torch.backends.mps.is_built() else "cuda") if wanted == "auto" else wanted
    fault = _absence(torch, kind) or _failure(torch, kind)
    if not fault:
        return _name(torch, kind)
    return "cpu", f"{'CUDA' if kind == 'cuda' else 'Metal'} could not be used: {fault}; running on the CPU"


def _absence(torch: Any, kind: str) -> str:
    if kind == "cuda":
        if torch.version.cuda is None and torch.version.hip is None:
            return f"torch {torch.__version__} was built without it"
        return "" if torch.cuda.is_available() else "no usable graphics card or driver"
    if not torch.backends.mps.is_built():
        return f"torch {torch.__version__} was built without it"
    return "" if torch.backends.mps.is_available() else "this macOS or its graphics card has no support for it"


def _failure(torch: Any, kind: str) -> str:
    """A card can be there and yet be too old for the kernels of this build, or full: only use shows it."""
    try:
        (torch.ones(8, 8, device=kind) @ torch.ones(8, 8, device=kind)).sum().item()
    except RuntimeError as error:
        return str(error).strip().splitlines()[0]
    return ""


def _name(torch: Any, kind: str) -> tuple[str, str]:
    if kind == "mps":
        return "mps", "Metal on this Mac's graphics"
    return "cuda:0", f"CUDA {torch.version.cuda} on {torch.cuda.get_device_name(0)}"


def is_exhausted(torch: Any, error: BaseException) -> bool:
    """Whether an error of torch means that memory, the card's or the computer's, was not enough."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in _SIGNS)


def release(torch: Any) -> None:
    """Give cached memory of a card back."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
