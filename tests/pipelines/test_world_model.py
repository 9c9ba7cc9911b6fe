"""The world model pipeline as a user of diffusers meets it."""

import copy
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

from bwm_pipelines import ChameleonWorldModelPipeline, Interrupted
from tests.tiny import build_pipeline

ACTION = "open the door"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def unverified(pipe):
    pipe = ChameleonWorldModelPipeline(**pipe.components | {"dynamics_model": None}, **layout(pipe))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def layout(pipe) -> dict:
    names = ("forward_prompt", "inverse_prompt", "image_size", "mask_image_logits")
    return {name: pipe.config[name] for name in names}


def assert_same_images(left: list[Image.Image], right: list[Image.Image]) -> None:
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


# --- What comes out ---


def test_candidates_come_best_first_with_what_the_verifier_says_of_them(pipe, verifier, image):
    output = pipe(image, ACTION, num_candidates=6, generator=seeded())
    verdict = verifier(image, output.codes, ACTION)
    assert [image.size for image in output.images] == [(16, 16)] * 6
    assert output.scores == sorted(output.scores, reverse=True)
    assert verdict.order == list(range(6))
    assert output.scores == pytest.approx(verdict.scores, abs=1e-5)
    assert output.margins == pytest.approx(verdict.margins, abs=1e-5)
    assert (output.changed, output.excluded) == ([verdict.changed], [[]])


def test_order_leads_back_to_the_samples(pipe, unverified, image):
    ranked = pipe(image, ACTION, num_candidates=6, generator=seeded())
    sampled = unverified(image, ACTION, num_candidates=6, generator=seeded())
    assert sorted(ranked.order) == list(range(6))
    assert ranked.order != sampled.order
    assert ranked.codes.equal(sampled.codes[ranked.order])
    assert_same_images(ranked.images, [sampled.images[i] for i in ranked.order])


def test_without_a_dynamics_model_nothing_is_verified(unverified, image):
    output = unverified(image, ACTION, num_candidates=3, generator=seeded())
    assert output.order == [0, 1, 2]
    assert (output.scores, output.margins, output.changed, output.excluded) == (None,) * 4


def test_images_are_those_of_the_codes(pipe, image):
    output = pipe(image, ACTION, num_candidates=3, generator=seeded(), output_type="pt")
    torch.testing.assert_close(output.images, pipe.family.decode_image(output.codes) / 2 + 0.5)


def test_images_may_show_expected_features(pipe, image, tmp_path):
    shown = ChameleonWorldModelPipeline(**pipe.components, **layout(pipe), expected_features=True)
    shown.save_pretrained(tmp_path)
    for one in (shown, ChameleonWorldModelPipeline.from_pretrained(tmp_path)):
        one.set_progress_bar_config(disable=True)
        output = one([image, image], [ACTION, "push"], num_candidates=3, generator=seeded(), output_type="pt")
        plain = pipe([image, image], [ACTION, "push"], num_candidates=3, generator=seeded(), output_type="pt")
        assert output.codes.equal(plain.codes) and plain.features is None
        torch.testing.assert_close(output.images, one.family.decode_features(output.features) / 2 + 0.5)
        assert not torch.allclose(output.images, plain.images, atol=1e-3)


def test_entries_of_the_codebook_show_what_their_codes_show(pipe, image):
    codes = pipe.encode_images(image)
    entries = pipe.vqgan.quantize.embedding(codes)
    torch.testing.assert_close(pipe.decode_images(entries), pipe.decode_images(codes))


def test_output_types(pipe, image):
    outputs = {
        kind: pipe(image, ACTION, num_candidates=3, generator=seeded(), output_type=kind)
        for kind in ("pil", "np", "pt", "latent")
    }
    array, tensor, codes = (outputs[kind].images for kind in ("np", "pt", "latent"))
    assert (array.shape, array.dtype) == ((3, 16, 16, 3), np.float32)
    assert (tensor.shape, codes.shape, codes.dtype) == ((3, 3, 16, 16), (3, 16), torch.int64)
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert_same_images(outputs["pil"].images, [Image.fromarray((one * 255).round().astype(np.uint8)) for one in array])
    assert codes.equal(outputs["pil"].codes)


def test_return_dict_false_gives_the_fields_in_order(pipe, unverified, image):
    for one in (pipe, unverified):
        named = one(image, ACTION, generator=seeded(), output_type="latent")
        images, scores, margins, order, codes, changed, excluded, features = one(
            image, ACTION, generator=seeded(), output_type="latent", return_dict=False
        )
        assert images.equal(named.images)
        assert codes.equal(named.codes)
        assert (scores, margins, order) == (named.scores, named.margins, named.order)
        assert (changed, excluded, features) == (named.changed, named.excluded, None)


def test_changed_says_whether_any_candidate_beats_unchanged(pipe, image):
    output = pipe([image] * 12, ACTION, generator=seeded())
    assert output.changed == [margin > 0 for margin in output.margins]
    assert set(output.changed) == {True, False}


# --- What goes in ---


def test_pil_numpy_and_tensor_give_the_same_codes(pipe, image):
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1) / 255
    codes = [pipe(one, ACTION, generator=seeded()).codes for one in (image, array, tensor)]
    assert codes[0].equal(codes[1])
    assert codes[0].equal(codes[2])


def test_exif_orientation_is_respected(pipe, image):
    turned = image.rotate(90, expand=True)
    turned.getexif()[0x0112] = 6
    assert pipe(turned, ACTION, generator=seeded()).codes.equal(pipe(image, ACTION, generator=seeded()).codes)


def test_latent_output_goes_in_again(pipe, image):
    codes = pipe.encode_images(image)
    from_codes, from_image = (pipe(one, ACTION, generator=seeded()).codes for one in (codes[0], image))
    assert from_codes.equal(from_image)


def test_batch_is_its_inputs_one_after_another(pipe, image):
    images, actions = [image, ImageOps.mirror(image)], [ACTION, "push the red cube to the left"]
    together = pipe(images, actions, num_candidates=3, generator=seeded())
    generator = seeded()
    apart = [
        pipe(one, action, num_candidates=3, generator=generator) for one, action in zip(images, actions, strict=True)
    ]
    assert together.codes.equal(torch.cat([one.codes for one in apart]))
    assert together.scores == pytest.approx([score for one in apart for score in one.scores])
    assert together.order == [i for one in apart for i in one.order]
    assert together.changed == [one.changed[0] for one in apart]


def test_one_action_serves_all_images_and_one_image_all_actions(pipe, image):
    mirrored = ImageOps.mirror(image)
    both = pipe([image, mirrored], ACTION, temperature=0).codes
    assert both.equal(torch.cat([pipe(one, ACTION, temperature=0).codes for one in (image, mirrored)]))
    actions = [ACTION, "turn the lamp on"]
    both = pipe(image, actions, temperature=0).codes
    assert both.equal(torch.cat([pipe(image, one, temperature=0).codes for one in actions]))


# --- Seeds and sampling options ---


def by_sample(output) -> torch.Tensor:
    """Codes in sampling order."""
    return output.codes[torch.tensor(output.order).argsort()]


def test_candidate_is_the_same_for_every_number_of_candidates(pipe, image):
    eight = by_sample(pipe(image, ACTION, num_candidates=8, generator=seeded()))
    for k in range(1, 8):
        assert by_sample(pipe(image, ACTION, num_candidates=k, generator=seeded())).equal(eight[:k])
    assert len(eight.unique(dim=0)) == 8


@pytest.mark.parametrize("candidate_batch_size", [1, 3, 8])
def test_candidate_batch_size_changes_nothing(pipe, image, candidate_batch_size):
    whole = pipe(image, ACTION, num_candidates=8, generator=seeded())
    chunked = pipe(image, ACTION, num_candidates=8, generator=seeded(), candidate_batch_size=candidate_batch_size)
    assert chunked.order == whole.order
    assert chunked.codes.equal(whole.codes)
    assert chunked.scores == pytest.approx(whole.scores, abs=1e-5)


def test_list_of_generators_is_one_a_candidate(pipe, image):
    three = by_sample(pipe(image, ACTION, num_candidates=3, generator=[seeded(i) for i in range(3)]))
    last = by_sample(pipe(image, ACTION, generator=[seeded(2)]))
    assert three[2:].equal(last)


def test_checkpoint_defaults_hold_where_a_call_says_nothing(pipe, image):
    defaults = {"temperature": 0.5, "top_k": 5, "top_p": 0.8, "guidance_scale": 2.0}
    configured = build_pipeline(**defaults)
    expected = pipe(image, ACTION, num_candidates=4, generator=seeded(), **defaults)
    assert configured(image, ACTION, num_candidates=4, generator=seeded()).codes.equal(expected.codes)
    neutral = {"temperature": 1.0, "top_k": 32, "top_p": 1.0, "guidance_scale": 1.0}
    overridden = configured(image, ACTION, num_candidates=4, generator=seeded(), **neutral)
    assert overridden.codes.equal(pipe(image, ACTION, num_candidates=4, generator=seeded()).codes)
    assert not overridden.codes.equal(expected.codes)


# --- Saving and loading ---


def test_round_trip_gives_the_same_images(pipe, checkpoint, image):
    loaded = ChameleonWorldModelPipeline.from_pretrained(checkpoint)
    assert layout(loaded) == layout(pipe)
    left, right = (one(image, ACTION, num_candidates=4, generator=seeded()) for one in (pipe, loaded))
    assert_same_images(left.images, right.images)
    assert left.scores == right.scores


def test_round_trip_without_a_dynamics_model(unverified, image, tmp_path):
    unverified.save_pretrained(tmp_path)
    loaded = ChameleonWorldModelPipeline.from_pretrained(tmp_path)
    assert loaded.dynamics_model is None
    assert loaded(image, ACTION, generator=seeded()).codes.equal(unverified(image, ACTION, generator=seeded()).codes)


def test_vq_model_stays_in_float32(checkpoint, image):
    loaded = ChameleonWorldModelPipeline.from_pretrained(checkpoint, dtype=torch.bfloat16)
    dtypes = (loaded.world_model.dtype, loaded.dynamics_model.dtype, loaded.vqgan.dtype)
    assert dtypes == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert all(map(math.isfinite, loaded(image, ACTION, num_candidates=2).scores))


# --- Progress, interruption, offloading ---


def test_callback_runs_after_every_step(pipe, image):
    seen = []

    def callback(given, step, timestep, tensors):
        seen.append((step, timestep, tuple(tensors["codes"].shape)))
        assert given is pipe

    pipe([image, image], ACTION, num_candidates=3, candidate_batch_size=2, callback_on_step_end=callback)
    places = {(k, t): i for i, (k, t) in enumerate((k, t) for k in (2, 1) for t in range(1, 17))}
    steps = [step for step, _, _ in seen]
    assert steps == sorted(set(steps)) and steps[0] == 0 and steps[-1] == pipe.num_timesteps - 1 == 63
    assert all(step == timestep and step % 32 == places[shape] for step, timestep, shape in seen)
    assert {shape for _, _, shape in seen} >= {(2, 16), (1, 16)}


def test_interrupt_ends_within_a_step_and_the_next_call_runs(pipe, image):
    steps = []

    def callback(given, step, timestep, tensors):
        steps.append(step)
        given._interrupt = len(steps) == 3

    with pytest.raises(Interrupted):
        pipe(image, ACTION, num_candidates=2, callback_on_step_end=callback)
    assert len(steps) == 3
    assert len(pipe(image, ACTION).images) == 1


def test_progress_bar_can_be_configured(image, capsys):
    pipe = build_pipeline()
    pipe.set_progress_bar_config(desc="imagining")
    pipe(image, ACTION)
    assert "imagining: 100%" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe(image, ACTION)
    assert capsys.readouterr().err == ""


def test_offloading_knows_every_model(pipe, verifier):
    for one in (pipe, verifier):
        models = {name for name, part in one.components.items() if isinstance(part, nn.Module)}
        assert set(one.model_cpu_offload_seq.split("->")) - {"refiner"} == models


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading from a GPU needs a GPU")
def test_offloading_gives_the_same_images(pipe, image):
    offloaded = build_pipeline()
    offloaded.enable_model_cpu_offload()
    codes = offloaded(image, ACTION, num_candidates=4, generator=seeded()).codes
    assert codes.cpu().equal(pipe(image, ACTION, num_candidates=4, generator=seeded()).codes)
    assert offloaded.world_model.device.type == "cpu"


def test_offloading_hooks_run_for_every_model(pipe, image):
    """With the CPU as the accelerator the hooks move nothing but run as they would for a GPU."""
    hooked = build_pipeline()
    hooked.enable_model_cpu_offload(device="cpu")
    codes = hooked(image, ACTION, num_candidates=4, generator=seeded()).codes
    assert codes.equal(pipe(image, ACTION, num_candidates=4, generator=seeded()).codes)


# --- Bad arguments ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action": ""}, "`action` must say in words what happens, got ''"),
        ({"action": "  "}, "`action` must say in words"),
        ({"action": 3}, "`action` must say in words what happens, got 3"),
        ({"action": []}, "`action` is an empty list"),
        ({"action": [ACTION, ""]}, "`action` must say in words"),
        ({"action": "open <image>"}, "`action` must be plain words, .* remove '<image>'"),
        ({"num_candidates": 0}, "`num_candidates` must be a whole number of at least 1, got 0"),
        ({"num_candidates": -2}, "`num_candidates` .* got -2"),
        ({"num_candidates": 2.0}, "`num_candidates` .* got 2.0"),
        ({"candidate_batch_size": 0}, "`candidate_batch_size` .* got 0"),
        ({"top_k": 0}, "`top_k` .* got 0"),
        ({"temperature": -0.1}, "`temperature` must be at least 0 .* got -0.1"),
        ({"temperature": math.nan}, "`temperature` .* got nan"),
        ({"top_p": 0.0}, "`top_p` must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "`top_p` .* got 1.1"),
        ({"guidance_scale": math.inf}, "`guidance_scale` must be a finite number .* got inf"),
        ({"output_type": "jpeg"}, "`output_type` must be one of pil, np, pt, latent, got 'jpeg'"),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, "`callback_on_step_end_tensor_inputs` has to be in"),
        ({"image": "scene.png"}, "`image` must be a PIL image, .* got str"),
        ({"image": torch.zeros(15, dtype=torch.int64)}, r"`image` as codes must have the shape \[16\]"),
        ({"image": torch.full((16,), 32)}, "`image` as codes must lie in 0 to 31, got 32 to 32"),
        ({"action": [ACTION] * 2, "image": torch.zeros(3, 3, 8, 8)}, "equally many, .* got 3 and 2"),
        ({"generator": [torch.Generator()] * 3, "num_candidates": 2}, "`generator` as a list .* 2, got 3"),
    ],
)
def test_bad_arguments_are_named(pipe, image, arguments, message):
    with pytest.raises(ValueError, match=f"^.*{message}[^\n]*$"):
        pipe(**{"image": image, "action": ACTION} | arguments)


def test_action_that_is_too_long_says_how_much_fits(pipe, image):
    with pytest.raises(ValueError, match=r"`action` has 200 tokens but (\d+) fit beside the images") as error:
        pipe(image, "z" * 200)
    fitting = int(str(error.value).split(" but ")[1].split()[0])
    assert len(pipe(image, "z" * fitting).images) == 1
    with pytest.raises(ValueError, match=f"`action` has {fitting + 1} tokens but {fitting} fit"):
        pipe(image, "z" * (fitting + 1))


# --- Models that fail ---


def test_logits_that_are_not_finite_raise(image):
    pipe = build_pipeline()
    token = pipe.family.image_token_ids[0]
    with torch.no_grad():
        pipe.world_model.lm_head.weight[token] = torch.nan
    with pytest.raises(ValueError, match="`world_model` gave logits that are not finite at image token 0"):
        pipe(image, ACTION)


def test_candidate_with_a_score_that_is_not_finite_is_left_out_and_reported(pipe, image):
    samples = by_sample(pipe(image, ACTION, num_candidates=8, generator=seeded()))
    before = pipe.encode_images(image)
    poisoned = next(c for c in range(32) if c not in before and 0 < (samples == c).any(1).sum() < 8)
    hit = (samples == poisoned).any(1).nonzero().flatten().tolist()
    broken = copy.deepcopy(pipe.dynamics_model)
    with torch.no_grad():
        broken.model.embed_tokens.weight[pipe.family.image_token_ids[poisoned]] = torch.nan
    poisoned_pipe = ChameleonWorldModelPipeline(**pipe.components | {"dynamics_model": broken}, **layout(pipe))
    poisoned_pipe.set_progress_bar_config(disable=True)
    output = poisoned_pipe(image, ACTION, num_candidates=8, generator=seeded())
    assert output.excluded == [hit]
    assert len(output.images) == len(output.scores) == len(output.codes) == 8 - len(hit)
    assert sorted(output.order + hit) == list(range(8))
    assert all(map(math.isfinite, output.scores + output.margins))
