"""Token layout: what the stock processor says; and the stock forward, with and without its mask on image tokens."""

import pytest
import torch

from bwm_pipelines.families import family_class
from bwm_pipelines.families.chameleon import ChameleonFamily, image_token_name
from tests.tiny import NUM_CODES, build_pipeline, plain_logits, stock_prompt

BEFORE, AFTER = torch.arange(16), torch.arange(31, 15, -1)
ACTION = "push the red cube to the left"


def test_forward_prompt_is_the_stock_processors(pipe):
    expected = [*stock_prompt(pipe, f"<image>Edit: {ACTION}", BEFORE).tolist(), pipe.processor.image_start_token_id]
    assert pipe.family.forward_prompt_ids(BEFORE, ACTION).tolist() == expected


def test_inverse_prompt_is_the_stock_processors(pipe):
    expected = stock_prompt(pipe, "<image><image>What?", BEFORE, AFTER)
    assert pipe.family.inverse_prompt_ids(BEFORE, AFTER).equal(expected)


def test_inverse_prompts_of_many_images_after_are_those_of_each(pipe):
    afters = torch.stack([AFTER, BEFORE, AFTER.flip(0)])
    each = [pipe.family.inverse_prompt_ids(BEFORE, after) for after in afters]
    assert pipe.family.inverse_prompt_ids(BEFORE, afters).equal(torch.stack(each))


def test_action_ends_with_eos_and_reads_back(pipe):
    ids = pipe.family.action_ids(ACTION)
    assert ids[-1] == pipe.processor.tokenizer.eos_token_id
    assert pipe.family.action_text(ids) == ACTION


def test_lengths_are_those_of_the_sequences(pipe):
    family = pipe.family
    assert family.forward_length(ACTION) == len(family.forward_prompt_ids(BEFORE, ACTION)) + 16
    assert family.inverse_length(ACTION) == len(family.inverse_prompt_ids(BEFORE, AFTER)) + len(
        family.action_ids(ACTION)
    )


def test_codes_map_to_tokens_by_name(pipe):
    vocabulary = pipe.world_model.config.vocabulary_map
    ids = pipe.family.image_token_ids.tolist()
    assert ids == [vocabulary[image_token_name(code)] for code in range(NUM_CODES)]
    assert ids != sorted(ids), "ids in the order of the codes would hide arithmetic on them"
    assert pipe.world_model.model.vocabulary_mapping.img2bpe == dict(enumerate(ids))


@pytest.mark.parametrize("action", ["open <image>", "the </s> door", "IMGIMGAZ"])
def test_special_tokens_are_no_words(pipe, action):
    with pytest.raises(ValueError, match="`action` must be plain words"):
        pipe.family.forward_prompt_ids(BEFORE, action)
    with pytest.raises(ValueError, match="`action` must be plain words"):
        pipe.family.action_ids(action)


def test_encode_gives_the_nearest_codes_and_decode_their_image(pipe):
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = pipe.family.encode_image(pixels)
    with torch.no_grad():
        latents = pipe.vqgan.encode(pixels).latents
        features = latents.permute(0, 2, 3, 1).reshape(3, 16, 4)
        nearest = torch.cdist(features, pipe.vqgan.quantize.embedding.weight).argmin(-1)
        expected = pipe.vqgan.decode(latents).sample.clamp(-1, 1)
    assert codes.equal(nearest)
    torch.testing.assert_close(pipe.family.decode_image(codes), expected)


def test_image_logits_lifts_the_stock_mask_and_puts_it_back(pipe):
    model, ids = pipe.world_model, pipe.family.forward_prompt_ids(BEFORE, ACTION)
    with torch.no_grad():
        masked = model(input_ids=ids[None]).logits
        with pipe.family.image_logits(model):
            lifted = model(input_ids=ids[None]).logits
        masked_again = model(input_ids=ids[None]).logits
    torch.testing.assert_close(lifted[0], plain_logits(model, ids))
    assert (masked[..., pipe.family.image_token_ids] == torch.finfo(torch.float32).min).all()
    assert masked_again.equal(masked)


def test_image_logits_puts_the_mask_back_after_an_error(pipe):
    vocabulary = pipe.world_model.model.vocabulary_mapping
    with pytest.raises(RuntimeError, match="midway"), pipe.family.image_logits(pipe.world_model):
        raise RuntimeError("midway")
    assert sorted(vocabulary.image_tokens) == sorted(pipe.family.image_token_ids.tolist())


def test_family_is_found_by_model_type(pipe):
    assert family_class(pipe.world_model) is ChameleonFamily
    with pytest.raises(ValueError, match="'chameleon_vqgan'; known families: chameleon"):
        family_class(pipe.world_model.model.vqmodel)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"forward_prompt": "<image>Edit"}, "`forward_prompt` must hold one <image> and one {action}, got"),
        ({"inverse_prompt": "<image>What?"}, "`inverse_prompt` must hold <image> twice, got"),
        ({"image_size": 32}, "`processor.image_seq_length` is 16 but an image of 32 px has 64 codes"),
    ],
)
def test_parts_that_disagree_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build_pipeline(**config)
