"""The public names: each documented, each with one home, and none that drags an optional dependency in."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import purestep as ps
from purestep import laws

HOMES = {"purestep": ps, "purestep.laws": laws}
NAMES = [(home, name) for home, package in HOMES.items() for name in package.__all__]
OPTIONAL = ("hypothesis", "pandas", "PIL", "matplotlib", "sklearn", "tensorboard", "transformers", "pytest")


@pytest.mark.parametrize(("home", "name"), NAMES, ids=[f"{home}.{name}" for home, name in NAMES])
def test_every_public_name_says_what_it_is(home, name):
    value = getattr(HOMES[home], name)
    doc = inspect.getdoc(value)
    assert doc, f"{name} has no docstring"
    assert len(doc.splitlines()[0]) > 20
    first = doc.splitlines()[0]
    assert first[0].isupper() or first.startswith(("`", "purestep")), first
    # A dataclass without a docstring gets its signature for one.
    assert not first.startswith(f"{name}("), first


@pytest.mark.parametrize(("home", "name"), NAMES, ids=[f"{home}.{name}" for home, name in NAMES])
def test_every_argument_with_a_default_is_keyword_only(home, name):
    value = getattr(HOMES[home], name)
    # Records have fields in an order, and hold no options.
    if not callable(value) or inspect.isclass(value):
        return
    parameters = inspect.signature(value).parameters.values()
    loose = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty]
    assert loose == []


@pytest.mark.parametrize("home", HOMES)
def test_the_list_of_names_is_sorted_and_complete(home):
    package = HOMES[home]
    assert list(package.__all__) == sorted(package.__all__)
    assert len(set(package.__all__)) == len(package.__all__)
    for name in package.__all__:
        assert hasattr(package, name)


def test_a_name_has_one_home():
    """What is offered at the top is the thing itself from the module that defines it, and only there."""
    for name in ps.__all__:
        value = getattr(ps, name)
        module = getattr(value, "__module__", None)
        if module is not None:
            assert module.startswith("purestep."), (name, module)
            assert getattr(sys.modules[module], name) is value


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def imported():
    """What a new process says of itself after ``import purestep``."""
    done = run(
        "import sys, torch\n"
        "def world():\n"
        "    return torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()\n"
        "random, before = torch.get_rng_state(), world()\n"
        "import purestep\n"
        "print(bool((torch.get_rng_state() == random).all()) and world() == before)\n"
        f"print([name for name in {OPTIONAL!r} if name in sys.modules])\n"
        "print([name for name in sys.modules if name.startswith('purestep.laws')])"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_importing_purestep_imports_no_optional_dependency(imported):
    assert imported[1:] == ["[]", "[]"]


def test_importing_purestep_changes_nothing_global(imported):
    assert imported[0] == "True"


def test_the_laws_say_what_to_install():
    done = run("import sys; sys.modules['hypothesis'] = None\nimport purestep.laws")
    assert 'ImportError: purestep.laws needs hypothesis: pip install "purestep[laws]"' in done.stderr


def test_the_package_is_typed():
    assert (Path(ps.__file__).parent / "py.typed").exists()


def test_the_example_of_the_design_runs():
    """Section 1 of the design, on a small module: what a user writes."""
    import torch.nn.functional as F

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.table, self.head = torch.nn.Linear(4, 3), torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)

        def forward(self, image, table):
            return self.head(torch.tanh(self.image(image) + self.table(table)))

    torch.manual_seed(0)
    model = Model()

    def objective(model, batch):
        logits = model(batch["image"], batch["tabular"])
        loss = ps.mean(F.cross_entropy(logits, batch["label"], reduction="none"))
        return loss, {"accuracy": ps.mean(logits.argmax(-1) == batch["label"])}

    learning_rate = ps.schedules.warmup_cosine(peak=3e-2, warmup_steps=10, total_steps=100)
    optimizer = ps.chain(
        ps.clip_by_global_norm(1.0), ps.adamw(learning_rate, weight_decay=0.1, decay_mask=ps.matrices_only)
    )
    step = ps.train_step(model, objective, optimizer, accumulate=4)
    state = ps.init_state(model, optimizer, seed=0)
    image = torch.randn(16, 4)
    batch = {"image": image, "tabular": image[:, :2] ** 2, "label": (image[:, 0] > 0).long()}
    for _ in range(100):
        state, metrics = step(state, batch)
    assert ps.values(metrics)["accuracy"].item() == 1.0
