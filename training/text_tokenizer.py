"""Build the text side of a small Chameleon checkpoint: a byte-level BPE tokenizer that also names the image tokens.

tokenizer = build_tokenizer(sentences, num_codes=512, vocab_size=2048)
processor = build_processor(tokenizer, image_size=96, num_image_tokens=144)
config = ChameleonConfig(vocab_size=len(tokenizer), vocabulary_map=tokenizer.get_vocab(), ...)
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ChameleonProcessor, PreTrainedTokenizerFast
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

from bwm_pipelines.families.chameleon import image_token_name

# The names and roles of facebook/chameleon-7b's vocabulary.
BOS, PAD, EOS, UNK = "<s>", "<pad>", "</s>", "<unk>"
BOI, EOI, IMAGE, SEP = "<racm3:break>", "<eoss>", "<image>", "<reserved08706>"


def build_tokenizer(sentences: Iterable[str], *, num_codes: int, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer in memory.

    Args:
        sentences: text to learn merges from.
        num_codes: size of the VQ codebook; every code becomes a token.
        vocab_size: most tokens in all: 8 special ones, the codes, 256 bytes and merges. `len(tokenizer)` is smaller
            where the sentences offer fewer merges.
    """
    # Sorted by name, so that ids do not follow codes: what relies on their order breaks at once, not on another's
    # vocabulary.
    image_tokens = sorted(map(image_token_name, range(num_codes)))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, PAD, EOS, UNK, *image_tokens, EOI, BOI, IMAGE, SEP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        sep_token=SEP,
        extra_special_tokens={"image_token": IMAGE, "boi_token": BOI, "eoi_token": EOI},
    )


def build_processor(
    tokenizer: PreTrainedTokenizerFast, *, image_size: int, num_image_tokens: int
) -> ChameleonProcessor:
    """The stock processor for square images of `image_size` pixels that take `num_image_tokens` tokens each."""
    image_processor = ChameleonImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return ChameleonProcessor(image_processor, tokenizer, image_seq_length=num_image_tokens)
