"""How large a model is, and how much arithmetic a batch costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from gptrio.errors import warn
from gptrio.models.base.embeddings import ResizableCodes


class CountingMixin(nn.Module):
    """Counts parameters, bytes, tokens and operations."""

    main_input_name: ClassVar[str] = "input_ids"
    warnings_issued: dict[str, bool]

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of parameters, shared ones once; codes of 8 or 4 bits count as the weights that they stand for.

        Args:
            only_trainable: leave out those without gradient.
            exclude_embeddings: leave out tables of tokens and positions.
        """
        modules = list(self.modules())  # looked for once, as each training step counts
        tables = {id(m.weight) for m in modules if _is_table(m)} if exclude_embeddings else set()
        parameters = (p for m in modules for p in m._parameters.values() if p is not None)
        sizes = {id(p): _size(p) for p in parameters if p.requires_grad or not only_trainable}
        layers: list[Any] = [] if only_trainable else [m for m in modules if _has_codes(m)]
        sizes |= {id(layer.weight): layer.out_features * layer.in_features for layer in layers}
        return sum(size for key, size in sizes.items() if key not in tables)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of parameters, and of buffers if `return_buffers`."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.nelement() * tensor.element_size() for tensor in tensors)

    def estimate_tokens(self, input_dict: Mapping[str, Any]) -> int:
        """Number of tokens in a batch.

        Args:
            input_dict: arguments of the forward; without `input_ids` there are 0 tokens, with one warning.
        """
        if self.main_input_name in input_dict:
            return int(input_dict[self.main_input_name].numel())
        if "estimate_tokens" not in self.warnings_issued:
            self.warnings_issued["estimate_tokens"] = True
            warn(
                f"tokens and operations of a batch without {self.main_input_name} are counted as 0; pass "
                f"{self.main_input_name} to have them counted"
            )
        return 0

    def floating_point_ops(self, input_dict: Mapping[str, Any], exclude_embeddings: bool = True) -> int:
        """Operations of a forward and backward pass, without those of attention scores (Kaplan et al., 2020, 2.1).

        Args:
            input_dict: arguments of the forward.
            exclude_embeddings: leave out tables of tokens and positions.
        """
        return 6 * self.estimate_tokens(input_dict) * self.num_parameters(exclude_embeddings=exclude_embeddings)


def _is_table(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) or (hasattr(module, "embedding_dim") and _has_codes(module))


def _has_codes(module: nn.Module) -> bool:
    """Whether gptrio has quantized a module; one attribute first: the whole protocol would slow each training step."""
    return hasattr(module, "weight_scale") and isinstance(module, ResizableCodes)


def _size(parameter: nn.Parameter) -> int:
    """Weights that a parameter holds; bitsandbytes packs two of 4 bits into a byte."""
    if hasattr(parameter, "quant_state"):
        return 2 * parameter.numel() * parameter.element_size()
    return parameter.numel()
