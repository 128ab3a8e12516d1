// Elementwise loops over CPU memory that libtorch runs in several passes, fused into one each.
//
// Every function works on rows [begin, end), so that the caller shares rows between threads; results do not depend on
// how. `half` picks bfloat16 over float32 for the buffers marked void*.
#pragma once
#include <cstdint>

struct FtKernels {
  const char* name;

  // y = x / sqrt(mean(x^2) + eps) * w over rows of `width`; keeps the reciprocal root of each row.
  void (*rms_norm)(bool half, const void* x, const void* w, void* y, float* inverse, int64_t width, float eps,
                   int64_t begin, int64_t end);
  // gx for the gradient g of y.
  void (*rms_norm_backward)(bool half, const void* x, const void* w, const float* inverse, const void* g, void* gx,
                            int64_t width, int64_t begin, int64_t end);
  // gw (width), float32: columns [begin, end), over all rows.
  void (*rms_norm_weight)(bool half, const void* x, const float* inverse, const void* g, float* gw, int64_t rows,
                          int64_t width, int64_t begin, int64_t end);

  // y = silu(gate) * up; here [begin, end) are elements.
  void (*swiglu)(bool half, const void* gate, const void* up, void* y, int64_t begin, int64_t end);
  void (*swiglu_backward)(bool half, const void* gate, const void* up, const void* g, void* g_gate, void* g_up,
                          int64_t begin, int64_t end);

  // Rotates pairs (i, i + E/2) of each head of a token by its angle; `turn` is 1, or -1 for the backward.
  void (*rotate)(bool half, const void* x, const void* cos, const void* sin, void* y, int64_t heads, int64_t size,
                 float turn, int64_t begin, int64_t end);

  // Per row of logits (V), of the distribution softmax(logits * inverse): the target's log-probability, whether its logit is
  // the first largest and, where `entropy` is not null, the entropy in nats; the first two do not depend on whether it is.
  // Where `direction`, the row becomes the gradient of the log-probability, (onehot(target) - softmax) * inverse.
  void (*head)(bool half, void* logits, const int64_t* target, float* log_prob, float* hit, float* entropy,
               int64_t vocabulary, float inverse, bool direction, int64_t begin, int64_t end);

  // Rows of scores (L keys each, the query's place is row % L) become exp(scale * s - lse), 0 for later keys.
  void (*probabilities)(bool half, void* scores, const float* lse, int64_t length, float scale, int64_t begin,
                        int64_t end);
  // Rows of gp, the gradient of the probabilities, become that of the scores: (gp - gy . y) * p * scale.
  void (*score_gradient)(bool half, void* gp, const void* p, const void* gy, const void* y, int64_t length,
                         int64_t size, float scale, int64_t begin, int64_t end);
};
