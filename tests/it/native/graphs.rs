//! Recorded work (CUDA graphs) on the fake device of tests/fake_cuda: nothing is computed until it is launched, inputs are those of
//! that moment, and what a GPU cannot record is refused.

use crate::support::fake_cuda;
use crate::support::{assert_same, noise};
use ft::native::{self, Graph, OwnStream};
use tch::{Device, Kind, TchError, Tensor};

const GPU: Device = Device::Cuda(0);

fn on_gpu(shape: &[i64], name: &str) -> Tensor {
    noise(shape, name).to_device(GPU)
}

fn host(t: &Tensor) -> Tensor {
    t.to_device(Device::Cpu)
}

/// Records work of which nothing fails.
fn record<R>(f: impl FnOnce() -> R) -> (Graph, R) {
    Graph::record::<R, TchError>(GPU, None, || Ok(f())).unwrap()
}

#[test]
fn work_is_done_when_it_is_launched() {
    if !fake_cuda::inside("native::graphs::work_is_done_when_it_is_launched", &[]) {
        return;
    }
    let _stream = OwnStream::begin(GPU).unwrap();
    let (mut x, w) = (on_gpu(&[6, 8], "x"), on_gpu(&[8, 6], "w"));
    let mut sum = Tensor::zeros([6, 6], (Kind::Float, GPU));
    let _ = x.matmul(&w); // the buffer of products exists from now on
    let (graph, y) = record(|| {
        let y = x.matmul(&w).silu();
        sum += &y;
        y
    });
    assert_eq!(host(&y).isnan().sum(Kind::Int64), Tensor::from(36i64), "nothing is computed while work is recorded");
    assert_eq!(host(&sum).abs().sum(Kind::Float).double_value(&[]), 0.0, "nor written");
    let mut expected = Tensor::zeros([6, 6], (Kind::Float, Device::Cpu));
    for name in ["x", "another x", "x"] {
        x.copy_(&on_gpu(&[6, 8], name));
        fake_cuda::reset();
        graph.replay().unwrap();
        let counts = fake_cuda::counts();
        assert_eq!((counts.launches, counts.waits, counts.allocations), (1, 0, 0));
        let result = noise(&[6, 8], name).matmul(&host(&w)).silu();
        expected += &result;
        assert_same(name, &host(&y), &result);
    }
    assert_same("the sum of all launches", &host(&sum), &expected);
}

#[test]
fn gradients_can_be_recorded() {
    if !fake_cuda::inside("native::graphs::gradients_can_be_recorded", &[]) {
        return;
    }
    let _stream = OwnStream::begin(GPU).unwrap();
    let gradient = |leaf: &Tensor, x: &Tensor| {
        let loss = x.matmul(leaf).silu().sum(Kind::Float);
        native::backward(&[&loss], &[&loss.ones_like()]).unwrap();
    };
    let (leaf, mut x) = (on_gpu(&[8, 6], "leaf").set_requires_grad(true), on_gpu(&[6, 8], "x"));
    gradient(&leaf, &x); // the leaf has a gradient, to which later passes add
    let (graph, ()) = record(|| gradient(&leaf, &x));
    x.copy_(&on_gpu(&[6, 8], "another x"));
    graph.replay().unwrap();
    graph.replay().unwrap();
    let theirs = host(&leaf.detach()).set_requires_grad(true);
    for name in ["x", "another x", "another x"] {
        gradient(&theirs, &noise(&[6, 8], name));
    }
    assert_same("the sum of three gradients", &host(&leaf.grad()), &theirs.grad());
}

#[test]
fn recorded_work_keeps_its_memory() {
    if !fake_cuda::inside("native::graphs::recorded_work_keeps_its_memory", &[]) {
        return;
    }
    let _stream = OwnStream::begin(GPU).unwrap();
    let x = on_gpu(&[512, 512], "x");
    let live = || native::memory(GPU).unwrap().live;
    let before = live();
    let (first, y) = record(|| (&x * 2.0).silu().sum(Kind::Float));
    // The temporary tensors of 1 MiB are free, but nobody else gets their memory.
    let others: Vec<Tensor> = (0..8).map(|i| on_gpu(&[512, 512], &format!("{i}"))).collect();
    first.replay().unwrap();
    for (i, other) in others.iter().enumerate() {
        assert_same("memory of others", &host(other), &noise(&[512, 512], &format!("{i}")));
    }
    let expected = (noise(&[512, 512], "x") * 2.0).silu().sum(Kind::Float);
    assert_same("result", &host(&y), &expected);
    // A second recording may use the same memory for what is not alive: only its result is new.
    let shared = Some(first.memory().unwrap());
    let allocated = live();
    let (second, z) = Graph::record::<_, TchError>(GPU, shared, || Ok((&x * 3.0).silu().sum(Kind::Float))).unwrap();
    assert_eq!(live() - allocated, 512, "a number takes the smallest block");
    second.replay().unwrap();
    first.replay().unwrap();
    assert_same("first result", &host(&y), &expected);
    assert_same("second result", &host(&z), &(noise(&[512, 512], "x") * 3.0).silu().sum(Kind::Float));
    drop((first, second, y, z, others));
    assert_eq!(live(), before);
}

#[test]
fn what_a_gpu_cannot_record_is_refused() {
    if !fake_cuda::inside("native::graphs::what_a_gpu_cannot_record_is_refused", &[]) {
        return;
    }
    let x = on_gpu(&[4, 4], "x");
    let refusal = |f: &dyn Fn() -> Result<Tensor, TchError>| match Graph::record(GPU, None, f) {
        Ok(_) => panic!("this cannot be recorded"),
        Err(e) => e.to_string(),
    };
    let message = refusal(&|| Ok(&x * 2.0));
    assert!(message.contains("non-default stream"), "{message}");
    // The backward of a view that was made on another stream belongs to that stream.
    let leaf = on_gpu(&[4, 4], "leaf").set_requires_grad(true);
    let view = leaf.tr();
    let _stream = OwnStream::begin(GPU).unwrap();
    let backward = || {
        let loss = x.matmul(&view).sum(Kind::Float);
        native::backward(&[&loss], &[&loss.ones_like()])?;
        Ok(loss)
    };
    let works: [(&str, &dyn Fn() -> Result<Tensor, TchError>); 6] = [
        ("a backward on another stream", &backward),
        ("a number that the host reads", &|| x.sum(Kind::Float).f_double_value(&[]).map(Tensor::from)),
        ("a size that the host must know", &|| x.gt(0.0).f_nonzero()),
        ("a copy to the host", &|| x.f_to_device(Device::Cpu)),
        ("a copy from the host", &|| Tensor::ones([3], (Kind::Float, Device::Cpu)).f_to_device(GPU)),
        ("random numbers", &|| Tensor::f_randn([3], (Kind::Float, GPU))),
    ];
    for (what, work) in works {
        let message = refusal(work);
        assert!(message.contains("not permitted when stream is capturing"), "{what}: {message}");
        // Afterwards the stream works as before.
        assert_same(what, &host(&(&x * 2.0)), &(noise(&[4, 4], "x") * 2.0));
    }
}
