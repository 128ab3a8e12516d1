// Makes a kernel part of a CUDA graph: what it was given is kept while its stream is captured, and it runs again when the graph
// is replayed.
#pragma once
#include "fake_cuda.h"

#include <tuple>

namespace fake {
// What is kept of an argument: of a tensor its address, of a list its own copy.
template <class T> struct Kept {
  using type = T;
  static T of(const T& value) { return value; }
};
template <> struct Kept<Tensor> {
  using type = Tensor;
  static Tensor of(const Tensor& t) { return unowned(t); }
};
template <> struct Kept<std::optional<Tensor>> {
  using type = std::optional<Tensor>;
  static type of(const type& t) { return t ? type(unowned(*t)) : std::nullopt; }
};
template <> struct Kept<at::IntArrayRef> {
  using type = std::vector<int64_t>;
  static type of(at::IntArrayRef list) { return list.vec(); }
};

template <class F> void each_tensor(const Tensor& result, F see) { see(result); }
template <class F, class... T> void each_tensor(const std::tuple<T...>& results, F see) {
  auto one = [&](const auto& value) {
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, Tensor>) see(value);
  };
  std::apply([&](const auto&... values) { (one(values), ...); }, results);
}

template <auto kernel, class Signature = decltype(kernel)> struct Captured;
template <auto kernel, class R, class... A> struct Captured<kernel, R (*)(A...)> {
  static R run(A... arguments) {
    if (!capturing()) return kernel(arguments...);
    using Arguments = std::tuple<typename Kept<std::decay_t<A>>::type...>;
    Arguments kept(Kept<std::decay_t<A>>::of(arguments)...);
    (remember_written<A>(arguments), ...);
    R result = kernel(arguments...);
    std::vector<Tensor> to;
    each_tensor(result, [&](const Tensor& t) { to.push_back(unowned(t)); });
    add_work([kept = std::move(kept), to = std::move(to)]() mutable {
      const R& again = std::apply(kernel, kept);
      size_t i = 0;
      each_tensor(again, [&](const Tensor& t) { put(to[i++], t); });
    });
    return result;
  }

 private:
  template <class T> static void remember_written(const std::decay_t<T>& argument) {
    if constexpr (std::is_same_v<T, Tensor&>) remember(argument);
  }
};
// The kernel to register in place of `kernel`.
template <auto kernel> constexpr auto captured = &Captured<kernel>::run;
}  // namespace fake
