"""Tests of the backbone whose layers stay on the disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

from mobillm.errors import ModelError
from mobillm.nn.backbone import Backbone
from mobillm.nn.heads import export_lm_head
from mobillm.nn.streamed import StreamedBackbone
from tests.nn.tiny import DECODERS, ENCODERS, SAMPLES, collect, tiny_model, tiny_tokenizer

BATCHES = [SAMPLES, [SAMPLES[1]], [SAMPLES[0], SAMPLES[0]]]


def saved(folder: Path, architecture: str) -> Path:
    """Save a tiny model with its tokenizer and return the directory."""
    model: Any = tiny_model(architecture)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def collect_all(backbone: Backbone, batches: list[list[list[int]]]) -> dict[tuple[int, int], Tensor]:
    """Return the taps of several batches by batch and index."""
    found: dict[tuple[int, int], Tensor] = {}

    def keep(batch: int, index: int, hidden: Tensor) -> None:
        assert (batch, index) not in found
        found[batch, index] = hidden.clone()

    backbone.forward_all(batches, keep)
    return found


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODERS])
def test_bit_equal_to_the_resident_backbone(
    architecture: str, dtype: str, compute: str, tmp_path: Path
) -> None:
    """Together and one by one, batches have the very hidden states of the backbone in memory."""
    directory = saved(tmp_path, architecture)
    options: dict[str, Any] = {"taps": [0, 1, 2, 3], "dtype": dtype, "compute_dtype": compute}
    whole = Backbone.from_pretrained(directory, **options)
    streamed = StreamedBackbone.from_pretrained(directory, **options)
    together = collect_all(streamed, BATCHES)
    assert len(together) == 12
    for number, batch in enumerate(BATCHES):
        alone = collect(streamed, batch)
        for index, expected in enumerate(collect(whole, batch)):
            assert expected.dtype == streamed.compute_dtype == getattr(torch, compute)
            assert torch.equal(together[number, index], expected)
            assert torch.equal(alone[index], expected)
    assert streamed.model_spec() == whole.model_spec()


def test_each_layer_is_read_once_for_all_batches(tmp_path: Path) -> None:
    """Three batches go through a layer before the next one is read; layers above the last tap never are."""
    streamed = StreamedBackbone.from_pretrained(saved(tmp_path, "llama"), taps=[1, 2])
    order: list[tuple[int, int]] = []
    streamed.forward_all(BATCHES, lambda batch, index, _: order.append((batch, index)))
    assert order == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    store = streamed.store
    assert store is not None
    assert store.reads == 2
    assert len(collect_all(streamed.with_taps([3]), BATCHES)) == 3
    assert store.reads == 3


def test_of_the_embedding_only_rows_are_read(tmp_path: Path) -> None:
    """The embedding is never loaded: a batch reads the rows of its own tokens."""
    streamed = StreamedBackbone.from_pretrained(saved(tmp_path, "gpt2"), taps="all")
    model: Any = streamed.model
    assert model.get_input_embeddings().weight.is_meta
    collect(streamed, [[5, 6, 5, 7], [6, 5]])
    assert tuple(model.get_input_embeddings().weight.shape) == (4, 16)  # 5, 6, 7 and the padding


def test_saved_buffers_are_read(tmp_path: Path) -> None:
    """A buffer that is in the file comes from there."""
    directory = saved(tmp_path, "gemma")
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    tensors["embed_tokens.embed_scale"] = torch.tensor(7.0)
    safetensors.torch.save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    streamed = StreamedBackbone.from_pretrained(directory)
    assert dict(streamed.model.named_buffers())["embed_tokens.embed_scale"] == 7.0


def test_lm_head_and_generation(tmp_path: Path) -> None:
    """The exported head is that of the whole model, and token by token works too."""
    directory = saved(tmp_path, "llama")
    whole = Backbone.from_pretrained(directory, lm_head=True, taps="all")
    streamed = StreamedBackbone.from_pretrained(directory, lm_head=True, taps="all")
    assert export_lm_head(streamed.model) == export_lm_head(whole.model)
    pieces: list[Tensor] = []
    cache = streamed.extend(SAMPLES[0][:2], lambda _, hidden: pieces.append(hidden.clone()))
    streamed.extend(SAMPLES[0][2:], lambda _, hidden: pieces.append(hidden.clone()), cache)
    torch.testing.assert_close(torch.cat(pieces[0::3]), collect(whole, [SAMPLES[0]])[0], atol=2e-4, rtol=2e-4)


def test_tied_head(tmp_path: Path) -> None:
    """A head that is the embedding is not in the file, and is found all the same."""
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    whole = Backbone.from_pretrained(tmp_path, lm_head=True)
    streamed = StreamedBackbone.from_pretrained(tmp_path, lm_head=True)
    assert export_lm_head(streamed.model) == export_lm_head(whole.model)


def test_bad_models(tmp_path: Path) -> None:
    """A model that is not there, or whose tensors have other names, is refused by name."""
    with pytest.raises(ModelError, match="holds neither"):
        StreamedBackbone.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot load the model 'nobody/nothing'"):
        StreamedBackbone.from_pretrained("nobody/nothing", local_files_only=True)
    directory = saved(tmp_path, "llama")
    model: nn.Module = tiny_model("llama")
    other: Any = model
    del other.model.layers[2]
    other.config.num_hidden_layers = 2
    other.save_pretrained(directory)
    config = transformers.AutoConfig.from_pretrained(directory)
    config.num_hidden_layers = 3
    config.layer_types = None
    config.save_pretrained(directory)
    with pytest.raises(ModelError, match=r"holds no layers\.2\..*cannot be read layer by layer"):
        StreamedBackbone.from_pretrained(directory)


# Everything is imported and the streamed model opened; then the process may grow by half of the weights.
_LIMITED = """
import os, resource, sys
import torch, transformers
from mobillm.nn.backbone import Backbone
from mobillm.nn.streamed import StreamedBackbone
torch.set_num_threads(1)
child = os.fork()  # importing takes seconds, so it is done once for both
kind = Backbone if child else StreamedBackbone
status = os.waitpid(child, 0)[1] if child else 0
transformers.LlamaModel  # imports the architecture
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize:"))
limit = size * 1024 + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
backbone = kind.from_pretrained(sys.argv[1], taps="all")
sums = [0.0] * backbone.layers
def add(_batch, index, hidden):
    sums[index] += float(hidden.double().sum())
backbone.forward_all([[[5, 6, 7, 8]], [[9, 10, 11]]], add)
print(sums, flush=True)
"""


def test_a_model_twice_the_memory_limit(tmp_path: Path) -> None:
    """Under a limit of the system's that is half of the weights only the streamed backbone runs."""
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=256, intermediate_size=1024, num_hidden_layers=64, num_attention_heads=8,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, dtype="float32",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaModel(config)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    weights = sum(p.nbytes for p in model.parameters())
    expected = [0.0] * 64
    backbone = Backbone.from_model(model, name="large", taps="all")
    for sample in ([5, 6, 7, 8], [9, 10, 11]):
        for index, hidden in enumerate(collect(backbone, [sample])):
            expected[index] += float(hidden.double().sum())

    command = [sys.executable, "-c", _LIMITED, str(tmp_path), str(weights // 2)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    (line,) = done.stdout.splitlines() or [done.stderr]  # the whole backbone does not get to print one
    assert [float(x) for x in line.strip("[]").split(",")] == pytest.approx(expected, rel=1e-4)
    assert done.returncode != 0
    assert "memory" in done.stderr.lower()
