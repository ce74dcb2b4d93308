// The table of one instruction set; included last by each ISA file.
#pragma once

#include "kernels/cpu/attention-inl.h"
#include "kernels/cpu/matmul-inl.h"
#include "kernels/cpu/pointwise-inl.h"

#define SLUICE_ISA_NAME_OF(isa) #isa
#define SLUICE_ISA_NAME(isa) SLUICE_ISA_NAME_OF(isa)

namespace sluice::cpu::SLUICE_ISA {

extern const Ops kOps;
const Ops kOps = {
    .name = SLUICE_ISA_NAME(SLUICE_ISA),
    .activation_bytes = ActivationBytes,
    .pack_activations = PackActivations,
    .matmul = Matmul,
    .attention = Attention,
    .kv_write = KvWrite,
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
