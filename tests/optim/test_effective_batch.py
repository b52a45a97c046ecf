from types import SimpleNamespace

from lit_ft.optim.effective_batch import EffectiveBatch


def trainer(**data):
    return SimpleNamespace(world_size=8, accumulate_grad_batches=3, datamodule=SimpleNamespace(**data))


def test_images_of_a_step_are_those_of_all_processes_and_accumulated_batches():
    batch = EffectiveBatch.of(trainer(batch_size=16))
    assert batch == EffectiveBatch(16, 8, 3)
    assert batch.images == 384
    assert EffectiveBatch.of(trainer()) is None
    assert EffectiveBatch.of(SimpleNamespace(world_size=8, accumulate_grad_batches=3, datamodule=None)) is None
