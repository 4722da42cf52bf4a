"""The formats of the benchmarks, by name. Prompts and grading follow Open-Instruct's protocol, but for what each file says."""

from __future__ import annotations

from pkt.tasks.code import HUMANEVAL, MBPP, MBPP_PLUS
from pkt.tasks.gsm8k import GSM8K
from pkt.tasks.math import MATH
from pkt.tasks.mmlu import MMLU

FORMATS = {form.name: form for form in (MMLU, GSM8K, HUMANEVAL, MBPP, MBPP_PLUS, MATH)}
