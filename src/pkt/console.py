"""The terminal: where results and messages go, and how a command ends. Used by the command line alone."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.logging import RichHandler
from safetensors import SafetensorError
from typer.exceptions import TyperException

from pkt.errors import PktError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it, and after SIGTERM."""
WIDTH = 100
"""Tables are at least this wide, so that no number is cut where the terminal is narrow or there is none."""

out = Console()
out.width = max(out.width, WIDTH)
err = Console(stderr=True)


def say(text: str) -> None:
    """A line of results, as it is."""
    out.print(text, highlight=False, markup=False, soft_wrap=True)


def show_run(folder: Path) -> None:
    """A run's scores, and where things are."""
    from pkt.listing import table
    from pkt.report.parts import part_rows, pass_rows
    from pkt.report.table import rich_table

    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if summary["scores"]:
        out.print(rich_table(summary))
        for rows in (pass_rows(summary), part_rows(summary, "group")):
            if rows:
                say("")
                out.print(table(rows))
    else:
        say("nothing was scored: evaluate.arms is empty")
    for warning in summary["warnings"]:
        say(f"note: {warning}")
    say(f"\nmodel:  {folder / 'model'}\nreport: {(folder / 'report.html').resolve()}\n")


def show_certificate(certificate: dict[str, Any], folder: Path) -> None:
    """A certificate's differences and verdict."""
    from pkt.report.verdict import certificate_table, verdict_lines

    out.print(certificate_table(certificate))
    say("\n" + "\n".join([*verdict_lines(certificate), f"report: {(folder / 'report.html').resolve()}"]))


def show_comparison(comparison: dict[str, Any], written: Sequence[Path], *, as_json: bool) -> None:
    """Runs side by side, or the same as JSON and nothing else."""
    from pkt.report.comparison import terminal

    if as_json:
        return say(json.dumps(comparison, indent=1, ensure_ascii=False))
    for part in terminal(comparison, out.width):
        if isinstance(part, str):
            say(part)
        else:
            out.print(part)
            say("")
    for path in written:
        say(str(path))
    return None


def show_analysis(page: Path) -> None:
    """What an analysis found, and where its numbers and its page are."""
    found = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    for line in (found["sentence"], *(f"note: {note}" for note in found["notes"])):
        say(line)
    say("")
    for path in (page.with_suffix(".json"), *sorted(page.parent.glob(f"{page.stem}-*.csv"))):
        say(str(path))
    say(f"report: {page.resolve()}")


def show_sweep(sweep: dict[str, Any], folder: Path) -> None:
    """A sweep's table, what it says, and where things are."""
    from pkt.report.sweep_page import failures, terminal

    for shown in terminal(sweep):
        out.print(shown)
        say("")
    for sentence in (*failures(sweep), *sweep["sentences"]):
        say(sentence)
    say("")
    for name in ("sweep.json", "sweep.csv", "costs.json"):
        say(str(folder / name))
    say(f"report: {(folder / 'sweep.html').resolve()}")


def set_up(level: int) -> None:
    """Messages of the package to stderr; settings that make small models fast and results repeatable."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=err, show_path=False, show_level=False, show_time=False)],
    )
    logging.getLogger("pkt").setLevel(level)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # same bytes in every run on a GPU


def run(app: Any, arguments: Sequence[str]) -> None:
    """Run the app: one line and exit code 2 for what a user can cause."""
    debug = "--debug" in arguments
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's Ctrl-C
    try:
        code = app(list(arguments) or ["--help"], prog_name="pkt", standalone_mode=False)
    except PktError as e:
        if debug:
            raise
        _fail(str(e))
    except TyperException as e:
        command = getattr(getattr(e, "ctx", None), "command_path", "pkt")
        _fail(f"{e.format_message().rstrip('.')}; see `{command} --help`")
    except (OSError, SafetensorError) as e:
        if not debug and _is_full(e):
            _fail("no space is left on the disk; free some and run the same command again: finished stages are kept")
        if debug or not isinstance(e, OSError) or e.filename is None:
            raise
        _fail(f"{e.filename}: {e.strerror}; check the path and its permissions")
    except RuntimeError as e:  # torch.OutOfMemoryError is one, and so is the CPU allocator's
        if debug or not re.search("out of memory|can't allocate memory", str(e), re.IGNORECASE):
            raise
        _fail(
            "the device ran out of memory; try a lower --batch-size or method.micro_batch, method.gradient_checkpointing=true, "
            "dtype=bfloat16, or, with a method that does not fine-tune, --device offload"
        )
    if code == INTERRUPTED:
        err.print("interrupted; run the same command again: finished stages are kept", highlight=False)
    if code:
        sys.exit(code)


def _is_full(e: Exception) -> bool:
    """Whether a disk is; safetensors has a text for it alone."""
    return getattr(e, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(e)


def _fail(message: str) -> NoReturn:
    err.print(f"error: {' '.join(message.splitlines())}", highlight=False, markup=False, soft_wrap=True)
    sys.exit(2)
