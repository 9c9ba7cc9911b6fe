import pytest
import torch
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from training import deepen

IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def shallow_folder(checkpoint_folder, tmp_path_factory):
    torch.manual_seed(0)
    config = ChameleonConfig.from_pretrained(checkpoint_folder / "world_model", num_hidden_layers=3)
    folder = tmp_path_factory.mktemp("shallow")
    model = ChameleonForConditionalGeneration(config)
    model.generation_config.use_cache = not config.use_cache
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layers", [4, 5, 6])
def test_a_deeper_model_computes_the_same_and_can_learn_to_differ(shallow_folder, tmp_path, monkeypatch, layers):
    arguments = ["deepen", shallow_folder, "--layers", layers, "--out", tmp_path]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in arguments])
    deepen.main()
    shallow, deeper = (ChameleonForConditionalGeneration.from_pretrained(path) for path in (shallow_folder, tmp_path))
    assert len(deeper.model.layers) == deeper.config.num_hidden_layers == layers
    assert deeper.generation_config.to_dict() == shallow.generation_config.to_dict()
    with torch.no_grad():
        torch.testing.assert_close(deeper(IDS).logits, shallow(IDS).logits)

    silent = [block for block in deeper.model.layers if not block.self_attn.o_proj.weight.any()]
    assert len(silent) == layers - 3
    deeper(IDS, labels=IDS).loss.backward()
    for block in silent:
        assert block.self_attn.o_proj.weight.grad.any() and block.mlp.down_proj.weight.grad.any()


@pytest.mark.parametrize("layers", [2, 3, 7])
def test_a_model_grows_at_most_to_twice_its_depth(shallow_folder, layers):
    model = ChameleonForConditionalGeneration.from_pretrained(shallow_folder)
    with pytest.raises(ValueError, match=f"`layers` must be more than the model's 3 and at most 6, got {layers}"):
        deepen.deepen(model, layers)
