"""Autograd: which gradients are computed, from what, how often, and what must not pass in silence."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import forward_ad

from flash_attention import flash_attention
from reference import assert_close, reference, run

SUBSETS = [needs for needs in itertools.product([True, False], repeat=3) if any(needs)]


@pytest.fixture
def tensors(device):
    """query, key, value, grad_output of a small problem."""
    shapes = [(2, 3, 50, 16), (2, 3, 70, 16), (2, 3, 70, 24), (2, 3, 50, 24)]
    return [torch.randn(shape, device=device) for shape in shapes]


@pytest.mark.parametrize("needs", SUBSETS)
def test_every_subset_of_requires_grad(tensors, needs):
    """Each combination gives the same bits as all three, and leaves the rest alone."""
    full = run(flash_attention, *tensors)
    inputs = [tensor.clone().requires_grad_(need) for tensor, need in zip(tensors, needs, strict=False)]
    flash_attention(*inputs).backward(tensors[3])
    for tensor, need, expected in zip(inputs, needs, full[1:], strict=True):
        assert (tensor.grad is not None) == need
        assert not need or torch.equal(tensor.grad, expected)


@pytest.mark.parametrize("needs", SUBSETS)
def test_what_is_not_needed_is_not_computed(tensors, needs):
    """The operator returns nothing for a gradient that nobody asked for."""
    operators = torch.ops.flash_attention
    output, lse = operators.forward_lse(*tensors[:3], 0.25, False, False)
    gradients = operators.backward(tensors[3], *tensors[:3], output, lse, 0.25, False, *needs)
    assert [gradient.numel() > 0 for gradient in gradients] == list(needs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["expanded", "zero_stride", "non_contiguous", "sliced", "unaligned"])
def test_grad_output_of_any_layout(tensors, kind, dtype):
    """output.sum().backward() passes an expanded scalar: strides of 0."""
    *inputs, grad_output = (tensor.to(dtype) for tensor in tensors)
    shape = grad_output.shape
    made = {
        "expanded": lambda: grad_output.new_ones(()).expand(shape),
        "zero_stride": lambda: grad_output[:, :1, :, :1].expand(shape),
        "non_contiguous": lambda: grad_output.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        "sliced": lambda: torch.randn(*shape[:3], 2 * shape[3]).to(grad_output)[..., ::2],
        "unaligned": lambda: torch.randn(grad_output.numel() + 1).to(grad_output)[1:].view(shape),
    }[kind]()
    assert_close(run(flash_attention, *inputs, made), reference(*inputs, made), kind)


def test_retain_graph_twice_gives_equal_bits(tensors):
    """Backward changes nothing of what it saved."""
    inputs = [tensor.clone().requires_grad_() for tensor in tensors[:3]]
    output = flash_attention(*inputs, is_causal=True)
    first = torch.autograd.grad(output, inputs, tensors[3], retain_graph=True)
    second = torch.autograd.grad(output, inputs, tensors[3])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_one_tensor_thrice(device):
    """Self-attention of one leaf: its gradient is the sum of three."""
    x = torch.randn(1, 2, 40, 16, device=device, requires_grad=True)
    output = flash_attention(x, x, x)
    output.sum().backward()
    _, *gradients = reference(x, x, x, torch.ones_like(x))
    assert_close((x.grad,), (sum(gradients),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_queries(device, dtype):
    """Gradients of shared keys and values are sums over the heads that share them."""
    query, grad_output = (torch.randn(2, 6, 33, 16, device=device).to(dtype) for _ in range(2))
    key, value = (torch.randn(2, 2, 45, 16, device=device).to(dtype) for _ in range(2))
    options = {"is_causal": True}
    actual = run(flash_attention, query, key, value, grad_output, enable_gqa=True, **options)
    assert_close(actual, reference(query, key, value, grad_output, **options))


def test_gradients_of_broadcast_inputs(device):
    """A broadcast batch dimension is summed over."""
    query, key = torch.randn(4, 2, 9, 16, device=device), torch.randn(1, 2, 11, 16, device=device)
    value, grad_output = torch.randn(4, 2, 11, 16, device=device), torch.randn(4, 2, 9, 16, device=device)
    actual = run(flash_attention, query, key, value, grad_output)
    output, dq, dk, dv = reference(query, key.expand(4, -1, -1, -1), value, grad_output)
    assert_close(actual, (output, dq, dk.sum(0, keepdim=True), dv))


def test_gradients_have_the_layout_of_their_inputs(device):
    """Transposed inputs get gradients that the projection before them can use without a copy."""
    inputs = [torch.randn(2, 30, 3, 16, device=device).transpose(1, 2).requires_grad_() for _ in range(3)]
    gradients = torch.autograd.grad(flash_attention(*inputs).sum(), inputs)
    assert all(gradient.stride() == tensor.stride() for gradient, tensor in zip(gradients, inputs, strict=True))


def test_no_keys_and_no_queries(device):
    """Gradients exist, are zero and have their shapes where one side is empty."""
    for seqlen_q, seqlen_k in ((5, 0), (0, 5), (0, 0)):
        shapes = [(1, 2, seqlen_q, 8), (1, 2, seqlen_k, 8), (1, 2, seqlen_k, 4), (1, 2, seqlen_q, 4)]
        for result in run(flash_attention, *(torch.randn(shape, device=device) for shape in shapes)):
            assert not result.any()


def test_in_place_change_is_noticed(tensors):
    """Saved tensors carry their version."""
    query = tensors[0].clone().requires_grad_() * 1
    output = flash_attention(query, *tensors[1:3])
    query.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_in_place_change_of_the_output_is_noticed(tensors):
    """The output is saved too."""
    output = flash_attention(tensors[0].requires_grad_(), *tensors[1:3])
    output.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_no_grad_and_inference_mode(tensors):
    """Nothing is recorded, the bits are the same."""
    inputs = [tensor.clone().requires_grad_() for tensor in tensors[:3]]
    recorded = flash_attention(*inputs)
    assert recorded.requires_grad
    with torch.no_grad():
        plain = flash_attention(*inputs)
    with torch.inference_mode():
        inference = flash_attention(*inputs)
    assert not plain.requires_grad
    assert inference.is_inference()
    assert torch.equal(plain, recorded.detach())
    assert torch.equal(inference, plain)


def test_anomaly_mode(tensors):
    """Works, and finds the NaN that a gradient brings."""
    inputs = [tensor.clone().requires_grad_() for tensor in tensors[:3]]
    with torch.autograd.detect_anomaly(check_nan=True):
        flash_attention(*inputs).sum().backward()
        with pytest.raises(RuntimeError, match="nan"):
            flash_attention(*inputs).backward(tensors[3] * float("nan"))


def test_double_backward_raises(tensors):
    """A gradient penalty must not lose its term, whether or not grad_output needs a gradient."""
    inputs = [tensor.clone().requires_grad_() for tensor in tensors[:3]]
    for grad_output in (tensors[3], tensors[3].clone().requires_grad_()):
        (gradient,) = torch.autograd.grad(flash_attention(*inputs), inputs[0], grad_output, create_graph=True)
        with pytest.raises(NotImplementedError, match="double backward"):
            gradient.square().sum().backward()


@pytest.mark.parametrize("nested", ["grad_grad", "hessian", "jvp", "jvp_vmap", "vmap_jvp", "jvp_grad", "direct"])
def test_transforms_without_a_formula_raise(device, nested):
    """Second derivatives and forward mode raise in every order of torch.func's transforms."""
    query = torch.randn(3, 2, 5, 8, device=device)
    key, value = torch.randn(3, 2, 6, 8, device=device), torch.randn(3, 2, 6, 8, device=device)
    func = torch.func

    def attend(x):
        return flash_attention(x, key, value)

    def loss(x):
        return attend(x).square().sum()

    def direct(x):
        return torch.ops.flash_attention.forward_lse(x, key, value, 0.3, False, False)[0]

    calls = {
        "grad_grad": lambda: func.grad(lambda x: func.grad(loss)(x).square().sum())(query),
        "hessian": lambda: func.hessian(loss)(query),
        "jvp": lambda: func.jvp(attend, (query,), (query,)),
        "jvp_vmap": lambda: func.jvp(torch.vmap(lambda x: flash_attention(x, key[0], value[0])), (query,), (query,)),
        "vmap_jvp": lambda: torch.vmap(lambda x: func.jvp(lambda y: flash_attention(y, key[0], value[0]), (x,), (x,)))(
            query
        ),
        "jvp_grad": lambda: func.jvp(func.grad(loss), (query,), (query,)),
        "direct": lambda: func.jvp(direct, (query,), (query,)),
    }
    with pytest.raises(NotImplementedError, match="flash_attention has no"):
        calls[nested]()


def test_forward_mode_raises(tensors):
    """A tangent of any input, or of grad_output, raises; an open level without tangents is no reason to."""
    query, key, value, grad_output = tensors
    recorded = flash_attention(query.clone().requires_grad_(), key, value)
    with forward_ad.dual_level():
        flash_attention(query, key, value)
        for i in range(3):
            inputs = [query, key, value]
            inputs[i] = forward_ad.make_dual(inputs[i], inputs[i])
            with pytest.raises(NotImplementedError, match="jvp"):
                flash_attention(*inputs)
        with pytest.raises(NotImplementedError, match="jvp"):
            recorded.backward(forward_ad.make_dual(grad_output, grad_output))
