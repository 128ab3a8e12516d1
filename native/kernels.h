// Fused elementwise loops over CPU memory: each does in one pass what takes libtorch several.
//
// Every function works on rows [begin, end), so that the caller can split rows between threads; results do not depend
// on the split. `half` selects bfloat16 instead of float32 for the void* buffers.
#pragma once
#include <cstdint>

struct FtKernels {
  const char* name;

  // y = x / sqrt(mean(x^2) + eps) * w over rows of `width`; `inverse` receives 1 / sqrt(mean(x^2) + eps) of each row.
  void (*rms_norm)(bool half, const void* x, const void* w, void* y, float* inverse, int64_t width, float eps,
                   int64_t begin, int64_t end);
  // Gradient gx of x, given the gradient g of y.
  void (*rms_norm_backward)(bool half, const void* x, const void* w, const float* inverse, const void* g, void* gx,
                            int64_t width, int64_t begin, int64_t end);
  // Gradient gw (width) of w, float32: columns [begin, end), summed over all rows.
  void (*rms_norm_weight)(bool half, const void* x, const float* inverse, const void* g, float* gw, int64_t rows,
                          int64_t width, int64_t begin, int64_t end);

  // y = silu(gate) * up; here [begin, end) is a range of elements.
  void (*swiglu)(bool half, const void* gate, const void* up, void* y, int64_t begin, int64_t end);
  void (*swiglu_backward)(bool half, const void* gate, const void* up, const void* g, void* g_gate, void* g_up,
                          int64_t begin, int64_t end);

  // Rotates pairs (i, i + E/2) of each head of a token by its angle; `turn` is 1, or -1 for the backward.
  void (*rotate)(bool half, const void* x, const void* cos, const void* sin, void* y, int64_t heads, int64_t size,
                 float turn, int64_t begin, int64_t end);

  // For each row of logits (V), with the distribution softmax(logits * inverse): the target's log-probability; 1 if
  // its logit is the first of the largest, otherwise 0; and the entropy in nats, if `entropy` is not null. The first
  // two have the same bits with and without entropy. With `direction` the row is overwritten by the gradient of the
  // log-probability, (onehot(target) - softmax) * inverse.
  void (*head)(bool half, void* logits, const int64_t* target, float* log_prob, float* hit, float* entropy,
               int64_t vocabulary, float inverse, bool direction, int64_t begin, int64_t end);

  // Overwrites rows of scores (L keys each; the query's position is row % L) by exp(scale * s - lse), and by 0 for
  // later keys.
  void (*probabilities)(bool half, void* scores, const float* lse, int64_t length, float scale, int64_t begin,
                        int64_t end);
  // Overwrites rows of gp, the gradient of the probabilities, by the gradient of the scores: (gp - gy . y) * p * scale.
  void (*score_gradient)(bool half, void* gp, const void* p, const void* gy, const void* y, int64_t length,
                         int64_t size, float scale, int64_t begin, int64_t end);

  // y = e^x, float32, for elements [begin, end).
  void (*exponential)(const float* x, float* y, int64_t begin, int64_t end);
};
