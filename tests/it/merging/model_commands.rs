//! `ft merge` with mergekit's files: bytes, shards, dry runs, damaged and unlike models, full disks.

use crate::support::command::{ft, output_and_peak_memory, stderr, stdout, succeed};
use crate::support::files::write_sparse;
use crate::support::*;
use ft::models::Config;
use ft::nn::Weights;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use tch::Tensor;

/// A folder with links to the models, so that paths are short.
fn project() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["base", "one", "two", "three", "words"] {
        std::os::unix::fs::symlink(fixture("model-merges").join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn write(folder: &Path, file: &str, text: &str) {
    std::fs::write(folder.join(file), text).unwrap();
}

/// Copies a model into the project, with changed tensors.
fn copy(project: &Path, from: &str, to: &str, change: impl FnOnce(&mut std::collections::BTreeMap<String, Tensor>)) {
    std::fs::create_dir(project.join(to)).unwrap();
    let mut tensors = Weights::open(&fixture("model-merges").join(from)).unwrap().all();
    change(&mut tensors);
    save_tensors(&project.join(to).join("model.safetensors"), &tensors);
    std::fs::copy(fixture("model-merges").join(from).join("config.json"), project.join(to).join("config.json"))
        .unwrap();
}

/// Runs a merge that fails without leaving anything behind, and returns what it told.
fn refused(project: &Path, arguments: &[&str]) -> String {
    let count = || std::fs::read_dir(project).unwrap().count();
    let before = count();
    let output = ft(project, &[&["merge"], arguments].concat()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", stderr(&output));
    assert_eq!(count(), before, "something was left behind");
    stderr(&output)
}

const DARE: &str = "merge_method: dare_ties\nbase_model: base\nmodels:\n- {model: one, parameters: {weight: 0.7}}\n\
                    - {model: two, parameters: {weight: [0, 1]}}\nparameters: {density: 0.4, int8_mask: true}\n";

#[test]
fn threads_and_shards_change_no_bytes_and_dry_runs_write_nothing() {
    let project = project();
    let folder = project.path();
    write(folder, "dare.yaml", DARE);
    let run = |out: &str, threads: &str, more: &[&str]| {
        let mut command = ft(folder, &["merge", "dare.yaml", "--seed", "3", "--json", "--out", out]);
        succeed(command.args(more).env("OMP_NUM_THREADS", threads).env("RAYON_NUM_THREADS", threads))
    };
    let told = run("a", "1", &[]);
    run("b", "2", &[]);
    run("c", "1", &["--shard-size", "0.000008"]);
    let bytes = |out: &str| std::fs::read(folder.join(out).join("model.safetensors")).unwrap();
    assert_eq!(bytes("a"), bytes("b"));
    let (whole, shards) =
        (Weights::open(&folder.join("a")).unwrap().all(), Weights::open(&folder.join("c")).unwrap().all());
    assert!(!folder.join("c/model.safetensors").exists() && whole.len() > 10);
    assert!(whole.keys().eq(shards.keys()));
    whole.iter().for_each(|(name, t)| assert_same(name, t, &shards[name]));
    // A merge of sharded models is that of whole ones.
    write(
        folder,
        "shards.yaml",
        "merge_method: linear\nmodels: [{model: c, parameters: {weight: 1}}, {model: one, parameters: {weight: 1}}]\n",
    );
    write(
        folder,
        "whole.yaml",
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: one, parameters: {weight: 1}}]\n",
    );
    for name in ["shards", "whole"] {
        succeed(&mut ft(folder, &["merge", &format!("{name}.yaml"), "--out", name]));
    }
    assert_eq!(bytes("shards"), bytes("whole"));

    let report: Value = serde_json::from_str(&stdout(&told)).unwrap();
    assert_eq!((&report["verdict"], &report["merge"]["method"]), (&"passed".into(), &"dare_ties, seed 3".into()));
    let merge = &report["merge"];
    assert_eq!((merge["models"].as_array().unwrap().len(), &merge["reference"]), (2, &"base".into()));
    assert_eq!(merge["models"][0]["weight"], 0.7);
    assert_eq!(merge["layers"].as_array().unwrap().len(), 3);
    let conflicts = merge["total"]["sign_conflicts"].as_f64().unwrap();
    assert!((conflicts - 0.5).abs() < 0.05, "independent changes: {conflicts}");
    let seen = stderr(&told);
    assert!(seen.contains("`int8_mask` is ignored") && seen.contains("sign conflicts"), "{seen}");
    assert!(!seen.contains("energy kept"), "{seen}");
    let page = std::fs::read_to_string(folder.join("a/merge.html")).unwrap();
    assert!(page.contains("Cosines between models") && page.contains("differences from base"));
    assert!(folder.join("a/export_report.json").is_file() && Config::read(&folder.join("a")).is_ok());

    let count = std::fs::read_dir(folder).unwrap().count();
    let arguments = ["merge", "dare.yaml", "--seed", "3", "--dry-run", "--json", "--page", "page.html"];
    let dry: Value = serde_json::from_str(&stdout(&succeed(&mut ft(folder, &arguments)))).unwrap();
    assert_eq!(&dry, merge);
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), count + 1);
    // Another seed is another model.
    succeed(&mut ft(folder, &["merge", "dare.yaml", "--out", "d"]));
    assert_ne!(bytes("a"), bytes("d"));
}

/// Tensors of many blocks: files and reports have the same bits on one thread and on three, whatever a method measures first.
#[test]
fn blocks_on_several_threads_give_the_same_bits() {
    let project = project();
    let folder = project.path();
    for (from, to) in [("base", "large"), ("one", "large1"), ("two", "large2")] {
        copy(folder, from, to, |tensors| {
            for name in ["model.embed_tokens.weight", "lm_head.weight"] {
                // Rounded, so that many changes are equal.
                let table = (Tensor::randn([20_000, 16], (tch::Kind::Float, tch::Device::Cpu)) * 64.0).round() / 64.0;
                tensors.insert(name.into(), table);
            }
        });
        let config = std::fs::read_to_string(folder.join(to).join("config.json")).unwrap();
        let changed = config.replace("\"vocab_size\": 24", "\"vocab_size\": 20000");
        assert_ne!(config, changed);
        write(folder, &format!("{to}/config.json"), &changed);
    }
    let ties = "parameters: {density: 0.4, rescale: true}";
    for (method, parameters) in [
        ("linear", ""),
        ("slerp", "parameters: {t: 0.3}"),
        ("nuslerp", "parameters: {nuslerp_flatten: false}"),
        ("nuslerp", "parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}"),
        ("karcher", ""),
        ("task_arithmetic", ""),
        ("ties", ties),
        ("breadcrumbs_ties", "parameters: {density: 0.4, gamma: 0.1}"),
        ("dare_ties", ties),
        ("della", ties),
        ("sce", "parameters: {select_topk: 0.4}"),
        ("model_stock", "parameters: {filter_wise: true}"),
    ] {
        let two = match method {
            "slerp" | "karcher" => "base_model: large\nmodels: [{model: large}, {model: large1}]",
            _ => {
                "base_model: large\nmodels: [{model: large1, parameters: {weight: 0.6}}, \
                 {model: large2, parameters: {weight: 0.4}}]"
            }
        };
        let two = if method == "linear" { two.replace("base_model: large\n", "") } else { two.to_string() };
        write(folder, "merge.yaml", &format!("merge_method: {method}\n{two}\n{parameters}\ndtype: bfloat16\n"));
        let run = |out: &str, threads: &str| {
            let mut command = ft(folder, &["merge", "merge.yaml", "--json", "--force", "--out", out]);
            let told = succeed(command.env("OMP_NUM_THREADS", threads));
            let report: Value = serde_json::from_str(&stdout(&told)).unwrap();
            (std::fs::read(folder.join(out).join("model.safetensors")).unwrap(), report["merge"].clone())
        };
        let (one, three) = (run("a", "1"), run("b", "3"));
        assert!(one.0 == three.0, "{method} {parameters}: the files differ");
        assert_eq!(one.1, three.1, "{method} {parameters}");
    }
}

/// The layers of a stacked model are those of its sources, bit for bit, and config.json has their number.
#[test]
fn slices_are_stacked_unchanged() {
    let project = project();
    let folder = project.path();
    let text = "merge_method: passthrough\nslices:\n- sources: [{model: one, layer_range: [0, 2]}]\n\
                - sources: [{model: two, layer_range: [1, 2]}]\n";
    write(folder, "stack.yaml", text);
    let told = stderr(&succeed(&mut ft(folder, &["merge", "stack.yaml", "--out", "tall"])));
    assert!(told.contains("nothing to compare") && told.contains("3 layers"), "{told}");
    let [one, two, tall] = ["one", "two", "tall"].map(|name| Weights::open(&folder.join(name)).unwrap().all());
    let name = |layer: usize| format!("model.layers.{layer}.mlp.up_proj.weight");
    for (found, expected) in [(name(0), &one[&name(0)]), (name(1), &one[&name(1)]), (name(2), &two[&name(1)])] {
        assert_same(&found, &tall[&found], expected);
    }
    assert_same("embedding", &tall["model.embed_tokens.weight"], &one["model.embed_tokens.weight"]);
    assert_same("head", &tall["lm_head.weight"], &two["lm_head.weight"]);
    assert_eq!(Config::read(&folder.join("tall")).unwrap().num_hidden_layers, 3);
    let text = text.replace("[1, 2]", "[1, 3]");
    write(folder, "stack.yaml", &text);
    let told = refused(folder, &["stack.yaml", "--out", "x"]);
    assert!(told.contains("two: layers 1 to 2 of a slice; the model has 2"), "{told}");
}

#[test]
fn damaged_and_unlike_models_are_refused_by_name() {
    let project = project();
    let folder = project.path();
    let linear = |model: &str| {
        let text = format!(
            "merge_method: linear\nmodels: [{{model: one}}, {{model: {model}}}]\nparameters: {{weight: 0.5}}\n"
        );
        write(folder, "merge.yaml", &text);
        refused(folder, &["merge.yaml", "--out", "x"])
    };
    let down = "model.layers.1.mlp.down_proj.weight";
    copy(folder, "two", "broken", |tensors| {
        let damaged = tensors[down].copy();
        let _ = damaged.get(3).get(2).fill_(f64::NAN);
        tensors.insert(down.into(), damaged);
    });
    let told = linear("broken");
    assert!(
        told.contains(&format!("broken/model.safetensors: `{down}` has NaN or infinite values, first in row 3")),
        "{told}"
    );
    copy(folder, "two", "other", |tensors| {
        let odd = tensors.remove(down).unwrap();
        tensors.insert(down.replace("down", "don"), odd);
    });
    let told = linear("other");
    assert!(told.contains("other has no `model.layers.1.mlp.down_proj.weight`") && told.contains("don_proj"), "{told}");
    copy(folder, "two", "narrow", |tensors| {
        let odd = tensors[down].narrow(1, 0, 20).copy();
        tensors.insert(down.into(), odd);
    });
    let told = linear("narrow");
    assert!(told.contains("[16, 24] in one, [16, 20] in narrow"), "{told}");
    let told = linear("words");
    assert!(told.contains("the vocabularies differ: `tokenizer_source: base` or `union`"), "{told}");
    std::os::unix::fs::symlink(fixture("tiny-qwen2"), folder.join("qwen")).unwrap();
    let told = linear("qwen");
    assert!(told.contains("one is a llama model, qwen is a qwen2 model"), "{told}");

    write(folder, "merge.yaml", "merge_method: tyes\nmodels: [{model: one}, {model: twoo}]\nbase: one\n");
    let told = refused(folder, &["merge.yaml", "--out", "x"]);
    for part in
        ["merge.yaml:1:15: unknown choice `tyes`", "merge.yaml:2:32: `twoo`: no such folder", "unknown key `base`"]
    {
        assert!(told.contains(part), "{part}\n{told}");
    }
    write(folder, "dare.yaml", DARE);
    let told = refused(folder, &["dare.yaml"]);
    assert!(told.contains("no folder to write"), "{told}");
    let told = refused(folder, &["dare.yaml", "--out", "x", "--rank", "3"]);
    assert!(told.contains("--rank cannot be combined"), "{told}");
    let told = refused(folder, &["base", "one", "--out", "x"]);
    assert!(told.contains("one: a whole model, and no adapter") && told.contains("merge.yaml"), "{told}");
    write(folder, "della.yaml", &DARE.replace("dare_ties", "della").replace("density: 0.4", "density: 0.9"));
    let told = refused(folder, &["della.yaml", "--out", "x"]);
    assert!(told.contains("must be between 0 and 1"), "{told}");
    write(folder, "filter.yaml", &DARE.replace("{weight: 0.7}", "{weight: {filter: mlp, value: 1}}"));
    let told = refused(folder, &["filter.yaml", "--out", "x"]);
    assert!(told.contains("no `weight` for `") && told.contains("no filter fits it"), "{told}");
}

/// If some models share one weight between embedding and head, all get two, and config.json says so.
#[test]
fn tied_and_untied_heads_become_untied_ones() {
    let project = project();
    let folder = project.path();
    copy(folder, "two", "tied", |tensors| drop(tensors.remove("lm_head.weight")));
    let config = std::fs::read_to_string(folder.join("tied/config.json")).unwrap();
    write(
        folder,
        "tied/config.json",
        &config.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true"),
    );
    write(
        folder,
        "merge.yaml",
        "merge_method: linear\nmodels: [{model: tied}, {model: one}]\nparameters: {weight: 0.5}\n",
    );
    succeed(&mut ft(folder, &["merge", "merge.yaml", "--out", "out"]));
    let [tied, one, out] = ["tied", "one", "out"].map(|name| Weights::open(&folder.join(name)).unwrap().all());
    let mean = (&tied["model.embed_tokens.weight"] + &one["lm_head.weight"]) * 0.5;
    assert_close("head", &out["lm_head.weight"], &mean, 1e-6);
    assert!(!Config::read(&folder.join("out")).unwrap().tie_word_embeddings);
    write(folder, "merge.yaml", "merge_method: linear\nmodels: [{model: tied}]\nparameters: {weight: 1}\n");
    succeed(&mut ft(folder, &["merge", "merge.yaml", "--out", "still"]));
    assert!(Config::read(&folder.join("still")).unwrap().tie_word_embeddings);
}

/// A limit on the size of files stands in for a full disk: nothing is left behind, and a folder that is replaced stays.
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let project = project();
    let folder = project.path();
    write(folder, "dare.yaml", DARE);
    succeed(&mut ft(folder, &["merge", "dare.yaml", "--out", "out"]));
    let before = std::fs::read(folder.join("out/model.safetensors")).unwrap();
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let listed = names();
    for arguments in ["--out new", "--out out --force --seed 4"] {
        let ft = crate::support::command::ft_binary();
        let script = format!("ulimit -f 10; trap '' XFSZ; exec {} merge dare.yaml {arguments}", ft.display());
        let mut command = Command::new("bash");
        command.args(["-c", &script]).current_dir(folder).stdin(Stdio::null()).env("CUDA_VISIBLE_DEVICES", "");
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("File too large"), "{}", stderr(&output));
        assert_eq!(names(), listed);
    }
    assert_eq!(std::fs::read(folder.join("out/model.safetensors")).unwrap(), before);
}

/// Writes a model of zeros, whose files take no disk space: `layers` layers beside a table of `rows` rows.
fn write_zeros(folder: &Path, layers: i64, rows: i64) {
    std::fs::create_dir(folder).unwrap();
    let (width, inner) = (1024i64, 2048i64);
    let mut config: Value = ft::fsutil::read_json(&fixture("model-merges/base/config.json")).unwrap();
    for (key, value) in [
        ("hidden_size", width),
        ("intermediate_size", inner),
        ("num_hidden_layers", layers),
        ("head_dim", 256),
        ("vocab_size", rows),
    ] {
        config[key] = value.into();
    }
    config["tie_word_embeddings"] = true.into();
    ft::fsutil::write_json(&folder.join("config.json"), &config).unwrap();
    let mut shapes =
        vec![("model.embed_tokens.weight".to_string(), vec![rows, width]), ("model.norm.weight".into(), vec![width])];
    for i in 0..layers {
        for (module, shape) in [
            ("self_attn.q_proj", vec![width, width]),
            ("self_attn.k_proj", vec![width / 2, width]),
            ("self_attn.v_proj", vec![width / 2, width]),
            ("self_attn.o_proj", vec![width, width]),
            ("mlp.up_proj", vec![inner, width]),
            ("mlp.gate_proj", vec![inner, width]),
            ("mlp.down_proj", vec![width, inner]),
            ("input_layernorm", vec![width]),
            ("post_attention_layernorm", vec![width]),
        ] {
            shapes.push((format!("model.layers.{i}.{module}.weight"), shape));
        }
    }
    write_sparse(&folder.join("model.safetensors"), &shapes);
}

/// The memory of a merge is that of blocks, however many models and layers there are.
#[test]
fn memory_is_that_of_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let rows = 65536; // 128 MiB in bfloat16
    let largest = 2 * rows as u64 * 1024;
    for i in 0..4 {
        write_zeros(&folder.join(format!("short{i}")), 1, rows);
        write_zeros(&folder.join(format!("tall{i}")), 6, rows);
        write_zeros(&folder.join(format!("small{i}")), 1, 8);
    }
    let peak = |models: &str, count: usize| {
        let list: Vec<String> =
            (1..count).map(|i| format!("{{model: {models}{i}, parameters: {{weight: 1}}}}")).collect();
        let text = format!("merge_method: task_arithmetic\nbase_model: {models}0\nmodels: [{}]\n", list.join(", "));
        write(folder, "merge.yaml", &text);
        let mut command = ft(folder, &["merge", "merge.yaml", "--out", "out", "--force"]);
        let child = command.env("OMP_NUM_THREADS", "1").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (output, peak) = output_and_peak_memory(child);
        assert!(output.status.success(), "{}", stderr(&output));
        peak
    };
    let (none, two, four, tall) = (peak("small", 2), peak("short", 2), peak("short", 4), peak("tall", 4));
    println!("{two}, {four} and {tall} bytes over {none}; the largest tensor has {largest}");
    // Four models of six layers have 970 MB together. What of it the system maps for a moment differs from run to run.
    let most = two.max(four).max(tall);
    assert!(most < none + 5 * largest, "{most} bytes over {none}, and the largest tensor has {largest}");
}
