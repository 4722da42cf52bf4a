"""Token maps of a pair."""

from types import SimpleNamespace

import pytest

from pkt.errors import UnsupportedModelError
from pkt.models.tokens import check_same_tokens


def lm(name, tokens):
    return SimpleNamespace(name=name, tokenizer=SimpleNamespace(get_vocab=lambda: tokens))


def test_equal_maps_pass_whatever_their_order():
    check_same_tokens(lm("s", {"a": 0, "b": 1}), lm("t", {"b": 1, "a": 0}), "gkd")


@pytest.mark.parametrize("other", [{"a": 0}, {"a": 1, "b": 0}, {"a": 0, "b": 1, "c": 2}])
def test_other_maps_are_refused_with_what_differs(other):
    with pytest.raises(
        UnsupportedModelError, match=r"gkd needs equal token maps.* s .* t .*differ in [12]: '[abc]' is"
    ):
        check_same_tokens(lm("s", other), lm("t", {"a": 0, "b": 1}), "gkd")
