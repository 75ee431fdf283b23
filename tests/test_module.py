"""FlashAttention, the module: its parameter survives what PyTorch does to modules, and the scale stays exact."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from flash_attention import FlashAttention, flash_attention
from reference import assert_close, reference

TENTH = torch.tensor([0.1]).item()  # not a power of two: a cast to half and back would change it


def qkv(*shape: int, requires_grad: bool = False) -> list[torch.Tensor]:
    """Three random tensors."""
    return [torch.randn(shape or (2, 3, 20, 16), requires_grad=requires_grad) for _ in range(3)]


def tenth() -> FlashAttention:
    """A module whose multiplier is 0.1, as a checkpoint gives it."""
    module = FlashAttention(16)
    module.load_state_dict({"scale_multiplier": torch.tensor([0.1])})
    return module


def assert_is_tenth(module: FlashAttention) -> None:
    """The module computes with exactly 0.1, and its parameter says so as well as its dtype can."""
    tensors = qkv()
    assert torch.equal(module(*tensors), flash_attention(*tensors, scale=0.25 * TENTH))
    assert torch.equal(module.scale_multiplier.detach(), torch.tensor([0.1]).to(module.scale_multiplier.dtype))


def test_equals_the_function():
    """module(query, key, value) is flash_attention() with the module's options."""
    tensors = qkv()
    for options in ({}, {"is_causal": True}, {"scale": 0.7}, {"scale": -1.0, "is_causal": True}):
        assert torch.equal(FlashAttention(16, **options)(*tensors), flash_attention(*tensors, **options))


def test_one_frozen_parameter():
    """Optimizers get something to hold; training leaves it alone."""
    module = FlashAttention(16)
    (parameter,) = module.parameters()
    assert parameter.shape == (1,)
    assert parameter.item() == 1.0
    assert not parameter.requires_grad
    optimizer = torch.optim.Adam(module.parameters(), lr=1.0)
    tensors = qkv(requires_grad=True)
    module(*tensors).sum().backward()
    optimizer.step()
    assert parameter.item() == 1.0


def test_frozen_multiplier_is_not_read_in_a_call():
    """Reading it would stop the host until the device is done. Here: its value has no effect."""
    module = FlashAttention(16)
    tensors = qkv()
    expected = module(*tensors)
    module.scale_multiplier.data.fill_(float("nan"))
    assert torch.equal(module(*tensors), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.half().float(),
        lambda module: module.to(torch.bfloat16).to(torch.float32),
        lambda module: module.double().float(),
        lambda module: module.cpu(),
        copy.copy,
        copy.deepcopy,
        lambda module: pickle.loads(pickle.dumps(module)),
        lambda module: nn.Sequential(module).half().float()[0],
        lambda module: module.to("meta").to_empty(device="cpu"),
        lambda module: module.to_empty(device="cpu"),
        lambda module: module.train().eval().requires_grad_(True).requires_grad_(False),
        lambda module: module.share_memory(),
    ],
)
def test_scale_stays_exact(change):
    """Casts, copies, pickling and the meta device change neither the scale nor, at last, the parameter."""
    assert_is_tenth(change(tenth()))


def test_half_module_computes_with_the_exact_scale():
    """half() rounds the parameter, not the scale."""
    module = tenth().half()
    assert module.scale_multiplier.dtype == torch.float16
    assert_is_tenth(module)


def test_save_and_load():
    """torch.save of a state_dict and of a module."""
    file = io.BytesIO()
    torch.save(tenth().state_dict(), file)
    module = FlashAttention(16)
    module.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    assert_is_tenth(module)
    file = io.BytesIO()
    torch.save(tenth(), file)
    assert_is_tenth(torch.load(io.BytesIO(file.getvalue()), weights_only=False))


def test_checkpoint_without_the_parameter_loads():
    """A checkpoint of the same model with another attention is complete: strict loading says nothing."""
    model = nn.Sequential(nn.Linear(4, 4), FlashAttention(16))
    checkpoint = {name: value for name, value in model.state_dict().items() if name.startswith("0.")}
    result = model.load_state_dict(checkpoint, strict=True)
    assert not result.missing_keys
    assert not result.unexpected_keys
    module = tenth()
    module.load_state_dict({})
    assert_is_tenth(module)


def test_load_with_assign():
    """load_state_dict(assign=True), with which meta modules are filled."""
    with torch.device("meta"):
        module = FlashAttention(16)
    module.load_state_dict({"scale_multiplier": torch.tensor([0.1])}, assign=True)
    assert_is_tenth(module)


def test_meta_device_then_to_empty():
    """to_empty leaves memory as it finds it; the parameter is restored, as is a learnable one that never had memory."""
    with torch.device("meta"):
        model = nn.Sequential(FlashAttention(16), FlashAttention(16, learnable_scale=True))
    assert model[0](*(tensor.to("meta") for tensor in qkv())).is_meta
    model.to_empty(device="cpu")
    assert [parameter.item() for parameter in model.parameters()] == [1.0, 1.0]
    assert torch.isfinite(model[0](*qkv())).all()


def test_reset_parameters():
    """What FSDP calls to fill a module that was made on the meta device."""
    module = tenth()
    module.reset_parameters()
    tensors = qkv()
    assert torch.equal(module(*tensors), flash_attention(*tensors))
    assert module.scale_multiplier.item() == 1.0


@pytest.mark.parametrize("multiplier", [1.0, 0.3, -2.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learnable_scale(dtype, multiplier):
    """Its gradient is sum(query * grad_query), grad_query before the factor; at 0 too, where dividing would fail."""
    module = FlashAttention(16, learnable_scale=True)
    assert module.scale_multiplier.requires_grad
    with torch.no_grad():
        module.scale_multiplier.fill_(multiplier)
    query, key, value = (tensor.to(dtype).requires_grad_() for tensor in qkv())
    grad_output = torch.randn_like(query)
    output = module(query, key, value)
    output.backward(grad_output)
    factor = module.scale_multiplier.detach()
    scaled = (query.detach().float() * factor).to(dtype)
    expected = reference(scaled, key, value, grad_output)
    assert_close((output.detach(),), expected)
    assert_close((query.grad,), (expected[1] * factor.double(),))
    wanted = (query.detach().double() * expected[1]).sum()
    slack = 1e-5 if dtype == torch.float32 else 3e-2
    assert abs(module.scale_multiplier.grad.item() - wanted) <= slack * (query.double() * expected[1]).abs().sum()


def test_learnable_scale_learns():
    """An optimizer moves it, and state_dict carries it."""
    module = FlashAttention(16, learnable_scale=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    tensors = qkv()
    module(*tensors).square().sum().backward()
    optimizer.step()
    other = FlashAttention(16, learnable_scale=True)
    other.load_state_dict(module.state_dict())
    assert module.scale_multiplier.item() != 1.0
    assert torch.equal(other(*tensors), module(*tensors))


def test_unfrozen_multiplier_is_learnable():
    """requires_grad_(True) after construction, and a tensor in the parameter's place: gradients of a learnable one."""
    tensors = qkv()
    module, learnable = FlashAttention(16).requires_grad_(True), FlashAttention(16, learnable_scale=True)
    with torch.no_grad():
        module.scale_multiplier.fill_(0.3)
        learnable.scale_multiplier.fill_(0.3)
    module, learnable = module.double().float(), learnable.double().float()
    for each in (module, learnable):
        each(*tensors).square().sum().backward()
    assert module.scale_multiplier.item() == learnable.scale_multiplier.item()
    assert torch.equal(module.scale_multiplier.grad, learnable.scale_multiplier.grad)
    factor = learnable.scale_multiplier.detach().clone().requires_grad_()
    output = torch.func.functional_call(FlashAttention(16), {"scale_multiplier": factor}, tuple(tensors))
    output.square().sum().backward()
    assert torch.equal(factor.grad, learnable.scale_multiplier.grad)


def test_frozen_again_keeps_what_was_trained():
    """Unfreeze, train, freeze: calls, casts, copies and torch.compile take the trained value, not the one before."""
    tensors = qkv()
    changes = {
        "call": lambda module: module,
        "half": lambda module: module.half().float(),
        "copy": copy.deepcopy,
        "pickle": lambda module: pickle.loads(pickle.dumps(module)),
        "compile": lambda module: torch.compile(module, fullgraph=True, backend="aot_eager"),
    }
    for name, change in changes.items():
        module = FlashAttention(16).requires_grad_(True)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        called = change(module) if name == "compile" else module
        called(*tensors).square().sum().backward()
        optimizer.step()
        module.requires_grad_(False)
        trained = module.scale_multiplier.item()
        assert trained != 1.0
        called = called if name == "compile" else change(module)
        for _ in range(2):
            torch.testing.assert_close(called(*tensors), flash_attention(*tensors, scale=0.25 * trained), msg=name)


def test_frozen_multiplier_is_read_once_after_a_write():
    """A write in place counts; what a later write that nobody can see leaves is not read."""
    module = FlashAttention(16)
    tensors = qkv()
    module.scale_multiplier.fill_(0.3)
    expected = flash_attention(*tensors, scale=0.25 * module.scale_multiplier.item())
    assert torch.equal(module(*tensors), expected)
    module.scale_multiplier.data.fill_(float("nan"))
    assert torch.equal(module(*tensors), expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_functional_call_with_a_frozen_tensor(compiled):
    """What is put in the parameter's place counts, for that call only, and costs a half module no digit."""
    module, tensors = tenth().half(), qkv()

    def call(*arguments):
        return torch.func.functional_call(*arguments)

    if compiled:
        call = torch.compile(call, fullgraph=True, backend="aot_eager")
    replacements = [torch.tensor([0.3]), torch.tensor([2.0])]
    if not compiled:  # with a parameter of requires_grad=False torch.compile takes the module's own value
        replacements.append(nn.Parameter(torch.tensor([3.0]), requires_grad=False))
    for factor in replacements:
        output = call(module, {"scale_multiplier": factor}, tuple(tensors))
        torch.testing.assert_close(output, flash_attention(*tensors, scale=0.25 * factor.item()))
        assert_is_tenth(module)


def test_multiplier_survives_inference_mode():
    """Tensors made there have no version."""
    with torch.inference_mode():
        module = tenth()
        assert_is_tenth(module)
        assert_is_tenth(module.half().float())


def test_frozen_learnable_multiplier():
    """requires_grad_(False) freezes one that learnable_scale=True made, at the value that it has."""
    module, tensors = FlashAttention(16, learnable_scale=True), qkv()
    with torch.no_grad():
        module.scale_multiplier.fill_(0.5)
    module(*tensors)
    module.requires_grad_(False)
    assert torch.equal(module(*tensors), flash_attention(*tensors, scale=0.125))
    assert module.half().float().scale_multiplier.item() == 0.5


def test_grouped_queries():
    """Fewer key and value heads than query heads are shared."""
    query, key, value = torch.randn(1, 6, 5, 16), torch.randn(1, 2, 7, 16), torch.randn(1, 2, 7, 16)
    assert torch.equal(FlashAttention(16)(query, key, value), flash_attention(query, key, value, enable_gqa=True))


@pytest.mark.parametrize(
    ("options", "exception", "message"),
    [
        ({"head_dim": 0}, ValueError, "head_dim is 0, must be 1 to 256"),
        ({"head_dim": 257}, ValueError, "head_dim is 257"),
        ({"head_dim": 64.0}, TypeError, "head_dim is 64.0, must be an int"),
        ({"head_dim": 64, "scale": "x"}, TypeError, "scale is 'x'"),
        ({"head_dim": 64, "scale": float("inf")}, ValueError, "scale is inf"),
        ({"head_dim": 64, "is_causal": 1}, TypeError, "is_causal is 1"),
        ({"head_dim": 64, "learnable_scale": None}, TypeError, "learnable_scale is None"),
    ],
)
def test_wrong_options_are_named(options, exception, message):
    """The constructor says which argument is wrong."""
    with pytest.raises(exception, match=message):
        FlashAttention(**options)


def test_wrong_head_dim_is_named():
    """A module made for another head_dim is a bug of the caller's, not another attention."""
    with pytest.raises(ValueError, match=r"query has head_dim 16 .*, must have 64"):
        FlashAttention(64)(*qkv())


@pytest.mark.parametrize("learnable_scale", [False, True])
def test_wrong_input_is_named(learnable_scale):
    """As flash_attention() does."""
    module = FlashAttention(16, learnable_scale=learnable_scale)
    query, key, value = qkv()
    with pytest.raises(TypeError, match="query is None"):
        module(None, key, value)
    with pytest.raises(ValueError, match=r"query has shape \(\)"):
        module(torch.tensor(1.0), key, value)
    with pytest.raises(TypeError, match=r"key has dtype torch.float16"):
        module(query, key.half(), value)


@pytest.fixture
def process_group(tmp_path):
    """A group of one process."""
    distributed = pytest.importorskip("torch.distributed")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Layer(nn.Module):
    """A projection before the attention, so that a frozen scale is not the only parameter."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.project = nn.Linear(16, 48)
        self.attention = FlashAttention(16, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (batch, heads, seqlen, 16)."""
        return self.attention(*self.project(x).chunk(3, -1))


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp", "fsdp_flat", "fully_shard"])
@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_distributed_wrappers(process_group, wrapper, learnable):
    """DDP and both FSDPs wrap the module, train it and give its state_dict back; the scale stays exact."""
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.nn.parallel import DistributedDataParallel

    layer = Layer(learnable_scale=learnable)
    layer.attention.load_state_dict({"scale_multiplier": torch.tensor([0.1])})
    expected = copy.deepcopy(layer)
    if wrapper.startswith("fsdp") and not torch.cuda.is_available():
        original = wrapper == "fsdp"
        wrapped = FullyShardedDataParallel(layer, use_orig_params=original, device_id=torch.device("cpu"))
    elif wrapper == "fully_shard":
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        wrapped = fully_shard(layer, mesh=mesh)
    else:
        wrapped = DistributedDataParallel(layer)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01)
    x = torch.randn(2, 3, 20, 16)
    for _ in range(2):
        output = wrapped(x)
        output.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    other = torch.optim.SGD(expected.parameters(), lr=0.01)
    for _ in range(2):
        reference_output = expected(x)
        reference_output.sum().backward()
        other.step()
        other.zero_grad()
    torch.testing.assert_close(output, reference_output, rtol=1e-4, atol=1e-4)
    state = {name.removeprefix("module."): value for name, value in wrapped.state_dict().items()}
    state = {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in state.items()}
    restored = Layer(learnable_scale=learnable)
    restored.load_state_dict(state)
    if not learnable:
        assert_is_tenth(restored.attention)
