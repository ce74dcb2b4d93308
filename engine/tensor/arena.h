// Many arrays in one allocation: name them all, then allocate once, and every pointer is set.
//
//   ArenaLayout layout;
//   layout.Add(&logits_, tokens * vocab);
//   layout.Add(&ids_, tokens);
//   auto memory = layout.Allocate(backend, "activations");   // sets logits_ and ids_
//
// Each array starts on a cache line. The named pointers must stay where they are until Allocate.
#pragma once

#include <cstddef>
#include <vector>

#include "engine/tensor/backend.h"
#include "engine/tensor/device_buffer.h"

namespace sluice {

class ArenaLayout {
 public:
  template <class T>
  void Add(T** pointer, size_t count) {
    AddBytes(
        [](void* target, void* address) { *static_cast<T**>(target) = static_cast<T*>(address); },
        pointer, count * sizeof(T));
  }
  // For memory that is read through a pointer to const.
  void AddConst(const void** pointer, size_t bytes) {
    AddBytes([](void* target, void* address) { *static_cast<const void**>(target) = address; },
             pointer, bytes);
  }
  size_t bytes() const { return bytes_; }

  Result<DeviceBuffer> Allocate(Backend* backend, const char* what) const {
    auto buffer = backend->Allocate(bytes_, what);
    if (!buffer) return buffer.error();
    for (const Part& part : parts_) part.set(part.target, buffer->as<std::byte>() + part.offset);
    return buffer;
  }

 private:
  using Set = void (*)(void* target, void* address);
  struct Part {
    Set set;
    void* target;
    size_t offset;
  };

  void AddBytes(Set set, void* target, size_t bytes) {
    parts_.push_back({set, target, bytes_});
    bytes_ += AlignUp(bytes, 64);
  }

  std::vector<Part> parts_;
  size_t bytes_ = 0;
};

}  // namespace sluice
