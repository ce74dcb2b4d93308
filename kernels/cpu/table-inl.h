// The table of one instruction set; included last by each ISA file.
#pragma once

#include "kernels/cpu/matmul-inl.h"
#include "kernels/cpu/pointwise-inl.h"

#define SLUICE_ISA_NAME_OF(isa) #isa
#define SLUICE_ISA_NAME(isa) SLUICE_ISA_NAME_OF(isa)

// Attention and the kernels of bit-nested matrices are translation units of their own
// (attention_<isa>.cc, nested_<isa>.cc); a table may use those of another instruction set that its
// CPUs have.
#if !defined(SLUICE_NESTED_ISA)
#define SLUICE_NESTED_ISA SLUICE_ISA
#endif
namespace sluice::cpu::SLUICE_NESTED_ISA {
size_t NestedActivationBytes(int tokens, int cols);
void NestedPackActivations(const float* x, ptrdiff_t x_stride, const int32_t* gather, int tokens,
                           int cols, void* packed);
void NestedMatmul(const NestedMatmulArgs& args);
int64_t NestedPeakMacs(int64_t iterations, float* sink);
void Attention(const AttentionArgs& args);
void MergeAttention(const AttentionArgs& args);
void KvWrite(KvDType kv_dtype, const float* k, const float* v, int kv_heads, int head_dim, int slot,
             void* k_block, void* v_block);
}  // namespace sluice::cpu::SLUICE_NESTED_ISA

namespace sluice::cpu::SLUICE_ISA {

extern const Ops kOps;
const Ops kOps = {
    .name = SLUICE_ISA_NAME(SLUICE_ISA),
    .activation_bytes = ActivationBytes,
    .pack_activations = PackActivations,
    .matmul = Matmul,
    .attention = SLUICE_NESTED_ISA::Attention,
    .merge_attention = SLUICE_NESTED_ISA::MergeAttention,
    .nested_activation_bytes = SLUICE_NESTED_ISA::NestedActivationBytes,
    .nested_pack_activations = SLUICE_NESTED_ISA::NestedPackActivations,
    .nested_matmul = SLUICE_NESTED_ISA::NestedMatmul,
    .nested_peak_macs = SLUICE_NESTED_ISA::NestedPeakMacs,
    .kv_write = SLUICE_NESTED_ISA::KvWrite,
    .rms_norm = RmsNorm,
    .rope = Rope,
    .silu_mul = SiluMul,
    .add_scaled = AddScaled,
    .softmax = Softmax,
    .to_f32 = ToF32,
    .pack_matrix = PackMatrix,
    .read_stream = ReadStream,
    .peak_macs = PeakMacs,
};

}  // namespace sluice::cpu::SLUICE_ISA
