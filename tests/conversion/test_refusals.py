"""What cannot be converted is refused in one line, and nothing is left at the destination."""

import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from bwm_pipelines.__main__ import main
from bwm_pipelines.conversion import convert, language_model
from tests.conversion.checkpoints import YAML, vqgan_state, write_vqgan


@pytest.fixture
def folder(meta, tmp_path) -> Path:
    """A copy of the checkpoint in Meta's layout, to be damaged."""
    return Path(shutil.copytree(meta.folder, tmp_path / "chameleon"))


def refusal(folder: Path, **options) -> str:
    dest = folder.with_name("out")
    with pytest.raises(ValueError) as error:
        convert(folder, dest, **options)
    assert "\n" not in str(error.value) and not dest.exists()
    return str(error.value)


def edit_rank(folder: Path, edit) -> None:
    file = folder / "models" / "7b" / "consolidated.pth"
    state = torch.load(file, weights_only=True)
    edit(state)
    torch.save(state, file)


@pytest.mark.parametrize(
    "name",
    ["models/7b/consolidated.pth", "tokenizer/text_tokenizer.json", "tokenizer/vqgan.ckpt", "tokenizer/vqgan.yaml"],
)
def test_file_that_is_missing(folder, name):
    (folder / name).unlink()
    assert Path(name).name in refusal(folder)


def test_folders_that_hold_no_model(folder, converted, tmp_path):
    assert "is no folder here" in refusal(tmp_path / "nowhere")
    assert "has none of the known layouts" in refusal(tmp_path)
    shutil.copytree(folder / "models" / "7b", folder / "models" / "30b")
    assert "holds several models; give one of" in refusal(folder)
    shutil.copytree(converted, tmp_path / "converted")
    assert "is a pipeline folder already" in refusal(tmp_path / "converted")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "holds a llama model" in refusal(tmp_path)


def test_rank_that_is_missing(folder):
    model = folder / "models" / "7b"
    (model / "consolidated.pth").rename(model / "consolidated.00.pth")
    (model / "consolidate_params.json").write_text('{"model_parallel_size": 4}')
    assert "has 1 of the 4 files consolidated.00.pth to consolidated.03.pth" in refusal(folder)


@pytest.mark.parametrize("name", ["models/7b/consolidated.pth", "tokenizer/vqgan.ckpt"])
def test_file_that_was_cut_off(folder, name):
    file = folder / name
    file.write_bytes(file.read_bytes()[:-1000])
    assert f"{file} is damaged or cut off" in refusal(folder)


class Intruder:
    """What unpickling would run."""

    def __reduce__(self):
        return Path.touch, (Path("intruder"),)


@pytest.mark.parametrize("save", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))])
def test_pickle_that_runs_code(folder, monkeypatch, tmp_path, save):
    monkeypatch.chdir(tmp_path)
    save({"norm.weight": torch.ones(2), "hook": Intruder()}, folder / "models" / "7b" / "consolidated.pth")
    assert "consolidated.pth" in refusal(folder)
    assert not (tmp_path / "intruder").exists()


def test_tensor_that_is_missing(folder):
    edit_rank(folder, lambda state: state.pop("layers.1.attention.k_normalization.bias"))
    assert "does not fill model.layers.1.self_attn.k_norm.bias" in refusal(folder)


def test_tensor_that_is_unknown(folder):
    edit_rank(folder, lambda state: state.update({"layers.0.attention.wz.weight": torch.ones(2)}))
    assert "has layers.0.attention.wz.weight, which no Chameleon has" in refusal(folder)


def test_tensor_of_another_shape(folder):
    edit_rank(folder, lambda state: state.update({"norm.weight": torch.ones(3)}))
    assert "norm.weight of" in (message := refusal(folder)) and "[3]" in message and "[64]" in message


def test_queries_of_another_shape(folder):
    edit_rank(folder, lambda state: state.update({"layers.1.attention.wq.weight": torch.ones(63, 64)}))
    assert "layers.1.attention.wq.weight of" in (message := refusal(folder)) and "[63, 64]" in message


def test_ranks_of_two_checkpoints(folder):
    file = folder / "models" / "7b" / "consolidated.pth"
    state = torch.load(file, weights_only=True)
    torch.save(state, file.with_name("consolidated.00.pth"))
    torch.save(state | {"norm.weight": torch.ones(3)}, file.with_name("consolidated.01.pth"))
    file.unlink()
    (file.parent / "consolidate_params.json").unlink()
    assert "mixes files whose shapes do not fit together" in refusal(folder)


def test_tensor_that_is_not_finite(folder):
    edit_rank(folder, lambda state: state["layers.0.feed_forward.w2.weight"].fill_(torch.nan))
    assert "the logits of the converted model differ" in refusal(folder)
    assert not folder.with_name(".out.unfinished").exists()


def test_image_tokenizer_without_a_decoder(folder):
    write_vqgan(folder / "tokenizer", {k: v for k, v in vqgan_state().items() if not k.startswith("decoder.")})
    assert "has no image decoder" in refusal(folder)


def test_image_tokenizer_with_an_unknown_tensor(folder):
    write_vqgan(folder / "tokenizer", vqgan_state() | {"colorize": torch.ones(2)})
    assert "has colorize, which no Chameleon has" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_embed": 64}, r"quantize.embedding.weight .* \[32, 8\] .* \[64, 8\]"),
        ({"ddconfig": {"ch_mult": [1, 2, 2]}}, r"nin_shortcut"),
        ({"ddconfig": {"num_res_blocks": 3}}, r"does not fill"),
        ({"ddconfig": {"attn_resolutions": [4]}}, r"attn_resolutions = \[4\]"),
        ({"ddconfig": {"double_z": True}}, r"double_latent = True"),
        ({"ddconfig": None}, "no configuration of a VQ-GAN"),
    ],
)
def test_yaml_of_another_image_tokenizer(folder, change, message):
    config = copy.deepcopy(YAML)
    for name, value in change.items():
        params = config["model"]["params"]
        params[name] = params[name] | value if isinstance(value, dict) else value
    (folder / "tokenizer" / "vqgan.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=message):
        convert(folder, folder.with_name("out"))


@pytest.mark.parametrize("text", ["", "- 1", "model: [", "{}"])
def test_yaml_that_is_no_configuration(folder, text):
    (folder / "tokenizer" / "vqgan.yaml").write_text(text)
    assert "vqgan.yaml" in refusal(folder)


def test_tokenizer_that_lacks_a_token(folder):
    file = folder / "tokenizer" / "text_tokenizer.json"
    file.write_text(file.read_text().replace("<reserved08706>", "<reserved99999>"))
    assert "has no token <reserved08706>" in refusal(folder)
    file.write_text("{}")
    assert "text_tokenizer.json is no file of the tokenizers library" in refusal(folder)


def test_parameters_that_are_missing(folder):
    (folder / "models" / "7b" / "params.json").write_text('{"model": {"dim": 64}}')
    assert "has no n_layers" in refusal(folder)


def test_defaults_that_cannot_work(folder):
    assert "`forward_prompt` must hold one <image>" in refusal(folder, forward_prompt="{action}")
    assert "`temperature` is no default of DynamicsVerifierPipeline" in refusal(
        folder, role="dynamics", temperature=0.5
    )
    assert "`role` must be one of world, dynamics, both" in refusal(folder, role="editor")


def test_destination_that_exists(meta, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="^`dest` .* exists already"):
        convert(meta.folder, tmp_path / "out")


def test_rotary_order_that_is_wrong_is_found_out(meta, tmp_path, monkeypatch):
    """Shapes do not tell: only the logits do."""
    monkeypatch.setattr(language_model, "halves", lambda tensor, heads: tensor)
    with pytest.raises(ValueError, match="the logits of the converted model differ from those of its source"):
        convert(meta.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command(meta, tmp_path, capsys):
    words = [
        "convert",
        str(meta.folder),
        str(tmp_path / "out"),
        "--as",
        "dynamics",
        "--inverse-prompt",
        "<image><image>?",
    ]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["components"] == ["dynamics_model"] and result["code_agreement"] == 1
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "DynamicsVerifierPipeline" and index["inverse_prompt"] == "<image><image>?"
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
