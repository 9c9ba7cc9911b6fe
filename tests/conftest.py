"""A tiny real checkpoint: stock classes with random weights, and a tokenizer trained in memory."""

import pytest
import torch
from diffusers import VQModel
from PIL import Image
from torch import nn
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, PreTrainedTokenizerFast

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline
from training.text_tokenizer import build_processor, build_tokenizer

IMAGE_SIZE, NUM_CODES, CONTEXT = 16, 32, 96
SENTENCES = ["open the door", "close the drawer", "push the red cube to the left", "turn the lamp on"]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def random_weights(model: nn.Module, seed: int) -> nn.Module:
    """Weights large enough that every token depends clearly on all tokens before it."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> ChameleonForConditionalGeneration:
    config = ChameleonConfig(
        vocab_size=len(tokenizer),
        vocabulary_map=tokenizer.get_vocab(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        vq_config={
            "embed_dim": 4,
            "num_embeddings": NUM_CODES,
            "latent_channels": 4,
            "base_channels": 32,
            "channel_multiplier": [1],
            "num_res_blocks": 1,
            "attn_type": "none",
        },
    )
    return random_weights(ChameleonForConditionalGeneration(config), seed)


def build_vqgan() -> VQModel:
    vqgan = VQModel(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=NUM_CODES,
        norm_num_groups=4,
        lookup_from_codebook=True,
    )
    return random_weights(vqgan, seed=2)


def build_pipeline(**config) -> ChameleonWorldModelPipeline:
    """A pipeline of 16 px images with 16 codes out of 32; `config` as for the pipeline's own arguments."""
    tokenizer = build_tokenizer(SENTENCES, num_codes=NUM_CODES, vocab_size=400)
    layout = {
        "forward_prompt": "<image>Edit: {action}",
        "inverse_prompt": "<image><image>What?",
        "image_size": IMAGE_SIZE,
    }
    pipe = ChameleonWorldModelPipeline(
        world_model=build_model(tokenizer, seed=0),
        dynamics_model=build_model(tokenizer, seed=1),
        processor=build_processor(tokenizer, image_size=IMAGE_SIZE, num_image_tokens=16),
        vqgan=build_vqgan(),
        **layout | config,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def pipe() -> ChameleonWorldModelPipeline:
    """Shared by tests that leave it as it is."""
    return build_pipeline()


@pytest.fixture(scope="session")
def verifier(pipe: ChameleonWorldModelPipeline) -> DynamicsVerifierPipeline:
    verifier = DynamicsVerifierPipeline.from_pipe(pipe)
    verifier.set_progress_bar_config(disable=True)
    return verifier


@pytest.fixture(scope="session")
def checkpoint(pipe: ChameleonWorldModelPipeline, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The pipeline as a folder; read-only."""
    folder = tmp_path_factory.mktemp("checkpoint")
    pipe.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def image() -> Image.Image:
    """A picture in which every pixel differs, 40 x 24."""
    return Image.linear_gradient("L").resize((40, 24)).convert("RGB").rotate(30, fillcolor=(200, 30, 60))
