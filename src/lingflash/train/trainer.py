"""The training loop: a schedule by wall time, resumable, with held-out scores on the way."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lingflash.core.errors import ConfigError
from lingflash.models.config import load_model_config
from lingflash.train.checkpoint import export, load, widen
from lingflash.train.data.heldout import handwritten_cases, heldout_cases
from lingflash.train.data.stream import Batch, BatchStream
from lingflash.train.evaluate import exact, score_line
from lingflash.train.model import (
    Context,
    MixtureOfExperts,
    TrainModel,
    call_module,
    document_mask,
    num_parameters,
    rotary,
)
from lingflash.train.optimizer import Optimizer
from lingflash.train.recipe import Recipe
from lingflash.train.report import Progress, draw_loss_curve
from lingflash.train.tokenizer import add_characters

ASSETS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Where and how long a run goes.

    Args:
        device: "cuda" or "cpu".
        minutes: length of the whole schedule, over all resumptions.
        stop_after_minutes: pause (with a checkpoint) after this long in this process; None is
            never.
        out: folder for checkpoint, log, curve and the exported model.
        resume: go on from out/state.pt if it exists.
        seed: of weights and data.
        workers: processes that make data.
        init_from: folder of a checkpoint to take the first weights from; None draws them.
        compiled: use torch.compile.
        flex: use flex attention, CUDA and compiled only.
    """

    recipe: Recipe
    device: str
    minutes: float
    out: Path
    stop_after_minutes: float | None = None
    resume: bool = True
    seed: int = 1
    workers: int = 1
    init_from: Path | None = None
    compiled: bool = True
    flex: bool = True


def learning_rate(recipe: Recipe, step: int, progress: float) -> float:
    """Return the rate at a step and at a part of the time: warm-up, constant, linear decay."""
    rate = recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup_steps)
    left = max(0.0, 1.0 - progress) / recipe.decay
    return rate * max(recipe.floor, min(1.0, left))


def _text_side(recipe: Recipe, out: Path) -> Path:
    """The folder of config, tokenizer and template: the bundled one, or a grown copy in out."""
    bundled = Path(str(resources.files("lingflash").joinpath("assets/ling-nano")))
    config: dict[str, Any] = json.loads((bundled / "config.json").read_text())
    wanted = {
        "vocab_size": max(recipe.vocab_size, config["vocab_size"]),
        "max_position_embeddings": max(
            recipe.max_position_embeddings, config["max_position_embeddings"]
        ),
    }
    if wanted.items() <= config.items():
        return bundled
    folder = out / "text"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ASSETS:
        shutil.copyfile(bundled / name, folder / name)
    if wanted["vocab_size"] > config["vocab_size"]:
        add_characters(folder, wanted["vocab_size"])
    (folder / "config.json").write_text(json.dumps({**config, **wanted}, indent=2) + "\n")
    return folder


_BLOCK = 128


def blocks_of(document: Tensor, passes: int) -> tuple[Tensor, Tensor]:
    """For each block of queries, how many blocks of keys it may see, and which, seen ones first.

    Documents lie in a row one behind the other, so that two blocks can share one only if their
    ranges of numbers meet; padding is -1 and comes last.
    """
    b, t = document.shape
    numbers = torch.where(document < 0, 1 << 20, document).view(b, t // _BLOCK, _BLOCK)
    low, high = numbers[..., 0], numbers[..., -1]
    at = torch.arange(t // _BLOCK, device=document.device)
    near = at[:, None] - at[None, :]
    meets = (high[:, None, :] >= low[:, :, None]) & (near >= 0)
    seen = [meets, *(meets & (near <= 1) for _ in range(passes - 1))]
    whole = torch.cat(seen, dim=-1)[:, None]
    order = torch.argsort(whole.to(torch.int8), dim=-1, descending=True, stable=True)
    return whole.sum(-1, dtype=torch.int32), order.to(torch.int32)


def _head_loss(hidden: Tensor, weight: Tensor, index: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden.flatten(0, 1)[index], weight).float(), labels)


class Trainer:
    """One process's part of a run."""

    def __init__(self, run: RunConfig) -> None:
        from tokenizers import Tokenizer

        self.run = run
        # Another seed is other data too; seed 1 is the recipe's own.
        stream = run.recipe.stream
        stream = replace(stream, seed=stream.seed + 1000 * (run.seed - 1))
        self.recipe = replace(run.recipe, stream=stream)
        self.device = torch.device(run.device)
        self.cuda = self.device.type == "cuda"
        self.assets = _text_side(self.recipe, run.out)
        self.tokenizer = Tokenizer.from_file(str(self.assets / "tokenizer.json"))
        config = load_model_config(self.assets)
        if self.tokenizer.get_vocab_size() > config.vocab_size:
            raise ConfigError(
                f"tokenizer.json has {self.tokenizer.get_vocab_size()} entries, config.json's "
                f"vocab_size is {config.vocab_size}; it must not be smaller."
            )
        torch.manual_seed(run.seed)
        torch.set_float32_matmul_precision("high")
        if self.cuda:
            # Idle OpenMP threads spin, and would take the cores from the processes that make data.
            torch.set_num_threads(2)
        self.model = TrainModel(config)
        self.model.initialise(run.seed)
        if run.init_from is not None:
            self.model.load_state_dict(widen(load(run.init_from).state_dict(), self.model))
        self.model.to(self.device).train()
        self.optimizer = Optimizer(self.model, fused=self.cuda)
        self.moe = [m for m in self.model.modules() if isinstance(m, MixtureOfExperts)]
        self.step = 0
        self.elapsed_s = 0.0
        self.log: list[dict[str, Any]] = []
        self.angles = rotary(config, self.recipe.stream.row_tokens, self.device)
        self.use_flex = run.flex and run.compiled and self.cuda
        self._head: Any = _head_loss
        if run.compiled:
            self._compile()
        self._stop = False
        self._compiled_once = False
        run.out.mkdir(parents=True, exist_ok=True)
        self.state_path = run.out / "state.pt"

    def _compile(self) -> None:
        """Compile layer by layer: layers of one kind share their code, and compilation is short."""
        # One entry for each kind of layer and each number of passes of the MTP layer.
        torch._dynamo.config.recompile_limit = 32
        self._layer = torch.compile(self._run_layer, dynamic=False)
        self._head = torch.compile(_head_loss, dynamic=False)
        self._masks: Any = torch.compile(blocks_of, dynamic=False)

    def _run_layer(
        self, module: nn.Module, tensors: tuple[Any, ...], document: Tensor, mask: Any, passes: int
    ) -> Any:
        flex = None
        if self.use_flex:
            from torch.nn.attention.flex_attention import flex_attention

            flex = flex_attention
        context = Context(document, mask, *self.angles, flex, {passes: mask})
        if passes:
            return module(*tensors[:2], context, tensors[2])
        return module(tensors[0], context)

    def _loss(
        self,
        tokens: Tensor,
        document: Tensor,
        index: Tensor,
        labels: Tensor,
        ahead: Tensor,
        passes: int,
    ) -> tuple[Tensor, Tensor]:
        """The loss and the mean of those of the MTP layer's passes."""
        model = self.model
        if self.run.compiled:
            masks = {n: self._mask(document, n) for n in range(1, passes + 1)}

            def call(module: nn.Module, x: Tensor, *rest: Any) -> Any:
                if len(rest) == 1:
                    return self._layer(module, (x,), document, masks[1], 0)
                hidden, _, earlier = rest
                number = len(earlier) + 1
                return self._layer(module, (x, hidden, earlier), document, masks[number], number)

            model.call = call
            context = Context(document, None, *self.angles)
        else:
            context = model.context(document, passes)
        try:
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                hidden = model.hidden(tokens[:, : document.shape[1]], context)
                weight = model.lm_head.weight
                main = self._head(hidden, weight, index, labels)
                if model.mtp is None:
                    return main, torch.zeros_like(main)
                outs = model.ahead(tokens, hidden, context, passes)
                losses = [self._head(out, weight, index, ahead) for out in outs]
        finally:
            model.call = call_module
        return main, torch.stack(losses)

    def _mask(self, document: Tensor, passes: int) -> Any:
        """What `document_mask` says, as flex attention's block mask or a tensor."""
        if not self.use_flex:
            return document_mask(document, passes)
        from torch.nn.attention.flex_attention import BlockMask

        t = document.shape[1]

        def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            gap, at = q - k % t, k // t
            seen = torch.where(at == 0, gap >= passes - 1, gap == passes - 1 - at)
            return seen & (document[b, q] == document[b, k % t])

        return BlockMask.from_kv_blocks(
            *self._masks(document, passes), BLOCK_SIZE=_BLOCK, mask_mod=allowed,
            seq_lengths=(t, passes * t),
        )  # fmt: skip

    def _to_device(self, batch: Batch) -> tuple[Tensor, ...]:
        arrays = (batch.tokens, batch.document, batch.index, batch.labels, batch.labels_ahead)
        tensors = [torch.from_numpy(a) for a in arrays]
        if self.cuda:
            tensors = [x.pin_memory().to(self.device, non_blocking=True) for x in tensors]
        return tuple(tensors)

    def _train_step(self, batch: Batch, lr: float, bias_rate: float, passes: int) -> Tensor:
        tokens, document, index, labels, ahead = self._to_device(batch)
        try:
            main, mtp = self._loss(tokens, document, index, labels, ahead, passes)
        except Exception as error:
            # A compiler that fails here must not cost the run; anything later is a real error.
            if self._compiled_once or not self.run.compiled:
                raise
            print(
                f"falling back after {type(error).__name__}: {str(error)[:2000]}",
                file=sys.stderr,
                flush=True,
            )
            torch._dynamo.reset()
            if self.use_flex:
                self.use_flex = False
                self._compile()
            else:
                self.run = replace(self.run, compiled=False)
                self._head = _head_loss
            return self._train_step(batch, lr, bias_rate, passes)
        self._compiled_once = True
        (main + self.recipe.mtp_weight * mtp.sum()).backward()
        self.optimizer.step(lr)
        with torch.no_grad():
            for moe in self.moe:
                load, bias = moe.load, moe.expert_bias
                assert isinstance(load, Tensor)
                assert isinstance(bias, Tensor)
                bias.add_(torch.sign(load.mean() - load), alpha=bias_rate)
                load.zero_()
        return torch.stack((main.detach(), mtp.detach().flatten()[0]))

    def save(self) -> None:
        """Write everything needed to go on, atomically."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "rng": torch.get_rng_state(),
            "seed": self.run.seed,
            "log": self.log,
        }
        temporary = self.state_path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.state_path)

    def resume(self) -> bool:
        """Take up a saved state, if there is one."""
        if not self.state_path.exists():
            return False
        state = torch.load(self.state_path, map_location="cpu", weights_only=True)
        if state["seed"] != self.run.seed:
            raise ConfigError(
                f"{self.state_path} was begun with --seed {state['seed']}, not {self.run.seed}; "
                "give that seed, or --no-resume to begin anew."
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.step, self.elapsed_s, self.log = state["step"], state["elapsed_s"], state["log"]
        return True

    def evaluate(self, num_heldout: int, seed: int = 7) -> dict[str, dict[str, tuple[int, int]]]:
        """Score the model as it is on the generated and the hand-written test."""
        return {
            name: exact(self.model, self.tokenizer, cases, self.device, self.cuda)
            for name, cases in (
                ("held-out", heldout_cases(num_heldout, seed)),
                ("hand-written", handwritten_cases()),
            )
        }

    def export(self) -> Path:
        """Write the model in Hugging Face layout to out/model."""
        folder = self.run.out / "model"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ASSETS:
            shutil.copyfile(self.assets / name, folder / name)
        export(self.model, folder)
        return folder

    def train(self) -> bool:
        """Run until the schedule's end or a stop.

        Returns:
            Whether the schedule is complete; if not, the state is saved and can be resumed.
        """
        run, recipe = self.run, self.recipe
        resumed = run.resume and self.resume()
        batch_tokens = recipe.stream.rows * recipe.stream.row_tokens
        progress = Progress(run.minutes * 60)
        progress.say(
            f"{num_parameters(self.model):,} parameters on {run.device}, "
            f"{batch_tokens:,} tokens a step, "
            + (f"resumed at step {self.step}" if resumed else f"from {run.init_from or 'nothing'}")
        )
        stream = BatchStream(self.assets / "tokenizer.json", recipe.stream, run.workers, self.step)
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._ask_to_stop)
        started = time.monotonic()
        offset, last_eval, last_save = self.elapsed_s, self.elapsed_s, self.elapsed_s
        tokens_since, since, losses = 0, started, []
        total_s = run.minutes * 60
        complete = False
        try:
            for batch in stream:
                self.elapsed_s = offset + time.monotonic() - started
                part = self.elapsed_s / total_s
                if part >= 1.0:
                    complete = True
                    break
                paused = run.stop_after_minutes is not None and (
                    time.monotonic() - started > run.stop_after_minutes * 60
                )
                if self._stop or paused:
                    break
                lr = learning_rate(recipe, self.step, part)
                # The first step compiles all that the last will need.
                drafting = self.step == 0 or part >= 1 - recipe.draft_part
                passes = recipe.drafts if drafting else 1
                bias_rate = recipe.bias_rate * lr / recipe.learning_rate
                losses.append(self._train_step(batch, lr, bias_rate, passes))
                self.step += 1
                tokens_since += batch_tokens
                if self.step in (1, 5) or self.step % 25 == 0:
                    main, mtp = torch.stack(losses).mean(0).tolist()
                    if not math.isfinite(main):
                        raise ConfigError(
                            f"the loss is {main} at step {self.step}; lower the learning rate."
                        )
                    now = time.monotonic()
                    rate = tokens_since / (now - since)
                    self.log.append(
                        {
                            "step": self.step,
                            "s": round(self.elapsed_s, 1),
                            "loss": main,
                            "mtp": mtp,
                            "lr": lr,
                            "tok_s": rate,
                        }
                    )
                    progress.update(self.elapsed_s, self.step, main, mtp, rate, lr, stream.ready)
                    tokens_since, since, losses = 0, now, []
                if self.elapsed_s - last_eval > recipe.evaluate_every_s:
                    last_eval = self.elapsed_s
                    self._evaluate_and_log(progress, recipe.num_heldout)
                if self.elapsed_s - last_save > recipe.save_every_s:
                    last_save = self.elapsed_s
                    self.save()
        finally:
            stream.close()
        self.save()
        if complete:
            folder = self.export()
            progress.say(f"exported to {folder}")
            self._evaluate_and_log(progress, recipe.final_heldout)
        (run.out / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in self.log))
        draw_loss_curve(self.log, batch_tokens, run.out / "loss_curve.png")
        progress.close()
        return complete

    def _evaluate_and_log(self, progress: Progress, num_heldout: int) -> None:
        scores = self.evaluate(num_heldout)
        self.log.append({"step": self.step, "s": round(self.elapsed_s, 1), "scores": scores})
        for name, score in scores.items():
            progress.say(f"step {self.step} {name}: {score_line(score)}")

    def _ask_to_stop(self, signum: int, frame: Any) -> None:
        self._stop = True
