"""Reading the shape of one sample, with an error that names the layer."""


def image_shape(
    owner: str, input_shape: tuple[int, ...], channels: int | None = None
) -> tuple[int, int, int]:
    """(H, W, C) of an image; raises ValueError for another rank or channel count."""
    expected = "(H, W, C)" if channels is None else f"(H, W, {channels})"
    if len(input_shape) != 3 or (channels is not None and input_shape[2] != channels):
        raise ValueError(f"{owner}: a sample must have shape {expected}, got {tuple(input_shape)}")
    H, W, C = input_shape
    return H, W, C
