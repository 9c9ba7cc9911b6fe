"""The nodes in a genuine server: what they compute, show, refuse and never do."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image

from bwm_pipelines import ChameleonWorldModelPipeline
from tests.comfy.graphs import TINY, Graph
from tests.comfy.server import Refused
from tests.tiny import build_refiner

ACTION = "open the door"


def grey_levels_apart(left, right):
    return np.abs(np.asarray(left, dtype=int) - np.asarray(right, dtype=int)).max()


def numbers(run, node):
    return [float(text) for text in run.outputs(node)["text"]]


def put(server, image, name):
    """Put an image into the server's input folder; a LoadImage for it."""
    folder = server.folder / "input"
    folder.mkdir(exist_ok=True)
    image.save(folder / name)
    return name


# What they compute


def test_scores_and_order_are_the_pipelines_for_the_same_seed(server, pipe, scene):
    graph = Graph()
    model, before = graph.load()
    images, latents = graph.imagine(model, before, candidates=3, seed=7)
    verified = graph.verify(model, before, latents)
    shown, ranked = graph.show(images), graph.show([verified, 0])
    scores, order = graph.text([verified, 4]), graph.text([verified, 5])
    run = server.run(graph)

    expected = pipe(scene, ACTION, num_candidates=3, generator=torch.Generator().manual_seed(7))
    assert numbers(run, order) == expected.order
    assert [numbers(run, scores)[i] for i in expected.order] == pytest.approx(expected.scores, abs=1e-3)
    for files, images in (
        (run.outputs(ranked)["images"], expected.images),
        (run.outputs(shown)["images"], [expected.images[expected.order.index(i)] for i in range(3)]),
    ):
        assert len(files) == 3
        for file, image in zip(files, images, strict=True):
            assert grey_levels_apart(server.image(file), image) <= 1


def test_images_of_any_editor_and_size_are_ranked_as_the_verifier_ranks_them(server, verifier, scene):
    noise = np.random.default_rng(0)
    pictures = [
        Image.fromarray(noise.integers(0, 256, (50, 120, 3), dtype=np.uint8)),
        scene.resize((200, 200)),
        scene.rotate(90),
    ]
    graph = Graph()
    model, before = graph.load()
    loaded = [graph.add("LoadImage", image=put(server, image, f"any_{i}.png")) for i, image in enumerate(pictures)]
    every = graph.add("CreateList", **{f"inputs.input{i}": [key, 0] for i, key in enumerate(loaded)})
    verified = graph.verify(model, before, [every, 0])
    selected = graph.select([verified, 3], candidates=[every, 0], top_k=3)
    scores, ranked, kept = graph.text([verified, 4]), graph.show([verified, 0]), graph.show([selected, 0])
    run = server.run(graph)

    expected = verifier(scene, pictures, ACTION)
    assert numbers(run, scores) == pytest.approx(expected.scores, abs=1e-3)
    for node in (ranked, kept):
        for i, file in zip(expected.order, run.outputs(node)["images"], strict=True):
            assert grey_levels_apart(server.image(file), pictures[i]) == 0


def test_latents_masks_and_prompts_follow_their_images(server):
    graph = Graph()
    model, before = graph.load()
    images, latents = graph.imagine(model, before, candidates=3)
    verified = graph.verify(model, before, latents)
    masks = graph.add("ImageToMask", image=images, channel="red")
    prompts = graph.add(
        "CreateList", **{f"inputs.input{i}": [graph.add("PrimitiveString", value=f"prompt {i}"), 0] for i in range(3)}
    )
    selected = graph.select(
        [verified, 3], candidates=images, latents=latents, masks=[masks, 0], prompts=[prompts, 0], top_k=2
    )
    order, texts, indices = graph.text([verified, 5]), graph.text([selected, 3]), graph.text([selected, 5])
    kept, ranked = graph.show([selected, 0]), graph.show([verified, 0])
    again = graph.show([graph.verify(model, before, [selected, 1]), 0])
    as_images = graph.show([graph.add("MaskToImage", mask=[selected, 2]), 0])
    run = server.run(graph)

    best = [int(i) for i in numbers(run, order)[:2]]
    assert [int(i) for i in numbers(run, indices)] == best
    assert run.outputs(texts)["text"] == [f"prompt {i}" for i in best]
    pictures = [
        [server.image(file) for file in run.outputs(node)["images"]] for node in (ranked, kept, again, as_images)
    ]
    for whole, picture, latent, mask in zip(pictures[0], *pictures[1:], strict=False):
        assert grey_levels_apart(whole, picture) == 0 and grey_levels_apart(whole, latent) <= 1
        assert grey_levels_apart(np.asarray(mask)[..., 0], np.asarray(picture)[..., 0]) <= 1
    assert len(pictures[1]) == len(pictures[3]) == 2


def test_refined_pictures_go_with_their_latents(server, copy_of_tiny, pipe, scene):
    refined = ChameleonWorldModelPipeline.from_pipe(pipe, refiner=build_refiner())
    refined.set_progress_bar_config(disable=True)
    refined.save_pretrained(copy_of_tiny("refined"))
    graph = Graph()
    model, before = graph.load("refined")
    images, latents = graph.imagine(model, before, candidates=3, seed=7)
    second = graph.add("LatentFromBatch", samples=latents, batch_index=1, length=1)
    nodes = [graph.show(images)]
    nodes += [graph.show([graph.verify(model, before, source), 0]) for source in (latents, [second, 0])]
    nodes.append(graph.show(graph.imagine(model, [second, 0], candidates=1, seed=3)[0]))
    run = server.run(graph)
    shown, ranked, picked, next_step = ([server.image(file) for file in run.outputs(node)["images"]] for node in nodes)

    expected = refined(scene, ACTION, num_candidates=3, generator=torch.Generator().manual_seed(7))
    samples = [expected.order.index(i) for i in range(3)]
    for left, right in [
        *zip(shown, [expected.images[i] for i in samples], strict=True),
        *zip(ranked, expected.images, strict=True),
        (picked[0], shown[1]),
    ]:
        assert grey_levels_apart(left, right) <= 1
    assert (
        grey_levels_apart(
            shown[1], pipe.image_processor.postprocess(pipe.family.decode_image(expected.codes[samples[1]][None]))[0]
        )
        > 10
    )
    after = refined(
        expected.codes[samples[1]],
        ACTION,
        generator=torch.Generator().manual_seed(3),
        reference_image=expected.images[samples[1]],
    )
    assert grey_levels_apart(next_step[0], after.images[0]) <= 2


def test_candidate_is_the_same_however_many_there_are(server):
    graph = Graph()
    model, before = graph.load()
    shown = [
        graph.show(graph.imagine(model, before, candidates=count, batch_size=size)[0])
        for count, size in ((1, 0), (3, 0), (3, 2))
    ]
    run = server.run(graph)
    one, three, batched = ([server.image(file) for file in run.outputs(node)["images"]] for node in shown)
    assert grey_levels_apart(one[0], three[0]) <= 1
    assert all(grey_levels_apart(left, right) <= 1 for left, right in zip(three, batched, strict=True))


def test_explanation_is_the_pipelines(server, verifier, pipe, scene):
    graph = Graph()
    model, before = graph.load()
    _, latents = graph.imagine(model, before, candidates=1, seed=3)
    explained = graph.add(
        "BWMExplainScore",
        model=model,
        before=before,
        after=latents,
        action=ACTION,
        threshold=0.1,
        window=3,
        batch_size=16,
    )
    words, log_probs = graph.text([explained, 2]), graph.text([explained, 3])
    heatmap = graph.show([explained, 0])
    run = server.run(graph)

    codes = pipe(scene, ACTION, generator=torch.Generator().manual_seed(3)).codes
    expected = verifier.explain(scene, codes, ACTION)
    assert run.outputs(words)["text"] == expected.words == ACTION.split()
    assert numbers(run, log_probs) == pytest.approx(expected.word_log_probs, abs=1e-3)
    assert server.image(run.outputs(heatmap)["images"][0]).size == (16, 16)


def test_name_is_the_pipelines(server, verifier, scene):
    after = scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    graph = Graph()
    model, before = graph.load()
    loaded = graph.add("LoadImage", image=put(server, after, "flipped.png"))
    named = graph.add("BWMNameTheAction", model=model, before=before, after=[loaded, 0])
    action, score = graph.text([named, 0]), graph.text([named, 1])
    run = server.run(graph)
    expected = verifier.name_action(scene, after)
    assert run.outputs(action)["text"] == [expected.action]
    assert numbers(run, score) == pytest.approx([expected.score], abs=1e-3)


# What they show, and when they stop


def test_progress_and_previews_arrive(server):
    graph = Graph()
    model, before = graph.load()
    # Enough tokens one after another to take a second: ComfyUI drops updates that follow within a tenth.
    images, _ = graph.imagine(model, before, candidates=32, seed=11, batch_size=1)
    graph.show(images)
    run = server.run(graph)
    progress = [m["data"] for m in run.messages if m["type"] == "progress" and m["data"]["node"] == images[0]]
    values = [data["value"] for data in progress]
    assert values == sorted(values) and values[-1] == progress[-1]["max"] == 32 * 16
    assert len(set(values)) > 2
    assert run.previews and run.previews[-1].width == 2 * run.previews[-1].height


def test_stop_ends_within_two_seconds_and_the_next_prompt_runs(server):
    graph = Graph()
    model, before = graph.load()
    images, _ = graph.imagine(model, before, candidates=256, seed=12, batch_size=1)
    graph.show(images)
    stopped = []

    def stop_once(message):
        if message["type"] == "progress" and message["data"]["value"] > 5 and not stopped:
            stopped.append(time.monotonic())
            server.post("/interrupt")

    run = server.run(graph, stop_once)
    assert time.monotonic() - stopped[0] < 2
    assert run.interrupted and not run.error

    graph[images[0]]["inputs"]["candidates"] = 1
    assert not server.run(graph).error


def test_second_prompt_is_served_from_cache(server):
    graph = Graph()
    model, before = graph.load()
    images, _ = graph.imagine(model, before, candidates=1, seed=13)
    verified = graph.verify(model, before, images)
    graph.text([verified, 6])
    assert not server.run(graph).error
    again = server.run(graph)
    assert set(graph) <= again.cached
    graph[verified]["inputs"]["action"] = "close the door"
    assert {model[0], images[0]} <= server.run(graph).cached


def test_models_that_comfyui_unloads_are_loaded_again(server):
    graph = Graph()
    model, before = graph.load()
    images, _ = graph.imagine(model, before, candidates=1, seed=14)
    graph.show(images)
    first = server.run(graph)
    server.post("/free", {"unload_models": True})
    graph[images[0]]["inputs"]["seed"] = 15
    second = server.run(graph)
    assert not first.error and not second.error and model[0] in second.cached


# What they refuse before anything runs


@pytest.mark.parametrize(
    ("slot", "value", "reason"),
    [
        ("action", "", "Say in words what happens"),
        ("action", " \n", "Say in words what happens"),
        ("candidates", 0, "smaller than min"),
        ("candidates", 100_000, "bigger than max"),
        ("candidates", "many", "convert"),
        ("seed", -1, "smaller than min"),
        ("temperature", 50, "bigger than max"),
        ("top_p", 1.5, "bigger than max"),
        ("batch_size", -1, "smaller than min"),
        ("before", ["1", 0], "type mismatch"),
    ],
)
def test_bad_input_is_refused_with_a_reason(server, slot, value, reason):
    graph = Graph()
    model, before = graph.load()
    images, _ = graph.imagine(model, before)
    graph[images[0]]["inputs"][slot] = value
    graph.show(images)
    errors = refusal(server, graph, images[0])
    assert any(reason in error["message"] + error["details"] for error in errors), errors


def test_missing_input_is_refused(server):
    graph = Graph()
    model, before = graph.load()
    verified = graph.verify(model, before, before)
    del graph[verified]["inputs"]["candidates"]
    graph.text([verified, 6])
    assert [error["details"] for error in refusal(server, graph, verified)] == ["candidates"]


@pytest.mark.parametrize("name", ["", "nowhere", "../../../etc", "..", ".", "/etc", "tiny/../..", "a\0b"])
def test_checkpoint_outside_the_drop_down_is_refused(server, name):
    graph = Graph()
    model, before = graph.load(name)
    graph.show(before)
    (error,) = refusal(server, graph, model[0])
    assert "is not installed" in error["details"] and "world_models" in error["details"]


TRAVERSALS = ["../../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "..\\..\\secret", "~/.ssh/id_rsa"]


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_widget_reaches_the_file_system(server, path):
    """Every STRING and COMBO: drop-downs refuse what they do not list, and words stay words."""
    before_run = {file for file in server.folder.rglob("*") if "temp" not in file.parts}
    for name, info in server.get("/object_info").items():
        if not name.startswith("BWM"):
            continue
        for group in info["input"].values():
            for slot, (kind, *_) in group.items():
                if kind == "COMBO":
                    graph = Graph()
                    model, before = graph.load()
                    graph[model[0]]["inputs"][slot] = path
                    graph.show(before)
                    assert refusal(server, graph, model[0])
    graph = Graph()
    model, before = graph.load()
    verified = graph.verify(model, before, before, action=path)
    selected = graph.select([verified, 3], prompts=[graph.add("PrimitiveString", value=path), 0])
    prompts, report = graph.text([selected, 3]), graph.text([verified, 6])
    run = server.run(graph)
    assert run.outputs(prompts)["text"] == [path] and path in run.outputs(report)["text"][0]
    assert {file for file in server.folder.rglob("*") if "temp" not in file.parts} == before_run


def refusal(server, graph, node):
    """Errors of a node in the answer to a prompt that does not pass validation."""
    with pytest.raises(Refused) as refused:
        server.post("/prompt", {"prompt": graph})
    assert refused.value.code == 400
    return refused.value.answer["node_errors"][node]["errors"]


# What they refuse when they run


def failure(server, graph):
    """What a prompt fails with."""
    error = server.run(graph).error
    assert error is not None, "the prompt succeeded"
    return error["exception_message"]


@pytest.fixture
def copy_of_tiny(server):
    """A function that makes a copy of the tiny checkpoint in the folder that extra_model_paths.yaml names."""
    made = []

    def copy(name):
        folder = server.more_models / name
        shutil.copytree(server.more_models / TINY, folder)
        made.append(folder)
        return folder

    yield copy
    for folder in made:
        shutil.rmtree(folder)


def test_checkpoint_of_an_extra_model_path_is_found_and_loads(server, copy_of_tiny):
    copy_of_tiny("mine")
    options = server.get("/object_info/BWMLoadWorldModel")["BWMLoadWorldModel"]["input"]["required"]["checkpoint"]
    assert options[1]["options"] == ["playroom (embedded)", "mine", "tiny"]
    graph = Graph()
    _, before = graph.load("mine")
    graph.show(before)
    assert not server.run(graph).error


def test_checkpoint_that_was_replaced_is_loaded_again(server, copy_of_tiny):
    folder = copy_of_tiny("replaced")
    graph = Graph()
    model, before = graph.load("replaced")
    graph.show(before)
    server.run(graph)
    assert model[0] in server.run(graph).cached
    Image.new("RGB", (8, 8)).save(folder / "sample_scene.png")
    assert model[0] not in server.run(graph).cached


def truncate(folder):
    file = folder / "world_model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def lose_weights(folder):
    (folder / "dynamics_model" / "model.safetensors").unlink()


def garble_index(folder):
    (folder / "model_index.json").write_text("{")


@pytest.mark.parametrize("damage", [truncate, lose_weights, garble_index])
def test_damaged_checkpoint_says_what_to_do(server, copy_of_tiny, damage):
    damage(copy_of_tiny(damage.__name__))
    graph = Graph()
    _, before = graph.load(damage.__name__)
    graph.show(before)
    message = failure(server, graph)
    assert message.startswith(f"`checkpoint` '{damage.__name__}' cannot be loaded")
    assert "Copy the whole folder again" in message


def strip(folder, component):
    shutil.rmtree(folder / component)
    index = json.loads((folder / "model_index.json").read_text())
    index[component] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))


def test_checkpoint_with_one_model_says_what_it_cannot_do(server, copy_of_tiny):
    strip(copy_of_tiny("no_dynamics"), "dynamics_model")
    strip(copy_of_tiny("no_world"), "world_model")
    graph = Graph()
    world, before = graph.load("no_dynamics")
    graph.text([graph.verify(world, before, before), 6])
    assert "has only a world model" in failure(server, graph)

    graph = Graph()
    dynamics, before = graph.load("no_world")
    graph.show(graph.imagine(dynamics, before)[0])
    assert "has only a dynamics model" in failure(server, graph)

    graph = Graph()
    (world, _), (dynamics, before) = graph.load("no_dynamics"), graph.load("no_world")
    images, _ = graph.imagine(world, before, candidates=1)
    graph.text([graph.verify(dynamics, before, images), 6])
    assert not server.run(graph).error


def test_checkpoint_without_a_sample_scene_names_load_image(server, copy_of_tiny):
    (copy_of_tiny("bare") / "sample_scene.png").unlink()
    graph = Graph()
    _, before = graph.load("bare")
    graph.show(before)
    assert "Connect Load Image" in failure(server, graph)


def test_unchanged_image_is_never_selected_silently(server):
    graph = Graph()
    model, before = graph.load()
    verified = graph.verify(model, before, before)
    selected = graph.select([verified, 3], candidates=before, must_change=True)
    graph.show([selected, 0])
    message = failure(server, graph)
    assert 'No candidate beats "nothing changed"' in message and "`must_change`" in message

    graph[selected]["inputs"] |= {"must_change": False, "min_score": 0.0}
    assert "No candidate reaches `min_score`" in failure(server, graph)


def test_report_says_that_nothing_changed(server):
    graph = Graph()
    model, before = graph.load()
    report = graph.text([graph.verify(model, before, before), 6])
    assert 'No candidate beats "nothing changed"' in server.run(graph).outputs(report)["text"][0]


@pytest.mark.parametrize(
    ("output", "message"),
    [(0, "input `candidates`"), (1, "input `latents`"), (2, "input `masks`"), (3, "input `prompts`")],
)
def test_output_without_its_input_says_so(server, output, message):
    graph = Graph()
    model, before = graph.load()
    selected = graph.select([graph.verify(model, before, before), 3])
    show = {
        1: lambda: graph.add("SaveLatent", samples=[selected, 1], filename_prefix="none"),
        2: lambda: graph.add("MaskPreview", mask=[selected, 2]),
        3: lambda: graph.text([selected, 3]),
    }
    show.get(output, lambda: graph.show([selected, 0]))()
    assert message in failure(server, graph)


def test_counts_that_disagree(server):
    graph = Graph()
    model, before = graph.load()
    images, _ = graph.imagine(model, before, candidates=2)
    selected = graph.select([graph.verify(model, before, before), 3], candidates=images)
    graph.show([selected, 0])
    assert "`candidates` has 2 entries, but 1 candidates were ranked" in failure(server, graph)


def test_several_images_before_are_refused(server):
    graph = Graph()
    model, before = graph.load()
    images, _ = graph.imagine(model, before, candidates=2)
    graph.text([graph.verify(model, images, before), 6])
    assert "`before` must be one image, got 2" in failure(server, graph)


def test_latent_of_another_model_is_refused(server):
    graph = Graph()
    model, before = graph.load()
    latent = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    graph.text([graph.verify(model, before, [latent, 0]), 6])
    message = failure(server, graph)
    assert "latent of another model" in message and "VAE Decode" in message


@pytest.mark.parametrize("imagines", [True, False])
def test_action_that_is_connected_is_checked_when_it_is_known(server, imagines):
    graph = Graph()
    model, before = graph.load()
    words = graph.add("PrimitiveString", value="")
    if imagines:
        graph.show(graph.imagine(model, before, action=[words, 0])[0])
    else:
        graph.text([graph.verify(model, before, before, action=[words, 0]), 6])
    assert "`action` must say in words what happens" in failure(server, graph)
    graph[words]["inputs"]["value"] = ACTION
    assert not server.run(graph).error


def test_action_too_long_for_the_model(server):
    graph = Graph()
    model, before = graph.load()
    images, _ = graph.imagine(model, before, action="open the door and " * 200)
    graph.show(images)
    assert "shorten it" in failure(server, graph)


def test_image_without_change_has_no_mask(server):
    graph = Graph()
    model, before = graph.load()
    explained = graph.add(
        "BWMExplainScore",
        model=model,
        before=before,
        after=before,
        action=ACTION,
        threshold=0.1,
        window=3,
        batch_size=8,
    )
    shown = graph.show([explained, 0])
    assert server.run(graph).outputs(shown)["images"]
    graph.add("MaskPreview", mask=[explained, 1])
    assert "there is no mask" in failure(server, graph)
