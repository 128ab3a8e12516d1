// Compiles the kernels of native/cuda/ for the CPU, for the number format in FT_NUMBER.
#include "../../native/cuda/language.h"

#include "../../native/cuda/activation.cu"
#include "../../native/cuda/adapter.cu"
#include "../../native/cuda/head.cu"
#include "../../native/cuda/low_rank.cu"
#include "../../native/cuda/norm.cu"
#include "../../native/cuda/quantised.cu"
#include "../../native/cuda/rotary.cu"

#include "emulation.h"

#include <tuple>

namespace {
template <class T> T translated(T value) { return value; }
template <class T> T* translated(T* address) { return static_cast<T*>(fake::bytes_of(address)); }
Casts translated(Casts casts) {
  for (int i = 0; i < casts.count; i++) {
    casts.from[i] = fake::bytes_of(casts.from[i]);
    casts.to[i] = fake::bytes_of(casts.to[i]);
  }
  return casts;
}
FactorProducts translated(FactorProducts products) {
  for (int i = 0; i < products.count; i++) {
    products.wide[i] = fake::bytes_of(products.wide[i]);
    products.narrow[i] = fake::bytes_of(products.narrow[i]);
    products.to[i] = static_cast<float*>(fake::bytes_of(products.to[i]));
  }
  return products;
}

template <class... A, size_t... I>
std::tuple<A...> values(void (*)(A...), void** arguments, std::index_sequence<I...>) {
  return {translated(*static_cast<A*>(arguments[I]))...};
}

template <class... A>
std::function<void()> bind(void (*kernel)(A...), int threads, void** arguments, i64 blocks, bool reversed) {
  return [=, given = values(kernel, arguments, std::index_sequence_for<A...>())] {
    for (i64 i = 0; i < blocks; i++) {
      ft::here = {reversed ? blocks - 1 - i : i, threads, reversed};
      std::apply(kernel, given);
    }
  };
}
}  // namespace

#define KERNEL(name, threads)                                             \
  {#name, threads, [](void** arguments, long long blocks, bool reversed) { \
     return bind(name, threads, arguments, blocks, reversed);             \
   }}
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

const fake::Kernel JOIN(fake_kernels_, FT_NUMBER)[] = {
    KERNEL(swiglu, 256),         KERNEL(swiglu_backward, 256), KERNEL(rotate, 256),
    KERNEL(rms_norm, 256),       KERNEL(rms_norm_backward, 256), KERNEL(rms_norm_weight, 256),
    KERNEL(head, kHeadThreads),  KERNEL(dequantise_nf4, 256),  KERNEL(narrow_all, 256),
    KERNEL(widen_all, 256),      KERNEL(factor_gradients, 128), KERNEL(round_rows, 256),
    {nullptr, 0, nullptr},
};
