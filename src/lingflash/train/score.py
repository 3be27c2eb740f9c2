"""Score a checkpoint folder on both tests: `python -m lingflash.train.score`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer


def score_command(
    model: Annotated[Path | None, typer.Argument(help="Folder; none is the bundled model.")] = None,
    cases: Annotated[int, typer.Option(help="Generated held-out cases.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the generated cases.")] = 7,
    failures: Annotated[int, typer.Option(help="Wrong answers to print.")] = 0,
) -> None:
    """Print how many answers are exact, by category and by number of tools, in float32."""
    import torch
    from tokenizers import Tokenizer

    from lingflash.train.checkpoint import load
    from lingflash.train.data.heldout import handwritten_cases, heldout_cases
    from lingflash.train.evaluate import exact, score_line

    folder = model or Path(str(resources.files("lingflash").joinpath("assets/ling-nano")))
    network = load(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    device = torch.device("cpu")
    for name, tests in (
        ("held-out", heldout_cases(cases, seed)),
        ("hand-written", handwritten_cases()),
    ):
        details: list[dict[str, Any]] = []
        scores = exact(network, tokenizer, tests, device, False, 4096, details)
        typer.echo(f"{name}: {score_line(scores)}")
        by_tools: dict[str, tuple[int, int]] = {}
        for case, answer in zip(tests, details, strict=True):
            key = f"{len(case['tools'])} tools"
            hits, total = by_tools.get(key, (0, 0))
            by_tools[key] = (hits + answer["right"], total + 1)
        typer.echo(f"{name}: {score_line(by_tools)}")
        wrong = [(c, d) for c, d in zip(tests, details, strict=True) if not d["right"]]
        for case, answer in wrong[:failures]:
            typer.echo(f"  {case['messages'][-1]['content']}")
            typer.echo(f"    expected {answer['expected']!r}\n    argmax   {answer['guess']!r}")


if __name__ == "__main__":
    typer.run(score_command)
