// Fused attention: flash and memory-efficient, dense and over packed rows, each one launch, with the demands that the
// real kernels make on dtype, head size, alignment and compute capability. The result is the plain formula in float32,
// segment by segment.
#include "captured.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <torch/library.h>

#include <cmath>

namespace fake {
namespace {
using c10::SymInt;
using MaybeTensor = std::optional<Tensor>;

bool is_half(const Tensor& t) { return t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16; }
double scale_of(const Tensor& q, std::optional<double> scale) {
  return scale.value_or(1 / std::sqrt(double(q.size(-1))));
}
void no_dropout(double p) { TORCH_CHECK(p == 0, "fake CUDA: fused attention has no dropout here"); }

// ---- the formula
struct Rows {
  int64_t from, to;
};
// One independent part: rows of the queries and of the keys, and its bias (H, rows, keys), if any.
struct Segment {
  Rows q, k;
  Tensor bias;
  int64_t rows() const { return q.to - q.from; }
  int64_t keys() const { return k.to - k.from; }
};
// Which keys a query sees: all; those up to its own place, where both are counted from the first or both from the last.
enum Mask { kNoMask, kCausalFromTopLeft, kCausalFromBottomRight };

// All tensors of a call as rows on the CPU: q, out (T, H, E); k, v (T, K, E).
struct Attention {
  Tensor q, k, v;
  std::vector<Segment> segments;
  double scale;
  int64_t mask;
  int64_t window = 0;  // keys that a query sees, its own included; 0: all

  // (rows, K, E) -> (H, rows, E) in float32; a key head is repeated for the query heads that share it.
  Tensor heads(const Tensor& t, Rows rows) const {
    return t.slice(0, rows.from, rows.to).to(at::kFloat).transpose(0, 1).repeat_interleave(q.size(1) / t.size(1), 0);
  }
  Tensor scores(const Tensor& qs, const Tensor& ks, const Segment& segment) const {
    Tensor s = qs.matmul(ks.transpose(1, 2)).mul_(scale);
    if (segment.bias.defined()) s.add_(segment.bias);
    const int64_t before = mask == kCausalFromBottomRight ? segment.keys() - segment.rows() : 0;
    if (mask != kNoMask) s.masked_fill_(at::ones({qs.size(1), ks.size(1)}, at::kBool).triu(1 + before), -INFINITY);
    if (window > 0) s.masked_fill_(at::ones({qs.size(1), ks.size(1)}, at::kBool).tril(before - window), -INFINITY);
    return s;
  }

  // Returns the output (T, H, E); `save` gets each segment's log-sum-exp (H, rows).
  Tensor forward(const std::function<void(size_t, const Tensor&)>& save) const {
    Tensor out = at::empty(q.sizes(), q.options());
    for (size_t i = 0; i < segments.size(); i++) {
      const Segment& part = segments[i];
      if (part.rows() == 0) continue;
      const Tensor s = scores(heads(q, part.q), heads(k, part.k), part), lse = s.logsumexp(-1, true);
      out.slice(0, part.q.from, part.q.to).copy_((s - lse).exp_().matmul(heads(v, part.k)).transpose(0, 1));
      save(i, lse.squeeze(-1));
    }
    return out;
  }

  struct Gradients {
    Tensor q, k, v;
    std::vector<Tensor> bias;
  };
  Gradients backward(const Tensor& grad, const Tensor& out, const std::function<Tensor(size_t)>& lse) const {
    Gradients result{
        at::zeros(q.sizes(), q.options()), at::zeros(k.sizes(), k.options()), at::zeros(v.sizes(), v.options()), {}};
    for (size_t i = 0; i < segments.size(); i++) {
      const Segment& part = segments[i];
      if (part.rows() == 0) continue;
      const Tensor qs = heads(q, part.q), ks = heads(k, part.k), vs = heads(v, part.k), g = heads(grad, part.q),
                   y = heads(out, part.q);
      const Tensor p = (scores(qs, ks, part) - lse(i).unsqueeze(-1)).exp_();
      const Tensor ds = (g.matmul(vs.transpose(1, 2)) - (g * y).sum(-1, true)) * p;
      auto shared =
          [&](const Tensor& t) {  // sums over the query heads that share a key head: (H, rows, E) -> (rows, K, E)
            return t.reshape({k.size(1), q.size(1) / k.size(1), t.size(1), t.size(2)}).sum(1).transpose(0, 1);
          };
      result.q.slice(0, part.q.from, part.q.to).copy_(ds.matmul(ks).mul_(scale).transpose(0, 1));
      result.k.slice(0, part.k.from, part.k.to).copy_(shared(ds.transpose(1, 2).matmul(qs).mul_(scale)));
      result.v.slice(0, part.k.from, part.k.to).copy_(shared(p.transpose(1, 2).matmul(g)));
      result.bias.push_back(ds);
    }
    return result;
  }
};

// (B, L, H, E) -> (B * L, H, E)
Tensor rows_of(const Tensor& t) { return t.reshape({-1, t.size(-2), t.size(-1)}); }
std::vector<Segment> dense_segments(const Tensor& q, const Tensor& k, const Tensor& bias) {
  std::vector<Segment> segments;
  for (int64_t b = 0; b < q.size(0); b++)
    segments.push_back({{b * q.size(1), (b + 1) * q.size(1)},
                        {b * k.size(1), (b + 1) * k.size(1)},
                        bias.defined() ? bias[b].to(at::kFloat) : Tensor()});
  return segments;
}
// Segments between boundaries, the starts (and the last end) of the queries and of the keys. `lengths` says how many
// keys of each segment are used; without it, all.
std::vector<Segment> packed_segments(const Tensor& cu_q, const Tensor& cu_k, const Tensor& lengths, int64_t rows,
                                     int64_t keys, int64_t longest) {
  const int *q = cu_q.const_data_ptr<int>(), *k = cu_k.const_data_ptr<int>();
  const int64_t n = cu_q.numel() - 1;
  TORCH_CHECK(cu_k.numel() == n + 1 && q[0] == 0 && q[n] == rows && k[0] >= 0 && k[n] <= keys,
              "fake CUDA: boundaries that do not cover ", rows, " rows, or that go beyond ", keys, " keys");
  TORCH_CHECK(!lengths.defined() || lengths.numel() == n, "fake CUDA: ", lengths.numel(), " lengths of ", n,
              " segments");
  std::vector<Segment> segments;
  for (int64_t i = 0; i < n; i++) {
    const int64_t end = lengths.defined() ? k[i] + lengths.const_data_ptr<int>()[i] : k[i + 1];
    TORCH_CHECK(q[i] <= q[i + 1] && k[i] <= end && end <= keys && q[i + 1] - q[i] <= longest, "fake CUDA: segment ", i,
                " has ", q[i + 1] - q[i], " rows and ", end - k[i], " keys where the longest has ", longest);
    segments.push_back({{q[i], q[i + 1]}, {k[i], end}, Tensor()});
  }
  return segments;
}

// One call: guards, the view of its tensors, the count of its launch.
struct Call {
  at::AutoDispatchBelowADInplaceOrView below;
  Views views;
  explicit Call(const char* name) : views(name) { count_launch(std::string("aten::") + name); }
  Tensor operator()(const Tensor& t) {
    TORCH_CHECK(on_device(t), "Input tensor must be on CUDA device");
    return views(t, "query");
  }
};

// Memory that a kernel needs while it runs.
Tensor scratch(const Tensor& like, int64_t bytes) { return at::empty({bytes}, like.options().dtype(at::kByte)); }

// ---- flash attention
void check_flash(const Tensor& q, const Tensor& k, const Tensor& v, double dropout) {
  TORCH_CHECK(fake_capability() >= 80, "FlashAttention only supports Ampere GPUs or newer.");
  TORCH_CHECK(is_half(q), "FlashAttention only support fp16 and bf16 data type");
  TORCH_CHECK(k.scalar_type() == q.scalar_type(), "query and key must have the same dtype");
  TORCH_CHECK(v.scalar_type() == q.scalar_type(), "query and value must have the same dtype");
  for (const Tensor& t : {q, k, v}) TORCH_CHECK(t.stride(-1) == 1, "Input tensor must have contiguous last dimension");
  TORCH_CHECK(q.size(-1) % 8 == 0, "query, key, value, and out_ must have a head_size that is a multiple of 8");
  TORCH_CHECK(q.size(-1) <= 256, "FlashAttention forward only supports head dimension at most 256");
  TORCH_CHECK(q.size(-2) % k.size(-2) == 0, "Number of heads in key/value must divide number of heads in query");
  no_dropout(dropout);
}
void check_boundaries(const Tensor& cu) {
  TORCH_CHECK(on_device(cu), "Input tensor must be on CUDA device");
  TORCH_CHECK(cu.scalar_type() == at::kInt, "cu_seqlens_q must have dtype int32");
  TORCH_CHECK(cu.is_contiguous(), "cu_seqlens_q must be contiguous");
}

// The flash kernel counts the keys before a query's own; -1: all.
int64_t flash_window(std::optional<int64_t> left, bool causal) {
  TORCH_CHECK(causal || left.value_or(-1) < 0, "fake CUDA: a window without a causal mask");
  return left.value_or(-1) + 1;
}

struct FlashResult {
  Tensor out, lse;
};
// Dense: q (B, L, H, E), lse (B, H, L). Packed: q (T, H, E), lse (H, T).
FlashResult run_flash(Call& call, const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& cu_q,
                      const MaybeTensor& cu_k, int64_t longest, bool causal, std::optional<double> scale,
                      int64_t window = 0) {
  Attention a{rows_of(call(q)),   rows_of(call(k)),
              rows_of(call(v)),   {},
              scale_of(q, scale), causal ? kCausalFromBottomRight : kNoMask,
              window};
  if (!cu_q) {
    a.segments = dense_segments(q, k, Tensor());
    Tensor lse = at::empty({q.size(0), q.size(2), q.size(1)}, at::kFloat);
    Tensor out = a.forward([&](size_t i, const Tensor& l) { lse[i].copy_(l); }).view(q.sizes());
    return {call.views.upload(out), call.views.upload(lse)};
  }
  // One query a segment and grouped heads: the real kernel reshapes the queries to one row for each segment, so an
  // empty one fails.
  const int64_t n = cu_q->numel() - 1, groups = q.size(1) / k.size(1);
  TORCH_CHECK(longest != 1 || groups == 1 || q.size(0) == n, "shape '[", n, ", ", k.size(1), ", ", groups, ", ",
              q.size(2), "]' is invalid for input of size ", q.numel());
  a.segments = packed_segments(call(*cu_q), call(*cu_k), Tensor(), q.size(0), k.size(0), longest);
  Tensor lse = at::empty({q.size(1), q.size(0)}, at::kFloat);
  Tensor out =
      a.forward([&](size_t i, const Tensor& l) { lse.slice(1, a.segments[i].q.from, a.segments[i].q.to).copy_(l); });
  return {call.views.upload(out), call.views.upload(lse)};
}
std::tuple<Tensor, Tensor, Tensor> run_flash_backward(Call& call, const Tensor& grad, const Tensor& q, const Tensor& k,
                                                      const Tensor& v, const Tensor& out, const Tensor& lse,
                                                      const Tensor& cu_q, const Tensor& cu_k, int64_t longest,
                                                      bool causal, std::optional<double> scale, int64_t window = 0) {
  Attention a{rows_of(call(q)),   rows_of(call(k)),
              rows_of(call(v)),   {},
              scale_of(q, scale), causal ? kCausalFromBottomRight : kNoMask,
              window};
  const Tensor l = call(lse);
  const bool packed = cu_q.defined() && q.dim() == 3;
  // What the real kernel needs inside: the gradient of q in float32, sums of rows, and keys' and values' gradients for
  // each query head.
  const int64_t rows = packed ? q.size(0) + 128 * (cu_q.numel() - 1) : q.size(0) * ((q.size(1) + 127) / 128 * 128);
  const int64_t heads = q.size(-2), size = q.size(-1), width = size <= 192 ? (size + 31) / 32 * 32 : 256;
  const Tensor inside = scratch(q, 4 * rows * heads * (width + 1));
  const Tensor expanded = scratch(q, heads == k.size(-2) ? 0 : 2 * k.numel() / k.size(-2) * heads * k.element_size());
  a.segments = packed ? packed_segments(call(cu_q), call(cu_k), Tensor(), q.size(0), k.size(0), longest)
                      : dense_segments(q, k, Tensor());
  auto g = a.backward(rows_of(call(grad)), rows_of(call(out)),
                      [&](size_t i) { return packed ? l.slice(1, a.segments[i].q.from, a.segments[i].q.to) : l[i]; });
  return {call.views.upload(g.q.view(q.sizes())), call.views.upload(g.k.view(k.sizes())),
          call.views.upload(g.v.view(v.sizes()))};
}
void check_flash_backward(const Tensor& q) {
  const int capability = fake_capability();
  TORCH_CHECK(q.size(-1) <= 192 || (capability != 86 && capability != 89),
              "FlashAttention backward for head dim > 192 requires A100/A800 or H100/H800");
}
std::pair<Tensor, Tensor> flash_state(const Call& call) {
  return {call.views.upload(at::zeros({2}, at::kUInt64)), call.views.upload(at::zeros({}, at::kUInt64))};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> flash_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                                 const MaybeTensor& cu_q, const MaybeTensor& cu_k,
                                                                 int64_t longest, int64_t, double dropout, bool causal,
                                                                 bool, std::optional<double> scale,
                                                                 std::optional<int64_t> left, std::optional<int64_t>,
                                                                 const MaybeTensor&, const MaybeTensor&) {
  check_flash(q, k, v, dropout);
  TORCH_CHECK(cu_q.has_value() == cu_k.has_value(),
              "cumulative_sequence_length_q and cumulative_sequence_length_k must be both set or both not set");
  if (cu_q) check_boundaries(*cu_q), check_boundaries(*cu_k);
  Call call("_flash_attention_forward");
  auto [out, lse] = run_flash(call, q, k, v, cu_q, cu_k, longest, causal, scale, flash_window(left, causal));
  auto [state, unused] = flash_state(call);
  return {out, lse, state, unused, call.views.upload(at::empty({0}, at::kHalf))};
}
std::tuple<Tensor, Tensor, Tensor> flash_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                                                  const Tensor& out, const Tensor& lse, const Tensor& cu_q,
                                                  const Tensor& cu_k, int64_t longest, int64_t, double dropout,
                                                  bool causal, const Tensor&, const Tensor&,
                                                  std::optional<double> scale, std::optional<int64_t> left,
                                                  std::optional<int64_t>) {
  check_flash(q, k, v, dropout);
  check_flash_backward(q);
  Call call("_flash_attention_backward");
  return run_flash_backward(call, grad, q, k, v, out, lse, cu_q, cu_k, longest, causal, scale, flash_window(left, causal));
}
// The same for tensors (B, H, L, E), as scaled_dot_product_attention calls it.
std::tuple<Tensor, Tensor, Tensor, Tensor, SymInt, SymInt, Tensor, Tensor, Tensor> sdp_flash(
    const Tensor& q, const Tensor& k, const Tensor& v, double dropout, bool causal, bool, std::optional<double> scale) {
  check_flash(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), dropout);
  Call call("_scaled_dot_product_flash_attention");
  auto [out, lse] =
      run_flash(call, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), {}, {}, q.size(2), causal, scale);
  auto [state, unused] = flash_state(call);
  return {out.transpose(1, 2),
          lse,
          Tensor(),
          Tensor(),
          q.size(2),
          k.size(2),
          state,
          unused,
          call.views.upload(at::empty({0}, at::kHalf))};
}
std::tuple<Tensor, Tensor, Tensor> sdp_flash_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                      const Tensor& v, const Tensor& out, const Tensor& lse,
                                                      const Tensor&, const Tensor&, int64_t, int64_t, double,
                                                      bool causal, const Tensor&, const Tensor&,
                                                      std::optional<double> scale) {
  check_flash_backward(q);
  Call call("_scaled_dot_product_flash_attention_backward");
  auto t = [](const Tensor& t) { return t.transpose(1, 2); };
  auto [gq, gk, gv] =
      run_flash_backward(call, t(grad), t(q), t(k), t(v), t(out), lse, Tensor(), Tensor(), q.size(2), causal, scale);
  return {t(gq), t(gk), t(gv)};
}

// ---- memory-efficient attention
constexpr int64_t kLseRows = 32;  // the log-sum-exp has a multiple of this many rows

// The smallest multiple of elements at which the kernels of this capability read rows.
int64_t efficient_alignment(const Tensor& q) {
  if (fake_capability() >= 80) return 4;
  if (!is_half(q)) return 1;
  return fake_capability() >= 75 ? 4 : fake_capability() >= 70 ? 2 : 1;
}
void check_efficient(const Tensor& q, const Tensor& k, const Tensor& v, double dropout) {
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, "Expected query.dim() == 4");
  TORCH_CHECK(q.size(2) == k.size(2) && q.size(2) == v.size(2),
              "Expected query.size(2) == key.size(2) to be true, but got false.");
  TORCH_CHECK(q.size(3) == k.size(3), "Expected query.size(3) == key.size(3) to be true, but got false.");
  TORCH_CHECK(q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(),
              "query, key and value must have the same dtype");
  TORCH_CHECK(q.scalar_type() == at::kFloat || is_half(q), "\"cutlassF\" not implemented for '", q.scalar_type(), "'");
  TORCH_CHECK(q.scalar_type() != at::kBFloat16 || fake_capability() >= 80, "cutlassF: no kernel found to launch!");
  const int64_t alignment = efficient_alignment(q);
  for (auto& [t, name] : {std::pair{q, "query"}, std::pair{k, "key"}, std::pair{v, "value"}}) {
    TORCH_CHECK(t.stride(-1) == 1, name, ": last dimension must be contiguous");
    for (int64_t d = 0; d < 3; d++)
      TORCH_CHECK(t.size(d) <= 1 || t.stride(d) % alignment == 0, name,
                  " is not correctly aligned (stride of dimension ", d, ")");
    TORCH_CHECK(reinterpret_cast<uintptr_t>(t.const_data_ptr()) % (alignment * t.element_size()) == 0, name,
                " is not correctly aligned");
  }
  no_dropout(dropout);
}
Attention efficient_problem(Call& call, const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& bias,
                            const MaybeTensor& cu_q, const MaybeTensor& cu_k, const MaybeTensor& seqlen_k,
                            int64_t longest, int64_t mask, std::optional<double> scale,
                            std::optional<int64_t> window) {
  TORCH_CHECK(window.value_or(0) == 0 || mask != kNoMask, "window_size > 0 needs a causal mask");
  TORCH_CHECK(mask >= kNoMask && mask <= kCausalFromBottomRight, "fake CUDA: custom_mask_type ", mask);
  Attention a{rows_of(call(q)), rows_of(call(k)), rows_of(call(v)), {}, scale_of(q, scale), mask, window.value_or(0)};
  // The real kernel reads these lengths only where it has boundaries.
  TORCH_CHECK(!seqlen_k || cu_q, "fake CUDA: seqlen_k without cu_seqlens_k");
  if (seqlen_k)
    TORCH_CHECK(seqlen_k->scalar_type() == at::kInt && seqlen_k->is_contiguous(),
                "seqlen_k must be int32 and contiguous");
  if (cu_q) {
    check_boundaries(*cu_q), check_boundaries(*cu_k);
    TORCH_CHECK(q.size(0) == 1, "cu_seqlen only supports batch_size=1");
    TORCH_CHECK(!bias, "fake CUDA: a bias over packed rows");
    a.segments = packed_segments(call(*cu_q), call(*cu_k), seqlen_k ? call(*seqlen_k) : Tensor(), a.q.size(0),
                                 a.k.size(0), longest);
  } else {
    TORCH_CHECK(!bias || bias->scalar_type() == q.scalar_type(), "invalid dtype for bias - should match query's dtype");
    a.segments =
        dense_segments(q, k, bias ? call(*bias).expand({q.size(0), q.size(2), q.size(1), k.size(1)}) : Tensor());
  }
  return a;
}
struct EfficientResult {
  Tensor out, lse;
  int64_t rows, keys;
};
EfficientResult run_efficient(Call& call, const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& bias,
                              const MaybeTensor& cu_q, const MaybeTensor& cu_k, const MaybeTensor& seqlen_k,
                              int64_t rows, int64_t keys, int64_t mask, bool with_lse, std::optional<double> scale,
                              std::optional<int64_t> window = std::nullopt) {
  const Attention a = efficient_problem(call, q, k, v, bias, cu_q, cu_k, seqlen_k, rows, mask, scale, window);
  const int64_t lse_rows = with_lse ? (rows + kLseRows - 1) / kLseRows * kLseRows : 0;
  Tensor lse = at::full({int64_t(a.segments.size()), q.size(2), lse_rows}, INFINITY, at::kFloat);
  Tensor out = a.forward([&](size_t i, const Tensor& l) {
    if (with_lse) lse[i].slice(1, 0, l.size(1)).copy_(l);
  });
  return {call.views.upload(out.view({q.size(0), q.size(1), q.size(2), v.size(3)})), call.views.upload(lse), rows,
          keys};
}
// Without dropout, seed and offset are numbers on the CPU that nobody reads.
Tensor unused_number() { return at::zeros({}, at::kLong); }

std::tuple<Tensor, Tensor, Tensor, Tensor, SymInt, SymInt> efficient_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& bias, const MaybeTensor& cu_q,
    const MaybeTensor& cu_k, std::optional<int64_t> longest_q, std::optional<int64_t> longest_k, double dropout,
    int64_t mask, bool with_lse, std::optional<double> scale, const MaybeTensor& seqlen_k,
    std::optional<int64_t> window) {
  check_efficient(q, k, v, dropout);
  TORCH_CHECK(cu_q.has_value() == cu_k.has_value() && cu_q.has_value() == longest_q.has_value(),
              "cu_seqlens_q, cu_seqlens_k and max_seqlen_q must be given together");
  Call call("_efficient_attention_forward");
  auto r = run_efficient(call, q, k, v, bias, cu_q, cu_k, seqlen_k, longest_q.value_or(q.size(1)),
                         longest_k.value_or(k.size(1)), mask, with_lse, scale, window);
  return {r.out, r.lse, unused_number(), unused_number(), r.rows, r.keys};
}
std::tuple<Tensor, Tensor, Tensor, Tensor> run_efficient_backward(Call& call, const Tensor& grad, const Tensor& q,
                                                                  const Tensor& k, const Tensor& v,
                                                                  const MaybeTensor& bias, const Tensor& out,
                                                                  const MaybeTensor& cu_q, const MaybeTensor& cu_k,
                                                                  int64_t rows, const Tensor& lse, int64_t mask,
                                                                  bool bias_gradient, std::optional<double> scale,
                                                                  std::optional<int64_t> window = std::nullopt) {
  const Attention a = efficient_problem(call, q, k, v, bias, cu_q, cu_k, {}, rows, mask, scale, window);
  const Tensor l = call(lse);
  // What the real kernel needs inside: the products of result and gradient (float32 kernels), their sums, and the sums
  // of the gradient of q, which it keeps for blocks of 64 rows and columns of every segment, as if all were as long as
  // the longest.
  if (!is_half(q)) scratch(q, 4 * q.numel());
  const Tensor sums = scratch(q, 4 * q.numel() / q.size(-1));
  const int64_t blocks = int64_t(a.segments.size()) * q.size(2) * ((rows + 63) / 64) * ((q.size(3) + 63) / 64);
  const Tensor workspace = scratch(q, blocks * (64 * 64 * 4 + 16));
  TORCH_CHECK(l.size(2) >= rows, "fake CUDA: the backward needs the forward's logsumexp (compute_log_sumexp)");
  auto g = a.backward(rows_of(call(grad)), rows_of(call(out)),
                      [&](size_t i) { return l[i].slice(1, 0, a.segments[i].q.to - a.segments[i].q.from); });
  return {call.views.upload(g.q.view(q.sizes())), call.views.upload(g.k.view(k.sizes())),
          call.views.upload(g.v.view(v.sizes())),
          bias_gradient ? call.views.upload(at::stack(g.bias).to(q.scalar_type())) : Tensor()};
}
std::tuple<Tensor, Tensor, Tensor, Tensor> efficient_backward(
    const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& bias, const Tensor& out,
    const MaybeTensor& cu_q, const MaybeTensor& cu_k, int64_t longest_q, int64_t, const Tensor& lse, double dropout,
    const Tensor&, const Tensor&, int64_t mask, bool bias_gradient, std::optional<double> scale, std::optional<int64_t>,
    std::optional<int64_t> window, bool) {
  check_efficient(q, k, v, dropout);
  Call call("_efficient_attention_backward");
  const MaybeTensor given = bias && bias->defined() ? bias : std::nullopt;
  const bool packed = cu_q && cu_q->defined();
  return run_efficient_backward(call, grad, q, k, v, given, out, packed ? cu_q : std::nullopt,
                                packed ? cu_k : std::nullopt, longest_q, lse, mask, bias_gradient, scale, window);
}
// The same for tensors (B, H, L, E).
std::tuple<Tensor, Tensor, Tensor, Tensor> sdp_efficient(const Tensor& q, const Tensor& k, const Tensor& v,
                                                         const MaybeTensor& bias, bool with_lse, double dropout,
                                                         bool causal, std::optional<double> scale) {
  check_efficient(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), dropout);
  Call call("_scaled_dot_product_efficient_attention");
  auto r = run_efficient(call, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias, {}, {}, {}, q.size(2),
                         k.size(2), causal ? kCausalFromTopLeft : kNoMask, with_lse, scale);
  return {r.out.transpose(1, 2), r.lse, unused_number(), unused_number()};
}
std::tuple<Tensor, Tensor, Tensor, Tensor> sdp_efficient_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                                  const Tensor& v, const Tensor& bias,
                                                                  const Tensor& out, const Tensor& lse, const Tensor&,
                                                                  const Tensor&, double, std::array<bool, 4> wanted,
                                                                  bool causal, std::optional<double> scale) {
  if (!grad.defined()) return {};
  Call call("_scaled_dot_product_efficient_attention_backward");
  auto t = [](const Tensor& t) { return t.transpose(1, 2); };
  auto [gq, gk, gv, gb] =
      run_efficient_backward(call, t(grad), t(q), t(k), t(v), bias.defined() ? MaybeTensor(bias) : std::nullopt, t(out),
                             {}, {}, q.size(2), lse, causal ? kCausalFromTopLeft : kNoMask, wanted[3], scale);
  return {t(gq), t(gk), t(gv), gb};
}

// ---- which of them scaled_dot_product_attention takes: the conditions of libtorch's CUDA part, without cuDNN
bool flash_fits(const sdp::sdp_params& p) {
  const int64_t size = p.query.size(-1);
  const int capability = fake_capability();
  const bool trains = sdp::input_requires_grad(p);
  return sdp::check_runtime_disabled_flash(p, false) && sdp::check_tensor_shapes(p, false) &&
         sdp::check_for_attn_mask(p, false) && size == p.key.size(-1) && size == p.value.size(-1) && size <= 256 &&
         capability >= 80 && is_half(p.query) && p.key.dtype() == p.query.dtype() &&
         p.value.dtype() == p.query.dtype() && !(trains && size > 192 && (capability == 86 || capability == 89)) &&
         (!p.is_causal || p.query.size(-2) == p.key.size(-2)) &&
         sdp::check_batch_size_and_num_heads_dense<true>(p, false) &&
         sdp::check_nonzero_sequence_lengths_dense(p, false) &&
         sdp::check_last_dim_stride_equals_1_dense<true>(p, false);
}
bool efficient_fits(const sdp::sdp_params& p) {
  const auto kind = p.query.scalar_type();
  const int64_t alignment = fake_capability() >= 80                       ? (is_half(p.query) ? 8 : 4)
                            : fake_capability() >= 70 && is_half(p.query) ? 8
                                                                          : 1;
  const bool known_kind = kind == at::kFloat || kind == at::kHalf || (kind == at::kBFloat16 && fake_capability() >= 80);
  return sdp::check_runtime_disabled_mem_efficient(p, false) && sdp::check_tensor_shapes(p, false) && known_kind &&
         p.key.dtype() == p.query.dtype() && p.value.dtype() == p.query.dtype() && p.query.size(-1) == p.key.size(-1) &&
         p.query.size(-1) % alignment == 0 && p.value.size(-1) % alignment == 0 && p.query.size(-1) > 0 &&
         p.value.size(-1) > 0 && sdp::check_batch_size_and_num_heads_dense<false>(p, false) &&
         sdp::check_nonzero_sequence_lengths_dense(p, false) &&
         sdp::check_last_dim_stride_equals_1_dense<true>(p, false);
}
int64_t sdp_choice(const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& mask, double dropout,
                   bool causal, std::optional<double>, bool gqa) {
  const sdp::sdp_params p{q, k, v, mask, dropout, causal, gqa};
  auto& context = at::globalContext();
  for (const at::SDPBackend backend : context.sDPPriorityOrder()) {
    if (backend == at::SDPBackend::flash_attention && flash_fits(p)) return int64_t(backend);
    if (backend == at::SDPBackend::efficient_attention && efficient_fits(p)) return int64_t(backend);
    if (backend == at::SDPBackend::math && context.userEnabledMathSDP()) return int64_t(backend);
  }
  TORCH_CHECK(false, "No available kernel. Aborting execution.");
}
}  // namespace

void register_attention(torch::Library& aten) {
  aten.impl("_flash_attention_forward", captured<flash_forward>);
  aten.impl("_flash_attention_backward", captured<flash_backward>);
  aten.impl("_scaled_dot_product_flash_attention", captured<sdp_flash>);
  aten.impl("_scaled_dot_product_flash_attention_backward", captured<sdp_flash_backward>);
  aten.impl("_efficient_attention_forward", captured<efficient_forward>);
  aten.impl("_efficient_attention_backward", captured<efficient_backward>);
  aten.impl("_scaled_dot_product_efficient_attention", captured<sdp_efficient>);
  aten.impl("_scaled_dot_product_efficient_attention_backward", captured<sdp_efficient_backward>);
  aten.impl("_fused_sdp_choice", sdp_choice);
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(sdp_choice);
}
}  // namespace fake
