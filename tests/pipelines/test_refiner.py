"""A checkpoint with a refiner: what codes show is drawn once more, beside the image before."""

import pytest
import torch
from PIL import Image, ImageOps

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline
from bwm_pipelines.images import to_pixels
from bwm_pipelines.refinement import refine
from bwm_pipelines.rollout import roll_out
from tests.tiny import IMAGE_SIZE, build_refiner

ACTION = "open the door"


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def refined(pipe) -> ChameleonWorldModelPipeline:
    pipe = ChameleonWorldModelPipeline.from_pipe(pipe, refiner=build_refiner())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def expected(pipe, codes: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        drawn = pipe.family.decode_image(codes)
        return refine(pipe.refiner, drawn, before.expand_as(drawn)).clamp(-1, 1) / 2 + 0.5


def test_images_are_refined_beside_the_image_before(pipe, refined, image):
    output = refined(image, ACTION, num_candidates=3, generator=seeded(), output_type="pt")
    plain = pipe(image, ACTION, num_candidates=3, generator=seeded(), output_type="pt")
    assert (output.codes.tolist(), output.scores) == (plain.codes.tolist(), plain.scores)
    torch.testing.assert_close(output.images, expected(refined, output.codes, to_pixels([image], IMAGE_SIZE)))
    assert (output.images - plain.images).abs().max() > 0.1


def test_every_input_of_a_batch_is_refined_beside_its_own(refined, image):
    images, options = [image, ImageOps.mirror(image)], {"num_candidates": 2, "output_type": "pt"}
    together, generator = refined(images, ACTION, generator=seeded(), **options).images, seeded()
    apart = [refined(one, ACTION, generator=generator, **options).images for one in images]
    torch.testing.assert_close(together, torch.cat(apart))
    one = refined(image, [ACTION, "turn the lamp on"], generator=seeded(), output_type="pt")
    torch.testing.assert_close(one.images, expected(refined, one.codes, to_pixels([image], IMAGE_SIZE)))


def test_codes_are_refined_beside_what_they_show_or_the_reference(refined, image):
    codes = refined.encode_images(image)
    shown = refined(codes, ACTION, generator=seeded(), output_type="pt")
    torch.testing.assert_close(shown.images, expected(refined, shown.codes, refined.family.decode_image(codes)))
    beside = refined(codes, ACTION, generator=seeded(), output_type="pt", reference_image=image).images
    torch.testing.assert_close(beside, refined(image, ACTION, generator=seeded(), output_type="pt").images)


def test_steps_of_a_rollout_are_refined_beside_the_last_picture(refined, image):
    frames = list(
        roll_out(
            refined,
            image,
            [ACTION] * 2,
            num_candidates=2,
            generator=torch.Generator().manual_seed(0),
            before_step=lambda step, action: None,
        )
    )
    generator = seeded()
    first = refined(image, ACTION, num_candidates=2, generator=generator)
    options = {"num_candidates": 2, "generator": generator, "reference_image": first.images[0]}
    second = refined(first.codes[:1], ACTION, **options)
    assert [frame.image.tobytes() for frame in frames[1:]] == [one.images[0].tobytes() for one in (first, second)]


def test_codes_alone_run_no_refiner(refined, image):
    ran = []
    hook = refined.refiner.register_forward_hook(lambda *_: ran.append(1))
    refined(image, ACTION, num_candidates=2, output_type="latent")
    assert ran == []
    refined(image, ACTION, num_candidates=2)
    assert len(ran) == 2
    hook.remove()


def test_it_is_saved_and_loaded_in_any_dtype(refined, image, tmp_path):
    refined.save_pretrained(tmp_path)
    loaded = ChameleonWorldModelPipeline.from_pretrained(tmp_path)
    images = [one(image, ACTION, generator=seeded(), output_type="pt").images for one in (refined, loaded)]
    assert torch.equal(*images)
    half = ChameleonWorldModelPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.refiner.dtype == torch.bfloat16
    assert half(image, ACTION, output_type="pt").images.dtype == torch.float32
    assert "refiner" not in DynamicsVerifierPipeline.from_pretrained(tmp_path).components


def test_a_damaged_one_is_refused(refined, tmp_path):
    refined.save_pretrained(tmp_path)
    (tmp_path / "refiner" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"refiner.* is damaged; get the checkpoint again"):
        ChameleonWorldModelPipeline.from_pretrained(tmp_path)


def test_as_many_references_as_inputs(refined, image):
    with pytest.raises(ValueError, match="`reference_image` must be one image or 2, one an input, got 3"):
        refined([image] * 2, ACTION, reference_image=[image] * 3)
    with pytest.raises(ValueError, match="`reference_image` must be a PIL image"):
        refined(image, ACTION, reference_image="scene.png")
    refined(image, ACTION, reference_image=Image.new("RGB", (40, 30)))
