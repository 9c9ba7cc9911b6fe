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
    block=st.integers(1, 4),
    fixed_window=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention_is_that_over_copies(
    lengths, num_candidates, kv_heads, queries_per_head, num_tokens, block, fixed_window, seed
):
    """Blocks of tokens that begin elsewhere for every candidate, as long as each token was given at its place once."""
    torch.manual_seed(seed)
    prompts = random_prompts(lengths, kv_heads)
    rows, room = len(lengths) * num_candidates, num_tokens + block
    queries = torch.randn(room, rows, kv_heads * queries_per_head, SIZE)
    keys, values = torch.randn(2, room, rows, kv_heads, SIZE)
    cache = SharedPrefixCache(prompts, num_candidates, room)
    starts = torch.zeros(num_candidates, 1, dtype=torch.int64)
    while starts.min() < num_tokens:
        places = starts + torch.arange(block)
        slots = (torch.arange(rows).view(-1, num_candidates, 1) * room + places).flatten()
        window = room if fixed_window else int(places.max()) + 1
        given = [
            part[places.repeat(len(lengths), 1), torch.arange(rows)[:, None]]
            .flatten(0, 1)
            .transpose(0, 1)
            .contiguous()
            for part in (queries, keys, values)
        ]
        out = attend(*given, cache.layers[0], slots, window, cache.bias(places.flatten(), window))
        for row, row_out in enumerate(out.view(rows, block, -1)):
            for place, token_out in zip(places[row % num_candidates].tolist(), row_out, strict=True):
                so_far = [part[: place + 1, row].transpose(0, 1)[None] for part in (keys, values)]
                expected = plain_attention(prompts[row // num_candidates], queries[place, row][None], *so_far)
                torch.testing.assert_close(token_out[None], expected, atol=1e-5, rtol=1e-5)
        starts = (starts + torch.randint(1, block + 1, starts.shape)).clamp_max(num_tokens)


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
    assert cache.bias(torch.tensor([1, 0]), 2).squeeze(2).tolist() == [
        [[0, 0, 0, 0, 0], [0, 0, 0, 0, hidden]],
        [[0, 0, hidden, 0, 0], [0, 0, hidden, 0, hidden]],
    ]
