"""flash_attention() takes what scaled_dot_product_attention takes, and says clearly what it does not."""

from __future__ import annotations

import decimal
import inspect

import pytest
import torch

from flash_attention import _native, flash_attention
from reference import NAMES, assert_close, reference, run, sdpa

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(*shapes, device, dtype=torch.float32):
    """Normally distributed tensors."""
    return [torch.randn(shape, device=device).to(dtype) for shape in shapes]


def same_as_pytorch(query, key, value, **options):
    """Shape, dtype and values are those of scaled_dot_product_attention."""
    actual, expected = flash_attention(query, key, value, **options), sdpa(query, key, value, **options)
    assert actual.dtype == expected.dtype
    assert_close((actual,), (expected.double(),))


def test_signature_is_that_of_pytorch():
    """Either function can stand for the other, by position and by name."""
    names = list(inspect.signature(flash_attention).parameters.values())
    assert [p.name for p in names] == [
        *("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    ]
    assert [p.default for p in names[3:]] == [None, 0.0, False, None, False]


@pytest.mark.parametrize(
    "shapes",
    [
        [(5, 8), (7, 8), (7, 4)],
        [(3, 5, 8), (3, 7, 8), (3, 7, 4)],
        [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)],
        [(2, 2, 3, 5, 8), (2, 2, 3, 7, 8), (2, 2, 3, 7, 4)],
        [(2, 1, 2, 3, 5, 8), (2, 1, 2, 3, 7, 8), (2, 1, 2, 3, 7, 4)],
        [(1, 3, 5, 8), (4, 3, 7, 8), (1, 3, 7, 4)],
        [(4, 3, 5, 8), (1, 3, 7, 8), (4, 1, 7, 4)],
        [(2, 1, 5, 8), (4, 2, 3, 7, 8), (3, 7, 4)],
        [(5, 8), (2, 7, 8), (2, 7, 4)],
    ],
)
@pytest.mark.parametrize("is_causal", [False, True])
def test_shapes(device, shapes, is_causal):
    """2 to 6 dimensions, broadcasting before the last two."""
    same_as_pytorch(*make(*shapes, device=device), is_causal=is_causal)


@pytest.mark.parametrize("heads", [(6, 2), (6, 1), (6, 6), (4, 2)])
def test_grouped_queries(device, heads):
    """enable_gqa shares each key and value head among consecutive query heads, with 3 to 5 dimensions."""
    q, kv = heads
    for batch in ((), (2,), (2, 2)):
        tensors = make((*batch, q, 5, 8), (*batch, kv, 7, 8), (*batch, kv, 7, 4), device=device)
        same_as_pytorch(*tensors, enable_gqa=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dims", [(1, 1), (3, 5), (7, 64), (80, 80), (100, 33), (255, 17), (256, 256)])
def test_head_dims(device, dtype, head_dims):
    """1 to 256, odd ones too, V's its own; forward and gradients."""
    dim, dim_v = head_dims
    tensors = make((1, 2, 37, dim), (1, 2, 53, dim), (1, 2, 53, dim_v), (1, 2, 37, dim_v), device=device, dtype=dtype)
    assert_close(run(flash_attention, *tensors), reference(*tensors), f"{head_dims}")


LENGTHS = [0, 1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 191, 257]


def check_lengths(device, dtype, is_causal):
    """Every one of LENGTHS with several others."""
    for i, seqlen_q in enumerate(LENGTHS):
        for seqlen_k in {seqlen_q, LENGTHS[-1 - i], LENGTHS[(3 * i + 1) % len(LENGTHS)], 1, 300}:
            shapes = [(1, 1, seqlen_q, 16), (1, 1, seqlen_k, 16), (1, 1, seqlen_k, 16), (1, 1, seqlen_q, 16)]
            tensors = make(*shapes, device=device, dtype=dtype)
            actual = run(flash_attention, *tensors, is_causal=is_causal)
            peer = run(sdpa, *tensors, is_causal=is_causal) if seqlen_k == 1 and seqlen_q else None
            assert_close(actual, reference(*tensors, is_causal=is_causal), f"{seqlen_q} x {seqlen_k}", peer)


@pytest.mark.parametrize("is_causal", [False, True])
def test_sequence_lengths(device, is_causal):
    """Around the borders of every block size, 0 and 1, query's and key's not equal."""
    check_lengths(device, torch.float32, is_causal)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_sequence_lengths_of_16_bits(cuda, dtype, is_causal):
    """The same of tensor cores, which have other blocks for 16 bits."""
    check_lengths(cuda, dtype, is_causal)


@pytest.mark.parametrize("sizes", [(0, 2, 5, 7), (2, 0, 5, 7), (2, 2, 0, 7), (2, 2, 5, 0), (0, 0, 0, 0)])
def test_empty(device, sizes):
    """An empty batch gives an empty result; no keys give zeros."""
    batch, heads, seqlen_q, seqlen_k = sizes
    shapes = [(batch, heads, seqlen_q, 8), (batch, heads, seqlen_k, 8), (batch, heads, seqlen_k, 4)]
    for is_causal in (False, True):
        output = flash_attention(*make(*shapes, device=device), is_causal=is_causal)
        assert output.shape == (batch, heads, seqlen_q, 4)
        assert not output.any()


def _layouts(tensor):
    """The same values in other layouts."""
    batch, heads, seqlen, dim = tensor.shape
    wide = tensor.new_full((batch, heads, 2 * seqlen, 2 * dim), float("nan"))
    wide[:, :, ::2, ::2] = tensor
    sliced = tensor.new_full((batch, heads, seqlen + 3, dim + 5), float("nan"))
    sliced[:, :, 1:-2, 3:-2] = tensor
    odd = tensor.new_full((batch, heads, seqlen, dim + 1), float("nan"))[..., :-1]
    odd.copy_(tensor)
    return {
        "transposed": tensor.transpose(1, 2).contiguous().transpose(1, 2),
        "heads last": tensor.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "columns": tensor.mT.contiguous().mT,
        "batch inside": tensor.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "steps": wide[:, :, ::2, ::2],
        "sliced": sliced[:, :, 1:-2, 3:-2],
        "odd rows": odd,
        "unaligned": _shifted(tensor, 1),
        "aligned to half a vector": _shifted(tensor, 4),
    }


def _shifted(tensor, offset):
    """The same values, `offset` elements behind the beginning of their memory."""
    return tensor.new_empty(tensor.numel() + offset)[offset:].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_strides(device, which, dtype):
    """Whatever a view can be: equal bits, forward and backward, from every layout of every input."""
    shapes = [(2, 3, 33, 24), (2, 3, 41, 24), (2, 3, 41, 20), (2, 3, 33, 20)]
    tensors = make(*shapes, device=device, dtype=dtype)
    expected = run(flash_attention, *tensors, is_causal=True)
    for name, view in _layouts(tensors[which]).items():
        arguments = [*tensors[:which], view, *tensors[which + 1 :]]
        for result, wanted in zip(run(flash_attention, *arguments, is_causal=True), expected, strict=True):
            assert torch.equal(result, wanted), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dims", [(64, 64), (128, 80)])
def test_strides_of_long_rows(cuda, deterministic, head_dims, dtype):
    """The same where rows are copied as whole vectors, and blocks of queries and keys are several.

    On Hopper at 16 bits, what TMA cannot read is computed by the portable kernels, which sum in another order.
    """
    dim, dim_v = head_dims
    shapes = [(2, 2, 301, dim), (2, 2, 333, dim), (2, 2, 333, dim_v), (2, 2, 301, dim_v)]
    tensors = make(*shapes, device=cuda, dtype=dtype)
    expected = run(flash_attention, *tensors, is_causal=True)
    exact = reference(*tensors, is_causal=True)
    assert_close(expected, exact)
    has_tma = torch.cuda.get_device_capability(cuda) == (9, 0) and dtype != torch.float32
    for which, tensor in enumerate(tensors):
        for name, view in _layouts(tensor).items():
            arguments = [*tensors[:which], view, *tensors[which + 1 :]]
            results = run(flash_attention, *arguments, is_causal=True)
            assert_close(results, exact, f"{name} of tensor {which}")
            if has_tma and not _can_be_mapped(view):
                continue
            for result, wanted in zip(results, expected, strict=True):
                assert torch.equal(result, wanted), f"{name} of tensor {which}"


def _can_be_mapped(tensor):
    """Can TMA read it? Rows of neighbours, from multiples of 16 bytes on."""
    step = 16 // tensor.element_size()
    return tensor.stride(-1) == 1 and tensor.data_ptr() % 16 == 0 and all(s % step == 0 for s in tensor.stride()[:-1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_expanded(device, dtype):
    """Strides of 0 in any dimension."""
    shapes = [(1, 1, 33, 16), (1, 1, 1, 16), (1, 1, 41, 1), (1, 1, 33, 16)]
    query, key, value, grad_output = make(*shapes, device=device, dtype=dtype)
    views = [query.expand(2, 3, 33, 16), key.expand(2, 3, 41, 16), value.expand(2, 3, 41, 16)]
    views.append(grad_output.expand(2, 3, 33, 16))
    actual = run(flash_attention, *views)
    assert_close(actual, reference(*views))
    assert actual[0].is_contiguous()


def test_offsets_past_two_to_the_31(device):
    """Offsets are 64 bits wide: heads 3 * 2**30 elements apart, with most of the memory never touched."""
    far = 3 * 2**30
    storage = torch.empty(far + 4096, dtype=torch.bfloat16, device=device)
    query = storage.as_strided((1, 2, 20, 16), (0, far, 16, 1))
    query.copy_(torch.randn(1, 2, 20, 16))
    key = storage.as_strided((1, 2, 20, 16), (0, far, 16, 1), 1024)
    key.copy_(torch.randn(1, 2, 20, 16))
    value, grad_output = make((1, 2, 20, 16), (1, 2, 20, 16), device=device, dtype=torch.bfloat16)
    assert_close(run(flash_attention, query, key, value, grad_output), reference(query, key, value, grad_output))


@pytest.mark.parametrize(
    ("dtype", "gradient"), [(torch.bfloat16, "expanded"), (torch.bfloat16, "dense"), (torch.float32, "dense")]
)
@pytest.mark.parametrize("large", ["query", "key"])
def test_more_than_two_to_the_31_elements(cuda, much_memory, large, dtype, gradient):
    """Each of them is read or written, forward and backward, and the last are as right as the first. An expanded
    gradient keeps backward to the portable kernels; a dense one has as many elements as the query."""
    needed = (31 if gradient == "dense" and large == "query" else 26) * dtype.itemsize / 2
    if much_memory < needed:
        pytest.skip(f"needs {needed:.0f} GiB of the GPU's memory, {much_memory:.0f} are free")
    heads, few, many, dim = 64, 16, 2**31 // (64 * 128) + 64, 128
    lengths = (many, few) if large == "query" else (few, many)
    options = {"dtype": dtype, "device": cuda}
    query = torch.randn(1, heads, lengths[0], dim, **options)
    key, value = (torch.randn(1, heads, lengths[1], dim, **options) for _ in range(2))
    assert max(query.numel(), key.numel()) > 2**31
    of_gradient = (1, 1, 1, dim) if gradient == "expanded" else query.shape
    grad_output = torch.randn(of_gradient, **options).expand(query.shape)
    results = run(flash_attention, query, key, value, grad_output)
    for head in (0, heads - 1):
        tensors = [tensor[:, head : head + 1] for tensor in (query, key, value, grad_output)]
        peer = run(sdpa, *tensors)
        assert_close([result[:, head : head + 1] for result in results], reference(*tensors), f"head {head}", peer)


@pytest.mark.parametrize("batch_heads", [(70000, 1), (1, 70000), (300, 300)])
def test_many_heads(device, batch_heads):
    """batch * heads past 65535, as window attention has."""
    tensors = make(*[(*batch_heads, 4, 8)] * 4, device=device)
    assert_close(run(flash_attention, *tensors), reference(*tensors))


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_heads_of_several_blocks(cuda, much_memory, deterministic, dtype):
    """The same with more blocks of threads than 2**16 in each phase, and shared keys."""
    shapes = [(1100, 64, 150, 16), (1100, 32, 70, 16), (1100, 32, 70, 16), (1100, 64, 150, 16)]
    tensors = make(*shapes, device=cuda, dtype=dtype)
    results = run(flash_attention, *tensors, is_causal=True, enable_gqa=True)
    for batch in (slice(0, 4), slice(1022, 1026), slice(1096, 1100)):
        expected = reference(*(tensor[batch] for tensor in tensors), is_causal=True)
        assert_close([result[batch] for result in results], expected, f"{batch}")


QUERIES = {
    "contiguous": lambda: torch.randn(2, 3, 4, 8),
    "transposed": lambda: torch.randn(2, 4, 3, 8).transpose(1, 2),
    "columns": lambda: torch.randn(2, 3, 8, 4).mT,
    "batch inside": lambda: torch.randn(4, 3, 8, 2).permute(3, 1, 0, 2),
    "sliced": lambda: torch.randn(2, 4, 3, 16).transpose(1, 2)[..., 3:11],
    "one row": lambda: torch.randn(2, 1, 3, 8).transpose(1, 2),
    "one head": lambda: torch.randn(2, 4, 1, 8).transpose(1, 2),
    "one of all": lambda: torch.randn(1, 1, 1, 8),
    "no rows": lambda: torch.randn(2, 0, 3, 8).transpose(1, 2),
}


@pytest.mark.parametrize("layout", QUERIES)
def test_output_has_the_order_of_query(device, layout):
    """What torch.empty_like gives for a dense query, so that the projection after it needs no copy."""
    query = QUERIES[layout]().to(device)
    output = flash_attention(query, query.contiguous(), query.contiguous())
    expected = torch.empty_like(query)
    sizes = [i for i in range(4) if query.shape[i] > 1]
    assert [output.stride(i) for i in sizes] == [expected.stride(i) for i in sizes]


@pytest.mark.parametrize("layout", ["expanded", "overlapping"])
def test_output_is_contiguous_where_query_overlaps_itself(device, layout):
    """There is no order to keep."""
    base = torch.randn(4, 3, 8, device=device)
    query = (
        base.expand(2, 4, 3, 8).transpose(1, 2) if layout == "expanded" else base.as_strided((2, 3, 4, 8), (8, 8, 1, 1))
    )
    assert flash_attention(query, query.contiguous(), query.contiguous()).is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeated_calls_give_equal_bits(device, dtype):
    """Forward and backward are deterministic, under use_deterministic_algorithms too."""
    tensors = make(*[(2, 3, 200, 32)] * 4, device=device, dtype=dtype)
    # On a GPU 16-bit gradients are added in the order in which blocks end, unless that is forbidden.
    by_default = NAMES if device.type == "cpu" or dtype == torch.float32 else NAMES[:1]
    first = dict(zip(NAMES, run(flash_attention, *tensors, is_causal=True), strict=True))
    torch.use_deterministic_algorithms(True)
    try:
        runs = [run(flash_attention, *tensors, is_causal=True) for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for again in runs[1:] for a, b in zip(again, runs[0], strict=True))
    again = dict(zip(NAMES, runs[0], strict=True))
    assert all(torch.equal(first[name], again[name]) for name in by_default)


def _wrong(q, k, v):
    """Wrong calls: arguments, exception, what its message must hold."""
    return {
        "query no tensor": ((1, k, v), {}, TypeError, "query is 1 .*must be a torch.Tensor"),
        "value None": ((q, k, None), {}, TypeError, "value is None"),
        "float64": ((q.double(), k.double(), v.double()), {}, TypeError, "query has dtype torch.float64, must"),
        "other dtype": ((q, k.half(), v), {}, TypeError, "key has dtype torch.float16, must have query's"),
        "sparse": ((q.to_sparse(), k, v), {}, TypeError, "query is a sparse_coo tensor"),
        "one dimension": ((q[0, 0, 0], k, v), {}, ValueError, r"query has shape \(8,\), must have at least 2"),
        "key head_dim": ((q, k[..., :3], v), {}, ValueError, "key has head_dim 3, must have query's, 8"),
        "value seqlen": ((q, k, v[:, :, :3]), {}, ValueError, "value has seqlen 3, must have key's, 7"),
        "head_dim 0": ((q[..., :0], k[..., :0], v), {}, ValueError, "query has head_dim 0"),
        "head_dim_v 257": ((q, k, v[..., :1].expand(2, 4, 7, 257)), {}, ValueError, "value has head_dim 257"),
        "batch": ((q, torch.cat([k, k]), v), {}, ValueError, "must have batch and head dimensions that broadcast"),
        "heads": ((q, k[:, :2], v[:, :2]), {}, ValueError, "enable_gqa=True"),
        "gqa heads": ((q, k[:, :3], v[:, :3]), {"enable_gqa": True}, ValueError, "divide query's"),
        "mask": ((q, k, v), {"attn_mask": torch.ones(5, 7)}, NotImplementedError, r"attn_mask is of shape \(5, 7\)"),
        "dropout": ((q, k, v), {"dropout_p": 0.1}, NotImplementedError, "dropout_p is 0.1"),
        "dropout 2": ((q, k, v), {"dropout_p": 2.0}, ValueError, "dropout_p is 2.0, must be between"),
        "dropout text": ((q, k, v), {"dropout_p": "no"}, TypeError, "dropout_p is 'no'"),
        "scale in the place of is_causal": ((q, k, v, None, 0.0, 0.125), {}, TypeError, "is_causal is 0.125"),
        "scale text": ((q, k, v), {"scale": "x"}, TypeError, "scale is 'x'"),
        "scale nan": ((q, k, v), {"scale": float("nan")}, ValueError, "scale is nan, must be finite"),
        "scale tensor": ((q, k, v), {"scale": torch.tensor(0.3)}, TypeError, "scale is tensor"),
        "scale decimal": ((q, k, v), {"scale": decimal.Decimal("0.3")}, TypeError, "scale is Decimal"),
        "scale bool": ((q, k, v), {"scale": True}, TypeError, "scale is True"),
        "scale past float": ((q, k, v), {"scale": 10**400}, ValueError, "scale is past 1e308 .type int., must be"),
        "scale past float32": ((q, k, v), {"scale": -3.5e38}, ValueError, r"scale is -3.5e\+38, must be finite in fl"),
        "dropout tensor": ((q, k, v), {"dropout_p": torch.zeros(2)}, TypeError, "dropout_p is tensor"),
        "enable_gqa": ((q, k, v), {"enable_gqa": 1}, TypeError, "enable_gqa is 1"),
    }


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("case", _wrong(*[torch.zeros(2, 4, 7, 8)] * 3))
def test_wrong_input_is_named(case, requires_grad):
    """The message names the argument, what it was and what it must be."""
    q, k, v = torch.zeros(2, 4, 5, 8, requires_grad=requires_grad), torch.zeros(2, 4, 7, 8), torch.zeros(2, 4, 7, 6)
    arguments, options, exception, message = _wrong(q, k, v)[case]
    with pytest.raises(exception, match=message):
        flash_attention(*arguments, **options)


def test_other_devices_are_refused(cuda):
    """No silent copy from another device."""
    q = torch.zeros(1, 1, 4, 8)
    with pytest.raises(ValueError, match="key is on device cuda"):
        flash_attention(q, q.to(cuda), q)


@pytest.mark.parametrize("name", ["forward", "forward_lse"])
def test_operators_check_their_arguments(device, name):
    """A direct call of an operator with shapes that do not fit fails; it never reads out of bounds."""
    operator = getattr(torch.ops.flash_attention, name)
    q, k, v = make((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 6), device=device)
    wrong = [
        (q[0], k, v),
        (q, k[:1], v),
        (q, k[:, :1], v),
        (q, k, v[:, :, :6]),
        (q, k[..., :7], v),
        (q, k.half(), v),
        (q.double(), k.double(), v.double()),
        (q, k[:, :0], v[:, :0]),
    ]
    for arguments in wrong:
        with pytest.raises(RuntimeError, match=r"flash_attention\[[12]\]"):
            operator(*arguments, 0.3, False, False)
    with pytest.raises(RuntimeError, match="must be finite"):
        operator(q, k, v, float("inf"), False, False)


def test_backward_operator_checks_its_arguments(device):
    """The same for backward: statistics and outputs of another call are refused by their shapes."""
    q, k, v = make((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 6), device=device)
    output, lse = torch.ops.flash_attention.forward_lse(q, k, v, 0.3, False, False)
    backward = torch.ops.flash_attention.backward
    right = [output, q, k, v, output, lse]
    backward(*right, 0.3, False, True, True, True)
    strided = torch.zeros(2, 4, 5, 4, device=device)[..., ::2]
    for i, wrong in ((0, output[:1]), (0, output.half()), (4, output[:, :, :4]), (5, lse[..., :1]), (5, strided)):
        with pytest.raises(RuntimeError, match=r"flash_attention\[[12]\]"):
            backward(*right[:i], wrong, *right[i + 1 :], 0.3, False, True, True, True)


def test_out_of_memory_is_pytorchs_exception(device):
    """An output that no machine holds: torch.OutOfMemoryError, and the next call works."""
    q = torch.zeros(1, 1, 1, 256, device=device).expand(1, 2**10, 2**40, 256)
    k = torch.zeros(1, 2**10, 1, 256, device=device)
    with pytest.raises(torch.OutOfMemoryError):
        flash_attention(q, k, k)
    assert flash_attention(k, k, k).shape == k.shape


def test_tiny_calls_take_the_vector_kernels():
    """Where there is AMX, a call with next to nothing to compute is not slowed down by setting up tiles."""
    if _native.device_target("cpu") != "cpu:avx512_amx":
        pytest.skip("needs a processor with AMX")
    for seqlen, target in ((9, "cpu:avx512_bf16"), (100, "cpu:avx512_amx")):
        tensors = make(*[(1, 1, seqlen, 23)] * 3, device="cpu")
        before = {entry.key for entry in _native.cache_entries()}
        flash_attention(*tensors)
        new = [entry.text for entry in _native.cache_entries() if entry.key not in before and entry.kind == "kernel"]
        assert [target in text for text in new] == [True]
