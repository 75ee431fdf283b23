"""Results against float64: no less exact than PyTorch's own attention in the same dtype, plus one rounding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flash_attention import flash_attention
from reference import NAMES, assert_accurate, reference, run, sdpa

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def inputs(dtype, device, batch=1, heads=2, seqlen_q=256, seqlen_k=256, head_dim=64, head_dim_v=None) -> list[Tensor]:
    sizes = [(seqlen_q, head_dim), (seqlen_k, head_dim), (seqlen_k, head_dim_v or head_dim)]
    sizes.append((seqlen_q, head_dim_v or head_dim))
    return [torch.randn(batch, heads, *size).to(device, dtype) for size in sizes]


def check(tensors: list[Tensor], **options) -> None:
    expected = reference(*tensors, **options)
    assert_accurate(run(flash_attention, *tensors, **options), expected, run(sdpa, *tensors, **options))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_normal_data(device, dtype, head_dim, is_causal):
    """The everyday case, forward and every gradient."""
    check(inputs(dtype, device, seqlen_q=384, seqlen_k=384, head_dim=head_dim), is_causal=is_causal)


@pytest.mark.parametrize("dtype", DTYPES)
def test_positive_values(device, dtype):
    """Positive V: sums that do not cancel show a low-precision accumulator."""
    query, key, value, grad_output = inputs(dtype, device, seqlen_k=1024)
    check([query, key, value.abs(), grad_output])


@pytest.mark.parametrize("dtype", DTYPES)
def test_outlier_channels(device, dtype):
    """A few channels a hundred times larger, as trained models have: large scores, sharp softmax."""
    tensors = inputs(dtype, device)
    for tensor in tensors[:3]:
        tensor[..., [3, 17, 40]] *= 100
    check(tensors, scale=1e-3)


@pytest.mark.parametrize("magnitude", [1e-20, 1e-12, 1e-6, 1e-3, 1e1, 1e2, 1e4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_magnitudes(device, dtype, magnitude):
    """Neither underflow nor overflow inside, whatever the size of the values; fp16 holds what it can."""
    query, key, value, grad_output = inputs(dtype, device)
    check([query, key, value * magnitude, grad_output])
    check([query, key, value, grad_output * magnitude])
    if 1e-18 < magnitude <= 1e2:  # of scores so small all weights are equal
        check([query * magnitude, key, value, grad_output], scale=1 / 8 / max(magnitude, 1.0))
        check([query, key * magnitude, value, grad_output], scale=1 / 8 / max(magnitude, 1.0))


@pytest.mark.parametrize("scale", [0.0, -0.125, -3.0, 1e-8, 1.0, 5.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scales(device, dtype, scale):
    """Any factor of the scores: 0 is a plain mean, and a negative one turns the maximum into a minimum."""
    tensors = inputs(dtype, device)
    actual, expected = run(flash_attention, *tensors, scale=scale), reference(*tensors, scale=scale)
    # The same numbers: some of PyTorch's kernels for GPUs overflow where the factor is negative.
    peer = run(lambda q, k, v: sdpa(q if scale >= 0 else -q, k, v, scale=abs(scale)), *tensors)
    assert_accurate(actual, expected, peer, f"scale {scale}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_scores(device, dtype):
    """Scores of 1e8: softmax is a choice of one key, and nothing overflows."""
    tensors = [tensor * 1e4 for tensor in inputs(dtype, device)[:3]]
    output = flash_attention(*tensors)
    assert output.isfinite().all()
    best = (tensors[0].double() @ tensors[1].double().mT).argmax(-1)
    expected = torch.gather(tensors[2], 2, best[..., None].expand(*best.shape, output.shape[-1]))
    # A tie within rounding may go the other way. The result is that row of V but for one rounding (tensor cores see a
    # float in two parts).
    same = (output - expected).abs() <= 2.0**-23 * expected.abs()
    assert same.all(-1).float().mean() > 0.97


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_long_sequences(device, dtype, is_causal):
    """Errors do not grow with the sequence: 8192 keys."""
    check(inputs(dtype, device, heads=1, seqlen_q=256 if not is_causal else 2048, seqlen_k=8192), is_causal=is_causal)


@pytest.mark.parametrize("sizes", [(1, 5000), (16, 3000), (1, 40)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_few_queries(cuda, dtype, sizes):
    """A GPU works on parts of the keys: one with most of the weight, one with larger values."""
    of = {"heads": 8, "seqlen_q": sizes[0], "seqlen_k": sizes[1], "head_dim_v": 72}
    query, key, value, grad_output = inputs(dtype, cuda, **of)
    check([query, key, value, grad_output])
    check([query, key, value.abs(), grad_output])
    check([query * 8, key, value, grad_output])
    tenth = sizes[1] // 10
    check([query, torch.cat([key[:, :, :tenth] / 8, key[:, :, tenth:]], 2), value, grad_output])
    check([query, key, torch.cat([value[:, :, :tenth] * 100, value[:, :, tenth:]], 2), grad_output])


def test_eight_thousand_by_eight_thousand(device):
    """Gradients of keys and values are sums over 8192 queries."""
    check(inputs(torch.float32, device, heads=1, seqlen_q=8192, seqlen_k=8192, head_dim=16))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("seqlen", "head_dim"), [(2000, 64), (4096, 128), (16384, 64), (16384, 128)])
def test_whole_sequences(cuda, seqlen, head_dim, dtype, is_causal):
    """Up to 16384 queries by 16384 keys, each result a sum over all of them."""
    check(inputs(dtype, cuda, seqlen_q=seqlen, seqlen_k=seqlen, head_dim=head_dim), is_causal=is_causal)


@pytest.mark.parametrize("dtype", DTYPES)
def test_finite_input_never_gives_nan(device, dtype):
    """Largest finite values: results may overflow to inf where exact ones do, but are never NaN."""
    big = torch.finfo(dtype).max
    large = min(big, 1e18)
    query, key, value, _ = inputs(dtype, device, seqlen_q=20, seqlen_k=20)
    assert not flash_attention(query, key, torch.full_like(value, big)).isnan().any()
    assert not flash_attention(query * 0 + large, key * 0 + large, value).isnan().any()
    assert not flash_attention(query * 0 + large, key * 0 - large, value, is_causal=True).isnan().any()
    assert not flash_attention(query, key, value, scale=1e30).isnan().any()
    assert not flash_attention(query, key, value, scale=-1e30).isnan().any()


FINITE = {
    "large": lambda q, k, v, do: (q * 1e4, k * 1e4, v, do),
    "equal and very negative": lambda q, k, v, do: (torch.full_like(q, 1e4), torch.full_like(k, -1e4), v, do),
    "one key far above": lambda q, k, v, do: (q.abs() * 100, torch.cat([k[:, :, :-1] - 300, k[:, :, -1:]], 2), v, do),
    "a single key": lambda q, k, v, do: (q * 1e4, k[:, :, :1] * 1e4, v[:, :, :1], do),
    "large values": lambda q, k, v, do: (q, k, v * 1e4, do),
    "large gradients": lambda q, k, v, do: (q, k, v, do * 1e4),
    "tiny": lambda q, k, v, do: (q * 1e-30, k * 1e-30, v * 1e-30, do * 1e-30),
    "zeros": lambda q, k, v, do: (q * 0, k * 0, v * 0, do * 0),
}


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FINITE)
def test_gradients_of_finite_input_are_no_nan(device, case, dtype, is_causal):
    """Weights of 0 and 1, scores that overflow an exponential by far: what backward computes again stays a number."""
    tensors = FINITE[case](*inputs(dtype, device, seqlen_q=150, seqlen_k=170))
    for name, result in zip(NAMES, run(flash_attention, *tensors, is_causal=is_causal), strict=True):
        assert not result.isnan().any(), name


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_input(device, dtype, bad, which, is_causal):
    """NaN or inf reaches every row that attends to it, and no row that PyTorch's math backend keeps finite."""
    tensors = inputs(dtype, device, seqlen_q=130, seqlen_k=130)[:3]
    row = 70
    tensors[which][0, 1, row, 5] = bad
    output = flash_attention(*tensors, is_causal=is_causal)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        peer = sdpa(*tensors, is_causal=is_causal)
    finite, peer_finite = output.isfinite().all(-1), peer.isfinite().all(-1)
    touched = torch.zeros_like(finite)
    touched[0, 1, slice(row, row + 1) if which == 0 else slice(row if is_causal else 0, None)] = True
    assert not (finite & touched).any(), "a row that attends to it is finite"
    assert (finite | touched | ~peer_finite).all(), "another row, which PyTorch keeps finite, is not"


@pytest.mark.parametrize("which", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_show_nan(device, dtype, which):
    """A NaN in training is seen in the gradients that it spoils, and in those of no other head."""
    tensors = inputs(dtype, device, seqlen_q=130, seqlen_k=130)
    tensors[which][0, 1, 70, 5] = math.nan
    _, *gradients = run(flash_attention, *tensors, is_causal=True)
    for name, gradient in zip(NAMES[1:], gradients, strict=True):
        if which != 2 or name != "grad_value":  # which does not depend on value
            assert gradient[0, 1].isnan().any(), name
        assert gradient[0, 0].isfinite().all(), name
    if which in (0, 3):
        assert gradients[0][0, 1, :70].isfinite().all(), "rows of grad_query before it have nothing to do with it"
