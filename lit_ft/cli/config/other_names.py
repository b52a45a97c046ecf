"""What users type for an option by the habits of other tools, and the option that does it here."""

from __future__ import annotations

from lit_ft.cli.config.other_values import (
    AUGMENTS,
    CACHES,
    COUNT,
    DEVICES,
    FITS,
    NO_PRETRAINED,
    OPTIMIZERS,
    OUTPUT,
    PHOTOS,
    PRECISIONS,
    SCHEDULES,
    SIZES,
    STAGES,
    STAGES_ANSWER,
    Instead,
)

_BOTH = "the folder that has train and val in it follows the command: lit-ft COMMAND PHOTOS"
_ONE_BY_ONE = "augmentations are not set one by one; `data.augment` is none, basic, trivial, rand or augmix"
_LOADER = "the loader of the data settles it; `data.num_workers` is what it takes"
_DETECTION = "it is for the detection of objects, and lit_ft is for whole images; leave it out"
_DISTRIBUTED = "the number of processes is `trainer.devices` times `trainer.num_nodes`, or that of torchrun or SLURM"
_SAVED = (
    "best and last checkpoint are saved in any case; for others: `checkpoint.every_n_epochs`, `checkpoint.save_top_k`"
)

# From the scripts and functions of timm, Ultralytics, fastai, Keras, Hugging Face, torchvision, and earlier Lightnings.
_ROWS: tuple[tuple[str, Instead], ...] = (
    # How long
    ("epoch num_epochs n_epochs n_epoch nb_epochs nepochs max_epoch max_epochs num_train_epochs total_epochs "
     "train_epochs nb_epoch max_nb_epochs e", "`epochs` VALUE"),
    ("freeze_epochs",
     "`unfreeze.head_epochs` VALUE `unfreeze.head_fit` trained `model.lr` 1e-3, or nothing: a solved head needs none"),
    ("initial_epoch start_epoch", "a run goes on where it ended with `resume` auto"),
    ("steps max_train_steps num_steps train_steps num_iterations iterations iters max_iter max_iters",
     "`trainer.max_steps` VALUE"),
    ("time time_limit timeout", "`trainer.max_time` 00:01:00:00, as days, hours, minutes and seconds"),
    ("patience patience_epochs early_stop early_stopping_patience", {
        r"\d+": "`early_stopping.patience` VALUE", ".*": "`early_stopping.patience` 5"}),
    ("steps_per_epoch", "`trainer.limit_train_batches` VALUE"),
    ("val_freq validation_freq eval_every eval_freq eval_interval", "`trainer.check_val_every_n_epoch` VALUE"),
    ("eval_strategy evaluation_strategy eval_steps do_eval",
     "each epoch ends with a validation; else `trainer.check_val_every_n_epoch`"),
    ("do_train do_predict mode", "the command says what is done: lit-ft finetune, validate, test or predict"),
    ("dry_run smoke_test", "`trainer.fast_dev_run` true"),
    # Batches and images
    ("b bs batch batchsize mini_batch_size train_batch_size per_device_train_batch_size per_gpu_train_batch_size", {
        "auto|-1": "`--trainer.callbacks+` BatchSizeFinder", ".*": "`batch_size` VALUE"}),
    ("auto_find_batch_size auto_scale_batch_size", "`--trainer.callbacks+` BatchSizeFinder"),
    ("val_bs val_batch_size validation_batch_size test_batch_size eval_batch_size per_device_eval_batch_size",
     "validation and test take the `batch_size` of the training; leave it out"),
    ("gradient_accumulation_steps gradient_accumulation grad_accum_steps grad_accum accumulation_steps accum_iter "
     "accumulate update_freq n_acc nbs", "`trainer.accumulate_grad_batches` VALUE"),
    ("imgsz img_size imgsize im_size image_shape img_shape input_size input_shape target_size crop_size "
     "train_crop_size val_crop_size size resolution res", SIZES | {".*": "`image_size` VALUE"}),
    ("resize resize_size val_resize_size", "`model.input.resize` VALUE"),
    ("crop_pct", "`model.input.resize` PIXELS, of which the centre of `image_size` pixels is cut out"),
    ("crop_mode resize_method resize_mode", FITS),
    ("letterbox keep_ratio keep_aspect_ratio preserve_aspect_ratio pad_to_aspect_ratio pad_to_square", {
        "|true|1|yes": "`data.fit` pad", ".*": "`data.fit` squash"}),
    ("squash squish stretch", {"|true|1|yes": "`data.fit` squash", ".*": "`data.fit` crop"}),
    ("crop_to_aspect_ratio", {"|true|1|yes": "`data.fit` crop", ".*": "`data.fit` squash"}),
    ("in_chans in_channels num_channels", "`model.input.channels` VALUE"),
    ("grayscale greyscale gray grey color_mode input_img_mode", "`model.input.channels` 1"),
    ("train_interpolation", "`model.input.interpolation` VALUE"),
    ("random_seed random_state manual_seed rng_seed", "`seed` VALUE"),
    ("data_seed data.seed", "`data.split_seed` VALUE"),
    # Learning rates and optimizers
    ("lr lr0 learning_rate base_lr blr init_lr initial_lr max_lr lr_max lr_base alpha optimizer.lr "
     "optimizer.init_args.lr", {
        "-.+": "a learning rate is above 0, as with `model.lr` 1e-3",
        ".*": "`model.lr` VALUE (of the head; a recipe may set `model.lr_backbone` as well)"}),
    ("head_lr lr_head", "`model.lr` VALUE"),
    ("backbone_lr encoder_lr", "`model.lr_backbone` VALUE"),
    ("layer_decay llrd layer_lr_decay lr_layer_decay", "`model.lr_decay` VALUE"),
    ("lr_mult discriminative_lr", "`model.lr_decay` 0.6, the factor from a stage to the next shallower one"),
    ("lrf", "`lr_scheduler.final_fraction` VALUE"),
    ("min_lr lr_min eta_min", "`lr_scheduler.final_fraction` 0.01, the share of the learning rate that is left"),
    ("warmup warmup_epochs warmup_steps num_warmup_steps lr_warmup_epochs warmup_ratio pct_start "
     "lr_scheduler.warmup lr_scheduler.warmup_epochs lr_scheduler.warmup_steps", {
        r"0?\.\d+": "`lr_scheduler.warmup_fraction` VALUE", "0(.0)?": "`lr_scheduler.warmup_fraction` 0",
        ".*": "`lr_scheduler.warmup_fraction` 0.1, the share of the run that it takes"}),
    ("warmup_lr warmup_momentum warmup_bias_lr warmup_prefix lr_warmup_decay lr_warmup_method div div_final",
     "the warm-up is linear, from zero; `lr_scheduler.warmup_fraction` is its share of the run"),
    ("cooldown_epochs lr_cycle_mul lr_cycle_decay lr_cycle_limit lr_k_decay lr_noise lr_noise_pct lr_noise_std "
     "sched_on_updates", "it has no counterpart; `lr_scheduler` takes any class of torch, such as CosineAnnealingLR"),
    ("sched scheduler lr_scheduler_type lr_sched lr_schedule lr_policy scheduler_type lr_decay_type",
     SCHEDULES | {".*": "`lr_scheduler` VALUE"}),
    ("cos_lr cosine", "warm-up and cosine decay are the default; leave it out"),
    ("lr_step_size step_size decay_epochs lr_scheduler.step_size",
     "`lr_scheduler` StepLR `lr_scheduler.step_size` VALUE"),
    ("lr_scheduler.t_max t_max", "`lr_scheduler` CosineAnnealingLR `lr_scheduler.T_max` VALUE"),
    ("lr_gamma gamma decay_rate", "`lr_scheduler` ExponentialLR `lr_scheduler.gamma` VALUE"),
    ("decay_milestones milestones", "`lr_scheduler` MultiStepLR `lr_scheduler.milestones` [VALUE]"),
    ("auto_lr_find lr_find find_lr", "`--trainer.callbacks+` LearningRateFinder"),
    ("opt optim optimiser opt_func optimizer_name optimizer_type", OPTIMIZERS | {".*": "`optimizer` VALUE"}),
    ("momentum moms", "`optimizer` SGD `optimizer.momentum` VALUE"),
    ("nesterov", "`optimizer` SGD `optimizer.momentum` 0.9 `optimizer.nesterov` true"),
    ("optimizer.wd optimizer.decay", "`optimizer.weight_decay` VALUE"),
    ("weight_decay wd l2 decay", "`optimizer` AdamW `optimizer.weight_decay` VALUE"),
    ("norm_weight_decay bias_weight_decay", "biases and norm layers have no weight decay; leave it out"),
    ("betas opt_betas beta1 beta2 adam_beta1 adam_beta2", "`optimizer` AdamW `optimizer.betas` [0.9,0.999]"),
    ("eps opt_eps adam_epsilon", "`optimizer` AdamW `optimizer.eps` VALUE"),
    ("clip_grad max_grad_norm clip_grad_norm grad_clip clip clip_norm gradient_clip gradient_clipping clipnorm",
     "`trainer.gradient_clip_val` VALUE"),
    ("clip_mode", "`trainer.gradient_clip_algorithm` VALUE"),
    ("ema model_ema use_ema ema_decay model_ema_decay model_ema_steps", "`--trainer.callbacks+` EMAWeightAveraging"),
    ("swa stochastic_weight_avg",
     "`--trainer.callbacks+` StochasticWeightAveraging `--trainer.callbacks.swa_lrs` 0.001"),
    # The network
    ("a m arch architecture model.name model_name model_name_or_path model_type base_model net network encoder",
     "`model.backbone` VALUE"),
    ("pretrained use_pretrained imagenet", NO_PRETRAINED | {
        "|true|1|yes": "the weights are pretrained by default; leave it out, or for random ones: `model.weights` null",
        ".*": "`model.weights` VALUE"}),
    ("no_pretrained scratch from_scratch random_init", "`model.weights` null"),
    ("weights pretrained_path pretrained_weights initial_checkpoint init_checkpoint load_weights weights_path "
     "finetune_from", NO_PRETRAINED | {"imagenet": "`model.weights` DEFAULT", ".*": "`model.weights` VALUE"}),
    ("num_classes n_classes nb_classes nc n_out num_labels ncls classes c",
     "the classes are those of the folders or the table; leave it out"),
    ("include_top ignore_mismatched_sizes", "the head is always a new one; leave it out"),
    ("freeze freeze_backbone freeze_layers freeze_encoder frozen trainable feature_extract feature_extraction "
     "linear_probe linear_probing unfreeze_backbone lp finetune_all train_backbone unfreeze_layers "
     "trainable_layers unfrozen", {
        STAGES: STAGES_ANSWER,
        r"\d+": "the last stages train with `unfreeze.strategy` deepest, and the head alone with linear_probe",
        "0|false|none|no": "`unfreeze.strategy` full", ".*": "`unfreeze.strategy` linear_probe"}),
    ("strategy", {"full|linear_probe|deepest|gradual|lp_ft|phases|plateau|auto": "`unfreeze.strategy` VALUE",
                  ".*": "`trainer.strategy` VALUE"}),
    ("drop drop_rate dropout_rate ps hidden_dropout_prob", "`model.head.dropout` VALUE"),
    ("drop_path drop_path_rate drop_connect drop_block stochastic_depth",
     "it has no counterpart; `model.head.dropout` and `model.mix.mixup` regularise"),
    ("hidden lin_ftrs hidden_dim hidden_size hidden_units mlp_dim", "`model.head.hidden` [VALUE]"),
    ("gp pooling global_pool concat_pool", {"avg|mean|fast|gap": "`model.pool` avg", ".*": "`model.pool` own"}),
    ("head_init_scale", "`model.head.zero_init` true"),
    ("sync_bn syncbn", "`trainer.sync_batchnorm` true"),
    ("freeze_bn freeze_norm freeze_batchnorm train_bn", "`unfreeze.norm` eval"),
    ("bn_momentum bn_eps split_bn dist_bn bn_tf normalize",
     "it has no counterpart; `unfreeze.norm` eval keeps the statistics"),
    ("grad_checkpointing", "`model.gradient_checkpointing` true"),
    ("torchcompile torch_compile use_compile", "`model.compile` true"),
    ("torchscript jit fuser fast_norm", "it has no counterpart; `model.compile` true is faster on a GPU"),
    ("channels_last memory_format", "convolutional networks are channels_last by themselves; leave it out"),
    ("lora use_lora peft adapter lora_r",
     "it has no counterpart; `unfreeze.strategy` deepest trains just the last stages"),
    # Loss and metrics
    ("smoothing label_smoothing_factor smooth", "`model.label_smoothing` VALUE"),
    ("loss loss_func loss_fn criterion bce_loss jsd_loss",
     "the loss follows from `model.task`: multiclass, multilabel or regression"),
    ("task", {"(image_)?classif(y|ication)": "multiclass is the default; leave it out", ".*": "`model.task` VALUE"}),
    ("class_weights weighted cls_weight pos_weight balanced", "`model.class_weight` balanced"),
    ("balanced_sampling oversample weighted_sampler class_balanced", "`data.sampling` balanced"),
    ("monitor eval_metric metric_for_best_model metric metrics best_metric", {
        "(top.?1|acc.*|val_acc.*)?": "`checkpoint.monitor` val/acc",
        "(eval_|val_)?loss": "`checkpoint.monitor` val/loss",
        ".*": "`checkpoint.monitor` val/VALUE"}),
    ("early_stopping.metric", "`early_stopping.monitor` VALUE"),
    ("load_best_model_at_end save_best save_best_only greater_is_better",
     "the best checkpoint is what is tested and handed back, by `checkpoint.monitor`; leave it out"),
    ("mixup_alpha", "`model.mix.mixup` VALUE"),
    ("cutmix_alpha", "`model.mix.cutmix` VALUE"),
    ("mixup_prob mixup_switch_prob mixup_mode cutmix_minmax mixup_off_epoch",
     "it has no counterpart; every batch is mixed, by `model.mix.mixup` and `model.mix.cutmix`"),
    ("reprob erasing random_erase random_erasing re_prob", "`model.mix.erase` VALUE"),
    # Augmentation
    ("aa auto_augment autoaugment augmentation augmentations aug data_augmentation transforms transform", AUGMENTS),
    ("no_aug noaug no_augment", "`data.augment` none"),
    ("color_jitter colour_jitter hflip vflip scale ratio degrees translate shear perspective hsv_h hsv_s hsv_v fliplr "
     "flipud bgr mosaic copy_paste close_mosaic horizontal_flip vertical_flip rotation rotation_range "
     "zoom_range brightness_range ra_magnitude augmix_severity remode recount resplit train_transforms item_tfms "
     "batch_tfms aug_repeats aug_splits ra_sampler multi_scale grayscale_prob gaussian_blur_prob", _ONE_BY_ONE),
    # Data
    ("data_dir data_path data_root dataset_path dataset_dir datadir root root_dir path dir folder image_dir images_dir "
     "image_folder images img_dir photos directory input source dataset dataset_name dls", PHOTOS),
    ("train_dir train train_path train_data train_data_dir traindir train_folder train_file val_dir val_path "
     "valid_dir validation_dir val_data test_dir test_path train_split validation_data", _BOTH),
    ("val valid val_split valid_split", {r"0?\.\d+": "`data.val_fraction` VALUE", ".*": _BOTH}),
    ("test_split", {r"0?\.\d+": "`data.test_fraction` VALUE", ".*": _BOTH}),
    ("val_pct valid_pct validation_split val_size val_ratio valid_fraction valid_size train_val_split",
     "`data.val_fraction` VALUE"),
    ("test_size test_ratio test_pct", "`data.test_fraction` VALUE"),
    ("csv csv_file labels_csv annotations annotation_file label_file labels_file", {
        "": "`data` ImageTableDataModule `data.table` FILE", ".*": "`data` ImageTableDataModule `data.table` VALUE"}),
    ("class_map class_names labels vocab names_file",
     "`data.class_names_from` FILE, where folders have other names"),
    ("workers j nw n_workers dataloader_num_workers num_proc loader_workers", "`data.num_workers` VALUE"),
    ("pin_mem pin_memory dataloader_pin_memory persistent_workers prefetch prefetch_factor no_prefetcher "
     "drop_last shuffle use_multi_epochs_loader worker_seeding dataloader_drop_last rect", _LOADER),
    ("cache cache_images cache_dataset cache_dir", CACHES),
    ("subset max_train_samples num_samples max_samples train_size", {
        r"0?\.\d+|1(\.0)?": "`data.fraction` VALUE",
        ".*": "`data.shots` N images of each class, or `data.fraction` 0.1"}),
    ("download dataset_download", "published weights and data are fetched when they are first needed; leave it out"),
    ("single_cls box cls dfl iou nms conf overlap_mask mask_ratio pose kobj", _DETECTION),
    # Machine
    ("device cuda use_cuda gpu gpu_id gpu_ids", DEVICES),
    ("gpus num_gpus ngpus ngpu n_gpu n_gpus gpu_count num_processes auto_select_gpus", COUNT),
    ("no_cuda use_cpu cpu", "`trainer.accelerator` cpu"),
    ("tpu tpu_cores num_tpus", "`trainer.accelerator` tpu"),
    ("nnodes nodes", "`trainer.num_nodes` VALUE"),
    ("ddp dp distributed multi_gpu data_parallel", "`trainer.strategy` ddp `trainer.devices` -1"),
    ("distributed_backend", "`trainer.strategy` VALUE"),
    ("world_size dist_url dist_backend local_rank rank nproc_per_node master_addr master_port backend node_rank",
     _DISTRIBUTED),
    ("amp half mixed_precision use_amp to_fp16 fp16 native_amp use_fp16 amp_dtype model_dtype dtype amp_level "
     "fp16_opt_level amp_backend amp_impl precision",
     PRECISIONS | {".*": "`trainer.precision` 16-mixed or bf16-mixed"}),
    ("bf16 use_bf16", "`trainer.precision` bf16-mixed"),
    ("fp32 no_amp", "`trainer.precision` 32-true"),
    ("tf32", "matrices are multiplied in TF32 by default; leave it out"),
    ("use_deterministic_algorithms cudnn_deterministic", "`trainer.deterministic` true"),
    ("cudnn_benchmark", "`trainer.benchmark` true"),
    # Runs and files
    ("out output output_dir out_dir outdir save_dir save_path log_dir logdir logging_dir project results_dir work_dir "
     "exp_dir checkpoint_dir model_dir dirpath weights_save_path o", OUTPUT),
    ("run_name exp exp_name experiment experiment_name run job_name tag", "`name` VALUE"),
    ("exist_ok overwrite_output_dir overwrite force",
     "each run has a folder of its own, version_0, version_1, …; leave it out"),
    ("save save_period save_steps save_freq save_strategy save_interval save_every checkpoint_hist save_total_limit "
     "recovery_interval save_model checkpoint_callback", _SAVED),
    ("resume_from_checkpoint resume_from resume_path resume_checkpoint load load_from ckpt checkpoint_path restore "
     "continue continue_from", {"|true|yes|auto|latest|last": "`resume` auto", ".*": "`ckpt_path` VALUE"}),
    ("test_only eval_only evaluate evaluate_only", "lit-ft test CHECKPOINT does it"),
    ("log_interval print_freq logging_steps log_every", "`trainer.log_every_n_steps` VALUE"),
    ("v q verbose quiet silent disable_tqdm progress_bar_refresh_rate no_progress progress",
     "the progress bar is left out with `trainer.enable_progress_bar` false"),
    ("weights_summary", "lit-ft plan prints the stages and their sizes; leave it out"),
    ("plots save_images show", "each run has a page with its curves, report.html; leave it out"),
    ("profile", "`trainer.profiler` simple"),
    ("wandb log_wandb use_wandb report_to", {
        "none|false|no|tensorboard|all": "TensorBoard's files are written by default; leave it out",
        "mlflow": "`trainer.logger` MLFlowLogger", "csv": "`trainer.logger` CSVLogger `trainer.logger.save_dir` logs",
        ".*": "`trainer.logger` WandbLogger"}),
    ("tensorboard tb", "TensorBoard's files are written by default; leave it out"),
    ("push_to_hub hub_model_id hub_token", "lit_ft uploads nothing; lit-ft export RUN writes a file to share"),
    ("cbs callback", "`--trainer.callbacks+` VALUE"),
    ("replace_sampler_ddp", "`trainer.use_distributed_sampler` VALUE"),
    ("terminate_on_nan track_grad_norm", "`trainer.detect_anomaly` true"),
    ("version", "lit-ft --version prints it"),
    ("print_config printconfig dump_config show_config", "`--print_config`"),
    ("test do_test run_test", "lit-ft finetune tests at the end, and lit-ft test RUN at any time; leave it out"),
    ("kfold k_folds num_folds n_folds n_splits cv cross_validation", {
        r"\d+": "`folds` VALUE", ".*": "`folds` 5"}),
    ("threads num_threads n_jobs", "the variable OMP_NUM_THREADS sets it, before the command"),
    ("flip crop rotate blur", _ONE_BY_ONE),
    ("config cfg conf_file config_file config_path config_name yaml recipe hyp", "`config` VALUE"),
    ("tta test_time_augmentation", "it is an option of lit-ft predict CHECKPOINT PHOTOS"),
)  # fmt: skip

_EVALUATION_ROWS: tuple[tuple[str, str], ...] = (
    ("weights checkpoint ckpt model model_path checkpoint_path pretrained load load_from resume resume_from_checkpoint "
     "resume_from run run_dir m model_name_or_path path", "`ckpt_path` VALUE"),
    ("out output output_file csv save_path o", "`predictions.file` VALUE"),
)  # fmt: skip


OTHER_NAMES: dict[str, Instead] = {name: answer for names, answer in _ROWS for name in names.split()}
"""By a name in small letters with underscores, without the section that it may be in: the answer."""

OF_EVALUATIONS = {name: answer for names, answer in _EVALUATION_ROWS for name in names.split()}
"""What is meant otherwise where a checkpoint is evaluated."""
