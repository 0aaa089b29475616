"""Running out of memory halves the batch and goes on, on the same figures; at one story it is an error with a way out."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset

from hf_era import FastGPTNeoForCausalLM
from hf_era.data.tokenizer import train_tokenizer
from hf_era.evaluation import AuxiliaryActivationMeter, EvaluationConfig, Evaluator, RelearnAttack, RelearnAttackConfig
from hf_era.evaluation.batch_halving import BatchMemoryError, halving_batches
from hf_era.evaluation.generation import SamplingConfig, generate_texts
from hf_era.evaluation.relearn.attack import MeasuredStories

ERRORS = {
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "python": MemoryError("std::bad_alloc"),
}


def stories(number: int, seed: int) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, 52, (4 + at % 5,), generator=generator).tolist() for at in range(number)]
    words = [[index == 1 for index in range(len(row))] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "is_forget_word": words, "length": list(map(len, ids))})


@pytest.fixture
def fits() -> Callable[[Any, int], list[int]]:
    """Makes a model's forward pass fail, as an allocator does, for more rows than given; the list gets each batch's rows."""

    def plant(model: Any, rows: int, error: str = "cpu") -> list[int]:
        seen: list[int] = []

        def check(_module: Any, inputs: tuple[Any, ...]) -> None:
            seen.append(inputs[0].shape[0])
            if inputs[0].shape[0] > rows:
                raise ERRORS[error]

        # Late in the model: what earlier layers left behind of a failed try must not count.
        model.transformer.ln_f.register_forward_pre_hook(check)
        return seen

    return plant


@pytest.mark.parametrize("error", ERRORS)
def test_the_size_is_halved_until_it_fits_and_said(error: str) -> None:
    tried: list[int] = []

    def work(size: int) -> str:
        tried.append(size)
        if size > 3:
            raise ERRORS[error]
        return "done"

    with pytest.warns(UserWarning, match="memory did not suffice") as warned:
        found = halving_batches(work, 13, doing="Reading", setting="`section.batch_size`")
    assert found == ("done", 3)
    assert tried == [13, 6, 3]
    assert [str(warning.message) for warning in warned] == [
        f"Reading: memory did not suffice for batches of {size}, going on with {size // 2}. That changes the speed, and the "
        f"figures not beyond rounding. Lower `section.batch_size` to {size // 2} to avoid the failed try."
        for size in (13, 6)
    ]


def test_a_batch_of_one_that_does_not_fit_is_an_error_that_nobody_tries_again() -> None:
    def nothing_fits(size: int) -> None:
        raise ERRORS["gpu"]

    def outer(size: int) -> None:
        halving_batches(nothing_fits, 1, doing="Reading", setting="`batch_size`")

    with pytest.raises(
        BatchMemoryError, match=r"Reading: memory does not suffice for a batch of one.*`data.max_tokens`"
    ):
        halving_batches(outer, 8, doing="Outside", setting="`batch_size`")


def test_other_errors_pass() -> None:
    def fail(size: int) -> None:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        halving_batches(fail, 8, doing="Reading", setting="`batch_size`")


@pytest.mark.parametrize("batch_size", [None, 8])
def test_evaluation_goes_on_and_remembers(
    make_expanded: Callable[..., Any], fits: Callable[..., list[int]], batch_size: int | None
) -> None:
    model = make_expanded()

    def measure(evaluator: Evaluator) -> tuple[Any, Any]:
        with AuxiliaryActivationMeter(model) as meter:
            return evaluator.measure_set(model, "forget", "test", meter), meter.story_rows()

    def make(size: int | None) -> Evaluator:
        return Evaluator(stories(9, 0), stories(7, 1), 0, EvaluationConfig(batch_size=size), progress=False)

    expected, rows = measure(make(2))
    seen, evaluator = fits(model, 2), make(batch_size)
    with pytest.warns(UserWarning, match=r"Evaluating forget examples.*Lower `evaluation.batch_size`"):
        found, found_rows = measure(evaluator)
    assert torch.equal(found.nll, expected.nll)  # the batches are those of that size
    # The meter does not keep the batches of the tries that failed.
    assert all(torch.equal(*pair) for layer in rows for pair in zip(rows[layer], found_rows[layer], strict=True))
    seen.clear()
    evaluator.measure_set(model, "retain", "test")  # at once with what fits: a warning would be an error
    assert seen == [2, 2, 2, 1]


def test_an_attack_goes_on(make_base: Callable[..., Any], fits: Callable[..., list[int]]) -> None:
    config = RelearnAttackConfig(steps=2, batch_size=4)

    def curve(model: Any) -> list[float]:
        measured = MeasuredStories(stories(9, 1), stories(8, 2), 0, config.batch_size)
        points = RelearnAttack(stories(7, 0), measured, 0, config).run(model).points
        return [value for point in points for value in (point.forget_loss, point.retain_loss)]

    expected = curve(make_base())
    model = FastGPTNeoForCausalLM.from_stock(make_base())  # a copy of it keeps the hook
    fits(model, 1)
    with pytest.warns(UserWarning, match="memory did not suffice") as warned:
        found = curve(model)
    assert found == pytest.approx(expected, rel=1e-4)
    said = [str(warning.message).partition(":")[0] for warning in warned]
    # Each finds out once, and starts with what fits the next time.
    assert said == ["Measuring an attack", "Measuring an attack", "Attacking", "Attacking"]
    assert all("Lower `relearn.batch_size`" in str(warning.message) for warning in warned)


def test_generation_goes_on(make_base: Callable[..., Any], fits: Callable[..., list[int]]) -> None:
    tokenizer, model = train_tokenizer(["abc"], vocab_size=259), make_base(vocab_size=259)
    config = SamplingConfig(prompts=["a", "abcd", "hgfedcb", "ab", "b"], new_tokens=5, temperature=1.0, top_k=20)
    expected = generate_texts(model, tokenizer, config)
    fits(model, 1)
    with pytest.warns(UserWarning, match="Generating.*Lower the `batch_size` of `generate_texts`"):
        assert generate_texts(model, tokenizer, config) == expected
    assert model.training


REAL = """
import resource, warnings
import torch
from hf_era.evaluation.batch_halving import halving_batches

def work(rows):
    return float(torch.ones(rows, 2**20).sum())  # 4 MiB a row

held = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize"))) * 1024
resource.setrlimit(resource.RLIMIT_AS, (held + 2**29, held + 2**29))
try:
    work(1024)
except RuntimeError as error:
    print("DefaultCPUAllocator: can't allocate memory" in str(error))
warnings.simplefilter("ignore")
print(*halving_batches(work, 1024, doing="Adding", setting="`batch_size`"))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
def test_real_memory_that_is_not_there(run_python: Callable[..., str]) -> None:
    """Not what we think torch says, but what it says: 4 GiB to 1 GiB do not fit into half a GiB."""
    without, with_halving = run_python(REAL).splitlines()
    assert without == "True"  # it does fail by itself
    result, size = map(float, with_halving.split())
    assert size in (32, 64)
    assert result == size * 2**20
