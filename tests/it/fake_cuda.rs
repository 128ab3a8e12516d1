//! Tests the fake CUDA device of tests/fake_cuda itself: it computes what the CPU computes, refuses what a GPU refuses,
//! and counts.

use crate::support::fake_cuda::{self, Counts, counts, inside, reset, run_inside};
use crate::support::{assert_same, assert_within};
use ft::native;
use tch::{Device, Kind, Tensor};

const CPU: Device = Device::Cpu;
const FIRST: Device = Device::Cuda(0);
const SECOND: Device = Device::Cuda(1);

/// Returns the message of the panic with which tch reports an error of libtorch.
#[track_caller]
fn refusal(operation: impl FnOnce() -> Result<Tensor, tch::TchError>) -> String {
    operation().expect_err("the operation must be refused").to_string()
}

/// Computes what training and decoding need, on one device.
fn results(device: Device) -> Vec<(&'static str, Tensor)> {
    let numbers = |shape: &[i64], name: &str| crate::support::noise(shape, name).to_device(device);
    let ids = Tensor::from_slice(&[3i64, 0, 5, 3]).to_device(device);
    let (a, b) = (numbers(&[6, 8], "a"), numbers(&[8, 6], "b"));
    let filled = a.copy();
    let _ = filled.narrow(0, 1, 2).fill_(2.0).select(1, 3).f_add_scalar_(1.0).unwrap();
    let mut scattered = Tensor::zeros([6, 8], (Kind::Float, device));
    let _ = scattered.index_add_(0, &ids, &a.narrow(0, 0, 4));
    let mut put = a.copy();
    let _ = put.index_put_(&[Some(ids.shallow_clone())], &a.narrow(0, 0, 4), false);
    let (top, places) = a.topk(3, 1, true, true);
    let half = a.to_kind(Kind::BFloat16);
    vec![
        ("matmul", a.matmul(&b)),
        ("matmul in bfloat16", half.matmul(&b.to_kind(Kind::BFloat16))),
        ("broadcast", &a + b.sum_dim_intlist([1i64].as_slice(), false, Kind::Float)),
        ("in place through views", filled),
        ("cat and stack", Tensor::cat(&[a.view([-1]), Tensor::stack(&[&a, &a], 0).view([-1])], 0)),
        ("index_select", a.index_select(0, &ids)),
        ("index", a.index(&[Some(ids.shallow_clone())])),
        ("index_add_", scattered),
        ("index_put_", put),
        ("gather", a.gather(1, &places, false)),
        ("topk", top),
        ("sort", a.sort(1, true).1),
        ("cumsum", a.cumsum(0, Kind::Float)),
        ("masked_fill", a.masked_fill(&a.gt(0.3), -1.0)),
        ("where", a.where_self(&a.gt(0.1), &(&a * 2))),
        ("nonzero", a.gt(0.2).nonzero()),
        ("masked_select", a.masked_select(&a.gt(0.4))),
        ("embedding", Tensor::embedding(&a, &ids, -1, false, false)),
        ("softmax", a.softmax(-1, Kind::Float)),
        ("log_softmax of bfloat16 in float32", half.log_softmax(-1, Kind::Float)),
        ("logsumexp", a.logsumexp([-1i64].as_slice(), true)),
        ("silu", a.silu()),
        ("gelu", half.gelu("tanh")),
        ("layer_norm", a.layer_norm([8], None::<&Tensor>, None::<&Tensor>, 1e-5, false)),
        (
            "cross entropy",
            a.cross_entropy_loss(&places.select(1, 0).contiguous(), None::<&Tensor>, tch::Reduction::Sum, -100, 0.0),
        ),
        ("norm", a.norm()),
        ("transposed, made contiguous", a.transpose(0, 1).contiguous()),
        ("to float64 and back", (a.to_kind(Kind::Double) / 3.0).to_kind(Kind::Float)),
        ("triu", Tensor::ones([5, 5], (Kind::Bool, device)).triu(1)),
        ("arange", Tensor::arange(7, (Kind::Int64, device))),
    ]
}

#[test]
fn operations_have_the_bits_of_the_cpu() {
    if !inside("fake_cuda::operations_have_the_bits_of_the_cpu", &[]) {
        return;
    }
    let (ours, theirs) = (results(FIRST), results(CPU));
    for ((name, ours), (_, theirs)) in ours.iter().zip(&theirs) {
        assert_eq!(ours.device(), FIRST, "{name}");
        assert_same(name, &ours.to_device(CPU), theirs);
    }
    // A random operation draws the same numbers after the same seed.
    for device in [CPU, FIRST] {
        tch::manual_seed(7);
        let drawn = Tensor::randn([3, 3], (Kind::Float, device)).to_device(CPU);
        tch::manual_seed(7);
        assert_same("randn", &drawn, &Tensor::randn([3, 3], (Kind::Float, CPU)));
    }
}

#[test]
fn gradients_have_the_bits_of_the_cpu() {
    if !inside("fake_cuda::gradients_have_the_bits_of_the_cpu", &[]) {
        return;
    }
    let gradients = |device: Device| {
        let leaf =
            |shape: &[i64], name: &str| crate::support::noise(shape, name).to_device(device).set_requires_grad(true);
        let (table, up, down) = (leaf(&[11, 6], "table"), leaf(&[6, 9], "up"), leaf(&[9, 11], "down"));
        let ids = Tensor::from_slice(&[1i64, 4, 4, 9, 0]).to_device(device);
        let x = Tensor::embedding(&table, &ids, -1, false, false);
        let logits = x.layer_norm([6], None::<&Tensor>, None::<&Tensor>, 1e-5, false).matmul(&up).silu().matmul(&down);
        let loss = logits.cross_entropy_loss(&ids, None::<&Tensor>, tch::Reduction::Mean, -100, 0.0);
        loss.backward();
        [loss.detach(), table.grad(), up.grad(), down.grad()].map(|t| t.to_device(CPU))
    };
    for (ours, theirs) in gradients(FIRST).iter().zip(&gradients(CPU)) {
        assert_same("gradient", ours, theirs);
    }
}

#[test]
fn tensors_of_different_devices_do_not_mix() {
    if !inside("fake_cuda::tensors_of_different_devices_do_not_mix", &[]) {
        return;
    }
    assert_eq!(tch::Cuda::device_count(), 2);
    let here = Tensor::ones([4, 6], (Kind::Float, FIRST));
    let (there, host) = (here.to_device(SECOND), here.to_device(CPU));
    assert_eq!(there.device(), SECOND);
    let ids = Tensor::from_slice(&[1i64]);
    let expected = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and ";
    for (text, other) in [
        (refusal(|| here.f_add(&host)), "cpu"),
        (refusal(|| here.f_add(&there)), "cuda:1"),
        (refusal(|| here.f_matmul(&there.transpose(0, 1))), "cuda:1"),
        (refusal(|| here.f_index_select(0, &ids)), "cpu"),
        (refusal(|| Tensor::f_embedding(&here, &ids, -1, false, false)), "cpu"),
        (refusal(|| Tensor::f_cat(&[&here, &there], 0)), "cuda:1"),
    ] {
        assert!(text.contains(expected) && text.contains(&format!("{expected}{other}")), "{text}");
    }
    // A number of the CPU may be used in pointwise operations, and indices of the CPU are uploaded.
    assert_same("a number", &(&here * Tensor::from(2.0f32)).to_device(CPU), &(&host * 2.0));
    reset();
    assert_same("indices", &here.index(&[Some(ids)]).to_device(CPU), &host.narrow(0, 1, 1));
    assert_eq!((counts().uploads, counts().waits), (1, 2));
}

#[test]
fn devices_have_separate_memory() {
    if !inside("fake_cuda::devices_have_separate_memory", &[("FAKE_CUDA_MEMORY", "67108864")]) {
        return;
    }
    let mib = 1 << 20;
    let make = |bytes: i64, device| Tensor::f_zeros([bytes], (Kind::Uint8, device));
    let whole = [make(60 * mib, FIRST).unwrap(), make(60 * mib, SECOND).unwrap()];
    for device in [FIRST, SECOND] {
        assert!(native::memory(device).unwrap().peak >= 60 * mib as u64);
    }
    let Device::Cuda(second) = SECOND else { unreachable!() };
    assert_eq!(native::cuda_capacity(second).unwrap(), (4 * mib as u64, 64 * mib as u64));
    let text = refusal(|| make(5 * mib, SECOND));
    assert!(text.contains("CUDA out of memory. Tried to allocate 5.00 MiB. GPU 1"), "{text}");
    drop(whole);
    // What was allocated stays reserved, and counts as free because it can be used again.
    assert_eq!(native::cuda_capacity(second).unwrap(), (64 * mib as u64, 64 * mib as u64));
    drop(make(62 * mib, SECOND).unwrap());
}

#[test]
fn new_memory_is_not_a_number() {
    if !inside("fake_cuda::new_memory_is_not_a_number", &[]) {
        return;
    }
    let fresh = Tensor::empty([100], (Kind::Float, FIRST));
    assert_eq!(fresh.isnan().all().int64_value(&[]), 1);
}

#[test]
fn host_code_that_reads_device_memory_dies() {
    let name = "fake_cuda::host_code_that_reads_device_memory_dies";
    let Some(output) = run_inside(name, &[]) else {
        let there = Tensor::ones([4], (Kind::Float, FIRST));
        // SAFETY: this is what must fail.
        let read = unsafe { *(there.data_ptr() as *const f32) };
        panic!("device memory was read: {read}");
    };
    let text = String::from_utf8_lossy(&output.stderr);
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{text}");
    assert!(text.contains("host code touched the memory of cuda:0") && text.contains("host_code_that_reads"), "{text}");
}

#[test]
fn a_hidden_device_is_not_there() {
    if !inside("fake_cuda::a_hidden_device_is_not_there", &[("CUDA_VISIBLE_DEVICES", "")]) {
        return;
    }
    assert!(!tch::Cuda::is_available());
    assert_eq!(ft::models::device("auto").unwrap(), CPU);
}

#[test]
fn launches_waits_and_bytes_are_counted() {
    if !inside("fake_cuda::launches_waits_and_bytes_are_counted", &[]) {
        return;
    }
    let there = Tensor::ones([3, 3], (Kind::Float, FIRST));
    let count = |work: &dyn Fn()| {
        reset();
        work();
        counts()
    };
    let no = Counts::default();
    let seen = count(&|| drop(&there + 1.0));
    assert_eq!(seen, Counts { launches: 1, allocations: 1, ..no });
    // Views launch nothing.
    assert_eq!(count(&|| drop(there.transpose(0, 1).narrow(0, 0, 2).unsqueeze(0))), no);
    let pageable = Tensor::ones([3, 3], (Kind::Float, CPU));
    let upload = Counts { uploads: 1, upload_bytes: 36, allocations: 1, ..no };
    assert_eq!(count(&|| drop(pageable.to_device(FIRST))), Counts { waits: 1, ..upload });
    let download = Counts { downloads: 1, download_bytes: 36, ..no };
    assert_eq!(count(&|| drop(there.to_device(CPU))), Counts { waits: 1, ..download });
    assert_eq!(
        count(&|| assert_eq!(there.double_value(&[0, 0]), 1.0)),
        Counts { waits: 1, downloads: 1, download_bytes: 4, ..no }
    );
    assert_eq!(count(&|| drop(there.nonzero())).waits, 1);

    // Non-blocking copies: from pageable memory the host waits anyway.
    let to = |t: &Tensor, device| t.to_device_(device, Kind::Float, true, false);
    let pinned = pageable.pin_memory(FIRST);
    assert_eq!(count(&|| drop(to(&pageable, FIRST))), Counts { waits: 1, ..upload });
    assert_eq!(count(&|| drop(to(&pinned, FIRST))), upload);
    assert_eq!(count(&|| drop(to(&there, CPU))), download);
    // The bytes come when the host waits, not before.
    let early = to(&there, CPU);
    assert!(early.double_value(&[0, 0]).is_nan());
    tch::Cuda::synchronize(0);
    assert_eq!(early.double_value(&[0, 0]), 1.0);
}

/// Returns random queries, keys and values with gradient: (1, heads, L, E).
fn heads(heads: i64, length: i64, size: i64, kind: Kind, name: &str) -> Tensor {
    crate::support::noise(&[1, heads, length, size], name).to_kind(kind).to_device(FIRST).set_requires_grad(true)
}

/// Computes a product in FP8 in bfloat16, after `change` has changed the factors, (20, 32) and (32, 48), and their scales.
fn fp8_product(change: impl FnOnce(&mut [Tensor; 4])) -> Result<Tensor, tch::TchError> {
    let factor =
        |shape: &[i64], name: &str| crate::support::noise(shape, name).to_device(FIRST).to_kind(Kind::Float8e4m3fn);
    let scale = |x: f64| Tensor::full([1], x, (Kind::Float, FIRST));
    let mut all = [factor(&[20, 32], "a"), factor(&[48, 32], "b").tr(), scale(2.0), scale(0.25)];
    change(&mut all);
    let [a, b, scale_a, scale_b] = all;
    a.f_internal_scaled_mm(&b, &scale_a, &scale_b, None::<&Tensor>, None, Kind::BFloat16, true)
}

#[test]
fn products_of_fp8_are_those_of_their_numbers() {
    if !inside("fake_cuda::products_of_fp8_are_those_of_their_numbers", &[("FAKE_CUDA_CAPABILITY", "89")]) {
        return;
    }
    let mut factors = None;
    let mut launches = 0;
    let found = fp8_product(|all| {
        factors = Some([&all[0], &all[1]].map(|t| t.to_kind(Kind::Float)));
        reset();
    });
    launches += counts().launches;
    let [a, b] = factors.unwrap();
    assert_same("product", &found.unwrap(), &(a.matmul(&b) * 0.5).to_kind(Kind::BFloat16));
    assert_eq!(launches, 1);
    for (expected, change) in [
        (
            "divisible by 16",
            &(|all: &mut [Tensor; 4]| all[1] = all[1].narrow(1, 0, 40).tr().contiguous().tr())
                as &dyn Fn(&mut [Tensor; 4]),
        ),
        ("divisible by 16", &|all| {
            all[0] = all[0].narrow(1, 0, 24).contiguous();
            all[1] = all[1].narrow(0, 0, 24).tr().contiguous().tr();
        }),
        ("row-major and column-major", &|all| all[1] = all[1].contiguous()),
        ("row-major and column-major", &|all| all[0] = all[0].tr().contiguous().tr()),
        ("two Float8_e5m2", &|all| {
            for i in 0..2 {
                all[i] = all[i].to_kind(Kind::Float).to_kind(Kind::Float8e5m2);
            }
        }),
        ("to be Float8", &|all| all[0] = all[0].to_kind(Kind::BFloat16)),
        ("Invalid scaling", &|all| all[2] = all[2].expand([20, 1], false).contiguous()),
        ("cannot be multiplied", &|all| all[0] = all[0].narrow(1, 0, 16).contiguous()),
        ("same device", &|all| all[3] = all[3].to_device(CPU)),
    ] {
        let said = refusal(|| fp8_product(change));
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn older_devices_have_no_products_of_fp8() {
    if !inside("fake_cuda::older_devices_have_no_products_of_fp8", &[("FAKE_CUDA_CAPABILITY", "86")]) {
        return;
    }
    let said = refusal(|| fp8_product(|_| ()));
    assert!(said.contains("compute capability >= 9.0 or 8.9"), "{said}");
}

#[test]
fn attention_is_chosen_as_on_a_gpu() {
    if !inside("fake_cuda::attention_is_chosen_as_on_a_gpu", &[]) {
        return;
    }
    let (math, flash, efficient) = (0, 1, 2);
    let choice = |kind, heads_kv, size, causal| {
        let (q, k) = (heads(4, 10, size, kind, "q"), heads(heads_kv, 10, size, kind, "k"));
        Tensor::internal_fused_sdp_choice(&q, &k, &k, None::<&Tensor>, 0.0, causal, None::<f64>, heads_kv != 4)
    };
    assert_eq!(choice(Kind::BFloat16, 4, 16, true), flash);
    assert_eq!(choice(Kind::BFloat16, 2, 16, true), flash, "flash shares keys among query heads");
    assert_eq!(choice(Kind::Float, 4, 16, true), efficient);
    assert_eq!(choice(Kind::Float, 2, 16, true), math, "the efficient kernel does not");
    assert_eq!(choice(Kind::Float, 4, 6, true), math, "rows of 24 bytes");
    assert_eq!(choice(Kind::Double, 4, 16, true), math);
}

#[test]
fn older_devices_choose_other_attention() {
    if !inside("fake_cuda::older_devices_choose_other_attention", &[("FAKE_CUDA_CAPABILITY", "75")]) {
        return;
    }
    let choice =
        |q: &Tensor| Tensor::internal_fused_sdp_choice(q, q, q, None::<&Tensor>, 0.0, true, None::<f64>, false);
    assert_eq!(choice(&heads(4, 10, 16, Kind::Half, "q")), 2);
    let q = heads(4, 10, 16, Kind::BFloat16, "q");
    assert_eq!(choice(&q), 0);
    let rows = q.detach().squeeze_dim(0).transpose(0, 1).contiguous();
    let bounds = Tensor::from_slice(&[0i32, 10]).to_device(FIRST);
    let error = native::flash_varlen([&rows; 3], &bounds, 10, None, 1.0).unwrap_err().to_string();
    assert!(error.contains("FlashAttention only supports Ampere GPUs or newer."), "{error}");
}

#[test]
fn fused_attention_is_one_launch_and_equals_its_formula() {
    if !inside("fake_cuda::fused_attention_is_one_launch_and_equals_its_formula", &[]) {
        return;
    }
    for (kind, heads_kv, bound) in [(Kind::Float, 4, 1e-5), (Kind::BFloat16, 4, 0.03), (Kind::BFloat16, 2, 0.03)] {
        let leaves = || [(4, "q"), (heads_kv, "k"), (heads_kv, "v")].map(|(n, name)| heads(n, 37, 16, kind, name));
        let weights = crate::support::noise(&[1, 4, 37, 16], "weights").to_device(FIRST);
        let run = |[q, k, v]: &[Tensor; 3]| {
            reset();
            let out = Tensor::scaled_dot_product_attention(q, k, v, None::<&Tensor>, 0.0, true, 0.3, heads_kv != 4);
            let launches = counts().launches;
            (out.to_kind(Kind::Float) * &weights).sum(Kind::Float).backward();
            (out, launches)
        };
        let ours = leaves();
        let (out, launches) = run(&ours);
        assert_eq!(launches, 1, "{kind:?}");
        let theirs = leaves();
        let wide = |t: &Tensor| t.to_kind(Kind::Float).repeat_interleave_self_int(4 / t.size()[1], 1, None::<i64>);
        let hidden = Tensor::ones([37, 37], (Kind::Bool, FIRST)).triu(1);
        let scores = wide(&theirs[0]).matmul(&wide(&theirs[1]).transpose(2, 3)) * 0.3;
        let plain = scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, Kind::Float).matmul(&wide(&theirs[2]));
        (&plain * &weights).sum(Kind::Float).backward();
        assert_within("out", &out, &plain, bound);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_within("gradient", &ours.grad(), &theirs.grad(), bound);
        }
    }
}

#[test]
fn a_command_leaves_its_counts() {
    let space = crate::support::workspace::Workspace::new();
    let step = ["run.steps=2", "run.eval_every=0", "model.device=cuda"].iter().flat_map(|s| ["--set", s]);
    let arguments: Vec<&str> = ["train", "recipes/lora-medical.yaml"].into_iter().chain(step).collect();
    let trace = fake_cuda::ft(&space, &arguments, &[("FAKE_CUDA_STACKS", "1")]).succeeded();
    assert_eq!((trace.marks.len(), trace.operations[fake_cuda::ADAMW]), (2, 2), "{trace:?}");
    assert!(trace.marks.iter().all(|step| step.launches > 50), "{:?}", trace.marks);
    assert!(trace.waits.values().sum::<i64>() == trace.total.waits && trace.total.waits > 0, "{trace:?}");
    assert!(trace.stacks.keys().any(|stack| stack.contains("ft::train::")), "{:?}", trace.stacks);
    let largest = trace.peak.iter().max_by_key(|(_, bytes)| **bytes).unwrap();
    assert!(largest.0.contains(" < ft::") && *largest.1 > 1_000, "{largest:?}");
    assert_eq!(space.json("adapters/lora-medical/summary.json")["memory"], trace.peak.values().sum::<i64>());
    // The same folder serves FT_LIBTORCH.
    let torch = fake_cuda::library().parent().unwrap();
    let mut list = space.command(&["recipe", "list"]);
    fake_cuda::on_device(&mut list).env_remove("LD_LIBRARY_PATH").env("FT_LIBTORCH", torch);
    crate::support::command::succeed(&mut list);
}

#[test]
fn a_command_sees_the_memory_of_the_device() {
    let space = crate::support::workspace::Workspace::new();
    let arguments = ["train", "recipes/lora-medical.yaml", "--set", "model.device=cuda"];
    let run = fake_cuda::ft(&space, &arguments, &[("FAKE_CUDA_MEMORY", "6000000")]);
    assert_eq!(run.output.status.code(), Some(1), "{}", run.stderr());
    assert!(run.stderr().contains("of memory are needed") && run.stderr().contains("6.0 MB"), "{}", run.stderr());
}
