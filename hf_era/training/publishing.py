"""What leaves the machine: the contracted, stock model with tokenizer and card, never the auxiliary module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub

from hf_era.models.loading_hint import is_readme_of_an_expanded_model
from hf_era.models.module_files import is_in_parts
from hf_era.reporting.markdown.model_card import render_model_card
from hf_era.training.report import trainer_result
from hf_era.utils.files import fingerprint, write_text

_MARK = "\n<!-- Unless this file is changed, hf_era replaces it when the model is saved here again: "
"""Before the hash of a card. One of another training would say of the new weights what is not so."""
MODEL_TAGS = ["hf_era", "gradient-routing", "unlearning"]


def save_contracted(trainer: Any, folder: Path, card: dict[str, Any]) -> Path:
    """Saves the contracted model with its tokenizer and, where there is none that somebody wrote or changed, a card;
    returns the folder.

    Args:
        trainer (`GradientRoutingTrainer`): whose model it is; those of all processes take part, the main one's writes.
        folder (`Path`): where to.
        card (`dict`): arguments of `render_model_card`.
    """
    if is_in_parts(folder):
        raise ValueError(
            f"`output_dir`: {folder} holds an expanded model, its modules in {folder / 'modules'}, beside which the "
            "contracted one would lie. Pass another folder."
        )
    weights = trainer.full_state_dict()
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model).contract_weights(weights)
        model.add_model_tags(MODEL_TAGS)
        model.save_pretrained(folder)
        if trainer.processing_class is not None:
            trainer.processing_class.save_pretrained(folder)
        readme = folder / "README.md"
        if not readme.exists() or is_readme_of_an_expanded_model(readme) or _is_own_card(readme):
            text = render_model_card(trainer_result(trainer, folder.name), **card)
            write_text(readme, f"{text}{_MARK}{fingerprint(text)} -->\n")
    return folder


def _is_own_card(readme: Path) -> bool:
    """Whether a card is as `save_contracted` wrote it."""
    text, mark, end = readme.read_text(encoding="utf-8", errors="replace").rpartition(_MARK)
    return bool(mark) and end == f"{fingerprint(text)} -->\n"


def push_contracted(
    trainer: Any, token: str | None, revision: str | None, private: bool | None, card: dict[str, Any], **options: Any
) -> Any:
    """Uploads what `save_contracted` saves to the trainer's repository, from the main process.

    Arguments as in `Trainer.push_to_hub`, and as `options` what else `huggingface_hub.upload_folder` takes, whose answer is
    returned.
    """
    if trainer.hub_model_id is None:
        trainer.init_hf_repo(token=token, private=private)
    folder = trainer.save_contracted(Path(trainer.args.output_dir) / "contracted", **card)
    if not trainer.is_world_process_zero():
        return None
    return huggingface_hub.upload_folder(
        repo_id=trainer.hub_model_id,
        folder_path=str(folder),
        token=token if token is not None else trainer.args.hub_token,
        revision=revision if revision is not None else trainer.args.hub_revision,
        **options,
    )
