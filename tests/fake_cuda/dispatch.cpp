// Runs libtorch's operations on the fake device: checks that all tensors are on one device, runs the CPU kernel on
// their bytes, moves the results to the device, and counts a launch (and a wait where CUDA's kernel has one).
#include "fake_cuda.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <unordered_map>
#include <unordered_set>

namespace fake {
namespace {
using c10::DispatchKey;
using c10::IValue;

bool starts_with(const std::string& text, const char* with) { return text.rfind(with, 0) == 0; }

// Which CPU tensors CUDA's kernel takes beside those of the device.
enum class Takes { nothing, scalars, anything };
Takes takes(const c10::OperatorHandle& op, const std::string& argument) {
  const std::string& name = op.schema().name();
  if (argument == "indices" && (starts_with(name, "aten::index") || starts_with(name, "aten::_index_put")))
    return Takes::anything;
  // `_index_put`: with the leading underscore; `index_fill` and `index_put` take a value without dimensions.
  for (const char* with : {"aten::_foreach_", "aten::where", "aten::masked_fill", "aten::index_put", "aten::_index_put",
                           "aten::fill", "aten::lerp", "aten::index_fill"})
    if (starts_with(name, with)) return Takes::scalars;
  return op.hasTag(at::Tag::pointwise) ? Takes::scalars : Takes::nothing;
}

// How often CUDA's kernel of an operation makes the host wait, because the host needs a number to go on.
int64_t waits_in(const std::string& name) {
  static const std::unordered_map<std::string, int64_t> known = {{"aten::nonzero", 1},
                                                                 {"aten::masked_select", 1},
                                                                 {"aten::equal", 1},
                                                                 {"aten::_unique", 1},
                                                                 {"aten::_unique2", 1},
                                                                 {"aten::unique_dim", 1},
                                                                 {"aten::unique_consecutive", 1},
                                                                 {"aten::bincount", 1},
                                                                 {"aten::multinomial", 2},
                                                                 {"aten::_linalg_check_errors", 1}};
  auto it = known.find(name);
  return it == known.end() ? 0 : it->second;
}

// Whether CUDA's kernel of an operation is the library of products'.
bool is_product(const std::string& name) {
  static const std::unordered_set<std::string> known = {"aten::mm",  "aten::addmm",  "aten::addmm_", "aten::bmm",
                                                        "aten::mv",  "aten::addmv",  "aten::addmv_", "aten::baddbmm",
                                                        "aten::dot", "aten::baddbmm_"};
  return known.count(name) > 0;
}

// Runs an operation's CPU kernel. Returns false if it only made a view.
bool run(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& arguments = schema.arguments();
  const std::string& name = schema.name();
  const size_t first_argument = stack->size() - arguments.size();
  at::AutoDispatchBelowADInplaceOrView below;
  Views views(name.substr(name.find("::") + 2));
  int64_t waits = waits_in(name);
  bool writes = false, has_output_size = false;

  // Device tensors first, so that the device is known when a CPU tensor is refused.
  auto device_tensor = [&](const Tensor& t, const std::string& argument) {
    if (on_device(t)) views(t, argument);
  };
  auto view = [&](const Tensor& t, const std::string& argument) -> Tensor {
    if (!t.defined()) return t;
    if (on_device(t)) {
      const bool is_mask = argument == "indices" && (t.scalar_type() == at::kBool || t.scalar_type() == at::kByte);
      if (is_mask && starts_with(name, "aten::index")) waits++;  // the positions are counted by nonzero
      return views(t, argument);
    }
    switch (takes(op, argument)) {
      case Takes::anything:
        // `index` uploads them itself when it computes the shape of its result.
        if (name != "aten::index") {
          count_upload(t.nbytes());
          count_wait("indices on the CPU: " + name);
        }
        return t;
      case Takes::scalars:
        if (t.dim() == 0) return t;
        [[fallthrough]];
      case Takes::nothing:
        break;
    }
    views.mixed(t.device(), argument);
  };
  for (const bool gather : {true, false}) {
    for (size_t i = 0; i < arguments.size(); i++) {
      IValue& value = (*stack)[first_argument + i];
      const std::string& argument = arguments[i].name();
      if (gather) {
        if (value.isTensor())
          device_tensor(value.toTensor(), argument);
        else if (value.isTensorList())
          for (const Tensor& t : value.toTensorVector()) device_tensor(t, argument);
        else if (value.isDevice())
          views.on(known_device(value.toDevice()).index());
        continue;
      }
      if (arguments[i].alias_info() && arguments[i].alias_info()->isWrite()) writes = true;
      if (argument == "output_size" && !value.isNone()) has_output_size = true;
      if (value.isTensor()) {
        value = view(value.toTensor(), argument);
      } else if (value.isTensorList()) {
        c10::List<Tensor> list;
        for (const Tensor& t : value.toTensorVector()) list.push_back(view(t, argument));
        value = std::move(list);
      } else if (value.isOptionalTensorList()) {
        c10::List<std::optional<Tensor>> list;
        for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
          list.push_back(t && t->defined() ? std::optional<Tensor>(view(*t, argument)) : std::nullopt);
        value = std::move(list);
      } else if (value.isDevice()) {
        value = Device(c10::DeviceType::CPU);
      } else {
        TORCH_CHECK(!value.isStorage(), "fake CUDA: ", schema.operator_name(),
                    " takes a storage and needs a kernel of its own");
      }
      if (argument == "generator" || argument == "gen") {
        at::Generator generator = value.isGenerator() ? value.toGenerator() : default_generator(views.device());
        TORCH_CHECK(generator.device().is_cuda(), "Expected a 'cuda' device type for generator but found '",
                    generator.device().type(), "'");
        TORCH_CHECK(generator.device() == cuda(views.device()), "Expected a '", cuda(views.device()),
                    "' generator device but found '", generator.device(), "'");
        value = draw(generator);
      }
    }
  }
  if (name == "aten::repeat_interleave" && !has_output_size) waits++;
  if (waits) {
    count_wait(name.substr(name.find("::") + 2), waits);
    finish_current_stream(views.device());
  }
  if (is_product(name)) need_product_buffer(views.device());
  op.redispatchBoxed(c10::DispatchKeySet(DispatchKey::CPU), stack);
  if (writes) views.settle();

  bool computed = writes;
  auto result = [&](const Tensor& t) {
    auto [ours, is_new] = views.result(t);
    computed |= is_new;
    return ours;
  };
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++) {
    IValue& value = (*stack)[i];
    if (value.isTensor()) {
      value = result(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& t : value.toTensorVector()) list.push_back(result(t));
      value = std::move(list);
    } else {
      computed = true;
    }
  }
  // A view launches nothing.
  if (computed) count_launch(name + (schema.overload_name().empty() ? "" : "." + schema.overload_name()));
  return computed;
}

// Calls `see` with every tensor of a value.
template <class F> void each_tensor(const IValue& value, F see) {
  if (value.isTensor())
    see(value.toTensor());
  else if (value.isTensorList())
    for (const Tensor& t : value.toTensorVector()) see(t);
  else if (value.isOptionalTensorList())
    for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
      if (t) see(*t);
}
// Returns the value with tensors that keep no memory.
IValue kept(const IValue& value) {
  if (value.isTensor()) return unowned(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& t : value.toTensorVector()) list.push_back(unowned(t));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
      list.push_back(t ? std::optional<Tensor>(unowned(*t)) : std::nullopt);
    return list;
  }
  return value;
}

// Runs an operation and, if its stream is captured, keeps it for the replays.
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  if (!capturing()) {
    run(op, stack);
    return;
  }
  const auto& arguments = op.schema().arguments();
  const size_t first = stack->size() - arguments.size();
  torch::jit::Stack given;
  for (size_t i = 0; i < arguments.size(); i++) {
    const IValue& value = (*stack)[first + i];
    given.push_back(kept(value));
    if (arguments[i].alias_info() && arguments[i].alias_info()->isWrite())
      each_tensor(value, [](const Tensor& t) { remember(t); });
  }
  if (!run(op, stack)) return;
  std::vector<Tensor> to;
  for (size_t i = first; i < stack->size(); i++)
    each_tensor((*stack)[i], [&](const Tensor& t) { to.push_back(unowned(t)); });
  add_work([op, given = std::move(given), to = std::move(to)] {
    torch::jit::Stack again = given;
    run(op, &again);
    size_t i = 0;
    for (const IValue& value : again) each_tensor(value, [&](const Tensor& t) { put(to[i++], t); });
  });
}
}  // namespace

void register_fallback(torch::Library& aten, torch::Library& others) {
  // If an operation has a composition, libtorch prefers it to a fallback. CUDA has kernels of its own for those that
  // the CPU has one for, and for all that run over lists of tensors.
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    auto op = dispatcher.findOp(name);
    auto has = [&](DispatchKey key) { return op && op->hasKernelForDispatchKey(key); };
    if (!starts_with(name.name, "aten::") || has(DispatchKey::CUDA) || name.name == "aten::_stack") continue;
    const bool composed = has(DispatchKey::CompositeExplicitAutograd) || has(DispatchKey::CompositeImplicitAutograd);
    const bool foreach =
        starts_with(name.name, "aten::_foreach_") && name.overload_name.find("out") == std::string::npos;
    if (!composed || !(foreach || has(DispatchKey::CPU))) continue;
    const std::string full = name.name + (name.overload_name.empty() ? "" : "." + name.overload_name);
    aten.impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&fallback>());
  }
  others.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}
}  // namespace fake
