"""A tiny Llama as a GGUF file and in a wheel, written as the format says and not as we read it."""

from pathlib import Path
from zipfile import ZipFile

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

HEADS, KEY_VALUE_HEADS, LAYERS, WIDTH, MLP = 4, 2, 2, 64, 96
NAME, VERSION = "tiny_llama", "0.1"
INSIDE = "tiny_llama/tiny.gguf"

WORDS = ["<|start|>", "<|end|>", *bytes_to_unicode().values(), "he", "hell"]
MERGES = ["h e", "l l", "he ll"]
WORDS.insert(-1, "ll")


def model(kind: gguf.GGMLQuantizationType) -> LlamaForCausalLM:
    """Random weights, matrices as their quantised numbers: what a reader must find."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = LlamaForCausalLM(config).eval()
        for parameter in built.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.15 * torch.randn(parameter.shape)
            else:
                stored = quantize(parameter.detach().numpy(), kind)
                parameter.data = torch.tensor(dequantize(stored, kind))
    return built


def write(path: Path, built: LlamaForCausalLM, kind: gguf.GGMLQuantizationType) -> Path:
    """The file, as llama.cpp's converter lays it out."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(WORDS))

    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, *[1] * (len(WORDS) - 2)])  # 3: control, 1: normal
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    for name, values in _tensors(built).items():
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(built: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """By GGUF's names; in its queries and keys both halves of a turn are neighbours."""
    state = {name: value.numpy() for name, value in built.state_dict().items()}
    found = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    parts = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    heads = {"attn_q": HEADS, "attn_k": KEY_VALUE_HEADS}

    for layer in range(LAYERS):
        for short, long in parts.items():
            values = state[f"model.layers.{layer}.{long}.weight"]
            if short in heads:
                halves = values.reshape(heads[short], 2, -1, WIDTH)  # [head, half, pair, d_model]
                values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
            found[f"blk.{layer}.{short}.weight"] = values
    return found


def wheel(folder: Path, file: Path) -> Path:
    """A wheel that pip takes, with the file in it."""
    path = folder / f"{NAME}-{VERSION}-py3-none-any.whl"
    described = f"{NAME}-{VERSION}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\nRequires-Dist: absent\n"

    with ZipFile(path, "w") as opened:
        opened.write(file, INSIDE)
        opened.writestr(f"{described}/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        opened.writestr(f"{described}/WHEEL", tags)
        opened.writestr(f"{described}/RECORD", "")
    return path
