"""Special tokens under other names, so that theirs are only text."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trial.data.text.special_tokens import SpecialTokens


def test_renamed_special_tokens_change_nothing_else():
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "<": 4, "s": 5, ">": 6, "<s": 7, "/": 8}
    merges = [("<", "s"), ("<s", ">")]
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    special = SpecialTokens(tokenizer)
    text = "s</s>" + special.protect("<s> </s>")
    found = special.renamed(tokenizer.backend_tokenizer).encode(
        special.swapped(text), add_special_tokens=False
    )
    # A prefix space at the very beginning alone; no merge makes the special `<s>` of text.
    assert found.ids == [3, 5, 2, 7, 6, 3, 4, 8, 5, 6]
    assert special.restore(special.protect("<s> </s>")) == "<s> </s>"
