"""What the page shows is what the pipelines say."""

import pytest
import torch
from PIL import Image

from bwm_pipelines.images import square
from bwm_pipelines.space.studio import AT_ONCE, Evidence, Frames, Named, Ranking, Studio

ACTION = "open the door"


def last(events, kind):
    return [event for event in events if isinstance(event, kind)][-1]


def test_candidates_are_those_of_the_pipeline_however_many_run_at_once(studio, image):
    count = AT_ONCE + 2
    expected = studio.pipe(image, ACTION, num_candidates=count, generator=torch.Generator().manual_seed(3))
    rankings = [event for event in studio.imagine(image, ACTION, count, seed=3) if isinstance(event, Ranking)]
    assert [len(ranking.candidates) for ranking in rankings] == [AT_ONCE, count]
    ranking = rankings[-1]
    assert [one.number for one in ranking.candidates] == expected.order
    assert [one.image for one in ranking.candidates] == expected.images
    assert [one.score for one in ranking.candidates] == pytest.approx(expected.scores, abs=1e-4)
    assert [one.margin for one in ranking.candidates] == pytest.approx(expected.margins, abs=1e-4)
    assert ranking.changed == expected.changed[0] and ranking.excluded == []


def test_evidence_is_that_of_the_best(studio, image):
    events = list(studio.imagine(image, ACTION, 2, seed=0))
    best = last(events, Ranking).candidates[0]
    explained = studio.verifier.explain(image, best.image, ACTION)
    assert last(events, Evidence).words == list(zip(explained.words, explained.word_margins, strict=True))


def test_edits_keep_their_pixels_and_are_ranked_as_by_the_verifier(studio, image):
    edits = [image, image.rotate(90), Image.new("RGB", (50, 70), "red")]
    expected = studio.verifier(image, edits, ACTION)
    ranking = last(studio.verify(image, edits, ACTION), Ranking)
    assert [one.number for one in ranking.candidates] == expected.order
    assert [one.image for one in ranking.candidates] == [edits[i] for i in expected.order]
    assert ranking.unchanged_score == expected.unchanged_score


def test_an_action_is_named_as_the_verifier_names_it(studio, image):
    expected = studio.verifier.name_action(image, image.rotate(180), max_new_tokens=32)
    assert last(studio.name(image, image.rotate(180)), Named) == (expected.action, expected.score)


def test_an_image_is_explained_in_large(studio, image):
    (evidence,) = [event for event in studio.explain(image, image.rotate(180), ACTION) if isinstance(event, Evidence)]
    assert evidence.picture.size == (512, 512) and [word for word, _ in evidence.words] == ACTION.split()


def test_each_step_of_a_rollout_starts_from_the_best_of_the_one_before(studio, image):
    frames = last(studio.roll_out(image, [ACTION, "turn the lamp on"], 2, seed=5), Frames).frames
    generator, scene = torch.Generator().manual_seed(5), image
    assert frames[0].image == square(image, studio.pipe.family.image_size)
    for frame in frames[1:]:
        output = studio.pipe(scene, frame.action, num_candidates=2, generator=generator)
        scene = output.codes[:1]
        assert (frame.image, frame.score) == (output.images[0], output.scores[0])


def test_a_checkpoint_without_a_dynamics_model_is_refused(pipe, checkpoint, tmp_path):
    alone = type(pipe).from_pretrained(checkpoint, dynamics_model=None)
    alone.save_pretrained(tmp_path / "world_only")
    with pytest.raises(ValueError, match="`checkpoint` .*world_only.* has no dynamics model"):
        Studio(tmp_path / "world_only")
