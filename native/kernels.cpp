// The loops of kernels.h, written so that the compiler vectorises them. This file is compiled once per instruction set
// (FT_ISA is its name). Only the table at its end may have external linkage: of several copies of another function the
// linker would keep one, perhaps with instructions that the processor lacks.
#include "kernels.h"
#include "numbers.h"

#include <cstring>

namespace {

struct Half { uint16_t bits; };

FT_INLINE float load(const float* p) { return *p; }
FT_INLINE float load(const Half* p) { return from_bf16(p->bits); }
FT_INLINE void store(float* p, float v) { *p = v; }
FT_INLINE void store(Half* p, float v) { p->bits = to_bf16(v); }
FT_INLINE float round_to(const float*, float v) { return v; }
FT_INLINE float round_to(const Half*, float v) { Half h; store(&h, v); return load(&h); }

FT_INLINE float exp_(float x) { return exponential<float, int32_t>(x); }

template <class T>
void rms_norm(const T* x, const T* w, T* y, float* inverse, int64_t width, float eps, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    const T* a = x + row * width;
    T* b = y + row * width;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) { float v = load(a + i); sum += v * v; }
    float inv = 1.0f / __builtin_sqrtf(sum / float(width) + eps);
    inverse[row] = inv;
#pragma omp simd
    for (int64_t i = 0; i < width; i++) store(b + i, round_to(a, load(a + i) * inv) * load(w + i));
  }
}

template <class T>
void rms_norm_backward(const T* x, const T* w, const float* inverse, const T* g, T* gx, int64_t width, int64_t begin,
                       int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    const T *a = x + row * width, *d = g + row * width;
    T* out = gx + row * width;
    float inv = inverse[row], along = 0;
#pragma omp simd reduction(+ : along)
    for (int64_t i = 0; i < width; i++) along += load(d + i) * load(w + i) * load(a + i);
    float back = along * inv * inv / float(width);  // factor on x in (g w . n) n / width, where n = x inv
#pragma omp simd
    for (int64_t i = 0; i < width; i++) store(out + i, (load(d + i) * load(w + i) - load(a + i) * back) * inv);
  }
}

template <class T>
void rms_norm_weight(const T* x, const float* inverse, const T* g, float* gw, int64_t rows, int64_t width,
                     int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i++) gw[i] = 0;
  for (int64_t row = 0; row < rows; row++) {
    const T *a = x + row * width, *d = g + row * width;
    float inv = inverse[row];
#pragma omp simd
    for (int64_t i = begin; i < end; i++) gw[i] += load(d + i) * load(a + i) * inv;
  }
}

template <class T>
void swiglu(const T* gate, const T* up, T* y, int64_t begin, int64_t end) {
#pragma omp simd
  for (int64_t i = begin; i < end; i++) {
    float a = load(gate + i);
    store(y + i, a / (1.0f + exp_(-a)) * load(up + i));
  }
}

template <class T>
void swiglu_backward(const T* gate, const T* up, const T* g, T* g_gate, T* g_up, int64_t begin, int64_t end) {
#pragma omp simd
  for (int64_t i = begin; i < end; i++) {
    float a = load(gate + i), d = load(g + i);
    float s = 1.0f / (1.0f + exp_(-a));
    store(g_gate + i, d * load(up + i) * s * (1.0f + a * (1.0f - s)));
    store(g_up + i, d * a * s);
  }
}

template <class T>
void rotate(const T* x, const T* cos, const T* sin, T* y, int64_t heads, int64_t size, float turn, int64_t begin,
            int64_t end) {
  int64_t half = size / 2;
  for (int64_t t = begin; t < end; t++) {
    const T *c = cos + t * half, *s = sin + t * half;
    for (int64_t h = 0; h < heads; h++) {
      const T* a = x + (t * heads + h) * size;
      T* b = y + (t * heads + h) * size;
#pragma omp simd
      for (int64_t i = 0; i < half; i++) {
        float first = load(a + i), second = load(a + half + i), co = load(c + i), si = turn * load(s + i);
        store(b + i, first * co - second * si);
        store(b + half + i, second * co + first * si);
      }
    }
  }
}

template <class T>
void head(T* logits, const int64_t* target, float* log_prob, float* hit, float* entropy, int64_t vocabulary,
          float inverse, bool direction, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    T* z = logits + row * vocabulary;
    float largest = -__builtin_inff(), total = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < vocabulary; i++) {
      float v = load(z + i);
      largest = v > largest ? v : largest;
    }
    // If a logit is NaN or infinite, the total becomes NaN, and so do all results of the row.
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < vocabulary; i++) total += exp_((load(z + i) - largest) * inverse);
    float at = load(z + target[row]), logarithm = __builtin_logf(total);
    bool first = at == largest;
    for (int64_t i = 0; first && i < target[row]; i++) first = load(z + i) != largest;
    log_prob[row] = (at - largest) * inverse - logarithm;
    hit[row] = first ? 1.0f : 0.0f;
    if (entropy) {
      // log(total) - sum p_i (z_i - largest). In a separate loop, so that the total is summed in the same order as
      // without entropy.
      float along = 0;
#pragma omp simd reduction(+ : along)
      for (int64_t i = 0; i < vocabulary; i++) {
        float v = (load(z + i) - largest) * inverse;
        along += exp_(v) * v;
      }
      entropy[row] = logarithm - along / total;
    }
    if (!direction) continue;
    float scale = -inverse / total;
    float onehot = inverse + exp_((at - largest) * inverse) * scale;
#pragma omp simd
    for (int64_t i = 0; i < vocabulary; i++) store(z + i, exp_((load(z + i) - largest) * inverse) * scale);
    store(z + target[row], onehot);
  }
}

template <class T>
void probabilities(T* scores, const float* lse, int64_t length, float scale, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    T* s = scores + row * length;
    int64_t seen = row % length + 1;
    float shift = lse[row];
#pragma omp simd
    for (int64_t i = 0; i < seen; i++) store(s + i, exp_(load(s + i) * scale - shift));
    memset(static_cast<void*>(s + seen), 0, size_t(length - seen) * sizeof(T));
  }
}

template <class T>
void score_gradient(T* gp, const T* p, const T* gy, const T* y, int64_t length, int64_t size, float scale,
                    int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    const T *d = gy + row * size, *o = y + row * size, *q = p + row * length;
    T* s = gp + row * length;
    int64_t seen = row % length + 1;
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < size; i++) dot += load(d + i) * load(o + i);
#pragma omp simd
    for (int64_t i = 0; i < seen; i++) store(s + i, (load(s + i) - dot) * load(q + i) * scale);
    memset(static_cast<void*>(s + seen), 0, size_t(length - seen) * sizeof(T));
  }
}

void exponential_(const float* x, float* y, int64_t begin, int64_t end) {
#pragma omp simd
  for (int64_t i = begin; i < end; i++) y[i] = exp_(x[i]);
}

#define H(p) static_cast<Half*>(p)
#define F(p) static_cast<float*>(p)
#define CH(p) static_cast<const Half*>(p)
#define CF(p) static_cast<const float*>(p)

void rms_norm_(bool half, const void* x, const void* w, void* y, float* inverse, int64_t width, float eps,
               int64_t begin, int64_t end) {
  if (half) rms_norm(CH(x), CH(w), H(y), inverse, width, eps, begin, end);
  else rms_norm(CF(x), CF(w), F(y), inverse, width, eps, begin, end);
}
void rms_norm_backward_(bool half, const void* x, const void* w, const float* inverse, const void* g, void* gx,
                        int64_t width, int64_t begin, int64_t end) {
  if (half) rms_norm_backward(CH(x), CH(w), inverse, CH(g), H(gx), width, begin, end);
  else rms_norm_backward(CF(x), CF(w), inverse, CF(g), F(gx), width, begin, end);
}
void rms_norm_weight_(bool half, const void* x, const float* inverse, const void* g, float* gw, int64_t rows,
                      int64_t width, int64_t begin, int64_t end) {
  if (half) rms_norm_weight(CH(x), inverse, CH(g), gw, rows, width, begin, end);
  else rms_norm_weight(CF(x), inverse, CF(g), gw, rows, width, begin, end);
}
void swiglu_(bool half, const void* gate, const void* up, void* y, int64_t begin, int64_t end) {
  if (half) swiglu(CH(gate), CH(up), H(y), begin, end);
  else swiglu(CF(gate), CF(up), F(y), begin, end);
}
void swiglu_backward_(bool half, const void* gate, const void* up, const void* g, void* g_gate, void* g_up,
                      int64_t begin, int64_t end) {
  if (half) swiglu_backward(CH(gate), CH(up), CH(g), H(g_gate), H(g_up), begin, end);
  else swiglu_backward(CF(gate), CF(up), CF(g), F(g_gate), F(g_up), begin, end);
}
void rotate_(bool half, const void* x, const void* cos, const void* sin, void* y, int64_t heads, int64_t size,
             float turn, int64_t begin, int64_t end) {
  if (half) rotate(CH(x), CH(cos), CH(sin), H(y), heads, size, turn, begin, end);
  else rotate(CF(x), CF(cos), CF(sin), F(y), heads, size, turn, begin, end);
}
void head_(bool half, void* logits, const int64_t* target, float* log_prob, float* hit, float* entropy,
           int64_t vocabulary, float inverse, bool direction, int64_t begin, int64_t end) {
  if (half) head(H(logits), target, log_prob, hit, entropy, vocabulary, inverse, direction, begin, end);
  else head(F(logits), target, log_prob, hit, entropy, vocabulary, inverse, direction, begin, end);
}
void probabilities_(bool half, void* scores, const float* lse, int64_t length, float scale, int64_t begin,
                    int64_t end) {
  if (half) probabilities(H(scores), lse, length, scale, begin, end);
  else probabilities(F(scores), lse, length, scale, begin, end);
}
void score_gradient_(bool half, void* gp, const void* p, const void* gy, const void* y, int64_t length, int64_t size,
                     float scale, int64_t begin, int64_t end) {
  if (half) score_gradient(H(gp), CH(p), CH(gy), CH(y), length, size, scale, begin, end);
  else score_gradient(F(gp), CF(p), CF(gy), CF(y), length, size, scale, begin, end);
}

}  // namespace

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)
extern "C" const FtKernels JOIN(ft_kernels_, FT_ISA) = {
    TEXT(FT_ISA), rms_norm_, rms_norm_backward_, rms_norm_weight_, swiglu_, swiglu_backward_,
    rotate_,      head_,     probabilities_,     score_gradient_,   exponential_,
};
