"""The command that scores: stage 4 of a run folder, or any model on the tasks that are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pkt.cli.options import AllowCode, Batch, Device, NoSandbox, machine_of, resumed
from pkt.console import out, say, show_run
from pkt.errors import ConfigError
from pkt.files import locked
from pkt.listing import table
from pkt.tasks.protocol import TooLong

ALONE = "needs --task, which names the tasks to score a model on"


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="with --task a checkpoint (`nano/...`, a folder, a name on the hub), a PEFT adapter's folder or a delta.safetensors; "
            "without, a run folder",
            metavar="MODEL",
        ),
    ],
    task: Annotated[
        list[str] | None, typer.Option("--task", help="a task to score the model on, see `pkt tasks`; repeatable")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="folder with the tasks' data; left out, the hub")] = None,
    out_: Annotated[
        Path | None,
        typer.Option("--out", help="folder for evaluation.json and scores.jsonl; tasks that are done there are kept"),
    ] = None,
    base: Annotated[str | None, typer.Option(help="base of an adapter or a delta; left out, the one it names")] = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="score an adapter or a delta on --base though it names another one")
    ] = False,
    style: Annotated[
        str | None,
        typer.Option(help="tulu, chat_template or plain; left out, tulu, and plain for `nano/...`, trained so"),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(
            min=0, max=100, help="worked examples, for the tasks that have some; left out, the task's protocol"
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="test items per task (nano: per tier), drawn by the seed")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of drawn items and of sampling")] = 0,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="answers to an item, of tasks that are answered; left out, the task's protocol"
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=100, help="of sampling; 0 is greedy")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", min=0, max=1, help="share of the probability that is sampled from")
    ] = None,
    too_long: Annotated[
        TooLong,
        typer.Option("--too-long", help="a prompt that does not fit: `stop`, count it as `wrong`, or `cut` its start"),
    ] = "stop",
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16")] = "auto",
    device: Device = "auto",
    batch_size: Batch = 64,
    allow_code: AllowCode = False,
    no_sandbox: NoSandbox = False,
    json_: Annotated[bool, typer.Option("--json", help="print evaluation.json instead of a table")] = False,
) -> None:
    """Score any model on tasks, or, without --task, stage 4 of a run folder: target, source and the exported result."""
    if not task:
        given = {"--data": data, "--out": out_, "--base": base, "--any-base": any_base or None, "--style": style, "--shots": shots, "--limit": limit,
                 "--samples": samples, "--temperature": temperature, "--top-p": top_p, "--seed": seed or None,
                 "--too-long": too_long != "stop" or None, "--dtype": dtype != "auto" or None, "--json": json_ or None}  # fmt: skip
        _check_run_folder(model, [option for option, value in given.items() if value is not None])
        return _stage(Path(model), device, batch_size, allow_code, no_sandbox)
    from pkt.inject.given import given as read
    from pkt.report.evaluation import notes, rows
    from pkt.standalone import Wanted
    from pkt.standalone import evaluate as score

    wanted = Wanted(task, data, style, shots, samples, temperature, top_p, too_long, limit, seed)
    machine = machine_of(device, batch_size, 0, allow_code, no_sandbox)
    found = score(read(model, base=base, any_base=any_base, device=device, dtype=dtype), wanted, machine, out_)
    if json_:
        return say(json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True))
    out.print(table(rows(found)))
    for note in notes(found):
        say(note)
    return say(str(out_ / "evaluation.json")) if out_ else None


def _check_run_folder(name: str, others: list[str]) -> None:
    """Raise ConfigError unless a run folder was meant."""
    if others:
        raise ConfigError(f"{', '.join(others)} {ALONE}; without it, {name} is a run folder, scored as its recipe says")
    if Path(name, "recipe.yaml").is_file():
        return
    if not Path(name).is_dir() or any(Path(name, file).is_file() for file in ("config.json", "adapter_config.json")):
        raise ConfigError(
            f"{name} is no run folder; to score a model, say on what, for example --task gsm8k --data DIR"
        )


def _stage(folder: Path, device: str, batch_size: int, allow_code: bool, no_sandbox: bool) -> None:
    """Stage 4."""
    from pkt.finished import forget_others
    from pkt.report.html import write
    from pkt.summary import write_summary

    made = resumed(folder, device, batch_size, allow_code, no_sandbox)
    with locked(folder):
        forget_others(made)
        made.evaluate()
        write_summary(made)
        write(folder)
    show_run(folder)
