// Streams and events. Operations run at once, on the thread that asks for them; only copies between pinned memory and a
// device that the host does not wait for happen as late as CUDA allows:
// - An upload arrives when its stream is next used or waited for, by the host or (through an event) by another stream.
// A stream that
//   uses the data without waiting sees NaN, and pinned memory that is overwritten too early sends the new bytes. What an
//   earlier download of the same stream writes to pinned memory is there when the upload reads it.
// - A download takes its bytes at once but delivers them when the host waits. Host code that reads them earlier sees
// NaN.
#include "fake_cuda.h"

#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <mutex>

namespace fake {
namespace {
constexpr int kPool = 32;  // streams of a device beside the default one, as in libtorch's pool

using Key = std::pair<DeviceIndex, c10::StreamId>;
using Clock = std::map<Key, int64_t>;  // how much of each stream's work is done before a point of a stream

struct Copy {
  int64_t number;
  void* to;
  const void* from;
  size_t bytes;
  std::vector<Tensor> keep;
  std::string snapshot;  // of a download

  void arrive() const { memcpy(host(to), snapshot.empty() ? host(from) : snapshot.data(), bytes); }
};

struct StreamState {
  int64_t number = 0;  // of the last piece of work
  Clock before;        // work of other streams that this one waited for
  std::deque<Copy> uploads, downloads;
};

struct Event {
  Clock before;
  bool captured = false;  // recorded while its stream was
  std::chrono::steady_clock::time_point time;
};

std::mutex lock;
std::map<Key, StreamState>& states() {
  static auto* states = new std::map<Key, StreamState>();
  return *states;
}
Key key(c10::Stream stream) { return {stream.device_index(), stream.id()}; }

// Lets copies arrive that belong to work up to `number`.
void arrive(std::deque<Copy>& copies, int64_t number, std::vector<Copy>& done) {
  while (!copies.empty() && copies.front().number <= number) {
    copies.front().arrive();
    done.push_back(std::move(copies.front()));  // their tensors are released after the lock
    copies.pop_front();
  }
}
// Does the same for a stream's uploads. One that reads what an earlier download of the stream writes comes after it.
void uploads_arrive(StreamState& state, int64_t number, std::vector<Copy>& done) {
  for (const Copy& upload : state.uploads) {
    if (upload.number > number) break;
    const auto* from = static_cast<const char*>(upload.from);
    auto read = [&](const Copy& d) {
      const auto* to = static_cast<const char*>(d.to);
      return d.number < upload.number && to < from + upload.bytes && from < to + d.bytes;
    };
    auto last = std::find_if(state.downloads.rbegin(), state.downloads.rend(), read);
    if (last != state.downloads.rend()) arrive(state.downloads, last->number, done);
  }
  arrive(state.uploads, number, done);
}
Clock now(c10::Stream stream) {
  StreamState& state = states()[key(stream)];
  Clock clock = state.before;
  clock[key(stream)] = state.number;
  return clock;
}
void uploads_arrive(const Clock& clock, std::vector<Copy>& done) {
  for (auto& [stream, number] : clock) uploads_arrive(states()[stream], number, done);
}
void host_waits(const Clock& clock) {
  std::vector<Copy> done;
  std::lock_guard<std::mutex> hold(lock);
  uploads_arrive(clock, done);
  for (auto& [stream, number] : clock) arrive(states()[stream].downloads, number, done);
}

thread_local DeviceIndex this_device = 0;
thread_local std::map<DeviceIndex, c10::StreamId> this_stream;

c10::Stream stream_of_pool(DeviceIndex device) {
  static std::atomic<int64_t> next{0};
  return c10::Stream(c10::Stream::UNSAFE, cuda(device), 1 + next++ % kPool);
}
Device known(Device device) {
  TORCH_CHECK(device.is_cuda(), "fake CUDA: a guard of CUDA got ", device);
  if (!device.has_index()) return cuda(this_device);
  TORCH_CHECK(device.index() < fake_device_count(), "CUDA error: invalid device ordinal");
  return device;
}
}  // namespace

DeviceIndex current_device() { return this_device; }
void set_current_device(Device device) { this_device = known(device).index(); }
c10::Stream current_stream(DeviceIndex device) {
  return c10::Stream(c10::Stream::UNSAFE, cuda(device), this_stream[device]);
}

void upload_later(c10::Stream stream, void* to, const void* from, size_t bytes, std::vector<Tensor> keep) {
  refuse_in_capture("a copy from the host");
  std::lock_guard<std::mutex> hold(lock);
  StreamState& state = states()[key(stream)];
  state.uploads.push_back({++state.number, to, from, bytes, std::move(keep), ""});
}
void download_later(c10::Stream stream, void* to, const void* from, size_t bytes, std::vector<Tensor> keep) {
  refuse_in_capture("a copy to the host");
  begin_operation(stream.device_index());
  std::string snapshot(static_cast<const char*>(host(from)), bytes);
  memset(to, 0xff, bytes);
  std::lock_guard<std::mutex> hold(lock);
  StreamState& state = states()[key(stream)];
  state.downloads.push_back({++state.number, to, from, bytes, std::move(keep), std::move(snapshot)});
}
void begin_operation(DeviceIndex device) {
  std::vector<Copy> done;
  std::lock_guard<std::mutex> hold(lock);
  auto state = states().find(key(current_stream(device)));
  if (state != states().end()) uploads_arrive(state->second, state->second.number, done);
}
void finish_current_stream(DeviceIndex device) {
  Clock clock;
  {
    std::lock_guard<std::mutex> hold(lock);
    clock = now(current_stream(device));
  }
  host_waits(clock);
}

namespace {
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  Device exchangeDevice(Device device) const override {
    Device before = cuda(this_device);
    set_current_device(device);
    return before;
  }
  Device getDevice() const override { return cuda(this_device); }
  void setDevice(Device device) const override { set_current_device(device); }
  void uncheckedSetDevice(Device device) const noexcept override { this_device = device.index(); }
  DeviceIndex deviceCount() const noexcept override { return fake_device_count(); }
  c10::DeviceCapability getDeviceCapability(Device) const override { return {}; }

  c10::Stream getStream(Device device) const override { return current_stream(known(device).index()); }
  c10::Stream getDefaultStream(Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, known(device));
  }
  c10::Stream getStreamFromGlobalPool(Device device, bool) const override {
    return stream_of_pool(known(device).index());
  }
  c10::Stream getNewStream(Device device, int) const override { return stream_of_pool(known(device).index()); }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    c10::Stream before = current_stream(stream.device_index());
    this_stream[stream.device_index()] = stream.id();
    return before;
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override { return reinterpret_cast<void*>(stream.id()); }

  void record(void** event, const c10::Stream& stream, const DeviceIndex, const c10::EventFlag) const override {
    if (!*event) *event = new Event();
    const bool captured = is_captured(stream);
    std::lock_guard<std::mutex> hold(lock);
    *static_cast<Event*>(*event) = {now(stream), captured, std::chrono::steady_clock::now()};
  }
  void destroyEvent(void* event, const DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
  void block(void* event, const c10::Stream& stream) const override {
    if (!event) return;
    TORCH_CHECK(is_captured(stream) || !static_cast<Event*>(event)->captured,
                "CUDA error: operation not permitted when stream is capturing (fake CUDA: a stream that is not captured waits for one "
                "that is)");
    std::vector<Copy> done;
    std::lock_guard<std::mutex> hold(lock);
    const Clock& clock = static_cast<Event*>(event)->before;
    uploads_arrive(clock, done);
    for (auto& [other, number] : clock) {
      int64_t& seen = states()[key(stream)].before[other];
      seen = std::max(seen, number);
    }
  }
  bool queryEvent(void* event) const override {
    if (event) host_waits(static_cast<Event*>(event)->before);
    return true;
  }
  void synchronizeEvent(void* event) const override {
    count_wait("synchronize event");
    if (event) host_waits(static_cast<Event*>(event)->before);
  }
  double elapsedTime(void* from, void* to, const DeviceIndex) const override {
    TORCH_CHECK(from && to, "Both events must be recorded before calculating elapsed time.");
    return std::chrono::duration<double, std::milli>(static_cast<Event*>(to)->time - static_cast<Event*>(from)->time)
        .count();
  }
  bool queryStream(const c10::Stream& stream) const override {
    wait_for(stream);
    return true;
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    count_wait("synchronize stream");
    wait_for(stream);
  }
  void synchronizeDevice(const DeviceIndex device) const override { synchronize(device); }

  static void wait_for(c10::Stream stream) {
    Clock clock;
    {
      std::lock_guard<std::mutex> hold(lock);
      clock = now(stream);
    }
    host_waits(clock);
  }
  static void synchronize(DeviceIndex device) {
    count_wait("synchronize device");
    Clock clock;
    {
      std::lock_guard<std::mutex> hold(lock);
      for (auto& [stream, state] : states())
        if (stream.first == device) clock[stream] = state.number;
    }
    host_waits(clock);
  }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);
}  // namespace

Device known_device(Device device) { return known(device); }
void synchronize_device(DeviceIndex device) { Guard::synchronize(device); }
}  // namespace fake
