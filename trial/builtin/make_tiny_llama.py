"""Trains the tiny Llama, in under ten minutes on two CPU cores.

    python -m trial.builtin.make_tiny_llama [FOLDER]

A byte-level BPE tokenizer and a Llama of a million parameters, trained on the source of the
standard library of Python 3.11.7. All docstrings are removed first, and the modules of `HELD_OUT`
are left out. Only this program reads the standard library: the model comes with the project.
"""

from __future__ import annotations

import ast
import math
import random
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trial.builtin import content_hash, model_path
from trial.builtin.docs_rows import Definition

VOCABULARY = 2048
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
SEED = 0
LEARNING_RATE = 4e-3

EXCLUDED = ("test", "tests", "encodings", "site-packages", "config-", "turtledemo", "__phello__")
"""Prefixes of names of folders and files that are left out."""

_NAMES = """
abc argparse ast asyncio.base_events asyncio.events asyncio.futures asyncio.locks
asyncio.protocols asyncio.queues asyncio.runners asyncio.streams asyncio.tasks asyncio.transports
base64 bdb bz2 calendar cmd code codecs collections concurrent.futures._base configparser
contextlib copy csv dataclasses difflib dis doctest email.charset email.generator email.header
email.message email.policy email.utils enum filecmp fileinput fnmatch fractions ftplib functools
glob gzip hashlib heapq hmac html.parser http.client http.cookiejar http.cookies http.server
imaplib inspect ipaddress json.decoder json.encoder linecache logging logging.config
logging.handlers lzma mailbox mimetypes multiprocessing.connection multiprocessing.context
multiprocessing.managers multiprocessing.pool multiprocessing.process
multiprocessing.shared_memory numbers operator optparse os pdb pickle pickletools pkgutil platform
plistlib poplib pprint pstats pyclbr pydoc queue random sched secrets selectors shelve shlex
shutil smtplib socket socketserver ssl statistics string subprocess symtable sysconfig tarfile
tempfile textwrap threading timeit tokenize trace traceback tracemalloc turtle types typing
unittest.case unittest.loader unittest.mock unittest.result unittest.suite urllib.parse
urllib.request urllib.robotparser uuid warnings wave weakref webbrowser wsgiref.handlers
wsgiref.headers wsgiref.util xml.dom.minidom xml.etree.ElementTree xml.sax.handler
xml.sax.xmlreader xmlrpc.client xmlrpc.server zipapp zipfile zipimport zoneinfo
"""
HELD_OUT = tuple(_NAMES.split())
"""Modules that are left out."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How much the model is trained."""

    steps: int = 1200
    warmup: int = 100
    """Steps of linear warm-up."""
    batch_size: int = 16
    length: int = 256
    """Tokens of a row."""


RECIPE = Recipe()


def main(folder: Path, recipe: Recipe = RECIPE, texts: list[str] | None = None) -> None:
    """Train tokenizer and model on the texts, by default `corpus()`, and save both."""
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    texts = corpus() if texts is None else texts
    tokenizer = train_tokenizer(texts)
    ids = torch.tensor([id for text in texts for id in encode(tokenizer, text)])
    print(f"{len(texts)} files, {sum(map(len, texts)):,} characters, {len(ids):,} tokens")
    model = LlamaForCausalLM(configuration(tokenizer))
    train(model, ids, recipe)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {content_hash(folder)}")


def corpus() -> list[str]:
    """Source, without docstrings, of the standard library but for `HELD_OUT`."""
    root = Path(sysconfig.get_path("stdlib"))
    held_out = {source_file(root, module) for module in HELD_OUT}
    texts = []
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if file in held_out or any(part.startswith(EXCLUDED) for part in parts):
            continue
        try:
            texts.append(without_docstrings(file.read_text(encoding="utf-8")))
        except (UnicodeDecodeError, SyntaxError):
            continue
    random.Random(SEED).shuffle(texts)
    return texts


def source_file(root: Path, module: str) -> Path | None:
    """Where the standard library at `root` keeps a module's source; None where it has none."""
    stem = root.joinpath(*module.split("."))
    candidates = (stem.with_suffix(".py"), stem / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def without_docstrings(source: str) -> str:
    """The source without the lines of its docstrings."""
    docstring_lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Definition | ast.Module) and ast.get_docstring(node):
            docstring = node.body[0]
            docstring_lines.update(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    lines = source.splitlines(keepends=True)
    return "".join(line for number, line in enumerate(lines, 1) if number not in docstring_lines)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with bos, eos and pad."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=SHAPE["max_position_embeddings"],
        # No token types: Llama's generate() refuses inputs that it does not know.
        model_input_names=["input_ids", "attention_mask"],
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """One document between bos and eos."""
    return [*tokenizer.encode(text), tokenizer.eos_token_id]


def configuration(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The configuration of the model."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SHAPE,
    )


def batches(ids: torch.Tensor, recipe: Recipe) -> Iterator[torch.Tensor]:
    """Random windows of the token stream, each batch [batch_size, length]."""
    generator = torch.Generator().manual_seed(SEED)
    size = recipe.length
    for _ in range(recipe.steps):
        starts = torch.randint(len(ids) - size, (recipe.batch_size,), generator=generator)
        yield torch.stack([ids[start : start + size] for start in starts.tolist()])


def rate(step: int, recipe: Recipe) -> float:
    """Factor of the learning rate: linear warm-up, then cosine decay to zero."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / (recipe.steps - recipe.warmup)
    return 0.5 + 0.5 * math.cos(math.pi * progress)


def train(model: LlamaForCausalLM, ids: torch.Tensor, recipe: Recipe) -> None:
    """Next-token prediction with AdamW."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate, recipe=recipe))
    start = time.monotonic()
    for step, batch in enumerate(batches(ids, recipe), 1):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(
                f"step {step} loss {loss.item():.3f} {time.monotonic() - start:.0f} s", flush=True
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else model_path())
