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
    """result = factor (1 + result), ROUNDS times for each chain"""
    # every thread has several independent chains, which hide the latency of a multiply-add
    index = tl.program_id(0) * CHAINS + tl.arange(0, CHAINS)
    factor = tl.load(factors + index)
    total = factor
    for _ in range(ROUNDS // UNROLLED):
        for _ in tl.static_range(UNROLLED):
            total = total * factor + factor
    tl.store(result + index, total)


def multiply_adds(factors: Tensor, chains: int, rounds: int) -> Tensor:
    """Return f + f^2 + ... + f^(rounds + 1) for every number f.

    Args:
        factors: Tensor of the numbers f, one chain each.
        chains: Number of chains in a program.
        rounds: Number of multiply-adds in a chain.

    Raises:
        ValueError: ``factors`` are no multiple of ``chains``, or ``rounds`` no multiple of 16.
    """
    if len(factors) % chains or rounds % 16:
        raise ValueError(
            f'chains must divide len(factors) and 16 must divide rounds, got {len(factors)=}, '
            f'{chains=}, {rounds=}.'
        )
    result = torch.empty_like(factors)
    chain_kernel[(len(factors) // chains,)](factors, result, rounds, 16, chains)
    return result
