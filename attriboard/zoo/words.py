"""A tokenizer whose tokens are whole words, for the small models that are built rather than downloaded."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, UNKNOWN = "<pad>", "<bos>", "<unk>"


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Splits at white space; ids 0, 1, 2 are :data:`PAD`, :data:`BOS`, :data:`UNKNOWN`; then come ``words`` in order.

    Every text begins with :data:`BOS` unless special tokens are switched off. A leading space makes no difference.
    """
    ids = {word: i for i, word in enumerate((PAD, BOS, UNKNOWN, *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, unk_token=UNKNOWN)
