"""Work that ends when nobody waits for it."""

import threading

import pytest
import torch

from bwm_pipelines.space.interruption import Progress, interruptible
from bwm_pipelines.space.studio import Evidence, Ranking

ACTION = "open the door"


def test_events_come_in_order_and_errors_come_out():
    def work(run):
        run.report("one")
        run.report("two")
        raise ValueError("three")

    events = interruptible(work)
    assert [next(events), next(events)] == ["one", "two"]
    with pytest.raises(ValueError, match="three"):
        next(events)


def test_closing_interrupts_the_pipeline_and_leaves_it_usable(studio, image):
    steps = []
    hook = studio.pipe.world_model.register_forward_hook(lambda *_: steps.append(threading.get_ident()))
    events = studio.imagine(image, ACTION, num_candidates=8, seed=0)
    assert isinstance(next(events), Progress)
    while not steps:
        pass
    events.close()
    done = len(steps)
    hook.remove()
    assert done < studio.pipe.family.num_image_tokens  # and no thread goes on:
    assert not [thread for thread in threading.enumerate() if thread.ident in set(steps)]
    assert {type(event) for event in studio.imagine(image, ACTION, 1, 0)} == {Progress, Ranking, Evidence}


def test_closing_one_run_does_not_touch_the_next(studio, image):
    alone = list(studio.imagine(image, ACTION, 2, seed=1))[-1]
    events = studio.imagine(image, ACTION, 2, seed=0)
    next(events)
    events.close()
    after = list(studio.imagine(image, ACTION, 2, seed=1))[-1]
    assert alone.words == after.words and torch.is_grad_enabled()
