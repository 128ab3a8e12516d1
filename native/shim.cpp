// C interface to parts of libtorch that tch does not bind: custom autograd nodes, backward from given gradients, the
// fused optimiser, generator state, GPU memory and packed flash attention. Uses no CUDA headers: on a GPU the same
// calls reach libtorch_cuda through the dispatcher.
//
// Convention: a function returns 0 or a pointer on success, and -1 or nullptr on failure; ft_error() then returns the
// message. Tensors are passed as at::Tensor*; the caller owns a returned tensor.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

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
int ft_fused_adamw(Tensor** p, Tensor** g, Tensor** m, Tensor** v, Tensor** step, int n, double lr, double b1,
                   double b2, double decay, double eps) {
  GUARD(-1,
    at::NoGradGuard no_grad;
    at::_fused_adamw_(list(p, n), list(g, n), list(m, n), list(v, n), {}, list(step, n), lr, b1, b2, decay, eps, false, false);
    // The fused operation does not increase the parameters' version counters, by which casts cached for decoding
    // notice changes.
    for (int i = 0; i < n; i++) p[i]->unsafeGetTensorImpl()->bump_version();
    return 0;)
}

Tensor* ft_global_norm(Tensor** g, int n) {
  GUARD(nullptr,
    at::NoGradGuard no_grad;
    return new Tensor(at::linalg_vector_norm(at::stack(at::_foreach_norm(list(g, n))), 2));)
}

int ft_scale(Tensor** g, int n, Tensor* by) {
  GUARD(-1, at::NoGradGuard no_grad; at::_foreach_mul_(list(g, n), *by); return 0;)
}

// Removes the gradients, so that the next backward stores new ones instead of adding to zeros.
int ft_drop_gradients(Tensor** p, int n) {
  GUARD(-1, for (int i = 0; i < n; i++) p[i]->mutable_grad() = Tensor(); return 0;)
}

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

// ---------------------------------------------------------------- attention on CUDA
// Causal attention over packed rows: q (T, H, E), k and v (T, K, E), cu int32 (S + 1) -> (T, H, E). From compute
// capability 8.0, in half precision, E a multiple of 8 up to 256; differentiable.
Tensor* ft_flash_varlen(Tensor* q, Tensor* k, Tensor* v, Tensor* cu, int64_t longest, double scale) {
  GUARD(nullptr,
    auto r = at::_flash_attention_forward(*q, *k, *v, *cu, *cu, longest, longest, 0.0, true, false, scale);
    return new Tensor(std::get<0>(r));)
}

// The kernel's name for a causal mask whose first row sees the first key (sdp::CustomMaskType).
static const int64_t causal_from_top_left = 1;

// The same by the memory-efficient kernel, with as many heads of keys as of queries: q, k, v (1, T, H, E), E a multiple
// of 8; float32, float16 and, from compute capability 8.0, bfloat16. Not recorded for a backward.
// out: result (1, T, H, E); log-sum-exp (S, H, longest rounded up to 32), or nullptr without `with_lse`.
int ft_efficient_varlen(Tensor* q, Tensor* k, Tensor* v, Tensor* cu, int64_t longest, double scale, int with_lse,
                        Tensor** out) {
  GUARD(-1,
    at::NoGradGuard no_grad;
    auto r = at::_efficient_attention_forward(*q, *k, *v, {}, *cu, *cu, longest, longest, 0.0, causal_from_top_left,
                                              with_lse != 0, scale);
    out[0] = new Tensor(std::get<0>(r));
    out[1] = with_lse ? new Tensor(std::get<1>(r)) : nullptr;
    return 0;)
}

// Its backward: the gradients of q, k and v, (1, T, H, E) each, from that of the result.
int ft_efficient_varlen_backward(Tensor* g, Tensor* q, Tensor* k, Tensor* v, Tensor* result, Tensor* lse, Tensor* cu,
                                 int64_t longest, double scale, Tensor** out) {
  GUARD(-1,
    at::NoGradGuard no_grad;
    Tensor unread = at::empty({}, q->options().dtype(at::kLong));  // seed and offset of the dropout that there is not
    auto r = at::_efficient_attention_backward(*g, *q, *k, *v, {}, *result, *cu, *cu, longest, longest, *lse, 0.0,
                                               unread, unread, causal_from_top_left, false, scale);
    out[0] = new Tensor(std::get<0>(r));
    out[1] = new Tensor(std::get<1>(r));
    out[2] = new Tensor(std::get<2>(r));
    return 0;)
}
}
