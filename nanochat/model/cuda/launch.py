"""`Kernel`: CUDA source that is compiled at its first launch, and the header that all kernels share.

`mx.fast.cuda_kernel` parses megabytes of headers, which takes two seconds per kernel. The kernels here need no headers,
so `nvrtc` compiles them (a tenth of a second), and MLX gets the machine code. A kernel's inputs are row-contiguous (MLX
copies arrays that are not) and read-only; its outputs are new arrays.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from nanochat.model.cuda import nvrtc

THREADS = 256
"""Threads per block: few enough to launch with any number of registers (256 x 255 fit a multiprocessor)."""

_HEADER = """
struct bf16 {
  unsigned short bits;
  __device__ bf16& operator=(float x) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return *this;
  }
};
namespace nanochat {
constexpr int VECTOR = 8;  // elements that a thread moves at once: 16 bytes of bfloat16
__device__ inline float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(int x) { return x; }
__device__ inline void unpack(unsigned pair, float* to) {
  to[0] = __uint_as_float(pair << 16);
  to[1] = __uint_as_float(pair & 0xffff0000u);
}
__device__ inline unsigned pack(const float* from) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(from[1]), "f"(from[0]));
  return pair;
}
__device__ inline void load(const bf16* from, float* to) {
  const uint4 raw = __ldg(reinterpret_cast<const uint4*>(from));  // read-only: may move before stores
  unpack(raw.x, to);
  unpack(raw.y, to + 2);
  unpack(raw.z, to + 4);
  unpack(raw.w, to + 6);
}
__device__ inline void load(const float* from, float* to) {
  *reinterpret_cast<float4*>(to) = __ldg(reinterpret_cast<const float4*>(from));
  *reinterpret_cast<float4*>(to + 4) = __ldg(reinterpret_cast<const float4*>(from + 4));
}
__device__ inline void store(bf16* to, const float* from) {
  *reinterpret_cast<uint4*>(to) = make_uint4(pack(from), pack(from + 2), pack(from + 4), pack(from + 6));
}
__device__ inline void store(float* to, const float* from) {
  *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(from);
  *reinterpret_cast<float4*>(to + 4) = *reinterpret_cast<const float4*>(from + 4);
}
__device__ inline void round_like(const bf16*, float* values) {  // eight values, as the pointer's type stores them
  for (int e = 0; e < 8; ++e) {
    bf16 rounded;
    rounded = values[e];
    values[e] = to_float(rounded);
  }
}
__device__ inline void round_like(const float*, float*) {}
template <typename T>
__device__ T element_of(const T*);  // used only for its type
template <typename T>
struct Four;  // four elements as they are stored
template <>
struct Four<bf16> {
  uint2 raw;
  __device__ void load(const bf16* from) { raw = __ldg(reinterpret_cast<const uint2*>(from)); }
  __device__ void add_to(float* total, float weight) const {
    float values[4];
    unpack(raw.x, values);
    unpack(raw.y, values + 2);
    for (int i = 0; i < 4; ++i) total[i] += weight * values[i];
  }
  __device__ static void store(bf16* to, const float* from) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack(from), pack(from + 2));
  }
};
template <>
struct Four<float> {
  float4 raw;
  __device__ void load(const float* from) { raw = __ldg(reinterpret_cast<const float4*>(from)); }
  __device__ void add_to(float* total, float weight) const {
    total[0] += weight * raw.x;
    total[1] += weight * raw.y;
    total[2] += weight * raw.z;
    total[3] += weight * raw.w;
  }
  __device__ static void store(float* to, const float* from) {
    *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
  }
};
template <int LANES>
__device__ inline float sum_over_lanes(float x) {  // of groups of LANES neighbours; every lane of the warp takes part
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
__device__ inline float sum_over_block(float x) {  // for every thread; once in a kernel
  __shared__ float parts[32];
  x = sum_over_lanes<32>(x);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0.f;
  for (int i = 0; i < blockDim.x / 32; ++i) x += parts[i];
  return x;
}
}  // namespace nanochat
"""

VECTOR_INDEX = """
  const int vector = blockIdx.x * blockDim.x + threadIdx.x;
  if (vector >= vectors) return;
  const size_t at = (size_t)vector * nanochat::VECTOR;
"""
"""The beginning of a kernel for `Kernel.map`."""

_TYPES = {mx.bfloat16: "bf16", mx.float32: "float", mx.int32: "int", mx.uint32: "unsigned", mx.bool_: "bool"}

Constant = int | bool | float


@dataclass(frozen=True)
class Kernel:
    """A CUDA function body. `inputs` and `outputs` name its pointers, `sizes` its int arguments."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sizes: tuple[str, ...]
    body: str
    header: str = ""
    """Source code that the body needs besides the header of all kernels."""

    def __call__(
        self,
        *arrays: mx.array,
        sizes: Sequence[int],
        blocks: int,
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[mx.Dtype],
        constants: Mapping[str, Constant] | None = None,
        threads: int = THREADS,
        fill: float | None = None,
    ) -> list[mx.array]:
        """Launch `blocks` blocks on the arrays and return the outputs, which are first filled with `fill` if given.

        `constants` are compiled in, so values that vary from call to call belong in `sizes`.
        """
        types = tuple(_TYPES[dtype] for dtype in (*(array.dtype for array in arrays), *dtypes))
        name, code = _compiled(self, types, tuple((constants or {}).items()))
        return mx.fast.precompiled_cuda_kernel(
            name=name,
            compiled_source=code,
            inputs=list(arrays),
            output_shapes=list(shapes),
            output_dtypes=list(dtypes),
            scalars=list(sizes),
            grid=(blocks * threads, 1, 1),
            threadgroup=(threads, 1, 1),
            init_value=fill,
            ensure_row_contiguous=True,
        )

    def map(
        self, *arrays: mx.array, dtypes: Sequence[mx.Dtype], constants: Mapping[str, Constant] | None = None
    ) -> list[mx.array]:
        """Launch a thread for each vector of the first array and return outputs of its shape."""
        shape, vectors = arrays[0].shape, arrays[0].size // 8
        shapes, blocks = [shape] * len(dtypes), -(-vectors // THREADS)
        return self(*arrays, sizes=[vectors], blocks=blocks, shapes=shapes, dtypes=dtypes, constants=constants)

    def source(self, types: Sequence[str], constants: Sequence[tuple[str, Constant]]) -> tuple[str, str]:
        """Return the kernel's unique name and its complete source for pointers of these types."""
        of_inputs, of_outputs = types[: len(self.inputs)], types[len(self.inputs) :]
        parameters = [f"const {kind}* {name}" for kind, name in zip(of_inputs, self.inputs, strict=True)]
        parameters += [f"{kind}* {name}" for kind, name in zip(of_outputs, self.outputs, strict=True)]
        parameters += [f"const int {name}" for name in self.sizes]
        lines = [f"constexpr {type(value).__name__} {name} = {_literal(value)};" for name, value in constants]
        text = f"({', '.join(parameters)}) {{\n" + "\n".join(lines) + f"\n{self.body}}}\n"
        header = _HEADER + self.header
        name = f"nanochat_{self.name}_{hashlib.sha256((header + text).encode()).hexdigest()[:12]}"
        return name, f'{header}extern "C" __global__ void {name}{text}'


def elementwise(
    name: str, inputs: tuple[str, ...], result: str, expression: str, others: tuple[str, ...] = ()
) -> Kernel:
    """Return a kernel for `Kernel.map` whose result is an expression of the inputs' elements, which have their names.

    `others` are arrays that the expression reads itself; `at` is the index of the first element of its vector.
    """
    loads = "".join(f"  float {x}_values[8];\n  nanochat::load({x} + at, {x}_values);\n" for x in inputs)
    elements = ", ".join(f"{x} = {x}_values[e]" for x in inputs)
    body = f"""{VECTOR_INDEX}{loads}  float results[8];
#pragma unroll
  for (int e = 0; e < 8; ++e) {{
    const float {elements};
    results[e] = {expression};
  }}
  nanochat::store({result} + at, results);
"""
    return Kernel(name, (*inputs, *others), (result,), ("vectors",), body)


@functools.cache
def _compiled(kernel: Kernel, types: tuple[str, ...], constants: tuple[tuple[str, Constant], ...]) -> tuple[str, bytes]:
    """Return the kernel's name and its code. It should be short: at each launch MLX computes a hash of it."""
    name, source = kernel.source(types, constants)
    return name, nvrtc.machine_code(source, name)


def _literal(value: Constant) -> str:
    return f"{value!r}f" if isinstance(value, float) else str(value).lower()
