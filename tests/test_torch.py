"""A good citizen of PyTorch: dispatcher, torch.compile, torch.func, autocast, saved-tensor hooks, fake tensors."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from flash_attention import FlashAttention, flash_attention
from reference import NAMES, run, sdpa

OPERATORS = torch.ops.flash_attention


@pytest.fixture
def qkv(device):
    """query, key, value of a small problem."""
    return [torch.randn(shape, device=device) for shape in [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)]]


@pytest.fixture
def leaves(qkv):
    """The same, requiring gradients."""
    return [tensor.clone().requires_grad_() for tensor in qkv]


@pytest.fixture(autouse=True)
def _forget_compiled():
    yield
    torch.compiler.reset()


def close(actual, expected):
    """Equal but for rounding."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "expanded": lambda t: t[:1].expand(t.shape),
    "columns": lambda t: t.mT.contiguous().mT,
}


@pytest.mark.oldest
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["forward", "forward_lse", "_forward_lse"])
def test_opcheck_forward(qkv, name, layout):
    """Schema, fake kernel (shapes and strides), autograd registration, AOT dispatch with dynamic shapes."""
    qkv = [LAYOUTS[layout](tensor).detach() for tensor in qkv]
    if name == "forward_lse":
        qkv[0].requires_grad_()
        qkv[2].requires_grad_()
    opcheck(getattr(OPERATORS, name), (*qkv, 0.3, True, False))


@pytest.mark.oldest
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("needs", [(True, True, True), (False, True, False)])
@pytest.mark.parametrize("name", ["backward", "_backward"])
def test_opcheck_backward(qkv, name, needs, layout):
    """The same for the gradients."""
    qkv = [LAYOUTS[layout](tensor) for tensor in qkv]
    output, lse = OPERATORS.forward_lse(*qkv, 0.3, True, False)
    opcheck(getattr(OPERATORS, name), (torch.randn_like(output), *qkv, output, lse, 0.3, True, *needs))


@pytest.mark.oldest
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_compile_forward_and_backward(device, backend, dynamic):
    """fullgraph: no graph break; dynamic shapes; gradients through a projection and a transposed view."""
    module = FlashAttention(8, is_causal=True).to(device)
    weight = torch.randn(24, 24, device=device) / 5

    def layer(x, weight):
        heads = linear(x, weight).view(x.shape[0], x.shape[1], 3, 8).transpose(1, 2)
        return module(heads, heads, heads * 2).transpose(1, 2).reshape(x.shape) + x

    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=backend)
    for seqlen in (5, 9, 13):
        x = torch.randn(2, seqlen, 24, device=device)
        for actual, expected in zip(_values(compiled, x, weight), _values(layer, x, weight), strict=True):
            close(actual, expected)
        with torch.no_grad():
            close(compiled(x, weight), layer(x, weight))


def _values(function, *arguments):
    arguments = [argument.clone().requires_grad_() for argument in arguments]
    output = function(*arguments)
    return output.detach(), *torch.autograd.grad(output.square().sum(), arguments)


@pytest.mark.parametrize(
    "shapes",
    [
        [(5, 8), (7, 8), (7, 4)],
        [(3, 5, 8), (3, 7, 8), (3, 7, 4)],
        [(2, 2, 3, 5, 8), (2, 2, 3, 7, 8), (2, 2, 3, 7, 4)],
        [(1, 3, 5, 8), (4, 3, 7, 8), (4, 1, 7, 4)],
    ],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_other_shapes(device, shapes, dynamic):
    """Folding and broadcasting trace too."""
    tensors = [torch.randn(shape, device=device) for shape in shapes]
    compiled = torch.compile(flash_attention, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    close(compiled(*tensors), sdpa(*tensors))


def test_compile_options(qkv):
    """Scale, causal, grouped queries and a learnable scale under torch.compile."""
    query, key, value = qkv
    compiled = torch.compile(flash_attention, fullgraph=True, backend="aot_eager")
    close(compiled(query, key, value, scale=0.7, is_causal=True), sdpa(query, key, value, scale=0.7, is_causal=True))
    grouped = [query, key[:, :1], value[:, :1]]
    close(compiled(*grouped, enable_gqa=True), sdpa(*grouped, enable_gqa=True))
    module = FlashAttention(8, learnable_scale=True).to(query.device)
    torch.compile(module, fullgraph=True, backend="aot_eager")(*qkv).square().sum().backward()
    compiled_grad, module.scale_multiplier.grad = module.scale_multiplier.grad, None
    module(*qkv).square().sum().backward()
    close(compiled_grad, module.scale_multiplier.grad)


def test_compile_reuses_one_graph(device):
    """Other sequence lengths do not compile again once a dimension is dynamic."""
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(flash_attention, fullgraph=True, dynamic=True, backend=counter)
    for seqlen in (5, 9, 13, 64):
        x = torch.randn(2, 3, seqlen, 8, device=device)
        compiled(x, x, x)
    assert counter.frame_count == 1


def test_compile_of_transforms(qkv):
    """torch.func inside torch.compile: right, or an error; never a zero gradient."""
    query, key, value = qkv

    def gradient(attention):
        return torch.func.grad(lambda q: attention(q, key, value).square().sum())

    close(torch.compile(gradient(flash_attention), backend="aot_eager")(query), gradient(sdpa)(query))
    with pytest.raises(Exception, match="forward-mode"):
        torch.compile(
            lambda q: torch.func.jvp(lambda x: flash_attention(x, key, value), (q,), (q,)), backend="aot_eager"
        )(query)


def test_compiled_double_backward_raises(leaves):
    """Not here either is it silent."""
    compiled = torch.compile(flash_attention, fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(*leaves).sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        gradient.square().sum().backward()


def test_export_and_make_fx(qkv):
    """torch.export and make_fx see one operator."""

    class Attend(torch.nn.Module):
        def forward(self, query, key, value):
            return flash_attention(query, key, value)

    program = torch.export.export(Attend(), tuple(qkv))
    close(program.module()(*qkv), sdpa(*qkv))
    assert sum("flash_attention" in str(node.target) for node in program.graph.nodes) == 1
    graph = torch.fx.experimental.proxy_tensor.make_fx(
        lambda *tensors: flash_attention(*tensors), tracing_mode="symbolic"
    )(*qkv)
    close(graph(*qkv), sdpa(*qkv))


def test_vmap(qkv):
    """A new dimension, anywhere, in any subset of the inputs, is more batch."""
    query, key, value = qkv
    queries = torch.randn(4, *query.shape, device=query.device)
    values = torch.randn(4, *value.shape, device=query.device)
    both = torch.stack([sdpa(q, key, v) for q, v in zip(queries, values, strict=True)])
    close(torch.vmap(flash_attention, in_dims=(0, None, 0))(queries, key, values), both)
    close(
        torch.vmap(flash_attention, in_dims=(2, None, 3), out_dims=1)(queries.movedim(0, 2), key, values.movedim(0, 3)),
        both.movedim(0, 1),
    )
    close(torch.vmap(torch.vmap(flash_attention))(*(t.unsqueeze(1) for t in qkv)), sdpa(*qkv).unsqueeze(1))


def test_vmap_and_gradients(qkv):
    """vmap of grad, grad of vmap, autograd around vmap, batched gradients: all the same numbers."""
    query, key, value = qkv
    queries = torch.randn(4, *query.shape, device=query.device)

    def loss(q, attention=flash_attention):
        return attention(q, key, value).square().sum()

    expected = torch.stack([torch.func.grad(lambda q: loss(q, sdpa))(q) for q in queries])
    close(torch.vmap(torch.func.grad(loss))(queries), expected)
    close(torch.func.grad(lambda all_: torch.vmap(loss)(all_).sum())(queries), expected)
    leaf = queries.clone().requires_grad_()
    close(torch.autograd.grad(torch.vmap(loss)(leaf).sum(), leaf)[0], expected)
    jacobian = torch.func.jacrev(lambda q: flash_attention(q, key, value))(query)
    close(jacobian, torch.func.jacrev(lambda q: sdpa(q, key, value))(query))


def test_batched_gradients(leaves):
    """torch.autograd.grad(is_grads_batched=True) maps the backward operator."""
    output = flash_attention(*leaves)
    many = torch.randn(3, *output.shape, device=output.device)
    batched = torch.autograd.grad(output, leaves, many, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(output, leaves, one, retain_graph=True) for one in many]
    for i, actual in enumerate(batched):
        close(actual, torch.stack([gradients[i] for gradients in single]))


def test_func_grad(qkv):
    """torch.func.grad and vjp, of the function and of the operator itself."""
    query, key, value = qkv
    expected = torch.func.grad(lambda q: sdpa(q, key, value).square().sum())(query)
    close(torch.func.grad(lambda q: flash_attention(q, key, value).square().sum())(query), expected)
    operator = OPERATORS.forward_lse
    scale = 8**-0.5
    close(torch.func.grad(lambda q: operator(q, key, value, scale, False, False)[0].square().sum())(query), expected)
    _, pull_back = torch.func.vjp(lambda k: flash_attention(query, k, value), key)
    _, wanted = torch.func.vjp(lambda k: sdpa(query, k, value), key)
    ones = torch.ones(2, 3, 5, 4, device=query.device)
    close(pull_back(ones), wanted(ones))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(qkv, dtype):
    """Inputs are cast before dtypes are checked; gradients come in the inputs' dtype; the bits are the cast's."""
    query, key, value = qkv
    device = query.device.type
    expected = run(flash_attention, *(t.to(dtype) for t in qkv), torch.ones(2, 3, 5, 4, device=device, dtype=dtype))
    with torch.autocast(device, dtype):
        assert flash_attention(query, key.to(dtype), value).dtype == dtype
        assert flash_attention(query[0], key[0], value[0]).dtype == dtype
        assert torch.equal(flash_attention(*qkv), expected[0])
        leaves = [tensor.clone().requires_grad_() for tensor in qkv]
        output = flash_attention(*leaves)
        assert torch.equal(output, expected[0])
        assert torch.func.grad(lambda q: flash_attention(q, key, value).float().sum())(query).dtype == torch.float32
        assert OPERATORS.forward_lse(*leaves, 0.3, False, False)[0].dtype == dtype
        module_output = FlashAttention(8, learnable_scale=True).to(device)(*leaves)
        assert module_output.dtype == dtype
    for gradient, wanted, name in zip(torch.autograd.grad(output.sum(), leaves), expected[1:], NAMES[1:], strict=True):
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, wanted.float()), name


def test_autocast_switch_is_honoured(qkv):
    """enabled=False, outside and inside; the dtype that is set at the time of the call; float64 is not cast."""
    device = qkv[0].device.type
    with torch.autocast(device, torch.bfloat16, enabled=False):
        assert flash_attention(*qkv).dtype == torch.float32
    with torch.autocast(device, torch.bfloat16):
        with torch.autocast(device, enabled=False):
            assert flash_attention(*qkv).dtype == torch.float32
        with torch.autocast(device, torch.float16):
            assert flash_attention(*qkv).dtype == torch.float16
        with pytest.raises(TypeError, match="float64"):
            flash_attention(*(tensor.double() for tensor in qkv))
    assert flash_attention(*qkv).dtype == torch.float32


def test_autocast_under_compile(leaves):
    """The cast is in the graph."""
    device = leaves[0].device.type
    compiled = torch.compile(flash_attention, fullgraph=True, backend="aot_eager")
    with torch.autocast(device, torch.bfloat16):
        output = compiled(*leaves)
        assert output.dtype == torch.bfloat16
        assert torch.equal(output, flash_attention(*leaves))
        with torch.no_grad():
            assert compiled(*leaves).dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in torch.autograd.grad(output.float().sum(), leaves))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(leaves, reentrant):
    """Recomputing forward gives the gradients of keeping it, bit for bit."""
    expected = torch.autograd.grad(flash_attention(*leaves).square().sum(), leaves)
    copies = [tensor.detach().clone().requires_grad_() for tensor in leaves]
    checkpoint(flash_attention, *copies, use_reentrant=reentrant).square().sum().backward()
    assert all(torch.equal(tensor.grad, wanted) for tensor, wanted in zip(copies, expected, strict=True))


def test_saved_tensor_hooks(leaves):
    """All that is kept for backward goes through save_for_backward: offloading sees five tensors."""
    expected = torch.autograd.grad(flash_attention(*leaves).sum(), leaves)
    with torch.autograd.graph.save_on_cpu():
        output = flash_attention(*leaves)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(output.sum(), leaves), expected, strict=True))
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: packed.append(tensor.shape) or tensor, lambda x: x):
        flash_attention(*leaves)
    assert len(packed) == 5


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (1, 2, 5, 8)])
def test_jacobian_of_a_batch_of_one(device, shape):
    """The statistics of the forward pass, repeated for every row of the Jacobian, are not contiguous."""
    query, key, value = (torch.randn(shape, device=device) for _ in range(3))
    jacobian = torch.func.jacrev(lambda q: flash_attention(q, key, value))(query)
    close(jacobian, torch.func.jacrev(lambda q: sdpa(q, key, value))(query))


@pytest.mark.filterwarnings("ignore")
def test_compiled_autograd(leaves):
    """A backward pass that is traced and compiled gives the gradients of an eager one."""
    expected = torch.autograd.grad(flash_attention(*leaves).square().sum(), leaves)
    loss = flash_attention(*leaves).square().sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        loss.backward()
    close([leaf.grad for leaf in leaves], list(expected))


def test_meta_and_fake_tensors(qkv):
    """Shapes, strides and errors without memory."""
    meta = [tensor.to("meta") for tensor in qkv]
    assert flash_attention(*meta).shape == (2, 3, 5, 4)
    leaves = [tensor.clone().requires_grad_() for tensor in meta]
    flash_attention(*leaves).sum().backward()
    assert leaves[0].grad.is_meta
    with pytest.raises(ValueError, match="head_dim"):
        flash_attention(meta[0], meta[1][..., :3], meta[2])
    broadcast = [torch.empty(batch, 4, 5, 8, device="meta") for batch in (2, 1, 1)]
    assert flash_attention(*broadcast).shape == (2, 4, 5, 8)
    with torch._subclasses.FakeTensorMode():
        fake = torch.empty(2, 50, 3, 8).transpose(1, 2).requires_grad_()
        output = flash_attention(fake, fake, fake)
        assert output.stride() == fake.stride()
        output.sum().backward()
        assert fake.grad.stride() == fake.stride()


@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (2, 1, 5, 8), (1, 3, 1, 8), (1, 1, 1, 1), (0, 3, 5, 8), (2, 3, 5, 1)])
def test_fake_kernels_tell_the_strides(device, shape):
    """For every order of dimensions, sliced or expanded, the fake strides are the real ones."""
    import itertools

    for order in itertools.permutations(range(4)):
        inverse = [order.index(i) for i in range(4)]
        dense = torch.randn([shape[i] for i in order], device=device).permute(inverse)
        sliced = torch.randn([shape[i] + 1 for i in order], device=device).permute(inverse)[tuple(map(slice, shape))]
        expanded = dense[:1].expand(shape) if shape[0] else dense
        for query in (dense, sliced, expanded):
            real = flash_attention(query, query, query)
            with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
                fake = flash_attention(*[mode.from_tensor(query)] * 3)
            assert fake.shape == real.shape
            assert fake.stride() == real.stride(), f"query has strides {query.stride()}"


def test_profiler_and_dispatch_modes_see_the_operator(qkv):
    """Tools that watch the dispatcher find the operator under its name."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        flash_attention(*qkv)
        flash_attention(*(tensor.clone().requires_grad_() for tensor in qkv)).sum().backward()
    names = ("forward", "_forward_lse", "_backward")
    assert [f"flash_attention.{name}.default" for name in names] == [name for name in seen if "flash" in name]
    with torch.profiler.profile() as profile:
        flash_attention(*qkv)
    assert "flash_attention::forward" in {event.name for event in profile.events()}


@pytest.mark.parametrize("requires_grad", [False, True])
def test_overrides_see_the_operator(qkv, requires_grad):
    """A subclass of Tensor and a mode that intercept functions get the operator, and may change its result; the short
    way of plain tensors asks nobody. Gradients are the same, and a subclass that comes as a gradient is asked, too."""
    seen = []

    class Intercepting(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return super().__torch_function__(function, types, args, kwargs or {})

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    name = "flash_attention._forward_lse.default" if requires_grad else "flash_attention.forward.default"
    plain = [tensor.clone().requires_grad_(requires_grad) for tensor in qkv]
    expected = flash_attention(*plain)
    with Mode():
        output = flash_attention(*plain)
    assert seen[-1] == name
    assert torch.equal(output, expected)
    seen.clear()
    subclass = [tensor.detach().as_subclass(Intercepting).requires_grad_(requires_grad) for tensor in qkv]
    for position in range(3):
        arguments = [*plain]
        arguments[position] = subclass[position]
        output = flash_attention(*arguments)
        assert type(output) is Intercepting
        assert seen[-1] == name
        if requires_grad:
            gradients = [
                torch.autograd.grad(result.sum(), inputs)
                for result, inputs in ((output, arguments), (flash_attention(*plain), plain))
            ]
            assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    if requires_grad:
        grad_output = torch.ones_like(expected).as_subclass(Intercepting)
        (grad_query,) = torch.autograd.grad(expected, plain[:1], grad_output)
        assert type(grad_query) is Intercepting
        assert "flash_attention._backward.default" in seen
