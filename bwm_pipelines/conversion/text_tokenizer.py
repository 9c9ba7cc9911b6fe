"""Chameleon's text tokenizer: Meta's `text_tokenizer.json`, or transformers' `tokenizer.json`, becomes a processor.

The file is taken as it is, because classes that build a tokenizer from its vocabulary may split text in other ways.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, processors
from transformers import ChameleonProcessor, PreTrainedTokenizerFast
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

from bwm_pipelines.conversion.layouts import read_json

BOS, PAD, EOS, UNK = "<s>", "<pad>", "</s>", "<unk>"
BOI, EOI, IMAGE, SEP = "<racm3:break>", "<eoss>", "<image>", "<reserved08706>"
IMAGE_IN_META = "<reserved08707>"  # Meta has no placeholder; transformers took this token for it


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer, with an image placeholder and with bos before every text.

    Raises:
        ValueError: the file is damaged or lacks one of Chameleon's special tokens.
    """
    content = read_json(path)
    try:
        _name_image_token(content)
        tokenizer = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # noqa: BLE001 (tokenizers raises plain Exception)
        raise ValueError(f"`source`: {path} is no file of the tokenizers library ({error}); get it again.") from None
    for token in (BOS, PAD, EOS, BOI, EOI, IMAGE, SEP):
        if tokenizer.token_to_id(token) is None:
            raise ValueError(f"`source`: {path} has no token {token}; get the tokenizer of a Chameleon.")
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK if tokenizer.token_to_id(UNK) is not None else None,
        sep_token=SEP,
        extra_special_tokens={"image_token": IMAGE, "boi_token": BOI, "eoi_token": EOI},
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, image_size: int, num_image_tokens: int) -> ChameleonProcessor:
    """The stock processor for square images of `image_size` pixels that take `num_image_tokens` tokens each."""
    image_processor = ChameleonImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return ChameleonProcessor(image_processor, tokenizer, image_seq_length=num_image_tokens)


def _name_image_token(content: dict) -> None:
    vocabulary = content["model"]["vocab"]
    if IMAGE in vocabulary or any(token["content"] == IMAGE for token in content["added_tokens"]):
        return
    if IMAGE_IN_META in vocabulary:
        vocabulary[IMAGE] = vocabulary.pop(IMAGE_IN_META)
    for token in content["added_tokens"]:
        if token["content"] == IMAGE_IN_META:
            token["content"] = IMAGE
