#include "tests/support/fiber.h"

#include <ucontext.h>

#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#if defined(__x86_64__) || defined(__aarch64__)
#define SLUICE_FIBER_OWN_SWITCH 1
// Saves registers and the stack pointer to *from, and goes on where `to` was saved.
extern "C" void SluiceFiberSwitch(void** from, void* to);
#endif

#if defined(__x86_64__)
asm(R"(
.text
.type SluiceFiberSwitch, @function
SluiceFiberSwitch:
  endbr64
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size SluiceFiberSwitch, .-SluiceFiberSwitch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.type SluiceFiberSwitch, %function
SluiceFiberSwitch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size SluiceFiberSwitch, .-SluiceFiberSwitch
)");
#endif

namespace sluice {
namespace {

// A new fiber's first function takes no argument.
thread_local Fiber* starting = nullptr;

}  // namespace

struct Fiber::Context {
#if defined(SLUICE_FIBER_OWN_SWITCH)
  void* inside = nullptr;
  void* outside = nullptr;
#else
  ucontext_t inside = {};
  ucontext_t outside = {};
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* outside_stack = nullptr;
  size_t outside_bytes = 0;
  void* inside_fake = nullptr;
#endif
#if defined(__SANITIZE_THREAD__)
  void* inside_tsan = __tsan_create_fiber(0);
  void* outside_tsan = nullptr;
#endif
  static void First() { Start(starting); }
};

Fiber::Fiber(void (*main)(void*), void* argument)
    : main_(main),
      argument_(argument),
      stack_(new unsigned char[kStackBytes]),
      context_(std::make_unique<Context>()) {
#if defined(SLUICE_FIBER_OWN_SWITCH)
  auto top = reinterpret_cast<uintptr_t>(stack_.get() + kStackBytes) / 16 * 16;
#if defined(__x86_64__)
  // As if First had been called: a return address above, the stack 8 bytes off 16.
  auto* at = reinterpret_cast<void**>(top) - 8;
  for (int i = 0; i < 8; ++i) at[i] = nullptr;
  at[6] = reinterpret_cast<void*>(&Context::First);
#else
  auto* at = reinterpret_cast<void**>(top) - 20;
  for (int i = 0; i < 20; ++i) at[i] = nullptr;
  at[11] = reinterpret_cast<void*>(&Context::First);  // x30
#endif
  context_->inside = at;
#else
  getcontext(&context_->inside);
  context_->inside.uc_stack.ss_sp = stack_.get();
  context_->inside.uc_stack.ss_size = kStackBytes;
  makecontext(&context_->inside, &Context::First, 0);
#endif
}

Fiber::~Fiber() {
#if defined(__SANITIZE_THREAD__)
  __tsan_destroy_fiber(context_->inside_tsan);
#endif
}

void Fiber::Start(Fiber* self) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self->context_->outside_stack,
                                  &self->context_->outside_bytes);
#endif
  self->main_(self->argument_);
  __builtin_trap();
}

void Fiber::Enter() {
  Context& c = *context_;
  starting = this;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stack_.get(), kStackBytes);
#endif
#if defined(__SANITIZE_THREAD__)
  c.outside_tsan = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(c.inside_tsan, 0);
#endif
#if defined(SLUICE_FIBER_OWN_SWITCH)
  SluiceFiberSwitch(&c.outside, c.inside);
#else
  swapcontext(&c.outside, &c.inside);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void Fiber::Leave() {
  Context& c = *context_;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&c.inside_fake, c.outside_stack, c.outside_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(c.outside_tsan, 0);
#endif
#if defined(SLUICE_FIBER_OWN_SWITCH)
  SluiceFiberSwitch(&c.inside, c.outside);
#else
  swapcontext(&c.inside, &c.outside);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(c.inside_fake, &c.outside_stack, &c.outside_bytes);
#endif
}

}  // namespace sluice
