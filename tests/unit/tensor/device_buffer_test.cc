#include "engine/tensor/device_buffer.h"

#include <algorithm>
#include <cstdint>

#include "engine/tensor/arena.h"
#include "engine/tensor/cpu_backend.h"
#include "tests/support/catch.h"

namespace sluice {
namespace {

uintptr_t Address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

}  // namespace

TEST_CASE("Host buffers are aligned, zero-filled and writable to the last byte", "[tensor]") {
  for (const size_t bytes :
       {size_t{1}, size_t{63}, size_t{4096}, kLargeBufferBytes, kLargeBufferBytes + 5}) {
    auto buffer = DeviceBuffer::Host(bytes, "a test");
    REQUIRE(buffer.has_value());
    CHECK(buffer->bytes() == bytes);
    CHECK(Address(buffer->data()) % 64 == 0);
    if (bytes >= kLargeBufferBytes) CHECK(Address(buffer->data()) % kHugePageBytes == 0);
    const auto values = buffer->span<unsigned char>();
    CHECK(std::all_of(values.begin(), values.end(), [](unsigned char v) { return v == 0; }));
    std::fill(values.begin(), values.end(), 255);
  }
}

TEST_CASE("Memory that the system cannot give is an error that names the purpose", "[tensor]") {
  auto buffer = DeviceBuffer::Host(SIZE_MAX / 4, "the KV cache");
  REQUIRE(buffer.has_error());
  CHECK(buffer.error().code == ErrorCode::kResourceExhausted);
  CHECK(buffer.error().message.find("the KV cache") != std::string::npos);
  CHECK(DeviceBuffer::Host(SIZE_MAX - 1, "x").has_error());
}

TEST_CASE("Moving a buffer leaves the source empty and frees what the target held", "[tensor]") {
  auto first = DeviceBuffer::Host(100, "a test");
  auto second = DeviceBuffer::Host(200, "a test");
  REQUIRE((first.has_value() && second.has_value()));
  void* data = second->data();
  *first = std::move(*second);
  CHECK(first->data() == data);
  CHECK(first->bytes() == 200);
  CHECK(second->data() == nullptr);
  CHECK(second->bytes() == 0);
}

TEST_CASE("An arena sets every pointer to its own cache lines of one buffer", "[tensor]") {
  CpuBackend backend(cpu::SelectOps(cpu::Isa::kScalar), 1, false);
  ArenaLayout layout;
  float* floats = nullptr;
  int32_t* ints = nullptr;
  const void* bytes = nullptr;
  layout.Add(&floats, 3);
  layout.AddConst(&bytes, 65);
  layout.Add(&ints, 20);
  auto memory = layout.Allocate(&backend, "a test");
  REQUIRE(memory.has_value());
  CHECK(memory->bytes() == 64 + 128 + 128);
  CHECK(Address(floats) == Address(memory->data()));
  CHECK(Address(bytes) == Address(floats) + 64);
  CHECK(Address(ints) == Address(bytes) + 128);
}

}  // namespace sluice
