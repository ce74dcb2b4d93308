// The owner of memory that tensors live in. Made by Backend::Allocate; freed by its destructor.
//
// Host buffers are zero-filled and aligned to 64 bytes. From kLargeBufferBytes up they are mapped
// on their own, aligned to a huge page and advised to use huge pages, and cost physical memory only
// where they are touched.
#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "engine/base/result.h"

namespace sluice {

inline constexpr size_t kLargeBufferBytes = size_t{1} << 20;
inline constexpr size_t kHugePageBytes = size_t{2} << 20;

class DeviceBuffer {
 public:
  // Frees what a backend allocated: the address and size given to the constructor.
  using Release = void (*)(void* data, size_t bytes);

  DeviceBuffer() = default;
  DeviceBuffer(void* data, size_t bytes, Release release)
      : data_(data), bytes_(bytes), release_(release) {}
  ~DeviceBuffer() { Reset(); }
  DeviceBuffer(DeviceBuffer&& other) noexcept { Swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    if (this != &other) {
      Reset();
      Swap(other);
    }
    return *this;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  // Host memory. `what` names the purpose in the error ("KV cache"). Zero bytes give an empty
  // buffer.
  static Result<DeviceBuffer> Host(size_t bytes, const char* what);

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  template <class T>
  std::span<T> span() const {
    return {as<T>(), bytes_ / sizeof(T)};
  }

 private:
  void Reset() {
    if (data_ != nullptr) release_(data_, bytes_);
    data_ = nullptr;
    bytes_ = 0;
  }
  void Swap(DeviceBuffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(release_, other.release_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
  Release release_ = nullptr;
};

constexpr size_t AlignUp(size_t bytes, size_t alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

}  // namespace sluice
