"""Attention over keys in several places equals attention over their concatenation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from astrolabe.models import attention as module
from astrolabe.models.attention import KeyPart, attend, attention, written_out


def draw(
    rows: int, group: int, sizes: list[int], shared: list[bool], dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, list[KeyPart]]:
    """Queries of ``rows`` groups, and parts of ``sizes`` keys each, one a group or one a query."""
    rng = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()

    parts = [
        KeyPart(*(random(rows if common else rows * group, size, 2, 8) for _ in range(2)))
        for size, common in zip(sizes, shared, strict=True)
    ]
    return random(rows * group, 5, 2, 8), parts


def concatenated(query: Tensor, parts: list[KeyPart]) -> Tensor:
    """The reference: every group's keys copied for each of its queries, and all put into one."""
    keys = [part.key.repeat_interleave(len(query) // len(part.key), 0) for part in parts]
    values = [part.value.repeat_interleave(len(query) // len(part.value), 0) for part in parts]
    return attention(query, torch.cat(keys, 1), torch.cat(values, 1))


def gradients(output: Tensor, query: Tensor, parts: list[KeyPart]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    wanted = [query, *(tensor for part in parts for tensor in (part.key, part.value))]
    return list(torch.autograd.grad((output * weights).sum(), wanted))


layouts = st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=4)


@pytest.mark.parametrize("kernel", [False, True])
@settings(deadline=None)
@given(rows=st.integers(1, 3), group=st.integers(1, 4), layout=layouts, seed=st.integers(0, 99))
def test_parts_equal_their_concatenation_forward_and_backward(
    kernel: bool, rows: int, group: int, layout: list[tuple[int, bool]], seed: int
) -> None:
    query, parts = draw(rows, group, [size for size, _ in layout], [common for _, common in layout], seed=seed)
    expected = concatenated(query, parts)
    tensors = [tensor for part in parts for tensor in (part.key, part.value)]
    found = module._Merged.apply(query, *tensors) if kernel else written_out(query, parts)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for mine, theirs in zip(gradients(found, query, parts), gradients(expected, query, parts), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("few", [0, 10**6])
def test_either_way_is_taken_by_size_and_both_agree(
    few: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEW_KEYS", few)
    query, parts = draw(2, 3, [40, 7], [True, False], dtype)
    exact_query, exact_parts = draw(2, 3, [40, 7], [True, False])
    atol = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(attend(query, parts).double(), concatenated(exact_query, exact_parts), rtol=0, atol=atol)


def test_a_frozen_history_gets_no_gradient() -> None:
    query, parts = draw(2, 3, [6, 4], [True, False])
    frozen = KeyPart(parts[0].key.detach(), parts[0].value.detach())
    module._Merged.apply(query, frozen.key, frozen.value, parts[1].key, parts[1].value).sum().backward()
    assert query.grad is not None and parts[1].key.grad is not None and frozen.key.grad is None


def test_groups_that_do_not_divide_are_refused() -> None:
    query, _ = draw(1, 5, [3], [True])
    _, parts = draw(2, 1, [3], [True])
    with pytest.raises(ValueError, match="5 queries cannot share 2 rows"):
        attend(query, parts)


def test_a_gpus_kernels_are_called_as_they_are_declared() -> None:
    """Shapes and types alone, on tensors without numbers: this needs no GPU, and proves no value."""
    with FakeTensorMode():
        query, key = (torch.randn(2, 4, n, 128, device="cuda", dtype=torch.bfloat16) for n in (192, 100))
        output, lse, rest = module._flash(query, key, key)
        assert output.shape == query.shape and lse.shape == (2, 4, 192) and lse.dtype == torch.float32
        found = module._flash_backward(output, query, key, key, output, lse, rest)
        assert [gradient.shape for gradient in found] == [query.shape, key.shape, key.shape]
