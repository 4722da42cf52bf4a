"""MMLU's subjects in sub-categories and groups, as hendrycks/test's `categories.py` has them (MIT licence).

Embedded, for rows are made from score lines alone: a run folder is summarised where its data is not at hand, and the hub has no such table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

GROUPS = {
    "STEM": {
        "physics": "astronomy college_physics conceptual_physics high_school_physics".split(),
        "chemistry": "college_chemistry high_school_chemistry".split(),
        "biology": "college_biology high_school_biology".split(),
        "computer science": "college_computer_science computer_security high_school_computer_science machine_learning".split(),
        "math": "abstract_algebra college_mathematics elementary_mathematics high_school_mathematics high_school_statistics".split(),
        "engineering": "electrical_engineering".split(),
    },
    "humanities": {
        "history": "high_school_european_history high_school_us_history high_school_world_history prehistory".split(),
        "philosophy": "formal_logic logical_fallacies moral_disputes moral_scenarios philosophy world_religions".split(),
        "law": "international_law jurisprudence professional_law".split(),
    },
    "social sciences": {
        "politics": "high_school_government_and_politics public_relations security_studies us_foreign_policy".split(),
        "culture": "human_sexuality sociology".split(),
        "economics": "econometrics high_school_macroeconomics high_school_microeconomics".split(),
        "geography": "high_school_geography".split(),
        "psychology": "high_school_psychology professional_psychology".split(),
    },
    "other (business, health, misc.)": {
        "other": "global_facts miscellaneous professional_accounting".split(),
        "business": "business_ethics management marketing".split(),
        "health": "anatomy clinical_knowledge college_medicine human_aging medical_genetics nutrition professional_medicine virology".split(),
    },
}
"""Group, sub-category, subjects."""
SUBJECTS = {
    subject: (group, sub_category)
    for group, sub_categories in GROUPS.items()
    for sub_category, subjects in sub_categories.items()
    for subject in subjects
}


def parts(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """Score lines of MMLU by group, by sub-category and by subject: kind, name, lines; each kind in the order of the table.

    A subject that the table does not know is a part of its own only.
    """
    by_subject: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        by_subject.setdefault(line["unit"], []).append(line)
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    known = [subject for subject in SUBJECTS if subject in by_subject]
    for at, kind in enumerate(("group", "sub-category")):
        for subject in known:
            found.setdefault((kind, SUBJECTS[subject][at]), []).extend(by_subject[subject])
    for subject in sorted(by_subject):
        found["subject", subject] = by_subject[subject]
    return [(kind, name, of) for (kind, name), of in found.items()]
