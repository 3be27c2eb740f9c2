"""The training forward against the golden numbers, the checkpoint files, resumption."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lingflash.core.errors import ConfigError, ModelLoadError
from lingflash.models.config import load_model_config
from lingflash.train.checkpoint import export, load, to_tensors, widen
from lingflash.train.data.stream import StreamConfig
from lingflash.train.model import TrainModel, document_mask, top_mask
from lingflash.train.optimizer import newton_schulz
from lingflash.train.recipe import RECIPES, recipe
from lingflash.train.trainer import RunConfig, Trainer, blocks_of, learning_rate

GOLDEN = Path(__file__).parents[1] / "golden"
ASSETS = Path(str(resources.files("lingflash").joinpath("assets/ling-nano")))


@pytest.mark.parametrize("length", [1, 7, 64, 200])
@pytest.mark.parametrize("offset", [0, 40])
def test_forward_when_packed_behind_another_document_then_matches_golden(length, offset):
    model = load(GOLDEN / "checkpoint").eval()
    golden = load_file(GOLDEN / "golden.safetensors")
    width = -(-(length + offset) // 64) * 64
    tokens = torch.zeros(1, width + 2, dtype=torch.long)
    document = torch.full((1, width), -1, dtype=torch.int32)
    tokens[0, :offset] = torch.arange(offset) + 3
    document[0, :offset] = 0
    tokens[0, offset : offset + length] = golden[f"L{length}.input_ids"].view(-1)
    document[0, offset : offset + length] = 1
    index = torch.arange(offset, offset + length)
    with torch.no_grad():
        logits, ahead = model(tokens, model.context(document), index, True)
    expected = golden[f"L{length}.logits"].view(length, -1)
    assert (logits - expected).abs().max() < 2e-4
    if f"L{length}.mtp.logits" in golden:
        expected = golden[f"L{length}.mtp.logits"].view(length - 1, -1)
        assert (ahead[: length - 1] - expected).abs().max() < 2e-4


def test_ahead_when_several_passes_then_each_is_what_a_draft_finds():
    """Emulated draft by draft: single rows read the layer's output instead of the model's."""
    model = load(GOLDEN / "checkpoint").eval()
    length, passes = 64, 3
    tokens = torch.arange(length + 2)[None] + 3
    document = torch.zeros(1, length, dtype=torch.int32)
    document[0, :4] = -1  # another document before it
    context = model.context(document, passes)
    with torch.no_grad():
        hidden = model.hidden(tokens[:, :length], context)
        outs = model.ahead(tokens, hidden, context, passes)
        assert len(outs) == passes
        for end in (8, 30, 63):
            own = hidden.clone()
            for draft in range(1, passes):
                # The rows of drafts 2 .. draft + 1, which end here.
                for i in range(draft):
                    at = end - draft + 1 + i
                    own[:, at] = outs[i][:, at - 1]
                (found,) = model.ahead(tokens, own, context, 1)
                assert (found[:, end] - outs[draft][:, end]).abs().max() < 1e-4
                own = hidden.clone()


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_blocks_of_when_documents_are_packed_then_all_that_is_seen_is_in_them(passes):
    generator = torch.Generator().manual_seed(passes)
    cuts = torch.rand(3, 1024, generator=generator) < 0.004
    document = cuts.cumsum(-1).to(torch.int32)
    document[1, 900:] = -1
    num, order = blocks_of(document, passes)
    seen = document_mask(document, passes)[:, 0]
    seen = seen.view(3, 8, 128, 8 * passes, 128).any(-1).any(2)
    listed = torch.zeros_like(seen)
    for row in range(3):
        for block in range(8):
            listed[row, block, order[row, 0, block, : num[row, 0, block]].long()] = True
    assert not (seen & ~listed).any()
    assert listed.float().mean() < 0.6


def test_widen_when_the_vocabulary_grew_then_old_rows_stay_and_others_are_drawn():
    small = load(GOLDEN / "checkpoint")
    config = replace(small.config, vocab_size=small.config.vocab_size + 128)
    shared = small.layers[1].mlp.shared_experts
    model = TrainModel(config, shared.gate_proj.weight.shape[0] if shared else 0)
    own = {n: t.clone() for n, t in small.state_dict().items()}
    fitted = widen(own, model)
    rows = small.config.vocab_size
    assert torch.equal(fitted["lm_head.weight"][:rows], own["lm_head.weight"])
    assert fitted["word_embeddings.weight"].shape[0] == rows + 128
    own["norm"] = torch.ones(3)
    with pytest.raises(ModelLoadError, match="norm is"):
        widen(own, model)


def test_export_when_loaded_again_then_same_bits(tmp_path):
    model = load(GOLDEN / "checkpoint")
    (tmp_path / "config.json").write_bytes((GOLDEN / "checkpoint" / "config.json").read_bytes())
    total = export(model, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total
    original = to_tensors(model)
    assert set(index["weight_map"]) == set(original)
    for name, tensor in to_tensors(load(tmp_path)).items():
        assert tensor.dtype == original[name].dtype
        assert torch.equal(tensor, original[name]), name
    (tmp_path / "model-mtp-layer.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="cannot be read"):
        load(tmp_path)


def test_bundled_checkpoint_when_loaded_then_is_complete_and_small():
    load(ASSETS)
    assert sum(f.stat().st_size for f in ASSETS.iterdir()) <= 20_000_000
    config = load_model_config(ASSETS)
    assert config.num_attention_heads >= 4
    assert config.group_norm_size >= 4


def test_top_mask_when_compared_with_topk_then_marks_the_same():
    x = torch.randn(50, 8)
    mask = torch.zeros_like(x, dtype=torch.bool).scatter(-1, x.topk(3, dim=-1).indices, True)
    assert torch.equal(top_mask(x, 3), mask)


def test_newton_schulz_when_any_matrix_then_singular_values_near_one():
    for shape in ((3, 32, 64), (2, 64, 32), (1, 48, 48)):
        y = newton_schulz(torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16())
        values = torch.linalg.svdvals(y.float())
        assert values.max() < 1.4
        assert values.min() > 0.3


def test_learning_rate_when_time_passes_then_warms_up_and_decays():
    nano = RECIPES["nano"]
    assert learning_rate(nano, 0, 0.0) < nano.learning_rate / 10
    assert learning_rate(nano, 1000, 0.2) == nano.learning_rate
    assert learning_rate(nano, 1000, 0.8) < nano.learning_rate
    assert learning_rate(nano, 1000, 1.0) == pytest.approx(nano.learning_rate * nano.floor)


def test_recipe_when_unknown_then_names_the_allowed():
    with pytest.raises(ConfigError, match="nano"):
        recipe("mega")


def test_trainer_when_paused_and_resumed_then_equals_an_unbroken_run(tmp_path):
    small = replace(
        RECIPES["smoke"],
        stream=StreamConfig(rows=1, row_tokens=128, copy_steps=10_000),
        evaluate_every_s=1e9,
        save_every_s=1e9,
        # A rate that does not depend on the clock.
        decay=1e-9,
    )

    def trainer(out: Path) -> Trainer:
        run = RunConfig(
            recipe=small, device="cpu", minutes=1e6, out=out, workers=0, compiled=False, flex=False
        )
        return Trainer(run)

    def steps(t: Trainer, count: int) -> None:
        def stop_after(progress: object = None) -> None:
            t._stop = t.step >= count

        original = t._train_step

        def step(batch, lr, bias_rate, passes):
            losses = original(batch, lr, bias_rate, passes)
            t._stop = t.step + 1 >= count
            return losses

        t._train_step = step
        assert not t.train()

    whole = trainer(tmp_path / "a")
    steps(whole, 4)
    first = trainer(tmp_path / "b")
    steps(first, 2)
    second = trainer(tmp_path / "b")
    steps(second, 4)
    assert second.step == whole.step == 4
    for (name, a), b in zip(
        whole.model.state_dict().items(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_trainer_when_the_recipe_has_a_larger_vocabulary_then_begins_with_the_bundled_weights(
    tmp_path,
):
    config = load_model_config(ASSETS)
    grown = replace(
        RECIPES["smoke"],
        vocab_size=config.vocab_size + 128,
        stream=StreamConfig(rows=1, row_tokens=256, copy_steps=0, short_steps=0),
    )
    run = RunConfig(
        recipe=grown, device="cpu", minutes=1, out=tmp_path, init_from=ASSETS, workers=0,
        compiled=False, flex=False,
    )  # fmt: skip
    trainer = Trainer(run)
    assert trainer.model.lm_head.weight.shape[0] == config.vocab_size + 128
    assert trainer.tokenizer.get_vocab_size() == config.vocab_size + 128
    known = load(ASSETS).lm_head.weight
    assert torch.equal(trainer.model.lm_head.weight[: config.vocab_size], known)
    again = load_model_config(trainer.export())
    assert again.vocab_size == config.vocab_size + 128


def test_train_model_when_tied_embeddings_then_refused():
    config = replace(load_model_config(ASSETS), tie_word_embeddings=True)
    with pytest.raises(ConfigError, match="tie_word_embeddings"):
        TrainModel(config)
