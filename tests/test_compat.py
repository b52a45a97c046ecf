import lightning as L
from lightning.pytorch.callbacks import Callback
from small_runs import FewDigits, small_module, small_trainer

from lit_ft.compat import setup_validation_loaders


def test_lightning_makes_validation_loaders_late_and_keeps_those_made_before(tmp_path):
    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            self.before = trainer.val_dataloaders
            setup_validation_loaders(trainer)
            self.made = trainer.val_dataloaders

        def on_validation_start(self, trainer, pl_module):
            self.used = trainer.val_dataloaders

    L.seed_everything(1)
    watch = Watch()
    trainer = small_trainer(2, watch, default_root_dir=tmp_path, check_val_every_n_epoch=2)
    trainer.fit(small_module(), datamodule=FewDigits())
    assert watch.before is None  # else setup_validation_loaders is not needed any more
    assert watch.made is not None
    assert watch.used is watch.made
