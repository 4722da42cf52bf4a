"""Methods: each is one function from two models and a task to one `Delta`, in a file of its own."""

from pkt.registry import Registry

METHODS = Registry(
    "method",
    {
        "direct": "pkt.methods.direct:direct",
        "laten": "pkt.methods.laten:laten",
    },
    cls="pkt.methods.base:Method",
)
