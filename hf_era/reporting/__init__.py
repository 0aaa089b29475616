"""Tables and model cards. They read result objects only, and the same result always gives the same text.

`hf_era.reporting.cards` renders the cards of a whole folder of results; import it by its own name.
"""

from hf_era.reporting.markdown.model_card import render_model_card, write_model_card
from hf_era.reporting.markdown.tables import losses_table, routing_table, selectivity_table

__all__ = [
    "losses_table",
    "render_model_card",
    "routing_table",
    "selectivity_table",
    "write_model_card",
]
