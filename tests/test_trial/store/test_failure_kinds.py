"""The kind of a failure, from an exception, a message or a log."""

from __future__ import annotations

import pytest
import torch

from trial.store import failure_kinds
from trial.store.failure_kinds import (
    KIND_BY_TEXT,
    Diverged,
    PeerFailed,
    cause_of,
    check_loss,
    classify,
    kind_of_log,
    kind_of_text,
    note_retry,
)

CUDA_OOM = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB"
HPU_OOM = "FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::268435456 (256)MB"
HPU_BUSY = "synStatus=20 [Device already acquired] Device acquire failed."
NO_HPU = "synStatus=8 [Device not found] Device acquire failed."
CUDA_BUSY = "CUDA error: all CUDA-capable devices are busy or unavailable"

TEXTS = [
    (CUDA_OOM, "out_of_memory"),
    (HPU_OOM, "out_of_memory"),
    ("PT_DEVMEM allocation failed", "out_of_memory"),
    ("torch.OutOfMemoryError: HPU", "out_of_memory"),
    ("DefaultCPUAllocator: can't allocate memory: you tried to allocate", "out_of_memory"),
    ("[Errno 12] Cannot allocate memory", "out_of_memory"),
    ("terminate called after throwing an instance of 'std::bad_alloc'", "out_of_memory"),
    (HPU_BUSY, "device_busy"),
    (CUDA_BUSY, "device_busy"),
    # Busy and absent begin alike; a device that is absent does not come back.
    (NO_HPU, "error"),
    ("Graph compile failed. synStatus=26", "error"),
    ("step 3\nSegmentation fault", "error"),
    (f"step 3\n{HPU_OOM}\nSegmentation fault", "out_of_memory"),
    ("", "error"),
]


@pytest.mark.parametrize(("text", "kind"), TEXTS)
def test_the_kind_of_a_text(text, kind):
    assert kind_of_text(text) == kind


def test_every_row_of_the_table_is_reached():
    """No text of a row holds the text of an earlier row, which would decide in its place."""
    rows = [sign for sign, _ in KIND_BY_TEXT]
    assert len(set(rows)) == len(rows)
    for sign, kind in KIND_BY_TEXT:
        assert sign == sign.lower()
        assert kind_of_text(f"before {sign.upper()} after") == kind


def chained(cause: BaseException) -> Exception:
    error = ValueError("step failed")
    error.__cause__ = cause
    return error


def while_handling(context: BaseException) -> Exception:
    error = KeyError("x")
    error.__context__ = context
    return error


ERRORS = [
    (MemoryError(), "out_of_memory"),
    (torch.OutOfMemoryError(CUDA_OOM), "out_of_memory"),
    (torch.OutOfMemoryError(), "out_of_memory"),
    (RuntimeError(CUDA_OOM), "out_of_memory"),
    (RuntimeError(HPU_OOM), "out_of_memory"),
    (OSError(12, "Cannot allocate memory"), "out_of_memory"),
    (RuntimeError(HPU_BUSY), "device_busy"),
    (RuntimeError("Graph compile failed. synStatus=26"), "error"),
    (Diverged("the eval loss", float("inf"), 7), "diverged"),
    (PeerFailed(1, "X", "diverged", "the loss is nan"), "diverged"),
    # Only errors of the runtime and the system are read for text.
    (ValueError("a question about running out of memory"), "error"),
    (KeyError("x"), "error"),
    # Causes and contexts count, the outermost first.
    (chained(RuntimeError(HPU_OOM)), "out_of_memory"),
    (while_handling(RuntimeError(HPU_BUSY)), "device_busy"),
    (chained(chained(MemoryError())), "out_of_memory"),
    (chained(KeyError("x")), "error"),
]


@pytest.mark.parametrize(("error", "kind"), ERRORS)
def test_the_kind_of_an_exception(error, kind):
    assert classify(error) == kind


@pytest.mark.parametrize(
    ("error", "step", "message"),
    [
        (ValueError("seed: must be an int\ngot 'x'"), 3, "seed: must be an int"),
        (RuntimeError("\n  boom  \nmore"), 3, "RuntimeError: boom"),
        (KeyError(), 3, "KeyError"),
        (MemoryError(), 3, "MemoryError"),
        (PeerFailed(2, "KeyError", "error", "KeyError: 'x'"), 3, "rank 2: KeyError: 'x'"),
        # The exception's own step counts.
        (Diverged("the eval loss", 9.5, 7), 7, "the eval loss is 9.5 at step 7"),
    ],
)
def test_a_cause_is_one_line_for_a_person(error, step, message):
    found = cause_of(error, 3)
    assert (found.message, found.step) == (message, step)


@pytest.mark.parametrize(
    ("value", "above", "passes"),
    [
        (1.0, None, True),
        (1.0, 1.0, True),
        (1.1, 1.0, False),
        (1e30, None, True),
        (float("inf"), None, False),
        (float("nan"), None, False),
        (float("nan"), 1.0, False),
    ],
)
def test_which_losses_have_diverged(value, above, passes):
    if passes:
        check_loss("the eval loss", value, 3, above)
        return
    with pytest.raises(Diverged, match=r"the eval loss is .* at step 3") as error:
        check_loss("the eval loss", value, 3, above)
    assert error.value.step == 3


def test_only_the_last_attempt_of_a_log_counts(tmp_path):
    log = tmp_path / "train.log"
    assert kind_of_log(log) == "error"
    log.write_text(f"{HPU_OOM}\n")
    assert kind_of_log(log) == "out_of_memory"
    note_retry(log, "out_of_memory", f"{CUDA_OOM}\nmore")
    assert kind_of_log(log) == "error"
    with open(log, "a") as file:
        file.write(f"{HPU_BUSY}\n")
    assert kind_of_log(log) == "device_busy"


def test_only_the_end_of_a_log_is_read(tmp_path):
    log = tmp_path / "train.log"
    log.write_text(HPU_OOM + "\n" + "x" * failure_kinds.LOG_TAIL_BYTES)
    assert kind_of_log(log) == "error"
    log.write_bytes(b"\xff" * failure_kinds.LOG_TAIL_BYTES + HPU_OOM.encode())
    assert kind_of_log(log) == "out_of_memory"
