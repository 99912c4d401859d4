"""Tokenizers of one token a character, fast and slow: ids and masks can be read by eye."""

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

LETTERS = [chr(code) for code in range(32, 127)] + ["\n", "é"]
SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]


def letter_tokenizer(template=None):
    """One token a character; four special tokens."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *LETTERS])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<|end|>"], chat_template=template,
    )  # fmt: skip


class SlowLetters(PreTrainedTokenizer):
    """The same tokenizer, written in Python."""

    def __init__(self, **more):
        self.letters = {token: i for i, token in enumerate([*SPECIAL, *LETTERS])}
        names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        super().__init__(**names, additional_special_tokens=["<|end|>"], **more)

    vocab_size = property(lambda self: len(self.letters))

    def get_vocab(self):
        return dict(self.letters)

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.letters.get(token, 0)

    def _convert_id_to_token(self, index):
        return [*SPECIAL, *LETTERS][index]
