"""Attention over a shared prompt against plain attention over copies of it, for any shape."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache

from bwm_pipelines.shared_prefix import SharedPrefixCache, attend

SIZE = 8


def random_prompts(lengths: list[int], kv_heads: int, num_layers: int = 1) -> list[DynamicCache]:
    prompts = [DynamicCache() for _ in lengths]
    for prompt, length in zip(prompts, lengths, strict=True):
        for layer in range(num_layers):
            prompt.update(torch.randn(1, kv_heads, length, SIZE), torch.randn(1, kv_heads, length, SIZE), layer)
    return prompts


def plain_attention(
    prompt: DynamicCache, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Queries [K, H, D] over a copy of the prompt and suffixes [K, F, T, D] -> [K, H * D]."""
    layer, rows = prompt.layers[0], len(query)
    keys = torch.cat([layer.keys.expand(rows, -1, -1, -1), keys], dim=2)
    values = torch.cat([layer.values.expand(rows, -1, -1, -1), values], dim=2)
    out = scaled_dot_product_attention(query[:, :, None], keys, values, scale=1.0, enable_gqa=True)
    return out.reshape(rows, -1)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=2),
    num_candidates=st.integers(1, 5),
    kv_heads=st.integers(1, 3),
    queries_per_head=st.integers(1, 3),
    num_tokens=st.integers(1, 6),
    fixed_window=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention_is_that_over_copies(
    lengths, num_candidates, kv_heads, queries_per_head, num_tokens, fixed_window, seed
):
    torch.manual_seed(seed)
    prompts = random_prompts(lengths, kv_heads)
    rows = len(lengths) * num_candidates
    queries = torch.randn(num_tokens, rows, kv_heads * queries_per_head, SIZE)
    keys, values = torch.randn(2, num_tokens, rows, kv_heads, SIZE)
    cache = SharedPrefixCache(prompts, num_candidates, num_tokens)
    for token in range(num_tokens):
        position = torch.tensor([token])
        window = num_tokens if fixed_window else token + 1
        bias = cache.bias(window, position if fixed_window else None)
        heads_first = (part[token].transpose(0, 1).contiguous() for part in (queries, keys, values))
        out = attend(*heads_first, cache.layers[0], position, window, bias)
        so_far = [part[: token + 1].permute(1, 2, 0, 3) for part in (keys, values)]
        of_prompts = zip(*(part.split(num_candidates) for part in (queries[token], *so_far)), strict=True)
        expected = [plain_attention(prompt, *parts) for prompt, parts in zip(prompts, of_prompts, strict=True)]
        torch.testing.assert_close(out, torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_one_prompt_is_not_copied_however_many_candidates_continue_it():
    prompts = random_prompts([7], kv_heads=2, num_layers=3)
    cache = SharedPrefixCache(prompts, num_candidates=8, num_tokens=5)
    for layer, states in zip(prompts[0].layers, cache.layers, strict=True):
        kept = [part.data_ptr() for part in states[:2]]
        assert kept == [layer.keys.data_ptr(), layer.values.data_ptr()]
        assert states.suffix_keys.shape == (2 * 8, 5, SIZE)


def test_two_prompts_are_kept_once_each():
    cache = SharedPrefixCache(random_prompts([7, 4], kv_heads=2), num_candidates=8, num_tokens=5)
    assert cache.layers[0].prefix_keys.shape == (2 * 2, 7, SIZE)
    assert cache.prefix_lengths == [7, 4]


def test_bias_hides_padding_and_tokens_to_come():
    cache = SharedPrefixCache(random_prompts([3, 2], kv_heads=1), num_candidates=1, num_tokens=4)
    hidden = -math.inf
    assert cache.bias(2).tolist() == [[[0, 0, 0, 0, 0]], [[0, 0, hidden, 0, 0]]]
    assert cache.bias(3, torch.tensor([0])).tolist() == [
        [[0, 0, 0, 0, hidden, hidden]],
        [[0, 0, hidden, 0, hidden, hidden]],
    ]


def test_prompts_of_one_length_need_no_bias():
    assert SharedPrefixCache(random_prompts([3, 3], kv_heads=1), num_candidates=2, num_tokens=4).bias(2) is None
