"""What an optimizer keeps comes back bit for bit, whatever it is; what cannot be saved is refused early."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, LambdaLR

from hf_era.training import optimizer_state
from hf_era.training.checkpoint_state import save_tensors
from hf_era.training.optimizer_state import (
    Packer,
    Unpacker,
    UnsavableStateError,
    check_can_be_saved,
    load_optimizer,
    save_optimizer,
)
from hf_era.training.stepped_weights import SteppedWeights
from hf_era.utils.signals import StoppedError, stoppable


class NestedState(torch.optim.Optimizer):
    """Keeps what 8-bit optimizers and others keep: nested, of several dtypes, in part one tensor for all parameters."""

    def __init__(self, parameters: Any, more: Any = None) -> None:
        super().__init__(parameters, {"lr": torch.tensor(1e-3, dtype=torch.float64), "betas": (0.9, 0.95), "steps": 0})
        self.more, self.map = more, torch.linspace(-1, 1, 256)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["steps"] += 1
            for parameter in group["params"]:
                parameter.sub_(group["lr"])
                state = self.state[parameter]
                state["quantized"] = {
                    "moments": {"state1": torch.randint(0, 256, parameter.shape, dtype=torch.uint8), "map": self.map},
                    "blocks": [
                        torch.rand(3, dtype=torch.float64),
                        torch.rand(2) > 0.5,
                        torch.tensor(7, dtype=torch.int8),
                    ],
                    7: None,
                }
                state["moment"] = torch.rand(parameter.shape, dtype=torch.float64)
                state["rows"] = torch.rand(4, 6)[:, ::2]
                state["step"], state["dtype"] = torch.tensor(3.0), torch.bfloat16
                if self.more is not None:
                    state["projector"] = self.more


class Averaging(torch.optim.Optimizer):
    """Steps on one set of weights and evaluates with another, as schedule-free optimizers do, rounding on every change."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-2, "train_mode": False, "k": 0})

    @torch.no_grad()
    def eval(self) -> None:
        self._change(True, 1 - 1 / 0.9)

    @torch.no_grad()
    def train(self) -> None:
        self._change(False, 1 - 0.9)

    def _change(self, mode: bool, weight: float) -> None:
        for group in self.param_groups:
            for parameter in group["params"] if group["train_mode"] is mode else []:
                if "z" in self.state[parameter]:
                    parameter.lerp_(self.state[parameter]["z"], weight)
            group["train_mode"] = not mode

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            if not group["train_mode"]:
                raise RuntimeError("Optimizer was not in train mode when step is called.")
            group["k"] += 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    z = self.state[parameter].setdefault("z", parameter.clone())
                    parameter.lerp_(z, 1 / (group["k"] + 1)).add_(parameter.grad, alpha=-group["lr"] * 0.1)
                    z.sub_(parameter.grad, alpha=group["lr"])


def parts_of(value: Any) -> Iterator[Any]:
    """The leaves of nested values, tensors as dtype and values."""
    if isinstance(value, dict):
        for key, part in sorted(value.items(), key=str):
            yield key
            yield from parts_of(part)
    elif isinstance(value, (list, tuple)):
        yield type(value)
        for part in value:
            yield from parts_of(part)
    else:
        yield (value.dtype, value.tolist()) if isinstance(value, Tensor) else value


def kept_by(optimizer: Any) -> list[Any]:
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    states = [optimizer.state[value] for group in optimizer.param_groups for value in group["params"]]
    return list(parts_of([groups, states]))


def make(kind: Callable[..., Any] = NestedState, steps: int = 1, **options: Any) -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).to(torch.bfloat16)
    optimizer = kind(model.parameters(), **options)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in range(steps):
        model(torch.ones(2, 3, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
        scheduler.step()
    return model, optimizer, scheduler


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (NestedState, {}),
        (torch.optim.AdamW, {"lr": torch.tensor(1e-3), "foreach": False, "amsgrad": True}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.SGD, {"lr": 0.1}),
    ],
)
def test_whatever_is_kept_comes_back_bit_for_bit(kind: Callable, options: dict[str, Any], tmp_path: Path) -> None:
    model, optimizer, scheduler = make(kind, 2, **options)
    save_optimizer(tmp_path / "file", model, optimizer, scheduler, writes=True)
    other, fresh, schedule = make(kind, 0, **options)
    load_optimizer(tmp_path / "file", other, fresh, schedule)
    assert kept_by(fresh) == kept_by(optimizer)
    assert list(parts_of(schedule.state_dict())) == list(parts_of(scheduler.state_dict()))


def test_a_group_without_parameters_keeps_its_place(tmp_path: Path) -> None:
    model, _, _ = make(steps=0)
    groups = [{"params": [], "lr": 0.5}, {"params": list(model.parameters()), "lr": 0.25}]
    optimizer = torch.optim.SGD([dict(group) for group in groups])
    save_optimizer(tmp_path / "file", model, optimizer, ConstantLR(optimizer), writes=True)
    fresh = torch.optim.SGD([{**group, "lr": 1.0} for group in groups])
    load_optimizer(tmp_path / "file", model, fresh, ConstantLR(fresh))
    assert [group["initial_lr"] for group in fresh.param_groups] == [0.5, 0.25]


def test_a_scalar_stays_where_the_host_reads_it_and_all_else_goes_to_its_parameter() -> None:
    parameter, unpacker = (
        torch.zeros(2, device="meta"),
        Unpacker({"scalar": torch.tensor(3.0), "vector": torch.ones(2)}),
    )

    def device_of(name: str, on_cpu: bool, **options: bool) -> str:
        return unpacker.unpack({"$tensor": name, "cpu": on_cpu}, parameter, **options).device.type

    assert device_of("scalar", True) == "cpu"
    assert device_of("scalar", True, scalars_follow=True) == device_of("scalar", False) == "meta"
    assert device_of("vector", True) == device_of("vector", False) == "meta"


def test_a_tensor_that_all_states_share_is_saved_once_and_shared_again(tmp_path: Path) -> None:
    save_optimizer(tmp_path / "file", *make(), writes=True)
    assert sum(value.shape == (256,) for value in load_file(tmp_path / "file").values()) == 1
    model, optimizer, scheduler = make(steps=0)
    load_optimizer(tmp_path / "file", model, optimizer, scheduler)
    maps = {id(state["quantized"]["moments"]["map"]) for state in optimizer.state.values()}
    assert len(optimizer.state) == 4
    assert len(maps) == 1


def test_a_file_of_the_first_layout_is_read(tmp_path: Path) -> None:
    model, optimizer, scheduler = make(torch.optim.AdamW, 2, lr=1e-3)
    names = {value: name for name, value in model.named_parameters()}
    flat = {f"{names[value]}.{key}": part for value, state in optimizer.state.items() for key, part in state.items()}
    groups = [{**group, "params": list(names.values())} for group in optimizer.param_groups]
    values = {"numbers": {}, "groups": groups, "schedule": scheduler.state_dict()}
    save_tensors(tmp_path / "file", flat, values)
    model, fresh, schedule = make(torch.optim.AdamW, 0, lr=1e-3)
    load_optimizer(tmp_path / "file", model, fresh, schedule)
    states = ([found.state[value] for value in found.param_groups[0]["params"]] for found in (fresh, optimizer))
    assert list(parts_of(next(states))) == list(parts_of(next(states)))
    assert schedule.state_dict() == scheduler.state_dict()


def test_other_parameters_than_were_trained_are_named(tmp_path: Path) -> None:
    save_optimizer(tmp_path / "file", *make(), writes=True)
    model, _, _ = make(steps=0)
    optimizer = NestedState(model[0].parameters())
    with pytest.raises(
        ValueError, match=r"1\.bias \(and 1 more\) is not trained, but was when .*file was saved\. Freeze"
    ):
        load_optimizer(tmp_path / "file", model, optimizer, LambdaLR(optimizer, float))


class Projector:
    pass


@pytest.mark.parametrize("more", [Projector(), {"deep": [Projector()]}, torch.zeros(2).to_sparse(), {1, 2}, 1j])
def test_what_cannot_be_saved_is_named(more: Any) -> None:
    with pytest.raises(ValueError, match=r"NestedState keeps `0\.weight\.projector.*`, a .*`save_only_model: true`"):
        check_can_be_saved(*make(more=more))


def test_what_cannot_be_saved_stops_training_at_its_start_or_after_one_step(make_trainer: Callable[..., Any]) -> None:
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 4}
    trainer = make_trainer(**saving)
    trainer.optimizer = NestedState(trainer.model.parameters(), more=Projector())
    with pytest.raises(ValueError, match=r"keeps `transformer\.wte\.weight\.projector`, a .*Projector"):
        trainer.train()
    assert trainer.optimizer.param_groups[0]["steps"] == 1
    trainer = make_trainer(**saving)
    trainer.optimizer = NestedState(trainer.model.parameters())
    trainer.optimizer.param_groups[0]["plan"] = Projector()
    with pytest.raises(ValueError, match=r"keeps `param_groups\.0\.plan`, a .*Projector"):
        trainer.train()
    assert trainer.optimizer.param_groups[0]["steps"] == 0
    trainer.args.save_strategy = "no"
    trainer.check_optimizer_can_be_saved()


# ---- Two sets of weights ----


def test_the_weights_to_step_on_come_back_bit_for_bit_however_often_the_model_is_looked_at(tmp_path: Path) -> None:
    model, optimizer, _ = make(Averaging, 0)
    model.float()
    optimizer.train()
    for _ in range(3):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    stepped = [value.clone() for value in model.parameters()]
    weights = SteppedWeights()
    looked_at = []
    for _ in range(3):
        weights.put_aside(model, optimizer)
        weights.put_aside(model, optimizer)
        looked_at.append([value.tolist() for value in model.parameters()])
        weights.bring_back(model, optimizer)
        assert all(map(torch.equal, stepped, model.parameters()))
    assert looked_at[0] == looked_at[1] == looked_at[2] != [value.tolist() for value in stepped]


def test_a_schedule_free_run_that_was_stopped_goes_on_exactly(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Any], signal_at: Callable[..., Any], tmp_path: Path
) -> None:
    def run(folder: str, *callbacks: Any, resume: bool = False) -> Any:
        torch.manual_seed(0)
        settings = {
            "max_steps": 4,
            "save_strategy": "steps",
            "save_steps": 4,
            "eval_strategy": "steps",
            "eval_steps": 2,
        }
        trainer = make_trainer(
            **settings,
            output_dir=str(tmp_path / folder),
            callbacks=[*callbacks],
            evaluation=make_stories(4, routed=False),
        )
        trainer.optimizer = Averaging(trainer.model.parameters())
        with stoppable():
            trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("whole")
    with pytest.raises(StoppedError):
        run("stopped", signal_at(2))
    again = run("stopped", resume=True)
    assert all(map(torch.equal, whole.model.parameters(), again.model.parameters()))
    figures = [
        [line.get("eval_loss", line.get("loss")) for line in part.state.log_history[:-1]] for part in (whole, again)
    ]
    assert figures[0] == figures[1]
    # What is evaluated, saved and left at the end are the same weights, and not those that are stepped on.
    assert (
        whole.evaluate()["eval_loss"]
        == [line["eval_loss"] for line in whole.state.log_history if "eval_loss" in line][-2]
    )
    saved = load_file(tmp_path / "whole" / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in whole.model.named_parameters())
    assert not whole.optimizer.optimizer.param_groups[0]["train_mode"]


class Halved(Tensor):
    """A tensor made of tensors, as torchao's 8-bit moments are."""

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor, signed: bool) -> Any:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)  # type: ignore[attr-defined]

    def __init__(self, codes: Tensor, scale: Tensor, signed: bool) -> None:
        self.codes, self.scale, self.signed = codes, scale, signed

    def __tensor_flatten__(self) -> tuple[list[str], list[Any]]:
        return ["codes", "scale"], [self.signed, torch.bfloat16]

    @classmethod
    def __tensor_unflatten__(cls, parts: Any, attributes: Any, shape: Any, stride: Any) -> Any:
        assert (attributes[1], shape, stride) == (torch.bfloat16, (2, 3), (3, 1))
        return cls(parts["codes"], parts["scale"], attributes[0])

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(function)


def test_a_tensor_made_of_tensors_comes_back_if_its_class_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    value = Halved(torch.arange(6, dtype=torch.uint8).view(2, 3), torch.rand(2), True)
    name = f"{Halved.__module__}.{Halved.__qualname__}"
    with pytest.raises(UnsavableStateError, match=f"`state`, a {name}"):
        Packer().pack(value, "state")
    packer = Packer()
    monkeypatch.setattr(optimizer_state, "_TENSOR_CLASSES", frozenset({name}))
    packed = packer.pack(value, "state")
    back = Unpacker(packer.tensors).unpack(packed, torch.zeros(2, 3))
    assert type(back) is Halved
    assert torch.equal(back.codes, value.codes)
    assert torch.equal(back.scale, value.scale)
    assert back.signed is True
