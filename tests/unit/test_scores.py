"""The result files of a run folder when they hold something else."""

from __future__ import annotations

import pytest

from pkt.scores import Scores


@pytest.mark.parametrize("text", ["3", "[1]", '{"score": 1}', "{"])
def test_lines_that_are_no_scores_are_made_anew(tmp_path, text):
    (tmp_path / "scores.jsonl").write_text(f'{{"arm": "target"}}\n{text}\n')
    (tmp_path / "perplexity.json").write_text('{"target": 2.0}')
    scores = Scores(tmp_path)
    scores.drop_damaged()
    assert scores.lines() == []
    assert scores.perplexities() == {"target": 2.0}


@pytest.mark.parametrize("text", ["3", "[1]", "{"])
def test_what_is_no_perplexity_is_made_anew(tmp_path, text):
    (tmp_path / "perplexity.json").write_text(text)
    scores = Scores(tmp_path)
    scores.drop_damaged()
    assert scores.perplexities() == {}
