"""What users of other tools type first, and the answers; nothing is trained, and no parser is built twice."""

import re
import shlex

import pytest

from lit_ft.cli.config.advice import SHORT_NAMES, find_answer, name_as_typed
from lit_ft.cli.config.arguments import settle_arguments
from lit_ft.cli.config.other_names import OF_EVALUATIONS, OTHER_NAMES
from lit_ft.cli.config.other_values import ACCEPTED_VALUES, DATASETS, VALUES
from lit_ft.cli.config.parser import ConfigCLI
from lit_ft.cli.config.recipe_names import find_configs
from lit_ft.cli.lightning import FineTuneCLI
from lit_ft.data.datasets.classes import list_torchvision
from lit_ft.errors import UserError, for_command_line

NO = "there is no such option"
LEAVE = "leave it out"


class ParserAlone:
    """In front of a command line: nothing is settled or made."""

    def before_instantiate_classes(self):
        pass

    def instantiate_classes(self):
        pass


class ParserOfFits(ParserAlone, FineTuneCLI):
    pass


class ParserOfOthers(ParserAlone, ConfigCLI):
    pass


@pytest.fixture(scope="module")
def parsers():
    """A parser of each command, by its name."""
    made = {}

    def parser_of(command):
        if command not in made:
            cls = ParserOfOthers if command in ("check", "convert") else ParserOfFits
            made[command] = cls(command, [])
        return made[command]

    return parser_of


@pytest.fixture
def answer(parsers, tmp_path, monkeypatch):
    """What a command line is answered; nothing where it is accepted."""
    monkeypatch.chdir(tmp_path)

    def line_of(typed):
        command, *args = shlex.split(typed)
        try:
            cli = parsers(command)
            cli.args, cli._nested = settle_arguments(command, args), []
            cli.parse_arguments(cli.parser, find_configs(cli.args))
        except UserError as error:
            return name_as_typed(for_command_line(" ".join(error.args[0].split())), args)
        return None

    return line_of


MISTAKES = {
    # The options that everyone sets
    "finetune --batch-size 32": f"--batch-size: {NO}; give --batch_size 32",
    "finetune --Epochs 5": f"--Epochs: {NO}; give --epochs 5",
    "finetune -epochs 5": "-epochs: an option begins with two dashes; give --epochs 5",
    "finetune -b 64 -j 8": (
        "-b, -j: options begin with two dashes; give --batch_size 64 --data.num_workers 8"
    ),
    "finetune ---epochs 5": "---epochs: an option begins with two dashes; give --epochs 5",
    "finetune --lr:5": f"--lr:5: {NO}; give --model.lr 5",
    "finetune . epochs 5": "epochs: an option begins with two dashes; give --epochs 5",
    "finetune --model.head '{hidden:[512]}'": (
        "--model.head: {hidden:[512]} does not fit; give null, or an option that --model.head.help lists, as "
        "--model.head.NAME VALUE"
    ),
    "finetune --trainer.logger none": "--trainer.logger: none does not fit; give --trainer.logger false",
    "finetune --epochs ten": "--epochs: ten does not fit; give a whole number or null",
    "finetune --epochs": "--epochs: no value follows; add one, as --epochs VALUE",
    "finetune --epochs None": "--epochs: None is of Python; give null",
    "finetune --epochs=": "--epochs: its value is empty; name what is meant, or leave it out",
    "finetune --seed -1": "--seed: must be between 0 and 2**32 - 1, got -1",
    "finetune --image_size 224x224": "--image_size: 224x224 does not fit; give --image_size 224",
    "finetune --image_size 224 224": "224: follows no option; a list is one argument, as --image_size [224,224]",
    "finetune --batch_size 8": "--batch_size: of which data module? name it, as --data ImageFolderDataModule",
    "finetune --num_epochs 5": f"--num_epochs: {NO}; give --epochs 5",
    "finetune --max_epochs 5": f"--max_epochs: {NO}; give --epochs 5",
    "finetune --trainer.max-epochs 5": f"--trainer.max-epochs: {NO}; give --trainer.max_epochs 5",
    "finetune --trainer.epochs 5": f"--trainer.epochs: {NO}; give --epochs 5",
    "finetune --lr 1e-3": (
        f"--lr: {NO}; give --model.lr 1e-3 (of the head; a recipe may set --model.lr_backbone as well)"
    ),
    "finetune --lr -1": f"--lr: {NO}; a learning rate is above 0, as with --model.lr 1e-3",
    "finetune --head_lr 1e-3 --bs 8": "give --model.lr 1e-3 --batch_size 8",
    "finetune --learning-rate=1e-3": f"--learning-rate: {NO}; give --model.lr 1e-3",
    "finetune --optimizer AdamW --optimizer.lr 1": f"--optimizer.lr: {NO}; give --model.lr 1",
    "finetune --data-dir 'My Photos'": f"--data-dir: {NO}; the folder of photos follows the command: lit-ft finetune",
    "finetune --augment trivial": f"--augment: {NO}; give --data.augment trivial",
    "finetune --backbone vgg16": f"--backbone: {NO}; give --model.backbone vgg16",
    "finetune --views 3": f"--views: {NO}; give --feature_cache.views 3",
    "finetune --modle.lr 1": f"--modle.lr: {NO}; nearest: --model.lr",
    "finetune --zzz 1": f"--zzz: {NO}",
    # How photos become squares
    "finetune --model.input.squash true": f"--model.input.squash: {NO}; give --data.fit squash",
    "finetune --squash": f"--squash: {NO}; give --data.fit squash",
    "finetune --letterbox": f"--letterbox: {NO}; give --data.fit pad",
    "finetune --crop-mode border": f"--crop-mode: {NO}; give --data.fit pad",
    "finetune --resize_method squish": f"--resize_method: {NO}; give --data.fit squash",
    "finetune --pad_to_aspect_ratio": f"--pad_to_aspect_ratio: {NO}; give --data.fit pad",
    "finetune --crop_to_aspect_ratio false": f"--crop_to_aspect_ratio: {NO}; give --data.fit squash",
    "finetune --data ImageFolderDataModule --data.fit letterbox": (
        "--data.fit: letterbox does not fit; give --data.fit pad"
    ),
    "finetune --data ImageFolderDataModule --data.fit nix": "unknown value 'nix'; choose from crop, pad, squash, null",
    # Several at once
    "finetune --lr 1 --bs 8 --pretrained": (
        "--lr, --bs, --pretrained: there are no such options; give --model.lr 1 (of the head; a recipe may "
        "set --model.lr_backbone as well) --batch_size 8; --pretrained: the weights are pretrained by default; leave "
        "it out, or for random ones: --model.weights null"
    ),
    "finetune --train-dir A --val-dir B": (
        "--train-dir, --val-dir: there are no such options; --train-dir, --val-dir: the folder that has train and "
        "val in it follows the command: lit-ft finetune PHOTOS"
    ),
    "finetune --lr_mult 100 --bs 8": "there are no such options; give --model.lr_decay 0.6 --batch_size 8",
    # timm
    "fit --model resnet50": "--model: resnet50 does not fit; give --model.backbone resnet50",
    "fit --num-classes 5": f"--num-classes: {NO}; the classes are those of the folders or the table; {LEAVE}",
    "fit --input-size '3 224 224'": f"--input-size: {NO}; give --image_size 224",
    "fit --validation-batch-size 64": "validation and test take the --batch_size of the training",
    "fit --opt sgd": f"--opt: {NO}; give --optimizer SGD --optimizer.momentum 0.9",
    "fit --opt-betas 0.9": "give --optimizer AdamW --optimizer.betas [0.9,0.999]",
    "fit --weight-decay .05": "give --optimizer AdamW --optimizer.weight_decay .05",
    "fit --clip-grad 1": "give --trainer.gradient_clip_val 1",
    "fit --layer-decay 0.7": "give --model.lr_decay 0.7",
    "fit --sched cosine": f"--sched: {NO}; warm-up and cosine decay are the default; {LEAVE}",
    "fit --sched step": "give --lr_scheduler StepLR --lr_scheduler.step_size 3",
    "fit --sched plateau": "give --lr_scheduler ReduceLROnPlateau --lr_scheduler.monitor val/loss",
    "fit --warmup-epochs 5": "give --lr_scheduler.warmup_fraction 0.1, the share of the run that it takes",
    "fit --min-lr 1e-6": "give --lr_scheduler.final_fraction 0.01, the share of the learning rate that is left",
    "fit --cooldown-epochs 10": "has no counterpart; --lr_scheduler takes any class of torch",
    "fit --aa rand-m9-mstd0.5": "give --data.augment rand",
    "fit --color-jitter 0.4": "augmentations are not set one by one; --data.augment is none, basic, trivial, rand",
    "fit --reprob 0.25": "give --model.mix.erase 0.25",
    "fit --mixup 0.2": "give --model.mix.mixup 0.2",
    "fit --mixup-prob 0.5": "every batch is mixed, by --model.mix.mixup and --model.mix.cutmix",
    "fit --smoothing 0.1": "give --model.label_smoothing 0.1",
    "fit --drop 0.2": "give --model.head.dropout 0.2",
    "fit --drop-path 0.1": "has no counterpart; --model.head.dropout and --model.mix.mixup regularise",
    "fit --model-ema": "give --trainer.callbacks+ EMAWeightAveraging",
    "fit --amp": "give --trainer.precision 16-mixed",
    "fit --initial-checkpoint a.pth": "give --model.weights a.pth",
    "fit --eval-metric top1": "give --checkpoint.monitor val/acc",
    "fit --checkpoint-hist 3": "best and last checkpoint are saved in any case",
    "fit --log-interval 50": "give --trainer.log_every_n_steps 50",
    "fit --experiment first": "give --name first",
    "fit --output out": "give --trainer.default_root_dir out",
    "fit --gp avg": "give --model.pool avg",
    "fit --sync-bn": "give --trainer.sync_batchnorm true",
    "fit --torchcompile": "give --model.compile true",
    "fit --grad-checkpointing": "give --model.gradient_checkpointing true",
    "fit --channels-last": f"convolutional networks are channels_last by themselves; {LEAVE}",
    "fit --local-rank 0": "the number of processes is --trainer.devices times --trainer.num_nodes",
    "fit --pin-mem": "the loader of the data settles it; --data.num_workers is what it takes",
    # Ultralytics
    "finetune data=P epochs=3 model=yolo11n-cls.pt": (
        "data, epochs, model: options begin with two dashes; give --epochs 3; --data: the folder of photos follows the"
    ),
    "finetune trainer.devices=2": "trainer.devices: an option begins with two dashes; give --trainer.devices 2",
    "finetune --imgsz 224": f"--imgsz: {NO}; give --image_size 224",
    "finetune --batch -1": "give --trainer.callbacks+ BatchSizeFinder",
    "finetune --device cuda:0": "give --trainer.accelerator gpu --trainer.devices [0]",
    "finetune --device 0,1": "give --trainer.accelerator gpu --trainer.devices [0,1]",
    "finetune --device cpu": "give --trainer.accelerator cpu",
    "finetune --freeze 10": "the last stages train with --unfreeze.strategy deepest, and the head",
    "finetune --lr0 0.01 --lrf 0.01": "--model.lr_backbone as well) --lr_scheduler.final_fraction 0.01",
    "finetune --cos_lr": f"warm-up and cosine decay are the default; {LEAVE}",
    "finetune --patience 10": "give --early_stopping.patience 10",
    "finetune --project runs --exist_ok": "give --trainer.default_root_dir runs; --exist_ok: each run has a",
    "finetune --cache ram": "give --data.cache FOLDER, for resized copies",
    "finetune --conf 0.25": "is for the detection of objects, and lit_ft is for whole images",
    "finetune --resume": "--resume: no value follows; give --resume auto",
    "finetune --resume runs/last.ckpt": "--resume: unknown value 'runs/last.ckpt'; give --ckpt_path runs/last.ckpt",
    "finetune --resume last": "--resume: unknown value 'last'; give --resume auto",
    "finetune --kfold 5": f"--kfold: {NO}; give --folds 5",
    "finetune --cross-validation": f"--cross-validation: {NO}; give --folds 5",
    "finetune --data ./photos": "--data: ./photos does not fit; the folder of photos follows the command",
    # fastai
    "finetune --base_lr 2e-3": "give --model.lr 2e-3",
    "finetune --freeze_epochs 2": (
        "give --unfreeze.head_epochs 2 --unfreeze.head_fit trained --model.lr 1e-3, or nothing: a solved"
    ),
    "finetune --lr_mult 100": "give --model.lr_decay 0.6, the factor from a stage to the next shallower one",
    "finetune --wd 0.1": "give --optimizer AdamW --optimizer.weight_decay 0.1",
    "finetune --bs 64 --valid_pct 0.2": "give --batch_size 64 --data.val_fraction 0.2",
    "finetune --ps 0.5 --lin_ftrs 512": "give --model.head.dropout 0.5 --model.head.hidden [512]",
    "finetune --item_tfms x": "augmentations are not set one by one",
    "finetune --metrics accuracy": "give --checkpoint.monitor val/acc",
    # Keras
    "finetune --include_top": f"the head is always a new one; {LEAVE}",
    "finetune --validation_split 0.2": "give --data.val_fraction 0.2",
    "finetune --steps_per_epoch 100": "give --trainer.limit_train_batches 100",
    "finetune --loss crossentropy": "the loss follows from --model.task: multiclass, multilabel or regression",
    "finetune --weights imagenet": "give --model.weights DEFAULT",
    "finetune --trainable false": "give --unfreeze.strategy full",
    "finetune --shuffle": "the loader of the data settles it",
    "finetune --verbose 0": "the progress bar is left out with --trainer.enable_progress_bar false",
    # Hugging Face
    "finetune --per_device_train_batch_size 8": "give --batch_size 8",
    "finetune --num_train_epochs 3": "give --epochs 3",
    "finetune --gradient_accumulation_steps 4": "give --trainer.accumulate_grad_batches 4",
    "finetune --lr_scheduler_type linear": "give --lr_scheduler LinearLR",
    "finetune --warmup_ratio 0.1": "give --lr_scheduler.warmup_fraction 0.1",
    "finetune --max_grad_norm 1.0": "give --trainer.gradient_clip_val 1.0",
    "finetune --fp16 --bf16": "give --trainer.precision 16-mixed --trainer.precision bf16-mixed",
    "finetune --evaluation_strategy epoch": "each epoch ends with a validation",
    "finetune --save_total_limit 2": "best and last checkpoint are saved in any case",
    "finetune --load_best_model_at_end": "the best checkpoint is what is tested and handed back",
    "finetune --report_to wandb": "give --trainer.logger WandbLogger",
    "finetune --push_to_hub": "lit_ft uploads nothing; lit-ft export RUN writes a file to share",
    "finetune --model_name_or_path vgg16": "give --model.backbone vgg16",
    "finetune --do_train": "the command says what is done: lit-ft finetune, validate, test or predict",
    "finetune --dataset_name cifar10": "give --data CIFAR10DataModule",
    "finetune --dataset fashion-mnist": "give --data ImageDatasetDataModule --data.dataset FashionMNIST",
    "finetune --dataset torch/places365": "lit_ft knows no data sets by that name",
    "finetune --max_train_samples 100": "give --data.shots N images of each class, or --data.fraction 0.1",
    # torchvision's references, and earlier Lightnings
    "fit --auto-augment ta_wide": "give --data.augment trivial",
    "fit --lr-step-size 30 --lr-gamma 0.1": "give --lr_scheduler StepLR --lr_scheduler.step_size 30 --lr_sch",
    "fit --norm-weight-decay 0": f"biases and norm layers have no weight decay; {LEAVE}",
    "fit --val-resize-size 256": "give --model.input.resize 256",
    "fit --test-only": "lit-ft test CHECKPOINT does it",
    "fit --gpus 2": f"--gpus: {NO}; give --trainer.accelerator gpu --trainer.devices 2",
    "fit --trainer.gpus 2": f"--trainer.gpus: {NO}; give --trainer.accelerator gpu --trainer.devices 2",
    "fit --trainer.resume_from_checkpoint a.ckpt": "give --ckpt_path a.ckpt",
    "fit --trainer.auto_lr_find true": "give --trainer.callbacks+ LearningRateFinder",
    "fit --trainer.progress_bar_refresh_rate 0": "--trainer.enable_progress_bar false",
    # Values
    "fit --optimizer adam": "--optimizer: adam does not fit; give --optimizer Adam",
    "fit --lr_scheduler cosine": "--lr_scheduler: cosine does not fit; warm-up and cosine decay are the default",
    "fit --unfreeze gradual": "--unfreeze: gradual does not fit; give --unfreeze.strategy gradual",
    "fit --early_stopping 5": "--early_stopping: 5 does not fit; give --early_stopping.patience 5",
    "fit --checkpoint a.ckpt": "--checkpoint: a.ckpt does not fit; give --ckpt_path a.ckpt",
    "fit --trainer.precision fp16": "--trainer.precision: fp16 does not fit; give --trainer.precision 16-mixed",
    "fit --trainer.devices cuda:1": "unknown value 'cuda:1'; give --trainer.accelerator gpu --trainer.devices [1]",
    "fit --trainer.strategy gradual": "unknown value 'gradual'; give --unfreeze.strategy gradual",
    "fit --trainer.callbacks EarlyStopping": "EarlyStopping does not fit; give --trainer.callbacks+ EarlyStopping",
    "fit --model.head.hidden 512": "--model.head.hidden: 512 does not fit; give --model.head.hidden [512]",
    "fit --model.weights None": "--model.weights: None is of Python; give null",
    "fit --data cifar10": "--data: cifar10 does not fit; give --data CIFAR10DataModule",
    "fit --data flowers102": "flowers102 does not fit; give --data ImageDatasetDataModule --data.dataset Flowers102",
    "fit --data torchvision.datasets.SVHN": "does not fit; give --data ImageDatasetDataModule --data.dataset SVHN",
    "fit --data set.npz": "set.npz does not fit; give --data ImageArrayDataModule --data.root set.npz",
    "fit --data.dataset SVHN": "--data.dataset: of which data module? name it, as --data ImageDatasetDataModule",
    "fit --data DigitsDataModule --data.root P": "--data.root: DigitsDataModule has no such option; name one",
    "fit --data ImageArrayDataModule --data.num_workers 4": "has its images in memory, and no such option; leave",
    "fit --data CIFAR10DataModule --data.bands all": "leave it out, or name other data, as --data ImageFol",
    "fit --model.lr 0,001": "--model.lr: 0,001 does not fit; give a number with a point, 0.001",
    "fit --optimizer 'Adam(lr=0.1)'": "give --optimizer Adam, and its options as --optimizer.weight_decay 0.1",
    "fit --unfreeze layer4": "stages are chosen with --unfreeze.strategy phases --unfreeze.phases",
    "fit --unfreeze.strategy head": "give --unfreeze.strategy linear_probe",
    "fit --refit": "--refit: no value follows; give --refit true",
    "fit --fast-dev-run": f"--fast-dev-run: {NO}; give --trainer.fast_dev_run true",
    "fit --early-stopping": f"--early-stopping: {NO}; give --early_stopping.patience 5",
    "fit --print-config": f"--print-config: {NO}; give --print_config",
    "fit --name my run Q": "run: follows no option; quote what has spaces: --name 'my run'",
    "fit --print_config true": "true: follows no option, as --print_config takes no value",
    "fit --config .": "--config: . is a folder; that of photos follows the command: lit-ft finetune .",
    "fit --data .": "--data: . does not fit; the folder of photos follows the command: lit-ft fit .",
    "fit --trainer.max_time 2h": "--trainer.max_time: unknown value '2h'; give --trainer.max_time 00:02:00:00",
    "fit --model.task classification": "give --model.task multiclass",
    "fit --model.mix 0.2": "--model.mix: 0.2 does not fit; give --model.mix.mixup 0.2",
    "fit --data.table t.csv": "--data.table: of which data module? name it, as --data ImageTableDataModule",
    "fit --lr_scheduler.step_size 3": "give --lr_scheduler StepLR --lr_scheduler.step_size 3",
    "check P --output out": f"--output: {NO}; give --folder out",
    "convert . out": "out: without the name of an option; give --folder out",
    "plan vgg16": "vgg16: without the name of an option; give --model.backbone vgg16",
    # Checkpoints that are evaluated
    "test --weights a.ckpt": f"--weights: {NO}; give --ckpt_path a.ckpt",
    "validate --checkpoint a.ckpt": "--checkpoint: a.ckpt does not fit; give --ckpt_path a.ckpt",
    "validate --checkpoint logs/run": "--checkpoint: logs/run does not fit; give --ckpt_path logs/run",
    "test --data-path P": f"--data-path: {NO}; give --data.root P",
    "predict --model a.ckpt": "--model: a.ckpt does not fit; the checkpoint comes first: lit-ft predict a.ckpt PHOTOS",
    "predict --source P": f"--source: {NO}; photos follow the checkpoint: lit-ft predict RUN P",
}  # fmt: skip


@pytest.mark.parametrize("typed", MISTAKES)
def test_mistake_is_answered_with_the_option_that_does_it(answer, typed):
    line = answer(typed)
    assert line is not None
    assert MISTAKES[typed] in line
    assert ("VALUE" in line) == ("VALUE" in MISTAKES[typed])
    assert not re.search("[`\n]|COMMAND|\\\\1", line)


def _instead_of(answers):
    """The options that answers give, as they are typed, of all names and values."""
    texts = [text for answer in answers for text in ([answer] if isinstance(answer, str) else answer.values())]
    runs = (re.match(r"(`(--)?[\w.+]+` \S+ ?)+", text) for text in texts)
    return dict.fromkeys(
        for_command_line(run[0].rstrip(", ")).replace("\\1", "1").replace("\\2", "1") for run in runs if run
    )


@pytest.mark.slow
def test_options_that_are_given_instead_exist(answer):
    values = (
        "1",
        "0.1",
        "true",
        "SGD",
        "StepLR --lr_scheduler.step_size 3",
        "bicubic",
        "norm",
        "full",
        "regression",
        "linear",
        "Timer",
    )
    for options in _instead_of([*OTHER_NAMES.values(), *VALUES.values(), *ACCEPTED_VALUES.values()]):
        if (
            not options.startswith(("--config", "--data ", "--optimizer 1", "--lr_scheduler 1"))
            and "val/" not in options
        ):
            settled = re.sub(" N$", " 5", options.replace("PIXELS", "256"))
            tried = dict.fromkeys(settled.replace("VALUE", value) for value in values)
            before = "fit --data ImageFolderDataModule --data.root P --optimizer AdamW"
            answers = (answer(f"{before} {one}") for one in tried)
            assert None in answers, (options, [answer(f"fit {one}") for one in tried])


def test_no_name_of_an_option_is_that_of_another_tool(parsers):
    own = {key.partition(".")[0] for key in dict(parsers("fit").parser.get_defaults().items())}
    assert not own & OTHER_NAMES.keys() - {"config"}
    assert not SHORT_NAMES.keys() & OTHER_NAMES.keys()
    assert all(find_answer(name, None) or find_answer(name, "1") for name in OTHER_NAMES)
    assert all(find_answer(name, "a.ckpt", "test") for name in OF_EVALUATIONS)


def test_data_sets_that_are_answered_are_of_torchvision():
    names = DATASETS.split()
    assert len(names) > 20
    assert set(names) < set(list_torchvision())
