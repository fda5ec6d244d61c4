"""Two processes that train together, over gloo and without Ray, have the same network."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from locray.config import LearningOptions
from locray.models.architectures import build_model
from locray.training.batches import BOXES, HAS_BOX, IMAGES, LABEL_IDS, OUTCOMES
from locray.training.learner import Learner
from locray.training.process_group import ProcessGroup

pytestmark = pytest.mark.slow

SIZE = 2
IMAGES_PER_STEP = 8
FROZEN_STEPS, STEPS = 2, 4
SGD = {
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "schedule": "constant",
    "warm_up": 0.0,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
    "ema": 0.0,
    "pretrained_rate": 1.0,
    "precision": "fp32",
}


def learner(architecture, wrap, accumulate):
    torch.manual_seed(0)
    model = build_model(architecture, 2, 32)
    options = LearningOptions(accumulate=accumulate, **SGD)
    return model, Learner(model, options, STEPS, torch.device("cpu"), pretrained=True, wrap=wrap)


def batch(step, rows):
    random = torch.Generator().manual_seed(step)
    whole = {
        IMAGES: torch.randint(0, 256, (IMAGES_PER_STEP, 32, 32, 3), dtype=torch.uint8, generator=random),
        BOXES: torch.tensor([[[4.0, 6, 20, 28]]]).repeat(IMAGES_PER_STEP, 1, 1),
        LABEL_IDS: torch.arange(IMAGES_PER_STEP)[:, None] % 2,
        HAS_BOX: torch.ones(IMAGES_PER_STEP, 1, dtype=torch.bool),
        OUTCOMES: torch.zeros(IMAGES_PER_STEP, dtype=torch.int64),
    }
    return {name: part[rows] for name, part in whole.items()}


def without_exchange_of_buffers(module):
    return DistributedDataParallel(module, broadcast_buffers=False)


def statistics(model):
    return {name: tensor.clone() for name, tensor in model.named_buffers() if "running" in name}


def weights(model):
    return {name: tensor.clone() for name, tensor in model.named_parameters()}


def work(rank, folder):
    """One worker: trains both networks and writes their weights to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=SIZE)
    share = IMAGES_PER_STEP // SIZE
    rows = slice(rank * share, (rank + 1) * share)
    plain, plain_learner = learner("small_cnn", DistributedDataParallel, accumulate=2)
    for step in range(STEPS):
        plain_learner.compute(batch(step, rows))
        plain_learner.apply(step)
    frozen, frozen_learner = learner("localizer/resnet18", without_exchange_of_buffers, accumulate=2)
    stages = [weights(frozen)]
    for step in range(STEPS):
        frozen_learner.freeze(step < FROZEN_STEPS)
        frozen_learner.compute(batch(step, rows))
        frozen_learner.apply(step)
        stages.append(weights(frozen))
    before = statistics(frozen)
    frozen_learner.share_statistics(ProcessGroup(rank, SIZE, torch.device("cpu")))
    said = {"plain": weights(plain), "frozen": stages, "before": before, "after": statistics(frozen)}
    torch.save(said, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    multiprocessing.spawn(work, args=(str(folder),), nprocs=SIZE)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(SIZE)]


def same(some, others):
    return [name for name in some if torch.equal(some[name], others[name])]


def test_a_split_batch_gives_the_weights_of_the_whole_batch(both):
    alone, alone_learner = learner("small_cnn", lambda module: module, accumulate=1)
    for step in range(STEPS):
        alone_learner.compute(batch(step, slice(None)))
        alone_learner.apply(step)
    for name, wanted in weights(alone).items():
        torch.testing.assert_close(both[0]["plain"][name], wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(both[1]["plain"][name], both[0]["plain"][name], rtol=0, atol=0)


def test_an_unfrozen_backbone_is_equal_on_both_workers(both):
    stages, others = (worker["frozen"] for worker in both)
    backbone = {name for name in stages[0] if name.startswith("backbone")}
    assert set(same(stages[0], stages[FROZEN_STEPS])) == backbone
    assert not same(stages[FROZEN_STEPS], stages[FROZEN_STEPS + 1])
    for one, other in zip(stages, others, strict=True):
        assert len(same(one, other)) == len(one)


def test_both_workers_have_the_mean_of_their_statistics(both):
    one, other = both
    assert not same(one["before"], other["before"]), "each has seen images of its own"
    for name, after in one["after"].items():
        torch.testing.assert_close(after, (one["before"][name] + other["before"][name]) / 2)
        torch.testing.assert_close(other["after"][name], after, rtol=0, atol=0)
