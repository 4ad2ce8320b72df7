"""Chains of multiply-adds that never leave registers: how fast the vector unit is."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def chain_kernel(
    factors, result, ROUNDS: tl.constexpr, UNROLLED: tl.constexpr, CHAINS: tl.constexpr
):
    """result = factor (1 + result), so many times; every thread has several chains, each waiting
    for none
    """
    place = tl.program_id(0) * CHAINS + tl.arange(0, CHAINS)
    factor = tl.load(factors + place)
    total = factor
    for _ in range(ROUNDS // UNROLLED):
        for _ in tl.static_range(UNROLLED):
            total = total * factor + factor
    tl.store(result + place, total)


def multiply_adds(factors: Tensor, chains: int, rounds: int) -> Tensor:
    """Return f + f^2 + ... + f^(rounds + 1) for every number f, in programs of so many chains.

    Raises:
        ValueError: the numbers cannot be shared by programs, or the rounds by loops of 16.
    """
    if len(factors) % chains or rounds % 16:
        raise ValueError(
            f'chains must divide len(factors) and 16 must divide rounds, got {len(factors)=}, '
            f'{chains=}, '
            f'{rounds=}.'
        )
    result = torch.empty_like(factors)
    chain_kernel[(len(factors) // chains,)](factors, result, rounds, 16, chains)
    return result
