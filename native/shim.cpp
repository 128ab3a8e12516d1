// C interface to parts of libtorch that tch does not bind: custom autograd nodes, backward from given gradients, the
// fused optimiser, transfers that do not wait, generator state, GPU memory, profiles and packed flash attention. Uses no
// CUDA headers: on a GPU the same calls reach libtorch_cuda through the dispatcher.
//
// Convention: a function returns 0 or a pointer on success, and -1 or nullptr on failure; ft_error() then returns the
// message. Tensors are passed as at::Tensor*; the caller owns a returned tensor.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <mutex>
#include <string>
#include <vector>

using at::Tensor;
using namespace torch::autograd;

static thread_local std::string last_error;
#define GUARD(fail, ...)                                                        \
  try { __VA_ARGS__ } catch (const std::exception& e) { last_error = e.what(); return fail; } \
  catch (...) { last_error = "unknown C++ exception"; return fail; }

static std::vector<Tensor> list(Tensor** p, int n) {
  std::vector<Tensor> v;
  v.reserve(n);
  for (int i = 0; i < n; i++) v.push_back(*p[i]);
  return v;
}

// Operations on lists do not increase the tensors' version counters, by which copies in another dtype notice changes.
static void bump_versions(Tensor** t, int n) {
  for (int i = 0; i < n; i++) t[i]->unsafeGetTensorImpl()->bump_version();
}

extern "C" {

const char* ft_error() { return last_error.c_str(); }

// Sets the message of a backward closure that fails.
void ft_set_error(const char* message) { last_error = message; }

// ---------------------------------------------------------------- autograd
typedef int (*backward_fn)(void* ctx, Tensor** grads, int n_grads, Tensor** out, int n_out);
typedef void (*drop_fn)(void* ctx);
}

// A node of the graph whose backward is a Rust closure.
struct RustNode : public Node {
  backward_fn run;
  drop_fn drop;
  void* ctx;
  size_t n_inputs;
  variable_list apply(variable_list&& grads) override {
    std::vector<Tensor*> in, out(n_inputs, nullptr);
    for (auto& g : grads) in.push_back(g.defined() ? new Tensor(g) : nullptr);
    grads.clear();
    TORCH_CHECK(ctx, "backward through a graph that was already freed");
    int rc = run(ctx, in.data(), (int)in.size(), out.data(), (int)n_inputs);
    variable_list result;
    for (auto* p : out) {
      if (p) { result.push_back(std::move(*p)); delete p; } else result.emplace_back();
    }
    TORCH_CHECK(rc == 0, last_error);
    return result;
  }
  void release_variables() override { if (ctx) { drop(ctx); ctx = nullptr; } }
  ~RustNode() override { release_variables(); }
  std::string name() const override { return "RustBackward"; }
};

extern "C" {

// Adds `outs` (new tensors, computed without gradient) to the graph as results of `ins`, with `run` as their
// backward. Takes ownership of ctx.
int ft_attach(Tensor** ins, int n_ins, Tensor** outs, int n_outs, backward_fn run, drop_fn drop, void* ctx) {
  GUARD(-1,
    auto inputs = list(ins, n_ins);
    auto node = std::shared_ptr<RustNode>(new RustNode(), deleteNode);
    node->run = run; node->drop = drop; node->ctx = ctx; node->n_inputs = n_ins;
    node->set_next_edges(collect_next_edges(inputs));
    for (int i = 0; i < n_outs; i++) set_history(*outs[i], node);
    return 0;)
}

// Runs the backward from `outs` with the given gradients; accumulates into the leaves' .grad.
int ft_backward(Tensor** outs, Tensor** grads, int n) {
  GUARD(-1,
    edge_list roots;
    variable_list given;
    for (int i = 0; i < n; i++) { roots.push_back(impl::gradient_edge(*outs[i])); given.push_back(*grads[i]); }
    Engine::get_default_engine().execute(roots, given, false, false, true, {});
    return 0;)
}

// ---------------------------------------------------------------- optimiser
// skip: a float32 scalar on the parameters' device, or null; where it is 1, nothing is changed.
int ft_fused_adamw(Tensor** p, Tensor** g, Tensor** m, Tensor** v, Tensor** step, int n, double lr, double b1,
                   double b2, double decay, double eps, Tensor* skip) {
  GUARD(-1,
    at::NoGradGuard no_grad;
    std::optional<Tensor> found_inf;
    if (skip) found_inf = *skip;
    at::_fused_adamw_(list(p, n), list(g, n), list(m, n), list(v, n), {}, list(step, n), lr, b1, b2, decay, eps, false, false, {}, found_inf);
    bump_versions(p, n);
    return 0;)
}

Tensor* ft_global_norm(Tensor** g, int n) {
  GUARD(nullptr,
    at::NoGradGuard no_grad;
    return new Tensor(at::linalg_vector_norm(at::stack(at::_foreach_norm(list(g, n))), 2));)
}

int ft_scale(Tensor** g, int n, Tensor* by) {
  GUARD(-1, at::NoGradGuard no_grad; at::_foreach_mul_(list(g, n), *by); bump_versions(g, n); return 0;)
}

// Copies each tensor of `from` into that of `to`, converting its dtype.
int ft_copy_all(Tensor** to, Tensor** from, int n) {
  GUARD(-1, at::NoGradGuard no_grad; at::_foreach_copy_(list(to, n), list(from, n)); bump_versions(to, n); return 0;)
}

// Adds each tensor of `more` to that of `t`.
int ft_add_all(Tensor** t, Tensor** more, int n) {
  GUARD(-1, at::NoGradGuard no_grad; at::_foreach_add_(list(t, n), list(more, n)); bump_versions(t, n); return 0;)
}

int ft_zero_all(Tensor** t, int n) {
  GUARD(-1, at::NoGradGuard no_grad; at::_foreach_zero_(list(t, n)); bump_versions(t, n); return 0;)
}

// Subtracts each tensor of `by` from that of `t`.
int ft_subtract_all(Tensor** t, Tensor** by, int n) {
  GUARD(-1, at::NoGradGuard no_grad; at::_foreach_sub_(list(t, n), list(by, n)); bump_versions(t, n); return 0;)
}

// Adds `g` to the gradient of a leaf; without one, `g` becomes it.
int ft_add_gradient(Tensor* leaf, Tensor* g) {
  GUARD(-1,
    at::NoGradGuard no_grad;
    TORCH_CHECK(leaf->is_leaf() && leaf->sizes() == g->sizes() && leaf->scalar_type() == g->scalar_type() &&
                leaf->device() == g->device(), "a gradient of another shape, dtype or device than its leaf");
    Tensor& sum = leaf->mutable_grad();
    if (sum.defined()) sum.add_(*g); else sum = g->detach();
    return 0;)
}

// Removes the gradients, so that the next backward stores new ones instead of adding to zeros.
int ft_drop_gradients(Tensor** p, int n) {
  GUARD(-1, for (int i = 0; i < n; i++) p[i]->mutable_grad() = Tensor(); return 0;)
}

// 1 if the tensor, or the leaf that it is a recorded view of, requires a gradient. A view itself goes on requiring one when
// its leaf no longer does.
int ft_learns(Tensor* t) {
  GUARD(-1, return (t->is_leaf() || !t->is_view() ? t->requires_grad() : t->_base().requires_grad()) ? 1 : 0;)
}

// ---------------------------------------------------------------- products on CUDA
// sum = keep sum + factor a b: a float32 matrix, and matrices in float32 or half precision. With keep 0, sum is not read.
int ft_wide_product(Tensor* sum, Tensor* a, Tensor* b, double keep, double factor) {
  GUARD(-1,
    at::NoGradGuard no_grad;
    if (a->scalar_type() == at::kFloat) at::addmm_out(*sum, *sum, *a, *b, keep, factor);
    else at::addmm_out(*sum, *sum, *a, *b, at::kFloat, keep, factor);
    return 0;)
}

// ---------------------------------------------------------------- arithmetic of the whole process
// deterministic: operations whose sums have no fixed order use a slower way that has one, or fail if there is none.
// tf32: factors of float32 products may be rounded to 10 bits of mantissa on a GPU.
int ft_set_arithmetic(int deterministic, int tf32) {
  GUARD(-1,
    at::globalContext().setDeterministicAlgorithms(deterministic != 0, /*warn_only=*/false);
    at::globalContext().setDeterministicFillUninitializedMemory(false);
    at::globalContext().setAllowTF32CuBLAS(tf32 != 0);
    return 0;)
}

// out: the two settings in use.
int ft_arithmetic(int* out) {
  GUARD(-1,
    out[0] = at::globalContext().deterministicAlgorithms();
    out[1] = at::globalContext().allowTF32CuBLAS();
    return 0;)
}

// ---------------------------------------------------------------- transfers
// Copies contiguous CPU tensors to a CUDA device in one transfer, through page-locked memory, which libtorch keeps until
// the copy is done. Does not wait. out: the copies, views of one buffer.
int ft_upload(Tensor** t, int n, int index, Tensor** out) {
  GUARD(-1,
    at::NoGradGuard no_grad;
    const int64_t step = 16;  // the alignment of vectorised loads
    int64_t bytes = 0;
    for (int i = 0; i < n; i++) bytes += (t[i]->nbytes() + step - 1) / step * step;
    auto pinned = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
    int64_t at = 0;
    for (int i = 0; i < n; i++) {
      pinned.narrow(0, at, t[i]->nbytes()).view(t[i]->scalar_type()).copy_(t[i]->view({-1}));
      at += (t[i]->nbytes() + step - 1) / step * step;
    }
    auto buffer = pinned.to(at::Device(at::kCUDA, index), at::kByte, /*non_blocking=*/true);
    at = 0;
    for (int i = 0; i < n; i++) {
      out[i] = new Tensor(buffer.narrow(0, at, t[i]->nbytes()).view(t[i]->scalar_type()).view(t[i]->sizes()));
      at += (t[i]->nbytes() + step - 1) / step * step;
    }
    return 0;)
}

// A copy to page-locked memory that may be in progress.
struct Download {
  Tensor host;
  c10::Event done{at::kCUDA};
};

// Begins to copy a CUDA tensor to the host. Does not wait.
Download* ft_download(Tensor* t) {
  GUARD(nullptr,
    at::NoGradGuard no_grad;
    auto d = std::make_unique<Download>();
    d->host = t->to(at::kCPU, t->scalar_type(), /*non_blocking=*/true);
    d->done.record(c10::impl::VirtualGuardImpl(at::kCUDA).getStream(t->device()));
    return d.release();)
}

// Waits until the copy is done and returns it.
Tensor* ft_download_wait(Download* d) {
  GUARD(nullptr, d->done.synchronize(); return new Tensor(d->host);)
}

void ft_download_drop(Download* d) { delete d; }

// A contiguous CUDA tensor whose bytes lie in page-locked memory for a while. They are copied on a stream of their own,
// so that the device goes on computing.
struct HostCopy {
  Tensor host, device;  // the device's is undefined while only the host has the bytes
  c10::Event done{at::kCUDA};
};

// The stream that copies such tensors of a device.
static c10::Stream copy_stream(at::Device device) {
  static std::mutex lock;
  static std::vector<std::optional<c10::Stream>> streams(64);
  std::lock_guard<std::mutex> hold(lock);
  auto& stream = streams.at(device.index());
  if (!stream) stream = c10::impl::VirtualGuardImpl(at::kCUDA).getStreamFromGlobalPool(device);
  return *stream;
}

static c10::Stream current_stream(at::Device device) { return c10::impl::VirtualGuardImpl(at::kCUDA).getStream(device); }

// Copies between the two tensors after what the device was given so far.
static void copy_aside(HostCopy& c, Tensor& to, const Tensor& from) {
  const auto device = c.device.device();
  const auto side = copy_stream(device);
  c10::Event ready{at::kCUDA};
  ready.record(current_stream(device));
  ready.block(side);
  c10::StreamGuard guard(side);
  to.copy_(from, /*non_blocking=*/true);
  c.done.record(side);
}

// Begins to copy a tensor to the host. It must not be changed later.
HostCopy* ft_offload(Tensor* t) {
  GUARD(nullptr,
    at::NoGradGuard no_grad;
    auto c = std::make_unique<HostCopy>();
    c->device = t->detach();
    c->host = at::empty(t->sizes(), t->options().device(at::kCPU).pinned_memory(true));
    copy_aside(*c, c->host, c->device);
    return c.release();)
}

// Gives the device's memory back: what the device is given from now on waits for the copy.
int ft_offload_release(HostCopy* c) {
  GUARD(-1,
    c->done.block(current_stream(c->device.device()));
    c->device = Tensor();
    return 0;)
}

// Begins to copy it back to a device.
int ft_offload_fetch(HostCopy* c, int index) {
  GUARD(-1,
    at::NoGradGuard no_grad;
    c->device = at::empty(c->host.sizes(), c->host.options().device(at::Device(at::kCUDA, index)).pinned_memory(false));
    copy_aside(*c, c->device, c->host);
    return 0;)
}

// Returns it: what the device is given from now on waits for the copy.
Tensor* ft_offload_take(HostCopy* c) {
  GUARD(nullptr,
    c->done.block(current_stream(c->device.device()));
    return new Tensor(std::move(c->device));)
}

void ft_offload_drop(HostCopy* c) { delete c; }

// ---------------------------------------------------------------- generators
Tensor* ft_rng_get(int device_type, int index) {
  GUARD(nullptr,
    auto g = at::globalContext().defaultGenerator(at::Device(static_cast<at::DeviceType>(device_type), index));
    std::lock_guard<std::mutex> lock(g.mutex());
    return new Tensor(g.get_state());)
}

int ft_rng_set(int device_type, int index, Tensor* state) {
  GUARD(-1,
    auto g = at::globalContext().defaultGenerator(at::Device(static_cast<at::DeviceType>(device_type), index));
    std::lock_guard<std::mutex> lock(g.mutex());
    g.set_state(*state);
    return 0;)
}

// ---------------------------------------------------------------- CUDA, through the device-neutral interfaces
// The allocator knows its devices only once CUDA is initialised, which the first tensor on it does otherwise.
static c10::DeviceAllocator* cuda_allocator() {
  TORCH_CHECK(at::hasCUDA(), "no CUDA");
  at::globalContext().lazyInitDevice(at::kCUDA);
  return c10::getDeviceAllocator(at::kCUDA);
}

// out: bytes allocated now, peak of allocated bytes, bytes that can still be allocated, total bytes of the device.
// The allocator keeps freed memory for its next tensors: the driver does not call it free, but we may use it.
int ft_cuda_memory(int index, int64_t* out) {
  GUARD(-1,
    auto* a = cuda_allocator();
    auto s = a->getDeviceStats(index);
    auto m = a->getMemoryInfo(index);
    out[0] = s.allocated_bytes[0].current; out[1] = s.allocated_bytes[0].peak;
    out[2] = m.first + s.reserved_bytes[0].current - s.allocated_bytes[0].current; out[3] = m.second;
    return 0;)
}

int ft_cuda_reset_peak(int index) {
  GUARD(-1, cuda_allocator()->resetPeakStats(index); return 0;)
}

// Returns memory that the allocator keeps for its next tensors to the driver; waits for the devices.
int ft_cuda_empty_cache() {
  GUARD(-1, cuda_allocator()->emptyCache(); return 0;)
}

// out: the cudaStream_t that operations on the device are queued on.
int ft_cuda_stream(int index, void** out) {
  GUARD(-1,
    c10::impl::VirtualGuardImpl guard(at::kCUDA);
    *out = guard.getStream(at::Device(at::kCUDA, index)).native_handle();
    return 0;)
}

// ---------------------------------------------------------------- profiles
// Starts to record operations, and with `cuda` the GPU's kernels, copies and waits, in all threads of autograd.
int ft_profile_start(int cuda) {
  GUARD(-1,
    using namespace torch::profiler::impl;
    std::set<ActivityType> activities{ActivityType::CPU};
    if (cuda) activities.insert(ActivityType::CUDA);
    ProfilerConfig config(ProfilerState::KINETO);
    torch::autograd::profiler::prepareProfiler(config, activities);
    torch::autograd::profiler::enableProfiler(config, activities, {at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION});
    return 0;)
}

// Ends the record and writes it in Chrome's trace format. `path` must not exist.
int ft_profile_end(const char* path) {
  GUARD(-1, torch::autograd::profiler::disableProfiler()->save(path); return 0;)
}

// ---------------------------------------------------------------- attention on CUDA
// Causal attention over packed rows: q (T, H, E), k and v (T, K, E), cu int32 (S + 1) -> (T, H, E). From compute
// capability 8.0, in half precision, E a multiple of 8 up to 256; differentiable. A query sees the last `window` keys,
// its own included; 0: all.
Tensor* ft_flash_varlen(Tensor* q, Tensor* k, Tensor* v, Tensor* cu, int64_t longest, int64_t window, double scale) {
  GUARD(nullptr,
    std::optional<int64_t> left;  // how many keys before its own
    if (window > 0) left = window - 1;
    auto r = at::_flash_attention_forward(*q, *k, *v, *cu, *cu, longest, longest, 0.0, true, false, scale, left);
    return new Tensor(std::get<0>(r));)
}

// The kernel's name for a causal mask whose first row sees the first key (sdp::CustomMaskType).
static const int64_t causal_from_top_left = 1;

// The kernel's window counts a query's own key.
static std::optional<int64_t> window_of(int64_t window) { return window > 0 ? std::optional<int64_t>(window) : std::nullopt; }

// The same by the memory-efficient kernel, with as many heads of keys as of queries: q, k, v (1, T, H, E), E a multiple
// of 8; float32, float16 and, from compute capability 8.0, bfloat16. Not recorded for a backward. `window` as above.
// out: result (1, T, H, E); log-sum-exp (S, H, longest rounded up to 32), or nullptr without `with_lse`.
int ft_efficient_varlen(Tensor* q, Tensor* k, Tensor* v, Tensor* cu, int64_t longest, int64_t window, double scale,
                        int with_lse, Tensor** out) {
  GUARD(-1,
    at::NoGradGuard no_grad;
    auto r = at::_efficient_attention_forward(*q, *k, *v, {}, *cu, *cu, longest, longest, 0.0, causal_from_top_left,
                                              with_lse != 0, scale, {}, window_of(window));
    out[0] = new Tensor(std::get<0>(r));
    out[1] = with_lse ? new Tensor(std::get<1>(r)) : nullptr;
    return 0;)
}

// Its backward: the gradients of q, k and v, (1, T, H, E) each, from that of the result.
int ft_efficient_varlen_backward(Tensor* g, Tensor* q, Tensor* k, Tensor* v, Tensor* result, Tensor* lse, Tensor* cu,
                                 int64_t longest, int64_t window, double scale, Tensor** out) {
  GUARD(-1,
    at::NoGradGuard no_grad;
    Tensor unread = at::empty({}, q->options().dtype(at::kLong));  // seed and offset of the dropout that there is not
    auto r = at::_efficient_attention_backward(*g, *q, *k, *v, {}, *result, *cu, *cu, longest, longest, *lse, 0.0,
                                               unread, unread, causal_from_top_left, false, scale, {}, window_of(window));
    out[0] = new Tensor(std::get<0>(r));
    out[1] = new Tensor(std::get<1>(r));
    out[2] = new Tensor(std::get<2>(r));
    return 0;)
}

// Attention to cached keys: q (1, B * queries, 1, E), k and v (1, rows, 1, E). Query group b attends to rows starts[b] to
// starts[b] + held[b], without a mask. bounds (B + 1): first query of each group; starts (B + 1); held (B); all int32. With
// `seqlen_k` the memory-efficient kernel takes the end of a sequence from there and not from the next sequence's start
// (kernel_forward.h, advance_to_block). CUDA; float32 and float16 everywhere, bfloat16 from compute capability 8.0.
Tensor* ft_cached_attention(Tensor* q, Tensor* k, Tensor* v, Tensor* bounds, Tensor* starts, Tensor* held, int64_t queries,
                            double scale) {
  GUARD(nullptr,
    auto r = at::_efficient_attention_forward(*q, *k, *v, {}, *bounds, *starts, queries, queries, 0.0, 0, false, scale, *held);
    return new Tensor(std::get<0>(r));)
}
}
