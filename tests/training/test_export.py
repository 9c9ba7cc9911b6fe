import torch
from diffusers import VQModel

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline
from training import export
from training.fit import build_family, build_model


def test_the_exported_folder_is_a_pipeline(vqgan_folder, tmp_path, monkeypatch):
    small = lambda vqgan: build_family(vqgan, image_size=32)
    monkeypatch.setattr(export, "build_family", small)
    tokenizer = small(VQModel.from_pretrained(vqgan_folder)).processor.tokenizer
    for name in ("world", "dynamics"):
        build_model(tokenizer, width=64, layers=1, positions=96).save_pretrained(tmp_path / name)
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("kept")
    arguments = ["export", "--vqgan", vqgan_folder, "--world", tmp_path / "world", "--dynamics", tmp_path / "dynamics"]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in [*arguments, "--out", out]])
    export.main()
    assert (out / "README.md").read_text() == "kept"
    assert not out.with_name("out.tmp").exists()
    pipe, verifier = ChameleonWorldModelPipeline.from_pretrained(out), DynamicsVerifierPipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    from PIL import Image

    scene = Image.open(out / "sample_scene.png")
    assert scene.size == (32, 32)
    output = pipe(scene, "open the door", num_candidates=2, generator=torch.Generator().manual_seed(0))
    assert len(output.images) == len(output.scores) == 2
    assert isinstance(verifier.name_action(scene, output.images[0]).action, str)
