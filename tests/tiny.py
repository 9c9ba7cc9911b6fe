"""A tiny real checkpoint: stock classes with random weights, and a tokenizer trained in memory."""

import torch
from diffusers import UNet2DModel, VQModel
from PIL import Image
from torch import Tensor, nn
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, PreTrainedTokenizerFast

from bwm_pipelines import ChameleonWorldModelPipeline
from training.text_tokenizer import build_processor, build_tokenizer

IMAGE_SIZE, NUM_CODES, CONTEXT = 16, 32, 96
SENTENCES = ["open the door", "close the drawer", "push the red cube to the left", "turn the lamp on"]


def random_weights(model: nn.Module, seed: int) -> nn.Module:
    """Weights large enough that every token depends clearly on all tokens before it."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int, **sizes: int) -> ChameleonForConditionalGeneration:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    } | sizes
    config = ChameleonConfig(
        vocab_size=len(tokenizer),
        vocabulary_map=tokenizer.get_vocab(),
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
        **sizes,
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


def build_refiner() -> UNet2DModel:
    """One that sees squares of two pixels as one."""
    refiner = UNet2DModel(
        sample_size=IMAGE_SIZE // 2,
        in_channels=24,
        out_channels=16,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,
    )
    return random_weights(refiner, seed=3)


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


def stock_prompt(pipe: ChameleonWorldModelPipeline, text: str, *codes: Tensor) -> Tensor:
    """What the stock processor makes of a text, its placeholders replaced by the tokens of images with these codes."""
    blank = [Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE)) for _ in codes]
    ids = pipe.processor(images=blank, text=text, return_tensors="pt").input_ids[0]
    code_to_token = pipe.world_model.model.vocabulary_mapping.img2bpe
    ids[ids == pipe.processor.image_token_id] = torch.tensor([code_to_token[c] for c in torch.cat(codes).tolist()])
    return ids


def plain_logits(model: ChameleonForConditionalGeneration, ids: Tensor) -> Tensor:
    """Logits [S, V] of a whole sequence [S] without a cache and without the stock mask on image tokens."""
    with torch.no_grad():
        return model.lm_head(model.model(input_ids=ids[None], use_cache=False).last_hidden_state)[0]
