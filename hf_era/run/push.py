"""A push to the hub: the contracted model of a run with its card, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import safe_open

from hf_era.evaluation import RunResult
from hf_era.evaluation.results import broken_result
from hf_era.models.families.family import EXPANDED_PREFIX
from hf_era.reporting.markdown.model_card import write_model_card
from hf_era.utils.checks import error_text, short_repr
from hf_era.utils.files import first_damage, read_json

MODEL, RESULT = "model", "result.json"
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")


def checked_result(run: Path) -> RunResult:
    """The result of a finished run whose model may be pushed: it is whole, stock, and holds no token.

    Raises:
        ValueError: for a folder that is no finished run, and for a model that is damaged, has an auxiliary module, or has
            files beside it that nobody should see.
    """
    folder = run / MODEL
    if not (run / RESULT).is_file():
        inside = (run.parent / RESULT).is_file()
        way_out = (
            f"Pass the run: `hf-era push {run.parent}`." if inside else "Pass the output directory of `hf-era run`."
        )
        raise ValueError(f"`run`: {run} holds no {RESULT} of a run that went through. {way_out}")
    with broken_result(run / RESULT):
        result = RunResult.load(run / RESULT)
    if not result.has_checkpoint or not folder.is_dir():
        raise ValueError(f"`run`: {run} has no folder `{MODEL}`: {result.method_title} leaves no model of its own.")
    _check_is_as_written(run, folder)
    _check_has_no_module(folder)
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".md", ".txt", ".jinja") and _TOKEN.search(
            path.read_text("utf-8", errors="replace")
        ):
            raise ValueError(f"{path} holds what looks like a token of the hub. Take it out; nothing was pushed.")
    return result


def check_push(repository: str | None, resume: str) -> None:
    """Raises `ValueError` if a push cannot work: the repository's name is none, or the hub must not be asked. `resume`: what
    to do in that case, a sentence."""
    if repository is not None:
        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            raise ValueError(
                f"`repository` should be a hub id such as `owner/name`, got {short_repr(repository)}."
            ) from error
    if huggingface_hub.is_offline_mode():
        raise ValueError(f"The hub cannot be asked: HF_HUB_OFFLINE is set. {resume}")


def push_model(
    result: RunResult,
    folder: Path,
    repository: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    license: str | None = None,
) -> str:
    """Uploads a contracted model with its card, and returns the repository's full id.

    Args:
        folder: the model. repository: hub id; without an owner it is the user's own. private: of a repository that is made
            now. token, revision: as in `huggingface_hub.upload_folder`; the token is not written anywhere.
        license: for the card; not given: the one that its card names.

    Raises:
        ValueError: if the hub cannot be reached or refuses; it says how to go on.
    """
    resume = (
        f"The model is whole in {folder}, loads from there with `from_pretrained`, and can be pushed at any time: "
        f"`hf-era push {folder.parent} --repository {repository}`."
    )
    check_push(repository, resume)
    api = HfApi(token=token, library_name="hf_era")
    try:
        repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
        write_model_card(result, folder, repository=repository, license=license or _license_of(folder / "README.md"))
        api.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            commit_message="Contracted model of hf_era",
            revision=revision,
        )
    except Exception as error:  # of the network, of the hub: each a class of its own
        status = getattr(getattr(error, "response", None), "status_code", None)
        login = (
            " Log in first: `hf auth login`, or set HF_TOKEN." if status in (401, 403) or not token_known(token) else ""
        )
        raise ValueError(f"The push to {repository} failed: {error_text(error)}.{login} {resume}") from error
    return repository


def token_known(token: str | None) -> bool:
    """Whether there is a token to push with."""
    return bool(token or huggingface_hub.get_token())


def _check_is_as_written(run: Path, folder: Path) -> None:
    for record in map(read_json, sorted((run / "phases").glob("*.json"))):
        digests = (record.get("outputs") or {}).get(MODEL) if isinstance(record, dict) else None
        damage = None if digests is None else first_damage(folder, digests)
        if damage is not None:
            raise ValueError(f"{folder} is not as the run left it: {damage}. Give `hf-era run` again to make it anew.")


def _check_has_no_module(folder: Path) -> None:
    """Raises `ValueError` for weights of an auxiliary module, by the config, by their names, or in a file that cannot be
    looked into."""
    for path in sorted(folder.rglob("config.json")):
        if str((read_json(path) or {}).get("model_type")).startswith(EXPANDED_PREFIX):
            raise ValueError(
                f"{path.parent} is the expanded model: what was to be removed is inside. Only a contracted one is pushed."
            )
    for path in sorted(folder.rglob("module_config.json")):
        raise ValueError(f"{path.parent} is the file of a module: what was to be removed. Take it out of {folder}.")
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            found = [name for name in weights.keys() if _is_of_a_module(name)]  # noqa: SIM118
        if found:
            raise ValueError(f"{path} holds {found[0]}, a weight of an auxiliary module: what was to be removed.")
    pickles = [path for kind in ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt") for path in sorted(folder.rglob(kind))]
    if pickles:
        raise ValueError(f"{pickles[0]} is no file of the run, and may hold what was removed. Take it out of {folder}.")


def _is_of_a_module(name: str) -> bool:
    return ".auxiliary." in name  # in whatever family, those included that were opened by the names of their parts


def _license_of(card: Path) -> str | None:
    """The licence that a card names; `None` if there is none."""
    if not card.is_file():
        return None
    found: Any = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict().get("license")
    return found if isinstance(found, str) else None
