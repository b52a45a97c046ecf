"""What users give as the value of an option by the habits of other tools, and what does it here."""

from __future__ import annotations

import re
from collections.abc import Mapping

Instead = str | Mapping[str, str]
"""What to give instead, or what lit_ft does.

An answer that begins with an option, in backquotes, is what to give instead, where VALUE stands for what was given and
COMMAND for the command. Any other says what lit_ft does. Where it depends on the value, the first pattern counts that
matches all of it, in small letters or not.
"""

OUTPUT = "`trainer.default_root_dir` VALUE"
STAGES = r"(stem|stage|layer|block|features|encoder|conv)[\w.,\[\] ]*"
STAGES_ANSWER = "stages are chosen with `unfreeze.strategy` phases `unfreeze.phases` '[{train: [layer4, head]}]'"
SCHEDULES = {
    r"(\w+)\(.*": r"`lr_scheduler` \1, and its options as `lr_scheduler.gamma` 0.9",
    "(warmup_?)?cos(ine)?(_with_warmup)?|true|auto|default": "warm-up and cosine decay are the default; leave it out",
    "const(ant)?|none|null|false|fixed": "`lr_scheduler` null",
    "one_?cycle|1cycle|onecycle_?lr": "`lr_scheduler` OneCycleLR",
    "step|step_?lr": "`lr_scheduler` StepLR `lr_scheduler.step_size` 3",
    "multi_?step": "`lr_scheduler` MultiStepLR `lr_scheduler.milestones` [3,6]",
    "exp(onential)?(_?lr)?": "`lr_scheduler` ExponentialLR `lr_scheduler.gamma` 0.9",
    "poly(nomial)?": "`lr_scheduler` PolynomialLR",
    "linear": "`lr_scheduler` LinearLR",
    "(reduce_?lr_?on_?)?plateau": "`lr_scheduler` ReduceLROnPlateau `lr_scheduler.monitor` val/loss",
    "cosineannealing": "`lr_scheduler` CosineAnnealingLR `lr_scheduler.T_max` 10",
}
OPTIMIZERS = {
    r"(\w+)\(.*": r"`optimizer` \1, and its options as `optimizer.weight_decay` 0.1",
    "adam_?w.*|.*adamw": "`optimizer` AdamW",
    "(fused_?)?adam(8bit)?": "`optimizer` Adam",
    "(fused_?)?(sgd|momentum|nesterov).*": "`optimizer` SGD `optimizer.momentum` 0.9",
    "rms_?prop.*": "`optimizer` RMSprop",
    "nadam.*": "`optimizer` NAdam",
    "radam": "`optimizer` RAdam",
    "ada_?grad": "`optimizer` Adagrad",
    "ada_?delta": "`optimizer` Adadelta",
    "ada_?max": "`optimizer` Adamax",
    "ada_?factor": "`optimizer` Adafactor",
    "l?bfgs": "`optimizer` LBFGS",
    "auto|default|none": "AdamW is the default; leave it out",
}
DEVICES = {
    "cpu": "`trainer.accelerator` cpu",
    "mps": "`trainer.accelerator` mps",
    "auto|none|": "a GPU is used if there is one; `trainer.accelerator` cpu or gpu chooses",
    "cuda|gpu|true": "`trainer.accelerator` gpu `trainer.devices` 1",
    r"cuda:(\d+)": r"`trainer.accelerator` gpu `trainer.devices` [\1]",
    r"\[?(\d+(?:,\d+)*)\]?": r"`trainer.accelerator` gpu `trainer.devices` [\1]",
    "-1|all": "`trainer.accelerator` gpu `trainer.devices` -1",
    "tpu": "`trainer.accelerator` tpu",
}
COUNT = {
    "|-1|all|auto|true": "`trainer.accelerator` gpu `trainer.devices` -1",
    r"0|false|none|\[\]": "`trainer.accelerator` cpu",
    r"\d+": "`trainer.accelerator` gpu `trainer.devices` VALUE",
    **DEVICES,
    ".*": "`trainer.accelerator` gpu `trainer.devices` VALUE",
}
PRECISIONS = {
    "bf_?(loat)?16|bf16-mixed": "`trainer.precision` bf16-mixed",
    "(tf|fp|float)?32|false|0|no|none|full": "`trainer.precision` 32-true",
    "(fp|float)?64|double": "`trainer.precision` 64-true",
    "true_half|pure_?fp16": "`trainer.precision` 16-true",
    "|(fp|float)?16|true|1|yes|half|amp|mixed(_?(precision|float16))?|apex|o[123]": "`trainer.precision` 16-mixed",
}
FITS = {
    "padding|border.*|letter_?box.*|fit|contain": "`data.fit` pad",
    "squash|squish|stretch|fill|warp": "`data.fit` squash",
    ".*": "`data.fit` crop, pad or squash",
}
SIZES = {r"[\[(]?(\d+)[x, ]+\1[\])]?": r"`image_size` \1", r"\[?3[x, ]+(\d+)[x, ]+\1\]?": r"`image_size` \1"}
AUGMENTS = {
    "rand.*|ra": "`data.augment` rand",
    "augmix.*": "`data.augment` augmix",
    "none|no|false|0": "`data.augment` none",
    "": "`data.augment` trivial",
    ".*": "`data.augment` trivial, or none, basic, rand or augmix",
}
DATASETS = (
    "CIFAR100 Caltech101 Caltech256 CelebA Country211 DTD EuroSAT FER2013 FGVCAircraft FakeData FashionMNIST "
    "Flowers102 Food101 GTSRB INaturalist ImageNet Imagenette KMNIST LFWPeople Omniglot OxfordIIITPet PCAM "
    "Places365 QMNIST RenderedSST2 SEMEION STL10 SUN397 SVHN StanfordCars USPS"
)
"""The data sets of torchvision that have one image and its class, or labels, an item."""

PHOTOS = {
    "": "the folder of photos follows the command: lit-ft COMMAND PHOTOS",
    "cifar_?-?(10)?": "`data` CIFAR10DataModule",
    "e?mnist": "`data` MNISTToEMNISTDataModule",
    "digits": "`data` DigitsDataModule",
    **{
        re.sub("(?<=[a-z])(?=[A-Z0-9])", "[ _-]?", name): f"`data` ImageDatasetDataModule `data.dataset` {name}"
        for name in DATASETS.split()
    },
    r"torchvision\.datasets\.(\w+)": r"`data` ImageDatasetDataModule `data.dataset` \1",
    "image_?folder|folder": "the folder of photos follows the command: lit-ft COMMAND PHOTOS",
    "csv|table|tsv|imagetable": "`data` ImageTableDataModule `data.table` FILE",
    r".*\.(csv|tsv|parquet)": "`data` ImageTableDataModule `data.table` VALUE",
    r".*\.npz": "`data` ImageArrayDataModule `data.root` VALUE",
    r".*\.ya?ml|imagenet.*|imagewoof|coco.*|torch/.*|tfds/.*|hfds/.*": (
        "lit_ft knows no data sets by that name; the folder of photos follows the command: lit-ft COMMAND PHOTOS"
    ),
    ".*": "the folder of photos follows the command: lit-ft COMMAND VALUE",
}
NO_PRETRAINED = {"false|0|no|none|random": "`model.weights` null"}
CACHES = {
    "": "`data.cache` FOLDER",
    "ram|disk|true": "`data.cache` FOLDER, for resized copies",
    ".*": "`data.cache` VALUE",
}


_STRATEGIES = "full|linear_probe|deepest|gradual|lp_ft|phases|plateau"
_OFF = "false|off|no|none|0"
_ON = "true|on|yes"
_DEFAULT = "is on by default; leave it out"

_SWITCHES = (
    "refit",
    *(f"trainer.{name}" for name in ("fast_dev_run", "deterministic", "benchmark", "sync_batchnorm", "detect_anomaly")),
    *(f"model.{name}" for name in ("compile", "gradient_checkpointing", "partial_weights", "head.zero_init")),
    "predictions.overwrite",
)

VALUES: dict[str, Instead] = {
    "model": {
        "yolo.*": "lit_ft has no YOLO; lit-ft models lists what there is for `model.backbone`",
        r".*\.(ckpt|pth?|safetensors)": "`model.weights` VALUE",
        "[^.{]*": "`model.backbone` VALUE",
    },
    "data": {
        **{pattern: text for pattern, text in PHOTOS.items() if pattern not in ("", ".*")},
        r".*[/\\].*|\.+|~": PHOTOS[".*"],
    },
    "optimizer": OPTIMIZERS,
    "lr_scheduler": SCHEDULES,
    "unfreeze": {
        f"{_STRATEGIES}|auto": "`unfreeze.strategy` VALUE",
        f"{_ON}|all": "`unfreeze.strategy` full",
        STAGES: STAGES_ANSWER,
        _OFF: "`unfreeze` null",
    },
    "feature_cache": {_OFF: "`feature_cache` null", r"\d+": "`feature_cache.views` VALUE", _ON: _DEFAULT},
    "checkpoint": {r".*\.ckpt|.*/.*|best|last": "`ckpt_path` VALUE", _OFF: "`checkpoint` null", _ON: _DEFAULT},
    "early_stopping": {
        _OFF: "`early_stopping` null",
        r"\d+": "`early_stopping.patience` VALUE",
        f"{_ON}|": "`early_stopping.patience` 5",
    },
    "unfreeze.strategy": {
        "head(_only)?|freeze|frozen|lp|probe": "`unfreeze.strategy` linear_probe",
        "all|everything|whole": "`unfreeze.strategy` full",
        "last|top": "`unfreeze.strategy` deepest",
        STAGES: STAGES_ANSWER,
    },
    "report": {_OFF: "`report` null", _ON: _DEFAULT, "wandb|mlflow": "`trainer.logger` WandbLogger, or MLFlowLogger"},
    "predictions": {r".*\.(csv|tsv)": "`predictions.file` VALUE", _OFF: "`predictions` null", _ON: _DEFAULT},
    "trainer": {".*": "give its options, as `trainer.max_epochs` 3"},
    "trainer.precision": PRECISIONS,
    "trainer.callbacks": {r"[A-Z]\w+": "`--trainer.callbacks+` VALUE"},
    "trainer.logger": {
        "none|off|no": "`trainer.logger` false",
        "wandb|w&b": "`trainer.logger` WandbLogger",
        "mlflow": "`trainer.logger` MLFlowLogger",
        "csv": "`trainer.logger` CSVLogger `trainer.logger.save_dir` logs",
        "tensorboard|tb": "TensorBoard's files are written by default; leave it out",
    },
    "model.task": {
        "multi_?label.*": "`model.task` multilabel",
        "(image_?)?classif.*|binary.*|single.*|categorical": "`model.task` multiclass",
    },
    "model.mix": {r"[\d.]+": "`model.mix.mixup` VALUE", "(mixup|cutmix)": r"`model.mix.\1` 0.2"},
    "model.head": {"linear|cosine": "`model.head.kind` VALUE", r"[\d, \[\]]+": "`model.head.hidden` [VALUE]"},
    "model.head.hidden": {r"[\d, ()]+": "`model.head.hidden` [VALUE]"},
    "model.input.size": SIZES,
    "data.fit": {pattern: text for pattern, text in FITS.items() if pattern != ".*"},
    **{key: {"": f"`{key}` true"} for key in _SWITCHES},
    "data.batch_size": {"auto|-1": "`--trainer.callbacks+` BatchSizeFinder"},
    "resume": "`resume` auto",
}
"""By an option that exists: what is meant by a value that its type does not allow."""

ACCEPTED_VALUES: dict[str, Instead] = {
    "trainer.accelerator": {key: text for key, text in DEVICES.items() if "cuda:" in key or "all" in key},
    "trainer.devices": {
        "cuda|gpu|mps|cpu": "`trainer.accelerator` VALUE",
        "all": "`trainer.devices` -1",
        r"(cuda|gpu):(\d+)": r"`trainer.accelerator` gpu `trainer.devices` [\2]",
    },
    "trainer.max_time": {
        r"(\d)h(ours?)?": r"`trainer.max_time` 00:0\1:00:00",
        r"(\d\d)h(ours?)?": r"`trainer.max_time` 00:\1:00:00",
        r"(\d)m(in(utes?)?)?": r"`trainer.max_time` 00:00:0\1:00",
        r"(\d\d)m(in(utes?)?)?": r"`trainer.max_time` 00:00:\1:00",
        r"[\d.]+ ?\w*": "`trainer.max_time` 00:01:00:00, as days, hours, minutes and seconds",
    },
    "trainer.strategy": {_STRATEGIES: "`unfreeze.strategy` VALUE"},
    "resume": {_OFF: "leave it out", f"{_ON}|1|latest|last": "`resume` auto", r".*\.(ckpt|pth?)": "`ckpt_path` VALUE"},
    "model.weights": {
        "imagenet|true|yes|pretrained": "`model.weights` DEFAULT",
        "false|no|random": "`model.weights` null",
    },
}
"""Likewise of a value that the type allows, as it is any text."""
