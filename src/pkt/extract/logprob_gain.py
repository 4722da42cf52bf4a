"""Static attribution: how much one neuron's write to the residual stream changes the log-probability of the answer.

For a residual stream `b` before the write, a neuron that adds `a w`, the final norm's weight `g` and its scale `s`, held
at its value in the unedited run, and the unembedding `U`, the score is

    lp(b + a w) - lp(b),    lp(x) = log softmax(U (s g x))[y]                        (arXiv:2312.12141, section 3)

Written with `d_v = s a (U g w)_v`, the change of logit v, and `p = softmax(U (s g b))`:

    score = d_y - log1p(sum_v p_v expm1(d_v))                                        (exact, and stable for tiny d)

1. `P = U g w` holds no example, so it is computed once for all of them, in tiles that stay in the cache.
2. With `c = s a`, the sum is a power series in c whose coefficients are moments of P under p:

       sum_v p_v expm1(c P_v) = sum_j c^j / j! M_j,    M_j = sum_v p_v P_v^j

   so the exponentials of V entries for every example and neuron become `TERMS` small matrix products for all examples.
   Cut after n = `TERMS`, its error is below x^(n+1) / (n+1)! / (1 - x / (n+2)) with x = max_v |c P_v|: under 1e-9 for
   x <= `REACH`.
3. The other neurons, few in practice, are summed with expm1 itself. Where even that overflows, or falls below `SUNK`, where the
   logarithm loses digits, the answer changes by much and the plain difference of two log-probabilities is exact enough.
4. A first pass over the vocabulary gives the log-sum-exp of the base logits, a second one the moments; neither keeps more
   than one tile.

Some models cap their logits softly, C(x) = c tanh(x / c) (`extract/soft_cap.py`). Then lp(x) = log softmax(C(U (s g x)))[y], d_v is
C(z_v + c_n P_v) - C(z_v) with z the base logits before the cap, p = softmax(C(z)), and the power series in step 2 has coefficients a_j(z_v)
in the place of 1 / j!, which go to the side of p: M_j = sum_v p_v a_j(z_v) P_v^j. Nothing is linearised.

E examples, N neurons, D width, V vocabulary, B base vectors of one example.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pkt.extract import soft_cap

TILE = 512
"""Vocabulary entries and neurons of one tile on a CPU: two tiles of float32 fill a level-2 cache."""

TERMS = 8
REACH = 0.4
SUNK = -0.5
"""Below this sum log1p magnifies the rounding of probabilities: the edited distribution has left where the base one's mass lay."""


class Lens:
    """Reads log-probabilities off the residual stream: final norm with a given scale, then the unembedding.

    Args:
        unembed_VD: the unembedding's weight, in any dtype.
        norm_D: what the final norm multiplies with: its weight, plus one in some families.
        memory: bytes that one call may take for its work, whatever V, D and N are.
        cap: the bound of soft-capped logits; None where they are not capped.
    """

    def __init__(self, unembed_VD: Tensor, norm_D: Tensor, memory: int, cap: float | None = None) -> None:
        self.unembed_VD, self.norm_D, self.cap = unembed_VD, norm_D.float(), cap
        self.reach = REACH if cap is None else soft_cap.reach(cap, TERMS)
        self.whole_VD: Tensor | None = None
        size = 4 * unembed_VD.numel()
        if 2 * size <= memory:
            self.whole_VD, memory = self.rows(slice(None)), memory - size
        self.memory = memory

    def rows(self, index: Tensor | slice) -> Tensor:
        """`U g` for some entries of the vocabulary, (., D) float32: kept whole where memory allows."""
        if self.whole_VD is not None:
            return self.whole_VD[index]
        return self.unembed_VD[index].float() * self.norm_D

    def _vocabulary(self, width: int) -> list[slice]:
        size = len(self.unembed_VD)
        return [slice(i, min(i + width, size)) for i in range(0, size, width)]

    def log_normalizer(self, state_BD: Tensor) -> Tensor:
        """log sum_v exp of the logits of scaled states, (B,) float32, by a running log-sum-exp over the vocabulary."""
        width = max(1, min(8192, self.memory // (8 * (len(state_BD) + state_BD.shape[1]))))
        total_B = torch.full((len(state_BD),), -torch.inf, device=state_BD.device)
        for part in self._vocabulary(width):
            total_B = torch.logaddexp(total_B, self.capped(state_BD @ self.rows(part).T).logsumexp(-1))
        return total_B

    def capped(self, logits: Tensor) -> Tensor:
        """Logits as the model gives them."""
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def logprob(self, state_BD: Tensor, answer_B: Tensor) -> Tensor:
        """log-probability of the answers, (B,) float32 in nats.

        Args: state_BD residual vectors times the norm's scale; answer_B token ids.
        """
        return self.capped((state_BD * self.rows(answer_B)).sum(-1)) - self.log_normalizer(state_BD)

    def gradient(self, state_ED: Tensor, answer_E: Tensor) -> Tensor:
        """Gradient of `logprob` in the scaled state, (E, D) float32: the answer's row less the mean row under the distribution.

        Of logits without a cap alone.
        """
        assert self.cap is None
        norm_E = self.log_normalizer(state_ED)
        mean_ED = torch.zeros_like(state_ED)
        for part in self._vocabulary(self._tile(state_ED.shape[1], len(state_ED))[0]):
            rows_vD = self.rows(part)
            mean_ED.addmm_(torch.exp(state_ED @ rows_vD.T - norm_E[:, None]), rows_vD)
        return self.rows(answer_E) - mean_ED

    def gain(self, base_ED: Tensor, act_EN: Tensor, value_DN: Tensor, scale_E: Tensor, answer_E: Tensor) -> Tensor:
        """Score every neuron for every example.

        Args:
            base_ED: residual stream before the write.
            act_EN: what each neuron multiplies its value with.
            value_DN: what each neuron writes, one per column, in any dtype (the weight of `down_proj` or `o_proj`).
            scale_E: the final norm's scale 1/rms of the unedited run.
            answer_E: token ids of the answers.

        Returns: (E, N) float32, in nats; positive helps the answer.
        """
        state_ED = base_ED.float() * scale_E[:, None]
        factor_EN = act_EN.float() * scale_E[:, None]
        norm_E = self.log_normalizer(state_ED)
        rows_ED = self.rows(answer_E)
        v_tile, n_tile = self._tile(state_ED.shape[1], len(state_ED))
        num_neurons = value_DN.shape[1]
        gain_EN = torch.empty(len(state_ED), num_neurons, device=state_ED.device)
        for start in range(0, num_neurons, n_tile):
            part = slice(start, min(start + n_tile, num_neurons))
            gain_EN[:, part] = self._gain(
                state_ED, factor_EN[:, part], value_DN[:, part].float(), norm_E, rows_ED, v_tile
            )
        return gain_EN

    def _gain(
        self, state_ED: Tensor, factor_EN: Tensor, value_DN: Tensor, norm_E: Tensor, rows_ED: Tensor, v_tile: int
    ) -> Tensor:
        shift_EN, reach_EN = self._series(state_ED, factor_EN, value_DN, norm_E, v_tile)
        far_N = (~(reach_EN <= self.reach)).any(0).nonzero()[:, 0]
        if len(far_N):
            shift_EN[:, far_N] = self._direct(state_ED, factor_EN[:, far_N], value_DN[:, far_N], norm_E, v_tile)
        answer_EN = factor_EN * (rows_ED @ value_DN)
        if self.cap is not None:
            answer_EN = soft_cap.change((state_ED * rows_ED).sum(-1, keepdim=True), answer_EN, self.cap)
        gain_EN = answer_EN - shift_EN.log1p()
        for e, n in (~((shift_EN > SUNK) & (shift_EN < torch.inf))).nonzero().tolist():
            moved_D = state_ED[e] + factor_EN[e, n] * value_DN[:, n]
            pair = torch.stack([moved_D, state_ED[e]])
            change = self.capped(pair @ rows_ED[e]) - self.log_normalizer(pair)
            gain_EN[e, n] = change[0] - change[1]
        return gain_EN

    def _tiles(
        self, state_ED: Tensor, value_DN: Tensor, norm_E: Tensor, v_tile: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(z_Ev before the cap, p_Ev, P_vN) for every part of the vocabulary."""
        for part in self._vocabulary(v_tile):
            rows_vD = self.rows(part)
            logits_Ev = state_ED @ rows_vD.T
            yield logits_Ev, torch.exp(self.capped(logits_Ev) - norm_E[:, None]), rows_vD @ value_DN

    def _series(
        self, state_ED: Tensor, factor_EN: Tensor, value_DN: Tensor, norm_E: Tensor, v_tile: int
    ) -> tuple[Tensor, Tensor]:
        """sum_v p_v expm1(c P_v) by its power series, and x = max_v |c P_v|, both (E, N)."""
        moments = factor_EN.new_zeros(TERMS, *factor_EN.shape)
        largest_N = factor_EN.new_zeros(factor_EN.shape[1])
        for logits_Ev, prob_Ev, product_vN in self._tiles(state_ED, value_DN, norm_E, v_tile):
            largest_N = torch.maximum(largest_N, product_vN.abs().amax(0))
            weights = [prob_Ev] * TERMS
            if self.cap is not None:
                weights = [prob_Ev * a_Ev for a_Ev in soft_cap.coefficients(logits_Ev, self.cap, TERMS)]
            power_vN = product_vN.clone()
            for j in range(TERMS):
                moments[j].addmm_(weights[j], power_vN)
                power_vN.mul_(product_vN)
        shift_EN = torch.zeros_like(factor_EN)
        for j in range(TERMS, 0, -1):  # Horner, from the highest term
            coefficient = moments[j - 1] / math.factorial(j) if self.cap is None else moments[j - 1]
            shift_EN = factor_EN * (coefficient + shift_EN)
        reach_EN = factor_EN.abs() * largest_N
        return shift_EN, reach_EN.masked_fill(~moments.isfinite().all(0), torch.inf)

    def _direct(self, state_ED: Tensor, factor_EN: Tensor, value_DN: Tensor, norm_E: Tensor, v_tile: int) -> Tensor:
        """sum_v p_v expm1(c P_v), (E, N)."""
        shift_EN = torch.zeros_like(factor_EN)
        for logits_Ev, prob_Ev, product_vN in self._tiles(state_ED, value_DN, norm_E, v_tile):
            change_vN = torch.empty_like(product_vN)
            for e in range(len(state_ED)):
                torch.mul(product_vN, factor_EN[e], out=change_vN)
                if self.cap is not None:
                    change_vN = soft_cap.change(logits_Ev[e][:, None], change_vN, self.cap)
                change_vN.expm1_()
                shift_EN[e].addmv_(change_vN.T, prob_Ev[e])
        return shift_EN

    def _tile(self, width: int, examples: int) -> tuple[int, int]:
        """Vocabulary entries and neurons of one tile, so that tile, copy and float32 rows fit into `memory`."""
        top = TILE if self.unembed_VD.device.type == "cpu" else 16 * TILE
        v, n = top, top
        copies, wide = (2, 1) if self.cap is None else (5, 3 * TERMS)  # a cap needs room for its own steps
        while v > 1 and 4 * (copies * v * n + (v + n) * width + examples * (wide * v + (TERMS + 3) * n)) > self.memory:
            v, n = (v + 1) // 2, (n + 1) // 2
        return v, n
