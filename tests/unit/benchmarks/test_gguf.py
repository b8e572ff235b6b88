"""Checkpoints in GGUF: names, axes, and q, k, v in the order that llama.cpp reads."""

from __future__ import annotations

import numpy as np
import pytest

from gptrio import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

gguf = pytest.importorskip("gguf")


@pytest.fixture
def written(tmp_path):
    """Write a model and read its GGUF file: tensors by name, and fields."""
    from _gguf import write_gguf

    def write(model):
        model.save_pretrained(tmp_path / "model")
        write_gguf(tmp_path / "model", tmp_path / "model.gguf")
        reader = gguf.GGUFReader(tmp_path / "model.gguf")
        return {tensor.name: np.array(tensor.data) for tensor in reader.tensors}, reader.fields

    return write


def test_gpt2_matrices_are_written_as_out_by_in(written):
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11, n_positions=16))
    tensors, fields = written(model)
    block = model.transformer.h[1]
    np.testing.assert_array_equal(tensors["blk.1.attn_qkv.weight"], block.attn.c_attn.weight.detach().T)
    np.testing.assert_array_equal(tensors["blk.1.ffn_down.bias"], block.mlp.c_proj.bias.detach())
    np.testing.assert_array_equal(tensors["position_embd.weight"], model.transformer.wpe.weight.detach())
    assert "output.weight" not in tensors and len(tensors) == 2 * 12 + 4
    assert fields["gpt2.block_count"].contents() == 2 and fields["gpt2.vocab_size"].contents() == 11


def test_neox_queries_of_all_heads_come_before_keys_and_values(written):
    config = GPTNeoXConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=11
    )
    model = GPTNeoXForCausalLM(config)
    tensors, fields = written(model)
    mixed = model.gpt_neox.layers[0].attention.query_key_value.weight.detach().numpy()  # (H * 3 * D, C)
    queries = np.concatenate([mixed[0:4], mixed[12:16]])
    np.testing.assert_array_equal(tensors["blk.0.attn_qkv.weight"][:8], queries)
    np.testing.assert_array_equal(tensors["output.weight"], model.embed_out.weight.detach())
    assert fields["gptneox.rope.dimension_count"].contents() == 1
    assert fields["gptneox.use_parallel_residual"].contents() is True
