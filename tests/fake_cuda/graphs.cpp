// CUDA graphs: the work of a stream is kept instead of done, and done at each replay, with the addresses that it was captured
// with. The class has the names of libtorch's, by which ft finds it.
//
// Kernels do run during a capture, because later ones may need their results to know a shape; when it ends, all memory is as it
// was before, and new memory is NaN, so that nobody takes a captured result for a computed one. (Where ft's own kernels write to memory
// from before the capture, it stays written.)
#include "fake_cuda.h"

#include <ATen/EmptyTensor.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>

namespace fake {
namespace {
struct Graph {
  std::mutex lock;
  DeviceIndex device = -1;
  Pool pool{};
  std::vector<std::function<void()>> work;
  std::vector<std::pair<Tensor, std::string>> before;  // what was written, with its earlier bytes
};

std::mutex lock;
std::atomic<int> captures{0};
std::map<std::pair<DeviceIndex, c10::StreamId>, Graph*>& captured_streams() {
  static auto* all = new std::map<std::pair<DeviceIndex, c10::StreamId>, Graph*>();
  return *all;
}
thread_local bool in_replay = false;

// Returns the graph that the calling thread's current stream is captured into, or nullptr.
Graph* current() {
  if (captures == 0 || in_replay) return nullptr;
  const DeviceIndex device = current_device();
  std::lock_guard<std::mutex> hold(lock);
  auto found = captured_streams().find({device, current_stream(device).id()});
  return found == captured_streams().end() ? nullptr : found->second;
}

size_t extent(const Tensor& t) { return at::detail::computeStorageNbytes(t.sizes(), t.strides(), t.dtype().itemsize()); }
}  // namespace

bool capturing() { return current() != nullptr; }
bool is_captured(c10::Stream stream) {
  if (captures == 0) return false;
  std::lock_guard<std::mutex> hold(lock);
  return captured_streams().count({stream.device_index(), stream.id()}) > 0;
}
bool replaying() { return in_replay; }
std::optional<Pool> capture_pool() {
  Graph* graph = current();
  return graph ? std::optional<Pool>(graph->pool) : std::nullopt;
}
void add_work(std::function<void()> work) {
  Graph* graph = current();
  std::lock_guard<std::mutex> hold(graph->lock);
  graph->work.push_back(std::move(work));
}
void remember(const Tensor& written) {
  if (!on_device(written) || written.numel() == 0) return;
  Graph* graph = current();
  std::string bytes(static_cast<const char*>(host(written.const_data_ptr())), extent(written));
  std::lock_guard<std::mutex> hold(graph->lock);
  graph->before.emplace_back(unowned(written), std::move(bytes));
}
void refuse_in_capture(const std::string& what) {
  TORCH_CHECK(!capturing(), "CUDA error: operation not permitted when stream is capturing (fake CUDA: ", what, ")");
}
void put(const Tensor& to, const Tensor& from) {
  if (!on_device(to) || to.numel() == 0 || to.const_data_ptr() == from.const_data_ptr()) return;
  TORCH_CHECK(to.sizes() == from.sizes() && to.strides() == from.strides() && to.dtype() == from.dtype(),
              "fake CUDA: a replayed operation has another result than the captured one");
  memcpy(host(to.mutable_data_ptr()), host(from.const_data_ptr()), extent(to));
}

namespace {
void begin(Graph& graph, Pool pool) {
  const DeviceIndex device = current_device();
  const auto stream = current_stream(device);
  TORCH_CHECK(stream.id() != 0,
              "CUDA graphs must be captured on a non-default stream. (However, after capture, it's ok to replay them on the "
              "default stream.)");
  static std::atomic<unsigned long long> pools{0};
  graph.device = device;
  graph.pool = pool.second || pool.first ? pool : Pool(0, ++pools);
  retain_pool(device, graph.pool);
  std::lock_guard<std::mutex> hold(lock);
  TORCH_CHECK(captured_streams().emplace(std::make_pair(device, stream.id()), &graph).second,
              "fake CUDA: the stream is being captured already");
  captures++;
}
// Ends a capture, if there is one.
void end(Graph& graph) {
  std::lock_guard<std::mutex> hold(lock);
  auto& streams = captured_streams();
  auto own = std::find_if(streams.begin(), streams.end(), [&](auto& stream) { return stream.second == &graph; });
  if (own == streams.end()) return;
  streams.erase(own);
  captures--;
  poison_pool(graph.device, graph.pool);
  for (auto it = graph.before.rbegin(); it != graph.before.rend(); ++it)
    memcpy(host(it->first.mutable_data_ptr()), it->second.data(), it->second.size());
  graph.before.clear();
}
void replay(Graph& graph) {
  count_launch("cudaGraphLaunch");
  begin_operation(graph.device);
  in_replay = true;
  try {
    for (auto& one : graph.work) one();
  } catch (...) {
    in_replay = false;
    throw;
  }
  in_replay = false;
}
}  // namespace
}  // namespace fake

enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal };

namespace at::cuda {
struct CUDAGraph {
  fake::Graph* graph;

  explicit CUDAGraph(bool keep_graph);
  ~CUDAGraph();
  void capture_begin(c10::MempoolId_t pool, cudaStreamCaptureMode mode);
  void capture_end();
  void replay();
  c10::MempoolId_t pool();
};

CUDAGraph::CUDAGraph(bool) : graph(new fake::Graph()) {}
CUDAGraph::~CUDAGraph() {
  if (graph->device >= 0) {
    fake::end(*graph);
    fake::release_pool(graph->device, graph->pool);
  }
  delete graph;
}
void CUDAGraph::capture_begin(c10::MempoolId_t pool, cudaStreamCaptureMode) { fake::begin(*graph, pool); }
void CUDAGraph::capture_end() { fake::end(*graph); }
void CUDAGraph::replay() { fake::replay(*graph); }
c10::MempoolId_t CUDAGraph::pool() { return graph->pool; }
}  // namespace at::cuda

extern "C" {
// For kernels that do not come through libtorch's dispatcher: keeps the work if the current stream is captured.
void fake_cuda_capture(const std::function<void()>& work) {
  if (fake::capturing()) fake::add_work(work);
}
}
