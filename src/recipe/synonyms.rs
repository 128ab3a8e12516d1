//! Names that other tools (TRL and transformers, Axolotl, LLaMA-Factory, Unsloth, torchtune) use for the keys of a
//! recipe.
//!
//! A table only. Every path in it exists in the schema; tests/it/recipe/reading.rs checks that. Names that are also
//! keys here need no row: `suggest` finds them without the table.

/// Other tools' names for one key, with a note for people who know them.
pub struct Synonym {
    /// The names in other tools, in lower case with `_` for `-`.
    pub theirs: &'static [&'static str],
    /// The dotted path here; `None` if ft has no such setting.
    pub ours: Option<&'static str>,
    /// What is different here; empty if nothing is.
    pub note: &'static str,
}

const fn is(ours: &'static str, theirs: &'static [&'static str], note: &'static str) -> Synonym {
    Synonym { theirs, ours: Some(ours), note }
}

const fn none(theirs: &'static [&'static str], note: &'static str) -> Synonym {
    Synonym { theirs, ours: None, note }
}

/// Other tools' names for keys.
#[rustfmt::skip] // a table: one row per meaning
pub const SYNONYMS: &[Synonym] = &[
    is("model.path", &["model_name_or_path", "base_model", "model_name", "model_id", "checkpoint_dir", "pretrained_model_name_or_path", "tokenizer_name_or_path", "base_model_config"], "a folder on this machine"),
    is("model.dtype", &["torch_dtype", "bf16", "fp16", "fp32", "pure_bf16", "bfloat16", "float16", "precision", "mixed_precision", "compute_type"], "`bf16`, `f16` or `f32`; left out, the format in which the machine multiplies fast"),
    is("run.tf32", &["allow_tf32", "float32_matmul_precision"], "`true` or `false`"),
    is("run.deterministic", &["full_determinism", "use_deterministic_algorithms"], "`true` or `false`"),
    is("model.quantize", &["load_in_4bit", "load_in_8bit", "quantization_bit", "quantization_method", "quantization", "quantization_config", "bnb_4bit_quant_type", "bnb_config", "quantize_base"], "`nf4`, `fp4`, `int8` or `fp8`"),
    is("model.double_quantize", &["bnb_4bit_use_double_quant", "double_quantization", "use_double_quant"], "on by default"),
    is("model.quantize_embeddings", &["quant_lm_head", "embedding_quantize"], "`int8`"),
    is("model.dtype", &["bnb_4bit_compute_dtype"], "quantised weights are multiplied in this number format"),
    is("model.new_tokens", &["resize_vocab", "added_tokens_overrides", "new_special_tokens_config"], "tokens as lists: `new_tokens: { special: [\"<|tool|>\"], text: [TP53] }`"),
    is("model.new_tokens.special", &["add_special_tokens", "additional_special_tokens", "extra_special_tokens", "special_tokens"], "a list of new markers; special tokens that the model has come from its folder"),
    is("model.new_tokens.text", &["add_tokens", "new_tokens_list", "added_tokens"], "a list of new tokens"),
    is("model.new_tokens.init", &["init_special_tokens"], "`pieces` or `mean`"),
    is("model.new_tokens.multiple_of", &["pad_to_multiple_of"], "for the rows of the embedding"),
    is("model.device", &["device_map", "use_cpu", "no_cuda"], ""),
    is("method", &["stage", "task", "training_method", "rl", "trainer", "trl"], ""),
    is("method.sft.supervise", &["train_on_inputs", "train_on_input", "train_on_prompt", "assistant_only_loss", "completion_only_loss", "mask_history", "roles_to_train", "train_on_responses_only", "train_on_eos"], "`assistant`, `last` or `all`"),
    is("method.reward.center", &["center_rewards_coefficient"], ""),
    is("method.dpo.loss", &["loss_type", "pref_loss", "dpo_loss", "rl_loss"], "each of dpo and kto has its own; orpo and simpo are methods by themselves"),
    is("method.dpo.beta", &["pref_beta", "dpo_beta", "rl_beta"], "each method has its own"),
    is("method.dpo.nll", &["rpo_alpha", "pref_ftx", "dpo_ftx", "sft_weight"], "the weight of the chosen answer's cross-entropy"),
    is("method.dpo.reference", &["precompute_ref_log_probs", "precompute_ref_logps", "ref_model", "reference_model", "ref_model_path"], "`live` or `cached`; the reference is the base of the run"),
    is("method.kto.desirable_weight", &["kto_desirable_weight", "kto_chosen_weight", "chosen_weight"], ""),
    is("method.kto.undesirable_weight", &["kto_undesirable_weight", "kto_rejected_weight", "rejected_weight"], ""),
    is("method.orpo.beta", &["orpo_alpha", "orpo_beta"], ""),
    is("method.simpo.gamma", &["simpo_gamma", "gamma_beta_ratio"], "the margin itself, not its share of beta"),
    is("method.simpo.nll", &["cpo_alpha"], ""),
    is("adapter", &["finetuning_type", "training_type", "peft", "peft_config", "use_peft", "lora_config", "use_lora"], "`lora: {…}`; left out, every weight is trained"),
    is("adapter.lora.rank", &["lora_r", "r", "lora_rank"], ""),
    is("adapter.lora.alpha", &["lora_alpha"], ""),
    is("adapter.lora.dropout", &["lora_dropout"], ""),
    is("adapter.lora.targets", &["target_modules", "lora_target_modules", "lora_target", "lora_target_linear", "lora_attn_modules", "apply_lora_to_mlp", "apply_lora_to_output"], "`all-linear`, a regular expression or a list of names"),
    is("adapter.lora.exclude", &["exclude_modules", "lora_exclude_modules"], ""),
    is("adapter.lora.rslora", &["use_rslora", "lora_use_rslora", "peft_use_rslora"], ""),
    is("adapter.lora.modules_to_save", &["additional_target", "lora_modules_to_save"], ""),
    is("adapter.lora.dora", &["use_dora", "peft_use_dora"], "`dora: true`"),
    is("adapter.lora.bias", &["lora_bias"], "`bias: true` trains one behind B"),
    is("adapter.lora.b_lr_ratio", &["loraplus_lr_ratio"], "how many times the rate of A"),
    is("adapter.lora.token_rows", &["trainable_token_indices"], "a list of tokens, by id or text"),
    is("adapter.lora.tie", &["ensure_weight_tying", "peft_ensure_weight_tying"], "`tie: true`"),
    is("adapter.trainable_tokens.tokens", &["token_indices"], "a list of tokens, by id or text"),
    is("adapter.lora.init", &["init_lora_weights", "peft_init_lora_weights"], ""),
    is("data.train", &["dataset", "datasets", "dataset_name", "train_dataset", "dataset_path", "train_file", "train_data", "data_path", "data_files"], "`{ path: FILE }`"),
    is("data.valid", &["eval_dataset", "valid_dataset", "validation_file", "test_datasets", "dataset_valid", "eval_file"], "`{ path: FILE }`"),
    is("data.valid", &["val_set_size", "val_size", "validation_split", "eval_split", "test_size"], "a file of its own: split the rows once, beforehand"),
    is("data.train.format", &["dataset_format", "dataset_type", "formatting"], "left out, it is detected from the columns"),
    is("data.train.rows", &["max_samples", "max_train_samples", "num_samples"], ""),
    is("data.shuffle", &["shuffle_dataset", "disable_shuffling", "dataset_shuffle"], ""),
    is("data.template", &["chat_template", "chat_template_path", "chat_template_jinja"], "a file; left out, the model's own"),
    is("data.on_overflow", &["truncation_side", "excess_length_strategy", "truncation", "truncation_mode"], ""),
    is("batch.max_len", &["max_seq_length", "max_seq_len", "max_length", "cutoff_len", "sequence_len", "max_tokens", "model_max_length", "block_size"], ""),
    is("batch.tokens", &["max_tokens_per_batch", "tokens_per_batch", "packing_length", "tokens_per_pack"], ""),
    is("batch.examples", &["per_device_train_batch_size", "batch_size", "micro_batch_size", "train_batch_size", "global_batch_size"], "it counts the examples of a whole optimiser step; `batch.tokens` bounds the memory"),
    is("batch.tokens", &["per_device_eval_batch_size", "eval_batch_size"], "it bounds the memory, also in validation"),
    is("batch.accumulate", &["gradient_accumulation_steps", "grad_accumulation_steps", "gradient_accumulation", "grad_accum"], "packed rows per step; or give `batch.examples`"),
    is("optim.lr", &["learning_rate"], ""),
    is("optim.kind", &["optimizer", "optimiser", "optim_type", "optimizer_type"], "`adamw`, `adamw8`, `adafactor`, `lion`, `muon`, `schedule_free` or `sgd`"),
    is("optim.groups", &["loraplus_lr_embedding", "lr_groups", "param_groups", "embedding_lr", "embedding_lr_scale"], "a list: `- { match: lora_B, lr: 3e-3 }`"),
    is("optim.ema", &["ema_decay", "use_ema", "ema_beta"], "the decay, such as 0.999"),
    is("optim.neftune", &["neftune_noise_alpha", "neftune_alpha"], ""),
    is("optim.router_balance", &["router_aux_loss_coef", "aux_loss_coef", "moe_aux_loss_coeff"], "left out, that of config.json if the routers are trained"),
    is("optim.router_z", &["router_z_loss_coef", "moe_z_loss_coeff"], ""),
    none(&["output_router_logits"], "the terms of the loss for routers are optim.router_balance and optim.router_z"),
    is("optim.weight_decay", &["wd", "decay_weight"], ""),
    is("optim.betas", &["adam_beta1", "adam_beta2", "beta1", "beta2", "adam_betas"], "both in one list: `[0.9, 0.999]`"),
    is("optim.eps", &["adam_epsilon", "adam_eps"], ""),
    is("optim.warmup", &["warmup_ratio", "warmup_steps", "num_warmup_steps", "lr_warmup_steps"], "below 1 a share of all steps, from 1 on a number of steps"),
    is("optim.schedule", &["lr_scheduler_type", "lr_scheduler", "scheduler", "lr_schedule"], ""),
    is("optim.floor", &["min_lr", "min_lr_ratio", "min_lr_rate", "lr_min", "cosine_min_lr_ratio", "lr_scheduler_kwargs"], "a share of the peak"),
    is("optim.decay", &["num_decay_steps", "decay_ratio", "decay_steps"], "a share of all steps"),
    is("optim.max_norm", &["max_grad_norm", "clip_grad", "clip_grad_norm", "gradient_clip_val", "gradient_clipping", "grad_clip"], ""),
    is("adapter.prompt_tuning.text", &["prompt_tuning_init_text"], ""),
    is("adapter.prefix_tuning.projection", &["prefix_projection"], ""),
    is("run.out", &["output_dir", "save_dir", "out_dir", "output", "adapter_path"], ""),
    is("run.epochs", &["num_train_epochs", "num_epochs", "n_epochs"], ""),
    is("run.steps", &["max_steps", "max_steps_per_epoch", "iters", "train_steps", "num_steps"], ""),
    is("run.eval_every", &["eval_steps", "evals_per_epoch", "eval_strategy", "evaluation_strategy", "do_eval", "steps_per_eval", "run_val_every_n_steps"], "a number of steps; 0 measures at the end only"),
    is("run.save_every", &["save_steps", "saves_per_epoch", "save_strategy", "save_interval", "save_every_n_steps"], "a number of steps; 0 saves at the end only"),
    is("run.result", &["average_checkpoints", "swa", "use_swa", "stochastic_weight_avg"], "`best`, `last`, or the mean of the last checkpoints: `{ average: 5 }`"),
    is("run.keep", &["save_total_limit", "keep_last_n_checkpoints"], "the best checkpoint is kept in addition"),
    is("run.patience", &["early_stopping_patience", "early_stopping", "early_stopping_steps"], "counted in validations"),
    is("run.seed", &["random_state", "random_seed", "data_seed", "manual_seed"], "one seed for everything"),
    is("run.replay", &["gradient_checkpointing", "use_gradient_checkpointing", "activation_checkpointing", "enable_activation_checkpointing", "gradient_checkpointing_kwargs", "disable_gradient_checkpointing"], "`all` or `none`"),
    is("run.samples", &["generate_samples", "num_samples_to_generate", "predict_with_generate"], ""),
    is("run.threads", &["num_threads", "omp_num_threads", "cpu_threads"], ""),
    is("method.grpo.answers", &["num_generations", "n_samples_per_prompt", "rloo_k"], "answers to each prompt"),
    is("method.grpo.passes", &["num_iterations"], ""),
    is("method.grpo.rewards", &["reward_funcs", "reward_weights", "reward_model_path", "remote_rm_url"], "a list, each with its weight: `- exact: { column: answer }`"),
    is("method.grpo.sampling.max_new_tokens", &["max_completion_length", "response_length", "generate_max_len"], ""),
    is("method.distill.on_policy.share", &["lmbda", "on_policy_ratio"], "the share of rows that the student answers itself"),
    is("method.distill.teachers", &["teacher_model_name_or_path", "teacher_model", "teacher_path", "kd_teacher", "distill_teacher"], "a list: `- { path: DIR }`"),
    is("method.distill.temperature", &["kd_temperature", "distillation_temperature"], ""),
    is("method.distill.cross_entropy", &["kd_ratio", "kd_ce_alpha", "ce_weight", "distill_alpha"], "the share of cross-entropy, `{ from: 0.2 }`"),
    is("method.distill.loss", &["kd_loss", "distillation_loss", "seq_kd"], "a divergence; teachers write answers with `ft teach --generate`"),
    none(&["top_k", "top_p", "min_p", "repetition_penalty"], "answers are sampled from the whole distribution: the loss uses ratios of its probabilities"),
    none(&["packing", "sample_packing", "eval_sample_packing", "eval_packing", "pad_to_sequence_len", "padding", "group_by_length", "neat_packing", "padding_free", "pad_to_max_length"], "rows are always packed and never padded, and attention never crosses from one example to the next"),
    none(&["logging_steps", "log_every_n_steps", "logging_strategy", "logging_dir", "logging_first_step", "steps_per_report", "plot_loss"], "every step is written to metrics.jsonl"),
    none(&["report_to", "wandb_project", "wandb_entity", "wandb_name", "wandb_run_id", "run_name", "use_wandb", "mlflow_experiment_name", "use_tensorboard"], "nothing is sent anywhere; metrics.jsonl has every step"),
    none(&["load_best_model_at_end", "metric_for_best_model", "greater_is_better"], "the checkpoint with the best validation loss is kept if `data.valid` is given"),
    none(&["resume_from_checkpoint", "auto_resume_from_checkpoints", "resume", "resume_adapter_file"], "resume on the command line: `ft train RECIPE --resume`"),
    none(&["overwrite_output_dir", "overwrite_cache", "dataset_prepared_path"], "there is no such setting"),
    none(&["push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "use_auth_token"], "nothing is uploaded"),
    none(&["trust_remote_code", "custom_generate"], "no code from a model folder is ever run"),
    none(&["flash_attention", "flash_attn", "xformers_attention", "sdp_attention", "attn_implementation", "use_liger_kernel", "torch_compile", "use_unsloth"], "the fastest attention that fits is chosen automatically"),
    none(&["deepspeed", "fsdp", "fsdp_config", "ddp_timeout", "ddp_find_unused_parameters", "local_rank", "world_size", "tensor_parallel_size"], "a run uses one device"),
    none(&["dataloader_num_workers", "preprocessing_num_workers", "dataset_processes", "dataset_num_proc", "dataloader_pin_memory", "dataloader_drop_last"], "there is no such setting"),
    none(&["pad_token", "eos_token", "add_eos_token"], "special tokens come from the model's folder and its chat template"),
    none(&["task_type", "fan_in_fan_out", "remove_unused_columns", "do_train"], "there is no such setting"),
];

/// Other tools' words for choices: (theirs, ours). A row applies to every key that has `ours` among its choices.
#[rustfmt::skip]
pub const VALUE_SYNONYMS: &[(&str, &str)] = &[
    ("bfloat16", "bf16"), ("torch.bfloat16", "bf16"), ("fp16", "f16"), ("float16", "f16"), ("torch.float16", "f16"), ("half", "f16"),
    ("float32", "f32"), ("fp32", "f32"), ("torch.float32", "f32"), ("float", "f32"),
    ("true", "all"), ("unsloth", "all"), ("full", "all"), ("false", "none"), ("off", "none"), ("no", "none"),
    ("constant_with_warmup", "constant"), ("cosine_with_restarts", "cosine"), ("cosine_with_min_lr", "cosine"),
    ("linear_with_warmup", "linear"), ("cosine_with_warmup", "cosine"), ("warmup_stable_decay", "wsd"),
    ("chatml", "messages"), ("openai", "messages"), ("chat", "messages"), ("chat_template", "messages"), ("conversational", "messages"),
    ("conversations", "sharegpt"), ("instruction", "alpaca"), ("instruct", "alpaca"), ("completion", "text"), ("pretrain", "text"), ("raw", "text"),
    ("prompt-completion", "prompt_completion"), ("input_output", "prompt_completion"),
    ("default", "kaiming"), ("normal", "gaussian"),
    ("completion", "assistant"), ("completions", "assistant"), ("response", "assistant"), ("responses", "assistant"),
    ("last_turn", "last"), ("everything", "all"), ("raise", "error"), ("skip", "drop"), ("cut", "truncate"), ("chunk", "split"),
    ("ignore", "skip"), ("stop", "error"), ("qlora", "lora"), ("supervised", "sft"), ("instruction_tuning", "sft"), ("finetune", "sft"),
    ("rm", "reward"), ("reward_model", "reward"), ("reward_modeling", "reward"),
    ("exo_pair", "exo"), ("cdpo", "sigmoid"), ("slic", "hinge"), ("apo_zero_unpaired", "apo_zero"), ("length_normalized", "sigmoid_norm"),
];
