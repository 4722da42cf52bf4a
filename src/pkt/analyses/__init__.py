"""Analyses of neural incompatibility: each is one function from a recipe's run to a `Result`, in a file of its own."""

from pkt.registry import Registry

ANALYSES = Registry(
    "analysis",
    {
        "parametric": "pkt.analyses.parametric:parametric",
        "representation": "pkt.analyses.representation:representation",
        "stability": "pkt.analyses.stability:stability",
    },
    cls="pkt.analyses.base:Analysis",
)
