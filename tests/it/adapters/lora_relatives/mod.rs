//! Tests LoRA's relatives (DoRA, other initial values, a bias behind B, frozen A, token rows). Here: the settings that every
//! property is tested with.

mod computing;
mod initial;
mod peft;
mod refusals;

use crate::support::workspace::Workspace;
use crate::support::*;
use ft::adapters::merging::{MergedWeights, WeightedAdapter};
use ft::adapters::{AdapterKind, AdapterSpec, LoraInit, LoraSpec, Targets, TokenName, file};
use ft::convert::verify::report::ExportVerdict;
use ft::convert::{export, merge};
use ft::models::{LayerReplay, Model, open};
use ft::nn::{Tokens, Weights};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

const INPUT: [u32; 8] = [1, 17, 40, 3, 22, 59, 5, 9];

fn logits(model: &Model, ids: &[u32]) -> Tensor {
    let rows = Tensor::arange(ids.len() as i64, (Kind::Int64, device()));
    model.infer(&Tokens::pack(&[ids], device()), |out| out.logits(&rows)).unwrap()
}

fn names(list: &[&str]) -> Targets {
    Targets::Names(list.iter().map(|name| name.to_string()).collect())
}

fn tokens(ids: &[i64]) -> Vec<TokenName> {
    ids.iter().map(|id| TokenName::Id(*id)).collect()
}

/// A setting of LoRA with the base to try it on.
struct Relative {
    name: &'static str,
    base: &'static str,
    spec: LoraSpec,
}

/// The relatives that every property below holds for.
fn relatives() -> Vec<Relative> {
    let plain = || LoraSpec { rank: 4, alpha: 6.0, ..LoraSpec::default() };
    let of = |name, base, spec| Relative { name, base, spec };
    let few = || names(&["q_proj", "v_proj", "down_proj"]);
    vec![
        of("dora", "tiny-llama", LoraSpec { dora: true, ..plain() }),
        of(
            "dora, biases and a head",
            "biased-llama",
            LoraSpec {
                dora: true,
                rslora: true,
                targets: names(&["k_proj", "up_proj", "o_proj", "lm_head"]),
                ..plain()
            },
        ),
        of("dora, gpt2", "tiny-gpt2", LoraSpec { dora: true, ..plain() }),
        of("dora, embedding", "biased-llama", LoraSpec { dora: true, targets: names(&["embed_tokens"]), ..plain() }),
        of("pissa", "tiny-llama", LoraSpec { init: LoraInit::Pissa, ..plain() }),
        of("pissa, gpt2", "tiny-gpt2", LoraSpec { init: LoraInit::Pissa, rslora: true, ..plain() }),
        of("fast pissa", "biased-llama", LoraSpec { init: LoraInit::PissaFast, targets: few(), ..plain() }),
        of("olora", "biased-llama", LoraSpec { init: LoraInit::Olora, rslora: true, ..plain() }),
        of("pissa with dora", "tiny-qwen3", LoraSpec { init: LoraInit::Pissa, dora: true, ..plain() }),
        of("orthogonal", "tiny-qwen2", LoraSpec { init: LoraInit::Orthogonal, ..plain() }),
        of("a bias behind B", "biased-llama", LoraSpec { bias: true, targets: few(), ..plain() }),
        of("a bias behind B, gpt2", "tiny-gpt2", LoraSpec { bias: true, ..plain() }),
        of("frozen A", "tiny-llama", LoraSpec { freeze_a: true, ..plain() }),
        of("token rows", "biased-llama", LoraSpec { token_rows: tokens(&[59, 5, 9]), targets: few(), ..plain() }),
        of("token rows, tied", "tiny-llama", LoraSpec { token_rows: tokens(&[22, 3]), dora: true, ..plain() }),
        of(
            "token rows of both",
            "biased-llama",
            LoraSpec { token_rows: tokens(&[59, 9]), head_rows: tokens(&[9, 5]), targets: few(), ..plain() },
        ),
        of(
            "tied, adapted",
            "tiny-qwen2",
            LoraSpec { tie: true, dropout: 0.0, targets: names(&["q_proj", "embed_tokens"]), ..plain() },
        ),
        of(
            "tied, saved",
            "tiny-llama",
            LoraSpec { tie: true, modules_to_save: vec!["lm_head".into()], targets: few(), ..plain() },
        ),
        of("token rows, gpt2", "tiny-gpt2", LoraSpec { token_rows: tokens(&[22, 3]), ..plain() }),
    ]
}

/// Loads the base with a new adapter.
fn fresh(relative: &Relative, kind: Kind) -> Model {
    tch::manual_seed(11);
    let plan = AdapterSpec::Lora(relative.spec.clone()).plan().unwrap();
    adapted(&fixture(relative.base), kind, &*plan)
}

/// Changes every trained tensor, as after some training.
fn disturb(model: &Model) {
    let _no_grad = tch::no_grad_guard();
    for p in model.params().trainable() {
        let noise = noise(&p.tensor.size(), &p.name).to_device(p.tensor.device());
        let size = if p.name.ends_with("lora_magnitude_vector") { &p.tensor * 0.1 } else { p.tensor.ones_like() * 0.1 };
        let _ = p.tensor.shallow_clone().g_add_(&(noise * size));
    }
}

fn trained(relative: &Relative, kind: Kind) -> Model {
    let model = fresh(relative, kind);
    disturb(&model);
    model
}
