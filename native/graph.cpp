// C interface to CUDA graphs: work of a stream that is recorded once and then launched as a whole. libtorch's class for them is
// declared in a header that includes CUDA's; its functions are looked up by name in the libtorch_cuda that is loaded. (The
// layout of an object does not matter then, only that there is room for it.)
//
// The convention for failures is that of shim.cpp.
#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <dlfcn.h>

extern "C" void ft_set_error(const char* message);
#define GUARD(fail, ...)                                                        \
  try { __VA_ARGS__ } catch (const std::exception& e) { ft_set_error(e.what()); return fail; } \
  catch (...) { ft_set_error("unknown C++ exception"); return fail; }

namespace {
using Pool = c10::MempoolId_t;

// at::cuda::CUDAGraph of libtorch 2.11.
struct Functions {
  void (*construct)(void*, bool keep_graph);
  void (*destroy)(void*);
  void (*begin)(void*, Pool pool, int mode);
  void (*end)(void*);
  void (*replay)(void*);
  Pool (*pool)(void*);
};

template <class F> void find(F*& function, const char* suffix) {
  const std::string name = std::string("_ZN2at4cuda9CUDAGraph") + suffix;
  function = reinterpret_cast<F*>(dlsym(RTLD_DEFAULT, name.c_str()));
  TORCH_CHECK(function, "this libtorch has no CUDA graphs: ", name, " is missing");
}
const Functions& functions() {
  static const Functions found = [] {
    Functions f{};
    find(f.construct, "C1Eb");
    find(f.destroy, "D1Ev");
    find(f.begin, "13capture_beginESt4pairIyyE21cudaStreamCaptureMode");
    find(f.end, "11capture_endEv");
    find(f.replay, "6replayEv");
    find(f.pool, "4poolEv");
    return f;
  }();
  return found;
}

// cudaStreamCaptureModeThreadLocal: what other threads do with the device does not end the capture.
constexpr int kThreadLocal = 1;
}  // namespace

struct Graph {
  alignas(16) char object[1024];  // at::cuda::CUDAGraph, 104 bytes in libtorch 2.11.0
  c10::Device device;
  bool capturing = false;

  explicit Graph(c10::Device device) : device(device) { functions().construct(object, false); }
  ~Graph() {
    try {
      c10::DeviceGuard guard(device);
      if (capturing) functions().end(object);
    } catch (...) {
      // A capture that failed has nothing to end.
    }
    functions().destroy(object);
  }
  Graph(const Graph&) = delete;
};

// Makes everything that `to` is given from now on wait for what `from` was given.
static void wait_for(c10::Stream from, c10::Stream to) {
  c10::Event done{at::kCUDA};
  done.record(from);
  done.block(to);
}

extern "C" {
// Lets the calling thread queue its operations on another stream of the device: the given one, or a new one if it is negative.
// out: the stream that it used before.
int ft_stream_switch(int index, int64_t stream, int64_t* out) {
  GUARD(-1,
    c10::impl::VirtualGuardImpl guard(at::kCUDA);
    const at::Device device(at::kCUDA, index);
    const auto before = guard.getStream(device);
    const auto next = stream < 0 ? guard.getStreamFromGlobalPool(device) : c10::Stream(c10::Stream::UNSAFE, device, stream);
    wait_for(before, next);
    guard.exchangeStream(next);
    *out = before.id();
    return 0;)
}

// Begins to record what the calling thread's current stream, which must not be the default one, is given: nothing is computed.
// pool: two numbers that name memory of other graphs, to share it, or null.
Graph* ft_graph_begin(int index, const uint64_t* pool) {
  GUARD(nullptr,
    auto graph = std::make_unique<Graph>(at::Device(at::kCUDA, index));
    c10::DeviceGuard guard(graph->device);
    functions().begin(graph->object, pool ? Pool(pool[0], pool[1]) : Pool(0, 0), kThreadLocal);
    graph->capturing = true;
    return graph.release();)
}

// Ends the record. The memory of its tensors stays the graph's.
int ft_graph_end(Graph* graph) {
  GUARD(-1,
    c10::DeviceGuard guard(graph->device);
    graph->capturing = false;
    functions().end(graph->object);
    return 0;)
}

// Launches the recorded work on the current stream.
int ft_graph_replay(Graph* graph) {
  GUARD(-1,
    c10::DeviceGuard guard(graph->device);
    functions().replay(graph->object);
    return 0;)
}

// out: the two numbers that name its memory.
int ft_graph_pool(Graph* graph, uint64_t* out) {
  GUARD(-1,
    const Pool pool = functions().pool(graph->object);
    out[0] = pool.first;
    out[1] = pool.second;
    return 0;)
}

void ft_graph_drop(Graph* graph) { delete graph; }
}
