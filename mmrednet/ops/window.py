"""The window of a position: which taps it has and where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

IntPair = int | tuple[int, int]
BORDERS = ('zero', 'shift')


def to_pair(name: str, value: IntPair, minimum: int) -> tuple[int, int]:
    """Return ``value`` as a (vertical, horizontal) pair of ints.

    Args:
        name: Name of the argument, for errors.
        value: One int for both axes, or a pair.
        minimum: Smallest int that is allowed.

    Raises:
        TypeError: ``value`` is neither an int nor a pair of ints.
        ValueError: An entry lies below ``minimum``.
    """
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    # bool is a subclass of int, but True is no size
    are_ints = all(isinstance(entry, int) and not isinstance(entry, bool) for entry in pair)
    if len(pair) != 2 or not are_ints:
        raise TypeError(
            f'{name} must be an int or a pair of ints (vertical, horizontal), got {name}={value!r}.'
        )
    if min(pair) < minimum:
        raise ValueError(f'{name} must be at least {minimum}, got {name}={value!r}.')
    return pair[0], pair[1]


@dataclass(frozen=True, init=False)
class Window:
    """The K = kernel[0] * kernel[1] neighbours of every output position.

    Tap (u, v) of output (y, x) is input (y * stride + u * dilation - padding, x * stride + ...).
    Its number is u * kernel[1] + v. Each argument but the border is a pair (vertical, horizontal),
    or one int for both.

    With the border 'zero', taps outside the map count as zero. With the border 'shift', the windows
    at the border are moved inwards until they lie on the map, so that every output has K neighbours
    (Hassani et al., Neighborhood Attention Transformer, CVPR 2023). With a dilation d, each of the
    positions i % d = r is an axis of its own of n positions, and the window of its p-th output
    starts at clamp(p - K // 2, 0, n - K).

    Args:
        kernel: Number of taps along each axis.
        stride: Distance of neighbouring outputs, in input positions. Default: 1.
        dilation: Distance of neighbouring taps, in input positions. Default: 1.
        padding: Distance of the first tap of the first output from the border of the map, outwards.
            By default the window is centred. This makes the output ceil(H / stride) by
            ceil(W / stride) and needs an odd kernel.
        border: 'zero' or 'shift', the rule for windows at the border of the map. 'shift' needs
            stride 1 and a centred window. Default: 'zero'.

    Raises:
        TypeError: An argument is neither an int nor a pair of ints.
        ValueError: A number is too small, the kernel is even and ``padding`` is not given, or the
            border is unknown or does not fit to stride and padding.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    border: str

    def __init__(
        self,
        kernel: IntPair,
        stride: IntPair = 1,
        dilation: IntPair = 1,
        padding: IntPair | None = None,
        border: str = 'zero',
    ) -> None:
        kernel, dilation = to_pair('kernel', kernel, 1), to_pair('dilation', dilation, 1)
        if border not in BORDERS:
            raise ValueError(f'border must be one of {BORDERS}, got {border!r}.')
        if border == 'shift' and (to_pair('stride', stride, 1) != (1, 1) or padding is not None):
            raise ValueError(
                "border='shift' needs stride 1 and a centred window, without padding, got "
                f'{stride=}, {padding=}.'
            )
        if padding is None:
            if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
                raise ValueError(
                    f'an even kernel has no centre: padding must be given, got {kernel=}, '
                    f'{padding=}.'
                )
            padding = (dilation[0] * (kernel[0] // 2), dilation[1] * (kernel[1] // 2))
        stride, padding = to_pair('stride', stride, 1), to_pair('padding', padding, 0)
        fields = dict(
            kernel=kernel, stride=stride, dilation=dilation, padding=padding, border=border
        )
        # the class is frozen, so that its own assignment is forbidden
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_flat(cls, numbers: Sequence[int]) -> Window:
        """Return the window whose ``list`` is these numbers: the inverse of iteration."""
        kernel, stride, dilation, padding = (
            (numbers[index], numbers[index + 1]) for index in range(0, 8, 2)
        )
        # zero borders have eight numbers, shifted ones nine
        if len(numbers) > 8:
            return cls(kernel, stride, dilation, border='shift')
        return cls(kernel, stride, dilation, padding)

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers that a custom op takes: kernel, stride, dilation and padding, and a one
        behind them if the border is 'shift'.
        """
        for pair in (self.kernel, self.stride, self.dilation, self.padding):
            yield from pair
        if self.border == 'shift':
            yield 1

    def __len__(self) -> int:
        """Return the number of ints that iteration yields."""
        # torch.compile asks for it before it iterates over a window from outside of its graph
        return 9 if self.border == 'shift' else 8

    @property
    def taps(self) -> int:
        """K, the number of neighbours."""
        return self.kernel[0] * self.kernel[1]

    @property
    def offsets(self) -> int:
        """Number of relative positions of a neighbour, in steps of the dilation: K, or with the
        border 'shift' (2 * kernel[0] - 1) * (2 * kernel[1] - 1).
        """
        if self.border == 'shift':
            return (2 * self.kernel[0] - 1) * (2 * self.kernel[1] - 1)
        return self.taps

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (Ho, Wo), the number of output positions on a map of (height, width).

        Raises:
            ValueError: The window does not fit into the padded map, or into the map if the border
                is 'shift'.
        """
        if self.border == 'shift':
            self._check_room(height, width)
            return height, width
        kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, padding_h, padding_w = self
        # rows and columns that the window can move by
        room_h = height + 2 * padding_h - dilation_h * (kernel_h - 1) - 1
        room_w = width + 2 * padding_w - dilation_w * (kernel_w - 1) - 1
        if room_h < 0 or room_w < 0:
            raise ValueError(
                f'the window must fit into the padded map, got {self} for a map of {height} x '
                f'{width}.'
            )
        return room_h // stride_h + 1, room_w // stride_w + 1

    def _check_room(self, height: int, width: int) -> None:
        """Raise if an axis of a map is shorter than kernel * dilation."""
        least = [size * step for size, step in zip(self.kernel, self.dilation, strict=True)]
        if height < least[0] or width < least[1]:
            raise ValueError(
                f"border='shift' needs a map of at least kernel * dilation, {least[0]} x "
                f'{least[1]}, got {height} x {width} for {self}.'
            )


def check_zero_border(window: Window) -> None:
    """Raise a ValueError if an operator that needs the border 'zero' gets another window."""
    if window.border != 'zero':
        raise ValueError(f"window.border must be 'zero' for this operator, got {window}.")
