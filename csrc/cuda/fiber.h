// Stacks that take turns on one thread of the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace pixelfast {
namespace simt {

// Where a stack was left. `start(function)` makes one that begins there; the function never returns.
class Context {
 public:
  void start(void (*function)(), size_t stack_bytes);
  // Leaves this stack here and goes on with the other.
  void switch_to(Context& other);

 private:
  std::unique_ptr<char[]> stack_;
#ifdef __x86_64__
  void* top_ = nullptr;
#else
  ucontext_t context_;
#endif
};

#ifdef __x86_64__

// swapcontext asks the system for its signal mask each time, which takes longer than a turn. By the calling
// convention of System V, six registers and the stack pointer are the callee's to keep.
extern "C" void pixelfast_switch_stacks(void** save, void* load);
asm(R"(
.text
.hidden pixelfast_switch_stacks
.globl pixelfast_switch_stacks
.type pixelfast_switch_stacks, @function
pixelfast_switch_stacks:
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
.size pixelfast_switch_stacks, . - pixelfast_switch_stacks
)");

inline void Context::start(void (*function)(), size_t stack_bytes) {
  stack_.reset(new char[stack_bytes]);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(stack_.get()) + stack_bytes) / 16 * 16;
  // As a call leaves it: the return address at a multiple of sixteen, less eight, and six registers below.
  void** top = reinterpret_cast<void**>(end - 16) - 6;
  for (int i = 0; i < 6; ++i) top[i] = nullptr;
  top[6] = reinterpret_cast<void*>(function);
  top_ = top;
}
inline void Context::switch_to(Context& other) { pixelfast_switch_stacks(&top_, other.top_); }

#else

inline void Context::start(void (*function)(), size_t stack_bytes) {
  stack_.reset(new char[stack_bytes]);
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_.get();
  context_.uc_stack.ss_size = stack_bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, function, 0);
}
inline void Context::switch_to(Context& other) { swapcontext(&context_, &other.context_); }

#endif

}  // namespace simt
}  // namespace pixelfast
