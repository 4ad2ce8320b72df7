"""What autocast leaves in float32."""

import pytest
import torch

from mmrednet.ops import Window, local_attention
from mmrednet.ops.attention import attention, definition


@pytest.mark.parametrize('with_bias', [True, False])
def test_logits_of_plain_attention_stay_in_float32(with_bias):
    window = Window(3)
    query, key, value = torch.randn(3, 2, 2, 4, 5, 6).bfloat16()
    tables = [torch.randn(2, 2, 3).bfloat16() for _ in range(2)]
    bias = torch.randn(2, 9).bfloat16() if with_bias else None
    inputs = (query, key, value, *tables, bias)
    expected = definition(*inputs, list(window))
    with torch.autocast('cpu', torch.bfloat16):
        outputs = definition(*inputs, list(window))
        kernel = attention(*inputs, list(window))
        result = local_attention(
            query, key, value, window, rows=tables[0], columns=tables[1], bias=bias
        )
    for output, value in zip(outputs, expected, strict=True):
        assert output.dtype == value.dtype
        assert torch.equal(output, value)
    # the logarithm of the softmax's sum shows the logits: in bfloat16 they would differ by 1e-2,
    # which is more than the error of the kernel's powers, 1e-4
    torch.testing.assert_close(outputs[1], kernel[1], rtol=0, atol=2e-4)
    # the native kernel rounds weights to bfloat16, whose step is 2^-8
    torch.testing.assert_close(result, expected[0], rtol=0.02, atol=0.01)
