import pytest
import torch
from diffusers import VQModel
from PIL import Image
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, GenerationConfig

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline
from training import export


def test_the_exported_folder_is_a_pipeline(checkpoint_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("kept")
    parts = ["--world", checkpoint_folder / "world_model", "--dynamics", checkpoint_folder / "dynamics_model"]
    arguments = ["export", "--checkpoint", checkpoint_folder, *parts, "--temperature", 0.7, "--out", out]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in arguments])
    export.main()
    assert (out / "README.md").read_text() == "kept"
    assert not out.with_name("out.tmp").exists()
    pipe, verifier = ChameleonWorldModelPipeline.from_pretrained(out), DynamicsVerifierPipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config.temperature == 0.7

    scene = Image.open(out / "sample_scene.png")
    assert scene.size == (32, 32)
    output = pipe(scene, "open the door", num_candidates=2, generator=torch.Generator().manual_seed(0))
    assert len(output.images) == len(output.scores) == 2
    assert isinstance(verifier.name_action(scene, output.images[0]).action, str)


def test_an_image_tokenizer_can_be_exchanged(checkpoint_folder, tmp_path):
    vqgan = VQModel.from_pretrained(checkpoint_folder / "vqgan")
    with torch.no_grad():
        vqgan.decoder.conv_out.bias += 1
    vqgan.save_pretrained(tmp_path / "vqgan")
    parts = [checkpoint_folder / "world_model"], [checkpoint_folder / "dynamics_model"]
    old, new = (export.assemble(checkpoint_folder, *parts, folder) for folder in (None, tmp_path / "vqgan"))
    codes = torch.zeros(1, old.family.num_image_tokens, dtype=torch.int64)
    assert (new.family.decode_image(codes) > old.family.decode_image(codes)).any()


def test_trainings_are_averaged(checkpoint_folder, tmp_path):
    first = export.mean_of([checkpoint_folder / "world_model"])
    other = {name: weight + 1 for name, weight in first.state_dict().items()}
    first.save_pretrained(tmp_path, state_dict=other)
    mean = export.mean_of([checkpoint_folder / "world_model", tmp_path]).state_dict()
    assert all(torch.allclose(mean[name], weight + 0.5) for name, weight in first.state_dict().items())


def test_models_of_different_depth_have_no_mean(checkpoint_folder, tmp_path):
    shallow = checkpoint_folder / "world_model"
    config = ChameleonConfig.from_pretrained(shallow)
    config.num_hidden_layers += 1
    ChameleonForConditionalGeneration(config).save_pretrained(tmp_path)
    for folders in ([shallow, tmp_path], [tmp_path, shallow]):
        with pytest.raises(ValueError, match="only models of one size have a mean"):
            export.mean_of(folders)


def test_a_trained_model_generates_with_its_cache_again(checkpoint_folder, tmp_path):
    trained = ChameleonForConditionalGeneration.from_pretrained(checkpoint_folder / "world_model")
    trained.generation_config.use_cache = False
    trained.save_pretrained(tmp_path)
    export.mean_of([tmp_path]).save_pretrained(tmp_path / "exported")
    assert GenerationConfig.from_pretrained(tmp_path / "exported").use_cache
