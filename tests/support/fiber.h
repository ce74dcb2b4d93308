// A function with a stack of its own that runs when it is entered and stops when it leaves.
//
// Switches are a few instructions on x86-64 and AArch64 (callee-saved registers of the C ABI; the
// floating-point control words are not switched) and swapcontext elsewhere. Address and thread
// sanitizers are told. A fiber's function must not end, and nothing on the stack of one that is
// destroyed midway is unwound.
//
// Threads: a fiber is entered from one thread only.
#pragma once

#include <cstddef>
#include <memory>

namespace sluice {

class Fiber {
 public:
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  static constexpr size_t kStackBytes = 256 << 10;  // frames are larger
#else
  static constexpr size_t kStackBytes = 64 << 10;
#endif

  Fiber(void (*main)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Runs the fiber until it leaves. Not from within a fiber.
  void Enter();
  // Goes back to who entered. From within the fiber.
  void Leave();

 private:
  struct Context;
  static void Start(Fiber* self);

  void (*main_)(void*);
  void* argument_;
  std::unique_ptr<unsigned char[]> stack_;
  std::unique_ptr<Context> context_;
};

}  // namespace sluice
