"""Several modules: what each holds by itself, and what comes of switching them on and off."""

from __future__ import annotations

from typing import Any

from hf_era.evaluation.module_results import result_of_module
from hf_era.evaluation.results import AnyResult, RunResult
from hf_era.reporting import module_tables, tables
from hf_era.reporting.html.leak_audit import leak_audit_parts
from hf_era.reporting.html.parts import Folded, Paragraphs, plots_of
from hf_era.reporting.text import name_of


def module_parts(result: AnyResult) -> list[Any]:
    """Tables, a picture of the profiles, and each module's verdict, attacks and leak audit folded; empty where there are
    not several modules."""
    shown = (
        module_tables.modules_table(result),
        module_tables.crosstalk_table(result),
        module_tables.module_selectivity_table(result),
        module_tables.profiles_table(result),
    )
    notes = module_tables.attack_notes(result)
    said = [Paragraphs(notes, bullets=True)] if notes else []
    return [*filter(None, shown), *plots_of([result], ["profiles"]), *said, *_each(result)]


def _each(result: AnyResult) -> list[Folded]:
    found = []
    for name, lines in module_tables.verdicts(result).items():
        assert isinstance(result, RunResult)
        own = result_of_module(result, name)
        parts: list[Any] = [Paragraphs([str(line) for line in lines])]
        parts += filter(None, [tables.differences_table(own), tables.attacks_table(own)])
        found.append(Folded(f"The module {name_of(name)}", [*parts, *leak_audit_parts(own)]))
    return found
