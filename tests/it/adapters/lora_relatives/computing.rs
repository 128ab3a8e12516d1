//! Properties of every relative: saved and merged = adapted, decoded = full, packed, replayed, bfloat16.

use super::*;

/// A new adapter leaves the output as it is: bit for bit where its update is an exact zero.
#[test]
fn a_new_adapter_changes_nothing() {
    for relative in relatives() {
        let model = fresh(&relative, Kind::Float);
        let (with, without) = (logits(&model, &INPUT), model.with_adapter(None, |m| logits(m, &INPUT)));
        assert_close(relative.name, &with, &without, 2e-6);
        assert!(model.params().trainable().next().is_some());
    }
}

/// The published file gives the output of the trained model, and so do the merged weights, where they exist.
#[test]
fn saved_and_merged_equal_adapted() {
    for relative in relatives() {
        let Relative { name, base, spec } = &relative;
        let (base, out) = (fixture(base), tempfile::tempdir().unwrap());
        let model = trained(&relative, Kind::Float);
        let expected = logits(&model, &INPUT);
        let folder = out.path().join("adapter");
        let report = export::save_adapter(&model, "a", &AdapterSpec::Lora(spec.clone()), &base, &folder).unwrap();
        assert_eq!(report.verdict, ExportVerdict::Passed, "{name}: {:?}", report.problems);
        assert!(report.adapter_effect.unwrap().max_abs > 0.01, "{name}: the adapter has no effect");
        let read = open(&base, &[folder.clone()], device(), Kind::Float).unwrap();
        assert_close(&format!("{name}: read back"), &logits(&read, &INPUT), &expected, 1e-5);
        let part = WeightedAdapter::read(&folder, 1.0).unwrap();
        let merged_folder = out.path().join("merged");
        merge::adapters::merge_into_model(&base, &[part], &merged_folder, None, u64::MAX).unwrap();
        let merged = frozen(&merged_folder, Kind::Float);
        assert_close(&format!("{name}: merged"), &logits(&merged, &INPUT), &expected, 1e-5);
    }
}

/// Decoding with a cache gives the logits of full passes, whatever else is in the batch, also after the parameters have
/// changed.
#[test]
fn decoded_equals_full() {
    for relative in relatives() {
        let model = trained(&relative, Kind::Float);
        let last = |sequences: &[Vec<u32>]| {
            let tokens = Tokens::pack(sequences, device());
            model.infer(&tokens, |out| out.logits(&tokens.segments.last_rows())).unwrap()
        };
        let decode = |sequences: &[Vec<u32>]| {
            let heads: Vec<&[u32]> = sequences.iter().map(|s| &s[..s.len() - 3]).collect();
            let (mut cache, mut run) = (model.cache(sequences.len()), Tokens::pack(&heads, device()));
            let mut found = model.extend(&run, &mut cache, |out| out.logits(&run.segments.last_rows())).unwrap();
            for back in (1..=3).rev() {
                let next: Vec<&[u32]> = sequences.iter().map(|s| &s[s.len() - back..][..1]).collect();
                run = Tokens::pack_after(&next, &cache.lengths, device());
                found = model.extend(&run, &mut cache, |out| out.logits(&run.segments.last_rows())).unwrap();
            }
            found
        };
        let sequences: Vec<Vec<u32>> =
            [7, 12].iter().map(|n| (0..*n).map(|t| (t * 7 + n) % 60 + 1).collect()).collect();
        for round in 0..2 {
            let (found, expected) = tch::no_grad(|| (decode(&sequences), last(&sequences)));
            assert_close(&format!("{}, round {round}", relative.name), &found, &expected, 2e-5);
            let alone = |rows: &Tensor| rows.narrow(0, 1, 1).equal(&tch::no_grad(|| decode(&sequences[1..])));
            // Not every base's decoding has the same bits for a row alone: gpt2's has not, and neither has a GPU's.
            let of_base = model.with_adapter(None, |_| alone(&tch::no_grad(|| decode(&sequences))));
            assert!(alone(&found) || !of_base, "{}: a row depends on the others", relative.name);
            assert!(of_base || relative.base == "tiny-gpt2" || device().is_cuda(), "{}: the base", relative.name);
            disturb(&model);
        }
    }
}

/// Recomputed layers and packed rows give the gradients of plain ones; the gradient that the base's rows would get from a
/// norm is left out on purpose, so that finite differences cannot be compared.
#[test]
fn replayed_and_split_batches_give_the_same_gradients() {
    for relative in relatives() {
        let model = trained(&relative, Kind::Float);
        let sequences: Vec<Sequence> = [9, 4, 13].iter().map(|n| Sequence::random(*n, 60, 3)).collect();
        let items: f64 = sequences.iter().map(Sequence::items).sum();
        let learn = |rows: Vec<Row>, replay: LayerReplay| {
            rows.iter().for_each(|row| drop(model.learn(row, items, replay).unwrap()));
            take_gradients(&model)
        };
        let whole = learn(vec![Row::pack(&sequences)], LayerReplay::None);
        let replayed = learn(vec![Row::pack(&sequences)], LayerReplay::All);
        let single = learn(sequences.iter().map(|s| Row::pack(std::slice::from_ref(s))).collect(), LayerReplay::None);
        let size = |t: &Tensor| t.abs().max().double_value(&[]);
        for (key, g) in &whole {
            let what = format!("{}: {key}", relative.name);
            assert!(size(g) > 0.0, "{what}: no gradient");
            assert!(g.equal(&replayed[key]), "{what}: replayed");
            // The gradient of a bias on every key is rounding alone.
            if !key.ends_with("k_proj.lora_B.bias") {
                assert_close(&what, &single[key], g, 2e-4);
            }
        }
    }
}

/// A bf16 run is near the float32 run, and not equal to it.
#[test]
fn bf16_stays_near_float32() {
    for relative in relatives() {
        let model = trained(&relative, Kind::Float);
        let half = fresh(&relative, Kind::BFloat16);
        let values: BTreeMap<&str, &Tensor> = model.params().state().map(|p| (p.name.as_str(), &p.tensor)).collect();
        for p in half.params().state() {
            assert_eq!(p.tensor.kind(), Kind::Float, "{}: masters are float32", p.name);
            tch::no_grad(|| p.tensor.shallow_clone().copy_(values[p.name.as_str()]));
        }
        let (wide, narrow) = (logits(&model, &INPUT), logits(&half, &INPUT).to_kind(Kind::Float));
        let gap = Gap::between(&narrow, &wide);
        // bfloat16 rounds every product by up to 2^-9; the layers amplify it.
        assert!(gap.norm > 1e-4 && gap.norm < 0.05, "{}: {gap:?}", relative.name);
    }
}

/// With a frozen A only B has a gradient, optimiser state and a place among the trained tensors; the file has both.
#[test]
fn a_frozen_a_is_saved_and_not_trained() {
    let spec = LoraSpec { freeze_a: true, ..LoraSpec::default() };
    let model = fresh(&Relative { name: "", base: "tiny-llama", spec: spec.clone() }, Kind::Float);
    assert!(model.params().trainable().count() > 0 && model.params().trainable().all(|p| p.name.contains("lora_B")));
    assert_eq!(model.params().adapter(0).count(), 2 * model.params().trainable().count());
    // The gradient of B is that beside a trained A.
    let both =
        fresh(&Relative { name: "", base: "tiny-llama", spec: LoraSpec { freeze_a: false, ..spec } }, Kind::Float);
    let values: BTreeMap<&str, &Tensor> = model.params().adapter(0).map(|p| (p.name.as_str(), &p.tensor)).collect();
    both.params().adapter(0).for_each(|p| tch::no_grad(|| p.tensor.shallow_clone().copy_(values[p.name.as_str()])));
    let row = Row::pack(&[Sequence::random(20, 500, 1)]);
    let gradients = [&model, &both].map(|m| {
        m.learn(&row, row.items, LayerReplay::None).unwrap();
        take_gradients(m)
    });
    for (name, g) in &gradients[0] {
        assert_same(name, g, &gradients[1][name]);
    }
}

/// A bias behind B has no place in a model whose layers have none: merging says so, and the adapter works unmerged.
#[test]
fn a_bias_behind_b_is_merged_only_where_the_layer_has_a_bias() {
    let spec = LoraSpec { rank: 2, bias: true, targets: names(&["q_proj"]), ..LoraSpec::default() };
    let relative = Relative { name: "", base: "tiny-llama", spec };
    let model = trained(&relative, Kind::Float);
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("adapter");
    let report = export::save_adapter(&model, "a", &AdapterSpec::Lora(relative.spec), &fixture("tiny-llama"), &folder);
    assert_eq!(report.unwrap().verdict, ExportVerdict::Passed);
    let part = WeightedAdapter::read(&folder, 1.0).unwrap();
    let e = merge::adapters::merge_into_model(&fixture("tiny-llama"), &[part], &out.path().join("m"), None, u64::MAX)
        .unwrap_err();
    assert!(e.message().contains("q_proj.bias") && e.to_string().contains("without merging"), "{e}");
}

#[test]
fn a_kind_describes_its_relatives() {
    let dora = LoraSpec { dora: true, ..LoraSpec::default() };
    assert_eq!((dora.describe().as_str(), dora.title()), ("dora r16", "DoRA"));
    assert!(dora.activations().scaled_outputs && !LoraSpec::default().activations().scaled_outputs);
    assert!(!dora.is_gradient_exact() && LoraSpec::default().is_gradient_exact());
    let pissa = LoraSpec { init: LoraInit::Pissa, ..LoraSpec::default() };
    assert_eq!(pissa.activations().rank, 32);
}
