"""STAND-IN: attention by torch; kernels that are chosen by a tensor's device are never reached."""

import torch


class FusedSDPA:
    """Attention with the argument order of Habana's kernel."""

    calls = 0

    @staticmethod
    def apply(
        query, key, value, mask=None, dropout=0.0, is_causal=False, scale=None, *modes, **named
    ):
        FusedSDPA.calls += 1
        grouped = query.dim() == 4 and query.shape[1] != key.shape[1]
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal, scale=scale, enable_gqa=grouped
        )


class _Unreached:
    @staticmethod
    def apply(*_, **__):
        raise NotImplementedError("the stand-in has no such kernel")


class RotaryPosEmbeddingHelperV2(_Unreached):
    """Chosen where a tensor is on `hpu`."""


class RotaryPosEmbeddingHelperV3(_Unreached):
    """Chosen where a tensor is on `hpu`."""


class CTCLoss(_Unreached):
    """Imported by optimum-habana's wav2vec2."""
