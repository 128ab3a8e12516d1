// What tch does not bind, as small as it can be: custom autograd nodes, vector-Jacobian products, the fused
// optimiser, generator state, memory accounting and packed flash attention. No CUDA headers: on a GPU the same
// calls reach libtorch_cuda through the dispatcher.
//
// Convention: a function returns 0 / a pointer on success; on failure -1 / nullptr and ft_error() says why.
// Tensors cross as at::Tensor*; a returned tensor is owned by the caller.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <mutex>
#include <string>
#include <unordered_map>
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
    TORCH_CHECK(rc == 0, "the backward closure failed");
    return result;
  }
  void release_variables() override { if (ctx) { drop(ctx); ctx = nullptr; } }
  ~RustNode() override { release_variables(); }
  std::string name() const override { return "RustBackward"; }
};

extern "C" {

// Makes `outs` (fresh, computed without gradient) depend on `ins` through `run`. Takes ownership of ctx.
int ft_attach(Tensor** ins, int n_ins, Tensor** outs, int n_outs, backward_fn run, drop_fn drop, void* ctx) {
  GUARD(-1,
    auto inputs = list(ins, n_ins);
    auto node = std::shared_ptr<RustNode>(new RustNode(), deleteNode);
    node->run = run; node->drop = drop; node->ctx = ctx; node->n_inputs = n_ins;
    node->set_next_edges(collect_next_edges(inputs));
    for (int i = 0; i < n_outs; i++) set_history(*outs[i], node);
    return 0;)
}

// Backward from `outs` with the given gradients; accumulates into the leaves' .grad.
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
// out: bytes allocated now, peak, free on the device, total on the device
int ft_cuda_memory(int index, int64_t* out) {
  GUARD(-1,
    TORCH_CHECK(at::hasCUDA(), "no CUDA");
    auto* a = c10::getDeviceAllocator(at::kCUDA);
    auto s = a->getDeviceStats(index);
    auto m = a->getMemoryInfo(index);
    out[0] = s.allocated_bytes[0].current; out[1] = s.allocated_bytes[0].peak;
    out[2] = m.first; out[3] = m.second;
    return 0;)
}

int ft_cuda_reset_peak(int index) {
  GUARD(-1, TORCH_CHECK(at::hasCUDA(), "no CUDA"); c10::getDeviceAllocator(at::kCUDA)->resetPeakStats(index); return 0;)
}

// Causal attention over packed rows: q (T, H, E), k and v (T, K, E), cu int32 (S + 1). CUDA, half precision; differentiable.
Tensor* ft_flash_varlen(Tensor* q, Tensor* k, Tensor* v, Tensor* cu, int64_t longest, double scale) {
  GUARD(nullptr,
    auto r = at::_flash_attention_forward(*q, *k, *v, *cu, *cu, longest, longest, 0.0, true, false, scale);
    return new Tensor(std::get<0>(r));)
}
}

// ---------------------------------------------------------------- CPU memory
// Counts live and peak tensor bytes, and keeps freed large blocks for reuse: a fresh 50 MB block costs its page
// faults every time otherwise.
struct CountingAllocator : public c10::Allocator {
  static constexpr size_t kLarge = 256 << 10;
  static constexpr size_t kKeep = size_t(1) << 30;  // cached blocks beyond this go back to the system
  std::mutex lock;
  std::unordered_map<size_t, std::vector<void*>> free_blocks;
  std::unordered_map<void*, size_t> size_of;
  int64_t live = 0, peak = 0;
  size_t cached = 0;

  // Sizes in steps of a sixteenth of their magnitude, so that near-equal requests share blocks.
  static size_t round(size_t n) {
    if (n < kLarge) return n;
    size_t step = 1;
    while ((step << 4) < n) step <<= 1;
    return (n + step - 1) / step * step;
  }
  void* get(size_t n) {
    if (n == 0) return nullptr;
    size_t r = round(n);
    {
      std::lock_guard<std::mutex> l(lock);
      live += r;
      if (live > peak) peak = live;
      if (r >= kLarge) {
        auto& blocks = free_blocks[r];
        if (!blocks.empty()) {
          void* p = blocks.back();
          blocks.pop_back();
          cached -= r;
          size_of[p] = r;
          return p;
        }
      }
    }
    void* p = c10::alloc_cpu(r);
    std::lock_guard<std::mutex> l(lock);
    size_of[p] = r;
    return p;
  }
  void put(void* p) {
    if (!p) return;
    {
      std::lock_guard<std::mutex> l(lock);
      auto it = size_of.find(p);
      size_t r = it->second;
      size_of.erase(it);
      live -= r;
      if (r >= kLarge && cached + r <= kKeep) {
        free_blocks[r].push_back(p);
        cached += r;
        return;
      }
    }
    c10::free_cpu(p);
  }
  static CountingAllocator& instance() { static auto* a = new CountingAllocator(); return *a; }
  static void drop(void* p) { instance().put(p); }
  c10::DataPtr allocate(size_t n) override {
    void* p = get(n);
    return {p, p, &drop, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &drop; }
  void copy_data(void* to, const void* from, std::size_t n) const override { default_copy_data(to, from, n); }
};

extern "C" {
void ft_cpu_allocator_install() { c10::SetCPUAllocator(&CountingAllocator::instance(), 100); }
// out: live bytes, peak bytes
void ft_cpu_memory(int64_t* out, int reset_peak) {
  auto& a = CountingAllocator::instance();
  std::lock_guard<std::mutex> l(a.lock);
  out[0] = a.live; out[1] = a.peak;
  if (reset_peak) a.peak = a.live;
}
}
