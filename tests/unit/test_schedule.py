"""The one-cycle schedule against torch's own."""

from __future__ import annotations

import pytest
import torch

from pkt.align.alignment import Schedule


@pytest.mark.parametrize("total", [13, 20, 64])
def test_equals_torch(total):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=3e-5, betas=(0.9, 0.95))
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-5, total_steps=total, pct_start=0.1, div_factor=25, final_div_factor=1, base_momentum=0.85, max_momentum=0.95
    )  # fmt: skip
    ours = Schedule(3e-5, total)
    for step in range(total):
        lr, beta1 = ours.at(step)
        group = optimizer.param_groups[0]
        assert lr == pytest.approx(group["lr"], rel=1e-9)
        assert beta1 == pytest.approx(group["betas"][0], rel=1e-9)
        optimizer.step()
        if step < total - 1:
            theirs.step()


@pytest.mark.parametrize("total", range(1, 13))
def test_short_cycles_rise_and_end_low(total):
    rates = [Schedule(1.0, total).at(step)[0] for step in range(total)]
    assert all(1 / 25 <= rate <= 1 for rate in rates)
    assert max(rates) > 0.9
    if total > 2:
        assert rates[-1] == pytest.approx(1 / 25)
