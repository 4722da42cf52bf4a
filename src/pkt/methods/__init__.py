"""Methods: each is one function from two models and a task to one `Delta`, in a file of its own."""

from typing import Any

from pkt.config import Recipe, validate
from pkt.registry import Registry

METHODS = Registry(
    "method",
    {
        "direct": "pkt.methods.direct:direct",
        "gkd": "pkt.methods.gkd:gkd",
        "laten": "pkt.methods.laten:laten",
        "lora": "pkt.methods.lora:lora",
        "pissa": "pkt.methods.pissa:pissa",
        "random_init": "pkt.methods.random_init:random_init",
        "seeking": "pkt.methods.seeking:seeking",
        "seqkd": "pkt.methods.seqkd:seqkd",
        "sft": "pkt.methods.sft:sft",
    },
    cls="pkt.methods.base:Method",
)


def method_of(recipe: Recipe) -> tuple[Any, Any]:
    """A recipe's method and its validated options."""
    options = dict(recipe.method)
    method = METHODS.get(options.pop("name"))
    return method, validate(method.config, options, f"recipe {recipe.name}", "method")
