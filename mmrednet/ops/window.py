"""The neighbourhood of a position: which taps it has and where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

IntPair = int | tuple[int, int]


def to_pair(name: str, value: IntPair, minimum: int) -> tuple[int, int]:
    """Return ``value`` as a (vertical, horizontal) pair of whole numbers.

    Raises:
        TypeError: ``value`` is neither an int nor a pair of ints.
        ValueError: an entry lies below ``minimum``.
    """
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(
        isinstance(number, int) and not isinstance(number, bool) for number in pair
    ):
        raise TypeError(
            f'{name} must be an int or a pair of ints (vertical, horizontal), got {name}={value!r}.'
        )
    if min(pair) < minimum:
        raise ValueError(f'{name} must be at least {minimum}, got {name}={value!r}.')
    return pair[0], pair[1]


@dataclass(frozen=True, init=False)
class Window:
    """The K = kernel[0] * kernel[1] neighbours of every output position.

    Tap (u, v) of output (y, x) is input (y * stride + u * dilation - padding, x * stride + ...);
    taps are numbered u * kernel[1] + v, and those outside the map count as zero.

    Args:
        kernel: size (vertical, horizontal), or one number for both; so are the others.
        stride: distance of neighbouring outputs, in input positions.
        dilation: distance of neighbouring taps, in input positions.
        padding: how far the first tap of the first output lies outside the map. By default the
            window is centred, which makes the output ceil(H / stride) by ceil(W / stride) and needs
            an odd kernel.

    Raises:
        TypeError: an argument is neither an int nor a pair of ints.
        ValueError: a number is too small, or the kernel is even and ``padding`` is not given.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]

    def __init__(
        self,
        kernel: IntPair,
        stride: IntPair = 1,
        dilation: IntPair = 1,
        padding: IntPair | None = None,
    ) -> None:
        kernel, dilation = to_pair('kernel', kernel, 1), to_pair('dilation', dilation, 1)
        if padding is None:
            if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
                raise ValueError(
                    f'an even kernel has no centre: padding must be given, got {kernel=}, '
                    f'{padding=}.'
                )
            padding = (dilation[0] * (kernel[0] // 2), dilation[1] * (kernel[1] // 2))
        fields = dict(
            kernel=kernel,
            stride=to_pair('stride', stride, 1),
            dilation=dilation,
            padding=to_pair('padding', padding, 0),
        )
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_flat(cls, numbers: Sequence[int]) -> Window:
        """Return the window whose ``list`` is these eight numbers."""
        kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, padding_h, padding_w = (
            numbers
        )
        return cls(
            (kernel_h, kernel_w),
            (stride_h, stride_w),
            (dilation_h, dilation_w),
            (padding_h, padding_w),
        )

    def __iter__(self) -> Iterator[int]:
        """Yield the eight numbers (kernel, stride, dilation, padding), the form that a custom op
        takes.
        """
        for pair in (self.kernel, self.stride, self.dilation, self.padding):
            yield from pair

    def __len__(self) -> int:
        """Return eight; ``torch.compile`` asks before it reads a window that was made outside of
        what it compiles.
        """
        return 8

    @property
    def taps(self) -> int:
        """K, the number of neighbours."""
        return self.kernel[0] * self.kernel[1]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (Ho, Wo), the number of output positions on a map of (height, width).

        Raises:
            ValueError: the window does not fit into the padded map even once.
        """
        kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, padding_h, padding_w = self
        room_h = height + 2 * padding_h - dilation_h * (kernel_h - 1) - 1
        room_w = width + 2 * padding_w - dilation_w * (kernel_w - 1) - 1
        if room_h < 0 or room_w < 0:
            raise ValueError(
                f'the window must fit into the padded map, got {self} for a map of {height} x '
                f'{width}.'
            )
        return room_h // stride_h + 1, room_w // stride_w + 1
